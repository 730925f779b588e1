/* SCRUB, SCRUBBED, FIND, FOUND, REPAIR: a pool's pages are compared with their digests, and put right. */
#include <errno.h>

#include "wire/bytes.h"
#include "wire/message.h"

static int written(const struct bytes_writer *out)
{
	return out->bad ? -EMSGSIZE : (int)(out->at - out->start);
}

static void put_digest(struct bytes_writer *out, struct page_digest digest)
{
	bytes_put_u64(out, digest.low);
	bytes_put_u64(out, digest.high);
}

static struct page_digest get_digest(struct bytes_reader *in)
{
	uint64_t low = bytes_get_u64(in);

	return (struct page_digest){ low, bytes_get_u64(in) };
}

int message_scrub_encode(uint8_t *bytes, size_t size, const struct message_scrub *scrub)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, scrub->from);
	bytes_put_u32(&out, scrub->pages);
	bytes_put_u32(&out, scrub->flags);
	return written(&out);
}

int message_scrub_decode(const uint8_t *bytes, size_t length, struct message_scrub *scrub)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };

	scrub->from = bytes_get_u64(&in);
	scrub->pages = bytes_get_u32(&in);
	scrub->flags = bytes_get_u32(&in);
	return bytes_complete(&in) && scrub->pages && scrub->pages <= SCRUB_PAGES_LIMIT && scrub->flags <= SCRUB_FLAG_ADD
		       ? 0
		       : -EBADMSG;
}

int message_scrubbed_encode(uint8_t *bytes, size_t size, const struct message_scrubbed *scrubbed)
{
	struct bytes_writer out = bytes_writer(bytes, size);
	const uint64_t fields[] = { scrubbed->next, scrubbed->end, scrubbed->checked, scrubbed->unverified, scrubbed->added };

	for (size_t i = 0; i < ARRAY_LENGTH(fields); i++)
		bytes_put_u64(&out, fields[i]);
	bytes_put_u32(&out, scrubbed->count);
	bytes_put_u32(&out, 0);
	for (uint32_t i = 0; i < scrubbed->count; i++) {
		const struct damaged_page *page = &scrubbed->damaged[i];

		bytes_put_u64(&out, page->slot);
		put_digest(&out, page->digest);
		bytes_put_u64(&out, page->label);
		bytes_put_u64(&out, page->pgno);
		bytes_put_u16(&out, (uint16_t)strlen(page->name));
		bytes_put(&out, page->name, strlen(page->name));
	}
	return written(&out);
}

int message_scrubbed_decode(const uint8_t *bytes, size_t length, struct message_scrubbed *scrubbed)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };
	uint64_t *fields[] = { &scrubbed->next, &scrubbed->end, &scrubbed->checked, &scrubbed->unverified, &scrubbed->added };

	for (size_t i = 0; i < ARRAY_LENGTH(fields); i++)
		*fields[i] = bytes_get_u64(&in);
	scrubbed->count = bytes_get_u32(&in);
	if (bytes_get_u32(&in) != 0 || scrubbed->count > SCRUB_DAMAGED_LIMIT)
		return -EBADMSG;
	for (uint32_t i = 0; i < scrubbed->count; i++) {
		struct damaged_page *page = &scrubbed->damaged[i];

		page->slot = bytes_get_u64(&in);
		page->digest = get_digest(&in);
		page->label = bytes_get_u64(&in);
		page->pgno = bytes_get_u64(&in);
		uint16_t name_length = bytes_get_u16(&in);
		const uint8_t *name = bytes_take(&in, name_length);

		if (!name || name_length > NAME_LIMIT || memchr(name, 0, name_length))
			return -EBADMSG;
		memcpy(page->name, name, name_length);
		page->name[name_length] = 0;
	}
	return bytes_complete(&in) ? 0 : -EBADMSG;
}

int message_find_decode(const uint8_t *bytes, size_t length, struct page_digest *digests, uint32_t *count)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };

	*count = bytes_get_u32(&in);
	if (bytes_get_u32(&in) != 0 || *count == 0 || *count > SCRUB_DAMAGED_LIMIT)
		return -EBADMSG;
	for (uint32_t i = 0; i < *count; i++) {
		digests[i] = get_digest(&in);
		if (!page_digest_known(digests[i]))
			return -EBADMSG;
	}
	return bytes_complete(&in) ? 0 : -EBADMSG;
}

int message_find_encode(uint8_t *bytes, size_t size, const struct page_digest *digests, uint32_t count)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u32(&out, count);
	bytes_put_u32(&out, 0);
	for (uint32_t i = 0; i < count; i++)
		put_digest(&out, digests[i]);
	return written(&out);
}

int message_found_decode(const uint8_t *bytes, size_t length, uint32_t count, uint64_t *found, const uint8_t **pages)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };

	*found = bytes_get_u64(&in);
	*pages = bytes_take(&in, (uint64_t)__builtin_popcountll(*found) * PAGE_BYTES);
	return bytes_complete(&in) && (count == 64 || *found >> count == 0) ? 0 : -EBADMSG;
}

int message_repair_encode(uint8_t *bytes, size_t size, const struct message_repair *repair)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, repair->slot);
	put_digest(&out, repair->digest);
	bytes_put(&out, repair->page, PAGE_BYTES);
	return written(&out);
}

int message_repair_decode(const uint8_t *bytes, size_t length, struct message_repair *repair)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };

	repair->slot = bytes_get_u64(&in);
	repair->digest = get_digest(&in);
	repair->page = bytes_take(&in, PAGE_BYTES);
	return bytes_complete(&in) && page_digest_known(repair->digest) ? 0 : -EBADMSG;
}
