/* record: the order in which a tree wants its pages: noted, stored with the snapshot, and replayed by the next one.
 *
 * Noting is a bit and a few numbers in memory that was set up before; a page is noted once, when it is first asked for, be it by
 * a fault or by a guess. What was noted is given to the source some seconds after the tree runs, and once more at its end.
 * A replay fetches in the recorded order from the moment on at which CRIU has put every area in its place: a little at a time
 * once the tree runs, never beyond the budget. With a gate (a FIFO that CRIU's pre-resume action reads) the tree is not resumed
 * before all of it is there.
 * Thread rule: the fault thread. */
#ifndef DP_PAGER_RECORD_H
#define DP_PAGER_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "wire/order.h"

struct space;
struct tree;

struct record {
	bool noting;
	struct order_run *run;      /* [ORDER_RUNS_LIMIT], touched as needed */
	uint32_t runs, stored_runs; /* noted; of them, with the source */
	uint64_t store_ns;          /* when they are given to it; 0: the tree does not run yet */
	bool storing;
	/* replay */
	struct order_run *order;    /* arranged; borrowed */
	size_t order_runs, at;
	uint64_t at_page;           /* so many pages of order[at] have been looked at */
	int gate_fd;                /* -1: none, or open */
	/* trace: for simulations */
	FILE *trace;
	struct record_fault *fault;
	uint32_t faults;
};

void record_init(struct tree *tree);
void record_done(struct tree *tree);
/* Pages of the space are asked for. */
void record_note_pages(struct space *space, uint64_t pgno, uint64_t pages);
/* A fault, for the trace. */
void record_fault(struct space *space, uint64_t pgno);
/* Replays, stores. Returns ns until it wants to go on, answers apart. */
uint64_t record_work(struct tree *tree, uint64_t now_ns);
/* The source's answer to what was stored. */
void record_on_stored(struct tree *tree, int result);
/* The tree has ended: stores what is new. Blocks, not for long. */
void record_end(struct tree *tree);

static inline void record_note(struct space *space, struct record *record, uint64_t pgno, uint64_t pages)
{
	if (record->noting)
		record_note_pages(space, pgno, pages);
}

#endif
