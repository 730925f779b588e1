/* oplog: a source in front of another that remembers, in memory which outlives the pager, every change that it was told to make
 * and that the source has not acknowledged: so that a pager which takes over can have made what was not.
 *
 * How it works: changes (put, drop, move, fork, space_free) are numbered from 1 in the order of the calls. A record of each is
 * written before the call goes on, and counts from the store of `head` on; it may go when the source has answered. Content is not
 * kept here: of a put it is known in which slots of staging the pages lie, and staging keeps a page until its put was answered.
 * After a crash the source tells the number of the last change that it has applied (resume); oplog_replay makes it do the later
 * ones, in order.
 *
 * Invariants: O1 a record is there before the source can have seen the change, and until its answer was seen. O2 the source's
 * numbers and these are the same: a call that fails takes its number back. Thread rule: the pager's fault thread. */
#ifndef DP_PAGER_OPLOG_H
#define DP_PAGER_OPLOG_H

#include "pager/source.h"

#ifdef DP_FUZZ /* more of them would be cleared for each input than are ever filled */
#define OPLOG_RECORDS 8u
#define OPLOG_PAGES 8u
#else
#define OPLOG_RECORDS 256u
#define OPLOG_PAGES 256u /* of one put; ranges of one drop */
#endif

struct op_page {
	uint64_t pgno;
	uint64_t slot; /* put: of staging; drop: pages of the range */
};

#define OP_NOT_STAGED UINT64_MAX

enum op_kind { OP_PUT = 1, OP_DROP, OP_MOVE, OP_FORK, OP_FREE };

struct op {
	uint32_t kind, count;  /* entries of page[] */
	uint32_t space_number; /* put: whose staging */
	bool answered;
	uint64_t cookie, space, event; /* event: what the pager was following (recover.h), 0 nothing */
	uint64_t from, to, pages;      /* move; fork: to is the child, 0 not chosen yet */
	struct op_page page[OPLOG_PAGES];
};

/* In shared memory, zero at first. */
struct oplog_area {
	uint64_t head, tail; /* records tail + 1 .. head are there; record n is op[n % OPLOG_RECORDS] */
	uint64_t event;      /* noted with each record */
	/* id that the source ever gave to a forked space, but for one that it may have given at the crash */
	uint64_t highest_child;
	struct op op[OPLOG_RECORDS];
};

/* Wraps `inner` (borrowed, writable). -ENOMEM. */
int oplog_new(struct source **source, struct source *inner, struct oplog_area *area);
/* Where the pages of the next put lie; borrowed until it was made. */
void oplog_next_put(struct source *source, uint32_t space_number, const struct op_page *pages, size_t count);
/* The record that was written last, if it is of this kind and event. */
const struct op *oplog_last(const struct oplog_area *area, enum op_kind kind, uint64_t event);
/* Can a pager have left this? To be asked before anything else is made of a dead one's. */
bool oplog_sound(const struct oplog_area *area);
/* Reads the pages of a put from staging again: to `data`, one after another. 0, -ENOENT: the memory they lay in has gone, and
 * nobody needs them; or an error. */
typedef int oplog_read_put(void *context, const struct op *op, void *data);
/* Has the source make what it has not made, and waits for its answers; patience_ns, ended_fd: as source_resume. `failed` is asked
 * about a put that the source refused: 0 if that does not matter. 0, or -errno: -ENOSYS where the source cannot be taken over,
 * -ETIMEDOUT, -ESRCH. */
int oplog_replay(struct source *source, oplog_read_put *read_put, int (*failed)(void *context, const struct op *op, int result),
		 void *context, uint64_t patience_ns, int ended_fd, uint64_t *replayed);

#endif
