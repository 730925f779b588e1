/* pull: pages that are still with the frozen source come here, those that somebody waits for first.
 *
 * How it works: an instance of the source's offer, over a link (client/link.h) that connects again whenever it breaks. Each page
 * that is expected has a slot in the landing's store (arriving_store.h); they are asked for in order, so many at a time, and
 * one that is read before goes ahead of them.
 * Invariants: those of arriving_store.h; U1 a page that cannot be had any more ends the process: nothing else can be made of it,
 * and it is seen by who decides (ferry_in.c).
 * Thread rule: the server's thread; the link has one of its own. */
#ifndef DP_MIGRATE_PULL_H
#define DP_MIGRATE_PULL_H

#include <stdint.h>

#include "client/client.h"
#include "pool/slots.h"
#include "store/store.h"

struct pull;

/* Pages pgno.. of the source's space (its number in the instance) become the content of slots. */
struct pull_run {
	uint32_t space;
	uint64_t pgno, pages, first; /* index of its first slot */
};

/* `store` is an arriving store, of which `slots` counts the references; both are borrowed. -ENOMEM. */
int pull_open(struct pull **pull, struct store *store, struct slots *slots, struct dp_err *err);
/* Expects a run of pages; space by label. All before pull_begin, ascending within a label. -ENOMEM. */
int pull_add(struct pull *pull, uint64_t label, uint64_t pgno, const uint64_t *slots, uint64_t pages);
/* Attaches to the offer's snapshot; takes the client, which has said hello, on success. Blocks. */
int pull_begin(struct pull *pull, struct client *client, const struct endpoint *endpoint, const char *snapshot,
	       struct dp_err *err);
/* What has come is taken, more is asked for. Never blocks. Ends the source's instance once all is here. */
void pull_work(struct pull *pull);
/* arriving_fetch, with the pull for context. */
void pull_fetch(void *context, uint64_t slot);
/* For epoll; changes with the connection. -1: nothing is expected from there. */
int pull_fd(const struct pull *pull);
/* Takes NULL. */
void pull_close(struct pull *pull);

#endif
