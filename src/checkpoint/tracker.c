#include "checkpoint/tracker.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>

#include "base/base.h"
#include "sys/proc.h"
#include "sys/unseen.h"

struct area {
	uint64_t start, end;
};

struct tracker {
	pid_t root;
	int depth; /* of the root's PID namespace below ours: which of a process's pids CRIU uses */
	void (*release)(void *data);
	struct tracked **processes;
	size_t count, room;
	struct area *areas; /* of the process being looked at */
	size_t area_count, area_room;
	struct written_run runs[TRACKER_BATCH_RUNS];
};

/* ---- the processes of the tree ---- */

/* The pid at a depth of namespaces below ours, or 0; *depth < 0: the innermost, whose depth it becomes. */
static uint32_t pid_at_depth(pid_t pid, int *depth)
{
	char path[64];
	cleanup_free char *status = NULL;
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (io_read_file(path, &status, 65536) < 0)
		return 0;
	char *at = strstr(status, "\nNSpid:");
	char *end = at ? strchr(at + 1, '\n') : NULL;
	if (!end)
		return 0;
	*end = 0;
	uint32_t found = 0;
	at += strlen("\nNSpid:");
	for (int i = 0; *at; i++) {
		found = (uint32_t)strtoul(at, &at, 10);
		if (i == *depth)
			return found;
		if (!*at && *depth < 0) {
			*depth = i;
			return found;
		}
	}
	return 0;
}

static uint64_t start_time(pid_t pid, pid_t *parent)
{
	char path[64];
	cleanup_free char *stat = NULL;
	unsigned long long since = 0;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	const char *end = io_read_file(path, &stat, 65536) < 0 ? NULL : strrchr(stat, ')');
	if (!end || sscanf(end + 1, " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", parent,
			   &since) != 2)
		return 0;
	return since;
}

static void drop(struct tracker *tracker, size_t at)
{
	struct tracked *process = tracker->processes[at];
	dp_close_fd(&process->uffd);
	dp_close_fd(&process->lock_fd);
	if (tracker->release && process->data)
		tracker->release(process->data);
	free(process);
	memmove(&tracker->processes[at], &tracker->processes[at + 1], (--tracker->count - at) * sizeof(*tracker->processes));
}

static struct tracked *add(struct tracker *tracker)
{
	if (tracker->count == tracker->room) {
		size_t room = tracker->room ? tracker->room * 2 : 16;
		struct tracked **wider = reallocarray(tracker->processes, room, sizeof(struct tracked *));
		if (!wider)
			return NULL;
		tracker->processes = wider;
		tracker->room = room;
	}
	struct tracked *process = calloc(1, sizeof(*process));
	if (process)
		tracker->processes[tracker->count++] = process;
	return process;
}

/* Between vfork and execve a child has its parent's memory: it is none of its own yet. (Frozen there, CRIU takes it for one:
 * then it is one that is not tracked.) */
static bool borrows_memory(pid_t pid, pid_t parent)
{
	return proc_same_memory(pid, parent) == 1;
}

static int list_one(struct tracker *tracker, pid_t pid, bool frozen)
{
	pid_t parent = 0;
	uint64_t since = start_time(pid, &parent);
	if (!since || !proc_has_memory(proc_live_thread(pid)))
		return 0;
	if (!frozen && pid != tracker->root && borrows_memory(pid, parent))
		return 0;
	for (size_t i = 0; i < tracker->count; i++)
		if (tracker->processes[i]->pid == pid && tracker->processes[i]->start_time == since) {
			tracker->processes[i]->seen = true;
			return 0;
		}
	uint32_t vpid = pid_at_depth(pid, &tracker->depth);
	struct tracked *process = vpid ? add(tracker) : NULL;
	if (!vpid)
		return 0; /* it ended */
	if (!process)
		return -ENOMEM;
	*process = (struct tracked){ .pid = pid, .vpid = vpid, .start_time = since, .uffd = -1, .lock_fd = -1,
				      .seen = true };
	return 0;
}

static int list_tree(struct tracker *tracker, bool frozen, struct dp_err *err)
{
	cleanup_free pid_t *pids = NULL;
	ssize_t count = proc_tree(tracker->root, &pids);
	if (count < 0)
		return dp_fail_errno(err, (int)-count, "list the tree of process %d", tracker->root);
	int ret = 0;
	for (size_t i = 0; i < tracker->count; i++)
		tracker->processes[i]->seen = false;
	for (ssize_t i = 0; i < count && !ret; i++)
		ret = list_one(tracker, pids[i], frozen);
	if (ret)
		return dp_fail_errno(err, -ret, "list the tree of process %d", tracker->root);
	for (size_t i = tracker->count; i-- > 0;)
		if (!tracker->processes[i]->seen)
			drop(tracker, i);
	return 0;
}

int tracker_open(struct tracker **tracker, pid_t root, void (*release)(void *data), struct dp_err *err)
{
	int ret = written_supported(err);
	if (ret)
		return ret;
	struct tracker *new = calloc(1, sizeof(*new));
	if (!new)
		return dp_fail_errno(err, ENOMEM, "look at what process %d writes", root);
	*new = (struct tracker){ .root = root, .depth = -1, .release = release };
	/* From a process's own namespace or from outside of it: CRIU uses the pids of the root's namespace either way. */
	if (!pid_at_depth(root, &new->depth)) {
		free(new);
		return dp_fail(err, ESRCH, "process %d is gone", root);
	}
	*tracker = new;
	return 0;
}

void tracker_close(struct tracker *tracker)
{
	if (!tracker)
		return;
	while (tracker->count)
		drop(tracker, tracker->count - 1);
	free(tracker->processes);
	free(tracker->areas);
	free(tracker);
}

struct tracked *tracker_find(struct tracker *tracker, uint32_t vpid)
{
	for (size_t i = 0; i < tracker->count; i++)
		if (tracker->processes[i]->vpid == vpid)
			return tracker->processes[i];
	return NULL;
}

struct tracked *tracker_next(struct tracker *tracker, const struct tracked *before)
{
	for (size_t i = 0; i < tracker->count; i++)
		if (!before || tracker->processes[i] == before) {
			i += before != NULL;
			return i < tracker->count ? tracker->processes[i] : NULL;
		}
	return NULL;
}

/* ---- one process ---- */

static void give_up(struct tracked *process, const char *why)
{
	dp_close_fd(&process->uffd);
	dp_close_fd(&process->lock_fd);
	process->uffd = process->lock_fd = -1;
	snprintf(process->why, sizeof(process->why), "%s", why);
}

/* D4. What cannot be told counts as if it might. */
static void look_for_unseen(struct tracked *process)
{
	char why[sizeof(process->why)] = "what it has open cannot be told";
	int found = process->unseen ? 0 : unseen_writes(process->pid, why, sizeof(why));
	if (!found)
		return;
	process->unseen = found != -ESRCH; /* it ends just now */
	give_up(process, why);
}

/* D5. */
static bool lock(struct tracked *process)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d", process->pid);
	process->lock_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (process->lock_fd >= 0 && !flock(process->lock_fd, LOCK_EX | LOCK_NB))
		return true;
	dp_close_fd(&process->lock_fd);
	process->lock_fd = -1;
	return false;
}

static void take_up(struct tracked *process)
{
	struct dp_err err = { "" };
	look_for_unseen(process);
	if (process->uffd >= 0 || process->unseen)
		return;
	if (!lock(process)) {
		snprintf(process->why, sizeof(process->why), "another of ours looks at what it writes");
		return;
	}
	int uffd = written_place(process->pid, &err);
	if (uffd < 0)
		give_up(process, err.text);
	else
		process->uffd = uffd;
	if (uffd >= 0)
		process->why[0] = 0;
}

static int keep_area(void *context, const struct proc_area *area)
{
	struct tracker *tracker = context;
	if (!area->anonymous)
		return 0;
	if (tracker->area_count == tracker->area_room) {
		size_t room = tracker->area_room ? tracker->area_room * 2 : 256;
		struct area *wider = reallocarray(tracker->areas, room, sizeof(*wider));
		if (!wider)
			return -ENOMEM;
		tracker->areas = wider;
		tracker->area_room = room;
	}
	tracker->areas[tracker->area_count++] = (struct area){ area->start, area->end };
	return 0;
}

/* Registers all of its areas before any is protected; one that cannot be, since it has just changed, is not told of in this
 * round. */
static bool watch(struct tracker *tracker, struct tracked *process)
{
	for (size_t i = 0; i < tracker->area_count; i++) {
		const struct area *area = &tracker->areas[i];
		int ret = written_watch(process->uffd, area->start, area->end - area->start);
		if (ret == -EBUSY) {
			process->unseen = true;
			give_up(process, "somebody else has a userfaultfd for its memory");
			return false;
		}
		if (ret == -ENOMEM || ret == -ESRCH) {
			give_up(process, "it has become another program");
			return false;
		}
	}
	return true;
}

static int tell(struct tracker *tracker, struct tracked *process, int pagemap_fd, const struct area *area,
		const struct tracker_sink *sink, struct dp_err *err)
{
	for (uint64_t at = area->start; at < area->end;) {
		ssize_t found = written_scan(pagemap_fd, &at, area->end, true, TRACKER_BATCH_PAGES, tracker->runs,
					     TRACKER_BATCH_RUNS);
		if (found == -ESRCH)
			return -ESRCH;
		if (found < 0)
			return dp_fail_errno(err, (int)-found, "look at what process %d writes", process->pid);
		if (found == 0)
			continue;
		look_for_unseen(process);
		int ret = process->uffd < 0 ? 1 : sink->runs(sink->context, process, tracker->runs, (size_t)found, err);
		if (ret)
			return ret;
	}
	return 0;
}

/* A process that ends meanwhile is no error, nor one that becomes another by execve. */
static int round_of(struct tracker *tracker, struct tracked *process, const struct tracker_sink *sink, struct dp_err *err)
{
	take_up(process);
	if (process->uffd < 0)
		return 0;
	cleanup_fd int pagemap_fd = tracker_open_pagemap(process);
	tracker->area_count = 0;
	int ret = pagemap_fd < 0 ? -ESRCH : proc_each_area(proc_live_thread(process->pid), keep_area, tracker);
	if (ret == -ENOMEM)
		return dp_fail_errno(err, ENOMEM, "list the areas of process %d", process->pid);
	if (!ret && !watch(tracker, process))
		return 0;
	for (size_t i = 0; i < tracker->area_count && !ret; i++)
		ret = tell(tracker, process, pagemap_fd, &tracker->areas[i], sink, err);
	return ret == -ESRCH ? 0 : DP_MIN(ret, 0);
}

int tracker_round(struct tracker *tracker, const struct tracker_sink *sink, struct dp_err *err)
{
	int ret = list_tree(tracker, false, err);
	for (size_t i = 0; i < tracker->count && !ret; i++)
		ret = round_of(tracker, tracker->processes[i], sink, err);
	return ret;
}

static uint64_t count_written(struct tracker *tracker, const struct tracked *process)
{
	cleanup_fd int pagemap_fd = tracker_open_pagemap(process);
	uint64_t pages = 0;
	tracker->area_count = 0;
	if (pagemap_fd < 0 || proc_each_area(proc_live_thread(process->pid), keep_area, tracker))
		return 0;
	for (size_t i = 0; i < tracker->area_count; i++)
		for (uint64_t at = tracker->areas[i].start; at < tracker->areas[i].end;) {
			ssize_t found = written_scan(pagemap_fd, &at, tracker->areas[i].end, false, 0, tracker->runs,
						     TRACKER_BATCH_RUNS);
			if (found < 0)
				return pages;
			for (ssize_t run = 0; run < found; run++)
				if (tracker->runs[run].written && !tracker->runs[run].zero)
					pages += (tracker->runs[run].end - tracker->runs[run].start) >> PAGE_SHIFT;
		}
	return pages;
}

uint64_t tracker_written_pages(struct tracker *tracker)
{
	uint64_t pages = 0;
	for (size_t i = 0; i < tracker->count; i++)
		if (tracker->processes[i]->uffd >= 0)
			pages += count_written(tracker, tracker->processes[i]);
	return pages;
}

/* ---- while it stands still ---- */

int tracker_frozen(struct tracker *tracker, struct dp_err *err)
{
	int ret = list_tree(tracker, true, err);
	for (size_t i = 0; i < tracker->count && !ret; i++)
		look_for_unseen(tracker->processes[i]);
	return ret;
}

int tracker_open_pagemap(const struct tracked *process)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/pagemap", proc_live_thread(process->pid));
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

ssize_t tracker_scan(const struct tracked *process, int pagemap_fd, uint64_t *start, uint64_t end, bool protect,
		     struct written_run *runs, size_t room)
{
	ssize_t found = written_scan(pagemap_fd, start, end, false, 0, runs, room);
	for (ssize_t i = 0; i < found; i++) {
		runs[i].written |= process->uffd < 0;
		/* Nothing is written meanwhile: a second look finds the same. */
		struct written_run again[1];
		for (uint64_t at = runs[i].start; protect && runs[i].watched && runs[i].written && at < runs[i].end;)
			if (written_scan(pagemap_fd, &at, runs[i].end, true, 0, again, 1) < 0)
				return -EIO;
	}
	return found;
}
