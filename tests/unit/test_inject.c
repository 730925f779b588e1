/* System calls in another process, which is stopped at any moment of its own: it must go on as if nothing had been. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/base.h"
#include "sys/inject.h"

#define CALLS 2000

static struct shared {
	_Atomic uint64_t rounds, traps;
	atomic_bool ready, ending;
} *shared;
static volatile uint8_t *page;
static volatile uint64_t handled;

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	if (info->si_addr != (void *)page || info->si_code != SEGV_ACCERR || mprotect((void *)page, PAGE_BYTES, PROT_READ))
		_exit(3);
	handled++;
}

static void on_trap(int number)
{
	(void)number;
	shared->traps++;
}

/* Reads what it may not read, again and again; each time its handler opens the page. */
static void live_on_faults(void)
{
	struct sigaction fault = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	struct sigaction trap = { .sa_handler = on_trap };
	page = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || sigaction(SIGSEGV, &fault, NULL) || sigaction(SIGTRAP, &trap, NULL))
		_exit(2);
	shared->ready = true;
	for (uint64_t rounds = 1; !shared->ending; rounds++) {
		if (mprotect((void *)page, PAGE_BYTES, PROT_NONE) || *page || handled != rounds)
			_exit(4);
		shared->rounds = rounds;
	}
	_exit(0);
}

static pid_t start(void)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(shared, MAP_FAILED);
	pid_t pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		live_on_faults();
	}
	assert_true(pid > 0);
	while (!shared->ready && waitpid(pid, NULL, WNOHANG) == 0)
		usleep(1000);
	return pid;
}

static void ends_well(pid_t pid)
{
	int status;
	shared->ending = true;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	munmap(shared, sizeof(*shared));
}

static void call(pid_t pid, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct injection injection;
		struct dp_err err = { "" };
		int ret = inject_begin(&injection, pid, &err);
		if (ret == -EPERM)
			skip(); /* no right to trace here */
		assert_int_equal(ret, 0);
		while ((ret = inject_stopped(&injection, &err)) == 0)
			usleep(10);
		assert_int_equal(ret, 1);
		assert_int_equal(inject_call(&injection, SYS_getpid, 0, 0, 0, 0, 0, 0), pid);
		inject_leave(&injection);
	}
}

static void call__of_a_thread_that_was_not_told_of_its_fault_yet__loses_neither(void **state)
{
	(void)state;
	pid_t pid = start();
	call(pid, CALLS);
	ends_well(pid);
}

static void call__of_a_process_with_a_handler_of_traps__leaves_it_the_handler(void **state)
{
	(void)state;
	pid_t pid = start();
	call(pid, 10);
	assert_int_equal(kill(pid, SIGTRAP), 0);
	while (!shared->traps && waitpid(pid, NULL, WNOHANG) == 0)
		usleep(1000);
	assert_int_equal(shared->traps, 1);
	ends_well(pid);
}

static void call__while_somebody_sends_traps__loses_none_and_is_not_mistaken(void **state)
{
	(void)state;
	pid_t pid = start();
	for (unsigned i = 0; i < CALLS / 10; i++) {
		uint64_t before = shared->traps;
		assert_int_equal(kill(pid, SIGTRAP), 0);
		call(pid, 1);
		while (shared->traps == before && waitpid(pid, NULL, WNOHANG) == 0)
			usleep(100);
		assert_true(shared->traps > before);
	}
	ends_well(pid);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(call__of_a_thread_that_was_not_told_of_its_fault_yet__loses_neither),
		cmocka_unit_test(call__of_a_process_with_a_handler_of_traps__leaves_it_the_handler),
		cmocka_unit_test(call__while_somebody_sends_traps__loses_none_and_is_not_mistaken),
	};
	return cmocka_run_group_tests_name("inject", tests, NULL, NULL);
}
