// A binder program that knows nothing of fakebinder, and receives descriptors. Built by the tests in
// descriptors_stopped.rs, dynamically linked, and with -static not:
//   gcc -O2 -Wall -Werror -o descriptors descriptors.c
//
// descriptors DEVICE serve [OPTION]...: is the context manager, and takes calls until it gets one with the
// code 99. Each descriptor that comes must have the lowest free number and be close-on-exec; it gets one
// byte, 'x', and is closed (those of arrays by BC_FREE_BUFFER). The program answers with four bytes: how
// many came.
//
// descriptors DEVICE call N: calls the context manager N times with TF_ACCEPT_FDS, and treats what comes
// in the replies in the same way.
//
// Before and after, registers that calls preserve, the signal mask, the descriptors and the mappings must
// be the same; what is not ends it with a message and status 1. It prints "ready" when it is about to be
// called, and "done N" at the end, N being the descriptors that came.
//
// Options: watch: another thread looks all the time whether it is traced; filtered: a seccomp filter that kills
// whoever makes a socketpair, reads a message or unmaps memory; full=N: there are N numbers left, by the
// soft limit; hard=N: by the hard one; signals: signals
// with a handler come all the time; supervised: descriptors of arrays are closed when the next ioctl begins,
// which leaves a file of a certain name there.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/android/binder.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { MAP = 1 << 20, STOP = 99 };

static int device;
static unsigned came, failed;
static volatile uint64_t counter;
static volatile int handled;

static void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    _exit(1);
}

// An ioctl between two looks at the registers that it must not change.
static long preserving_ioctl(int fd, unsigned long cmd, void *argument) {
#if defined(__x86_64__)
    register long r10 __asm__("r10") = 0x1010101010101010;
    register long r8 __asm__("r8") = 0x0808080808080808;
    register long r9 __asm__("r9") = 0x0909090909090909;
    register long r12 __asm__("r12") = 0x1212121212121212;
    register long r13 __asm__("r13") = 0x1313131313131313;
    register long r14 __asm__("r14") = 0x1414141414141414;
    register long r15 __asm__("r15") = 0x1515151515151515;
    long result, rdi = fd, rsi = (long)cmd, rdx = (long)argument, sp_before, sp_after;
    double before = 1.25, after = before;
    __asm__ volatile("mov %%rsp, %[spb]\n\tsyscall\n\tmov %%rsp, %[spa]"
                     : "=a"(result), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r10), "+r"(r8), "+r"(r9), "+r"(r12),
                       "+r"(r13), "+r"(r14), "+r"(r15), "+x"(after), [spb] "=&m"(sp_before), [spa] "=&m"(sp_after)
                     : "0"((long)SYS_ioctl)
                     : "rcx", "r11", "memory");
    if (rdi != fd || rsi != (long)cmd || rdx != (long)argument || r10 != 0x1010101010101010 ||
        r8 != 0x0808080808080808 || r9 != 0x0909090909090909 || r12 != 0x1212121212121212 ||
        r13 != 0x1313131313131313 || r14 != 0x1414141414141414 || r15 != 0x1515151515151515 || after != before ||
        sp_before != sp_after)
        fail("a register has changed");
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
#else
    return ioctl(fd, cmd, argument);
#endif
}

static void write_read(void *write_buffer, size_t write_size, void *read_buffer, size_t *read_size) {
    struct binder_write_read bwr = {0};
    bwr.write_buffer = (uintptr_t)write_buffer;
    bwr.write_size = write_size;
    bwr.read_buffer = (uintptr_t)read_buffer;
    bwr.read_size = read_size ? *read_size : 0;
    while (preserving_ioctl(device, BINDER_WRITE_READ, &bwr) != 0)
        if (errno != EINTR) fail("BINDER_WRITE_READ: %s", strerror(errno));
    if (bwr.write_consumed != write_size) fail("%llu bytes of %zu were taken", bwr.write_consumed, write_size);
    if (bwr.write_buffer != (uintptr_t)write_buffer || bwr.read_buffer != (uintptr_t)read_buffer)
        fail("the argument has changed");
    if (read_size) *read_size = bwr.read_consumed;
}

static int next_free(void) {
    int fd = dup(0);
    if (fd >= 0) close(fd);
    return fd;
}

static int supervised;
// Whether a descriptor stands for one that is closed.
static int is_placeholder(int fd) {
    char path[64], name[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = supervised ? readlink(path, name, sizeof name - 1) : -1;
    if (length < 0) return 0;
    name[length] = 0;
    return !strcmp(name, "/memfd:fakebinder-closed (deleted)");
}

static unsigned count_entries(const char *path) {
    DIR *directory = opendir(path);
    unsigned count = 0;
    if (!directory) fail("%s: %s", path, strerror(errno));
    for (struct dirent *entry; (entry = readdir(directory));)
        count += !is_placeholder(atoi(entry->d_name));
    closedir(directory);
    return count;
}

static unsigned count_maps(void) {
    static char text[1 << 16];
    unsigned lines = 0;
    int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    for (ssize_t size; (size = read(maps, text, sizeof text)) > 0;)
        for (ssize_t at = 0; at < size; at++) lines += text[at] == '\n';
    close(maps);
    return lines;
}

// The lowest numbers that are free, and how many of them have come.
static int lowest[512];
static unsigned taken;

static void look_for_free_numbers(void) {
    unsigned found = 0;
    if (supervised) write_read(NULL, 0, NULL, NULL);
    for (int fd = 0; found < sizeof lowest / sizeof *lowest; fd++)
        if (fcntl(fd, F_GETFD) < 0 || is_placeholder(fd)) lowest[found++] = fd;
    taken = 0;
}

static void use(int fd) {
    int expected = lowest[taken++];
    came++;
    if (fd != expected) fail("descriptor %d came, and %d is the lowest that was free", fd, expected);
    if (fcntl(fd, F_GETFD) != FD_CLOEXEC) fail("descriptor %d is not close-on-exec", fd);
    if (write(fd, "x", 1) != 1) fail("descriptor %d: %s", fd, strerror(errno));
}

static void use_all(struct binder_transaction_data *got) {
    binder_size_t *offsets = (void *)(uintptr_t)got->data.ptr.offsets;
    uint64_t buffer = 0;
    for (unsigned index = 0; index < got->offsets_size / sizeof *offsets; index++) {
        void *object = (void *)(uintptr_t)(got->data.ptr.buffer + offsets[index]);
        struct binder_object_header *header = object;
        if (header->type == BINDER_TYPE_PTR) buffer = ((struct binder_buffer_object *)object)->buffer;
        if (header->type == BINDER_TYPE_FD) use((int)((struct binder_fd_object *)object)->fd);
        if (header->type == BINDER_TYPE_FDA) {
            struct binder_fd_array_object *array = object;
            int *fds = (int *)(uintptr_t)(buffer + array->parent_offset);
            for (unsigned at = 0; at < array->num_fds; at++) use(fds[at]);
        }
    }
}

static void close_singles(struct binder_transaction_data *got) {
    binder_size_t *offsets = (void *)(uintptr_t)got->data.ptr.offsets;
    for (unsigned index = 0; index < got->offsets_size / sizeof *offsets; index++) {
        struct binder_fd_object *object = (void *)(uintptr_t)(got->data.ptr.buffer + offsets[index]);
        if (object->hdr.type == BINDER_TYPE_FD && close((int)object->fd) != 0) fail("close: %s", strerror(errno));
    }
}

struct out {
    uint32_t command;
    struct binder_transaction_data data;
} __attribute__((packed));
struct give_back {
    uint32_t command;
    binder_uintptr_t buffer;
} __attribute__((packed));

// Reads until a transaction or the end of a call; its record, or null.
static struct binder_transaction_data *next(void *out, size_t size, uint32_t *what) {
    static char in[256];
    look_for_free_numbers();
    for (;;) {
        size_t length = sizeof in;
        write_read(out, size, in, &length);
        size = 0;
        for (size_t at = 0; at < length;) {
            uint32_t command;
            memcpy(&command, in + at, 4);
            void *record = in + at + 4;
            at += 4 + _IOC_SIZE(command);
            if (command == BR_TRANSACTION || command == BR_REPLY) {
                *what = command;
                use_all(record);
                return record;
            }
            if (command == BR_FAILED_REPLY || command == BR_DEAD_REPLY) {
                *what = command;
                return NULL;
            }
            if (command != BR_NOOP && command != BR_TRANSACTION_COMPLETE && command != BR_SPAWN_LOOPER &&
                _IOC_NR(command) > 20)
                fail("return %#x", command);
        }
    }
}

static void serve(void) {
    uint32_t enter = BC_ENTER_LOOPER;
    struct {
        struct give_back free;
        struct out reply;
    } __attribute__((packed)) answer;
    uint32_t count, what;
    write_read(&enter, sizeof enter, NULL, NULL);
    puts("ready");
    struct binder_transaction_data *got = next(NULL, 0, &what);
    for (;;) {
        uint32_t code = got->code, oneway = got->flags & TF_ONE_WAY;
        close_singles(got);
        memset(&answer, 0, sizeof answer);
        answer.free.command = BC_FREE_BUFFER;
        answer.free.buffer = got->data.ptr.buffer;
        answer.reply.command = BC_REPLY;
        count = came;
        answer.reply.data.data_size = sizeof count;
        answer.reply.data.data.ptr.buffer = (uintptr_t)&count;
        // What an array has brought must be closed when the ioctl is over.
        if (oneway) {
            write_read(&answer, sizeof answer.free, NULL, NULL);
        } else {
            write_read(&answer, sizeof answer, NULL, NULL);
        }
        if (code == STOP) return;
        got = next(NULL, 0, &what);
        if (!got) fail("a server reads a failure");
    }
}

static void call(unsigned times) {
    puts("ready");
    for (unsigned index = 0; index < times; index++) {
        struct out out = {.command = BC_TRANSACTION, .data = {.flags = TF_ACCEPT_FDS, .code = 1}};
        uint32_t what;
        struct binder_transaction_data *got = next(&out, sizeof out, &what);
        if (!got) {
            failed++;
            continue;
        }
        close_singles(got);
        struct give_back free = {BC_FREE_BUFFER, got->data.ptr.buffer};
        write_read(&free, sizeof free, NULL, NULL);
    }
}

// Looks whether it is traced, over and over again: only who is can be stopped.
static void *watch(void *unused) {
    static char status[4096];
    int file = open("/proc/thread-self/status", O_RDONLY | O_CLOEXEC);
    (void)unused;
    counter = 1;
    for (ssize_t size; (size = pread(file, status, sizeof status - 1, 0)) > 0; counter++) {
        status[size] = 0;
        const char *tracer = strstr(status, "TracerPid:\t");
        if (!tracer || tracer[11] != '0') fail("another thread was traced");
    }
    fail("/proc/thread-self/status: %s", strerror(errno));
    return NULL;
}

static void on_signal(int signal) {
    (void)signal;
    handled++;
}

static void filter(void) {
#define KILL(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        KILL(SYS_socketpair),
        KILL(SYS_recvmsg),
        KILL(SYS_munmap),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog all = {sizeof program / sizeof *program, program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all))
        fail("seccomp: %s", strerror(errno));
}

int main(int count, char **arguments) {
    int is_server = count > 2 && !strcmp(arguments[2], "serve"), signals = 0;
    device = open(arguments[1], O_RDWR | O_CLOEXEC);
    if (device < 0) fail("open: %s", strerror(errno));
    if (mmap(NULL, MAP, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, device, 0) == MAP_FAILED) fail("mmap");
    // As most programs have it by then: the C library's own buffers are there.
    setvbuf(stdout, NULL, _IOLBF, 1 << 12);
    count_entries("/proc/self/fd"), count_maps();
    struct flat_binder_object manager = {.hdr.type = BINDER_TYPE_BINDER, .flags = FLAT_BINDER_FLAG_ACCEPTS_FDS};
    if (is_server && ioctl(device, BINDER_SET_CONTEXT_MGR_EXT, &manager) != 0) fail("BINDER_SET_CONTEXT_MGR_EXT");
    for (int at = is_server ? 3 : 4; at < count; at++) {
        const char *option = arguments[at];
        pthread_t thread;
        if (!strcmp(option, "watch")) {
            pthread_create(&thread, NULL, watch, NULL);
            while (!counter) usleep(1000);
        } else if (!strncmp(option, "full=", 5) || !strncmp(option, "hard=", 5)) {
            struct rlimit limit;
            getrlimit(RLIMIT_NOFILE, &limit);
            look_for_free_numbers();
            limit.rlim_cur = lowest[atoi(option + 5)];
            if (*option == 'h') limit.rlim_max = limit.rlim_cur;
            if (setrlimit(RLIMIT_NOFILE, &limit) != 0) fail("setrlimit");
        } else if (!strcmp(option, "signals")) {
            struct sigaction action = {.sa_handler = on_signal};
            struct itimerval often = {{0, 300}, {0, 300}};
            sigaction(SIGALRM, &action, NULL);
            setitimer(ITIMER_REAL, &often, NULL);
            signals = 1;
        } else if (!strcmp(option, "filtered")) {
            filter();
        } else if (!strcmp(option, "supervised")) {
            supervised = 1;
        }
    }
    // As large as the kernel's.
    sigset_t before, after;
    size_t size = 8;
    struct rlimit limit_before, limit_after;
    sigemptyset(&before);
    sigaddset(&before, SIGUSR1);
    sigprocmask(SIG_BLOCK, &before, NULL);
    sigprocmask(SIG_SETMASK, NULL, &before);
    getrlimit(RLIMIT_NOFILE, &limit_before);
    unsigned fds = next_free() < 0 ? 0 : count_entries("/proc/self/fd"), maps = next_free() < 0 ? 0 : count_maps();
    if (is_server) serve();
    else call((unsigned)atoi(arguments[3]));
    if (supervised) write_read(NULL, 0, NULL, NULL);
    if (fds && fds != count_entries("/proc/self/fd")) fail("%u descriptors, %u before", count_entries("/proc/self/fd"), fds);
    if (maps && count_maps() > maps + 1) fail("%u mappings, %u before", count_maps(), maps);
    sigprocmask(SIG_SETMASK, NULL, &after);
    getrlimit(RLIMIT_NOFILE, &limit_after);
    if (memcmp(&before, &after, size)) fail("the signal mask has changed");
    if (memcmp(&limit_before, &limit_after, sizeof limit_before)) fail("RLIMIT_NOFILE has changed");
    if (signals && !handled) fail("no signal was handled");
    printf("done %u failed %u\n", came, failed);
    return 0;
}
