/* landing: a pool at the destination of a migration, in which pages wait that were sent ahead. A process of its own.
 *
 * How it works: it is forked by the ferry in before anything stands still, and serves a pool in its memory at two places: for
 * the source (over the network, as the agents speak), and for the restore here (a socket in the migration's directory). Where all
 * pages go ahead, the source stores a snapshot there as in any pool. Where the last ones stay (hybrid), it leaves a draft;
 * landing_take fetches the skeleton from the source's offer, makes the draft its own, and adds the pages that are still there:
 * their slots have places already, and their content arrives (pull.h) in the background, or when it is asked for.
 * The ferry kills it when every page is in the restored tree's own memory, or the tree is dead. Without a ferry it ends when
 * nobody has been connected for two seconds.
 *
 * Invariants: LA1 each page of the snapshot is in one place: a page that the source says it has and the draft has too is refused;
 * LA2 it ends rather than answer for a page that it cannot have any more (U1).
 * Thread rule: forks without exec, the caller has one thread. */
#ifndef DP_MIGRATE_LANDING_H
#define DP_MIGRATE_LANDING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

/* In the offered snapshot: which of its pages are still there (struct landing_run, one after the other). No image of CRIU's. */
#define LANDING_LEFT_FILE "left-pages"
struct landing_run {
	uint64_t label, pgno, pages; /* ascending within a label */
};

struct landing {
	pid_t pid; /* 0: none */
	int pidfd, control_fd;
	char uri[256]; /* for the source */
};

#define LANDING_NONE (struct landing){ .pidfd = -1, .control_fd = -1 }

/* Starts it. Blocks until it serves. */
struct landing_place {
	const char *listen;      /* for the source, dps://HOST:0 or tcp://HOST:0 */
	const char *socket_path; /* for the restore here */
	const char *identity;    /* of the source (access.h), who alone may use it but for us and root; NULL: whoever is let in */
	bool allow_plaintext;
};
int landing_start(struct landing *landing, const struct landing_place *place, struct dp_err *err);
/* The draft `name` and the snapshot of that name in the pool at `uri` become one, which can be restored from when this
 * returns. Blocks for some round trips. */
int landing_take(struct landing *landing, const char *uri, const char *name, struct dp_err *err);
bool landing_has_ended(const struct landing *landing);
/* Kills it, if there is one. */
void landing_end(struct landing *landing);

#endif
