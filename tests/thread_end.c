// Threads that end, in a program that knows the C library and <linux/android/binder.h> only.
// Built by the test in thread_end.rs: gcc -O2 -pthread -o thread_end thread_end.c
//
// thread_end DEVICE serve HOW: is the context manager. Its first call is taken by a thread that ends
// without an answer; all others are answered by another thread, with what they brought. HOW it ends:
//   quiet     it returns
//   ioctl     it calls ioctl(fd, BINDER_THREAD_EXIT, 0) before, as libbinder does
//   unread    the call lies on its list, for its read buffer has no room for it
//   main      it is the first thread of the process, and calls pthread_exit
//   reused    it returns, and the thread that answers has the same number
// thread_end DEVICE threads COUNT: so many threads, one after the other; each makes one call.
// thread_end DEVICE reused: a thread leaves a call of its own open; the next one has its number, and calls.
//
// Says "ready" when it serves, or what failed. Exit status 77: the number of a thread cannot be chosen here.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/android/binder.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

struct __attribute__((packed)) transaction {
    __u32 command;
    struct binder_transaction_data data;
};

struct __attribute__((packed)) free_buffer {
    __u32 command;
    binder_uintptr_t buffer;
};

static int device;

static void fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static size_t write_read(const void *write, size_t write_size, void *read, size_t read_size) {
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

// Reads until a return of this kind comes, and gives what came with it. 0: another outcome came.
static int read_until(__u32 wanted, struct binder_transaction_data *data) {
    for (;;) {
        unsigned char returns[256];
        size_t length = write_read(NULL, 0, returns, sizeof returns);
        for (size_t at = 0; at < length;) {
            __u32 number;
            memcpy(&number, returns + at, 4);
            if (number == wanted) {
                memcpy(data, returns + at + 4, sizeof *data);
                return 1;
            }
            if (number == BR_DEAD_REPLY || number == BR_FAILED_REPLY)
                return 0;
            at += 4 + _IOC_SIZE(number);
        }
    }
}

static void done_with(binder_uintptr_t buffer) {
    struct free_buffer done = {BC_FREE_BUFFER, buffer};
    write_read(&done, sizeof done, NULL, 0);
}

// Calls the context manager; 0 if it does not answer.
static int call(void) {
    struct transaction transaction = {.command = BC_TRANSACTION};
    struct binder_transaction_data reply;
    write_read(&transaction, sizeof transaction, NULL, 0);
    if (!read_until(BR_REPLY, &reply))
        return 0;
    done_with(reply.data.ptr.buffer);
    return 1;
}

static void *serve(void *unused) {
    __u32 enter = BC_ENTER_LOOPER;
    write_read(&enter, sizeof enter, NULL, 0);
    for (;;) {
        struct binder_transaction_data taken;
        if (!read_until(BR_TRANSACTION, &taken))
            continue;
        struct transaction answer = {.command = BC_REPLY};
        answer.data.data_size = taken.data_size;
        answer.data.data.ptr.buffer = taken.data.ptr.buffer;
        write_read(&answer, sizeof answer, NULL, 0);
        done_with(taken.data.ptr.buffer);
    }
    return unused;
}

static void ready(void) {
    puts("ready");
    fflush(stdout);
}

static void *take_one(void *how) {
    struct binder_transaction_data taken;
    unsigned char cramped[32];
    __u32 enter = BC_ENTER_LOOPER;
    write_read(&enter, sizeof enter, NULL, 0);
    ready();
    if (how && !strcmp(how, "unread"))
        // The first read of a thread returns at once. In the next one a call has no room.
        for (int reads = 0; reads < 2; reads++)
            write_read(NULL, 0, cramped, sizeof cramped);
    else
        read_until(BR_TRANSACTION, &taken);
    if (how && !strcmp(how, "ioctl"))
        ioctl(device, BINDER_THREAD_EXIT, 0);
    return (void *)(long)gettid();
}

static pthread_t start(void *(*run)(void *), void *argument) {
    pthread_t thread;
    errno = pthread_create(&thread, NULL, run, argument);
    if (errno)
        fail("pthread_create");
    return thread;
}

static pid_t wanted;

struct chosen {
    void *(*run)(void *);
    pthread_mutex_t lock;
    int right;
};

static void *if_chosen(void *argument) {
    struct chosen *chosen = argument;
    void *(*run)(void *) = chosen->run;
    chosen->right = gettid() == wanted;
    pthread_mutex_unlock(&chosen->lock);
    return chosen->right ? run(NULL) : NULL;
}

// Starts a thread that has the number of one that has ended.
static pthread_t start_as(pid_t number, void *(*run)(void *)) {
    wanted = number;
    // Before Linux 6.9 only the time of its start tells a thread from another, in ticks of 10 ms.
    int descriptor = syscall(SYS_pidfd_open, gettid(), O_EXCL);
    if (descriptor < 0)
        usleep(30000);
    else
        close(descriptor);
    for (int tries = 0; tries < 1000; tries++) {
        static struct chosen chosen;
        chosen.run = run;
        pthread_mutex_init(&chosen.lock, NULL);
        pthread_mutex_lock(&chosen.lock);
        FILE *last = fopen("/proc/sys/kernel/ns_last_pid", "w");
        if (!last || fprintf(last, "%d", number - 1) < 0 || fclose(last))
            exit(77);
        pthread_t thread = start(if_chosen, &chosen);
        pthread_mutex_lock(&chosen.lock);
        if (chosen.right)
            return thread;
        pthread_join(thread, NULL);
    }
    exit(77);
}

static void *leave_open(void *unused) {
    struct transaction transaction = {.command = BC_TRANSACTION};
    write_read(&transaction, sizeof transaction, NULL, 0);
    return (void *)(long)gettid();
}

static void *call_once(void *unused) { return (void *)(long)call(); }

int main(int count, char **arguments) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char *what = count > 2 ? arguments[2] : "";
    char *how = count > 3 ? arguments[3] : "";
    device = open(arguments[1], O_RDWR | O_CLOEXEC);
    if (device < 0)
        fail("open");
    if (mmap(NULL, 128 * 1024, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, device, 0) == MAP_FAILED)
        fail("mmap");
    void *result;
    if (!strcmp(what, "threads")) {
        for (int left = atoi(how), failed = 0;; left--) {
            if (!left)
                return failed ? printf("%d failed\n", failed), 1 : 0;
            pthread_join(start(call_once, NULL), &result);
            failed += !result;
        }
    }
    if (!strcmp(what, "reused")) {
        pthread_join(start(leave_open, NULL), &result);
        pthread_join(start_as((long)result, call_once), &result);
        return !result;
    }
    int zero = 0;
    while (ioctl(device, BINDER_SET_CONTEXT_MGR, &zero))
        if (errno != EBUSY)
            fail("BINDER_SET_CONTEXT_MGR");
    if (!strcmp(how, "main")) {
        take_one(NULL);
        start(serve, NULL);
        pthread_exit(NULL);
    }
    pthread_join(start(take_one, how), &result);
    if (!strcmp(how, "reused"))
        start_as((long)result, serve);
    else
        start(serve, NULL);
    pause();
    return 0;
}
