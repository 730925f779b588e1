/* The index of packed pages in blobs: { u64 magic, u32 first chunk entry count, u32 0, u64 hash of what follows, entries }. An
 * entry is { u64 slot, u16 length, u8 class | codec << 4, u8 piece, u32 check }, little-endian. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

#include "store/packed.h"
#include "wire/bytes.h"

#define INDEX_PREFIX "packed-index."
#define INDEX_MAGIC UINT64_C(0x3158444e49435044) /* DPCINDX1 */
#define HEAD_BYTES 24u
#define ENTRY_BYTES 16u
#define CHUNK_BYTES (HEAD_BYTES + (uint64_t)PACKED_CHUNK_ENTRIES * ENTRY_BYTES)
#define CHUNK_LIMIT (UINT64_C(1) << 24) /* 2^40 pages */

bool packed_is_index(const char *blob)
{
	return strncmp(blob, "packed-", 7) == 0;
}

int packed_index_reserve(struct packed_store *packed, uint64_t end)
{
	if (end <= packed->entry_count)
		return 0;
	uint64_t chunks = DP_MAX((end - 1) / PACKED_CHUNK_ENTRIES + 1, packed->entry_count / PACKED_CHUNK_ENTRIES * 5 / 4);
	uint64_t count = chunks * PACKED_CHUNK_ENTRIES, before = packed->entry_count;
	struct packed_entry *entries = reallocarray(packed->entries, count, sizeof(*entries));

	if (!entries)
		return -ENOMEM;
	packed->entries = entries;
	uint64_t *used = reallocarray(packed->used, count / 64, sizeof(*used));

	if (!used)
		return -ENOMEM;
	packed->used = used;
	uint8_t *dirty = realloc(packed->dirty, chunks);

	if (!dirty)
		return -ENOMEM;
	packed->dirty = dirty;
	memset(entries + before, 0, (count - before) * sizeof(*entries));
	memset(used + before / 64, 0, (count - before) / 8);
	memset(dirty + before / PACKED_CHUNK_ENTRIES, 0, chunks - before / PACKED_CHUNK_ENTRIES);
	if (before == 0)
		used[0] = 1; /* T1: slot 0 is never handed out */
	packed->entry_count = count;
	return 0;
}

static int save_chunk(struct packed_store *packed, uint64_t chunk, uint8_t *bytes)
{
	struct bytes_writer body = bytes_writer(bytes + HEAD_BYTES, CHUNK_BYTES - HEAD_BYTES),
			    head = bytes_writer(bytes, HEAD_BYTES);
	const struct packed_entry *entry = packed->entries + chunk * PACKED_CHUNK_ENTRIES;
	char name[64];

	for (uint32_t i = 0; i < PACKED_CHUNK_ENTRIES; i++, entry++) {
		bytes_put_u64(&body, entry->slot);
		bytes_put_u16(&body, entry->length);
		bytes_put(&body, (uint8_t[]){ (uint8_t)(entry->class | entry->codec << 4), entry->piece }, 2);
		bytes_put_u32(&body, entry->check);
	}
	bytes_put_u64(&head, INDEX_MAGIC);
	bytes_put_u32(&head, PACKED_CHUNK_ENTRIES);
	bytes_put_u32(&head, 0);
	bytes_put_u64(&head, XXH3_64bits(body.start, CHUNK_BYTES - HEAD_BYTES));
	snprintf(name, sizeof(name), INDEX_PREFIX "%08" PRIx64, chunk);
	return packed->lower->ops->blob_put(packed->lower, name, bytes, CHUNK_BYTES);
}

int packed_index_save(struct packed_store *packed)
{
	cleanup_free uint8_t *bytes = malloc(CHUNK_BYTES);

	if (!bytes)
		return -ENOMEM;
	for (uint64_t chunk = 0; chunk < packed->entry_count / PACKED_CHUNK_ENTRIES; chunk++) {
		if (!packed->dirty[chunk])
			continue;
		int result = save_chunk(packed, chunk, bytes);

		if (result < 0)
			return result;
		packed->dirty[chunk] = 0;
	}
	return 0;
}

static int load_chunk(struct packed_store *packed, uint64_t chunk, const uint8_t *bytes, uint64_t length)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };
	bool magic = bytes_get_u64(&in) == INDEX_MAGIC;

	magic = bytes_get_u32(&in) == PACKED_CHUNK_ENTRIES && magic;
	magic = bytes_get_u32(&in) == 0 && magic;
	uint64_t hash = bytes_get_u64(&in);

	if (in.bad || !magic || length != CHUNK_BYTES || XXH3_64bits(in.at, length - HEAD_BYTES) != hash)
		return -EBADMSG;
	int result = packed_index_reserve(packed, (chunk + 1) * PACKED_CHUNK_ENTRIES);

	if (result < 0)
		return result;
	packed->found_end = DP_MAX(packed->found_end, (chunk + 1) * PACKED_CHUNK_ENTRIES);
	for (uint32_t i = 0; i < PACKED_CHUNK_ENTRIES; i++) {
		struct packed_entry *entry = &packed->entries[chunk * PACKED_CHUNK_ENTRIES + i];

		entry->slot = bytes_get_u64(&in);
		entry->length = bytes_get_u16(&in);
		const uint8_t *two = bytes_take(&in, 2);

		entry->class = two[0] & 15;
		entry->codec = two[0] >> 4;
		entry->piece = two[1];
		entry->check = bytes_get_u32(&in);
	}
	return 0;
}

struct listing {
	uint64_t *chunks;
	size_t count;
	bool bad;
};

static int note_chunk(void *context, const char *name, uint64_t bytes)
{
	struct listing *listing = context;
	unsigned long long chunk;
	char end;

	if (strncmp(name, INDEX_PREFIX, strlen(INDEX_PREFIX)) != 0)
		return 0;
	if (sscanf(name + strlen(INDEX_PREFIX), "%8llx%c", &chunk, &end) != 1 || chunk >= CHUNK_LIMIT)
		return -EBADMSG;
	uint64_t *chunks = reallocarray(listing->chunks, listing->count + 1, sizeof(*chunks));

	if (!chunks)
		return -ENOMEM;
	listing->chunks = chunks;
	chunks[listing->count++] = chunk;
	return 0;
}

int packed_index_load(struct packed_store *packed, struct dp_err *err)
{
	struct listing listing = { 0 };
	int result = packed->lower->ops->blob_list(packed->lower, note_chunk, &listing);

	if (result < 0)
		dp_fail_errno(err, -result, "list the store's index of packed pages");
	for (size_t i = 0; i < listing.count && result == 0; i++) {
		void *bytes = NULL;
		uint64_t length = 0;
		char name[64];

		snprintf(name, sizeof(name), INDEX_PREFIX "%08" PRIx64, listing.chunks[i]);
		result = packed->lower->ops->blob_get(packed->lower, name, &bytes, &length, CHUNK_BYTES);
		if (result == 0)
			result = load_chunk(packed, listing.chunks[i], bytes, length);
		free(bytes);
		if (result < 0)
			dp_fail_errno(err, -result, "read %s, which says where packed pages are", name);
	}
	free(listing.chunks);
	return result;
}
