/* SIGSEGV that is expected, and SIGSEGV that is not; alternate signal stacks for every thread. */
#include "torture.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#define ALTERNATE_BYTES (64 * 1024)

static _Thread_local sigjmp_buf fault_return;
static _Thread_local volatile sig_atomic_t fault_armed;
static _Thread_local void *volatile fault_address;

static void *program_counter(const void *context)
{
#if defined(__x86_64__)
	return (void *)((const ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
	return (void *)((const ucontext_t *)context)->uc_mcontext.pc;
#else
	return (void)context, NULL;
#endif
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	if (fault_armed && number == SIGSEGV) {
		fault_address = info->si_addr;
		siglongjmp(fault_return, 1);
	}
	Dl_info place = {0};
	const void *at = program_counter(context);
	dladdr(at, &place); /* takes locks, but nothing is left to lose here */
	torture_fail("UNEXPECTED signal %d at %p (code %d) in pid %d, thread %d, program counter %p: %s+0x%zx (%s)", number,
		     info->si_addr, info->si_code, getpid(), gettid(), at, place.dli_fname ? place.dli_fname : "?",
		     place.dli_fbase ? (size_t)((uintptr_t)at - (uintptr_t)place.dli_fbase) : 0,
		     place.dli_sname ? place.dli_sname : "?");
	/* not dprintf, which may allocate: the fault may have come from within malloc, which holds its lock */
	struct iovec line[] = {{"torture: ", 9}, {board->error, strlen(board->error)}, {"\n", 1}};

	if (writev(STDERR_FILENO, line, 3) < 0)
		_exit(2);
	_exit(1);
}

bool fault_expected(void (*access)(void *context), void *context, const void *low, const void *high)
{
	if (sigsetjmp(fault_return, 1)) {
		fault_armed = 0;
		if (fault_address < low || fault_address >= high)
			return torture_fail("protect: fault at %p, expected one in %p..%p", fault_address, low, high);
		return true;
	}
	fault_armed = 1;
	access(context);
	fault_armed = 0;
	return torture_fail("protect: access to protected page %p did not fault", low);
}

bool thread_signals_set_up(void)
{
	stack_t stack = {.ss_size = ALTERNATE_BYTES};

	stack.ss_sp = mmap(NULL, ALTERNATE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL))
		return torture_fail("set up a signal stack: %s", strerror(errno));
	return true;
}

bool signals_set_up(void)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};

	if (sigaction(SIGSEGV, &action, NULL) || sigaction(SIGBUS, &action, NULL))
		return torture_fail("sigaction: %s", strerror(errno));
	return true;
}
