/* steady: preloaded into CRIU, keeps a fault that a thread has raised and was not told of yet from killing its process.
 *
 * To dump, CRIU blocks all signals of a thread, has it run code of its own that ends in a breakpoint, and waits for that SIGTRAP;
 * so does a restore, to stop each thread at its last system call. A thread that was stopped between a fault of its own and the
 * SIGSEGV for it (programs that live on such faults: collectors of garbage, virtual machines, databases) has that SIGSEGV
 * pending. It is blocked; but the kernel unblocks SIGTRAP to force the breakpoint's through, and of the signals that faults raise
 * it then takes the first that is queued, blocked or not (dequeue_synchronous_signal). So CRIU sees a SIGSEGV, gives up
 * ("Unexpected task interruption", "Task is in unexpected state"), and kills what it restored, or lets go a tree in which the
 * breakpoint's SIGTRAP is now pending with nobody to take it, which kills that. A checkpoint of a program that does nothing
 * but fault does this at once.
 *
 * Here a stop for a blocked signal is not shown to CRIU: the thread goes on with that very signal, which the kernel queues again
 * as it was, behind the SIGTRAP (ptrace_signal), and stops with the SIGTRAP next. Nothing is lost: the signal is dumped as
 * pending, or delivered when CRIU has put the registers and the mask back. A fault of CRIU's own code is not taken for one: to
 * force that through the kernel has unblocked it.
 * Nothing of ours is linked in; the library is built without sanitizers. Thread rule: CRIU has one thread. */
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>

#define TRIES 10000 /* each thread can have five */
#define PIDS 1024

typedef long ptrace_function(enum __ptrace_request request, ...);
typedef pid_t wait4_function(pid_t pid, int *status, int options, struct rusage *usage);

static ptrace_function *next_ptrace;
static wait4_function *next_wait4;
/* Those that were let go on to their next system call, as opposed to freely; each at its number's place. */
static pid_t in_calls[PIDS];

static void __attribute__((constructor)) find_functions(void)
{
	next_ptrace = (ptrace_function *)dlsym(RTLD_NEXT, "ptrace");
	next_wait4 = (wait4_function *)dlsym(RTLD_NEXT, "wait4");
	if (!next_ptrace || !next_wait4)
		abort(); /* before anything was stopped */
	unsetenv("LD_PRELOAD"); /* programs that CRIU starts get none of this */
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
	va_end(arguments);
	if (request == PTRACE_SYSCALL || request == PTRACE_CONT)
		in_calls[(unsigned)pid % PIDS] = request == PTRACE_SYSCALL ? pid : 0;
	return next_ptrace(request, pid, address, data);
}

/* Stopped for a signal of those that faults raise, though it is blocked. */
static bool is_early(pid_t pid, int status)
{
	uint64_t mask;
	if (!WIFSTOPPED(status) || status >> 16)
		return false;
	int number = WSTOPSIG(status);
	if (number != SIGSEGV && number != SIGBUS && number != SIGILL && number != SIGFPE && number != SIGSYS)
		return false;
	return !next_ptrace(PTRACE_GETSIGMASK, pid, (void *)sizeof(mask), &mask) && mask & 1ull << (number - 1);
}

pid_t wait4(pid_t pid, int *status, int options, struct rusage *usage)
{
	int own;
	int *seen = status ? status : &own;
	pid_t got = next_wait4(pid, seen, options, usage);
	for (int i = 0; i < TRIES && got > 0 && is_early(got, *seen); i++) {
		enum __ptrace_request request = got == in_calls[(unsigned)got % PIDS] ? PTRACE_SYSCALL : PTRACE_CONT;
		if (next_ptrace(request, got, NULL, (void *)(uintptr_t)WSTOPSIG(*seen)))
			break;
		got = next_wait4(pid, seen, options, usage);
	}
	return got;
}
