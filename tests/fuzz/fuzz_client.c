/* A client against a pool that answers anything. The first eight bytes say which calls it makes, the rest are the answers: a
 * stream of messages. Numbers of requests and checks, which no input can guess, are made to fit; a message whose object has bit
 * 60 keeps its own. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "blocks.h"
#include "client/connection.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CALLS 8
#define NO_FILE 0x40000000
#define SENT_LIMIT 64u

struct feed {
	struct stream stream;
	uint8_t *at, *end;
	uint8_t *next;       /* the next message whose number was not put right yet */
	uint64_t sent[SENT_LIMIT]; /* numbers of the requests */
	unsigned sent_count, sends;
	uint8_t head[MESSAGE_HEADER_BYTES];
	size_t head_bytes;
	uint64_t body_bytes; /* of the message that is being sent */
};

static volatile uint8_t read_sum; /* so that the reading is not optimized away */
static uint64_t asked_pages, given_pages;

/* Follows what the client says, to learn its requests' numbers. */
static void listen_to(struct feed *feed, const uint8_t *bytes, size_t count)
{
	while (count) {
		size_t part = DP_MIN(count, (size_t)feed->body_bytes);

		feed->body_bytes -= part;
		bytes += part;
		count -= part;
		part = feed->body_bytes ? 0 : DP_MIN(count, MESSAGE_HEADER_BYTES - feed->head_bytes);
		memcpy(feed->head + feed->head_bytes, bytes, part);
		feed->head_bytes += part;
		bytes += part;
		count -= part;
		if (feed->head_bytes < MESSAGE_HEADER_BYTES)
			continue;
		struct message_header header;

		assert(message_header_decode(feed->head, &header) == 0);
		feed->head_bytes = 0;
		feed->body_bytes = header.length;
		feed->sent[feed->sent_count++ % SENT_LIMIT] = header.request;
	}
}

static ssize_t feed_sendv(struct stream *stream, const struct iovec *iov, int count)
{
	struct feed *feed = (struct feed *)stream;
	size_t total = 0;

	if (feed->sends++ % 4 == 1)
		return -EAGAIN;
	for (int i = 0; i < count; i++) {
		listen_to(feed, iov[i].iov_base, iov[i].iov_len);
		total += iov[i].iov_len;
	}
	return (ssize_t)total;
}

/* Puts the messages right that begin now: each answers one of the last requests. */
static void fit(struct feed *feed)
{
	struct message_header header;

	while (feed->next <= feed->at && (size_t)(feed->end - feed->next) >= MESSAGE_HEADER_BYTES && feed->sent_count) {
		if (message_header_decode(feed->next, &header) < 0 ||
		    (size_t)(feed->end - feed->next) - MESSAGE_HEADER_BYTES < header.length) {
			feed->next = feed->end + 1;
			return;
		}
		if (!(header.object >> 60 & 1)) {
			unsigned known = DP_MIN(feed->sent_count, SENT_LIMIT);

			header.request = feed->sent[(feed->sent_count - 1 - header.request % known) % SENT_LIMIT];
			message_header_encode(feed->next, &header);
			message_seal(feed->next);
		}
		feed->next += MESSAGE_HEADER_BYTES + header.length;
	}
}

static ssize_t feed_receive(struct stream *stream, void *buffer, size_t bytes)
{
	struct feed *feed = (struct feed *)stream;

	fit(feed);
	/* One message at a time, so that the next can answer what is asked meanwhile. */
	size_t whole = (size_t)((feed->next <= feed->end && feed->next > feed->at ? feed->next : feed->end) - feed->at);
	size_t part = DP_MIN(bytes, whole);

	memcpy(buffer, feed->at, part);
	feed->at += part;
	return (ssize_t)part;
}

static void feed_close(struct stream *stream)
{
}

static const struct stream_ops feed_ops = { .sendv = feed_sendv, .receive = feed_receive, .close = feed_close };

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	uint8_t sum = 0;

	for (uint64_t i = 0; data && i < range.pages * PAGE_BYTES; i += 61)
		sum ^= ((const uint8_t *)data)[i];
	read_sum = sum;
	assert(range.pages && range.pgno >= 5 && range.pgno + range.pages <= 305);
	given_pages += range.pages;
	assert(given_pages <= asked_pages); /* C1 */
}

static void on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	on_pages(context, cookie, range, NULL, last);
}

static void on_done(void *context, uint64_t cookie, int result)
{
	assert(result <= 0);
}

static int page_calls(struct client *client, unsigned call)
{
	static const struct client_handler handler = { NULL, on_pages, on_done, on_damaged };
	static uint8_t page[2 * PAGE_BYTES];
	const struct page_range one = { 5, 1 }, many[] = { { 5, 60 }, { 65, 3 }, { 100, 200 } };
	const struct iovec data = { page, sizeof(page) };

	switch (call % 6) {
	case 0:
		asked_pages += 1;
		return client_get(client, CLASS_DEMAND, 1 << 20 | 1, &one, 1, 1);
	case 1:
		asked_pages += 263;
		return client_get(client, CLASS_PREFETCH, 1 << 20 | 1, many, 3, 2);
	case 2:
		return client_put(client, 1 << 20 | 1, 1, &(const struct page_range){ 7, 2 }, 1, &data, 1, 3);
	case 3:
		return client_fork(client, 1 << 20 | 1, 1, 1 << 20 | 2, 4);
	default:
		return client_receive(client, &handler);
	}
}

static void look(struct snapshot_info *info)
{
	for (size_t i = 0; i < info->file_count; i++)
		assert(strlen(info->files[i].name) < sizeof(info->files[i].name));
	for (size_t i = 0; i < info->instance_list_count; i++)
		assert(strlen(info->instance_list[i].name) < sizeof(info->instance_list[i].name));
	client_snapshot_info_done(info);
}

static int on_file(void *context, size_t index, const void *content, uint64_t bytes, struct dp_err *err)
{
	assert(index < 2 && bytes == 4);
	read_sum = ((const uint8_t *)content)[3];
	return 0;
}

static int control_calls(struct client *client, unsigned call, struct dp_err *err)
{
	static const struct snapshot_file files[2] = { { "pstree.img", 4 }, { "mm.img", 4 } };
	struct snapshot_info info, *list;
	struct instance_info instance;
	struct client_attached attached;
	struct order_run *runs;
	struct pool_status status;
	size_t count;
	int result;

	switch (call % 7) {
	case 0:
		if ((result = client_snapshot_open(client, "a:b", &info, err)) == 0)
			look(&info);
		return result;
	case 1:
		if ((result = client_list(client, &list, &count, err)) < 0)
			return result;
		for (size_t i = 0; i < count; i++)
			look(&list[i]);
		free(list);
		return 0;
	case 2:
		return client_files_get(client, 1, files, 2, on_file, NULL, err);
	case 3:
		return client_status(client, &status, err);
	case 4:
		if ((result = client_instance_create(client, "a:b", "c", false, &instance, err)) == 0)
			free(instance.spaces);
		return result;
	case 5:
		if ((result = client_order_get(client, 1, &runs, &count, err)) == 0)
			free(runs);
		return result;
	default:
		if ((result = client_attach(client, 2, 1, 0, NULL, 1000, &attached, err)) == 0)
			client_attached_done(&attached);
		return result;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	struct client *client = NULL;
	struct dp_err err = { "" };
	unsigned used = blocks_used();

	if (size < CALLS)
		return 0;
	uint8_t *data = malloc(size - CALLS + 1);

	assert(data);
	memcpy(data, input + CALLS, size - CALLS);
	struct feed feed = { .stream = { &feed_ops, NO_FILE }, .at = data, .end = data + size - CALLS, .next = data };

	asked_pages = given_pages = 0;
	if (client_open_stream(&client, &feed.stream, "pool", 1000, &err) == 0) {
		client_set_compress(client, CLIENT_COMPRESS_LZ4);
		for (unsigned i = 0; i < CALLS; i++) {
			int result = input[i] & 0x80 ? control_calls(client, input[i], &err) : page_calls(client, input[i]);

			if (result == -EPROTO || result == -ECONNRESET)
				break;
		}
	}
	client_close(client);
	free(data);
	assert(blocks_used() == used);
	return 0;
}
