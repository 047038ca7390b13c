// A binder client with nothing between it and the kernel: no C library, no loader, three system
// calls. Built by the test in doors.rs:
//   gcc -static -nostdlib -ffreestanding -O2 -fno-stack-protector -o raw_ping raw_ping.c
//
// With -DLIBC it is the same through the C library, dynamically linked, as most programs are, or
// with -static not. With -m32 both are programs of 32 bit.
//
// raw_ping DEVICE: calls the context manager (handle 0) with eight bytes and expects them back,
// each plus one. raw_ping DEVICE serve: is the context manager, and answers one such call; with the C library it says by
// whom it was called.
// Exit status: 0, or the number of the step that failed.
#include <linux/android/binder.h>

typedef unsigned long word;

#if defined(LIBC)
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { MMAP, IOCTL };

static long call(word number, word a, word b, word c, word d, word e, word f) {
    return number == MMAP ? (long)mmap((void *)a, b, c, d, e, f) : ioctl(a, b, c);
}

static long open_device(const char *path) { return open(path, O_RDWR | O_CLOEXEC); }

static void tell(const struct binder_transaction_data *received) {
    printf("called by uid %u\n", received->sender_euid);
    fflush(stdout);
}
#elif defined(__x86_64__)
enum { OPEN = 2, MMAP = 9, IOCTL = 16, EXIT = 60 };

__asm__(".globl _start\n"
        "_start:\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call start\n");

static long call(word number, word a, word b, word c, word d, word e, word f) {
    long result;
    register word r10 __asm__("r10") = d;
    register word r8 __asm__("r8") = e;
    register word r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static long open_device(const char *path) { return call(OPEN, (word)path, 02 | 02000000, 0, 0, 0, 0); }
#elif defined(__aarch64__)
enum { OPENAT = 56, MMAP = 222, IOCTL = 29, EXIT = 93 };

__asm__(".globl _start\n"
        "_start:\n"
        "    mov x0, sp\n"
        "    bl start\n");

static long call(word number, word a, word b, word c, word d, word e, word f) {
    register word x8 __asm__("x8") = number;
    register word x0 __asm__("x0") = a;
    register word x1 __asm__("x1") = b;
    register word x2 __asm__("x2") = c;
    register word x3 __asm__("x3") = d;
    register word x4 __asm__("x4") = e;
    register word x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return (long)x0;
}

static long open_device(const char *path) { return call(OPENAT, -100, (word)path, 02 | 02000000, 0, 0, 0); }
#elif defined(__i386__)
enum { OPEN = 5, MMAP = 90, IOCTL = 54, EXIT = 1 };

__asm__(".globl _start\n"
        "_start:\n"
        "    mov %esp, %eax\n"
        "    and $-16, %esp\n"
        "    sub $12, %esp\n"
        "    push %eax\n"
        "    call start\n");

static long call(word number, word a, word b, word c, word d, word e, word f) {
    // mmap takes its six arguments in memory.
    word all[6] = {a, b, c, d, e, f};
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(number == MMAP ? (word)all : a), "c"(b), "d"(c)
                     : "memory");
    return result;
}

static long open_device(const char *path) { return call(OPEN, (word)path, 02 | 02000000, 0, 0, 0, 0); }
#else
#error "raw_ping.c knows the system calls of x86_64, i386 and aarch64"
#endif

#if !defined(LIBC)
static void tell(const struct binder_transaction_data *received) { (void)received; }
#endif

#define SIZE (128 * 1024)

struct __attribute__((packed)) transaction {
    __u32 command;
    struct binder_transaction_data data;
};

struct __attribute__((packed)) free_buffer {
    __u32 command;
    binder_uintptr_t buffer;
};

static long write_read(long device, void *write, word write_size, void *read, word read_size, word *consumed) {
    struct binder_write_read arg = {
        .write_size = write_size,
        .write_buffer = (word)write,
        .read_size = read_size,
        .read_buffer = (word)read,
    };
    long result = call(IOCTL, device, BINDER_WRITE_READ, (word)&arg, 0, 0, 0);
    *consumed = arg.read_consumed;
    return result;
}

// The number of the step that failed.
static int set_up(const char *path, long *device, word *mapping) {
    *device = open_device(path);
    if (*device < 0)
        return 1;
    struct binder_version version = {0};
    if (call(IOCTL, *device, BINDER_VERSION, (word)&version, 0, 0, 0) || version.protocol_version != 8)
        return 2;
    // PROT_READ, MAP_PRIVATE | MAP_NORESERVE
    *mapping = (word)call(MMAP, 0, SIZE, 1, 0x4002, *device, 0);
    return *mapping >= (word)-4095 ? 3 : 0;
}

static int ping(const char *path) {
    long device;
    word mapping;
    int failed = set_up(path, &device, &mapping);
    if (failed)
        return failed;
    unsigned char sent[8] = {3, 1, 4, 1, 5, 9, 2, 6};
    struct transaction transaction = {.command = BC_TRANSACTION};
    transaction.data.code = 1;
    transaction.data.data_size = sizeof sent;
    transaction.data.data.ptr.buffer = (word)sent;
    unsigned char returns[256];
    word consumed;
    void *write = &transaction;
    word size = sizeof transaction;
    for (int reads = 0; reads < 4; reads++) {
        if (write_read(device, write, size, returns, sizeof returns, &consumed))
            return 4;
        size = 0;
        for (word at = 0; at + 4 <= consumed;) {
            __u32 number = *(__u32 *)(returns + at);
            if (number == BR_DEAD_REPLY || number == BR_FAILED_REPLY)
                return 5;
            if (number == BR_REPLY) {
                struct binder_transaction_data reply;
                unsigned char *from = returns + at + 4;
                for (word i = 0; i < sizeof reply; i++)
                    ((unsigned char *)&reply)[i] = from[i];
                unsigned char *data = (unsigned char *)(word)reply.data.ptr.buffer;
                if ((word)data < mapping || (word)data + reply.data_size > mapping + SIZE)
                    return 6;
                if (reply.data_size != sizeof sent)
                    return 7;
                for (word i = 0; i < sizeof sent; i++)
                    if (data[i] != (unsigned char)(sent[i] + 1))
                        return 8;
                struct free_buffer done = {BC_FREE_BUFFER, (word)data};
                return write_read(device, &done, sizeof done, 0, 0, &consumed) ? 9 : 0;
            }
            at += 4 + _IOC_SIZE(number);
        }
    }
    return 10;
}

static int serve(const char *path) {
    long device;
    word mapping;
    int failed = set_up(path, &device, &mapping);
    if (failed)
        return failed;
    int nothing = 0;
    if (call(IOCTL, device, BINDER_SET_CONTEXT_MGR, (word)&nothing, 0, 0, 0))
        return 20;
    __u32 enter = BC_ENTER_LOOPER;
    unsigned char returns[256], answer[64];
    struct __attribute__((packed)) {
        struct transaction reply;
        struct free_buffer done;
    } write;
    word consumed, size = sizeof enter;
    void *next = &enter;
    for (;;) {
        if (write_read(device, next, size, returns, sizeof returns, &consumed))
            return 21;
        size = 0;
        for (word at = 0; at + 4 <= consumed;) {
            __u32 number = *(__u32 *)(returns + at);
            if (number == BR_TRANSACTION_COMPLETE)
                return 0;
            if (number == BR_TRANSACTION) {
                struct binder_transaction_data received;
                for (word i = 0; i < sizeof received; i++)
                    ((unsigned char *)&received)[i] = returns[at + 4 + i];
                unsigned char *data = (unsigned char *)(word)received.data.ptr.buffer;
                if ((word)data < mapping || (word)data + received.data_size > mapping + SIZE)
                    return 22;
                if (received.data_size > sizeof answer)
                    return 23;
                tell(&received);
                for (word i = 0; i < received.data_size; i++)
                    answer[i] = data[i] + 1;
                write.reply = (struct transaction){.command = BC_REPLY};
                write.reply.data.data_size = received.data_size;
                write.reply.data.data.ptr.buffer = (word)answer;
                write.done = (struct free_buffer){BC_FREE_BUFFER, (word)data};
                next = &write;
                size = sizeof write;
            }
            at += 4 + _IOC_SIZE(number);
        }
    }
}

#if defined(LIBC)
int main(int count, char **arguments) {
    return count == 2 ? ping(arguments[1]) : count == 3 ? serve(arguments[1]) : 11;
}
#else
__attribute__((used, noreturn)) void start(word *stack) {
    const char *device = (const char *)stack[2];
    int status = stack[0] == 2 ? ping(device) : stack[0] == 3 ? serve(device) : 11;
    for (;;)
        call(EXIT, status, 0, 0, 0, 0, 0);
}
#endif
