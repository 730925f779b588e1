#include "instance/process.h"

#include <errno.h>
#include <string.h>
#include <sys/pidfd.h>

#include "base/base.h"

/* Fields of /proc/PID/stat behind the command name, which may itself hold spaces and brackets. */
static int read_stat(pid_t pid, char *state, pid_t *parent, uint64_t *start_time)
{
	char path[64];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (io_read_file(path, &text, 65536) < 0)
		return -ESRCH;
	const char *rest = strrchr(text, ')');
	int parent_pid;
	unsigned long long start;
	if (!rest || sscanf(rest + 1, " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", state,
			    &parent_pid, &start) != 3)
		return -ESRCH;
	*parent = parent_pid;
	*start_time = start;
	return 0;
}

uint64_t process_start_time(pid_t pid)
{
	char state;
	pid_t parent;
	uint64_t start_time;
	if (pid <= 0 || read_stat(pid, &state, &parent, &start_time) || state == 'Z' || state == 'X')
		return 0;
	return start_time;
}

bool process_is_alive(pid_t pid, uint64_t start_time)
{
	return start_time != 0 && process_start_time(pid) == start_time;
}

pid_t process_parent(pid_t pid)
{
	char state;
	pid_t parent;
	uint64_t start_time;
	return read_stat(pid, &state, &parent, &start_time) ? 0 : parent;
}

int process_open(pid_t pid, uint64_t start_time)
{
	int pidfd = pidfd_open(pid, 0);
	if (pidfd < 0)
		return -errno;
	/* Checked after opening: a pid that was taken over in between has another start time. */
	if (!process_is_alive(pid, start_time)) {
		close(pidfd);
		return -ESRCH;
	}
	return pidfd;
}
