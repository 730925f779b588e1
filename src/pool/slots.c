#include "pool/slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/base.h"

int slots_init(struct slots *slots, struct store *store)
{
	*slots = (struct slots){ .store = store };
	int result = accounts_init(&slots->accounts);

	return result < 0 ? result : slots_reserve(slots, 4096);
}

void slots_done(struct slots *slots)
{
	slots_flush(slots);
	free(slots->references);
	free(slots->payer);
	slots->references = NULL;
	slots->payer = NULL;
	accounts_done(&slots->accounts);
	if (slots->digests)
		munmap(slots->digests, slots->count * sizeof(*slots->digests));
	slots->digests = NULL;
}

static int reserve_digests(struct slots *slots, uint64_t count)
{
	void *digests = slots->digests ? mremap(slots->digests, slots->count * sizeof(*slots->digests),
						count * sizeof(*slots->digests), MREMAP_MAYMOVE) :
					 mmap(NULL, count * sizeof(*slots->digests), PROT_READ | PROT_WRITE,
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (digests == MAP_FAILED)
		return -ENOMEM;
	slots->digests = digests;
	return 0;
}

int slots_reserve(struct slots *slots, uint64_t end)
{
	if (end <= slots->count)
		return 0;
	/* Whole pages of digests. */
	uint64_t count = (DP_MAX(end, slots->count + slots->count / 2) + 4095) / 4096 * 4096;
	uint32_t *references = reallocarray(slots->references, count, sizeof(*references));

	if (references)
		slots->references = references;
	uint16_t *payer = reallocarray(slots->payer, count, sizeof(*payer));

	if (payer)
		slots->payer = payer;
	if (!references || !payer)
		return -ENOMEM;
	memset(references + slots->count, 0, (count - slots->count) * sizeof(*references));
	if (reserve_digests(slots, count) < 0)
		return -ENOMEM;
	slots->count = count;
	return 0;
}

int slots_alloc(struct slots *slots, uint64_t *list, size_t count)
{
	int result = accounts_check(&slots->accounts, count * PAGE_BYTES);

	if (result < 0)
		return result;
	result = slots->store->ops->alloc(slots->store, list, count);
	if (result == -ENOSPC && slots->free_count) {
		slots_flush(slots);
		result = slots->store->ops->alloc(slots->store, list, count);
	}
	if (result < 0)
		return result;
	for (size_t i = 0; result == 0 && i < count; i++)
		result = slots_reserve(slots, list[i] + 1);
	if (result < 0) {
		slots->store->ops->free(slots->store, list, count);
		return result;
	}
	for (size_t i = 0; i < count; i++) {
		assert(slots->references[list[i]] == 0);
		slots->references[list[i]] = 1;
		slots->payer[list[i]] = slots->accounts.payer;
		slots->digests[list[i]] = (struct page_digest){ 0 };
	}
	accounts_charge(&slots->accounts, slots->accounts.payer, count * PAGE_BYTES);
	return 0;
}

int slots_adopt(struct slots *slots, uint64_t first, uint64_t count)
{
	int result = accounts_check(&slots->accounts, count * PAGE_BYTES);

	if (result == 0)
		result = slots_reserve(slots, first + count);
	if (result < 0)
		return result;
	for (uint64_t slot = first; slot < first + count; slot++) {
		assert(slots->references[slot] == 0);
		slots->references[slot] = 1;
		slots->payer[slot] = slots->accounts.payer;
	}
	accounts_charge(&slots->accounts, slots->accounts.payer, count * PAGE_BYTES);
	return 0;
}

void slots_flush(struct slots *slots)
{
	/* store is NULL while the pool closes: see pool_close. */
	if (slots->free_count && slots->store)
		slots->store->ops->free(slots->store, slots->free, slots->free_count);
	slots->free_count = 0;
}
