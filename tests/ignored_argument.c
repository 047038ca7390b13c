// Ioctls whose argument the driver ignores, or looks at late, with pointers that lead nowhere.
// Built by the test in preload.rs: gcc -D_GNU_SOURCE -O2 -o ignored_argument ignored_argument.c
//
// With -DSYSCALL the calls go through syscall(2). ignored_argument DEVICE: one line for each call.
#include <errno.h>
#include <fcntl.h>
#include <linux/android/binder.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BAD ((void *)16)

static int device;

static int call(int fd, unsigned long command, void *argument) {
#if defined(SYSCALL)
    return syscall(SYS_ioctl, fd, command, argument);
#else
    return ioctl(fd, command, argument);
#endif
}

static void tell(const char *what, int result) {
    printf("%s: %s\n", what, result < 0 ? strerrorname_np(errno) : result ? "?" : "0");
}

static int read_returns(void *write, size_t size, void *returns, size_t room) {
    struct binder_write_read arg = {
        .write_size = size,
        .write_buffer = (binder_uintptr_t)write,
        .read_size = room,
        .read_buffer = (binder_uintptr_t)returns,
    };
    return call(device, BINDER_WRITE_READ, &arg);
}

int main(int count, char **arguments) {
    device = open(arguments[1], O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (count != 2 || device < 0)
        return perror(arguments[1]), 1;
#if defined(SYSCALL)
    void *start = (void *)syscall(SYS_mmap, NULL, 4096, PROT_READ, MAP_PRIVATE, device, 0L);
#else
    void *start = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, device, 0);
#endif
    tell("mmap", start == MAP_FAILED ? -1 : 0);

    // Whoever was the context manager before may not be gone yet.
    int result;
    while ((result = call(device, BINDER_SET_CONTEXT_MGR, NULL)) < 0 && errno == EBUSY)
        usleep(1000);
    tell("BINDER_SET_CONTEXT_MGR, null", result);
    tell("once more", call(device, BINDER_SET_CONTEXT_MGR, NULL));
    tell("once more, bad", call(device, BINDER_SET_CONTEXT_MGR, BAD));

    unsigned char returns[256];
    tell("a new thread's first read", read_returns(NULL, 0, returns, sizeof returns));
    tell("the next", read_returns(NULL, 0, returns, sizeof returns));
    tell("BINDER_THREAD_EXIT, null", call(device, BINDER_THREAD_EXIT, NULL));
    tell("a new thread's first read", read_returns(NULL, 0, returns, sizeof returns));
    tell("BINDER_THREAD_EXIT, bad", call(device, BINDER_THREAD_EXIT, BAD));
    tell("a new thread's first read", read_returns(NULL, 0, returns, sizeof returns));
    tell("the next", read_returns(NULL, 0, returns, sizeof returns));

    tell("BINDER_VERSION, bad", call(device, BINDER_VERSION, BAD));
    tell("BINDER_SET_MAX_THREADS, bad", call(device, BINDER_SET_MAX_THREADS, BAD));
    tell("BINDER_SET_CONTEXT_MGR_EXT, bad", call(device, BINDER_SET_CONTEXT_MGR_EXT, BAD));
    tell("BINDER_WRITE_READ, bad", call(device, BINDER_WRITE_READ, BAD));
    tell("BINDER_GET_FROZEN_INFO, bad", call(device, BINDER_GET_FROZEN_INFO, BAD));

    // To a handle that is none.
    struct __attribute__((packed)) {
        __u32 command;
        struct binder_transaction_data data;
    } transaction = {.command = BC_TRANSACTION, .data = {.target.handle = 99}};
    struct binder_extended_error error = {0};
    tell("a call that fails", read_returns(&transaction, sizeof transaction, returns, sizeof returns));
    tell("BINDER_GET_EXTENDED_ERROR, bad", call(device, BINDER_GET_EXTENDED_ERROR, BAD));
    tell("BINDER_GET_EXTENDED_ERROR", call(device, BINDER_GET_EXTENDED_ERROR, &error));
    printf("it says %s\n", error.command == BR_OK ? "BR_OK" : "an error");

    // Files that are none of binder's.
    int pipes[2];
    int files[] = {open("/dev/null", O_RDWR), open(arguments[0], O_RDONLY), pipe(pipes) ? -1 : pipes[0], -1};
    for (int i = 0; i < 4; i++) {
        tell("another file: BINDER_THREAD_EXIT, null", call(files[i], BINDER_THREAD_EXIT, NULL));
        tell("another file: BINDER_VERSION, bad", call(files[i], BINDER_VERSION, BAD));
    }
    tell("FIONREAD of a pipe", call(pipes[0], FIONREAD, &result));
    tell("FIONREAD of a pipe, bad", call(pipes[0], FIONREAD, BAD));
    return 0;
}
