// What two processes can do at best on this machine, as what a call is compared with. Built by the
// benchmark:
//   gcc -O2 -o limits limits.c
//
// limits socket|futex COUNT: two processes wake each other in turn, over a Unix socket pair with a
// byte, or with a word of shared memory and a futex. Says "ready", waits for a line, goes back and
// forth COUNT times, and says how many nanoseconds each took, as ping.c does. Then it waits for
// another line.
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

int main(int count, char **arguments) {
    if (count != 3 || (strcmp(arguments[1], "socket") && strcmp(arguments[1], "futex")) || atol(arguments[2]) < 1) {
        fprintf(stderr, "usage: limits socket|futex COUNT\n");
        return 2;
    }
    int socket = !strcmp(arguments[1], "socket");
    long calls = atol(arguments[2]);
    turn = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (turn == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
        fail("setting up");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        echo(socket);
    }
    long long *took = calloc(calls, sizeof *took);
    if (!took)
        fail("memory");
    for (int i = 0; i < 200; i++) {
        there(socket);
        back(socket);
    }
    puts("ready");
    fflush(stdout);
    await_line();
    long long began = now(), last = began;
    for (long i = 0; i < calls; i++) {
        there(socket);
        back(socket);
        long long then = now();
        took[i] = then - last;
        last = then;
    }
    tell(took, calls, last - began);
    await_line();
    kill(child, SIGKILL);
    return 0;
}
