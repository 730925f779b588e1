/* frozen_tree: what is known of a tree that CRIU froze under the preloaded library: which pages stayed in its processes, how they
 * are read, and the page maps of the thin snapshot.
 *
 * How it works: the library's records (checkpoint/hide_record.h) say what was not shown to CRIU; all else came over CRIU's page
 * stream, which frozen_tree_sink puts into pages images beside CRIU's other images: eager, whatever it is marked. What was
 * hidden and is present (PAGEMAP_SCAN) becomes lazy runs.
 * Invariant: a page that was hidden lies in an area which a restore can register lazily, by CRIU's own images; else the tree is
 * not offered. Thread rule: one thread. */
#ifndef DP_MIGRATE_FROZEN_TREE_H
#define DP_MIGRATE_FROZEN_TREE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "checkpoint/inherit.h"
#include "checkpoint/page_receiver.h"
#include "image/images.h"

struct frozen_task {
	int vpid;
	int mem_fd, pagemap_fd, smaps_fd; /* owned; -1: taken, or closed */
	struct page_list hidden; /* ascending, disjoint, once frozen_tree_scan was called */
	struct page_list pages;  /* those of `hidden` that hold something */
	struct page_list left;   /* those of `pages` that are nowhere else; filled where only they stay */
};

struct frozen_known { /* a task whose areas' flags were known before */
	int vpid, fd; /* owned: what CRIU read instead of smaps */
};

struct frozen_map { /* one page map of the stream */
	bool shared_memory;
	uint32_t id; /* vpid or shmid */
	struct image_pagemap thin;
	size_t room;
	uint64_t file_pages;
};

struct frozen_tree {
	int images_fd; /* borrowed */
	struct page_sink sink; /* for page_receiver_run; its context is the tree, which must not move */
	struct frozen_task *tasks;
	size_t task_count;
	struct frozen_known *known;
	size_t known_count;
	struct frozen_map *maps;
	size_t map_count;
	int pages_fd;
	uint64_t stopped_at_ns, let_go_at_ns; /* CLOCK_MONOTONIC */
	bool all_let_go;
	uint64_t pages, eager_pages;
};

void frozen_tree_init(struct frozen_tree *tree, int images_fd);
void frozen_tree_done(struct frozen_tree *tree);
/* What the library recorded, once CRIU has written its images. -EIO, -ENOMEM. */
int frozen_tree_collect(struct frozen_tree *tree, int records_fd, int fds_fd, struct dp_err *err);
/* Before that, of a tree that is to go on, once CRIU was told so: waits until all of it was let go, its shadows made. criu_pidfd:
 * to hear of its end. -EAGAIN (it may have no further process), -ECANCELED, -EIO, -ENOMEM. */
int frozen_tree_let_go(struct frozen_tree *tree, int fds_fd, int criu_pidfd, struct dp_err *err);
/* Finds the pages (by `find`, which fills task->pages from task->hidden, or by itself where that is NULL) and writes the page
 * maps. -ENOTSUP where something was hidden that a restore would not fetch. */
int frozen_tree_scan(struct frozen_tree *tree, int (*find)(void *context, struct frozen_task *task, struct dp_err *err),
		     void *context, struct dp_err *err);
/* Were the areas' flags that were known before (area_flags.h) still those of the frozen tasks? Looks at every page: 17 ms a
 * gigabyte. For any one thread, once the tree was scanned. shadows: of a tree that went on. 0; -EAGAIN where they were
 * not; else -errno. */
int frozen_tree_prove(const struct frozen_tree *tree, bool shadows, struct dp_err *err);
struct frozen_task *frozen_tree_task(const struct frozen_tree *tree, int vpid);

#endif
