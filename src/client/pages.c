/* The asynchronous page calls. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "client/connection.h"

struct flight *connection_take_flight(struct client *client, enum flight_kind kind, uint64_t cookie, uint64_t *request)
{
	if (client->first_free == IN_FLIGHT_LIMIT)
		return NULL;
	struct flight *flight = &client->flights[client->first_free];

	*request = ((uint64_t)flight->generation << 32) | client->first_free;
	client->first_free = flight->next_free;
	flight->kind = kind;
	flight->cookie = cookie;
	flight->pages = 0;
	flight->answered = false;
	flight->again = 0;
	return flight;
}

static void untake_flight(struct client *client, struct flight *flight)
{
	flight->kind = FLIGHT_FREE;
	flight->next_free = client->first_free;
	client->first_free = (uint32_t)(flight - client->flights);
}

static uint64_t pages_of(const struct page_range *ranges, size_t count, uint64_t limit)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < count; i++) {
		if (ranges[i].pages == 0 || ranges[i].pages > PGNO_END || ranges[i].pgno > PGNO_END - ranges[i].pages)
			return UINT64_MAX;
		pages += ranges[i].pages;
		if (pages > limit)
			return UINT64_MAX;
	}
	return pages ? pages : UINT64_MAX;
}

bool client_read_near(struct client *client)
{
	struct message_header request = { .type = MESSAGE_NEAR }, answer;
	const uint8_t *payload;
	struct message_near pool;
	struct dp_err unused;

	if (client->near || !(client->features & HELLO_FEATURE_NEAR) || stream_is_network(client->stream))
		return client->near;
	if (control_call(client, &request, NULL, 0, NULL, 0, MESSAGE_NEAR, CONTROL_TIMEOUT_MS, &answer, &payload, &unused) < 0 ||
	    message_near_decode(payload, answer.length, &pool) < 0)
		return false;
	client->near_pages = malloc((size_t)NEAR_READ_PAGES * PAGE_BYTES);
	client->near = client->near_pages ? near_open(&pool) : NULL;
	return client->near;
}

int client_get_near(struct client *client, const struct client_handler *handler, uint64_t space, const struct page_range *ranges,
		    size_t count, uint64_t cookie)
{
	struct page_place places[GET_PAGES_LIMIT];
	uint64_t pages = 0, unused;

	if (client->error)
		return client->error;
	if (!client->near || client->near_busy)
		return 0;
	for (size_t i = 0; i < count; pages += ranges[i++].pages)
		if (ranges[i].pages > GET_PAGES_LIMIT - pages || !near_find(client->near, space, ranges[i], places + pages))
			return 0;
	struct flight *flight = connection_take_flight(client, FLIGHT_LOCATE, cookie, &unused);

	if (!flight)
		return 0;
	flight->space = space;
	int calls = connection_deliver_near(client, handler, flight, ranges, count, places);

	return calls < 0 ? calls : DP_MAX(calls, 1); /* pages that are asked for again are on their way too */
}

/* Asks where pages lie: the whole blocks around what is wanted, since the neighbours are wanted next. */
static int locate(struct client *client, enum request_class class, uint64_t space, struct page_range range, uint64_t cookie)
{
	uint8_t payload[8 + 16];
	struct message_header header = {
		.type = MESSAGE_LOCATE, .class = (uint8_t) class, .object = space, .epoch = client->read_epoch
	};
	uint64_t first = range.pgno / NEAR_BLOCK_PAGES * NEAR_BLOCK_PAGES;
	uint64_t end = (range.pgno + range.pages + NEAR_BLOCK_PAGES - 1) / NEAR_BLOCK_PAGES * NEAR_BLOCK_PAGES;
	const struct page_range located = end - first <= GET_PAGES_LIMIT ? (struct page_range){ first, end - first } : range;
	struct flight *flight = connection_take_flight(client, FLIGHT_LOCATE, cookie, &header.request);

	if (!flight)
		return -EAGAIN;
	flight->ranges[0] = range;
	flight->ranges[1] = located;
	flight->space = space;
	flight->changes = near_changes(client->near);
	if (located.pgno % NEAR_BLOCK_PAGES || located.pages % NEAR_BLOCK_PAGES)
		flight->changes = UINT64_MAX; /* no whole blocks: not to be kept */
	int bytes = message_ranges_encode(payload, sizeof(payload), &located, 1);
	int result = connection_send(client, &header, payload, (size_t)bytes, NULL, 0, 0, OUTPUT_BYTES);

	if (result < 0)
		untake_flight(client, flight);
	return result;
}

/* These pages are about to change. */
static void forget(struct client *client, uint64_t space, const struct page_range *ranges, size_t count)
{
	for (size_t i = 0; client->near && i < count; i++)
		near_forget(client->near, space, ranges[i].pgno, ranges[i].pages);
}

int client_get(struct client *client, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count,
	       uint64_t cookie)
{
	uint8_t payload[8 + GET_RANGES_LIMIT * 16];
	struct message_header header = {
		.type = MESSAGE_GET, .class = (uint8_t) class, .object = space, .epoch = client->read_epoch
	};

	if (client->error)
		return client->error;
	uint64_t pages = count > GET_RANGES_LIMIT ? UINT64_MAX : pages_of(ranges, count, GET_PAGES_LIMIT);

	if (pages == UINT64_MAX)
		return -EINVAL;
	if (client->near && count == 1)
		return locate(client, class, space, ranges[0], cookie);
	if (client->get_meter.on)
		header.class |= MESSAGE_PACKED;
	struct flight *flight = connection_take_flight(client, FLIGHT_GET, cookie, &header.request);

	if (!flight)
		return -EAGAIN;
	flight->space = space;
	flight->range_count = (uint32_t)count;
	flight->range_at = 0;
	flight->page_at = 0;
	memcpy(flight->ranges, ranges, count * sizeof(*ranges));
	int bytes = message_ranges_encode(payload, sizeof(payload), ranges, count);
	int result = connection_send(client, &header, payload, (size_t)bytes, NULL, 0, 0, OUTPUT_BYTES);

	if (result < 0) {
		untake_flight(client, flight);
		return result;
	}
	flight->pages = (uint32_t)pages;
	flight->turn = compress_sent(&client->get_meter, pages);
	return 0;
}

/* A request that is answered by OK or ERROR. */
static int send_change(struct client *client, struct message_header *header, const void *payload, int bytes,
		       const struct iovec *data, size_t data_count, size_t data_bytes, uint64_t pages, uint64_t cookie)
{
	if (client->error)
		return client->error;
	if (bytes < 0)
		return bytes;
	struct flight *flight = connection_take_flight(client, FLIGHT_CHANGE, cookie, &header->request);

	if (!flight)
		return -EAGAIN;
	header->class |= CLASS_WRITE_BACK;
	if (client->sequence) {
		client->by_sequence[client->sequence & (SEQUENCE_WINDOW - 1)] = (uint32_t)(flight - client->flights);
		header->request = flight->sequence = SEQUENCE_BIT | client->sequence;
	}
	int result = connection_send(client, header, payload, (size_t)bytes, data, data_count, data_bytes,
				     data_bytes ? OUTPUT_PUT_BYTES : OUTPUT_BYTES);

	if (result < 0) {
		flight->sequence = 0;
		untake_flight(client, flight);
		return result;
	}
	flight->pages = (uint32_t)pages;
	if (pages)
		flight->turn = compress_sent(&client->put_meter, pages);
	return 0;
}

int connection_send_change(struct client *client, struct message_header *header, const void *payload, int bytes, uint64_t cookie)
{
	return send_change(client, header, payload, bytes, NULL, 0, 0, 0, cookie);
}

/* The pages of a PUT into client->packed; the bytes used, or 0 where a page is in two pieces: it goes as it is then. */
static size_t pack(struct client *client, const struct iovec *data, size_t data_count)
{
	const void *pages[PUT_PAGES_LIMIT];
	size_t count = 0;

	for (size_t i = 0; i < data_count; i++) {
		if (data[i].iov_len % PAGE_BYTES)
			return 0;
		for (size_t at = 0; at < data[i].iov_len; at += PAGE_BYTES)
			pages[count++] = (const uint8_t *)data[i].iov_base + at;
	}
	return pack_pages(client->packed, pages, count);
}

/* Whole pages, however they are cut into pieces. */
static void digest_pages(const struct iovec *data, uint64_t pages, uint8_t *bytes)
{
	const uint8_t *at = NULL;
	size_t left = 0;

	for (uint64_t i = 0; i < pages; i++) {
		uint8_t page[PAGE_BYTES];
		const uint8_t *whole = page;

		for (size_t done = 0; done < PAGE_BYTES;) {
			while (left == 0) {
				at = data->iov_base;
				left = data++->iov_len;
			}
			size_t part = DP_MIN(left, PAGE_BYTES - done);

			if (part == PAGE_BYTES)
				whole = at;
			else
				memcpy(page + done, at, part);
			done += part;
			at += part;
			left -= part;
		}
		const struct page_digest digest = page_digest(whole);

		message_digests_encode(bytes + i * DIGEST_BYTES, DIGEST_BYTES, &digest, 1);
	}
}

int client_put(struct client *client, uint64_t space, uint64_t epoch, const struct page_range *ranges, size_t count,
	       const struct iovec *data, size_t data_count, uint64_t cookie)
{
	uint8_t payload[8 + PUT_RANGES_LIMIT * 16 + PUT_PAGES_LIMIT * DIGEST_BYTES];
	struct message_header header = { .type = MESSAGE_PUT, .object = space, .epoch = epoch };
	uint64_t pages = count > PUT_RANGES_LIMIT ? UINT64_MAX : pages_of(ranges, count, PUT_PAGES_LIMIT);
	size_t bytes = 0;

	for (size_t i = 0; i < data_count; i++)
		bytes += data[i].iov_len;
	if (pages == UINT64_MAX || bytes != pages * PAGE_BYTES)
		return -EINVAL;
	forget(client, space, ranges, count);
	/* What could not be sent would be hashed and packed again and again. */
	if (client->first_free == IN_FLIGHT_LIMIT || connection_queue_full(client, OUTPUT_PUT_BYTES))
		return client->error ? client->error : -EAGAIN;
	int payload_bytes = message_ranges_encode(payload, sizeof(payload), ranges, count);
	struct iovec packed = { client->packed, 0 };

	digest_pages(data, pages, payload + payload_bytes);
	payload_bytes += (int)(pages * DIGEST_BYTES);
	header.plain = (uint32_t)bytes;
	if (client->put_meter.on)
		packed.iov_len = pack(client, data, data_count);
	if (packed.iov_len) {
		header.class = MESSAGE_PACKED;
		data = &packed;
		data_count = 1;
		bytes = packed.iov_len;
		header.plain = (uint32_t)(bytes - pages * PACK_ENTRY_BYTES);
		compress_packed(&client->put_meter, pages, bytes);
	}
	return send_change(client, &header, payload, payload_bytes, data, data_count, bytes, pages, cookie);
}

int client_drop(struct client *client, uint64_t space, uint64_t epoch, const struct page_range *ranges, size_t count,
		uint64_t cookie)
{
	uint8_t payload[8 + 256 * 16];
	struct message_header header = { .type = MESSAGE_DROP, .object = space, .epoch = epoch };

	/* More ranges than 256 go in several calls: the caller's loop, not a large buffer here. */
	if (count > 256 || pages_of(ranges, count, UINT64_MAX - 1) == UINT64_MAX)
		return -EINVAL;
	forget(client, space, ranges, count);
	return send_change(client, &header, payload, message_ranges_encode(payload, sizeof(payload), ranges, count), NULL, 0, 0,
			   0, cookie);
}

int client_move(struct client *client, uint64_t space, uint64_t epoch, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages,
		uint64_t cookie)
{
	uint8_t payload[24];
	struct message_header header = { .type = MESSAGE_MOVE, .object = space, .epoch = epoch };
	const struct message_move move = { from_pgno, to_pgno, pages };

	forget(client, space, (const struct page_range[]){ { from_pgno, pages }, { to_pgno, pages } }, 2);
	return send_change(client, &header, payload, message_move_encode(payload, sizeof(payload), &move), NULL, 0, 0, 0, cookie);
}

int client_fork(struct client *client, uint64_t parent, uint64_t epoch, uint64_t child, uint64_t cookie)
{
	uint8_t payload[8];
	struct message_header header = { .type = MESSAGE_FORK, .object = parent, .epoch = epoch };

	forget(client, child, &(const struct page_range){ 0, UINT64_MAX }, 1);
	return send_change(client, &header, payload, message_number_encode(payload, sizeof(payload), child), NULL, 0, 0, 0,
			   cookie);
}

int client_space_free(struct client *client, uint64_t space, uint64_t epoch, uint64_t cookie)
{
	struct message_header header = { .type = MESSAGE_SPACE_FREE, .object = space, .epoch = epoch };

	forget(client, space, &(const struct page_range){ 0, UINT64_MAX }, 1);
	return send_change(client, &header, NULL, 0, NULL, 0, 0, 0, cookie);
}

int client_order_put(struct client *client, uint64_t instance, uint64_t epoch, const struct order_run *runs, size_t count,
		     uint64_t cookie)
{
	struct message_header header = { .type = MESSAGE_ORDER_PUT, .object = instance, .epoch = epoch };
	size_t size = 8 + DP_MIN(count, (size_t)ORDER_RUNS_LIMIT) * 24;
	cleanup_free uint8_t *payload = malloc(size);

	if (!payload)
		return -ENOMEM;
	return send_change(client, &header, payload, message_order_encode(payload, size, runs, count), NULL, 0, 0, 0, cookie);
}

/* What came while a control call waited. */
static int deliver_held(struct client *client, const struct client_handler *handler)
{
	int calls = 0;

	while (client->held && !client->error) {
		struct held *held = client->held;

		client->held = held->next;
		if (!client->held)
			client->last_held = &client->held;
		int made = connection_deliver(client, handler, &held->header, held->payload);

		free(held);
		if (made < 0)
			return made;
		calls += made;
	}
	return calls;
}

int client_receive(struct client *client, const struct client_handler *handler)
{
	struct message_header header;
	const uint8_t *payload;
	int result, calls;

	if (client->error)
		return client->error;
	calls = deliver_held(client, handler);
	if (calls < 0 || connection_flush(client) < 0)
		return client->error;
	do {
		result = connection_fill(client);
		if (result < 0)
			return result;
		while ((result = connection_next(client, &header, &payload)) > 0) {
			/* Nothing else is on its way: a control call takes its answer before it returns. */
			if (header.request & CONTROL_REQUEST)
				return connection_fail(client, -EPROTO);
			result = connection_deliver(client, handler, &header, payload);
			if (result < 0)
				return result;
			calls += result;
		}
	} while (result == 0 && stream_pending(client->stream));
	return result < 0 ? result : calls;
}

bool client_wants_write(const struct client *client)
{
	return client->output_end > client->output_start || stream_holds(client->stream);
}

int client_fd(const struct client *client)
{
	return client->stream->fd;
}

uint64_t client_bytes_sent(const struct client *client)
{
	return client->bytes_sent;
}

uint64_t client_bytes_received(const struct client *client)
{
	return client->bytes_received;
}

uint64_t client_damaged_pages(const struct client *client)
{
	return client->damaged_pages;
}
