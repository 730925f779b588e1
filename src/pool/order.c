/* Recorded orders: advice that comes with a snapshot. In a persistent store a blob of its own, named after the snapshot:
 * "DPORDER1", u64 XXH3 of all that follows, u64 created (the snapshot's, so that the order of one that was replaced is not taken
 * for this one's), then the order as it travels (wire/order.h). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/base.h"
#include "pool/pool.h"
#include "wire/bytes.h"
#include "wire/order.h"

#define ORDER_SUFFIX ".order"
#define ORDER_MAGIC "DPORDER1"
#define ORDER_HEAD_BYTES 24

int order_save(struct pool *pool, const struct object *snapshot, struct dp_err *err)
{
	char blob[POOL_BLOB_NAME_LIMIT];
	size_t length = ORDER_HEAD_BYTES + (size_t)snapshot->order_bytes;
	cleanup_free uint8_t *bytes = NULL;

	if (!pool->store->persistent)
		return 0;
	bytes = malloc(length);
	if (!bytes)
		return dp_fail(err, ENOMEM, "the pool is out of memory");
	struct bytes_writer out = bytes_writer(bytes, length);

	bytes_put(&out, ORDER_MAGIC, 8);
	bytes_put_u64(&out, 0);
	bytes_put_u64(&out, snapshot->created_unix_ns);
	bytes_put(&out, snapshot->order, snapshot->order_bytes);
	out = bytes_writer(bytes + 8, 8);
	bytes_put_u64(&out, XXH3_64bits(bytes + 16, length - 16));
	pool_blob_name(snapshot->name, ORDER_SUFFIX, blob);
	int result = pool->store->ops->blob_put(pool->store, blob, bytes, length);

	return result < 0 ? dp_fail_errno(err, -result, "store the recorded order of %s", snapshot->name) : 0;
}

void order_remove(struct pool *pool, const char *name)
{
	char blob[POOL_BLOB_NAME_LIMIT];

	if (!pool->store->persistent)
		return;
	pool_blob_name(name, ORDER_SUFFIX, blob);
	pool->store->ops->blob_delete(pool->store, blob); /* mostly there is none; one that stays is known by its age */
}

static int decode(const uint8_t *bytes, uint64_t length, struct object *snapshot)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };
	struct message_order order;
	const uint8_t *magic = bytes_take(&in, 8);
	uint64_t hash = bytes_get_u64(&in), created = bytes_get_u64(&in);

	if (in.bad || memcmp(magic, ORDER_MAGIC, 8) != 0 || XXH3_64bits(bytes + 16, length - 16) != hash ||
	    created != snapshot->created_unix_ns || message_order_decode(in.at, (size_t)(in.end - in.at), &order) < 0)
		return -EBADMSG;
	snapshot->order_bytes = (uint32_t)(in.end - in.at);
	snapshot->order = malloc(snapshot->order_bytes);
	if (!snapshot->order)
		return -ENOMEM;
	memcpy(snapshot->order, in.at, snapshot->order_bytes);
	return 0;
}

void order_load(struct pool *pool, struct object *snapshot)
{
	char blob[POOL_BLOB_NAME_LIMIT];
	void *bytes = NULL;
	uint64_t length = 0;

	pool_blob_name(snapshot->name, ORDER_SUFFIX, blob);
	int result = pool->store->ops->blob_get(pool->store, blob, &bytes, &length, ORDER_HEAD_BYTES + ORDER_BYTES_LIMIT);

	if (result == 0)
		result = decode(bytes, length, snapshot);
	free(bytes);
	if (result == -EBADMSG || result == -EFBIG)
		order_remove(pool, snapshot->name);
}

static struct object *snapshot_of(const struct pool *pool, uint64_t id)
{
	const struct object *instance = pool_object(pool, id, OBJECT_INSTANCE);

	return pool_object(pool, instance ? instance->base : id, OBJECT_SNAPSHOT);
}

int pool_order_put(struct pool *pool, uint64_t id, uint64_t epoch, const uint8_t *bytes, uint32_t length, struct dp_err *err)
{
	const struct object *instance = pool_object(pool, id, OBJECT_INSTANCE);
	struct object *snapshot = instance ? snapshot_of(pool, id) : NULL;

	if (!snapshot)
		return dp_fail(err, ENOENT, instance ? "the instance's snapshot was removed" : "there is no such instance");
	if (instance->epoch != epoch)
		return dp_fail(err, ESTALE, "the lease of instance %s was taken by another", instance->name);
	uint8_t *copy = malloc(length), *old = snapshot->order;
	uint32_t old_bytes = snapshot->order_bytes;

	if (!copy)
		return dp_fail(err, ENOMEM, "the pool is out of memory");
	memcpy(copy, bytes, length);
	snapshot->order = copy;
	snapshot->order_bytes = length;
	int result = order_save(pool, snapshot, err);

	if (result < 0) { /* the old one is what the disk has */
		snapshot->order = old;
		snapshot->order_bytes = old_bytes;
		old = copy;
	}
	free(old);
	return result;
}

const struct object *pool_order_get(const struct pool *pool, uint64_t id)
{
	const struct object *snapshot = snapshot_of(pool, id);

	return snapshot && snapshot->order ? snapshot : NULL;
}
