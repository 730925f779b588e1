/* source: where the pages that are not local come from, and where changed ones go. Three kinds: a pool (source_pool.c), local
 * CRIU images (source_images.c) and a CRIU page server (source_criu.c). The pager knows only this table of functions.
 *
 * Page calls are asynchronous: the answer comes through `on_pages`/`on_done` from within source_receive, or already from
 * within the call itself (a local source answers at once). They return 0, -EAGAIN (queue full: receive, then again) or an
 * error that ends the pager. Thread rule: the pager's fault thread only. */
#ifndef DP_PAGER_SOURCE_H
#define DP_PAGER_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "client/client.h"

struct source_handler {
	void *context;
	void (*on_pages)(void *context, uint64_t cookie, struct page_range range, const void *data, bool last);
	void (*on_done)(void *context, uint64_t cookie, int result);
	/* Pages that were asked for and that nobody has any more as they were (client.h): like on_pages, without data. */
	void (*on_damaged)(void *context, uint64_t cookie, struct page_range range, bool last);
};

struct source {
	const struct source_ops *ops;
	struct source_handler handler; /* set by the pager before the first call */
	bool writable;                 /* pages may be put, dropped and forked: eviction is possible */
};

/* How it stands with a source that may be lost and found again. */
struct source_health {
	uint64_t waiting_since_ns; /* when the oldest request was made that has no answer yet; 0: none waits */
	uint64_t reconnects;
	unsigned pools, pools_there; /* behind it, and of them reached now */
	uint64_t behind_pages;     /* that one which is back lacks yet */
	const char *why;           /* why one is not reached; "" where all is well. Borrowed */
};

/* What a source may keep in memory that outlives the pager. */
#define SOURCE_SAVED_BYTES (UINT64_C(128) << 20)

/* For a pager that takes over after another's crash (oplog.h): its changes have numbers, from 1 in the order of the calls that
 * were taken. */
struct source_resume {
	uint64_t highest_child;  /* no id up to this one is to be chosen for a forked space */
	/* all changes up to `answered` were answered, those up to `last` were called, or were about to be */
	uint64_t answered, last;
	uint64_t began_ns, patience_ns; /* how long a pool may be waited for */
	int ended_fd;            /* readable when nobody waits for the pages any more; -1: none. Borrowed */
	/* set: the last change that was made, whatever its result. The next call is number applied + 1 */
	uint64_t applied;
};

struct source_ops {
	/* The space of the task with this vpid, or -ENOENT. */
	int (*find_space)(struct source *source, int vpid, uint64_t *space, struct dp_err *err);
	int (*get)(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count,
		   uint64_t cookie);
	int (*put)(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
		   size_t data_count, uint64_t cookie);
	int (*drop)(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie);
	int (*move)(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie);
	/* *child: the id that the new space must have, or 0: the source chooses and says. */
	int (*fork)(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie);
	int (*space_free)(struct source *source, uint64_t space, uint64_t cookie);
	/* Before the first call: SOURCE_SAVED_BYTES of memory that outlives the pager, page-aligned, borrowed: all zero, or as
	 * the source of a dead pager left it, and then resume is called next. NULL: it needs none. */
	void (*keep)(struct source *source, void *memory);
	/* Says which of the dead pager's changes (put, drop, move, fork, space_free) were made; what it sent and is not among
	 * those is never made.
	 * May block, by source_resume_wait. NULL: this source cannot; the tree is killed then when its pager dies. */
	int (*resume)(struct source *source, struct source_resume *resume);
	/* Keeps the order in which pages were wanted with the snapshot; labels are vpids. NULL: this source cannot. */
	int (*order_put)(struct source *source, const struct order_run *runs, size_t count, uint64_t cookie);
	int (*receive)(struct source *source); /* handler calls made, or the error that ended the source */
	/* What is due by the clock; ns until it wants to be called again. NULL: nothing ever is. */
	uint64_t (*work)(struct source *source);
	/* NULL: it is never lost without ending. */
	void (*health)(const struct source *source, struct source_health *health);
	/* for epoll, or -1 where every answer is immediate; another one after a connection was lost or made */
	int (*fd)(const struct source *source);
	bool (*wants_write)(const struct source *source);
	void (*bytes)(const struct source *source, uint64_t *in, uint64_t *out);
	void (*free)(struct source *source);
};

/* A moment's wait for these events of a descriptor, while a source resumes. 0, -ETIMEDOUT when patience is at its end, -ESRCH
 * when nobody waits any more. */
int source_resume_wait(const struct source_resume *resume, int fd, short events);

#endif
