// The system calls of isolate.c, without a C library: the program then runs in every image, whatever the action's
// environment says (LD_PRELOAD, for example, is a matter of dynamic programs). A call returns its result, or -errno.
#ifdef __aarch64__
#define __ASM_X86_BITSPERLONG_H // the headers are Debian's for amd64, which include the generic ones
#define __BITS_PER_LONG 64
#endif
#include <asm-generic/errno.h>
#include <asm-generic/fcntl.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/stat.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __aarch64__
#include <asm-generic/unistd.h>
#undef O_DIRECTORY // this architecture has other values than the generic header
#undef O_NOFOLLOW
#define O_DIRECTORY 040000
#define O_NOFOLLOW 0100000
#else
#include <asm/unistd.h>
#endif

enum { SIGKILL = 9, SIGTERM = 15, SIGCHLD = 17 };
enum { DT_UNKNOWN = 0, DT_DIR = 4 };
enum { AT_FDCWD = -100, AT_SYMLINK_NOFOLLOW = 0x100, AT_REMOVEDIR = 0x200, AT_EMPTY_PATH = 0x1000 };
enum { F_SETLEASE = 1024 };
enum { WNOHANG = 1 };
enum { AF_INET = 2, AF_INET6 = 10, SOCK_STREAM = 1 };

static long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
#ifdef __aarch64__
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#else
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "+a"(number)
			 : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return number;
#endif
}

#define call(name, ...) call_(name, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define call_(name, a, b, c, d, e, f, ...) \
	syscall6(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

// The kernel starts a program here, with the arguments on the stack.
#ifdef __aarch64__
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl enter\n");
#else
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall enter\n");
#endif

struct entry { // what getdents64 returns
	uint64_t inode;
	int64_t offset;
	uint16_t size;
	uint8_t type;
	char name[];
};

// The compiler calls these by itself.
void *memcpy(void *to, const void *from, size_t size)
{
	for (char *t = to; size--; from = (const char *)from + 1)
		*t++ = *(const char *)from;
	return to;
}

void *memset(void *to, int value, size_t size)
{
	for (char *t = to; size--;)
		*t++ = (char)value;
	return to;
}

static size_t length(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

static int begins(const char *text, const char *with)
{
	while (*with)
		if (*text++ != *with++)
			return 0;
	return 1;
}

static int same(const char *one, const char *other)
{
	return begins(one, other) && !one[length(other)];
}
