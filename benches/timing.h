// What the programs that are measured have in common: a step begins with a line, and ends with the
// times that it took.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static int by_size(const void *a, const void *b) {
    long long x = *(const long long *)a, y = *(const long long *)b;
    return (x > y) - (x < y);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void await_line(void) {
    char line[16];
    if (!fgets(line, sizeof line, stdin))
        exit(0);
}

// Says the median, the 99th and the 99.9th percentile, and all together, in nanoseconds.
static void tell(long long *took, long count, long long all) {
    qsort(took, count, sizeof *took, by_size);
    printf("%lld %lld %lld %lld\n", took[count / 2], took[count * 99 / 100], took[count * 999 / 1000], all);
    fflush(stdout);
}
