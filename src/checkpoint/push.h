/* push: sends the changed pages of a running instance to its pool ahead of a commit, so that few are left when the tree stands
 * still.
 *
 * How it works: pager/propagate.h. Pages are read from the running process, compared by hash with what the pager says the pool
 * has, and handed to the pager where they differ. A page that changes again before the freeze travels again with the commit;
 * nothing is lost by that. Windows are doubled while that makes a page a fifth cheaper: so they are no longer than the way is
 * long, and a fault's request never waits long behind one.
 * Thread rule: one thread. Blocks. */
#ifndef DP_CHECKPOINT_PUSH_H
#define DP_CHECKPOINT_PUSH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "pager/propagate.h"

#define PUSH_LEAST_PAGES 16u
#define PUSH_LEVELS 5u /* 16, 32, 64, 128, 256 pages */
struct push_pace {
	uint64_t page_ns[PUSH_LEVELS]; /* what a page costs in a full window of this size, smoothed; 0: not known */
	uint32_t pages;                /* of the next window */
};
void push_pace_init(struct push_pace *pace);
/* A window of so many pages was answered after so long: how large the next one is. Pure. */
void push_pace_note(struct push_pace *pace, uint32_t pages, uint64_t took_ns);

struct push {
	int connection; /* to the pager */
	struct push_window *window;
	struct push_pace pace;
	uint64_t rate_bytes;  /* a second, at most; 0: no limit */
	uint64_t looked_pages, pushed_pages; /* in all */
};

/* Takes the connection. */
int push_open(struct push *push, int connection, struct dp_err *err);
void push_close(struct push *push);
/* Goes through all local pages once. Returns pages pushed, or -EAGAIN (a checkpoint has the tree frozen), -ENOSPC, or others;
 * -EINTR where
 * *stop (may be NULL) became true or the time was up. */
int64_t push_round(struct push *push, uint64_t until_ns, const volatile bool *stop, struct dp_err *err);

#endif
