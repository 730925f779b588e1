#include "migrate/arriving_store.h"

#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "store/over.h"

struct arriving_store {
	struct store_over over; /* where all slots are */
	arriving_fetch *fetch;
	void *context;
	uint64_t *expected; /* a bit for each slot */
	uint64_t words, left;
};

static struct arriving_store *arriving_of(const struct store *store)
{
	return (struct arriving_store *)(uintptr_t)store;
}

bool arriving_store_expects(const struct store *store, uint64_t slot)
{
	const struct arriving_store *arriving = arriving_of(store);

	return slot / 64 < arriving->words && arriving->expected[slot / 64] >> slot % 64 & 1;
}

static void forget(struct arriving_store *arriving, uint64_t slot)
{
	if (!arriving_store_expects(&arriving->over.store, slot))
		return;
	arriving->expected[slot / 64] &= ~(UINT64_C(1) << slot % 64);
	arriving->left--;
}

static void await(struct arriving_store *arriving, uint64_t slot)
{
	while (arriving_store_expects(&arriving->over.store, slot)) /* A2 */
		arriving->fetch(arriving->context, slot);
}

/* ---- the store's calls ---- */

static int arriving_alloc(struct store *store, uint64_t *slots, size_t count)
{
	struct store *own = store_below(store);

	return own->ops->alloc(own, slots, count);
}

static void arriving_free(struct store *store, const uint64_t *slots, size_t count)
{
	struct arriving_store *arriving = arriving_of(store);

	for (size_t i = 0; i < count; i++)
		forget(arriving, slots[i]);
	arriving->over.own->ops->free(arriving->over.own, slots, count);
}

static int arriving_write(struct store *store, const uint64_t *slots, const void *const *pages, size_t count)
{
	struct arriving_store *arriving = arriving_of(store);

	for (size_t i = 0; i < count; i++)
		forget(arriving, slots[i]);
	return arriving->over.own->ops->write(arriving->over.own, slots, pages, count);
}

static int arriving_read(struct store *store, const uint64_t *slots, void *const *pages, size_t count)
{
	struct arriving_store *arriving = arriving_of(store);

	for (size_t i = 0; i < count; i++)
		await(arriving, slots[i]);
	return arriving->over.own->ops->read(arriving->over.own, slots, pages, count);
}

static const void *arriving_page(struct store *store, uint64_t slot)
{
	struct arriving_store *arriving = arriving_of(store);

	await(arriving, slot);
	return arriving->over.own->ops->page(arriving->over.own, slot);
}

static int arriving_sync(struct store *store)
{
	return 0;
}

static void arriving_close(struct store *store)
{
	struct arriving_store *arriving = arriving_of(store);

	store_close(arriving->over.own);
	free(arriving->expected);
	free(arriving);
}

static const struct store_ops arriving_ops = {
	.name = "arriving",
	.alloc = arriving_alloc,
	.free = arriving_free,
	.write = arriving_write,
	.read = arriving_read,
	.page = arriving_page,
	.sync = arriving_sync,
	.blob_put = store_over_blob_put,
	.blob_get = store_over_blob_get,
	.blob_list = store_over_blob_list,
	.blob_delete = store_over_blob_delete,
	.adopt = store_over_adopt,
	.capacity = store_over_capacity,
	.close = arriving_close,
};

/* ---- making it ---- */

int arriving_store_open(struct store **store, arriving_fetch *fetch, void *context, struct dp_err *err)
{
	struct arriving_store *arriving = calloc(1, sizeof(*arriving));

	if (!arriving)
		return dp_fail_errno(err, ENOMEM, "open the store of pages that arrive");
	int result = store_open(&arriving->over.own, "memory:", true, err);

	if (result < 0) {
		free(arriving);
		return result;
	}
	arriving->over.store = (struct store){ .ops = &arriving_ops };
	arriving->fetch = fetch;
	arriving->context = context;
	*store = &arriving->over.store;
	return 0;
}

int arriving_store_expect(struct store *store, const uint64_t *slots, size_t count)
{
	struct arriving_store *arriving = arriving_of(store);
	uint64_t words = arriving->words;

	for (size_t i = 0; i < count; i++)
		words = DP_MAX(words, slots[i] / 64 + 1);
	if (words > arriving->words) {
		words = DP_MAX(words, arriving->words * 2);
		uint64_t *wider = reallocarray(arriving->expected, words, sizeof(*wider));

		if (!wider)
			return -ENOMEM;
		memset(wider + arriving->words, 0, (words - arriving->words) * sizeof(*wider));
		arriving->expected = wider;
		arriving->words = words;
	}
	for (size_t i = 0; i < count; i++)
		if (!arriving_store_expects(store, slots[i])) {
			arriving->expected[slots[i] / 64] |= UINT64_C(1) << slots[i] % 64;
			arriving->left++;
		}
	return 0;
}

int arriving_store_take(struct store *store, uint64_t slot, const void *page)
{
	static const uint8_t zeros[PAGE_BYTES];
	struct arriving_store *arriving = arriving_of(store);
	const void *content = page ? page : zeros;

	if (!arriving_store_expects(store, slot))
		return 0;
	int result = arriving->over.own->ops->write(arriving->over.own, &slot, &content, 1);

	if (result == 0)
		forget(arriving, slot);
	return result;
}

uint64_t arriving_store_left(const struct store *store)
{
	return arriving_of(store)->left;
}
