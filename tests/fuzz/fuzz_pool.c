/* A whole pool against a client that sends anything: the input is a stream of messages, cut into reads by its bytes. Ids are
 * made predictable (the first object is 1), so that inputs can name spaces. Who sends is the pool's own user, or, where bit 61
 * of the first message's request number is set, somebody whose rights and quota are limited. Afterwards nothing may be left
 * behind: the pool serves the next input. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"
#include "blocks.h"
#include "pool/connection.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct feed {
	struct stream stream;
	const uint8_t *at, *end;
	unsigned sends;
	bool limited;
};

static const char limits[] = "psk:guest read,write red* quota=64K\npsk:guest read *\n";

static volatile uint8_t read_sum; /* so that the reading is not optimized away */

/* Takes everything, but now and then less than there is, and sometimes nothing. */
static ssize_t feed_sendv(struct stream *stream, const struct iovec *iov, int count)
{
	struct feed *feed = (struct feed *)stream;
	size_t total = 0;
	uint8_t sum = 0;

	for (int i = 0; i < count; i++) {
		for (size_t byte = 0; byte < iov[i].iov_len; byte += 61)
			sum ^= ((const uint8_t *)iov[i].iov_base)[byte];
		total += iov[i].iov_len;
	}
	read_sum = sum;
	switch (feed->sends++ % 4) {
	case 1:
		return -EAGAIN;
	case 2:
		return (ssize_t)DP_MAX(total / 3, 1u);
	default:
		return (ssize_t)total;
	}
}

static ssize_t feed_receive(struct stream *stream, void *buffer, size_t bytes)
{
	struct feed *feed = (struct feed *)stream;
	size_t part = DP_MIN(bytes, (size_t)(feed->end - feed->at));

	memcpy(buffer, feed->at, part);
	feed->at += part;
	return (ssize_t)part;
}

static void feed_close(struct stream *stream)
{
}

/* Without one that the pool knows, an input would end at its first message. */
static void feed_identity(const struct stream *stream, char *identity, size_t size)
{
	if (((const struct feed *)stream)->limited)
		snprintf(identity, size, "psk:guest");
	else
		snprintf(identity, size, "uid:%u", (unsigned)geteuid());
}

static const struct stream_ops feed_ops = {
	.sendv = feed_sendv, .receive = feed_receive, .close = feed_close, .identity = feed_identity
};

/* Digests that fit the pages, where there is anything for them to fit: an input cannot guess them. */
static void digest_put(const struct message_header *header, uint8_t *payload)
{
	static uint8_t pages[PUT_PAGES_LIMIT * (size_t)PAGE_BYTES];
	struct packed_pages packed;
	struct message_put put;
	bool is_packed = header->class & MESSAGE_PACKED;

	if (header->type != MESSAGE_PUT || (is_packed ? message_put_decode_packed(payload, header->length, &put, &packed) :
							message_put_decode(payload, header->length, &put)) < 0)
		return;
	if (is_packed && pack_unpack(&packed, pages, NULL) < 0)
		return;
	for (uint64_t i = 0; i < put.ranges.pages; i++) {
		struct page_digest digest = page_digest((is_packed ? pages : put.pages) + i * PAGE_BYTES);

		message_digests_encode(payload + (put.digests - payload) + i * DIGEST_BYTES, DIGEST_BYTES, &digest, 1);
	}
}

static bool is_limited(const uint8_t *data, size_t size)
{
	struct message_header header;

	return size >= MESSAGE_HEADER_BYTES && message_header_decode(data, &header) == 0 && header.request >> 61 & 1;
}

/* Nor checks. A message whose request number has bit 60 keeps its own, so that wrong ones are seen too. */
static void seal(uint8_t *data, size_t size)
{
	struct message_header header;

	for (size_t at = 0; size - at >= MESSAGE_HEADER_BYTES && message_header_decode(data + at, &header) == 0 &&
			    size - at - MESSAGE_HEADER_BYTES >= header.length;
	     at += MESSAGE_HEADER_BYTES + header.length) {
		digest_put(&header, data + at + MESSAGE_HEADER_BYTES);
		if (!(header.request >> 60 & 1))
			message_seal(data + at);
	}
}

/* Memory that is given back needs not be zero when it comes again. */
int __wrap_madvise(void *at, size_t bytes, int advice);
int __wrap_madvise(void *at, size_t bytes, int advice)
{
	return 0;
}

static struct pool *the_pool(void)
{
	static struct pool *pool;
	struct store *store;

	if (!pool && (store_open(&store, "memory:4M", true, NULL) < 0 || pool_open(&pool, store, NULL) < 0))
		abort();
	pool->next_id = 1;
	pool->lost_count = pool->damaged_pages = 0;
	memset(pool->identity, 'i', sizeof(pool->identity));
	return pool;
}

static void check_empty(struct pool *pool)
{
	struct store_capacity capacity;

	while (pool->all)
		object_free(pool, pool->all);
	pool_flush(pool);
	pool->store->ops->capacity(pool->store, &capacity);
	assert(capacity.used_pages == 0 && !pool->objects.count && !pool->spaces.count);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	struct pool *pool = the_pool();
	unsigned used = blocks_used();
	uint8_t *data = malloc(size + 1);

	assert(data);
	memcpy(data, input, size);
	seal(data, size);
	struct feed feed = { .stream = { &feed_ops, -1 }, .at = data, .end = data + size,
			     .limited = is_limited(data, size) };
	struct connection_shared shared = { .pool = pool };

	log_setup(2, LOG_LEVEL_ERROR, "");
	if (feed.limited && access_parse(&shared.access, limits, NULL) < 0)
		abort();
	struct connection *connection = connection_new(&shared, &feed.stream);

	assert(connection);
	for (unsigned step = 0; step < 100000; step++) {
		int result = connection_wants_write(connection) ? connection_writable(connection) : 0;

		if (result == 0 && connection_wants_read(connection))
			result = connection_readable(connection);
		if (result < 0)
			break;
	}
	assert(!connection->hello || connection->identified); /* else this tries nothing */
	for (const struct object *object = pool->all; object; object = object->next)
		for (const struct space *space = object->spaces; space; space = space->next)
			assert(pagemap_consistent(&space->map));
	connection_free(connection);
	connection_shared_done(&shared);
	free(data);
	check_empty(pool);
	assert(blocks_used() == used);
	return 0;
}
