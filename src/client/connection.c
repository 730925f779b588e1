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
	pieces[0] = (struct iovec){ encoded, sizeof(encoded) };
	pieces[1] = (struct iovec){ (void *)payload, payload_bytes };
	pieces[2] = data_count ? data[0] : (struct iovec){ 0 }; /* only a PUT has more, all pages */
	header->check = message_check(header, pieces + 1, 2);
	message_header_encode(encoded, header);
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
	/* Damaged on the way: nothing it says can be believed, not even whom it is for. */
	if (!message_check_good(header, *payload))
		return connection_fail(client, -EBADMSG);
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

/* ---- pages that came damaged ---- */

/* Asks for these pages once more, for the request `flight`; the pool looks at them before it sends them. */
static int ask_again(struct client *client, struct flight *flight, struct page_range range)
{
	uint8_t payload[8 + 16];
	struct message_header header = {
		.type = MESSAGE_GET, .class = CLASS_DEMAND | MESSAGE_CHECKED, .object = flight->space, .epoch = client->read_epoch
	};
	struct flight *again = connection_take_flight(client, FLIGHT_AGAIN, flight->cookie, &header.request);

	if (!again || range.pages > DATA_PAGES_LIMIT)
		return connection_fail(client, -EBADMSG);
	client->damaged_pages += range.pages;
	again->range_count = 1;
	again->range_at = 0;
	again->page_at = 0;
	again->ranges[0] = range;
	again->space = flight->space;
	again->parent = (uint32_t)(flight - client->flights);
	again->parent_generation = flight->generation;
	flight->again++;
	int bytes = message_ranges_encode(payload, sizeof(payload), &range, 1);
	int result = connection_send(client, &header, payload, (size_t)bytes, NULL, 0, 0, OUTPUT_BYTES);

	/* No room for so little: the link does not move any more. */
	return result == -EAGAIN ? connection_fail(client, -EBADMSG) : result;
}

/* The request whose pages these are: for pages that were asked for again, the one that they are missing from; NULL where that has
 * failed meanwhile. */
static struct flight *whole_request(struct client *client, struct flight *flight)
{
	struct flight *parent = &client->flights[flight->parent];

	if (flight->kind != FLIGHT_AGAIN)
		return flight;
	return parent->generation == flight->parent_generation ? parent : NULL;
}

/* The pages' answer has come. `last`: of this flight. true where it completes the request, which is over then. */
static bool complete(struct client *client, struct flight *flight, bool last)
{
	struct flight *whole = whole_request(client, flight);

	if (last && whole != flight) {
		whole->again--;
		end_flight(client, flight);
	}
	whole->answered |= last && whole == flight;
	if (!whole->answered || whole->again)
		return false;
	end_flight(client, whole);
	return true;
}

static int deliver_damaged(struct client *client, const struct client_handler *handler, struct flight *flight,
			   struct page_range range, bool last)
{
	struct flight *whole = whole_request(client, flight);
	uint64_t cookie = whole->cookie;

	/* A pool that did not look says so of what it could not read: it is asked again, as for what came damaged. */
	if (whole == flight) {
		int result = ask_again(client, flight, range);

		if (result < 0)
			return result;
		complete(client, flight, last);
		return 0;
	}
	last = complete(client, flight, last);
	if (!handler->on_damaged)
		return connection_fail(client, -EIO);
	handler->on_damaged(handler->context, cookie, range, last);
	return 1;
}

/* Pages with bytes, as many of them as are whole or as are not; `last` of this flight. */
static int deliver_bytes(struct client *client, const struct client_handler *handler, struct flight *flight,
			 struct page_range range, const uint8_t *pages, uint64_t damaged, bool last)
{
	int calls = 0;

	for (uint64_t at = 0, run; at < range.pages; at += run) {
		bool bad = damaged >> at & 1;

		for (run = 1; at + run < range.pages && (damaged >> (at + run) & 1) == bad;)
			run++;
		const struct page_range part = { range.pgno + at, run };
		bool last_part = last && at + run == range.pages;
		uint64_t cookie = flight->cookie;

		if (bad) {
			int result = deliver_damaged(client, handler, flight, part, last_part);

			if (result < 0)
				return result;
			calls += result;
		} else {
			last_part = complete(client, flight, last_part);
			handler->on_pages(handler->context, cookie, part, pages + at * PAGE_BYTES, last_part);
			calls++;
		}
	}
	return calls;
}

/* Unpacks where need be; *pages and a bit for each page that is not what was sent. */
static int take_data(struct client *client, const struct message_header *header, const uint8_t *payload,
		     struct message_data *data, const uint8_t **pages, uint64_t *damaged)
{
	*damaged = 0;
	if (header->class & MESSAGE_PACKED) {
		struct packed_pages packed;

		/* Only what was offered, and never beyond the buffer: the decoder knows at most DATA_PAGES_LIMIT pages. */
		if (!client->unpacked || message_data_decode_packed(payload, header->length, data, &packed) < 0)
			return connection_fail(client, -EPROTO);
		pack_unpack(&packed, client->unpacked, damaged);
		*pages = client->unpacked;
		compress_packed(&client->get_meter, data->data_pages, header->length);
	} else {
		if (message_data_decode(payload, header->length, data) < 0)
			return connection_fail(client, -EPROTO);
		*pages = data->pages;
	}
	for (uint32_t i = 0; i < data->data_pages; i++) {
		struct page_digest digest = message_digest_at(data->digests, i);

		if (page_digest_known(digest) && !page_digest_same(page_digest(*pages + (size_t)i * PAGE_BYTES), digest))
			*damaged |= UINT64_C(1) << i;
	}
	return 0;
}

static bool run_has_bytes(struct message_run run)
{
	return !run.zero && !run.damaged;
}

static int deliver_run(struct client *client, const struct client_handler *handler, struct flight *flight, struct message_run run,
		       const uint8_t *pages, uint64_t damaged, bool last)
{
	const struct page_range range = { run.pgno, run.pages };
	uint64_t cookie = flight->cookie;

	if (run.damaged)
		return deliver_damaged(client, handler, flight, range, last);
	if (run_has_bytes(run))
		return deliver_bytes(client, handler, flight, range, pages, damaged, last);
	last = complete(client, flight, last);
	handler->on_pages(handler->context, cookie, range, NULL, last);
	return 1;
}

static int deliver_data(struct client *client, const struct client_handler *handler, const struct message_header *header,
			struct flight *flight, const uint8_t *payload)
{
	struct message_data data;
	bool more = header->class & MESSAGE_MORE;
	int calls = 0;
	const uint8_t *pages = NULL;
	uint64_t damaged = 0, page = 0;

	if (take_data(client, header, payload, &data, &pages, &damaged) < 0)
		return client->error;
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

			/* C1: the last part completes the request, and nothing before it does. */
			if (last != (flight->range_at == flight->range_count))
				return connection_fail(client, -EPROTO);
			int made = deliver_run(client, handler, flight, part, pages + page * PAGE_BYTES,
					       page < 64 ? damaged >> page : 0, last);

			if (made < 0)
				return made;
			page += run_has_bytes(part) ? part.pages : 0;
			calls += made;
		}
	}
	return calls;
}

/* ---- near memory ---- */

/* Reads pages at known places; a bit for each that is not what it should be there. */
static int read_near(struct client *client, const struct page_place *places, uint64_t pages, uint64_t *damaged)
{
	uint64_t addresses[NEAR_READ_PAGES];
	bool proven = true;

	assert(pages > 0 && pages <= NEAR_READ_PAGES);
	for (uint64_t i = 0; i < pages; i++) {
		addresses[i] = places[i].address;
		proven &= page_digest_known(places[i].digest);
	}
	int result = near_read(client->near, addresses, pages, proven, client->near_pages);

	*damaged = 0;
	for (uint64_t i = 0; result == 0 && i < pages; i++)
		if (page_digest_known(places[i].digest) &&
		    !page_digest_same(page_digest(client->near_pages + i * PAGE_BYTES), places[i].digest))
			*damaged |= UINT64_C(1) << i;
	client->bytes_received += result == 0 ? pages * PAGE_BYTES : 0;
	return result < 0 ? connection_fail(client, result) : 0;
}

/* Pages of one range; `last` range of its request or not. */
static int deliver_near_range(struct client *client, const struct client_handler *handler, struct flight *flight,
			      struct page_range range, const struct page_place *places, bool last)
{
	uint64_t run;
	int calls = 0;

	for (uint64_t at = 0; at < range.pages; at += run) {
		bool zero = places[at].address == 0;

		for (run = 1; at + run < range.pages && run < NEAR_READ_PAGES && (places[at + run].address == 0) == zero;)
			run++;
		uint64_t damaged = 0;
		struct message_run part = { .pgno = range.pgno + at, .pages = (uint32_t)run, .zero = zero };

		if (!zero && read_near(client, places + at, run, &damaged) < 0)
			return client->error;
		int made = deliver_run(client, handler, flight, part, client->near_pages, damaged,
				       last && at + run == range.pages);

		if (made < 0)
			return made;
		calls += made;
	}
	return calls;
}

int connection_deliver_near(struct client *client, const struct client_handler *handler, struct flight *flight,
			    const struct page_range *ranges, size_t count, const struct page_place *places)
{
	int calls = 0, result = 0;

	assert(!client->near_busy);
	client->near_busy = true;
	for (size_t i = 0; i < count && result >= 0; i++) {
		result = deliver_near_range(client, handler, flight, ranges[i], places, i + 1 == count);
		calls += DP_MAX(result, 0);
		places += ranges[i].pages;
	}
	client->near_busy = false;
	return result < 0 ? result : calls;
}

static int deliver_places(struct client *client, const struct client_handler *handler, struct flight *flight,
			  const uint8_t *payload, uint64_t bytes)
{
	const struct page_range asked = flight->ranges[0], located = flight->ranges[1];
	struct page_place places[GET_PAGES_LIMIT];

	if (message_places_decode(payload, bytes, places, located.pages) < 0)
		return connection_fail(client, -EPROTO);
	if (flight->changes == near_changes(client->near)) /* N2 */
		near_keep(client->near, flight->space, located.pgno, places, located.pages);
	return connection_deliver_near(client, handler, flight, &asked, 1, places + (asked.pgno - located.pgno));
}

int connection_deliver(struct client *client, const struct client_handler *handler, const struct message_header *header,
		       const uint8_t *payload)
{
	struct flight *flight = find_flight(client, header->request);
	struct message_error error;

	if (!flight)
		return connection_fail(client, -EPROTO);
	if (!whole_request(client, flight)) {
		end_flight(client, flight); /* its one part: nobody wants it any more */
		return 0;
	}
	if (header->type == MESSAGE_DATA && (flight->kind == FLIGHT_GET || flight->kind == FLIGHT_AGAIN) && !flight->answered)
		return deliver_data(client, handler, header, flight, payload);
	if (header->type == MESSAGE_PLACES && flight->kind == FLIGHT_LOCATE && !flight->answered)
		return deliver_places(client, handler, flight, payload, header->length);
	if (header->type == MESSAGE_OK && flight->kind == FLIGHT_CHANGE && header->length == 0) {
		handler->on_done(handler->context, end_flight(client, flight), 0);
		return 1;
	}
	if (header->type != MESSAGE_ERROR || message_error_decode(payload, header->length, &error) < 0)
		return connection_fail(client, -EPROTO);
	if (flight->kind == FLIGHT_AGAIN)
		return deliver_damaged(client, handler, flight, flight->ranges[0], true);
	handler->on_done(handler->context, end_flight(client, flight), -error.error);
	return 1;
}
