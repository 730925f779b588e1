/* tracker: which pages a live process tree writes, so that all its memory can be sent while it runs and only the rest when it
 * stands still. For processes without a pager of ours (an instance's pages are known to its pager; push.h).
 *
 * How it works: each process gets a userfaultfd of the kind of sys/written.h, which lies with us. A round looks at each
 * process: new ones are taken up, areas that are new are registered, and of each area the runs of present pages are told, those
 * written since the last round as such, and protected in the same step. When the tree is frozen, tracker_frozen and
 * tracker_scan tell the same without protecting; nothing changes then.
 * Invariants:
 *  D1, D2 (sys/written.h): our death changes nothing in the tree;
 *  D3 a run that is told as not written has not changed since it was last told, in this process and at this address. All else
 *     is told as written: areas that are not registered (new, moved, remapped, another memory since an execve), processes that
 *     are new (forked) or cannot be tracked (why, below). So who reads each page after it was told as written, and again
 *     whenever it is told so, has in the end what the process has;
 *  D4 nothing that is told as not written was ever written unseen: a process that may do so (sys/unseen.h) is told as written
 *     always from the moment that it is found, which is looked for between protecting pages and telling of them.
 *  D5 one tracker watches a process: what one protects, another would take for not written. A lock on /proc/PID keeps those of
 *     ours apart, and a process of which somebody else has registered any area is told as written always.
 * While it is watched, a program that registers a userfaultfd of its own for the same memory gets EBUSY.
 * Costs, in processor time (2-core virtual machine, Linux 6.18, pages of 4 KiB): a thread of each process stopped for some 100 to
 * 200 us at the beginning; the first round 14 ms a GiB, one that finds little 1 ms, 0.1 us for each written page; a first write
 * to a page 1 to 2 us; letting go 25 to 40 ms a GiB. Huge pages are 50 times cheaper, and are split when they are written.
 * Thread rule: one thread; forks. */
#ifndef DP_CHECKPOINT_TRACKER_H
#define DP_CHECKPOINT_TRACKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "sys/written.h"

struct tracker;

struct tracked {
	pid_t pid;
	uint32_t vpid;     /* as CRIU's images call it */
	uint64_t start_time;
	int uffd;          /* -1: all its pages count as written always */
	int lock_fd;       /* with uffd: nobody else of ours watches it (D5) */
	bool unseen;       /* it will never be tracked: it may write unseen */
	char why[160];     /* it is not tracked, or "" */
	bool seen;         /* in the last listing of the tree */
	void *data;        /* the caller's; see tracker_close */
};

struct tracker_sink {
	void *context;
	/* Runs of one process, ascending, at most TRACKER_BATCH_PAGES pages. Pages told as written are to be read now. */
	int (*runs)(void *context, struct tracked *process, const struct written_run *runs, size_t count, struct dp_err *err);
};
#define TRACKER_BATCH_PAGES 8192u
#define TRACKER_BATCH_RUNS 1024u

/* -EOPNOTSUPP: this kernel cannot (sys/written.h). `release` (may be NULL) gets the data of each process that is forgotten. */
int tracker_open(struct tracker **tracker, pid_t root, void (*release)(void *data), struct dp_err *err);
/* Lets go of everything: the tree is as if nothing had been. Takes NULL. */
void tracker_close(struct tracker *tracker);
/* One round over the whole tree. Errors of the sink as they are; -ESRCH: the root has ended. */
int tracker_round(struct tracker *tracker, const struct tracker_sink *sink, struct dp_err *err);
/* How many pages of the processes that are tracked have been written since the last round, roughly: nothing is protected. */
uint64_t tracker_written_pages(struct tracker *tracker);
/* The tree stands still: lists its processes anew. Those forked since the last round are there with uffd -1 and data NULL. */
int tracker_frozen(struct tracker *tracker, struct dp_err *err);
/* NULL: there is no such process. */
struct tracked *tracker_find(struct tracker *tracker, uint32_t vpid);
/* As written_scan, of a process that stands still (pagemap_fd: opened by tracker_open_pagemap since it does); protect: what can
 * be is protected when it is told, so that the next round tells of what is written from now on. */
int tracker_open_pagemap(const struct tracked *process);
ssize_t tracker_scan(const struct tracked *process, int pagemap_fd, uint64_t *start, uint64_t end, bool protect,
		     struct written_run *runs, size_t room);
/* The processes, for looking at. */
struct tracked *tracker_next(struct tracker *tracker, const struct tracked *before);

#endif
