/* pids: which pids CRIU will claim, and where its own may lie. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "base/base.h"
#include "restore/plan.h"

static int by_value(const void *a, const void *b)
{
	pid_t first = *(const pid_t *)a, second = *(const pid_t *)b;
	return (first > second) - (first < second);
}

static int add(pid_t **pids, size_t *count, size_t *room, pid_t pid)
{
	if (pid <= 0)
		return 0;
	if (*count == *room) {
		size_t larger_room = *room ? *room * 2 : 64;
		pid_t *larger = reallocarray(*pids, larger_room, sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		*pids = larger;
		*room = larger_room;
	}
	(*pids)[(*count)++] = pid;
	return 0;
}

static size_t sort_unique(pid_t *pids, size_t count)
{
	size_t kept = 0;
	qsort(pids, count, sizeof(*pids), by_value);
	for (size_t i = 0; i < count; i++)
		if (kept == 0 || pids[kept - 1] != pids[i])
			pids[kept++] = pids[i];
	return kept;
}

int plan_read_pids(int images_fd, const struct image_task *tasks, size_t task_count, pid_t **pids, size_t *count,
		   struct dp_err *err)
{
	size_t room = 0;
	int ret = 0;
	*pids = NULL;
	*count = 0;
	int copy = dup(images_fd);
	DIR *directory = copy >= 0 ? fdopendir(copy) : NULL;
	if (!directory) {
		int code = errno;
		if (copy >= 0)
			close(copy);
		return dp_fail_errno(err, code, "read the images' directory");
	}
	rewinddir(directory);
	struct dirent *entry;
	int more = 0;
	while (!ret && (more = io_next_entry(directory, &entry)) > 0) {
		int pid, length = 0;
		if (sscanf(entry->d_name, "core-%d.img%n", &pid, &length) == 1 && length && !entry->d_name[length])
			ret = add(pids, count, &room, pid);
	}
	closedir(directory);
	if (more < 0) {
		free(*pids);
		*pids = NULL;
		return dp_fail_errno(err, -more, "read the images' directory");
	}
	for (size_t i = 0; i < task_count && !ret; i++) {
		ret = add(pids, count, &room, tasks[i].pid);
		if (!ret)
			ret = add(pids, count, &room, tasks[i].sid);
		if (!ret)
			ret = add(pids, count, &room, tasks[i].pgid);
	}
	if (ret) {
		free(*pids);
		*pids = NULL;
		return dp_fail(err, ENOMEM, "out of memory");
	}
	if (*count)
		*count = sort_unique(*pids, *count);
	return 0;
}

pid_t plan_pid_gap(const pid_t *pids, size_t count, pid_t pid_max, pid_t room)
{
	pid_t upper = pid_max; /* first pid that is not free any more */
	for (size_t i = count; i-- > 0;) {
		if (upper - pids[i] > room)
			return pids[i];
		upper = pids[i];
	}
	return upper > room + 1 ? 1 : 0; /* 1 is init's own */
}

bool plan_gap_is_free(const pid_t *pids, size_t count, pid_t last_pid, pid_t room)
{
	for (size_t i = 0; i < count; i++)
		if (pids[i] > last_pid && pids[i] - last_pid <= room)
			return false;
	return true;
}

static void process_name(pid_t pid, char *name, size_t size)
{
	char path[64];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	ssize_t length = io_read_file(path, &text, 4096);
	snprintf(name, size, "%.*s", length > 0 ? (int)length - 1 : 1, length > 0 ? text : "?");
}

int plan_refuse_used_pids(const pid_t *pids, size_t count, struct dp_err *err)
{
	for (size_t i = 0; i < count; i++) {
		if (kill(pids[i], 0) && errno == ESRCH)
			continue;
		char name[64];
		process_name(pids[i], name, sizeof(name));
		return dp_fail(err, EEXIST, "pid %d of the snapshot is in use on this host (%s): end that process, or leave out "
			       "--pid-namespace host", (int)pids[i], name);
	}
	return 0;
}
