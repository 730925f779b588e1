#include "checkpoint/commit_loop.h"

#include <errno.h>
#include <poll.h>

#include "base/base.h"

uint64_t commit_push_at_ns(uint64_t due_ns, uint64_t interval_ns, uint64_t last_push_ns)
{
	uint64_t before = DP_MIN(last_push_ns + last_push_ns / 2, interval_ns / 2);
	return due_ns > before ? due_ns - before : 0;
}

/* Waits for a point in time. false: the tree has ended, or it is to stop. */
static bool wait_until(const struct commit_loop *loop, uint64_t ns)
{
	struct pollfd ended = { .fd = commit_target_fd(loop->committer), .events = POLLIN };
	for (uint64_t now = clock_now_ns(); !*loop->stop; now = clock_now_ns()) {
		/* a signal may come just before poll */
		int timeout_ms = now < ns ? (int)DP_MIN((ns - now) / 1000000u + 1, 1000u) : 0;
		int ready = poll(&ended, 1, timeout_ms);
		if (ready > 0)
			return false;
		if (now >= ns)
			return true;
	}
	return false;
}

static bool has_ended(const struct commit_loop *loop)
{
	struct pollfd ended = { .fd = commit_target_fd(loop->committer), .events = POLLIN };
	return poll(&ended, 1, 0) > 0;
}

int commit_loop_run(const struct commit_loop *loop)
{
	uint64_t due_ns = clock_now_ns(), push_ns = 0;
	for (;;) {
		if (push_ns && wait_until(loop, commit_push_at_ns(due_ns, loop->interval_ns, push_ns))) {
			uint64_t before = clock_now_ns();
			commit_push_ahead(loop->committer, loop->stop);
			push_ns = clock_now_ns() - before;
		}
		if (!wait_until(loop, due_ns))
			return has_ended(loop) ? 0 : 1;
		struct commit_result result;
		struct dp_err err = { "" };
		uint64_t before = clock_now_ns();
		int ret = commit_take(loop->committer, &result, &err);
		if (ret && has_ended(loop))
			return 0;
		loop->on_commit(loop->context, ret, &result, &err);
		if (!push_ns)
			push_ns = DP_MAX(clock_now_ns() - before, 1u); /* the first pushes everything: an upper bound */
		due_ns = DP_MAX(due_ns + loop->interval_ns, before + loop->interval_ns / 2);
	}
}
