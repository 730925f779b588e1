/* checkpoint: a running process tree becomes a snapshot in a pool.
 *
 * CRIU freezes the tree and writes the skeleton; the pages go past the disk into the pool (page_receiver, capture). When CRIU
 * has finished its images and the tree is still frozen (post-dump, see criu_dump.h), the snapshot is committed; only then may
 * CRIU kill the tree. So at every moment either the tree lives or the snapshot is in the pool, whatever dies or fills up:
 * C1 a snapshot is visible only when complete (the pool's draft ends with the connection);
 * C2 CRIU is told to finish only after the pool's answer to the commit (of a series of states that leave the tree running: after
 *    its answer to all pages; the rest is sent while the tree runs, and without it there is no new state, but the one before);
 * C3 a failure before that leaves the tree running as it was.
 * An instance that itself runs remote is asked, through its pager's control socket, for the pages that CRIU cannot see.
 * Thread rule: one thread; forks. */
#ifndef DP_CHECKPOINT_CHECKPOINT_H
#define DP_CHECKPOINT_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "checkpoint/precopy.h"
#include "client/client.h"
#include "transport/endpoint.h"

/* What a state is of that is one of a series (commit.h); goes into its meta text. */
struct checkpoint_origin {
	const char *kind, *series, *instance, *name, *lineage;
};

struct recall;
struct runtime_dump;

/* The snapshot is in the pool, and the tree frozen. */
struct checkpoint_held {
	int images_fd, criu_pidfd; /* borrowed */
	const char *command_line;
	uint64_t frozen_at_ns;     /* CLOCK_MONOTONIC */
};

struct checkpoint_options {
	pid_t pid;
	const struct endpoint *endpoint; /* with a name */
	const char *registry;            /* of instances; NULL: the default */
	bool leave_running;
	bool replace; /* --force */
	bool verbose;
	enum client_compress compress; /* of pages on the wire */
	bool progress; /* a line on stderr, at most ten times a second */
	char *const *criu_arguments;
	size_t criu_argument_count;
	const struct checkpoint_origin *origin; /* NULL: an ordinary snapshot */
	/* NULL, or what the state before has (*recall NULL: nothing); replaced by this one's when it succeeds */
	struct recall **recall;
	/* NULL, or pages go ahead of the freeze, where the tree is no instance with a pager of its own; the caller's, who may use
	 * it for the next state of the same tree */
	struct precopy *precopy;
	const struct precopy_limits *precopy_limits; /* NULL: the usual ones */
	/* NULL, or called then, and as long as it blocks the tree stands still. 0: CRIU goes on; -errno: the checkpoint fails,
	 * and the tree runs on. The result is filled in but for the times. */
	int (*hold)(void *context, const struct checkpoint_held *held, struct dp_err *err);
	void *hold_context;
	const struct runtime_dump *runtime; /* who runs CRIU, for a container; NULL: we do */
};

struct checkpoint_result {
	uint64_t tasks;
	uint64_t pages;           /* of the snapshot: stored, inherited and eager */
	uint64_t stored_pages, inherited_pages, eager_pages, zero_pages;
	uint64_t skeleton_bytes;
	struct precopy_totals ahead; /* with precopy */
	uint64_t sent_bytes; /* to the pool, all in all */
	uint64_t frozen_ns; /* the tree stood still */
	uint64_t total_ns;
	uint64_t pool_instance; /* of the pool that is named: the instance that the tree was there; 0: none */
	char instance[64]; /* id of the instance that the tree was, or "" */
	char also[3][1400]; /* further pools, of the instance's mirror, that have the snapshot */
	size_t also_count;
};

/* Blocks until it is done. Errors: -ESRCH no such process, -EINVAL one that cannot be checkpointed (kernel's, ours), -EPERM,
 * -ENOPKG no usable criu, -EEXIST the name is taken, -ENOSPC, -ECANCELED criu gave up (err: its reason and where its log is),
 * those of client_open and of the pool. After any of them the tree runs as before and no snapshot is there. */
int checkpoint_run(const struct checkpoint_options *options, struct checkpoint_result *result, struct dp_err *err);

/* Checks an option meant for criu: -EINVAL where it is one that checkpoint itself needs (images, page server, hooks). */
int checkpoint_check_option(const char *option, struct dp_err *err);

#endif
