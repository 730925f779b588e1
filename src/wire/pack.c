#include "wire/pack.h"

#include <errno.h>
#include <lz4.h>
#include <stdbool.h>
#include <string.h>

#include "base/base.h"
#include "wire/bytes.h"

static void put_entry(uint8_t *entry, uint32_t length, uint32_t check)
{
	struct bytes_writer out = bytes_writer(entry, PACK_ENTRY_BYTES);

	bytes_put_u32(&out, length);
	bytes_put_u32(&out, check);
}

size_t pack_pages(uint8_t *bytes, const void *const *pages, size_t count)
{
	uint8_t *at = bytes + count * PACK_ENTRY_BYTES;

	for (size_t i = 0; i < count; i++) {
		/* 0: does not fit the limit, so it is not worth the receiver's time either. */
		int length = LZ4_compress_default(pages[i], (char *)at, PAGE_BYTES, PACK_LENGTH_LIMIT);

		if (length <= 0) {
			memcpy(at, pages[i], PAGE_BYTES);
			length = PAGE_BYTES;
		}
		put_entry(bytes + i * PACK_ENTRY_BYTES, (uint32_t)length, (uint32_t)page_hash(pages[i]));
		at += length;
	}
	return (size_t)(at - bytes);
}

int pack_decode(const uint8_t *bytes, size_t length, uint32_t count, struct packed_pages *packed)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };
	uint64_t total = 0;

	packed->count = count;
	packed->table = bytes_take(&in, (uint64_t)count * PACK_ENTRY_BYTES);
	for (uint32_t i = 0; !in.bad && i < count; i++) {
		uint32_t page = bytes_load_u32(packed->table + (size_t)i * PACK_ENTRY_BYTES);

		if (page == 0 || (page > PACK_LENGTH_LIMIT && page != PAGE_BYTES))
			in.bad = true;
		total += page;
	}
	packed->bytes = bytes_take(&in, total);
	return bytes_complete(&in) ? 0 : -EBADMSG;
}

static bool unpack_page(const uint8_t *entry, const uint8_t *at, uint8_t *page)
{
	uint32_t length = bytes_load_u32(entry);

	if (length == PAGE_BYTES)
		memcpy(page, at, PAGE_BYTES);
	else if (LZ4_decompress_safe((const char *)at, (char *)page, (int)length, PAGE_BYTES) != (int)PAGE_BYTES)
		return false;
	return (uint32_t)page_hash(page) == bytes_load_u32(entry + 4);
}

int pack_unpack(const struct packed_pages *packed, uint8_t *pages, uint64_t *damaged)
{
	const uint8_t *at = packed->bytes;
	int result = 0;

	for (uint32_t i = 0; i < packed->count; i++, pages += PAGE_BYTES) {
		const uint8_t *entry = packed->table + (size_t)i * PACK_ENTRY_BYTES;

		if (!unpack_page(entry, at, pages)) {
			result = -EBADMSG;
			if (damaged)
				damaged[i / 64] |= UINT64_C(1) << (i % 64);
		}
		at += bytes_load_u32(entry);
	}
	return result;
}
