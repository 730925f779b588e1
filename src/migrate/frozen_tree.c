#include "migrate/frozen_tree.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/base.h"
#include "checkpoint/hide_record.h"
#include "migrate/area_flags.h"
#include "sys/uffd_abi.h"

/* No more than the kernel keeps itself at once (512): having handed those on, and then come to the end, it says that it had
 * stopped there, and what lies behind would be told twice (Linux 6.18, do_pagemap_scan: walk_end is not set at the end). */
#define SCAN_REGIONS 512
#define RECORDS_LIMIT (UINT64_C(1) << 30)

void frozen_tree_done(struct frozen_tree *tree)
{
	for (size_t i = 0; i < tree->task_count; i++) {
		dp_close_fd(&tree->tasks[i].mem_fd);
		dp_close_fd(&tree->tasks[i].pagemap_fd);
		dp_close_fd(&tree->tasks[i].smaps_fd);
		page_list_done(&tree->tasks[i].hidden);
		page_list_done(&tree->tasks[i].pages);
		page_list_done(&tree->tasks[i].left);
	}
	for (size_t i = 0; i < tree->map_count; i++)
		image_pagemap_done(&tree->maps[i].thin);
	for (size_t i = 0; i < tree->known_count; i++)
		dp_close_fd(&tree->known[i].fd);
	free(tree->known);
	free(tree->tasks);
	free(tree->maps);
	dp_close_fd(&tree->pages_fd);
	tree->tasks = NULL;
	tree->known = NULL;
	tree->maps = NULL;
	tree->task_count = tree->known_count = tree->map_count = 0;
	tree->pages_fd = -1;
}

/* ---- what CRIU sends ---- */

static int sink_open(void *context, bool shared_memory, uint32_t id, struct dp_err *err)
{
	struct frozen_tree *tree = context;
	char name[64];
	struct frozen_map *wider = reallocarray(tree->maps, tree->map_count + 1, sizeof(*wider));
	if (!wider)
		return dp_fail_errno(err, ENOMEM, "page map");
	tree->maps = wider;
	struct frozen_map *map = &tree->maps[tree->map_count++];
	*map = (struct frozen_map){ .shared_memory = shared_memory, .id = id, .thin.pages_id = (uint32_t)tree->map_count };
	snprintf(name, sizeof(name), "pages-%u.img", map->thin.pages_id);
	dp_close_fd(&tree->pages_fd);
	tree->pages_fd = openat(tree->images_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return tree->pages_fd < 0 ? dp_fail_errno(err, errno, "create image %s", name) : 0;
}

static int sink_pages(void *context, bool lazy, uint64_t pgno, uint64_t pages, const void *data, struct dp_err *err)
{
	struct frozen_tree *tree = context;
	struct frozen_map *map = &tree->maps[tree->map_count - 1];
	struct image_run *last = map->thin.count ? &map->thin.runs[map->thin.count - 1] : NULL;
	int rc = io_write_full(tree->pages_fd, data, pages * PAGE_BYTES);
	if (rc < 0)
		return dp_fail_errno(err, -rc, "write pages that cannot stay (shared memory and such) to the temporary file system");
	tree->eager_pages += pages;
	map->file_pages += pages;
	if (last && last->pgno + last->pages == pgno) {
		last->pages += pages;
		return 0;
	}
	if (map->thin.count == map->room) {
		size_t room = map->room ? map->room * 2 : 64;
		struct image_run *wider = reallocarray(map->thin.runs, room, sizeof(*wider));
		if (!wider)
			return dp_fail_errno(err, ENOMEM, "page map");
		map->thin.runs = wider;
		map->room = room;
	}
	map->thin.runs[map->thin.count++] = (struct image_run){ .pgno = pgno, .pages = pages, .flags = PAGEMAP_PRESENT };
	return 0;
}

void frozen_tree_init(struct frozen_tree *tree, int images_fd)
{
	*tree = (struct frozen_tree){ .images_fd = images_fd,
				      .pages_fd = -1,
				      .sink = { .context = tree, .open = sink_open, .pages = sink_pages } };
}

/* ---- what the library hid ---- */

struct frozen_task *frozen_tree_task(const struct frozen_tree *tree, int vpid)
{
	for (size_t i = 0; i < tree->task_count; i++)
		if (tree->tasks[i].vpid == vpid)
			return &tree->tasks[i];
	return NULL;
}

/* One message of the library, with the descriptors that came along: the count, which is 0 for a word without. -EAGAIN: there is
 * none. */
static int receive_message(int socket_fd, struct hide_fds *body, int fds[static HIDE_FDS])
{
	char control[CMSG_SPACE(HIDE_FDS * sizeof(int))];
	struct iovec data = { body, sizeof(*body) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	ssize_t got = recvmsg(socket_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got <= 0)
		return got < 0 ? -errno : -EAGAIN;
	const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	size_t count = header && header->cmsg_type == SCM_RIGHTS ? (header->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
	if (count)
		memcpy(fds, CMSG_DATA(header), count * sizeof(int));
	size_t expected = body->known_areas ? 1 : HIDE_FDS;
	if (got == sizeof(*body) && (count == expected || !header))
		return (int)count;
	for (size_t i = 0; i < count; i++)
		close(fds[i]);
	return -EIO;
}

static int take_known(struct frozen_tree *tree, int vpid, int fd)
{
	struct frozen_known *wider = reallocarray(tree->known, tree->known_count + 1, sizeof(*wider));
	if (!wider) {
		close(fd);
		return -ENOMEM;
	}
	tree->known = wider;
	tree->known[tree->known_count++] = (struct frozen_known){ vpid, fd };
	return 0;
}

static int take_task(struct frozen_tree *tree, int vpid, const int fds[static HIDE_FDS])
{
	struct frozen_task task = { .vpid = vpid, .mem_fd = fds[0], .pagemap_fd = fds[1], .smaps_fd = fds[2] };
	bool again = frozen_tree_task(tree, vpid) != NULL; /* CRIU came back to it: the first will do */
	struct frozen_task *wider = again ? NULL : reallocarray(tree->tasks, tree->task_count + 1, sizeof(*wider));
	if (!wider) {
		for (int i = 0; i < HIDE_FDS; i++)
			close(fds[i]);
		return again ? 0 : -ENOMEM;
	}
	tree->tasks = wider;
	tree->tasks[tree->task_count++] = task;
	return 0;
}

static int receive_tasks(struct frozen_tree *tree, int socket_fd)
{
	struct hide_fds body;
	int fds[HIDE_FDS], count, rc = 0;
	while (rc == 0 && (count = receive_message(socket_fd, &body, fds)) != -EAGAIN) {
		if (count < 0)
			rc = count;
		else if (count == 0 && body.error < 0)
			rc = body.error;
		else if (count == 0)
			tree->all_let_go = tree->all_let_go || body.vpid == HIDE_ALL_LET_GO;
		else
			rc = body.known_areas ? take_known(tree, body.vpid, fds[0]) : take_task(tree, body.vpid, fds);
	}
	return rc;
}

static int take_record(struct frozen_tree *tree, const struct hide_record *record)
{
	if (record->kind == HIDE_STOPPED) {
		tree->stopped_at_ns = record->start;
		return 0;
	}
	if (record->kind == HIDE_LET_GO) {
		tree->let_go_at_ns = record->start;
		return 0;
	}
	struct frozen_task *task = frozen_tree_task(tree, record->vpid);
	bool whole_pages = !(record->start % PAGE_BYTES) && !(record->end % PAGE_BYTES) && record->start < record->end;
	if (record->kind != HIDE_RANGE || !task || !whole_pages)
		return -EIO;
	return page_list_add(&task->hidden, record->start >> PAGE_SHIFT, (record->end - record->start) >> PAGE_SHIFT);
}

int frozen_tree_let_go(struct frozen_tree *tree, int fds_fd, int criu_pidfd, struct dp_err *err)
{
	struct pollfd polls[] = { { .fd = fds_fd, .events = POLLIN }, { .fd = criu_pidfd, .events = POLLIN } };
	int rc = 0;
	while (!tree->all_let_go && rc == 0) {
		if (poll(polls, 2, -1) < 0 && errno != EINTR)
			return dp_fail_errno(err, errno, "wait for criu");
		if (polls[0].revents)
			rc = receive_tasks(tree, fds_fd);
		else if (polls[1].revents)
			return dp_fail(err, ECANCELED, "criu ended before it had let the tree go");
	}
	if (rc == -EAGAIN)
		return dp_fail(err, EAGAIN, "a process of the tree may not fork: its user or its cgroup has as many as are allowed");
	return rc < 0 ? dp_fail_errno(err, -rc, "fork the tree's processes") : 0;
}

int frozen_tree_collect(struct frozen_tree *tree, int records_fd, int fds_fd, struct dp_err *err)
{
	struct stat info;
	int rc = receive_tasks(tree, fds_fd);
	if (rc == 0 && fstat(records_fd, &info) < 0)
		rc = -errno;
	uint64_t length = rc == 0 ? (uint64_t)info.st_size : 0;
	if (rc == 0 && (length > RECORDS_LIMIT || length % sizeof(struct hide_record)))
		rc = -EIO;
	cleanup_free struct hide_record *records = rc == 0 && length ? malloc(length) : NULL;
	if (rc == 0 && length && !records)
		rc = -ENOMEM;
	if (rc == 0 && length && pread(records_fd, records, length, 0) != (ssize_t)length)
		rc = -EIO;
	for (uint64_t i = 0; i < length / sizeof(*records) && rc == 0; i++)
		rc = take_record(tree, &records[i]);
	if (rc == 0 && !tree->stopped_at_ns)
		return dp_fail(err, ENOPKG, "criu ran without the library that keeps pages where they are: is it statically linked?");
	return rc < 0 ? dp_fail_errno(err, -rc, "take over what was hidden from criu") : 0;
}

/* ---- which pages there are ---- */

/* Pages with something in them: neither of the kernel's page of zeros, nor guards. (Whether a page is a file's is not asked:
 * these areas have none, and the kernel would look at each page's struct: 80 ns instead of 10.) */
static int scan_range(struct frozen_task *task, uint64_t start, uint64_t end)
{
	static struct page_region regions[SCAN_REGIONS];
	static uint64_t no_guards = PAGE_IS_GUARD;
	while (start < end) {
		struct pm_scan_arg scan = { .size = sizeof(scan),
					    .start = start,
					    .end = end,
					    .vec = (uintptr_t)regions,
					    .vec_len = SCAN_REGIONS,
					    .category_inverted = PAGE_IS_PFNZERO | no_guards,
					    .category_mask = PAGE_IS_PFNZERO | no_guards,
					    .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
					    .return_mask = PAGE_IS_PRESENT };
		int found = ioctl(task->pagemap_fd, PAGEMAP_SCAN, &scan);
		if (found < 0 && errno == EINVAL && no_guards) {
			no_guards = 0; /* a kernel that has no guards (before 6.15) does not know the word */
			continue;
		}
		if (found < 0)
			return -errno;
		for (int i = 0; i < found; i++) {
			int rc = page_list_add(&task->pages, regions[i].start >> PAGE_SHIFT,
					       (regions[i].end - regions[i].start) >> PAGE_SHIFT);
			if (rc < 0)
				return rc;
		}
		if (scan.walk_end <= start)
			return -EIO;
		start = scan.walk_end;
	}
	return 0;
}

static int compare_ranges(const void *left, const void *right)
{
	uint64_t a = ((const struct page_range *)left)->pgno, b = ((const struct page_range *)right)->pgno;
	return (a > b) - (a < b);
}

/* CRIU may look at a place twice. */
static int sort_hidden(struct frozen_task *task)
{
	struct page_list sorted = { 0 };
	uint64_t done = 0;
	int rc = 0;
	if (task->hidden.count > 1)
		qsort(task->hidden.ranges, task->hidden.count, sizeof(struct page_range), compare_ranges);
	for (size_t i = 0; i < task->hidden.count && rc == 0; i++) {
		struct page_range range = task->hidden.ranges[i];
		uint64_t start = DP_MAX(range.pgno, done), end = range.pgno + range.pages;
		if (start < end)
			rc = page_list_add(&sorted, start, end - start);
		done = DP_MAX(done, end);
	}
	page_list_done(&task->hidden);
	task->hidden = sorted;
	return rc;
}

/* What was hidden must be what a restore asks for by itself. */
static int check_hidden(const struct frozen_tree *tree, const struct frozen_task *task, struct dp_err *err)
{
	struct image_vma *vmas;
	struct page_list lazy = { 0 };
	size_t count;
	uint64_t at = 0;
	int rc = images_read_mm(tree->images_fd, task->vpid, &vmas, &count, err);
	if (rc < 0)
		return rc;
	rc = inherit_within_areas(&task->pages, vmas, count, &lazy, &at);
	uint64_t inside = lazy.pages;
	free(vmas);
	page_list_done(&lazy);
	if (rc == -ENOTSUP)
		return dp_fail(err, ENOTSUP, "task %d has memory at 0x%llx that can neither stay nor was stored by criu", task->vpid,
			       (unsigned long long)at << PAGE_SHIFT);
	if (rc == 0 && inside != task->pages.pages)
		return dp_fail(err, ENOTSUP, "task %d has memory that criu does not know", task->vpid);
	return rc < 0 ? dp_fail_errno(err, -rc, "page map") : 0;
}

static int scan_task(struct frozen_tree *tree, struct frozen_task *task,
		     int (*find)(void *context, struct frozen_task *task, struct dp_err *err), void *context, struct dp_err *err)
{
	int rc = sort_hidden(task), found = rc == 0 && find ? find(context, task, err) : 0;
	if (found < 0)
		return found;
	for (size_t i = 0; i < task->hidden.count && rc == 0 && !find; i++)
		rc = scan_range(task, task->hidden.ranges[i].pgno << PAGE_SHIFT,
				(task->hidden.ranges[i].pgno + task->hidden.ranges[i].pages) << PAGE_SHIFT);
	if (rc < 0)
		return dp_fail_errno(err, -rc, "find the pages of task %d", task->vpid);
	tree->pages += task->pages.pages;
	return check_hidden(tree, task, err);
}

int frozen_tree_scan(struct frozen_tree *tree, int (*find)(void *context, struct frozen_task *task, struct dp_err *err),
		     void *context, struct dp_err *err)
{
	int rc = 0;
	dp_close_fd(&tree->pages_fd);
	tree->pages_fd = -1;
	for (size_t i = 0; i < tree->task_count && rc == 0; i++)
		rc = scan_task(tree, &tree->tasks[i], find, context, err);
	size_t mapped = 0;
	for (size_t i = 0; i < tree->map_count && rc == 0; i++) {
		struct frozen_map *map = &tree->maps[i];
		const struct frozen_task *task = map->shared_memory ? NULL : frozen_tree_task(tree, (int)map->id);
		mapped += task != NULL;
		if (task && inherit_merge_runs(&map->thin, &task->pages) < 0)
			return dp_fail_errno(err, ENOMEM, "page map");
		rc = images_write_pagemap(tree->images_fd, map->id, map->shared_memory, &map->thin, err);
	}
	if (rc == 0 && mapped != tree->task_count)
		return dp_fail(err, EIO, "criu stored no page map for a task whose pages it was not shown");
	return rc;
}

/* ---- what was known before ---- */

static int prove_task(const struct frozen_tree *tree, const struct frozen_known *known, bool shadows)
{
	const struct frozen_task *task = frozen_tree_task(tree, known->vpid);
	return task && task->smaps_fd >= 0 ? area_flags_same(task->smaps_fd, known->fd, shadows) : -EIO;
}

int frozen_tree_prove(const struct frozen_tree *tree, bool shadows, struct dp_err *err)
{
	for (size_t i = 0; i < tree->known_count; i++) {
		int same = prove_task(tree, &tree->known[i], shadows);
		if (same < 0)
			return dp_fail_errno(err, -same, "look at the memory areas of task %d", tree->known[i].vpid);
		if (!same)
			return dp_fail(err, EAGAIN, "task %d changed the kind of a memory area in the moment before it stood still: try again",
				       tree->known[i].vpid);
	}
	return 0;
}
