/* arriving_store: a pool's store in this process's memory, of which some slots have a place already, and their content is still
 * to come. Whoever reads one of those waits until it is here, so nobody ever sees what was in that memory before.
 *
 * Invariants: A1 what a slot is expected to hold is taken once, and only as long as nobody has written or freed the slot: content
 * that comes later than that is dropped; A2 a slot that is expected is read only after it was taken.
 * Thread rule: the server's thread. */
#ifndef DP_MIGRATE_ARRIVING_STORE_H
#define DP_MIGRATE_ARRIVING_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/* Brings the slot here: returns after arriving_store_take was called for it. It may block, and cannot fail (a process that has
 * lost what it expects has nothing left to serve, and ends). */
typedef void arriving_fetch(void *context, uint64_t slot);

/* -ENOMEM. */
int arriving_store_open(struct store **store, arriving_fetch *fetch, void *context, struct dp_err *err);
/* Slots that are allocated, and hold nothing yet. -ENOMEM: none of them is expected. */
int arriving_store_expect(struct store *store, const uint64_t *slots, size_t count);
bool arriving_store_expects(const struct store *store, uint64_t slot);
/* The content of an expected slot; of any other it is dropped (A1). page NULL: zeros. */
int arriving_store_take(struct store *store, uint64_t slot, const void *page);
/* So many are still to come. */
uint64_t arriving_store_left(const struct store *store);

#endif
