/* pool/slots: how often each page slot of a store is referred to, and the digest of what is in it. Page maps and answers that
 * wait to be sent hold references; a slot that loses its last one is given back to the store, in batches.
 * Each slot is charged to whoever pays when it gets its first reference (account.h).
 * A digest goes with the content, not with the place in a map: however many snapshots and instances share a page, it costs 16
 * bytes once. All zero: not known (a store of an earlier version). Thread rule: one thread. */
#ifndef DP_POOL_SLOTS_H
#define DP_POOL_SLOTS_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "base/base.h"
#include "pool/account.h"
#include "store/store.h"

#define SLOTS_FREE_BATCH 512

struct slots {
	struct store *store; /* borrowed */
	uint32_t *references;
	uint16_t *payer; /* of each slot */
	struct page_digest *digests; /* mapped, so that what is not used is not touched */
	uint64_t count; /* length of references, payer and digests */
	struct accounts accounts;
	size_t free_count;
	uint64_t free[SLOTS_FREE_BATCH]; /* to be given back */
};

int slots_init(struct slots *slots, struct store *store);
void slots_done(struct slots *slots);
/* Fresh slots with one reference each, held by the caller. -ENOSPC, -EDQUOT, -ENOMEM. */
int slots_alloc(struct slots *slots, uint64_t *list, size_t count);
/* Slots that the store has and nobody refers to: one reference each, held by the caller. -EDQUOT, -ENOMEM. */
int slots_adopt(struct slots *slots, uint64_t first, uint64_t count);
/* Makes room for slots below end, as found in a manifest. -ENOMEM. */
int slots_reserve(struct slots *slots, uint64_t end);
/* Gives freed slots back to the store. Called at the end of each request. */
void slots_flush(struct slots *slots);

static inline void slots_take(struct slots *slots, uint64_t slot)
{
	assert(slot < slots->count && slots->references[slot] < UINT32_MAX);
	if (slots->references[slot]++ == 0) { /* found in a manifest */
		slots->payer[slot] = slots->accounts.payer;
		accounts_charge(&slots->accounts, slots->payer[slot], PAGE_BYTES);
	}
}

static inline void slots_release(struct slots *slots, uint64_t slot)
{
	assert(slot < slots->count && slots->references[slot] > 0);
	if (--slots->references[slot] > 0)
		return;
	accounts_refund(&slots->accounts, slots->payer[slot], PAGE_BYTES);
	slots->free[slots->free_count++] = slot;
	if (slots->free_count == SLOTS_FREE_BATCH)
		slots_flush(slots);
}

#endif
