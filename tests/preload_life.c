// A binder client in all the stages of a process's life, by the C library alone.
// Built by the test in preload.rs, as a program and, with -DLIBRARY, as a library that it loads:
//   gcc -D_GNU_SOURCE -shared -fPIC -DLIBRARY -o preload_life.so preload_life.c
//   gcc -D_GNU_SOURCE -O2 -pthread -o preload_life preload_life.c
//
// preload_life DEVICE LIBRARY: calls the context manager again and again, and expects its bytes back. One line for
// each thing that it tries. The static initialiser finds the device in BINDER_DEVICE.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/android/binder.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (128 * 1024)

#if !defined(__GLIBC__) && !defined(LIBRARY)
// The names of the errors that are told here.
static const char *strerrorname_np(int error) {
    return error == EFAULT ? "EFAULT" : error == EINVAL ? "EINVAL" : error == EPERM ? "EPERM" : error == EBADF ? "EBADF" : "?";
}
#endif

struct client {
    int device;
    void *mapping;
    binder_uintptr_t answer;
};

// Opens and maps; 0 if that cannot be done.
static int begin(struct client *client, const char *path) {
    client->device = open(path, O_RDWR | O_CLOEXEC);
    if (client->device < 0)
        return 0;
    client->mapping = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, client->device, 0);
    return client->mapping != MAP_FAILED;
}

// Calls the context manager; 0 unless the bytes come back. The answer's buffer stays.
static int call(struct client *client) {
    struct __attribute__((packed)) {
        __u32 command;
        struct binder_transaction_data data;
    } transaction = {.command = BC_TRANSACTION};
    transaction.data.data_size = 8;
    transaction.data.data.ptr.buffer = (binder_uintptr_t) "fakebind";
    unsigned char returns[256];
    struct binder_write_read arg = {
        .write_size = sizeof transaction,
        .write_buffer = (binder_uintptr_t)&transaction,
        .read_size = sizeof returns,
        .read_buffer = (binder_uintptr_t)returns,
    };
    for (int reads = 0; reads < 4; reads++) {
        arg.read_consumed = 0;
        if (ioctl(client->device, BINDER_WRITE_READ, &arg))
            return 0;
        arg.write_size = 0;
        for (size_t at = 0; at < arg.read_consumed;) {
            __u32 number;
            memcpy(&number, returns + at, 4);
            if (number == BR_DEAD_REPLY || number == BR_FAILED_REPLY)
                return 0;
            if (number == BR_REPLY) {
                struct binder_transaction_data reply;
                memcpy(&reply, returns + at + 4, sizeof reply);
                client->answer = reply.data.ptr.buffer;
                return reply.data_size == 8 && !memcmp((void *)client->answer, "fakebind", 8);
            }
            at += 4 + _IOC_SIZE(number);
        }
    }
    return 0;
}

#if defined(LIBRARY)
int ping(const char *path) {
    struct client client;
    return begin(&client, path) && call(&client);
}
#else
static struct client first;
static int before_main;

__attribute__((constructor)) static void static_initialiser(void) {
    const char *path = getenv("BINDER_DEVICE");
    before_main = path && begin(&first, path) && call(&first);
}

static void *in_thread(void *client) { return (void *)(long)call(client); }

static void tell(const char *what, int good) {
    printf("%s: %s\n", what, good ? "yes" : strerrorname_np(errno));
    fflush(stdout);
}

// Whether the bytes at an address can be read.
static int readable(void *address) {
    int ends[2];
    int good = !pipe(ends) && write(ends[1], address, 8) == 8;
    int error = errno;
    close(ends[0]);
    close(ends[1]);
    errno = error;
    return good;
}

static void in_child(const char *what, int (*act)(const char *), const char *path) {
    pid_t child = fork();
    if (!child) {
        tell(what, act(path));
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static int inherited_buffer(const char *path) { return readable((void *)first.answer); }

static int inherited_device(const char *path) {
    return mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, first.device, 0) != MAP_FAILED;
}

static int own_device(const char *path) {
    struct client client;
    return begin(&client, path) && call(&client);
}

static int executed(const char *path) {
    execl("/proc/self/exe", "preload_life", path, NULL);
    return 0;
}

static int writable(const char *path) {
    int device = open(path, O_RDWR | O_CLOEXEC);
    return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, device, 0) != MAP_FAILED;
}

int main(int count, char **arguments) {
    const char *path = arguments[1];
    if (count == 2) {
        unsetenv("BINDER_DEVICE");
        tell("a call after exec", own_device(path));
        return 0;
    }
    tell("a call before main", before_main);
    tell("a call from main", call(&first));
    void *result;
    pthread_t thread;
    pthread_create(&thread, NULL, in_thread, &first);
    pthread_join(thread, &result);
    tell("a call from another thread", !!result);

    void *library = dlopen(arguments[2], RTLD_NOW);
    int (*ping)(const char *) = library ? dlsym(library, "ping") : NULL;
    tell("a call from a library that was loaded", ping && ping(path));

    tell("a buffer can be read", readable((void *)first.answer));
    in_child("a child can read it", inherited_buffer, path);
    in_child("a child can map the device that it inherits", inherited_device, path);
    in_child("a call of a child on a device of its own", own_device, path);
    in_child("exec", executed, path);
    tell("a writable mapping", writable(path));

    struct client second;
    tell("a second device", begin(&second, path) && call(&second));
    tell("munmap", !munmap(second.mapping, SIZE));
    tell("the buffer can be read after that", readable((void *)second.answer));
    tell("the first device goes on", call(&first));
    struct client third;
    tell("a third device", begin(&third, path));
    void *place = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    tell("its mapping can be moved", mremap(third.mapping, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);

    // Files that are none of binder's.
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, open("/proc/self/exe", O_RDONLY), 0);
    tell("a program file can be mapped", page != MAP_FAILED && !memcmp(page, "\177ELF", 4) && (page[0] = 1));
    int memory = memfd_create("memory", 0);
    char *shared = ftruncate(memory, 8192) ? MAP_FAILED : mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, memory, 4096);
    tell("shared memory can be mapped", shared != MAP_FAILED && (shared[0] = 1));
    shared = mremap(shared, 4096, 8192, MREMAP_MAYMOVE);
    tell("and moved", shared != MAP_FAILED && shared[0] == 1);
    tell("memory can be mapped", mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    tell("a descriptor that is none", mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 999, 0) != MAP_FAILED);
    tell("no bytes", mmap(NULL, 0, PROT_READ, MAP_PRIVATE, memory, 0) != MAP_FAILED);
    return 0;
}
#endif
