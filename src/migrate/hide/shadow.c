#include "migrate/hide/shadow.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/inject.h"

/* What is out of memory may take it first: the process must not suffer for its shadow. */
static void offer_to_oom_killer(pid_t shadow)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", shadow);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	ssize_t ignored = write(fd, "1000", 4);
	(void)ignored;
	close(fd);
}

static void kill_shadow(pid_t shadow)
{
	int status;
	kill(shadow, SIGKILL);
	while (waitpid(shadow, &status, __WALL) >= 0 && WIFSTOPPED(status))
		;
}

/* The helper's fork: the shadow, without descriptors. With a table of its own of those to be kept, which are none, nothing is
 * closed, so nothing is flushed either. */
static pid_t fork_shadow(struct injection *helper)
{
	struct injection shadow;
	pid_t own_pid, pid = inject_clone(helper, CLONE_FILES, 0, &own_pid);
	if (pid < 0)
		return pid;
	int rc = inject_adopt(&shadow, helper, pid);
	if (rc == 0)
		rc = (int)inject_call(&shadow, SYS_close_range, 0, ~0u, CLOSE_RANGE_UNSHARE, 0, 0, 0);
	if (rc < 0) {
		kill_shadow(pid);
		return rc;
	}
	offer_to_oom_killer(pid);
	return pid;
}

static pid_t clone_helper(struct injection *process)
{
	struct injection helper;
	pid_t own_pid, pid = inject_clone(process, CLONE_VM | CLONE_FILES | CLONE_FS, 0, &own_pid);
	if (pid < 0)
		return pid;
	int rc = inject_adopt(&helper, process, pid);
	pid_t shadow = rc < 0 ? rc : fork_shadow(&helper);
	/* Ends in the call, and is reaped twice: by us, who trace it, there; then by its parent. */
	if (rc < 0 || inject_call(&helper, SYS_exit, 0, 0, 0, 0, 0, 0) != -ESRCH)
		kill_shadow(pid);
	inject_call(process, SYS_wait4, (uint64_t)own_pid, 0, __WALL, 0, 0, 0);
	return shadow;
}

pid_t shadow_make(pid_t thread)
{
	struct injection process = { .thread = thread, .at_rest = true };
	int rc = inject_stopped(&process, NULL);
	if (rc < 0)
		return rc; /* it was let go */
	pid_t shadow = rc > 0 ? clone_helper(&process) : -EBUSY;
	inject_leave(&process);
	return shadow;
}
