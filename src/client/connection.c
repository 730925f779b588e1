#include "client/connection.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/base.h"

int connection_open(struct client *client, struct stream *stream)
{
	client->stream = stream;
	client->output = malloc(OUTPUT_BYTES); /* lazily backed: what is never queued costs nothing */
	client->input = malloc(INPUT_BYTES);
	client->input_size = INPUT_BYTES;
	client->flights = calloc(IN_FLIGHT_LIMIT, sizeof(*client->flights));
	client->last_held = &client->held;
	if (!client->output || !client->input || !client->flights)
		return -ENOMEM;
	for (uint32_t i = 0; i < IN_FLIGHT_LIMIT; i++)
		client->flights[i].next_free = i + 1;
	return 0;
}

int connection_fail(struct client *client, int error)
{
	if (!client->error)
		client->error = error;
	return client->error;
}

/* ---- sending ---- */

int connection_flush(struct client *client)
{
	while (client->output_start < client->output_end) {
		const struct iovec iov = { client->output + client->output_start, client->output_end - client->output_start };
		ssize_t sent = stream_sendv(client->stream, &iov, 1);

		if (sent == -EAGAIN)
			return 0;
		if (sent < 0)
			return connection_fail(client, (int)sent);
		client->bytes_sent += (uint64_t)sent;
		client->output_start += (size_t)sent;
	}
	client->output_start = client->output_end = 0;
	int held = stream_flush(client->stream);

	return held < 0 && held != -EAGAIN ? connection_fail(client, held) : 0;
}

/* Appends what a message's pieces hold behind the first `skip` bytes; there is room. */
static void append(struct client *client, const struct iovec *pieces, int count, size_t skip)
{
	for (int i = 0; i < count; i++) {
		if (skip >= pieces[i].iov_len) {
			skip -= pieces[i].iov_len;
			continue;
		}
		memcpy(client->output + client->output_end, (const uint8_t *)pieces[i].iov_base + skip, pieces[i].iov_len - skip);
		client->output_end += pieces[i].iov_len - skip;
		skip = 0;
	}
}

/* Sends the message straight from the caller's buffers; what the socket does not take is queued. */
static int send_pieces(struct client *client, const struct iovec *pieces, int count)
{
	ssize_t sent = 0;

	if (client->output_start == client->output_end) {
		client->output_start = client->output_end = 0;
		sent = stream_sendv(client->stream, pieces, count);
		if (sent < 0 && sent != -EAGAIN)
			return connection_fail(client, (int)sent);
		sent = DP_MAX(sent, 0);
		client->bytes_sent += (uint64_t)sent;
	}
	append(client, pieces, count, (size_t)sent);
	return 0;
}

bool connection_queue_full(struct client *client, size_t queue_limit)
{
	return connection_flush(client) < 0 || client->output_end - client->output_start > queue_limit;
}

#define PIECES 64

int connection_send(struct client *client, struct message_header *header, const void *payload, size_t payload_bytes,
		    const struct iovec *data, size_t data_count, size_t data_bytes, size_t queue_limit)
{
	uint8_t encoded[MESSAGE_HEADER_BYTES];
	struct iovec pieces[PIECES];
	size_t whole = MESSAGE_HEADER_BYTES + payload_bytes + data_bytes;

	if (client->error)
		return client->error;
	if (payload_bytes + data_bytes > MESSAGE_PAYLOAD_LIMIT)
		return -EMSGSIZE;
	if (client->output_end > client->output_start && connection_flush(client) < 0)
		return client->error;
	size_t queued = client->output_end - client->output_start;

	if (queued > queue_limit || queued + whole > OUTPUT_BYTES)
		return -EAGAIN;
	if (client->output_end + whole > OUTPUT_BYTES) {
		memmove(client->output, client->output + client->output_start, queued);
		client->output_start = 0;
		client->output_end = queued;
	}
	header->version = MESSAGE_VERSION;
	header->length = (uint32_t)(payload_bytes + data_bytes);
	message_header_encode(encoded, header);
	pieces[0] = (struct iovec){ encoded, sizeof(encoded) };
	pieces[1] = (struct iovec){ (void *)payload, payload_bytes };
	int used = 2;

	/* More pieces than fit one call go in turns; the stream keeps them in order. */
	for (size_t i = 0; i < data_count; i++) {
		if (used == PIECES) {
			if (send_pieces(client, pieces, used) < 0)
				return client->error;
			used = 0;
		}
		pieces[used++] = data[i];
	}
	return send_pieces(client, pieces, used);
}

/* ---- receiving ---- */

int connection_fill(struct client *client)
{
	if (client->input_start == client->input_end) {
		client->input_start = client->input_end = 0;
	} else if (client->input_size - client->input_end < PAGE_ANSWER_LIMIT) {
		memmove(client->input, client->input + client->input_start, client->input_end - client->input_start);
		client->input_end -= client->input_start;
		client->input_start = 0;
	}
	size_t room = client->input_size - client->input_end;

	if (room == 0)
		return connection_fail(client, -EPROTO);
	ssize_t got = stream_receive(client->stream, client->input + client->input_end, room);

	if (got == -EAGAIN)
		return 0;
	if (got <= 0)
		return connection_fail(client, got == 0 ? -ECONNRESET : (int)got);
	client->input_end += (size_t)got;
	client->bytes_received += (uint64_t)got;
	return 1;
}

/* Room for a long answer to a control call. */
static int grow_input(struct client *client, size_t whole)
{
	if (whole <= client->input_size)
		return 0;
	uint8_t *grown = realloc(client->input, whole);

	if (!grown)
		return connection_fail(client, -ENOMEM);
	client->input = grown;
	client->input_size = whole;
	return 0;
}

int connection_next(struct client *client, struct message_header *header, const uint8_t **payload)
{
	size_t have = client->input_end - client->input_start;

	if (have < MESSAGE_HEADER_BYTES)
		return 0;
	int result = message_header_decode(client->input + client->input_start, header);

	/* C2: an answer of a page request is never so long. Those of control calls may be, and are waited for. */
	if (result < 0 || (!(header->request & CONTROL_REQUEST) && header->length > PAGE_ANSWER_LIMIT))
		return connection_fail(client, result == -EPROTONOSUPPORT ? result : -EPROTO);
	if (have < MESSAGE_HEADER_BYTES + (size_t)header->length)
		return grow_input(client, MESSAGE_HEADER_BYTES + (size_t)header->length);
	*payload = client->input + client->input_start + MESSAGE_HEADER_BYTES;
	client->input_start += MESSAGE_HEADER_BYTES + header->length;
	return 1;
}

int connection_hold(struct client *client, const struct message_header *header, const uint8_t *payload)
{
	struct held *held = malloc(sizeof(*held) + header->length);

	if (!held)
		return connection_fail(client, -ENOMEM);
	held->next = NULL;
	held->header = *header;
	memcpy(held->payload, payload, header->length);
	*client->last_held = held;
	client->last_held = &held->next;
	return 0;
}

/* ---- answers to page requests ---- */

static struct flight *find_flight(struct client *client, uint64_t request)
{
	uint64_t index = request & (IN_FLIGHT_LIMIT - 1);

	if (request & SEQUENCE_BIT) {
		struct flight *operation = &client->flights[client->by_sequence[request & (SEQUENCE_WINDOW - 1)]];

		return operation->kind != FLIGHT_FREE && operation->sequence == request ? operation : NULL;
	}
	struct flight *flight = &client->flights[index];

	return flight->kind != FLIGHT_FREE && request == (((uint64_t)flight->generation << 32) | index) ? flight : NULL;
}

/* The entry may be used again; its generation makes late answers to the old request unknown. */
static uint64_t end_flight(struct client *client, struct flight *flight)
{
	struct compress_meter *meter = flight->kind == FLIGHT_GET ? &client->get_meter : &client->put_meter;

	if (flight->pages)
		compress_answered(meter, flight->turn, flight->pages, compress_measures(meter) ? clock_now_ns() : 0);
	flight->kind = FLIGHT_FREE;
	flight->sequence = 0;
	flight->generation = (flight->generation + 1) & INT32_MAX;
	flight->next_free = client->first_free;
	client->first_free = (uint32_t)(flight - client->flights);
	return flight->cookie;
}

/* C2: are these the pages that come next? Moves on behind them. */
static bool take_run(struct flight *flight, struct message_run run)
{
	if (flight->range_at == flight->range_count)
		return false;
	const struct page_range *range = &flight->ranges[flight->range_at];

	/* A run may reach over the border of two ranges that touch; what the caller sees is split there by deliver_run. */
	if (run.pgno != range->pgno + flight->page_at || run.pages > range->pages - flight->page_at)
		return false;
	flight->page_at += run.pages;
	if (flight->page_at == range->pages) {
		flight->range_at++;
		flight->page_at = 0;
	}
	return true;
}

static int deliver_data(struct client *client, const struct client_handler *handler, const struct message_header *header,
			struct flight *flight, const uint8_t *payload)
{
	struct message_data data;
	bool more = header->class & MESSAGE_MORE;
	int calls = 0;

	const uint8_t *pages;

	if (header->class & MESSAGE_PACKED) {
		struct packed_pages packed;

		/* Only what was offered, and never beyond the buffer: the decoder knows at most DATA_PAGES_LIMIT pages. */
		if (!client->unpacked || message_data_decode_packed(payload, header->length, &data, &packed) < 0 ||
		    pack_unpack(&packed, client->unpacked) < 0)
			return connection_fail(client, -EPROTO);
		pages = client->unpacked;
		compress_packed(&client->get_meter, data.data_pages, header->length);
	} else {
		if (message_data_decode(payload, header->length, &data) < 0)
			return connection_fail(client, -EPROTO);
		pages = data.pages;
	}

	for (uint32_t i = 0; i < data.count; i++) {
		struct message_run run = message_run_at(&data, i);

		while (run.pages) {
			const struct page_range *range = &flight->ranges[DP_MIN(flight->range_at, GET_RANGES_LIMIT - 1u)];
			struct message_run part = run;

			part.pages = (uint32_t)DP_MIN((uint64_t)run.pages, range->pages - flight->page_at);
			if (!take_run(flight, part))
				return connection_fail(client, -EPROTO);
			run.pgno += part.pages;
			run.pages -= part.pages;
			bool last = !more && i + 1 == data.count && run.pages == 0;
			bool complete = flight->range_at == flight->range_count;

			/* C1: the last part completes the request, and nothing before it does. */
			if (last != complete)
				return connection_fail(client, -EPROTO);
			uint64_t cookie = last ? end_flight(client, flight) : flight->cookie;

			handler->on_pages(handler->context, cookie, (struct page_range){ part.pgno, part.pages },
					  part.zero ? NULL : pages, last);
			if (!part.zero)
				pages += (size_t)part.pages * PAGE_BYTES;
			calls++;
		}
	}
	return calls;
}

/* Pages of one range; `last` range of its request or not. */
static int deliver_near_range(struct client *client, const struct client_handler *handler, uint64_t cookie, struct page_range range,
			      const uint64_t *places, bool last)
{
	uint64_t run;
	int calls = 0;

	for (uint64_t at = 0; at < range.pages; at += run) {
		bool zero = places[at] == 0;

		for (run = 1; at + run < range.pages && run < NEAR_READ_PAGES && (places[at + run] == 0) == zero;)
			run++;
		int result = zero ? 0 : near_read(client->near, places + at, run, client->near_pages);

		if (result < 0)
			return connection_fail(client, result);
		client->bytes_received += zero ? 0 : run * PAGE_BYTES;
		handler->on_pages(handler->context, cookie, (struct page_range){ range.pgno + at, run }, zero ? NULL : client->near_pages,
				  last && at + run == range.pages);
		calls++;
	}
	return calls;
}

int connection_deliver_near(struct client *client, const struct client_handler *handler, uint64_t cookie, const struct page_range *ranges,
			    size_t count, const uint64_t *places)
{
	int calls = 0, result = 0;

	assert(!client->near_busy);
	client->near_busy = true;
	for (size_t i = 0; i < count && result >= 0; i++) {
		result = deliver_near_range(client, handler, cookie, ranges[i], places, i + 1 == count);
		calls += DP_MAX(result, 0);
		places += ranges[i].pages;
	}
	client->near_busy = false;
	return result < 0 ? result : calls;
}

static int deliver_places(struct client *client, const struct client_handler *handler, struct flight *flight, const uint8_t *payload,
			  uint64_t bytes)
{
	const struct page_range asked = flight->ranges[0], located = flight->ranges[1];
	uint64_t places[GET_PAGES_LIMIT];

	if (message_places_decode(payload, bytes, places, located.pages) < 0)
		return connection_fail(client, -EPROTO);
	if (flight->changes == near_changes(client->near)) /* N2 */
		near_keep(client->near, flight->space, located.pgno, places, located.pages);
	return connection_deliver_near(client, handler, end_flight(client, flight), &asked, 1, places + (asked.pgno - located.pgno));
}

int connection_deliver(struct client *client, const struct client_handler *handler, const struct message_header *header,
		       const uint8_t *payload)
{
	struct flight *flight = find_flight(client, header->request);
	struct message_error error;

	if (!flight)
		return connection_fail(client, -EPROTO);
	if (header->type == MESSAGE_DATA && flight->kind == FLIGHT_GET)
		return deliver_data(client, handler, header, flight, payload);
	if (header->type == MESSAGE_PLACES && flight->kind == FLIGHT_LOCATE)
		return deliver_places(client, handler, flight, payload, header->length);
	if (header->type == MESSAGE_OK && flight->kind == FLIGHT_CHANGE && header->length == 0) {
		handler->on_done(handler->context, end_flight(client, flight), 0);
		return 1;
	}
	if (header->type != MESSAGE_ERROR || message_error_decode(payload, header->length, &error) < 0)
		return connection_fail(client, -EPROTO);
	handler->on_done(handler->context, end_flight(client, flight), -error.error);
	return 1;
}
