/* What requests do to the pages of a space. */
#include <assert.h>
#include <errno.h>

#include "base/base.h"
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
	uint64_t slot[PUT_PAGES_LIMIT];      /* where each goes */
	uint64_t fresh[PUT_PAGES_LIMIT];     /* newly allocated, for those that may not be written in place */
	bool in_place[PUT_PAGES_LIMIT];
	size_t count, fresh_count;
};

/* Sorts the pages into those of zeros (dropped at once, P4), those written in place and those that need a slot. */
static int put_plan(struct space *space, const struct page_range *ranges, size_t count, const uint8_t *pages, struct put *put)
{
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
			uint64_t slot = pagemap_own_slot(&space->map, pgno);

			put->pgno[put->count] = pgno;
			put->page[put->count] = pages;
			put->slot[put->count] = slot;
			put->in_place[put->count] = slot != 0;
			put->fresh_count += slot == 0;
			put->count++;
		}
	}
	return 0;
}

int pool_put(struct pool *pool, const void *owner, uint64_t id, uint64_t epoch, const struct page_range *ranges, size_t count,
	     const uint8_t *pages)
{
	struct space *space;
	struct put put;
	int result = check_writable(pool, owner, id, epoch, &space);

	if (result == 0)
		result = put_plan(space, ranges, count, pages, &put);
	if (result == 0 && put.fresh_count)
		result = slots_alloc(&pool->slots, put.fresh, put.fresh_count);
	if (result < 0)
		return space ? note(space, result) : result;
	for (size_t i = 0, fresh = 0; i < put.count; i++)
		if (!put.in_place[i])
			put.slot[i] = put.fresh[fresh++];
	result = put.count ? pool->store->ops->write(pool->store, put.slot, put.page, put.count) : 0;
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
