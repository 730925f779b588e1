#include "checkpoint/page_receiver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "image/images.h"

#define PS_OPEN2 4u
#define PS_PARENT 5u
#define PS_ADD_F 6u
#define PS_CLOSE 0x1023u
#define PS_FORCE_CLOSE 0x1024u

#define ID_TYPE_TASK 1u
#define ID_TYPE_SHARED_MEMORY 2u
#define PAGE_LIMIT ((uint64_t)1 << (47 - PAGE_SHIFT))

struct raw_header { /* CRIU's struct page_server_iov */
	uint32_t command;
	uint32_t pad;
	uint64_t pages;
	uint64_t address;
	uint64_t id;
};
_Static_assert(sizeof(struct raw_header) == PAGE_HEADER_BYTES, "the header has no holes");

static int decode_open(const struct raw_header *raw, struct page_header *header, struct dp_err *err)
{
	uint64_t type = raw->id & 0xff, id = raw->id >> 8;
	if ((type != ID_TYPE_TASK && type != ID_TYPE_SHARED_MEMORY) || id == 0 || id > UINT32_MAX)
		return dp_fail(err, EPROTO, "page stream: a page map of an unknown kind (id 0x%llx)",
			       (unsigned long long)raw->id);
	header->command = PAGE_COMMAND_OPEN;
	header->shared_memory = type == ID_TYPE_SHARED_MEMORY;
	header->id = (uint32_t)id;
	return 0;
}

static int decode_add(const struct raw_header *raw, struct page_header *header, struct dp_err *err)
{
	uint32_t flags = raw->command >> 16;
	if (flags != PAGEMAP_PRESENT && flags != (PAGEMAP_PRESENT | PAGEMAP_LAZY))
		return dp_fail(err, EPROTO, "page stream: pages with flags 0x%x (compressed, or left to a parent image?)", flags);
	uint64_t pgno = raw->address >> PAGE_SHIFT;
	if (raw->address & (PAGE_BYTES - 1) || pgno >= PAGE_LIMIT || raw->pages == 0 || raw->pages > PAGE_LIMIT - pgno)
		return dp_fail(err, EPROTO, "page stream: %llu pages at 0x%llx cannot be", (unsigned long long)raw->pages,
			       (unsigned long long)raw->address);
	header->command = PAGE_COMMAND_ADD;
	header->lazy = flags & PAGEMAP_LAZY;
	header->pgno = pgno;
	header->pages = raw->pages;
	return 0;
}

int page_header_decode(const unsigned char bytes[static PAGE_HEADER_BYTES], struct page_header *header, struct dp_err *err)
{
	struct raw_header raw;
	memcpy(&raw, bytes, sizeof(raw));
	*header = (struct page_header){0};
	uint32_t command = raw.command & 0xffff;
	if (command != PS_ADD_F && raw.command >> 16)
		command = 0;
	switch (command) {
	case PS_OPEN2:
		return decode_open(&raw, header, err);
	case PS_ADD_F:
		return decode_add(&raw, header, err);
	case PS_PARENT:
		header->command = PAGE_COMMAND_PARENT;
		return 0;
	case PS_CLOSE:
	case PS_FORCE_CLOSE:
		header->command = PAGE_COMMAND_CLOSE;
		return 0;
	}
	return dp_fail(err, EPROTO, "page stream: unknown command 0x%x (a CRIU other than 4.2?)", raw.command);
}

struct receiver {
	int fd;
	const struct page_sink *sink;
	unsigned char *chunk;
	bool open;          /* a page map is open */
	uint64_t next_pgno; /* pages of the open map ascend from here */
};

static int broken_off(struct dp_err *err, int code)
{
	dp_fail_errno(err, code, "criu broke the page stream off");
	return -ECANCELED;
}

/* The first header is an OPEN2. In the 24-byte form of CRIU 4.1 its last field is the id; in ours that place is an address of 0.
 * Waiting for 32 bytes of the old form would wait for ever. */
static int read_header(struct receiver *receiver, bool first, unsigned char bytes[static PAGE_HEADER_BYTES], struct dp_err *err)
{
	int rc = io_read_full(receiver->fd, bytes, 24);
	uint64_t third;
	memcpy(&third, bytes + 16, sizeof(third));
	if (rc == 0 && first && bytes[0] == PS_OPEN2 && third != 0)
		return dp_fail(err, EPROTO, "page stream: sent by CRIU 4.1 or older; 4.2 is needed (scripts/setup-criu)");
	if (rc == 0)
		rc = io_read_full(receiver->fd, bytes + 24, PAGE_HEADER_BYTES - 24);
	return rc < 0 ? broken_off(err, -rc) : 0;
}

static int take_pages(struct receiver *receiver, const struct page_header *header, struct dp_err *err)
{
	if (!receiver->open || header->pgno < receiver->next_pgno)
		return dp_fail(err, EPROTO, "page stream: pages out of order");
	receiver->next_pgno = header->pgno + header->pages;
	uint64_t done = 0;
	while (done < header->pages) {
		uint64_t pages = DP_MIN(header->pages - done, (uint64_t)PAGE_CHUNK_PAGES);
		int rc = io_read_full(receiver->fd, receiver->chunk, pages * PAGE_BYTES);
		if (rc < 0)
			return broken_off(err, -rc);
		rc = receiver->sink->pages(receiver->sink->context, header->lazy, header->pgno + done, pages, receiver->chunk,
					   err);
		if (rc < 0)
			return rc;
		done += pages;
	}
	return 0;
}

static int answer(struct receiver *receiver, const void *bytes, size_t size, struct dp_err *err)
{
	int rc = io_write_full(receiver->fd, bytes, size);
	return rc < 0 ? broken_off(err, -rc) : 0;
}

/* 1: the stream is complete. */
static int take_header(struct receiver *receiver, const struct page_header *header, struct dp_err *err)
{
	static const int32_t good = 0;
	static const unsigned char no_parent = 0;
	int rc;
	switch (header->command) {
	case PAGE_COMMAND_OPEN:
		receiver->open = true;
		receiver->next_pgno = 0;
		rc = receiver->sink->open(receiver->sink->context, header->shared_memory, header->id, err);
		return rc < 0 ? rc : answer(receiver, &no_parent, sizeof(no_parent), err);
	case PAGE_COMMAND_ADD:
		return take_pages(receiver, header, err);
	case PAGE_COMMAND_PARENT: /* "is there a parent image?": a 32-bit 0 */
		return answer(receiver, &good, sizeof(good), err);
	case PAGE_COMMAND_CLOSE:
		rc = answer(receiver, &good, sizeof(good), err);
		return rc < 0 ? rc : 1;
	}
	return -EPROTO;
}

int page_receiver_run(int fd, const struct page_sink *sink, struct dp_err *err)
{
	cleanup_free void *chunk = NULL;
	if (posix_memalign(&chunk, PAGE_BYTES, (size_t)PAGE_CHUNK_PAGES * PAGE_BYTES) != 0)
		return dp_fail_errno(err, ENOMEM, "page stream");
	struct receiver receiver = {.fd = fd, .sink = sink, .chunk = chunk};
	bool first = true;
	for (;;) {
		unsigned char bytes[PAGE_HEADER_BYTES];
		struct page_header header;
		int rc = read_header(&receiver, first, bytes, err);
		if (rc == 0)
			rc = page_header_decode(bytes, &header, err);
		if (rc == 0)
			rc = take_header(&receiver, &header, err);
		if (rc != 0)
			return rc < 0 ? rc : 0;
		first = false;
	}
}
