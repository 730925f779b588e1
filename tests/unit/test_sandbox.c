/* What is given up is gone: each case in a process of its own. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "sys/inject.h"
#include "sys/sandbox.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

/* Runs it in a child; its wait status, and what it wrote to stderr. */
static int run(int (*function)(void), char *output, size_t size)
{
	int pipe_fds[2], status;

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	pid_t child = fork();

	if (child == 0) {
		dup2(pipe_fds[1], 2);
		_exit(function());
	}
	close(pipe_fds[1]);
	ssize_t got = read(pipe_fds[0], output, size - 1);

	output[DP_MAX(got, 0)] = 0;
	close(pipe_fds[0]);
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

static int exec_in_pool(void)
{
	char *const arguments[] = { "true", NULL };

	if (sandbox_filter(SANDBOX_POOL, NULL) < 0)
		return 1;
	execv("/bin/true", arguments);
	return 2;
}

static int fork_in_pool(void)
{
	if (sandbox_filter(SANDBOX_POOL, NULL) < 0)
		return 1;
	return fork() < 0 ? 2 : 3;
}

static int reach_in_pool(void)
{
	if (sandbox_filter(SANDBOX_POOL, NULL) < 0)
		return 1;
	ptrace(PTRACE_TRACEME, 0, 0, 0);
	return 2;
}

static int mount_in_keeper(void)
{
	if (sandbox_filter(SANDBOX_KEEPER, NULL) < 0)
		return 1;
	mount("none", "/", NULL, MS_REMOUNT, NULL);
	return 2;
}

static int raw_socket_in_keeper(void)
{
	if (sandbox_filter(SANDBOX_KEEPER, NULL) < 0)
		return 1;
	socket(AF_PACKET, SOCK_RAW, 0);
	return 2;
}

static void filter__forbidden_call__kills_and_says_which(void **state)
{
	static const struct {
		int (*function)(void);
		int number;
	} cases[] = { { exec_in_pool, SYS_execve },
		      { fork_in_pool, SYS_clone },
		      { reach_in_pool, SYS_ptrace },
		      { mount_in_keeper, SYS_mount },
		      { raw_socket_in_keeper, SYS_socket } };
	char output[400], expected[40];

#ifdef SANITIZED
	skip(); /* no filter then: sys/sandbox.h */
#endif
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		int status = run(cases[i].function, output, sizeof(output));

		snprintf(expected, sizeof(expected), "system call %d,", cases[i].number);
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS || !strstr(output, expected))
			fail_msg("case %zu: status %#x: %s", i, (unsigned)status, output);
	}
}

static int work_in_keeper(void)
{
	char byte = 1, copy = 0;
	struct iovec local = { &copy, 1 }, remote = { &byte, 1 };

	if (sandbox_filter(SANDBOX_KEEPER, NULL) < 0 || sandbox_filter(SANDBOX_KEEPER, NULL) < 0)
		return 1;
	pid_t child = fork();

	if (child == 0)
		pause();
	if (child < 0 || ptrace(PTRACE_SEIZE, child, 0, 0) || process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 1)
		return 2;
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return copy == 1 ? 0 : 3;
}

static void filter__what_a_keeper_does__is_allowed_also_below_another_filter(void **state)
{
	char output[400];

	assert_int_equal(run(work_in_keeper, output, sizeof(output)), 0);
}

/* A process with a filter of its own; killed by it if it made a call that it did not mean to. */
static pid_t filtered_process(void)
{
	int ready[2];
	char byte;

	if (pipe2(ready, O_CLOEXEC) < 0)
		return -1;
	pid_t child = fork();

	if (child == 0) {
		sandbox_filter(SANDBOX_POOL, NULL);
		if (write(ready[1], "r", 1) == 1)
			for (;;)
				poll(NULL, 0, -1);
	}
	if (read(ready[0], &byte, 1) != 1)
		return -1;
	return child;
}

/* 0: refused and unharmed; 100: stopped, calls could be made. */
static int inject_into(pid_t target)
{
	struct injection injection;
	int result = inject_begin(&injection, target, NULL), status;

	for (int tries = 0; result == 0 && tries < 2000; tries++) {
		result = inject_stopped(&injection, NULL);
		if (result == 0)
			usleep(1000);
	}
	/* A call that its filter forbids. */
	if (result == 1) {
		result = inject_call(&injection, SYS_setsid, 0, 0, 0, 0, 0, 0) == target ? 100 : 2;
		inject_leave(&injection);
	}
	bool unharmed = waitpid(target, &status, WNOHANG) == 0;

	kill(target, SIGKILL);
	waitpid(target, NULL, 0);
	return !unharmed ? 1 : result == -EPERM ? 0 : result;
}

static int inject_below_a_filter(void)
{
	pid_t target = filtered_process();

	return target < 0 || sandbox_filter(SANDBOX_KEEPER, NULL) < 0 ? 3 : inject_into(target);
}

static int inject_without_a_filter(void)
{
	pid_t target = filtered_process();

	return target < 0 ? 3 : inject_into(target);
}

static void injection__into_a_process_with_a_filter__is_made_only_where_that_is_suspended(void **state)
{
	char output[400];

	if (geteuid() != 0)
		skip(); /* suspending needs CAP_SYS_ADMIN */
#ifdef SANITIZED
	skip();
#endif
	int status = run(inject_below_a_filter, output, sizeof(output));

	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	status = run(inject_without_a_filter, output, sizeof(output));
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 100);
}

static int drop_all(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	struct rlimit core;

	if (sandbox_drop_capabilities(SANDBOX_CAPABILITY(CAP_KILL), NULL) < 0 || syscall(SYS_capget, &header, data) < 0)
		return 1;
	if ((data[0].permitted | data[0].effective) & ~(1u << CAP_KILL) || data[1].permitted || data[0].inheritable ||
	    data[1].inheritable)
		return 2;
	if (getrlimit(RLIMIT_CORE, &core) < 0 || core.rlim_max != 0)
		return 3;
	if (geteuid() == 0 && setuid(65534) == 0)
		return 4;
	/* Less may be given up later, without the right to change the bounding set. */
	return sandbox_drop_capabilities(0, NULL) < 0 || syscall(SYS_capget, &header, data) < 0 || data[0].permitted ? 5 : 0;
}

static void capabilities__dropped__are_gone(void **state)
{
	char output[400];

	assert_int_equal(run(drop_all, output, sizeof(output)), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(filter__forbidden_call__kills_and_says_which),
		cmocka_unit_test(filter__what_a_keeper_does__is_allowed_also_below_another_filter),
		cmocka_unit_test(injection__into_a_process_with_a_filter__is_made_only_where_that_is_suspended),
		cmocka_unit_test(capabilities__dropped__are_gone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
