/* memory:[SIZE][?ready=SIZE]: pages and blobs in this process's memory, gone when it ends. `ready` is memory kept touched. */
#include "store/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "store/heap_store.h"

struct memory_blob {
	struct memory_blob *next;
	char name[BLOB_NAME_LIMIT + 1];
	uint64_t length;
	uint8_t bytes[];
};

struct memory_store {
	struct heap_store base;
	struct memory_blob *blobs;
};

static int memory_sync(struct store *store)
{
	return 0;
}

static struct memory_blob **find_blob(struct store *store, const char *name)
{
	struct memory_blob **link = &((struct memory_store *)store)->blobs;

	while (*link && strcmp((*link)->name, name) != 0)
		link = &(*link)->next;
	return link;
}

static int memory_blob_put(struct store *store, const char *name, const void *bytes, uint64_t length)
{
	struct memory_blob **link = find_blob(store, name), *old = *link;

	if (!store_blob_name_good(name))
		return -EINVAL;
	struct memory_blob *blob = malloc(sizeof(*blob) + length);

	if (!blob)
		return -ENOMEM;
	strcpy(blob->name, name);
	blob->length = length;
	memcpy(blob->bytes, bytes, length);
	blob->next = old ? old->next : NULL;
	*link = blob;
	free(old);
	return 0;
}

static int memory_blob_get(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit)
{
	const struct memory_blob *blob = *find_blob(store, name);

	if (!blob)
		return -ENOENT;
	if (blob->length > limit)
		return -EFBIG;
	*bytes = malloc(blob->length + 1);
	if (!*bytes)
		return -ENOMEM;
	memcpy(*bytes, blob->bytes, blob->length);
	*length = blob->length;
	return 0;
}

static int memory_blob_list(struct store *store, store_blob_visit visit, void *context)
{
	int result = 0;

	for (const struct memory_blob *blob = ((struct memory_store *)store)->blobs; blob && result >= 0; blob = blob->next)
		result = visit(context, blob->name, blob->length);
	return result < 0 ? result : 0;
}

static int memory_blob_delete(struct store *store, const char *name)
{
	struct memory_blob **link = find_blob(store, name), *blob = *link;

	if (!blob)
		return -ENOENT;
	*link = blob->next;
	free(blob);
	return 0;
}

static void memory_close(struct store *store)
{
	struct memory_store *memory = (struct memory_store *)store;

	while (memory->blobs) {
		struct memory_blob *blob = memory->blobs;

		memory->blobs = blob->next;
		free(blob);
	}
	heap_done(&memory->base.heap);
	free(memory);
}

static const struct store_ops memory_ops = {
	.name = "memory",
	.alloc = heap_store_alloc,
	.free = heap_store_free,
	.write = heap_store_write,
	.read = heap_store_read,
	.page = heap_store_page,
	.sync = memory_sync,
	.blob_put = memory_blob_put,
	.blob_get = memory_blob_get,
	.blob_list = memory_blob_list,
	.blob_delete = memory_blob_delete,
	.adopt = heap_store_adopt,
	.capacity = heap_store_capacity,
	.close = memory_close,
};

/* SIZE?ready=SIZE, both optional. */
static int parse_memory(const char *text, uint64_t *limit_bytes, uint64_t *ready_bytes)
{
	const char *query = strchr(text, '?');
	cleanup_free char *size = query ? strndup(text, (size_t)(query - text)) : strdup(text);

	*limit_bytes = UINT64_MAX;
	*ready_bytes = 0;
	if (!size)
		return -ENOMEM;
	if (*size && (parse_size(size, limit_bytes) < 0 || *limit_bytes < PAGE_BYTES))
		return -EINVAL;
	if (query && (strncmp(query, "?ready=", 7) != 0 || parse_size(query + 7, ready_bytes) < 0))
		return -EINVAL;
	return 0;
}

int store_memory_open(struct store **store, const char *size_text, struct dp_err *err)
{
	uint64_t limit_bytes, ready_bytes;
	int result = parse_memory(size_text, &limit_bytes, &ready_bytes);

	if (result == -EINVAL)
		return dp_fail(err, EINVAL, "bad size in store memory:%.100s; write memory:, memory:4G or memory:4G?ready=1G",
			       size_text);
	struct memory_store *memory = calloc(1, sizeof(*memory));

	if (!memory || result < 0) {
		free(memory);
		return dp_fail_errno(err, ENOMEM, "open store memory:");
	}
	memory->base.store.ops = &memory_ops;
	result = heap_init(&memory->base.heap, -1, 1, limit_bytes == UINT64_MAX ? UINT64_MAX : limit_bytes / PAGE_BYTES);
	if (result == 0 && ready_bytes && (result = heap_keep_ready(&memory->base.heap, DP_MIN(ready_bytes, limit_bytes))) < 0)
		heap_done(&memory->base.heap);
	if (result < 0) {
		free(memory);
		return dp_fail_errno(err, -result, "open store memory:");
	}
	*store = &memory->base.store;
	return 0;
}
