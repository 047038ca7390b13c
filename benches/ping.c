// A binder client and server in plain C, against <linux/android/binder.h> and nothing else: what is
// measured with it is the device, and no library of ours. Built by the tests and benchmarks:
//   gcc -O2 -pthread -o ping ping.c
//
// ping DEVICE serve [THREADS]: is the context manager, and answers every call with no data, on one
// thread or several. Descriptors that come with a call are closed. Says "ready" when it can be called.
//
// ping DEVICE call COUNT [SIZE [FILES]]: says "ready" after some calls that are not counted, and then
// for each line makes COUNT calls with SIZE bytes of data, or with FILES descriptors and nothing
// else, and says how many nanoseconds each took: the median, the 99th and the 99.9th percentile, and
// all together.
//
// ping DEVICE send COUNT: the same with one-way calls. All together ends when the server has had the
// last of them.
//
// ping DEVICE nothing COUNT: the same with an ioctl that does nothing (BINDER_VERSION); it takes no
// server.
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
#define MOST_FILES 32
// What the server is asked: nothing, or how many one-way calls it has had.
#define PING 1
#define HAD 2

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
static __u64 had;

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

static void close_files(const struct binder_transaction_data *call) {
    const char *data = (const char *)call->data.ptr.buffer;
    const binder_size_t *offsets = (const binder_size_t *)call->data.ptr.offsets;
    for (size_t i = 0; i < call->offsets_size / sizeof *offsets; i++) {
        struct binder_fd_object file;
        memcpy(&file, data + offsets[i], sizeof file);
        if (file.hdr.type == BINDER_TYPE_FD)
            close(file.fd);
    }
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
        close_files(&call);
        write.done.buffer = call.data.ptr.buffer;
        if (call.flags & TF_ONE_WAY) {
            __atomic_add_fetch(&had, 1, __ATOMIC_RELAXED);
            write_read(&write.done, sizeof write.done, 0, 0);
            continue;
        }
        __u64 answer = __atomic_load_n(&had, __ATOMIC_RELAXED);
        write.transaction.data.data_size = call.code == HAD ? sizeof answer : 0;
        write.transaction.data.data.ptr.buffer = (binder_uintptr_t)&answer;
        write_read(&write, sizeof write, returns, sizeof returns);
    }
    return 0;
}

static void one_call(struct commands *write, int *has_buffer) {
    unsigned char returns[256] __attribute__((aligned(256)));
    struct binder_transaction_data reply;
    int oneway = write->transaction.data.flags & TF_ONE_WAY;
    void *from = *has_buffer ? (void *)write : (void *)&write->transaction;
    size_t size = *has_buffer ? sizeof *write : sizeof write->transaction;
    __u32 wanted = oneway ? BR_TRANSACTION_COMPLETE : BR_REPLY;
    while (!find(returns, write_read(from, size, returns, sizeof returns), wanted, oneway ? 0 : &reply))
        size = 0;
    *has_buffer = !oneway;
    if (!oneway)
        write->done.buffer = reply.data.ptr.buffer;
}

// How many one-way calls the server has had.
static __u64 one_way_calls(void) {
    struct commands write = {.done.command = BC_FREE_BUFFER, .transaction.command = BC_TRANSACTION};
    int has_buffer = 0;
    write.transaction.data.code = HAD;
    one_call(&write, &has_buffer);
    __u64 answer = *(const __u64 *)(write.done.buffer);
    write_read(&write.done, sizeof write.done, 0, 0);
    return answer;
}

// What is done again and again, and what one time of it is.
struct work {
    struct commands commands;
    int has_buffer, nothing;
};

static void once(struct work *work) {
    struct binder_version version;
    if (!work->nothing)
        one_call(&work->commands, &work->has_buffer);
    else if (ioctl(device, BINDER_VERSION, &version))
        fail("BINDER_VERSION");
}

// Ends the program, when there are no further lines.
static void measure(struct work *work, long count) {
    int oneway = work->commands.transaction.data.flags & TF_ONE_WAY;
    long long *took = calloc(count, sizeof *took);
    if (!took)
        fail("memory");
    for (int i = 0; i < 200; i++)
        once(work);
    puts("ready");
    fflush(stdout);
    for (;;) {
        await_line();
        __u64 before = oneway ? one_way_calls() : 0;
        long long began = now(), last = began;
        for (long i = 0; i < count; i++) {
            once(work);
            long long then = now();
            took[i] = then - last;
            last = then;
        }
        if (oneway) {
            while (one_way_calls() < before + count)
                ;
            last = now();
        }
        tell(took, count, last - began);
    }
}

static void call(long count, long size, long files, int oneway) {
    struct work work = {.commands = {.done.command = BC_FREE_BUFFER, .transaction.command = BC_TRANSACTION}};
    struct binder_transaction_data data = {.code = PING, .flags = oneway ? TF_ONE_WAY : 0};
    struct binder_fd_object objects[MOST_FILES] = {0};
    binder_size_t offsets[MOST_FILES];
    for (long i = 0; i < files; i++) {
        objects[i].hdr.type = BINDER_TYPE_FD;
        objects[i].fd = 0;
        offsets[i] = i * sizeof *objects;
    }
    char *bytes = calloc(1, size + 1);
    if (!bytes)
        fail("memory");
    data.data_size = files ? files * (long)sizeof *objects : size;
    data.data.ptr.buffer = files ? (binder_uintptr_t)objects : (binder_uintptr_t)bytes;
    data.offsets_size = files * sizeof *offsets;
    data.data.ptr.offsets = (binder_uintptr_t)offsets;
    work.commands.transaction.data = data;
    measure(&work, count);
}

static void become_manager(void) {
    // A context manager that takes descriptors.
    struct flat_binder_object node = {.hdr.type = BINDER_TYPE_BINDER, .flags = FLAT_BINDER_FLAG_ACCEPTS_FDS};
    if (ioctl(device, BINDER_SET_CONTEXT_MGR_EXT, &node))
        fail("BINDER_SET_CONTEXT_MGR_EXT");
}

static int usage(void) {
    fprintf(stderr, "usage: ping DEVICE serve [THREADS] | call COUNT [SIZE [FILES]] | send COUNT | nothing COUNT\n");
    return 2;
}

int main(int count, char **arguments) {
    if (count < 3)
        return usage();
    const char *mode = arguments[2];
    long number[3] = {0};
    for (int i = 0; i < 3 && i + 3 < count; i++)
        number[i] = atol(arguments[i + 3]);
    int serves = !strcmp(mode, "serve");
    if ((!serves && number[0] < 1) || number[1] < 0 || number[2] < 0 || number[2] > MOST_FILES)
        return usage();
    set_up(arguments[1]);
    if (serves) {
        become_manager();
        for (long threads = number[0]; threads > 1; threads--) {
            pthread_t thread;
            if (pthread_create(&thread, 0, serve, 0))
                fail("pthread_create");
        }
        serve((void *)1);
    }
    if (!strcmp(mode, "nothing")) {
        struct work work = {.nothing = 1};
        measure(&work, number[0]);
    } else if (!strcmp(mode, "call") || !strcmp(mode, "send")) {
        call(number[0], number[1], number[2], !strcmp(mode, "send"));
    } else {
        return usage();
    }
    return 0;
}
