/* forward: stands in for a library of CRIU's that a restore hardly ever calls, and loads the real one when it does.
 *
 * Two thirds of the time from exec to CRIU's first own instruction are spent on libgnutls (TLS between page servers), libnftables
 * (locking of TCP connections) and the fifteen libraries they need: 2.3 of 3.6 ms. This file is built once for each of the two,
 * under its name and with the symbols of it that CRIU uses (FORWARD_NAMES), and is preloaded, so that the loader takes it for the
 * real one. The first call to any of them loads the real library from beside CRIU, or else from where libraries are; arguments
 * pass through untouched.
 * Nothing of ours is linked in, and only integers and pointers are passed on: the functions named take no others. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include FORWARD_NAMES

#ifndef __x86_64__
#error "written for x86-64"
#endif

#define NAME(name) #name,
static const char *const names[] = { FORWARD_EACH(NAME) };
#undef NAME
static void *library, *found[sizeof(names) / sizeof(names[0])];

#ifdef FORWARD_FREE
void (*FORWARD_FREE)(void *) = free; /* a variable of the library's, which says so too */
#endif

/* CRIU starts programs of its own (scripts, nft): they get what they ask for. */
static void __attribute__((constructor)) leave_no_trace(void)
{
	unsetenv("LD_PRELOAD");
}

static void *open_library(void)
{
	static const char *const directories[] = { "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib" };
	char program[4096], path[4300];
	ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	if (length > 0) {
		program[length] = 0;
		char *slash = strrchr(program, '/');
		if (slash)
			*slash = 0;
		snprintf(path, sizeof(path), "%s/../lib/" FORWARD_LIBRARY, program);
		void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
		if (handle)
			return handle;
	}
	for (size_t i = 0; i < sizeof(directories) / sizeof(directories[0]); i++) {
		snprintf(path, sizeof(path), "%s/" FORWARD_LIBRARY, directories[i]);
		void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
		if (handle)
			return handle;
	}
	return NULL;
}

/* Called by the code below, with the number of the function that was called. */
void *forward_resolve(unsigned long number) __attribute__((visibility("hidden")));
void *forward_resolve(unsigned long number)
{
	if (found[number])
		return found[number];
	if (!library)
		library = open_library();
	if (library)
		found[number] = dlsym(library, names[number]);
	if (!found[number]) {
		dprintf(2, "Error (forward): %s of " FORWARD_LIBRARY ": %s\n", names[number], dlerror());
		abort();
	}
	return found[number];
}

/* Every register that may hold an argument is kept across forward_resolve. The stack is aligned: the caller's return address, the
 * number and eight registers. */
#define NAME(name) \
	".globl " #name "\n.type " #name ", @function\n" #name ":\n" \
	"endbr64\npushq $forward_number\njmp forward_call\n" \
	".size " #name ", . - " #name "\n.set forward_number, forward_number + 1\n"
__asm__(".text\n.set forward_number, 0\n"
	"forward_call:\n"
	"pushq %rax\npushq %rdi\npushq %rsi\npushq %rdx\npushq %rcx\npushq %r8\npushq %r9\npushq %r10\n"
	"movq 64(%rsp), %rdi\ncall forward_resolve\nmovq %rax, %r11\n"
	"popq %r10\npopq %r9\npopq %r8\npopq %rcx\npopq %rdx\npopq %rsi\npopq %rdi\npopq %rax\n"
	"addq $8, %rsp\njmp *%r11\n"
	FORWARD_EACH(NAME));
