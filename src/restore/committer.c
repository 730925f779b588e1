#include "restore/committer.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"

#define AGAIN_NS 1000000000u /* after a failure */

bool committer_is_needed(const struct restore_options *options)
{
	return options->commit_interval_ns || options->through;
}

void committer_wanted(struct committer_process *committer, const struct restore_options *options)
{
	if (committer_is_needed(options) && !committer->pid)
		committer->start_at_ns = clock_now_ns();
}

static void start(struct committer_process *committer, const struct restore_options *options, const struct instance *instance)
{
	char how[40], root[PATH_MAX];
	snprintf(root, sizeof(root), "%s", options->root);
	snprintf(how, sizeof(how), options->through ? "--through" : "--every=%llums",
		 (unsigned long long)(options->commit_interval_ns / 1000000u));
	char *const arguments[] = { "distri-proc", "commit", how, "--root", root, "--", (char *)(uintptr_t)instance->id, NULL };
	pid_t pid = fork();
	if (pid == 0) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setpgid(0, 0);
		execv("/proc/self/exe", arguments);
		_exit(127);
	}
	if (pid < 0)
		log_warn("start the committer: %s", strerror(errno));
	committer->pid = DP_MAX(pid, 0);
	committer->start_at_ns = pid < 0 ? clock_now_ns() + AGAIN_NS : 0;
}

int committer_work(struct committer_process *committer, const struct restore_options *options, const struct instance *instance)
{
	if (!committer->start_at_ns)
		return -1;
	uint64_t now = clock_now_ns();
	if (now >= committer->start_at_ns)
		start(committer, options, instance);
	return committer->start_at_ns ? (int)((committer->start_at_ns - DP_MIN(now, committer->start_at_ns)) / 1000000u) + 1 : -1;
}

bool committer_ended(struct committer_process *committer, pid_t pid, int status)
{
	if (pid != committer->pid || !pid)
		return false;
	committer->pid = 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return true; /* the tree is ending */
	log_warn("the committer ended with status %#x: it is started again", (unsigned)status);
	committer->start_at_ns = clock_now_ns() + AGAIN_NS;
	return true;
}

void committer_kill(struct committer_process *committer)
{
	committer->start_at_ns = 0;
	if (!committer->pid)
		return;
	kill(committer->pid, SIGKILL);
	waitpid(committer->pid, NULL, 0);
	committer->pid = 0;
}
