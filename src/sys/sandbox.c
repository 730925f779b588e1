#include "sys/sandbox.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"
#include "sys/sandbox_filters.h"

#ifndef __SANITIZE_ADDRESS__
#ifdef __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#else
#define SANITIZED 1
#endif
#ifdef __SANITIZE_THREAD__
#define SANITIZED 1
#endif

#define LAST_CAPABILITY 63

int sandbox_drop_capabilities(uint64_t keep, struct dp_err *err)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	const struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CORE, &none);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return dp_fail_errno(err, errno, "forbid new privileges");
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	/* Fails where we have no right to, and then there is nothing to gain from it, or behind the last capability of this
	 * kernel. */
	for (unsigned capability = 0; capability <= LAST_CAPABILITY; capability++)
		if (!(keep & SANDBOX_CAPABILITY(capability)) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
			break;
	if (syscall(SYS_capget, &header, data) < 0)
		return dp_fail_errno(err, errno, "read our capabilities");
	for (unsigned half = 0; half < 2; half++) {
		data[half].permitted &= (uint32_t)(keep >> 32 * half);
		data[half].effective = data[half].permitted;
		data[half].inheritable = 0;
	}
	if (syscall(SYS_capset, &header, data) < 0)
		return dp_fail_errno(err, errno, "give up capabilities");
	return 0;
}

#ifndef SANITIZED
/* Only what is safe in a signal handler. */
static void number_to_text(unsigned number, char *text, size_t size)
{
	char digits[16];
	size_t count = 0, used = strlen(text);

	do
		digits[count++] = (char)('0' + number % 10);
	while ((number /= 10) && count < sizeof(digits));
	while (count && used + 1 < size)
		text[used++] = digits[--count];
	text[used] = 0;
}

static void on_forbidden(int signal_number, siginfo_t *info, void *context)
{
	char text[160] = "error sandbox: this process made system call ";

	number_to_text((unsigned)info->si_syscall, text, sizeof(text));
	strcat(text, ", which is not on its list (src/sys/sandbox_lists.c); it is killed\n");
	ssize_t ignored = write(2, text, strlen(text));

	(void)ignored;
	/* The default action now, for this very signal: it is blocked until this handler returns, and the call is not made. */
	signal(SIGSYS, SIG_DFL);
	raise(SIGSYS);
}

static const struct sock_fprog programs[] = {
	[SANDBOX_POOL] = { ARRAY_LENGTH(filter_pool), (struct sock_filter *)filter_pool },
	[SANDBOX_KEEPER] = { ARRAY_LENGTH(filter_keeper), (struct sock_filter *)filter_keeper },
};
#endif

int sandbox_filter(enum sandbox_role role, struct dp_err *err)
{
#ifdef SANITIZED
	(void)role;
	(void)err;
	return 0; /* see the header */
#else
	struct sigaction action = { .sa_sigaction = on_forbidden, .sa_flags = SA_SIGINFO };
	sigset_t forbidden;

	sigaction(SIGSYS, &action, NULL);
	sigemptyset(&forbidden);
	sigaddset(&forbidden, SIGSYS);
	sigprocmask(SIG_UNBLOCK, &forbidden, NULL); /* blocked, it would kill without a word */
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &programs[role]) != 0)
		return dp_fail_errno(err, errno ? errno : EBUSY, "install the filter of system calls");
	return 0;
#endif
}
