/* Objects and their spaces: making, finding and freeing them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/base.h"
#include "base/log.h"
#include "pool/journal.h"
#include "pool/pool.h"
#include "wire/bytes.h"

/* The first id that was not given out: 8 bytes, little endian. Written ahead, so seldom. */
#define IDS_BLOB "ids"
#define IDS_AHEAD (UINT64_C(1) << 20)

static uint64_t unix_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

struct object *object_new(struct pool *pool, enum object_kind kind, const char *name, const void *owner)
{
	struct object *object = calloc(1, sizeof(*object));

	if (!object)
		return NULL;
	object->kind = kind;
	object->owner = owner;
	object->account = pool->slots.accounts.payer;
	object->id = pool->next_id;
	object->created_unix_ns = unix_now_ns();
	object->next_number = 1;
	object->last_space = &object->spaces;
	snprintf(object->name, sizeof(object->name), "%s", name);
	if (idmap_add(&pool->objects, object->id, object) < 0) {
		free(object);
		return NULL;
	}
	pool->next_id = (pool->next_id + 1) & ID_MASK;
	object->next = pool->all;
	if (pool->all)
		pool->all->previous = object;
	pool->all = object;
	pool->instance_count += kind == OBJECT_INSTANCE;
	return object;
}

struct space *object_add_space(struct pool *pool, struct object *object, uint64_t number, uint64_t label)
{
	if (number == 0)
		number = object->next_number;
	uint64_t id = object->id << SPACE_NUMBER_BITS | number;

	if (number == 0 || number >> SPACE_NUMBER_BITS || idmap_find(&pool->spaces, id))
		return NULL;
	struct space *space = calloc(1, sizeof(*space));

	if (!space)
		return NULL;
	space->id = id;
	space->label = label;
	space->object = object;
	pagemap_init(&space->map, &pool->slots);
	if (idmap_add(&pool->spaces, id, space) < 0) {
		free(space);
		return NULL;
	}
	*object->last_space = space;
	object->last_space = &space->next;
	object->space_count++;
	if (number >= object->next_number)
		object->next_number = (uint32_t)number + 1;
	return space;
}

void object_remove_space(struct pool *pool, struct space *space)
{
	struct object *object = space->object;
	struct space **link = &object->spaces;

	while (*link != space)
		link = &(*link)->next;
	*link = space->next;
	if (object->last_space == &space->next)
		object->last_space = link;
	object->space_count--;
	idmap_remove(&pool->spaces, space->id);
	pagemap_clear(&space->map);
	free(space);
}

static void unpublish(struct pool *pool, struct object *snapshot)
{
	struct object **link = &pool->by_name;

	while (*link && *link != snapshot)
		link = &(*link)->next_name;
	if (*link) {
		*link = snapshot->next_name;
		pool->snapshot_count--;
	}
}

void object_free(struct pool *pool, struct object *object)
{
	if (object->kind == OBJECT_SNAPSHOT)
		unpublish(pool, object);
	if (object->kind == OBJECT_INSTANCE) {
		struct object *base = pool_object(pool, object->base, OBJECT_SNAPSHOT);

		pool->instance_count--;
		if (base)
			base->instances--;
	}
	while (object->spaces)
		object_remove_space(pool, object->spaces);
	for (size_t i = 0; i < object->file_count; i++)
		free(object->files[i].content);
	free(object->files);
	accounts_refund(&pool->slots.accounts, object->account, object->file_bytes);
	free(object->meta);
	free(object->order);
	free(object->failures);
	free(object->note);
	journal_end(object->journal);
	if (object->previous)
		object->previous->next = object->next;
	else
		pool->all = object->next;
	if (object->next)
		object->next->previous = object->previous;
	idmap_remove(&pool->objects, object->id);
	free(object);
}

void pool_publish(struct pool *pool, struct object *snapshot)
{
	struct object **link = &pool->by_name;

	while (*link && strcmp((*link)->name, snapshot->name) < 0)
		link = &(*link)->next_name;
	snapshot->kind = OBJECT_SNAPSHOT;
	snapshot->owner = NULL;
	snapshot->next_name = *link;
	*link = snapshot;
	pool->snapshot_count++;
}

struct space *pool_space(const struct pool *pool, uint64_t id)
{
	return idmap_find(&pool->spaces, id);
}

struct object *pool_object(const struct pool *pool, uint64_t id, enum object_kind kind)
{
	struct object *object = idmap_find(&pool->objects, id);

	return object && object->kind == kind ? object : NULL;
}

struct object *pool_snapshot(const struct pool *pool, const char *name)
{
	struct object *object = pool->by_name;

	while (object && strcmp(object->name, name) != 0)
		object = object->next_name;
	return object;
}

const struct pool_file *pool_file_find(const struct object *snapshot, const char *name)
{
	for (size_t i = 0; i < snapshot->file_count; i++)
		if (strcmp(snapshot->files[i].name, name) == 0)
			return &snapshot->files[i];
	return NULL;
}

uint64_t object_pages(const struct object *object)
{
	uint64_t pages = 0;

	for (const struct space *space = object->spaces; space; space = space->next)
		pages += pagemap_pages(&space->map);
	return pages;
}

uint64_t object_own_pages(const struct object *object)
{
	uint64_t pages = 0;

	for (const struct space *space = object->spaces; space; space = space->next)
		pages += pagemap_own_pages(&space->map);
	return pages;
}

struct stored {
	struct store *store;
	uint64_t bytes;
};

static int add_stored(void *context, uint64_t pgno, uint64_t slot)
{
	struct stored *stored = context;

	stored->bytes += stored->store->ops->stored_bytes(stored->store, slot);
	return 0;
}

uint64_t object_stored_bytes(const struct pool *pool, const struct object *object)
{
	struct stored stored = { .store = pool->store };

	if (!pool->store->ops->stored_bytes)
		return object_pages(object) * PAGE_BYTES;
	for (const struct space *space = object->spaces; space; space = space->next)
		pagemap_walk(&space->map, add_stored, &stored);
	return stored.bytes;
}

#define IDENTITY_BLOB "identity"

/* Who this pool is: kept with a store that keeps, so that a client that comes back knows whom it has found. Written when it is
 * first needed. */
static int find_identity(struct pool *pool, struct dp_err *err)
{
	struct store *store = pool->store;
	void *bytes = NULL;
	uint64_t length = 0;
	int result = store->persistent ? store->ops->blob_get(store, IDENTITY_BLOB, &bytes, &length, IDENTITY_BYTES) : -ENOENT;

	pool->identity_kept = result == 0 && length == IDENTITY_BYTES;
	if (pool->identity_kept)
		memcpy(pool->identity, bytes, IDENTITY_BYTES);
	free(bytes);
	if (!pool->identity_kept && getrandom(pool->identity, IDENTITY_BYTES, 0) != IDENTITY_BYTES)
		return dp_fail_errno(err, errno, "random numbers");
	return 0;
}

/* Ids of an earlier run of the server must not come again: a late writer of then would hit an object of now. What is kept says
 * which are free; where nothing is, the identity is new too, and nobody comes back. */
static void find_ids(struct pool *pool)
{
	struct store *store = pool->store;
	void *bytes = NULL;
	uint64_t length = 0;
	int result = pool->identity_kept ? store->ops->blob_get(store, IDS_BLOB, &bytes, &length, sizeof(uint64_t)) : -ENOENT;

	pool->next_id = (unix_now_ns() / 1000000000 << 12) & ID_MASK;
	if (result == 0 && length == sizeof(uint64_t)) {
		pool->ids_kept = bytes_load_u64(bytes) & ID_MASK;
		pool->next_id = DP_MAX(pool->next_id, pool->ids_kept);
	} else if (result != -ENOENT) {
		log_warn("what the store says of ids that were used is damaged: new ones begin with the clock");
	}
	free(bytes);
}

static int keep_ids(struct pool *pool)
{
	uint64_t ids = DP_MIN(pool->next_id + IDS_AHEAD, ID_MASK);
	uint8_t bytes[sizeof(ids)];
	struct bytes_writer out = bytes_writer(bytes, sizeof(bytes));

	if (pool->next_id <= pool->ids_kept)
		return 0;
	bytes_put_u64(&out, ids);
	int result = pool->store->ops->blob_put(pool->store, IDS_BLOB, bytes, sizeof(bytes));

	if (result == 0)
		pool->ids_kept = ids;
	return result;
}

int pool_keep_identity(struct pool *pool)
{
	int result = keep_ids(pool);

	if (result < 0 || pool->identity_kept)
		return result;
	result = pool->store->ops->blob_put(pool->store, IDENTITY_BLOB, pool->identity, IDENTITY_BYTES);
	pool->identity_kept = result == 0;
	return result;
}

int pool_open(struct pool **result, struct store *store, struct dp_err *err)
{
	struct pool *pool = calloc(1, sizeof(*pool));
	int code;

	if (!pool) {
		store_close(store);
		return dp_fail_errno(err, ENOMEM, "open pool");
	}
	pool->store = store;
	pool->keep_lost_ns = POOL_KEEP_LOST_NS;
	code = slots_init(&pool->slots, store);
	code = code < 0 ? dp_fail_errno(err, -code, "open pool") : find_identity(pool, err);
	find_ids(pool);
	if (code == 0)
		code = persist_load(pool, err);
	if (code < 0) {
		pool_close(pool);
		return code;
	}
	*result = pool;
	return 0;
}

void pool_close(struct pool *pool)
{
	if (!pool)
		return;
	/* Slots need not be given back one by one: a persistent store reads what is used from its manifests, the others end here.
	 * Giving them back would even punch holes where committed pages are. */
	pool->slots.store = NULL;
	while (pool->all) {
		journal_close(pool->all->journal);
		pool->all->journal = NULL;
		object_free(pool, pool->all);
	}
	pool->slots.free_count = 0;
	slots_done(&pool->slots);
	idmap_done(&pool->objects);
	idmap_done(&pool->spaces);
	store_close(pool->store);
	free(pool);
}

void pool_flush(struct pool *pool)
{
	slots_flush(&pool->slots);
}

void pool_owner_gone(struct pool *pool, const void *owner)
{
	struct object *next;

	for (struct object *object = pool->all; object; object = next) {
		next = object->next;
		if (object->owner != owner)
			continue;
		object->owner = NULL;
		if (object->kind == OBJECT_INSTANCE && object->resume && object->attached && !object->keep) {
			object->lost_ns = clock_now_ns();
			pool->lost_count++;
			continue;
		}
		if (object->kind == OBJECT_DRAFT || (object->kind == OBJECT_INSTANCE && !object->keep))
			object_free(pool, object);
	}
	pool_flush(pool);
}

uint64_t pool_expire(struct pool *pool)
{
	uint64_t now = clock_now_ns(), waiting = 0;
	struct object *next;

	for (struct object *object = pool->all; object; object = next) {
		next = object->next;
		if (object->kind != OBJECT_INSTANCE || !object->lost_ns || object->owner)
			continue;
		if (pool->keep_lost_ns && now - object->lost_ns > pool->keep_lost_ns) {
			log_info("instance %s has ended: nobody came back for it", object->name);
			object_free(pool, object);
			pool_flush(pool);
		} else {
			waiting++;
		}
	}
	pool->lost_count = waiting;
	return waiting;
}
