// A binder client and server in plain C, against <linux/android/binder.h> and nothing else: what is
// measured with it is the device, and no library of ours. Built by the tests and benchmarks:
//   gcc -O2 -pthread -o ping ping.c
//
// ping DEVICE serve [THREADS]: is the context manager, and answers every call with no data, on one
// thread or several. Says "ready" when it can be called.
//
// ping DEVICE call COUNT [SIZE [oneway]]: says "ready" after some calls that are not counted, waits
// for a line, makes COUNT calls with SIZE bytes of data, and says how many nanoseconds each took: the
// median, the 99th and the 99.9th percentile, and all together. Then it waits for another line.
//
// A call is three ioctls, as most programs make them: the caller sends and waits in one, and gives
// back the last answer's buffer with it; the server gives back the call's buffer with its reply,
// which ends at once, and waits in the next.
#include <errno.h>
#include <fcntl.h>
#include <linux/android/binder.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "timing.h"

#define MAPPING (1024 * 1024)

struct __attribute__((packed)) free_buffer {
    __u32 command;
    binder_uintptr_t buffer;
};

struct __attribute__((packed)) transaction {
    __u32 command;
    struct binder_transaction_data data;
};

// Commands as they are written: a buffer that is given back, then a transaction; or only the latter.
struct __attribute__((packed)) commands {
    struct free_buffer done;
    struct transaction transaction;
};

static int device;

static void fail(const char *what) {
    fprintf(stderr, "ping: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void set_up(const char *path) {
    device = open(path, O_RDWR | O_CLOEXEC);
    if (device < 0)
        fail(path);
    if (mmap(0, MAPPING, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, device, 0) == MAP_FAILED)
        fail("mmap");
}

static size_t write_read(void *write, size_t write_size, void *read, size_t read_size) {
    struct binder_write_read arg = {
        .write_size = write_size,
        .write_buffer = (binder_uintptr_t)write,
        .read_size = read_size,
        .read_buffer = (binder_uintptr_t)read,
    };
    if (ioctl(device, BINDER_WRITE_READ, &arg))
        fail("BINDER_WRITE_READ");
    return arg.read_consumed;
}

// The record behind `wanted` among the returns; 0 when it is not there.
static int find(const unsigned char *returns, size_t size, __u32 wanted, struct binder_transaction_data *found) {
    for (size_t at = 0; at + 4 <= size;) {
        __u32 number;
        memcpy(&number, returns + at, 4);
        if (number == BR_DEAD_REPLY || number == BR_FAILED_REPLY) {
            fprintf(stderr, "ping: the call failed (%#x)\n", number);
            exit(1);
        }
        if (number == wanted) {
            if (found)
                memcpy(found, returns + at + 4, sizeof *found);
            return 1;
        }
        at += 4 + _IOC_SIZE(number);
    }
    return 0;
}

static void *serve(void *first) {
    __u32 begin = BC_ENTER_LOOPER;
    // In one page: a driver may write to two pages in two steps.
    unsigned char returns[256] __attribute__((aligned(256)));
    struct commands write = {.done.command = BC_FREE_BUFFER, .transaction.command = BC_REPLY};
    write_read(&begin, sizeof begin, 0, 0);
    if (first) {
        puts("ready");
        fflush(stdout);
    }
    for (;;) {
        struct binder_transaction_data call;
        if (!find(returns, write_read(0, 0, returns, sizeof returns), BR_TRANSACTION, &call))
            continue;
        write.done.buffer = call.data.ptr.buffer;
        if (call.flags & TF_ONE_WAY)
            write_read(&write.done, sizeof write.done, 0, 0);
        else
            write_read(&write, sizeof write, returns, sizeof returns);
    }
    return 0;
}

static void one_call(struct commands *write, int *has_buffer, int oneway) {
    unsigned char returns[256] __attribute__((aligned(256)));
    struct binder_transaction_data reply;
    void *from = *has_buffer ? (void *)write : (void *)&write->transaction;
    size_t size = *has_buffer ? sizeof *write : sizeof write->transaction;
    __u32 wanted = oneway ? BR_TRANSACTION_COMPLETE : BR_REPLY;
    while (!find(returns, write_read(from, size, returns, sizeof returns), wanted, oneway ? 0 : &reply))
        size = 0;
    if (!oneway) {
        write->done.buffer = reply.data.ptr.buffer;
        *has_buffer = 1;
    }
}

static void call(long count, long size, int oneway) {
    struct commands write = {.done.command = BC_FREE_BUFFER, .transaction.command = BC_TRANSACTION};
    long long *took = calloc(count, sizeof *took);
    char *data = calloc(1, size + 1);
    int has_buffer = 0;
    if (!took || !data)
        fail("memory");
    write.transaction.data.code = 1;
    write.transaction.data.flags = oneway ? TF_ONE_WAY : 0;
    write.transaction.data.data_size = size;
    write.transaction.data.data.ptr.buffer = (binder_uintptr_t)data;
    for (int i = 0; i < 200; i++)
        one_call(&write, &has_buffer, oneway);
    puts("ready");
    fflush(stdout);
    await_line();
    long long began = now(), last = began;
    for (long i = 0; i < count; i++) {
        one_call(&write, &has_buffer, oneway);
        long long then = now();
        took[i] = then - last;
        last = then;
    }
    tell(took, count, last - began);
    await_line();
}

int main(int count, char **arguments) {
    if (count >= 3 && !strcmp(arguments[2], "serve")) {
        int nothing = 0;
        set_up(arguments[1]);
        if (ioctl(device, BINDER_SET_CONTEXT_MGR, &nothing))
            fail("BINDER_SET_CONTEXT_MGR");
        for (int threads = count > 3 ? atoi(arguments[3]) : 1; threads > 1; threads--) {
            pthread_t thread;
            if (pthread_create(&thread, 0, serve, 0))
                fail("pthread_create");
        }
        serve((void *)1);
    }
    if (count >= 4 && !strcmp(arguments[2], "call")) {
        long calls = atol(arguments[3]), size = count > 4 ? atol(arguments[4]) : 0;
        if (calls < 1 || size < 0) {
            fprintf(stderr, "ping: %s calls with %s bytes\n", arguments[3], count > 4 ? arguments[4] : "0");
            return 2;
        }
        set_up(arguments[1]);
        call(calls, size, count > 5 && !strcmp(arguments[5], "oneway"));
        return 0;
    }
    fprintf(stderr, "usage: ping DEVICE serve [THREADS] | ping DEVICE call COUNT [SIZE [oneway]]\n");
    return 2;
}
