#include "instance/process.h"

#include <dirent.h>
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

struct pid_list {
	pid_t *pids;
	size_t count, room;
};

static int add_pid(struct pid_list *list, pid_t pid)
{
	if (list->count == list->room) {
		size_t room = list->room ? list->room * 2 : 16;
		pid_t *larger = reallocarray(list->pids, room, sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		list->pids = larger;
		list->room = room;
	}
	list->pids[list->count++] = pid;
	return 0;
}

/* The kernel lists children by the thread that made them. */
static int add_children(pid_t pid, struct pid_list *list)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	DIR *threads = opendir(path);
	if (!threads)
		return -ESRCH;
	int ret = 0;
	for (struct dirent *entry = readdir(threads); entry && !ret; entry = readdir(threads)) {
		char children[320];
		cleanup_free char *text = NULL;
		if (entry->d_name[0] == '.')
			continue;
		snprintf(children, sizeof(children), "%s/children", entry->d_name);
		if (io_read_file_at(dirfd(threads), children, &text, 16u << 20) < 0)
			continue; /* this thread has just ended */
		char *end;
		for (const char *at = text; !ret; at = end) {
			long child = strtol(at, &end, 10);
			if (end == at)
				break;
			ret = add_pid(list, (pid_t)child);
		}
	}
	closedir(threads);
	return ret;
}

int process_children(pid_t pid, pid_t **pids, size_t *count)
{
	struct pid_list list = { 0 };
	int ret = add_children(pid, &list);
	if (ret) {
		free(list.pids);
		return ret;
	}
	*pids = list.pids;
	*count = list.count;
	return 0;
}

int process_tree(pid_t pid, pid_t **pids, size_t *count)
{
	struct pid_list list = { 0 };
	if (process_start_time(pid) == 0)
		return -ESRCH;
	int ret = add_pid(&list, pid);
	for (size_t i = 0; i < list.count && ret != -ENOMEM; i++)
		ret = add_children(list.pids[i], &list);
	if (ret == -ENOMEM) {
		free(list.pids);
		return ret;
	}
	*pids = list.pids;
	*count = list.count;
	return 0;
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

pid_t process_of_pidfd(int pidfd)
{
	char path[64];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	if (io_read_file(path, &text, 65536) < 0)
		return -ESRCH;
	const char *line = strstr(text, "\nPid:");
	long pid = line ? strtol(line + 5, NULL, 10) : 0;
	return pid > 0 ? (pid_t)pid : -ESRCH;
}

uint64_t process_resident_pages(pid_t pid)
{
	char path[64];
	cleanup_free char *text = NULL;
	unsigned long long resident;
	snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
	if (io_read_file(path, &text, 4096) < 0 || sscanf(text, "%*u %llu", &resident) != 1)
		return 0;
	return resident;
}
