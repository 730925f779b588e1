/* precopy: a tree's pages go to a pool while it runs, so that few are left when it stands still.
 *
 * How it works: the tracker (tracker.h) tells which pages were written. Rounds put them into the spaces of a draft (pages of
 * zeros are dropped there), the first all, each later one what was written since; until little is left, or as much as the time
 * before, or more than the link carries. Then the tree is frozen, CRIU is kept from reading what was sent (hidden.h), and
 * precopy_finish sends the rest, drops what is gone, and says which pages there are. For a series of states the tracker goes
 * on: what the state before has and was not written since is inherited from it in the pool, and not even read.
 * Invariants: PC1 a page of the final list is in the draft's space as it is in the frozen process: it was read and put after it
 * was last told as written (D3), or inherited from a state for which that holds; PC2 a page that could not be read, or whose
 * fate is not known, is not in `sent`, so it is read when the tree stands still, and a failure then fails the checkpoint; PC3
 * after a checkpoint that failed nothing counts as sent; PC4 where the rest is left, the draft has what is in `lazy` and not in
 * `left`, and nothing else: no page is in two places.
 * Thread rule: one thread; forks. */
#ifndef DP_CHECKPOINT_PRECOPY_H
#define DP_CHECKPOINT_PRECOPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "checkpoint/inherit.h"
#include "client/client.h"
#include "image/images.h"

struct precopy;

#define PRECOPY_PAUSE_NS UINT64_C(30000000) /* what the rest may take, if nothing else is asked for */
#define PRECOPY_ROUNDS 16u

struct precopy_limits {
	uint64_t pause_ns;   /* rounds end when the rest is estimated to take no longer; 0: PRECOPY_PAUSE_NS */
	unsigned rounds;     /* at most; 0: PRECOPY_ROUNDS */
	uint64_t rate_bytes; /* a second; 0: no limit */
	uint64_t limit_ns;   /* no round begins later than this; 0: no limit */
	/* NULL, or told after each round: which one, the pages that it sent, and those written meanwhile. It may not fail. */
	void (*on_round)(void *context, unsigned round, uint64_t pages, uint64_t pages_left);
	void *context;
};

struct precopy_totals {
	unsigned rounds;
	uint64_t round_pages[PRECOPY_ROUNDS]; /* sent in each; later ones count with the last */
	uint64_t ahead_pages;     /* sent while the tree ran, each time they were */
	uint64_t inherited_pages; /* of the state before */
	uint64_t frozen_pages;    /* sent while it stood still */
	uint64_t tracked, untracked; /* processes */
	char why[200];            /* one is not tracked, or "" */
};

/* -EOPNOTSUPP: this kernel cannot. */
int precopy_open(struct precopy **precopy, pid_t root, struct dp_err *err);
/* Lets go of the tree. Takes NULL. */
void precopy_close(struct precopy *precopy);
/* A new draft, of which `client` is the owner; both are borrowed until precopy_end. */
int precopy_begin(struct precopy *precopy, struct client *client, uint64_t draft, struct dp_err *err);
/* Rounds, until *stop (may be NULL). Errors of the pool, -ESRCH. */
int precopy_rounds(struct precopy *precopy, const struct precopy_limits *limits, const volatile bool *stop, struct dp_err *err);
/* ---- while the tree stands still ---- */
int precopy_frozen(struct precopy *precopy, struct dp_err *err);
/* The draft's space of this task; made where there is none yet. */
int precopy_space(struct precopy *precopy, uint32_t vpid, uint64_t *space, struct dp_err *err);
/* Of a task: pages in `hidden` (ascending, lazy areas) are those that CRIU did not see; `lazy` gets those that hold something,
 * and they are in the draft after precopy_finish_all. In `kept` are pages that the caller put into the
 * space itself. All other pages are dropped from the space.
 * left: NULL, or nothing is sent any more: those of `lazy` that the draft does not have as they are now are listed there too, and
 * are not in the draft after precopy_finish_all (PC4). */
int precopy_finish(struct precopy *precopy, uint32_t vpid, const struct page_list *hidden, const struct page_list *kept,
		   struct page_list *lazy, struct page_list *left, struct dp_err *err);
/* After the last task: what is left of processes that ended meanwhile goes, and the pool has answered everything. */
int precopy_finish_all(struct precopy *precopy, struct dp_err *err);
/* After it: `name` is what the draft has become, NULL: nothing. */
void precopy_end(struct precopy *precopy, const char *name);
const struct precopy_totals *precopy_totals(const struct precopy *precopy);

#endif
