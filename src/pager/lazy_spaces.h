/* lazy_spaces: what the two sources that read a CRIU checkpoint have in common: which pages of each task may be asked for, and
 * under which address they were dumped once the process has moved or forked its memory.
 *
 * A task is what the images describe; it never changes. A space is a task seen through a list of moves: sorted, disjoint
 * runs of current page numbers, each with the page number it had in the checkpoint. fork copies the list, mremap edits it.
 *
 * Invariant: LS1 a current page has at most one page of the images. Thread rule: the owner's. */
#ifndef DP_PAGER_LAZY_SPACES_H
#define DP_PAGER_LAZY_SPACES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "wire/page_range.h"

/* Lazy pages of a task that lie one after another. */
struct lazy_run {
	uint64_t pgno, pages;
	const uint8_t *data; /* their content; NULL where a page server has it */
};

struct lazy_task {
	int vpid;
	struct lazy_run *runs; /* ascending, disjoint */
	size_t count, room;
};

struct moved_run {
	uint64_t pgno, pages, image_pgno;
};

struct lazy_space {
	size_t task; /* index */
	struct moved_run *runs;
	size_t count;
	bool used;
};

struct lazy_spaces {
	struct lazy_task *tasks;
	size_t task_count;
	struct lazy_space *spaces;
	size_t space_count;
};

/* Reads the page map of every task in the images' process tree; each lazy run is given to `add`, which appends what it finds
 * (lazy_task_add). -EBADMSG, -ENOENT, -ENOMEM or what `add` returned. */
struct image_run;
struct image_pagemap;
typedef int (*lazy_add)(void *context, struct lazy_task *task, const struct image_pagemap *map, const struct image_run *run,
			struct dp_err *err);
int lazy_spaces_load(struct lazy_spaces *spaces, int images_fd, lazy_add add, void *context, struct dp_err *err);
void lazy_spaces_done(struct lazy_spaces *spaces);
/* 0 or -ENOMEM. Runs must come in ascending order. */
int lazy_task_add(struct lazy_task *task, uint64_t pgno, uint64_t pages, const uint8_t *data);

/* A space of the task with this vpid, nothing moved yet. -ENOENT, -ENOMEM. */
int lazy_spaces_open(struct lazy_spaces *spaces, int vpid, uint64_t *space, struct dp_err *err);
int lazy_spaces_fork(struct lazy_spaces *spaces, uint64_t parent, uint64_t *child);
int lazy_spaces_move(struct lazy_spaces *spaces, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages);
void lazy_spaces_free(struct lazy_spaces *spaces, uint64_t space);
/* false: it was freed. */
bool lazy_spaces_known(const struct lazy_spaces *spaces, uint64_t space);

struct lazy_piece {
	uint64_t pgno, pages;  /* current addresses */
	uint64_t image_pgno;   /* in the checkpoint */
	const uint8_t *data;   /* NULL with a page server */
	const struct lazy_task *task;
};
/* The piece at the start of the range, as long as it is one run in the images. -EINVAL: the first page is none of the lazy
 * ones. */
int lazy_spaces_find(const struct lazy_spaces *spaces, uint64_t space, struct page_range range, struct lazy_piece *piece);

#endif
