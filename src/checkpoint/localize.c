#include "checkpoint/localize.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/base.h"
#include "sys/proc.h"

#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif

struct rseq_configuration { /* struct ptrace_rseq_configuration of linux/ptrace.h */
	uint64_t area;
	uint32_t area_bytes, signature, flags, pad;
};
#define SEIZE_TRIES 100
#define SEIZE_PAUSE_US 2000
#define RSEQ_SECTION_OFFSET 8 /* rseq_cs in struct rseq of linux/rseq.h */

/* Reads waiting for the pager where the page is remote. -EFAULT where nothing is mapped. */
static int read_waiting(pid_t pid, uint64_t address, void *to, size_t bytes)
{
	struct iovec local = {.iov_base = to, .iov_len = bytes};
	struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = bytes};
	ssize_t got = process_vm_readv(pid, &local, 1, &remote, 1, 0);
	return got == (ssize_t)bytes ? 0 : got < 0 ? -errno : -EFAULT;
}

/* A thread that has ended and waits to be reaped cannot be traced (EPERM), nor one that the pager is just letting go. */
static int seize(pid_t thread)
{
	for (int tries = 0; ptrace(PTRACE_SEIZE, thread, NULL, NULL) < 0; tries++) {
		int failure = errno;
		int state = proc_state(thread);
		if (state == -ESRCH || state == 'Z' || state == 'X')
			return -ESRCH;
		if (failure != EPERM || tries == SEIZE_TRIES)
			return -failure;
		usleep(SEIZE_PAUSE_US);
	}
	return 0;
}

/* 0 and the address of the thread's rseq area (0: none); -ESRCH where the thread ends. */
static int find_rseq(pid_t thread, uint64_t *area)
{
	struct rseq_configuration configuration = {0};
	int status;
	*area = 0;
	int rc = seize(thread);
	if (rc < 0)
		return rc;
	if (ptrace(PTRACE_INTERRUPT, thread, NULL, NULL) < 0 || waitpid(thread, &status, __WALL) != thread || !WIFSTOPPED(status))
		return -ESRCH; /* it has ended, which detaches by itself */
	long got = ptrace(PTRACE_GET_RSEQ_CONFIGURATION, thread, sizeof(configuration), &configuration);
	/* A signal that came before our interrupt is handed on; the stop of our own (PTRACE_EVENT_STOP) carries none. */
	int signal_number = status >> 16 ? 0 : WSTOPSIG(status);
	ptrace(PTRACE_DETACH, thread, NULL, (void *)(uintptr_t)(unsigned)signal_number);
	if (got > 0)
		*area = configuration.area;
	return 0;
}

static int localize_thread(pid_t thread)
{
	uint64_t area, section = 0;
	char byte;
	int rc = find_rseq(thread, &area);
	if (rc < 0 || area == 0)
		return rc;
	rc = read_waiting(thread, area + RSEQ_SECTION_OFFSET, &section, sizeof(section));
	if (rc == 0 && section != 0)
		read_waiting(thread, section, &byte, 1); /* it may be stale: CRIU looks at it all the same, and may fail to */
	return rc == -EFAULT ? 0 : rc;
}

static int localize_one(void *context, pid_t thread)
{
	(void)context;
	int rc = localize_thread(thread);
	return rc == -ESRCH ? 0 : rc;
}

static void localize_command_line(pid_t pid)
{
	char path[64], byte;
	cleanup_free char *stat = NULL;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	const char *at = io_read_file(path, &stat, 4096) < 0 ? NULL : strrchr(stat, ')');
	for (int field = 2; at && field < 48; field++) /* 48 and 49: arg_start, arg_end */
		at = strchr(at + 1, ' ');
	unsigned long long start, end;
	if (!at || sscanf(at, " %llu %llu", &start, &end) != 2)
		return;
	end = DP_MIN(end, start + 2 * PAGE_BYTES);
	for (uint64_t page = start; page < end; page = (page | (PAGE_BYTES - 1)) + 1)
		read_waiting(pid, page, &byte, 1);
}

int localize_tree(pid_t pid, struct dp_err *err)
{
	pid_t *pids;
	ssize_t count = proc_tree(pid, &pids);
	if (count < 0)
		return dp_fail_errno(err, (int)-count, "list the tree of process %d", pid);
	int rc = 0;
	for (ssize_t i = 0; i < count && rc == 0; i++) {
		rc = proc_each_thread(pids[i], localize_one, NULL);
		if (rc == -ESRCH)
			rc = 0;
		if (rc < 0)
			dp_fail_errno(err, -rc, "look at the threads of process %d", pids[i]);
		if (i == 0)
			localize_command_line(pids[i]);
	}
	free(pids);
	return rc;
}
