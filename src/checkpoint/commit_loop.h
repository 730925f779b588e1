/* commit_loop: one commit an interval, until the tree has ended or the caller stops it. From one freeze to the next an interval
 * passes, so a crash loses at most the interval and the time that the commit itself takes until it is whole. Pages are pushed
 * ahead shortly before.
 * A commit that fails is tried again an interval later (at once where nothing is there yet would only make a bad situation
 * worse).
 * Thread rule: one thread. */
#ifndef DP_CHECKPOINT_COMMIT_LOOP_H
#define DP_CHECKPOINT_COMMIT_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "checkpoint/commit.h"

struct commit_loop {
	struct committer *committer;
	uint64_t interval_ns;
	const volatile bool *stop; /* set by a signal handler; its signals must interrupt poll */
	/* After each: result where ret is 0, else err. */
	void (*on_commit)(void *context, int ret, const struct commit_result *result, const struct dp_err *err);
	void *context;
};

/* Returns 0 when the tree has ended, 1 when it was stopped. */
int commit_loop_run(const struct commit_loop *loop);

/* When pushing ahead begins: before `due_ns` by what it took last and half of it, at most half an interval. Pure. */
uint64_t commit_push_at_ns(uint64_t due_ns, uint64_t interval_ns, uint64_t last_push_ns);

#endif
