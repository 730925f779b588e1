#include "pager/lazy_spaces.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "image/images.h"

/* ---- tasks ---- */

int lazy_task_add(struct lazy_task *task, uint64_t pgno, uint64_t pages, const uint8_t *data)
{
	struct lazy_run *last = task->count ? &task->runs[task->count - 1] : NULL;
	if (last && last->pgno + last->pages == pgno &&
	    (data ? last->data && last->data + last->pages * PAGE_BYTES == data : !last->data)) {
		last->pages += pages;
		return 0;
	}
	if (task->count == task->room) {
		size_t room = task->room ? task->room * 2 : 64;
		struct lazy_run *larger = reallocarray(task->runs, room, sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		task->runs = larger;
		task->room = room;
	}
	task->runs[task->count++] = (struct lazy_run){ pgno, pages, data };
	return 0;
}

static int load_task(struct lazy_task *task, int images_fd, lazy_add add, void *context, struct dp_err *err)
{
	char name[64];
	struct image_pagemap map;
	snprintf(name, sizeof(name), "pagemap-%d.img", task->vpid);
	int ret = images_read_pagemap(images_fd, name, &map, err);
	if (ret == -ENOENT)
		return 0; /* a zombie has no memory */
	for (size_t i = 0; !ret && i < map.count; i++)
		if (map.runs[i].flags & PAGEMAP_LAZY)
			ret = add(context, task, &map, &map.runs[i], err);
	image_pagemap_done(&map);
	return ret;
}

int lazy_spaces_load(struct lazy_spaces *spaces, int images_fd, lazy_add add, void *context, struct dp_err *err)
{
	cleanup_free struct image_task *tasks = NULL;
	size_t count;
	*spaces = (struct lazy_spaces){ 0 };
	int ret = images_read_pstree(images_fd, &tasks, &count, err);
	if (ret < 0)
		return ret;
	spaces->tasks = calloc(count, sizeof(*spaces->tasks));
	if (!spaces->tasks)
		return dp_fail(err, ENOMEM, "out of memory");
	spaces->task_count = count;
	for (size_t i = 0; i < count; i++) {
		spaces->tasks[i].vpid = tasks[i].pid;
		ret = load_task(&spaces->tasks[i], images_fd, add, context, err);
		if (ret < 0) {
			if (ret == -ENOMEM)
				dp_fail(err, ENOMEM, "out of memory");
			lazy_spaces_done(spaces);
			return ret;
		}
	}
	return 0;
}

void lazy_spaces_done(struct lazy_spaces *spaces)
{
	for (size_t i = 0; i < spaces->task_count; i++)
		free(spaces->tasks[i].runs);
	for (size_t i = 0; i < spaces->space_count; i++)
		free(spaces->spaces[i].runs);
	free(spaces->tasks);
	free(spaces->spaces);
	*spaces = (struct lazy_spaces){ 0 };
}

/* ---- spaces ---- */

static struct lazy_space *space_at(const struct lazy_spaces *spaces, uint64_t space)
{
	return space < spaces->space_count && spaces->spaces[space].used ? &spaces->spaces[space] : NULL;
}

/* Index of an unused space; takes `runs`. */
static int take_space(struct lazy_spaces *spaces, size_t task, struct moved_run *runs, size_t count, uint64_t *space)
{
	size_t at = 0;
	while (at < spaces->space_count && spaces->spaces[at].used)
		at++;
	if (at == spaces->space_count) {
		size_t more = at ? at * 2 : 16;
		struct lazy_space *larger = runs ? reallocarray(spaces->spaces, more, sizeof(*larger)) : NULL;
		if (!larger) {
			free(runs);
			return -ENOMEM;
		}
		memset(&larger[at], 0, (more - at) * sizeof(*larger));
		spaces->spaces = larger;
		spaces->space_count = more;
	}
	if (!runs)
		return -ENOMEM;
	spaces->spaces[at] = (struct lazy_space){ task, runs, count, true };
	*space = at;
	return 0;
}

int lazy_spaces_open(struct lazy_spaces *spaces, int vpid, uint64_t *space, struct dp_err *err)
{
	for (size_t i = 0; i < spaces->task_count; i++) {
		if (spaces->tasks[i].vpid != vpid)
			continue;
		struct moved_run *all = malloc(sizeof(*all));
		if (all)
			*all = (struct moved_run){ 0, PGNO_END, 0 };
		int ret = take_space(spaces, i, all, 1, space);
		return ret ? dp_fail(err, ENOMEM, "out of memory") : 0;
	}
	return dp_fail(err, ENOENT, "the images have no task %d", vpid);
}

int lazy_spaces_fork(struct lazy_spaces *spaces, uint64_t parent, uint64_t *child)
{
	const struct lazy_space *from = space_at(spaces, parent);
	if (!from)
		return -EINVAL;
	size_t count = from->count, task = from->task;
	struct moved_run *runs = calloc(count ? count : 1, sizeof(*runs));
	if (runs && count)
		memcpy(runs, from->runs, count * sizeof(*runs));
	return take_space(spaces, task, runs, count, child);
}

void lazy_spaces_free(struct lazy_spaces *spaces, uint64_t space)
{
	struct lazy_space *gone = space_at(spaces, space);
	if (!gone)
		return;
	free(gone->runs);
	*gone = (struct lazy_space){ 0 };
}

/* The part of a run within [pgno, end); false where there is none. */
static bool cut(const struct moved_run *run, uint64_t pgno, uint64_t end, struct moved_run *part)
{
	uint64_t from = DP_MAX(run->pgno, pgno), to = DP_MIN(run->pgno + run->pages, end);
	if (from >= to)
		return false;
	*part = (struct moved_run){ from, to - from, run->image_pgno + (from - run->pgno) };
	return true;
}

/* Appends, or lengthens the last run where this one goes on with it. */
static void append(struct moved_run *runs, size_t *count, struct moved_run run)
{
	struct moved_run *last = *count ? &runs[*count - 1] : NULL;
	if (last && last->pgno + last->pages == run.pgno && last->image_pgno + last->pages == run.image_pgno)
		last->pages += run.pages;
	else
		runs[(*count)++] = run;
}

int lazy_spaces_move(struct lazy_spaces *spaces, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages)
{
	struct lazy_space *at = space_at(spaces, space);
	if (!at || from_pgno >= PGNO_END || to_pgno >= PGNO_END || pages > PGNO_END - DP_MAX(from_pgno, to_pgno))
		return -EINVAL;
	uint64_t from_end = from_pgno + pages, to_end = to_pgno + pages;
	/* Every run may lose two pieces from its middle, and may itself be moved. */
	struct moved_run *runs = calloc(at->count * 4 + 1, sizeof(*runs)), part;
	if (!runs)
		return -ENOMEM;
	size_t count = 0;
	uint64_t low_end = DP_MIN(from_pgno, to_pgno), high = DP_MAX(from_end, to_end);
	uint64_t between = from_pgno < to_pgno ? from_end : to_end, between_end = DP_MAX(from_pgno, to_pgno);
	for (size_t i = 0; i < at->count; i++)
		if (cut(&at->runs[i], 0, low_end, &part))
			append(runs, &count, part);
	for (int half = 0; half < 2; half++) {
		bool target = (half == 0) == (to_pgno < from_pgno);
		for (size_t i = 0; target && i < at->count; i++)
			if (cut(&at->runs[i], from_pgno, from_end, &part)) {
				part.pgno = part.pgno - from_pgno + to_pgno;
				append(runs, &count, part);
			}
		for (size_t i = 0; half == 0 && i < at->count; i++)
			if (cut(&at->runs[i], between, between_end, &part))
				append(runs, &count, part);
	}
	for (size_t i = 0; i < at->count; i++)
		if (cut(&at->runs[i], high, PGNO_END, &part))
			append(runs, &count, part);
	free(at->runs);
	at->runs = runs;
	at->count = count;
	return 0;
}

bool lazy_spaces_known(const struct lazy_spaces *spaces, uint64_t space)
{
	return space_at(spaces, space);
}

int lazy_spaces_find(const struct lazy_spaces *spaces, uint64_t space, struct page_range range, struct lazy_piece *piece)
{
	const struct lazy_space *at = space_at(spaces, space);
	if (!at || !range.pages)
		return -EINVAL;
	size_t low = 0, high = at->count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (at->runs[middle].pgno + at->runs[middle].pages <= range.pgno)
			low = middle + 1;
		else
			high = middle;
	}
	struct moved_run moved;
	if (low == at->count || at->runs[low].pgno > range.pgno ||
	    !cut(&at->runs[low], range.pgno, range.pgno + range.pages, &moved))
		return -EINVAL;
	const struct lazy_task *task = &spaces->tasks[at->task];
	low = 0;
	high = task->count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (task->runs[middle].pgno + task->runs[middle].pages <= moved.image_pgno)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == task->count || task->runs[low].pgno > moved.image_pgno)
		return -EINVAL;
	const struct lazy_run *run = &task->runs[low];
	uint64_t skip = moved.image_pgno - run->pgno;
	*piece = (struct lazy_piece){ moved.pgno, DP_MIN(moved.pages, run->pages - skip), moved.image_pgno,
				      run->data ? run->data + skip * PAGE_BYTES : NULL, task };
	return 0;
}
