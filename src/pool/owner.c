/* Who stored a snapshot, so that he is charged with it after a restart of the pool too. In a persistent store a blob of its own,
 * named after the snapshot: "DPOWNER1", u64 created (the snapshot's, so that the owner of one that was replaced is not taken for
 * this one's), then the identity as text. One that is missing or damaged charges nobody. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "pool/pool.h"
#include "wire/bytes.h"

#define OWNER_SUFFIX ".owner"
#define OWNER_MAGIC "DPOWNER1"
#define OWNER_HEAD_BYTES 16

int owner_save(struct pool *pool, const struct object *snapshot)
{
	const struct accounts *accounts = &pool->slots.accounts;
	const char *identity = accounts->list[snapshot->account]->identity;
	uint8_t bytes[OWNER_HEAD_BYTES + sizeof(accounts->list[0]->identity)];
	struct bytes_writer out = bytes_writer(bytes, sizeof(bytes));
	char blob[POOL_BLOB_NAME_LIMIT];

	/* Root's and those of plain TCP are not worth a write that is waited for. */
	if (!pool->store->persistent || !snapshot->account || strcmp(identity, "uid:0") == 0 ||
	    strcmp(identity, "anonymous") == 0)
		return 0;
	bytes_put(&out, OWNER_MAGIC, 8);
	bytes_put_u64(&out, snapshot->created_unix_ns);
	bytes_put(&out, identity, strlen(identity));
	pool_blob_name(snapshot->name, OWNER_SUFFIX, blob);
	return pool->store->ops->blob_put(pool->store, blob, bytes, OWNER_HEAD_BYTES + strlen(identity));
}

void owner_remove(struct pool *pool, const char *name)
{
	char blob[POOL_BLOB_NAME_LIMIT];

	if (!pool->store->persistent)
		return;
	pool_blob_name(name, OWNER_SUFFIX, blob);
	pool->store->ops->blob_delete(pool->store, blob); /* there may be none; one that stays is known by its age */
}

uint16_t owner_load(struct pool *pool, const char *name, uint64_t created_unix_ns)
{
	char blob[POOL_BLOB_NAME_LIMIT], identity[sizeof(pool->slots.accounts.list[0]->identity)] = "";
	void *bytes = NULL;
	uint64_t length = 0;

	pool_blob_name(name, OWNER_SUFFIX, blob);
	if (pool->store->ops->blob_get(pool->store, blob, &bytes, &length, OWNER_HEAD_BYTES + sizeof(identity) - 1) < 0)
		return 0;
	struct bytes_reader in = { .at = bytes, .end = (const uint8_t *)bytes + length };
	const uint8_t *magic = bytes_take(&in, 8);
	uint64_t created = bytes_get_u64(&in);

	if (!in.bad && memcmp(magic, OWNER_MAGIC, 8) == 0 && created == created_unix_ns)
		memcpy(identity, in.at, (size_t)(in.end - in.at));
	free(bytes);
	return identity[0] && !memchr(identity, '\n', sizeof(identity)) ? accounts_open(&pool->slots.accounts, identity) : 0;
}
