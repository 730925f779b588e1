#include "migrate/arriving_store.h"

#include <errno.h>
#include <string.h>

#include "base/base.h"

struct arriving_store {
	struct store store; /* first: the functions below cast */
	struct store *own;  /* where all slots are */
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
	if (!arriving_store_expects(&arriving->store, slot))
		return;
	arriving->expected[slot / 64] &= ~(UINT64_C(1) << slot % 64);
	arriving->left--;
}

static void await(struct arriving_store *arriving, uint64_t slot)
{
	while (arriving_store_expects(&arriving->store, slot)) /* A2 */
		arriving->fetch(arriving->context, slot);
}

/* ---- the store's calls ---- */

static int arriving_alloc(struct store *store, uint64_t *slots, size_t count)
{
	struct store *own = arriving_of(store)->own;

	return own->ops->alloc(own, slots, count);
}

static void arriving_free(struct store *store, const uint64_t *slots, size_t count)
{
	struct arriving_store *arriving = arriving_of(store);

	for (size_t i = 0; i < count; i++)
		forget(arriving, slots[i]);
	arriving->own->ops->free(arriving->own, slots, count);
}

static int arriving_write(struct store *store, const uint64_t *slots, const void *const *pages, size_t count)
{
	struct arriving_store *arriving = arriving_of(store);

	for (size_t i = 0; i < count; i++)
		forget(arriving, slots[i]);
	return arriving->own->ops->write(arriving->own, slots, pages, count);
}

static int arriving_read(struct store *store, const uint64_t *slots, void *const *pages, size_t count)
{
	struct arriving_store *arriving = arriving_of(store);

	for (size_t i = 0; i < count; i++)
		await(arriving, slots[i]);
	return arriving->own->ops->read(arriving->own, slots, pages, count);
}

static const void *arriving_page(struct store *store, uint64_t slot)
{
	struct arriving_store *arriving = arriving_of(store);

	await(arriving, slot);
	return arriving->own->ops->page(arriving->own, slot);
}

static int arriving_sync(struct store *store)
{
	return 0;
}

static int arriving_blob_put(struct store *store, const char *name, const void *bytes, uint64_t length)
{
	struct store *own = arriving_of(store)->own;

	return own->ops->blob_put(own, name, bytes, length);
}

static int arriving_blob_get(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit)
{
	struct store *own = arriving_of(store)->own;

	return own->ops->blob_get(own, name, bytes, length, limit);
}

static int arriving_blob_list(struct store *store, store_blob_visit visit, void *context)
{
	struct store *own = arriving_of(store)->own;

	return own->ops->blob_list(own, visit, context);
}

static int arriving_blob_delete(struct store *store, const char *name)
{
	struct store *own = arriving_of(store)->own;

	return own->ops->blob_delete(own, name);
}

static int arriving_adopt(struct store *store, bool (*used)(void *context, uint64_t slot), void *context)
{
	struct store *own = arriving_of(store)->own;

	return own->ops->adopt(own, used, context);
}

static void arriving_capacity(struct store *store, struct store_capacity *capacity)
{
	struct store *own = arriving_of(store)->own;

	own->ops->capacity(own, capacity);
}

static void arriving_close(struct store *store)
{
	struct arriving_store *arriving = arriving_of(store);

	store_close(arriving->own);
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
	.blob_put = arriving_blob_put,
	.blob_get = arriving_blob_get,
	.blob_list = arriving_blob_list,
	.blob_delete = arriving_blob_delete,
	.adopt = arriving_adopt,
	.capacity = arriving_capacity,
	.close = arriving_close,
};

/* ---- making it ---- */

int arriving_store_open(struct store **store, arriving_fetch *fetch, void *context, struct dp_err *err)
{
	struct arriving_store *arriving = calloc(1, sizeof(*arriving));

	if (!arriving)
		return dp_fail_errno(err, ENOMEM, "open the store of pages that arrive");
	int result = store_open(&arriving->own, "memory:", true, err);

	if (result < 0) {
		free(arriving);
		return result;
	}
	arriving->store = (struct store){ .ops = &arriving_ops };
	arriving->fetch = fetch;
	arriving->context = context;
	*store = &arriving->store;
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
	int result = arriving->own->ops->write(arriving->own, &slot, &content, 1);

	if (result == 0)
		forget(arriving, slot);
	return result;
}

uint64_t arriving_store_left(const struct store *store)
{
	return arriving_of(store)->left;
}
