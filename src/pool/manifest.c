#include "pool/manifest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/base.h"

static const char magic[8] = "DPMANIF1";
#define FRAME_BYTES 16 /* magic and checksum */

static void add(struct manifest_writer *writer, const void *bytes, uint64_t length)
{
	if (writer->failed)
		return;
	if (length > writer->size - writer->length) {
		size_t size = DP_MAX(writer->size * 2, writer->length + length + 4096);
		uint8_t *grown = realloc(writer->bytes, size);

		if (!grown) {
			writer->failed = true;
			return;
		}
		writer->bytes = grown;
		writer->size = size;
	}
	if (length)
		memcpy(writer->bytes + writer->length, bytes, length);
	writer->length += length;
}

static void add_u16(struct manifest_writer *writer, uint16_t value)
{
	value = htole16(value);
	add(writer, &value, sizeof(value));
}

static void add_u32(struct manifest_writer *writer, uint32_t value)
{
	value = htole32(value);
	add(writer, &value, sizeof(value));
}

static void add_u64(struct manifest_writer *writer, uint64_t value)
{
	value = htole64(value);
	add(writer, &value, sizeof(value));
}

void manifest_begin(struct manifest_writer *writer, const struct manifest_head *head)
{
	*writer = (struct manifest_writer){ 0 };
	add(writer, magic, sizeof(magic));
	add_u64(writer, 0);
	add_u32(writer, 2);
	add_u32(writer, head->file_count);
	add_u32(writer, head->space_count);
	add_u64(writer, head->created_unix_ns);
	add_u16(writer, (uint16_t)head->name.length);
	add(writer, head->name.at, head->name.length);
	add_u32(writer, head->meta.length);
	add(writer, head->meta.at, head->meta.length);
}

void manifest_add_file(struct manifest_writer *writer, const char *name, const void *content, uint64_t bytes)
{
	add_u16(writer, (uint16_t)strlen(name));
	add(writer, name, strlen(name));
	add_u64(writer, bytes);
	add(writer, content, bytes);
}

void manifest_add_space(struct manifest_writer *writer, uint64_t label)
{
	add_u64(writer, label);
	writer->run_pages = 0;
}

/* A run's head; the number of its pages is written over by close_run. */
static void begin_run(struct manifest_writer *writer, uint64_t pgno, uint64_t slot)
{
	writer->run_at = writer->length;
	writer->run_pgno = pgno;
	writer->run_slot = slot;
	writer->run_pages = 0;
	add_u64(writer, pgno);
	add_u32(writer, 0);
	add_u64(writer, slot);
}

static void close_run(struct manifest_writer *writer)
{
	uint32_t pages = htole32(writer->run_pages);

	if (!writer->failed && writer->run_pages)
		memcpy(writer->bytes + writer->run_at + 8, &pages, sizeof(pages));
	writer->run_pages = 0;
}

void manifest_add_page(struct manifest_writer *writer, uint64_t pgno, uint64_t slot, struct page_digest digest)
{
	if (!writer->run_pages || writer->run_pages == UINT32_MAX || pgno != writer->run_pgno + writer->run_pages ||
	    slot != writer->run_slot + writer->run_pages) {
		close_run(writer);
		begin_run(writer, pgno, slot);
	}
	writer->run_pages++;
	add_u64(writer, digest.low);
	add_u64(writer, digest.high);
}

void manifest_end_space(struct manifest_writer *writer)
{
	close_run(writer);
	begin_run(writer, 0, 0);
}

int manifest_end(struct manifest_writer *writer)
{
	if (writer->failed)
		return -ENOMEM;
	uint64_t hash = htole64(XXH3_64bits(writer->bytes + FRAME_BYTES, writer->length - FRAME_BYTES));

	memcpy(writer->bytes + sizeof(magic), &hash, sizeof(hash));
	return 0;
}

void manifest_writer_done(struct manifest_writer *writer)
{
	free(writer->bytes);
	*writer = (struct manifest_writer){ 0 };
}

static struct message_text get_text(struct bytes_reader *in, uint32_t length, uint32_t limit)
{
	struct message_text text = { .length = length };

	if (length > limit)
		in->bad = true;
	text.at = (const char *)bytes_take(in, length);
	if (!text.at || memchr(text.at, 0, length))
		in->bad = true;
	return text;
}

int manifest_open(struct manifest_reader *reader, const void *bytes, uint64_t length, struct manifest_head *head)
{
	struct bytes_reader *in = &reader->in;

	*reader = (struct manifest_reader){ .in = { .at = bytes, .end = (const uint8_t *)bytes + length } };
	const uint8_t *start = bytes_take(in, sizeof(magic));

	if (!start || memcmp(start, magic, sizeof(magic)) != 0)
		return -EBADMSG;
	uint64_t hash = bytes_get_u64(in);

	if (in->bad || hash != XXH3_64bits(in->at, (size_t)(in->end - in->at)))
		return -EBADMSG;
	reader->version = bytes_get_u32(in);
	if (reader->version < 1 || reader->version > 2)
		in->bad = true;
	head->file_count = bytes_get_u32(in);
	head->space_count = bytes_get_u32(in);
	head->created_unix_ns = bytes_get_u64(in);
	head->name = get_text(in, bytes_get_u16(in), NAME_LIMIT);
	head->meta = get_text(in, bytes_get_u32(in), META_LIMIT);
	return in->bad ? -EBADMSG : 0;
}

int manifest_next_file(struct manifest_reader *reader, struct message_text *name, struct message_bytes *content)
{
	struct bytes_reader *in = &reader->in;

	*name = get_text(in, bytes_get_u16(in), FILE_NAME_LIMIT);
	content->length = bytes_get_u64(in);
	content->at = bytes_take(in, content->length);
	return in->bad || name->length == 0 ? -EBADMSG : 0;
}

int manifest_next_space(struct manifest_reader *reader, uint64_t *label)
{
	*label = bytes_get_u64(&reader->in);
	reader->next_pgno = 0;
	return reader->in.bad ? -EBADMSG : 0;
}

int manifest_next_run(struct manifest_reader *reader, struct manifest_run *run)
{
	run->pgno = bytes_get_u64(&reader->in);
	run->pages = bytes_get_u32(&reader->in);
	run->slot = bytes_get_u64(&reader->in);
	if (reader->in.bad)
		return -EBADMSG;
	if (run->pages == 0)
		return 0;
	if (run->pgno < reader->next_pgno || run->pgno > PGNO_END - run->pages || run->slot == 0 ||
	    run->slot > UINT64_MAX - run->pages)
		return -EBADMSG;
	run->digests = reader->version > 1 ? bytes_take(&reader->in, (uint64_t)run->pages * DIGEST_BYTES) : NULL;
	if (reader->in.bad)
		return -EBADMSG;
	reader->next_pgno = run->pgno + run->pages;
	return 1;
}

int manifest_finish(struct manifest_reader *reader)
{
	return bytes_complete(&reader->in) ? 0 : -EBADMSG;
}
