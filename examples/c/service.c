/* A binder service: the context manager, which every client finds under handle 0.
 *
 *     gcc -O2 -Wall -o service service.c        with -static as well
 *     ./service /dev/binder                     the kernel's driver, or a device of fakebinderd
 *
 * It answers calls of two kinds, until it is asked to end:
 *   GREET  data: a text. The answer: "hello, TEXT".
 *   PIPES  data: a descriptor that can be written to. "from the service" is written to it, and the
 *          answer holds a descriptor that can be read from, with the same.
 *   END    no data. The answer is empty.
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
static const char TEXT[] = "from the service";
static int device;

static void die(const char *what) {
    fprintf(stderr, "service: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* One ioctl: commands are written, then returns are read, unless `size` is 0. The bytes that came. */
static size_t write_read(const void *commands, size_t length, void *returns, size_t size) {
    struct binder_write_read call = {
        .write_size = length, .write_buffer = (uintptr_t)commands,
        .read_size = size, .read_buffer = (uintptr_t)returns,
    };
    while (ioctl(device, BINDER_WRITE_READ, &call) < 0)
        if (errno != EINTR)
            die("BINDER_WRITE_READ");
    return call.read_consumed;
}

/* The data of a message, and where in it the objects begin. */
struct message {
    char data[256];
    size_t length;
    binder_size_t offsets[1];
    size_t objects;
};

static void put_fd(struct message *message, int fd) {
    struct binder_fd_object object = { .hdr.type = BINDER_TYPE_FD, .fd = fd };
    message->offsets[message->objects++] = message->length;
    memcpy(message->data + message->length, &object, sizeof object);
    message->length += sizeof object;
}

static void answer(const struct binder_transaction_data *call, struct message *reply) {
    const char *data = (const char *)(uintptr_t)call->data.ptr.buffer;
    int ends[2], theirs;
    switch (call->code) {
    case GREET:
        reply->length = snprintf(reply->data, sizeof reply->data, "hello, %.*s",
                                 call->data_size < 200 ? (int)call->data_size : 200, data);
        break;
    case PIPES:
        /* It is ours now, like any that open(2) gives. */
        theirs = ((const struct binder_fd_object *)data)->fd;
        if (write(theirs, TEXT, sizeof TEXT) < 0 || pipe2(ends, O_CLOEXEC) < 0)
            die("a pipe");
        close(theirs);
        if (write(ends[1], TEXT, sizeof TEXT) < 0)
            die("a pipe");
        close(ends[1]);
        put_fd(reply, ends[0]);
        break;
    }
}

/* The buffer is given back and the answer sent; the driver has copied all of it when this returns. */
static void serve(const struct binder_transaction_data *call) {
    struct message reply = { .length = 0 };
    answer(call, &reply);
    struct __attribute__((packed)) {
        uint32_t free;
        binder_uintptr_t buffer;
        uint32_t reply;
        struct binder_transaction_data transaction;
    } commands = { .free = BC_FREE_BUFFER, .buffer = call->data.ptr.buffer, .reply = BC_REPLY };
    commands.transaction.flags = TF_ACCEPT_FDS;
    commands.transaction.data_size = reply.length;
    commands.transaction.offsets_size = reply.objects * sizeof reply.offsets[0];
    commands.transaction.data.ptr.buffer = (uintptr_t)reply.data;
    commands.transaction.data.ptr.offsets = (uintptr_t)reply.offsets;
    write_read(&commands, sizeof commands, NULL, 0);
    if (reply.objects > 0)
        close(((struct binder_fd_object *)reply.data)->fd);
}

int main(int argc, char **argv) {
    struct binder_version version;
    struct flat_binder_object manager = { .flags = FLAT_BINDER_FLAG_ACCEPTS_FDS };
    uint32_t enter = BC_ENTER_LOOPER;
    char returns[256];
    const char *path = argc > 1 ? argv[1] : "/dev/binder";

    device = open(path, O_RDWR | O_CLOEXEC);
    if (device < 0)
        die(path);
    if (ioctl(device, BINDER_VERSION, &version) < 0)
        die("BINDER_VERSION");
    if (version.protocol_version != BINDER_CURRENT_PROTOCOL_VERSION)
        return fprintf(stderr, "service: protocol version %d\n", version.protocol_version), 1;
    if (mmap(NULL, MAPPING, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, device, 0) == MAP_FAILED)
        die("mmap");
    if (ioctl(device, BINDER_SET_CONTEXT_MGR_EXT, &manager) < 0)
        die("BINDER_SET_CONTEXT_MGR_EXT (is there another context manager?)");
    write_read(&enter, sizeof enter, NULL, 0);
    puts("ready");
    fflush(stdout);
    for (;;) {
        size_t length = write_read(NULL, 0, returns, sizeof returns);
        for (size_t at = 0; at < length;) {
            uint32_t kind;
            struct binder_transaction_data call;
            memcpy(&kind, returns + at, sizeof kind);
            if (kind == BR_TRANSACTION) {
                memcpy(&call, returns + at + sizeof kind, sizeof call);
                serve(&call);
                if (call.code == END)
                    return 0;
            }
            at += sizeof kind + _IOC_SIZE(kind);
        }
    }
}
