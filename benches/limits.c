// What two processes can do at best on this machine, as what a call is compared with. Built by the
// benchmark:
//   gcc -O2 -o limits limits.c
//
// limits socket|futex COUNT: two processes wake each other in turn, over a Unix socket pair with a
// byte, or with a word of shared memory and a futex. Says "ready", waits for a line, goes back and
// forth COUNT times, and says how many nanoseconds each took, as ping.c does. Then it waits for
// another line.
//
// limits memcpy COUNT SIZE: the same, copying so many bytes, from and to the same places each time.
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "timing.h"

static int ends[2];
static int *turn;

static void fail(const char *what) {
    fprintf(stderr, "limits: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void await_turn(int mine) {
    for (;;) {
        int now = __atomic_load_n(turn, __ATOMIC_ACQUIRE);
        if (now == mine)
            return;
        syscall(SYS_futex, turn, FUTEX_WAIT, now, 0, 0, 0);
    }
}

static void give_turn(int theirs) {
    __atomic_store_n(turn, theirs, __ATOMIC_RELEASE);
    syscall(SYS_futex, turn, FUTEX_WAKE, 1, 0, 0, 0);
}

static void there(int socket) {
    char byte = 0;
    if (!socket)
        give_turn(1);
    else if (write(ends[0], &byte, 1) != 1)
        fail("write");
}

static void back(int socket) {
    char byte;
    if (!socket)
        await_turn(0);
    else if (read(ends[0], &byte, 1) != 1)
        fail("read");
}

static void echo(int socket) {
    char byte;
    for (;;) {
        if (!socket) {
            await_turn(1);
            give_turn(0);
        } else if (read(ends[1], &byte, 1) != 1 || write(ends[1], &byte, 1) != 1) {
            _exit(0);
        }
    }
}

// Bytes that are copied, and where to.
static char *from, *to;
static long size;

static void copy(void) {
    memcpy(to, from, size);
    // The compiler is not to see that nobody looks.
    __asm__ volatile("" : : "r"(to) : "memory");
}

static char *memory(void) {
    char *bytes = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED)
        fail("memory");
    memset(bytes, 1, size);
    return bytes;
}

static void once(int socket) {
    if (size) {
        copy();
    } else {
        there(socket);
        back(socket);
    }
}

int main(int count, char **arguments) {
    const char *means = count > 1 ? arguments[1] : "";
    int socket = !strcmp(means, "socket"), copies = !strcmp(means, "memcpy");
    long calls = count > 2 ? atol(arguments[2]) : 0;
    size = copies && count > 3 ? atol(arguments[3]) : 0;
    if ((!socket && !copies && strcmp(means, "futex")) || calls < 1 || size < copies) {
        fprintf(stderr, "usage: limits socket|futex COUNT | memcpy COUNT SIZE\n");
        return 2;
    }
    pid_t child = 0;
    if (copies) {
        from = memory();
        to = memory();
    } else {
        turn = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (turn == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
            fail("setting up");
        child = fork();
        if (child < 0)
            fail("fork");
        if (!child) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            echo(socket);
        }
    }
    long long *took = calloc(calls, sizeof *took);
    if (!took)
        fail("memory");
    for (int i = 0; i < 200; i++)
        once(socket);
    puts("ready");
    fflush(stdout);
    await_line();
    long long began = now(), last = began;
    for (long i = 0; i < calls; i++) {
        once(socket);
        long long then = now();
        took[i] = then - last;
        last = then;
    }
    tell(took, calls, last - began);
    await_line();
    if (child)
        kill(child, SIGKILL);
    return 0;
}
