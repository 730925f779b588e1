/* spares: instances that are restored but for their first instruction, and wait to be wanted: namespaces, init, CRIU, pager, the
 * lease in the pool, every area in its place, the recorded order fetched. What is left of a start then is its last step.
 *
 * How it works: a *keeper*, one process a snapshot and set of options, keeps so many of them ready. It listens at
 * ROOT/.spares/KEY.sock; `run` asks it, gets the session of one (its socket to the supervisor, and who it is), and lets it go
 * (restore_go). The keeper makes another a moment later. It ends by itself when none was asked for during its lifetime.
 *
 * Invariants:
 *  S1 a spare ends with whoever holds its session: the keeper, killed in any way, leaves none behind (restore.h);
 *  S2 a spare is handed over once: its session is sent, and closed here;
 *  S3 a spare of a snapshot that was replaced meanwhile is never handed out: the keeper asks the pool at each request;
 *  S4 one keeper a key: it holds a lock on ROOT/.spares/KEY.lock.
 * Thread rule: single-threaded processes (this forks without exec). */
#ifndef DP_RESTORE_SPARES_H
#define DP_RESTORE_SPARES_H

#include "restore/restore.h"

#define SPARES_MOST 64u
#define SPARES_LIFETIME_NS UINT64_C(600000000000)
#define SPARES_KEY_BYTES 17

struct spares_status {
	char key[SPARES_KEY_BYTES]; /* of snapshot and options */
	char snapshot[256], pool[1400], network[256];
	char error[256];    /* of the last one that could not be made; "" */
	pid_t pid;          /* the keeper's */
	unsigned wanted, ready;
	uint64_t taken, missed, failed; /* handed out; asked for while none was ready; not made */
	uint64_t left_ns;   /* until it ends, if nobody asks */
};

/* Can a tree that was made beforehand be what these options ask for? Only one with a network of its own; none that gets the
 * caller's files or pids, or a lease. */
bool spares_fit(const struct restore_options *options);
/* Takes one that waits: `session` is for restore_go. -ENOENT: there is none. Blocks for the keeper's answer, a round trip to the
 * pool among it; at most two seconds. */
int spares_take(const struct restore_options *options, struct restore_session *session);
/* From now on so many are kept, for so long after the last one was taken or this was called. Does not wait for them. -EINVAL:
 * the options do not fit. */
int spares_keep(const struct restore_options *options, unsigned count, uint64_t lifetime_ns, struct dp_err *err);
/* All keepers of a registry; fresh array. Sweeps what killed ones left. */
int spares_list(const char *root, struct spares_status **list, size_t *count, struct dp_err *err);
/* Ends a keeper and its spares; returns when they are gone. -ENOENT. */
int spares_end(const char *root, const char *key, struct dp_err *err);

/* ---- inside (spares.c, spares_keeper.c) ---- */
enum spares_kind { SPARES_TAKE = 1, SPARES_KEEP, SPARES_STATUS, SPARES_END };
#define SPARES_VERSION 1u
struct spares_request {
	uint32_t version, kind;
	uint32_t count;
	uint64_t lifetime_ns;
};
struct spares_reply {
	uint32_t version;
	int32_t result; /* 0 or -errno; of SPARES_TAKE 0 carries the session's socket */
	struct instance instance;
	struct spares_status status;
};
/* Becomes the keeper; never returns. The descriptors are its own; the lock ends with it. */
void spares_keeper_main(const struct restore_options *options, const char *key, int listen_fd, int lock_fd)
	__attribute__((noreturn));
/* ROOT/.spares/KEY.SUFFIX; the directory is made where it is not there. */
const char *spares_path(const char *root, const char *key, const char *suffix, char *buffer, size_t size);
/* All of the options that makes a tree another one, as text; fresh, NULL where memory is out. Its hash is the key. */
char *spares_text(const struct restore_options *options);

#endif
