/* Looking at every page that is stored, and putting right what is damaged. A client asks for a few slots at a time, so that
 * others are served in between and the pool keeps no state of it. */
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/log.h"
#include "pool/request.h"

#define BATCH 16u /* slots that are looked at together */
#define SCRUBBED_BYTES (64u + SCRUB_DAMAGED_LIMIT * (48u + NAME_LIMIT))
struct search {
	struct message_scrubbed *scrubbed;
	const struct space *space;
};

static int match(void *context, uint64_t pgno, uint64_t slot)
{
	const struct search *search = context;

	for (uint32_t i = 0; i < search->scrubbed->count; i++) {
		struct damaged_page *page = &search->scrubbed->damaged[i];

		if (page->slot != slot || page->name[0])
			continue;
		snprintf(page->name, sizeof(page->name), "%s", search->space->object->name);
		page->label = search->space->label;
		page->pgno = pgno;
	}
	return 0;
}

/* Whose are they? For people, so one owner each is enough. */
static void name_damaged(const struct pool *pool, struct message_scrubbed *scrubbed)
{
	struct search search = { .scrubbed = scrubbed };

	for (const struct object *object = pool->all; object && scrubbed->count; object = object->next)
		for (search.space = object->spaces; search.space; search.space = search.space->next)
			pagemap_walk(&search.space->map, match, &search);
}

static void note_damaged(struct pool *pool, struct message_scrubbed *scrubbed, uint64_t slot)
{
	struct damaged_page *page = &scrubbed->damaged[scrubbed->count++];

	*page = (struct damaged_page){ .slot = slot, .digest = pool->slots.digests[slot] };
	pool->damaged_pages++;
}

/* Compares up to BATCH slots, which are in use. */
static int check_batch(struct pool *pool, const uint64_t *slots, size_t count, bool add, uint8_t *memory,
		       struct message_scrubbed *scrubbed)
{
	void *pages[BATCH];
	bool read;

	for (size_t i = 0; i < count; i++)
		pages[i] = memory + i * PAGE_BYTES;
	read = pool->store->ops->read(pool->store, slots, pages, count) == 0;
	for (size_t i = 0; i < count; i++) {
		struct page_digest *digest = &pool->slots.digests[slots[i]];
		bool one = read || pool->store->ops->read(pool->store, slots + i, pages + i, 1) == 0;

		scrubbed->checked++;
		if (one && !page_digest_known(*digest)) {
			scrubbed->unverified += !add;
			scrubbed->added += add;
			if (add)
				*digest = page_digest(pages[i]);
		} else if (!one || !page_digest_same(page_digest(pages[i]), *digest)) {
			note_damaged(pool, scrubbed, slots[i]);
		}
	}
	return 0;
}

static int scan(struct pool *pool, const struct message_scrub *scrub, struct message_scrubbed *scrubbed)
{
	uint64_t slot = DP_MAX(scrub->from, 1u), slots[BATCH];
	uint8_t *memory = malloc((size_t)BATCH * PAGE_BYTES);

	if (!memory)
		return -ENOMEM;
	*scrubbed = (struct message_scrubbed){ .end = pool->slots.count };
	while (slot < pool->slots.count && scrubbed->checked < scrub->pages && scrubbed->count + BATCH <= SCRUB_DAMAGED_LIMIT) {
		size_t count = 0;

		for (; slot < pool->slots.count && count < BATCH; slot++)
			if (pool->slots.references[slot])
				slots[count++] = slot;
		if (count)
			check_batch(pool, slots, count, scrub->flags & SCRUB_FLAG_ADD, memory, scrubbed);
	}
	scrubbed->next = slot < pool->slots.count ? slot : 0;
	free(memory);
	name_damaged(pool, scrubbed);
	return 0;
}

/* The manifests of an earlier version are written anew: now it is known what their pages must be. */
static int save_added(struct pool *pool, struct dp_err *err)
{
	int result = 0;

	for (struct object *object = pool->all; object && result == 0; object = object->next) {
		if (object->kind != OBJECT_SNAPSHOT || !object->unverified)
			continue;
		result = persist_save(pool, object, err);
		object->unverified = result < 0;
	}
	return result;
}

static int answer(struct request *request, enum message_type type, uint8_t *payload, uint64_t bytes)
{
	struct reply *reply = reply_new(request->connection->shared);

	if (!reply) {
		free(payload);
		return -ENOMEM;
	}
	reply->head_bytes = MESSAGE_HEADER_BYTES;
	reply->extra = payload;
	reply->extra_bytes = bytes;
	request_answer(request, reply, type, CLASS_PREFETCH, 0, 0);
	return 0;
}

int request_handle_scrub(struct request *request)
{
	struct message_scrub scrub;
	struct message_scrubbed *scrubbed;

	if (message_scrub_decode(request->payload, request->header->length, &scrub) < 0)
		return request_malformed(request);
	scrubbed = malloc(sizeof(*scrubbed));
	uint8_t *payload = malloc(SCRUBBED_BYTES);
	int result = scrubbed && payload ? scan(request->pool, &scrub, scrubbed) : -ENOMEM;

	if (result == 0 && !scrubbed->next && scrub.flags & SCRUB_FLAG_ADD)
		result = save_added(request->pool, &request->err);
	int bytes = result == 0 ? message_scrubbed_encode(payload, SCRUBBED_BYTES, scrubbed) : result;

	free(scrubbed);
	if (bytes < 0) {
		free(payload);
		return bytes;
	}
	return answer(request, MESSAGE_SCRUBBED, payload, (uint64_t)bytes);
}

/* A whole page with this digest, wherever it lies; false where there is none. */
static bool find_page(struct pool *pool, struct page_digest digest, uint8_t *page)
{
	void *pages[] = { page };

	for (uint64_t slot = 1; slot < pool->slots.count; slot++)
		if (pool->slots.references[slot] && page_digest_same(pool->slots.digests[slot], digest) &&
		    pool->store->ops->read(pool->store, &slot, pages, 1) == 0 && page_digest_same(page_digest(page), digest))
			return true;
	return false;
}

int request_handle_find(struct request *request)
{
	struct page_digest digests[SCRUB_DAMAGED_LIMIT];
	uint64_t found = 0, count = 0;
	uint32_t wanted;

	if (message_find_decode(request->payload, request->header->length, digests, &wanted) < 0)
		return request_malformed(request);
	uint8_t *payload = malloc(sizeof(uint64_t) + (size_t)wanted * PAGE_BYTES);

	if (!payload)
		return -ENOMEM;
	for (uint32_t i = 0; i < wanted; i++) {
		if (!find_page(request->pool, digests[i], payload + sizeof(uint64_t) + count * PAGE_BYTES))
			continue;
		found |= UINT64_C(1) << i;
		count++;
	}
	found = htole64(found);
	memcpy(payload, &found, sizeof(found));
	return answer(request, MESSAGE_FOUND, payload, sizeof(found) + count * PAGE_BYTES);
}

int request_handle_repair(struct request *request)
{
	struct pool *pool = request->pool;
	struct message_repair repair;
	uint8_t page[PAGE_BYTES];
	const void *pages[] = { page };
	void *back[] = { page };

	if (message_repair_decode(request->payload, request->header->length, &repair) < 0)
		return request_malformed(request);
	/* The slot may be another page's since. */
	if (repair.slot >= pool->slots.count || !pool->slots.references[repair.slot] ||
	    !page_digest_same(pool->slots.digests[repair.slot], repair.digest))
		return dp_fail(&request->err, ENOENT, "the damaged page is gone");
	if (!page_digest_same(page_digest(repair.page), repair.digest))
		return dp_fail(&request->err, EBADMSG, "a page arrived damaged");
	memcpy(page, repair.page, PAGE_BYTES);
	int (*again)(struct store *, uint64_t, const void *) = pool->store->ops->write_again;
	int result = again ? again(pool->store, repair.slot, page) : pool->store->ops->write(pool->store, &repair.slot, pages, 1);

	if (result == 0 && pool->store->persistent)
		result = pool->store->ops->sync(pool->store);
	if (result == 0)
		result = pool->store->ops->read(pool->store, &repair.slot, back, 1);
	if (result == 0 && !page_digest_same(page_digest(page), repair.digest))
		return dp_fail(&request->err, EIO,
			       "the store does not keep what is written to slot %" PRIu64 "; look at its disk", repair.slot);
	if (result == 0)
		log_info("slot %" PRIu64 " was repaired", repair.slot);
	return result;
}
