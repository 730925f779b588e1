/* What requests do to the pages of a space. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>

#include "base/base.h"
#include "base/log.h"
#include "pool/journal.h"
#include "pool/pool.h"
#include "wire/message.h"

/* May this space be written by this owner under this epoch? */
static int check_writable(const struct pool *pool, const void *owner, uint64_t id, uint64_t epoch, struct space **space)
{
	*space = pool_space(pool, id);
	if (!*space)
		return -ENOENT;
	switch ((*space)->object->kind) {
	case OBJECT_SNAPSHOT:
		return -EROFS;
	case OBJECT_DRAFT:
		if ((*space)->object->committing)
			return -EROFS;
		return (*space)->object->owner == owner ? 0 : -EPERM;
	case OBJECT_INSTANCE:
		return (*space)->object->epoch == epoch ? 0 : -ESTALE;
	}
	return -EIO;
}

/* Notes a draft's failed write: what was lost must not be committed. */
static int note(struct space *space, int result)
{
	if (result < 0 && space->object->kind == OBJECT_DRAFT && !space->object->failed)
		space->object->failed = -result;
	return result;
}

struct put {
	uint64_t pgno[PUT_PAGES_LIMIT];      /* pages that hold something, in order */
	const void *page[PUT_PAGES_LIMIT];
	struct page_digest digest[PUT_PAGES_LIMIT];
	uint64_t slot[PUT_PAGES_LIMIT];      /* where each goes */
	uint64_t fresh[PUT_PAGES_LIMIT];     /* newly allocated, for those that may not be written in place */
	bool in_place[PUT_PAGES_LIMIT];
	size_t count, fresh_count;
};

/* Is every page what its writer says it is? */
static bool put_undamaged(const struct page_range *ranges, size_t count, const uint8_t *pages, const uint8_t *digests)
{
	uint64_t total = 0;

	for (size_t i = 0; i < count; i++)
		total += ranges[i].pages;
	for (uint64_t i = 0; digests && i < total; i++)
		if (!page_digest_same(page_digest(pages + i * PAGE_BYTES), message_digest_at(digests, i)))
			return false;
	return true;
}

/* Sorts the pages into those of zeros (dropped at once, P4), those written in place and those that need a slot. */
static int put_plan(struct space *space, const struct page_range *ranges, size_t count, const uint8_t *pages,
		    const uint8_t *digests, bool in_place, struct put *put)
{
	const uint8_t *first = pages;

	put->count = put->fresh_count = 0;
	for (size_t i = 0; i < count; i++) {
		for (uint64_t pgno = ranges[i].pgno; pgno < ranges[i].pgno + ranges[i].pages; pgno++, pages += PAGE_BYTES) {
			if (page_is_zero(pages)) {
				int result = pagemap_drop(&space->map, pgno, 1);

				if (result < 0)
					return result;
				journal_drop(space->object, space, (struct page_range){ pgno, 1 });
				continue;
			}
			uint64_t slot = in_place ? pagemap_own_slot(&space->map, pgno) : 0;

			put->pgno[put->count] = pgno;
			put->page[put->count] = pages;
			put->digest[put->count] = digests ? message_digest_at(digests, (uint64_t)(pages - first) / PAGE_BYTES) :
							    page_digest(pages);
			put->slot[put->count] = slot;
			put->in_place[put->count] = slot != 0;
			put->fresh_count += slot == 0;
			put->count++;
		}
	}
	return 0;
}

/* Plans, and takes the slots that are needed. What a journal tells of is not written over before it tells of what replaces it,
 * unless there is no other room: after a crash in between the old digest would find the new page damaged. */
static int put_prepare(struct pool *pool, struct space *space, const struct page_range *ranges, size_t count,
		       const uint8_t *pages, const uint8_t *digests, struct put *put)
{
	bool in_place = !space->object->journal;
	int result;

	for (;;) {
		result = put_plan(space, ranges, count, pages, digests, in_place, put);
		if (result == 0 && put->fresh_count)
			result = slots_alloc(&pool->slots, put->fresh, put->fresh_count);
		if (result != -ENOSPC || in_place)
			return result;
		in_place = true;
	}
}

int pool_put(struct pool *pool, const void *owner, uint64_t id, uint64_t epoch, const struct page_range *ranges, size_t count,
	     const uint8_t *pages, const uint8_t *digests)
{
	struct space *space;
	struct put put;
	int result = check_writable(pool, owner, id, epoch, &space);

	if (result == 0 && !put_undamaged(ranges, count, pages, digests))
		result = -EBADMSG;
	if (result == 0)
		result = put_prepare(pool, space, ranges, count, pages, digests, &put);
	if (result < 0)
		return space ? note(space, result) : result;
	for (size_t i = 0, fresh = 0; i < put.count; i++)
		if (!put.in_place[i])
			put.slot[i] = put.fresh[fresh++];
	result = put.count ? pool->store->ops->write(pool->store, put.slot, put.page, put.count) : 0;
	/* Where a write fails, a page that was to be replaced may be half of each: its digest stays what it was and will tell. */
	for (size_t i = 0; i < put.count && result == 0; i++)
		pool->slots.digests[put.slot[i]] = put.digest[i];
	for (size_t i = 0; i < put.count; i++) {
		if (put.in_place[i])
			continue;
		if (result == 0)
			result = pagemap_set(&space->map, put.pgno[i], put.slot[i]);
		if (result < 0)
			slots_release(&pool->slots, put.slot[i]);
	}
	if (result == 0)
		journal_put(space->object, space, put.pgno, put.slot, put.count);
	return note(space, result);
}

#define DAMAGE_LINES 100u

void pool_note_damage(struct pool *pool, uint64_t slot, uint64_t pgno, uint64_t id)
{
	const struct space *space = pool_space(pool, id);

	if (++pool->damaged_pages <= DAMAGE_LINES)
		log_error("page at %#" PRIx64 " of %s is damaged in the store (slot %" PRIu64
			  "); repair it with distri-proc pool scrub --repair-from%s",
			  pgno << PAGE_SHIFT, space ? space->object->name : "what was removed", slot,
			  pool->damaged_pages == DAMAGE_LINES ? "; further ones are only counted" : "");
}

int pool_drop(struct pool *pool, const void *owner, uint64_t id, uint64_t epoch, struct page_range range)
{
	struct space *space;
	int result = check_writable(pool, owner, id, epoch, &space);

	if (result < 0)
		return result;
	result = pagemap_drop(&space->map, range.pgno, range.pages);
	if (result == 0)
		journal_drop(space->object, space, range);
	return note(space, result);
}

int pool_move(struct pool *pool, const void *owner, uint64_t id, uint64_t epoch, uint64_t from, uint64_t to, uint64_t pages)
{
	struct space *space;
	int result = check_writable(pool, owner, id, epoch, &space);

	if (result < 0)
		return result;
	result = pagemap_move(&space->map, from, to, pages);
	if (result == 0)
		journal_move(space->object, space, from, to, pages);
	return note(space, result);
}

int pool_fork(struct pool *pool, const void *owner, uint64_t parent_id, uint64_t epoch, uint64_t child_id)
{
	struct space *parent;
	int result = check_writable(pool, owner, parent_id, epoch, &parent);
	uint64_t number = child_id & ((UINT64_C(1) << SPACE_NUMBER_BITS) - 1);

	if (result < 0)
		return result;
	if (parent->object->kind != OBJECT_INSTANCE || child_id >> SPACE_NUMBER_BITS != parent->object->id || number == 0)
		return -EINVAL;
	if (pool_space(pool, child_id))
		return -EEXIST;
	if (parent->object->space_count >= SPACES_PER_OBJECT_LIMIT)
		return -EMFILE;
	struct space *child = object_add_space(pool, parent->object, number, parent->label);

	if (!child)
		return -ENOMEM;
	pagemap_clone(&child->map, &parent->map);
	journal_fork(parent->object, parent, child_id);
	return 0;
}

int pool_space_free(struct pool *pool, const void *owner, uint64_t id, uint64_t epoch)
{
	struct space *space;
	int result = check_writable(pool, owner, id, epoch, &space);

	if (result == 0) {
		journal_free(space->object, id);
		object_remove_space(pool, space);
	}
	return result;
}
