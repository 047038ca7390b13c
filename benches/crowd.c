// Very many clients of one device, in plain C: processes that each have it open and mapped, and one
// thread that waits in a read. Built by the benchmark:
//   gcc -O2 -o crowd crowd.c
//
// crowd DEVICE: says "ready", and then for each line with a number makes clients until there are as
// many, and says "ready" again when all of them are about to wait. They end with it.
#include <errno.h>
#include <fcntl.h>
#include <linux/android/binder.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static void fail(const char *what) {
    fprintf(stderr, "crowd: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int write_read(int device, void *write, size_t write_size, void *read, size_t read_size) {
    struct binder_write_read arg = {
        .write_size = write_size,
        .write_buffer = (binder_uintptr_t)write,
        .read_size = read_size,
        .read_buffer = (binder_uintptr_t)read,
    };
    return ioctl(device, BINDER_WRITE_READ, &arg);
}

static void be_client(const char *path, int said) {
    static char returns[256];
    __u32 begin = BC_ENTER_LOOPER;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int device = open(path, O_RDWR | O_CLOEXEC);
    if (device < 0)
        fail(path);
    if (mmap(0, 1024 * 1024, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, device, 0) == MAP_FAILED)
        fail("mmap");
    if (write_read(device, &begin, sizeof begin, 0, 0))
        fail("BC_ENTER_LOOPER");
    if (write(said, "", 1) != 1)
        fail("write");
    close(said);
    for (;;)
        if (write_read(device, 0, 0, returns, sizeof returns))
            fail("BINDER_WRITE_READ");
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: crowd DEVICE\n");
        return 2;
    }
    long clients = 0;
    char line[32];
    for (;;) {
        puts("ready");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin))
            return 0;
        int ends[2];
        long wanted = atol(line), before = clients;
        if (pipe(ends))
            fail("pipe");
        for (; clients < wanted; clients++) {
            pid_t child = fork();
            if (child < 0)
                fail("fork");
            if (!child) {
                close(ends[0]);
                be_client(arguments[1], ends[1]);
            }
        }
        close(ends[1]);
        for (long here = before; here < wanted; here++) {
            char byte;
            if (read(ends[0], &byte, 1) != 1) {
                fprintf(stderr, "crowd: %ld clients of %ld came\n", here, wanted);
                return 1;
            }
        }
        close(ends[0]);
    }
}
