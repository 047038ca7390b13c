/* A binder client: calls the service under handle 0 (service.c) and says what it answers.
 *
 *     gcc -O2 -Wall -o client client.c          with -static as well
 *     ./client /dev/binder [COUNT]              COUNT descriptors each way (1), then an end
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/android/binder.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GREET = 1, PIPES = 2, END = 3, MAPPING = 128 * 1024 };
static int device;

static void die(const char *what) {
    fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* The commands of one thread, and where the returns go. */
static char commands[512], returns[256];
static size_t written;

static void put(uint32_t command, const void *argument, size_t size) {
    memcpy(commands + written, &command, sizeof command);
    memcpy(commands + written + sizeof command, argument, size);
    written += sizeof command + size;
}

/* Sends what was put, and waits for returns; the bytes of these. */
static size_t exchange(void) {
    struct binder_write_read call = {
        .write_size = written, .write_buffer = (uintptr_t)commands,
        .read_size = sizeof returns, .read_buffer = (uintptr_t)returns,
    };
    while (ioctl(device, BINDER_WRITE_READ, &call) < 0)
        if (errno != EINTR)
            die("BINDER_WRITE_READ");
    written = 0;
    return call.read_consumed;
}

/* Calls the service. The answer stays in our buffer until it is given back with `done`. */
static struct binder_transaction_data call(uint32_t code, const void *data, size_t length,
                                           const binder_size_t *offsets, size_t objects) {
    struct binder_transaction_data transaction = {
        .target.handle = 0, .code = code, .flags = TF_ACCEPT_FDS,
        .data_size = length, .offsets_size = objects * sizeof *offsets,
        .data.ptr = { .buffer = (uintptr_t)data, .offsets = (uintptr_t)offsets },
    };
    put(BC_TRANSACTION, &transaction, sizeof transaction);
    for (;;) {
        size_t came = exchange();
        for (size_t at = 0; at < came;) {
            uint32_t kind;
            memcpy(&kind, returns + at, sizeof kind);
            switch (kind) {
            case BR_REPLY:
                memcpy(&transaction, returns + at + sizeof kind, sizeof transaction);
                return transaction;
            case BR_DEAD_REPLY:
                return fprintf(stderr, "client: nobody serves handle 0\n"), exit(1), transaction;
            case BR_FAILED_REPLY:
                return fprintf(stderr, "client: the call failed\n"), exit(1), transaction;
            }
            at += sizeof kind + _IOC_SIZE(kind);
        }
    }
}

static void done(const struct binder_transaction_data *reply) {
    put(BC_FREE_BUFFER, &reply->data.ptr.buffer, sizeof reply->data.ptr.buffer);
}

static int reads(int fd) {
    char text[64] = "";
    return read(fd, text, sizeof text - 1) > 0 && strcmp(text, "from the service") == 0;
}

/* A descriptor there and one back; how many of them do what they should. */
static int exchange_pipes(void) {
    struct binder_fd_object object = { .hdr.type = BINDER_TYPE_FD };
    binder_size_t offset = 0;
    int ends[2], right;
    if (pipe2(ends, O_CLOEXEC) < 0)
        die("a pipe");
    object.fd = ends[1];
    struct binder_transaction_data reply = call(PIPES, &object, sizeof object, &offset, 1);
    close(ends[1]);
    int theirs = ((struct binder_fd_object *)(uintptr_t)reply.data.ptr.buffer)->fd;
    right = reads(ends[0]) + reads(theirs);
    close(ends[0]);
    close(theirs);
    done(&reply);
    return right;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "/dev/binder";
    int count = argc > 2 ? atoi(argv[2]) : 1, right = 0;
    struct binder_version version;
    struct binder_transaction_data reply;

    device = open(path, O_RDWR | O_CLOEXEC);
    if (device < 0)
        die(path);
    if (ioctl(device, BINDER_VERSION, &version) < 0)
        die("BINDER_VERSION");
    if (mmap(NULL, MAPPING, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, device, 0) == MAP_FAILED)
        die("mmap");
    printf("protocol version %d\n", version.protocol_version);

    reply = call(GREET, "binder", strlen("binder"), NULL, 0);
    printf("%.*s\n", (int)reply.data_size, (const char *)(uintptr_t)reply.data.ptr.buffer);
    done(&reply);

    for (int sent = 0; sent < count; sent++)
        right += exchange_pipes();
    printf("%d descriptors there and %d back: %d right\n", count, count, right);

    call(END, NULL, 0, NULL, 0);
    return right != 2 * count;
}
