#include "store/packed.h"

#include <assert.h>
#include <errno.h>
#include <lz4.h>
#include <string.h>
#include <zstd.h>

#define MARK_BLOB "packed-store"
#define MARK_TEXT "distri-proc packed 1 " /* then the codec that new pages are packed by, unless another is asked for */
#define BATCH 1024      /* pages of one write; more go in turns */
#define PACK_LIMIT 3072 /* the largest piece that is no whole page */
#define ZSTD_LEVEL 3

static struct packed_store *packed_of(struct store *store)
{
	return (struct packed_store *)store;
}

/* ---- slots ---- */

static uint64_t find_free(const struct packed_store *packed, uint64_t from)
{
	for (uint64_t word = from / 64; word < packed->entry_count / 64; word++) {
		uint64_t vacant = ~packed->used[word];

		if (word == from / 64)
			vacant &= ~UINT64_C(0) << (from % 64);
		if (vacant)
			return word * 64 + (uint64_t)__builtin_ctzll(vacant);
	}
	return UINT64_MAX;
}

static int packed_alloc(struct store *store, uint64_t *slots, size_t count)
{
	struct packed_store *packed = packed_of(store);

	if (packed->entry_count - packed->used_count < count + 1) {
		int result = packed_index_reserve(packed, packed->entry_count + count + 1);

		if (result < 0)
			return result;
	}
	for (size_t i = 0; i < count; i++) {
		uint64_t slot = find_free(packed, packed->cursor);

		if (slot == UINT64_MAX)
			slot = find_free(packed, 0);
		assert(slot != UINT64_MAX);
		packed->used[slot / 64] |= UINT64_C(1) << (slot % 64);
		packed->entries[slot] = (struct packed_entry){ 0 };
		slots[i] = slot;
		packed->cursor = slot + 1;
	}
	packed->used_count += count;
	return 0;
}

static void packed_free(struct store *store, const uint64_t *slots, size_t count)
{
	struct packed_store *packed = packed_of(store);

	for (size_t i = 0; i < count; i++) {
		struct packed_entry *entry = &packed->entries[slots[i]];

		assert(packed->used[slots[i] / 64] >> (slots[i] % 64) & 1);
		packed->used[slots[i] / 64] &= ~(UINT64_C(1) << (slots[i] % 64));
		if (entry->slot)
			packed_release_piece(packed, entry);
		*entry = (struct packed_entry){ 0 };
	}
	packed->used_count -= count;
	packed_give_back(packed);
}

/* ---- pages ---- */

/* Packs one page; *bytes points at what is to be stored. */
static void pack_page(struct packed_store *packed, const void *page, uint8_t *buffer, struct packed_entry *entry,
		      const void **bytes)
{
	size_t length = 0;

	if (packed->codec == CODEC_LZ4)
		length = (size_t)DP_MAX(LZ4_compress_default(page, (char *)buffer, PAGE_BYTES, PACK_LIMIT), 0);
	else
		length = ZSTD_compressCCtx(packed->zstd_compressor, buffer, PACK_LIMIT, page, PAGE_BYTES, ZSTD_LEVEL);
	/* An error, which is a huge number, says that it does not fit the limit. */
	bool whole = length == 0 || length > PACK_LIMIT;

	*entry = (struct packed_entry){ .length = whole ? (uint16_t)PAGE_BYTES : (uint16_t)length,
					.codec = whole ? CODEC_NONE : packed->codec & 15,
					.check = (uint32_t)page_hash(page) };
	*bytes = whole ? page : buffer;
}

static unsigned class_for(unsigned length)
{
	unsigned class = 0;

	while (packed_classes[class].bytes < length)
		class++;
	return class;
}

static int write_batch(struct packed_store *packed, const uint64_t *slots, const void *const *pages, size_t count)
{
	struct packed_entry fresh[BATCH];
	uint8_t buffer[PAGE_BYTES];
	size_t taken = 0;
	int result = 0;

	for (size_t i = 0; i < count && result == 0; i++) {
		const void *bytes;

		pack_page(packed, pages[i], buffer, &fresh[i], &bytes);
		result = packed_take_piece(packed, class_for(fresh[i].length), &fresh[i]);
		if (result < 0)
			break;
		taken++;
		result = packed_write_piece(packed, &fresh[i], bytes);
	}
	if (result == 0)
		result = packed_flush(packed);
	if (result < 0) {
		packed_drop_images(packed);
		for (size_t i = 0; i < taken; i++)
			packed_release_piece(packed, &fresh[i]);
		packed_give_back(packed);
		return result;
	}
	for (size_t i = 0; i < count; i++) {
		struct packed_entry *entry = &packed->entries[slots[i]];

		if (entry->slot)
			packed_release_piece(packed, entry);
		*entry = fresh[i];
		packed->dirty[slots[i] / PACKED_CHUNK_ENTRIES] = 1;
	}
	packed_give_back(packed);
	return 0;
}

static int packed_write(struct store *store, const uint64_t *slots, const void *const *pages, size_t count)
{
	int result = 0;

	for (size_t at = 0, part; at < count && result == 0; at += part) {
		part = DP_MIN(count - at, (size_t)BATCH);
		result = write_batch(packed_of(store), slots + at, pages + at, part);
	}
	return result;
}

/* Into the piece that it has: snapshots refer to it, so it may not move. */
static int packed_write_again(struct store *store, uint64_t slot, const void *page)
{
	struct packed_store *packed = packed_of(store);
	struct packed_entry *entry = &packed->entries[slot], fresh;
	uint8_t buffer[PAGE_BYTES];
	const void *bytes;

	if (!entry->slot)
		return -ENOENT;
	pack_page(packed, page, buffer, &fresh, &bytes);
	if (fresh.length > packed_classes[entry->class].bytes ||
	    (fresh.codec == CODEC_NONE) != (entry->class == PACKED_RAW_CLASS))
		return -EOPNOTSUPP;
	fresh.slot = entry->slot;
	fresh.class = entry->class;
	fresh.piece = entry->piece;
	int result = packed_write_piece(packed, &fresh, bytes);

	if (result == 0)
		result = packed_flush(packed);
	if (result < 0) {
		packed_drop_images(packed);
		return result;
	}
	*entry = fresh;
	packed->dirty[slot / PACKED_CHUNK_ENTRIES] = 1;
	return packed->lower->persistent ? packed_index_save(packed) : 0;
}

/* -EIO where what is there is not the page that was written. */
static int read_page(struct packed_store *packed, uint64_t slot, void *page)
{
	const struct packed_entry *entry = &packed->entries[slot];
	uint8_t buffer[PAGE_BYTES];
	int result = entry->slot ? packed_read_piece(packed, entry, entry->codec == CODEC_NONE ? page : buffer) : -EIO;
	bool good = result == 0;

	if (good && entry->codec == CODEC_LZ4)
		good = LZ4_decompress_safe((const char *)buffer, page, entry->length, PAGE_BYTES) == (int)PAGE_BYTES;
	else if (good && entry->codec == CODEC_ZSTD)
		good = ZSTD_decompressDCtx(packed->zstd_decompressor, page, PAGE_BYTES, buffer, entry->length) == PAGE_BYTES;
	if (good && (uint32_t)page_hash(page) == entry->check)
		return 0;
	return result < 0 ? result : -EIO;
}

static int packed_read(struct store *store, const uint64_t *slots, void *const *pages, size_t count)
{
	int result = 0;

	for (size_t i = 0; i < count && result == 0; i++)
		result = read_page(packed_of(store), slots[i], pages[i]);
	return result;
}

static const void *packed_page(struct store *store, uint64_t slot)
{
	return NULL;
}

static uint32_t packed_stored_bytes(struct store *store, uint64_t slot)
{
	const struct packed_entry *entry = &packed_of(store)->entries[slot];

	return entry->slot ? packed_classes[entry->class].bytes : 0;
}

static int packed_sync(struct store *store)
{
	return packed_of(store)->lower->ops->sync(packed_of(store)->lower);
}

/* ---- blobs ---- */

static int packed_blob_put(struct store *store, const char *name, const void *bytes, uint64_t length)
{
	struct packed_store *packed = packed_of(store);

	if (packed_is_index(name))
		return -EINVAL;
	/* The blob may refer to pages that only the index finds. A memory store's index is never read again. */
	int result = packed->lower->persistent ? packed_index_save(packed) : 0;

	return result < 0 ? result : packed->lower->ops->blob_put(packed->lower, name, bytes, length);
}

static int packed_blob_get(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit)
{
	return packed_is_index(name)
		       ? -ENOENT
		       : packed_of(store)->lower->ops->blob_get(packed_of(store)->lower, name, bytes, length, limit);
}

struct visit {
	store_blob_visit visit;
	void *context;
};

static int visit_others(void *context, const char *name, uint64_t bytes)
{
	const struct visit *visit = context;

	return packed_is_index(name) ? 0 : visit->visit(visit->context, name, bytes);
}

static int packed_blob_list(struct store *store, store_blob_visit visit, void *context)
{
	struct visit outer = { visit, context };

	return packed_of(store)->lower->ops->blob_list(packed_of(store)->lower, visit_others, &outer);
}

static int packed_blob_delete(struct store *store, const char *name)
{
	return packed_is_index(name) ? -ENOENT : packed_of(store)->lower->ops->blob_delete(packed_of(store)->lower, name);
}

/* ---- opening and closing ---- */

static bool lower_slot_used(void *context, uint64_t slot)
{
	return packed_slot_used(context, slot);
}

static int packed_adopt(struct store *store, bool (*used)(void *context, uint64_t slot), void *context)
{
	struct packed_store *packed = packed_of(store);
	struct store_capacity capacity;

	packed->lower->ops->capacity(packed->lower, &capacity);
	for (uint64_t slot = 1; slot < packed->found_end; slot++) {
		struct packed_entry *entry = &packed->entries[slot];

		if (!used(context, slot)) {
			*entry = (struct packed_entry){ 0 };
			continue;
		}
		int result = packed_adopt_piece(packed, entry, capacity.end_slot);

		if (result < 0)
			return result;
		packed->used[slot / 64] |= UINT64_C(1) << (slot % 64);
		packed->used_count++;
	}
	return packed->lower->ops->adopt(packed->lower, lower_slot_used, packed);
}

static void packed_capacity(struct store *store, struct store_capacity *capacity)
{
	struct packed_store *packed = packed_of(store);

	packed->lower->ops->capacity(packed->lower, capacity);
	capacity->stored_bytes = (capacity->used_pages - packed->reserve.count) * PAGE_BYTES;
	capacity->used_pages = packed->used_count;
	capacity->end_slot = packed->found_end;
}

static void packed_close(struct store *store)
{
	struct packed_store *packed = packed_of(store);

	packed_release_reserve(packed);
	store_close(packed->lower);
	ZSTD_freeCCtx(packed->zstd_compressor);
	ZSTD_freeDCtx(packed->zstd_decompressor);
	for (unsigned class = 0; class < PACKED_CLASSES; class++)
		free(packed->with_room[class].at);
	free(packed->reserve.at);
	free(packed->freed.at);
	free(packed->frames);
	free(packed->entries);
	free(packed->used);
	free(packed->dirty);
	free(packed);
}

static const struct store_ops packed_ops = {
	.name = "packed",
	.alloc = packed_alloc,
	.free = packed_free,
	.write = packed_write,
	.read = packed_read,
	.write_again = packed_write_again,
	.page = packed_page,
	.stored_bytes = packed_stored_bytes,
	.sync = packed_sync,
	.blob_put = packed_blob_put,
	.blob_get = packed_blob_get,
	.blob_list = packed_blob_list,
	.blob_delete = packed_blob_delete,
	.adopt = packed_adopt,
	.capacity = packed_capacity,
	.close = packed_close,
};

static int refuse_any(void *context, const char *name, uint64_t bytes)
{
	return -EEXIST;
}

static enum packed_codec find_codec(const char *name)
{
	return strcmp(name, "zstd") == 0 ? CODEC_ZSTD : strcmp(name, "lz4") == 0 ? CODEC_LZ4 : CODEC_NONE;
}

/* *codec: as the mark says, or as asked for. 1 where the store is packed, 0 where it is not. */
static int read_mark(struct store *lower, enum packed_codec *codec, struct dp_err *err)
{
	cleanup_free char *text = NULL;
	void *bytes = NULL;
	uint64_t length = 0;
	int result = lower->ops->blob_get(lower, MARK_BLOB, &bytes, &length, 64);

	if (result == -ENOENT)
		return 0;
	if (result < 0)
		return dp_fail_errno(err, -result, "read %s", MARK_BLOB);
	text = strndup(bytes, length);
	free(bytes);
	if (!text)
		return dp_fail_errno(err, ENOMEM, "read %s", MARK_BLOB);
	enum packed_codec marked = strncmp(text, MARK_TEXT, strlen(MARK_TEXT)) == 0 ? find_codec(text + strlen(MARK_TEXT))
										    : CODEC_NONE;

	if (marked == CODEC_NONE)
		return dp_fail(err, EBADMSG, "the store's packed pages are of another version than this program's");
	if (*codec == CODEC_NONE)
		*codec = marked;
	return 1;
}

/* A new store becomes a packed one. */
static int write_mark(struct store *lower, const char *codec, struct dp_err *err)
{
	int result = lower->ops->blob_list(lower, refuse_any, NULL);
	char text[64];

	if (result == -EEXIST)
		return dp_fail(err, EEXIST,
			       "the store was made without ?compress and holds snapshots: name a new one and checkpoint into it");
	snprintf(text, sizeof(text), MARK_TEXT "%s", codec);
	if (result == 0)
		result = lower->ops->blob_put(lower, MARK_BLOB, text, strlen(text));
	return result < 0 ? dp_fail_errno(err, -result, "write %s", MARK_BLOB) : 1;
}

int store_packed_open(struct store **store, struct store *lower, const char *codec, struct dp_err *err)
{
	enum packed_codec number = codec ? find_codec(codec) : CODEC_NONE;

	*store = lower;
	if (codec && number == CODEC_NONE)
		return dp_fail(err, EINVAL, "'?compress=%.50s': write zstd or lz4", codec);
	int result = read_mark(lower, &number, err);

	if (result == 0 && codec)
		result = write_mark(lower, codec, err);
	if (result <= 0)
		return result;
	struct packed_store *packed = calloc(1, sizeof(*packed));

	if (!packed)
		return dp_fail_errno(err, ENOMEM, "open a packed store");
	packed->store = (struct store){ .ops = &packed_ops, .persistent = lower->persistent };
	packed->lower = lower;
	packed->codec = number;
	packed->cursor = 1;
	packed->zstd_compressor = ZSTD_createCCtx();
	packed->zstd_decompressor = ZSTD_createDCtx();
	*store = &packed->store;
	if (!packed->zstd_compressor || !packed->zstd_decompressor)
		return dp_fail_errno(err, ENOMEM, "open a packed store");
	return packed_index_load(packed, err);
}
