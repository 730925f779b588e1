/* offer_ahead: an offer whose pages do not stay (or, with rest_stays, only the last of them): they go to a pool near the
 * destination, nearly all while the tree runs
 * (checkpoint/precopy.h), the rest while it is frozen; the snapshot is there, not here, and nothing is asked for from here. So
 * what is restored depends on that pool alone, and the source can be released as soon as the copy runs.
 * Invariants: those of precopy.h and offer.h; OA1 the snapshot is in the pool, whole, before the offer is made; OA2 it goes again
 * where the tree runs on. A live instance keeps its pages whether the snapshot is there or not.
 * Thread rule: the offerer's one thread. */
#ifndef DP_MIGRATE_OFFER_AHEAD_H
#define DP_MIGRATE_OFFER_AHEAD_H

#include "checkpoint/precopy.h"
#include "checkpoint/skeleton.h"
#include "client/client.h"
#include "migrate/frozen_tree.h"
#include "migrate/offer.h"

struct offer_ahead {
	struct client *client; /* NULL: this is an offer as others are */
	struct endpoint endpoint;
	struct precopy *precopy;
	uint64_t draft;
	bool begun, published, rest_stays;
};

/* The rounds, while the tree runs; `limits` are those of the options, and who hears of rounds; until *stop. Blocks. Errors: of
 * endpoints, of the pool, of precopy_rounds. */
int offer_ahead_start(struct offer_ahead *ahead, const struct offer_options *options, const struct precopy_limits *limits,
		      const volatile bool *stop, struct dp_err *err);
/* For frozen_tree_scan: the pages of one task, those that are left sent. `context` is the offer_ahead. */
int offer_ahead_pages(void *context, struct frozen_task *task, struct dp_err *err);
/* With rest_stays, in place of offer_ahead_publish: nothing of what is in the draft is old, and that is all that it has. */
int offer_ahead_leave(struct offer_ahead *ahead, const struct frozen_tree *tree, struct offer_facts *offer, struct dp_err *err);
/* Everything else, and the snapshot is there. */
int offer_ahead_publish(struct offer_ahead *ahead, const struct frozen_tree *tree, struct skeleton_facts *facts,
			struct offer_facts *offer, struct dp_err *err);
/* The snapshot's name is free again: the tree runs on, or an instance lives that has its pages. */
void offer_ahead_remove(struct offer_ahead *ahead);
void offer_ahead_done(struct offer_ahead *ahead);

#endif
