#include "checkpoint/target.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <string.h>

#include "base/base.h"
#include "instance/process.h"
#include "sys/proc.h"

#define PF_KTHREAD 0x00200000u /* linux/sched.h; field 9 of /proc/PID/stat */

static int read_flags(pid_t pid, char *state, unsigned *flags)
{
	char path[64];
	cleanup_free char *stat = NULL;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (io_read_file(path, &stat, 4096) < 0)
		return -ESRCH;
	const char *behind_name = strrchr(stat, ')'); /* a name may hold anything */
	return behind_name && sscanf(behind_name + 1, " %c %*d %*d %*d %*d %*d %u", state, flags) == 2 ? 0 : -ESRCH;
}

static int check_capabilities(struct dp_err *err)
{
	cleanup_free char *status = NULL;
	unsigned long long effective = 0;
	if (io_read_file("/proc/self/status", &status, 65536) < 0)
		return 0; /* CRIU will tell */
	const char *line = strstr(status, "\nCapEff:");
	if (!line || sscanf(line, " CapEff: %llx", &effective) != 1)
		return 0;
	unsigned long long needed = 1ull << CAP_SYS_ADMIN | 1ull << CAP_SYS_PTRACE;
	if ((effective & needed) != needed)
		return dp_fail(err, EPERM, "CAP_SYS_ADMIN and CAP_SYS_PTRACE are needed: run it as root");
	return 0;
}

/* CRIU takes a process whose first thread is a zombie for one that has ended, and fails in the middle. */
static int check_first_threads(pid_t pid, struct dp_err *err)
{
	cleanup_free pid_t *pids = NULL;
	ssize_t count = proc_tree(pid, &pids);
	for (ssize_t i = 0; i < count; i++)
		if (proc_state(pids[i]) == 'Z' && proc_live_thread(pids[i]) > 0)
			return dp_fail(
				err, EINVAL,
				"process %d goes on without its first thread, which has ended: CRIU cannot store such a process",
				pids[i]);
	return 0;
}

int target_check(pid_t pid, struct dp_err *err)
{
	char state;
	unsigned flags;
	if (pid <= 0)
		return dp_fail(err, EINVAL, "%d is no process id", pid);
	if (read_flags(pid, &state, &flags) < 0)
		return dp_fail(err, ESRCH, "no process %d", pid);
	if (flags & PF_KTHREAD)
		return dp_fail(err, EINVAL, "process %d is a thread of the kernel, which has nothing to checkpoint", pid);
	int ret = check_first_threads(pid, err);
	if (ret)
		return ret;
	if (state == 'Z' || state == 'X')
		return dp_fail(err, ESRCH, "process %d has ended (it only waits to be reaped)", pid);
	for (pid_t at = getpid(); at > 0; at = process_parent(at))
		if (at == pid)
			return dp_fail(err, EINVAL, "process %d is %s: CRIU would freeze what drives it", pid,
				       at == getpid() ? "this very command" : "one that this command runs below");
	return check_capabilities(err);
}

uint64_t target_resident_pages(pid_t pid)
{
	pid_t *pids;
	ssize_t count = proc_tree(pid, &pids);
	uint64_t pages = 0;
	for (ssize_t i = 0; i < count; i++) {
		char path[64];
		struct proc_statm statm;
		snprintf(path, sizeof(path), "/proc/%d/statm", pids[i]);
		cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0 && proc_read_statm(fd, &statm) == 0 && statm.resident_pages > statm.shared_pages)
			pages += statm.resident_pages - statm.shared_pages;
	}
	if (count >= 0)
		free(pids);
	return pages;
}

char *target_command_line(pid_t pid)
{
	char path[64];
	char *line = NULL;
	snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
	ssize_t length = io_read_file(path, &line, 1 << 20);
	if (length < 0)
		return strdup("");
	if (length > 4096)
		length = 4096; /* it is for people */
	while (length > 0 && line[length - 1] == 0)
		length--;
	line[length] = 0;
	for (ssize_t i = 0; i < length; i++) /* arguments end with 0; JSON wants UTF-8, people want one line */
		if ((unsigned char)line[i] < ' ' || (unsigned char)line[i] >= 0x7f)
			line[i] = line[i] == 0 ? ' ' : '?';
	return line;
}
