/* The receiver of CRIU's page stream against any bytes: it ends with an error or in good order, hands on only pages that lie in
 * ascending order within user memory, and never more than were sent. Its reads are answered here, out of the input; a byte of the
 * first header's filling says after how many answers nobody takes more. Corpus: corpus/page-stream. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/base.h"
#include "checkpoint/page_receiver.h"
#include "input.h"

#define STREAM 0x40000000 /* a descriptor that is none */

struct seen {
	bool open;
	uint64_t next_pgno, pages;
};

static struct input stream;
static unsigned answers_left;
static volatile uint8_t read_sum;

int __real_io_read_full(int fd, void *buffer, size_t bytes);
int __wrap_io_read_full(int fd, void *buffer, size_t bytes);
int __wrap_io_read_full(int fd, void *buffer, size_t bytes)
{
	if (fd != STREAM)
		return __real_io_read_full(fd, buffer, bytes);
	if (bytes > (size_t)(stream.end - stream.at))
		return -EPIPE;
	next(&stream, buffer, bytes);
	return 0;
}

int __real_io_write_full(int fd, const void *bytes, size_t count);
int __wrap_io_write_full(int fd, const void *bytes, size_t count);
int __wrap_io_write_full(int fd, const void *bytes, size_t count)
{
	if (fd != STREAM)
		return __real_io_write_full(fd, bytes, count);
	for (size_t i = 0; i < count; i++)
		read_sum = ((const uint8_t *)bytes)[i];
	return answers_left && answers_left-- ? 0 : -EPIPE;
}

static int see_open(void *context, bool shared_memory, uint32_t id, struct dp_err *err)
{
	struct seen *seen = context;

	assert(id != 0);
	seen->open = true;
	seen->next_pgno = 0;
	return 0;
}

static int see_pages(void *context, bool lazy, uint64_t pgno, uint64_t pages, const void *bytes, struct dp_err *err)
{
	struct seen *seen = context;

	assert(seen->open && pages > 0 && pages <= PAGE_CHUNK_PAGES && pgno >= seen->next_pgno &&
	       pgno + pages <= UINT64_C(1) << 35);
	for (uint64_t i = 0; i < pages * PAGE_BYTES; i += 64)
		read_sum = ((const uint8_t *)bytes)[i];
	seen->next_pgno = pgno + pages;
	seen->pages += pages;
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct seen seen = { 0 };
	const struct page_sink sink = { .context = &seen, .open = see_open, .pages = see_pages };
	struct dp_err err = { "" };

	stream = (struct input){ data, data + size };
	answers_left = size > 4 && data[4] ? data[4] : UINT32_MAX;
	int rc = page_receiver_run(STREAM, &sink, &err);

	assert(rc == 0 || (err.text[0] && (rc == -ECANCELED || rc == -EPROTO)));
	assert(seen.pages * PAGE_BYTES <= size);
	return 0;
}
