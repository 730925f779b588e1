/* commit: states of a running tree that can be gone back to, one after the other, each whole or not there at all.
 *
 * A commit of an instance is: changed pages pushed ahead (push.h), then a checkpoint that leaves the tree running (checkpoint.h),
 * which shares what the pool has and sends what changed since; then older states of the same series beyond `keep` are removed. So
 * the tree stands still for CRIU's own work and for the pages that changed within the last moment, and only changed pages travel.
 * A plain process has no pager to push through: what it writes is watched from commit to commit, goes ahead while it runs, and
 * the rest is inherited from the state before (precopy.h); where the kernel cannot tell what was written, its checkpoints share
 * what the state before has, by hash (capture.h).
 *
 * Names: `commits/INSTANCE/REPO:TAG.TIME` and `protected/INSTANCE/REPO:TAG.TIME`, or `NAME:TIME` where the user gave NAME; TIME
 * in ms since
 * 1970. What a state is of is in its meta text (`commit`: kind, series, instance, name, lineage); commit_find goes by that.
 * Invariants: M1 a failed commit changes neither the tree nor the newest complete state; M2 the newest state of a series is never
 * removed.
 * Thread rule: one thread; forks. One commit of an instance at a time, whoever asks (a lock beside the note, see commits.h). */
#ifndef DP_CHECKPOINT_COMMIT_H
#define DP_CHECKPOINT_COMMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "checkpoint/checkpoint.h"
#include "instance/commits.h"

struct commit_options {
	const char *registry; /* instance_root() */
	const char *instance; /* as instance_find takes it; NULL: */
	pid_t pid;            /* a plain process */
	const char *to;       /* NULL, or the series: REPO (instance), POOL/REPO (plain process) */
	bool protect;         /* kind: protect or commit */
	unsigned keep;        /* states of the series that stay, at least 1 */
	uint64_t rate_bytes;  /* of pushing, a second; 0: no limit */
	uint64_t interval_ns; /* noted; 0: on request */
	bool verbose;
	char *const *criu_arguments; /* further ones for `criu dump` */
	size_t criu_argument_count;
};

struct commit_result {
	char snapshot[256];
	uint64_t unix_ns;      /* the tree stood still at this time, roughly */
	uint64_t pages;        /* of the state */
	uint64_t pushed_pages; /* travelled ahead, while the tree ran */
	uint64_t sent_pages;   /* travelled while it stood still, or had no pager */
	uint64_t bytes;        /* that travelled in all, with the skeleton */
	uint64_t frozen_ns, total_ns;
	uint64_t removed;      /* older states that went */
};

struct committer;

int commit_open(struct committer **committer, const struct commit_options *options, struct dp_err *err);
void commit_close(struct committer *committer);
/* Pushes what changed, so that a commit that follows soon is short. Stops early where *stop becomes true. Never fails the
 * commit. */
void commit_push_ahead(struct committer *committer, const volatile bool *stop);
/* Errors: of checkpoint_run, of the pool. After any the tree runs as before and the newest state is the one it was. */
int commit_take(struct committer *committer, struct commit_result *result, struct dp_err *err);
/* pidfd of the tree's first process, borrowed: readable when there is nothing more to commit. */
int commit_target_fd(const struct committer *committer);
const struct commit_note *commit_last(const struct committer *committer);

/* The newest state in a pool whose series, instance, name or lineage is `key`; only those of `protect` where asked. -ENOENT. */
int commit_find(const struct endpoint *pool, const char *key, bool protect_only, char snapshot[static 256], struct dp_err *err);
/* Takes the lease of the instance of which `pool->name` is a state (commit_find), so that whoever runs it can write nothing from
 * now on, and ends.
 * One that has ended is no error. -EINVAL where no instance is known, -EACCES and others of the pool. */
int commit_fence(const struct endpoint *pool, struct dp_err *err);

/* ---- pure, for tests ---- */

/* The series of an instance's own states, and the snapshot that an instance of `snapshot` began with. */
void commit_default_series(const char *kind, const char *instance, char *series, size_t size);
void commit_lineage(const char *snapshot, char *lineage, size_t size);
/* Name of a state: fits a pool's limits whatever the parts are. */
void commit_name(const char *series, const char *lineage, bool own_series, uint64_t unix_ms, char name[static 256]);
struct commit_state {
	char snapshot[256], kind[16], series[256], instance[64], name[64], lineage[256];
	uint64_t created_unix_ns;
	uint64_t pool_instance; /* that it is a state of, in its pool; 0: not known */
};
/* Reads a snapshot's meta text. false: it is no commit. */
bool commit_read_meta(const char *meta_json, struct commit_state *state);
bool commit_fits(const struct commit_state *state, const char *key, bool protect_only);

#endif
