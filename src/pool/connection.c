#include "pool/connection.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/log.h"

#define SPARE_LIMIT 512
#define IOV_COUNT 256

/* ---- replies ---- */

struct reply *reply_new(struct connection_shared *shared)
{
	struct reply *reply = shared->spare;

	if (reply) {
		shared->spare = reply->next;
		shared->spare_count--;
	} else {
		reply = malloc(sizeof(*reply));
	}
	/* The arrays behind are left as they are: they are written before they are read. */
	if (reply)
		memset(reply, 0, offsetof(struct reply, slots));
	return reply;
}

void reply_free(struct connection_shared *shared, struct reply *reply)
{
	for (uint32_t i = 0; i < reply->slot_count; i++)
		slots_release(&shared->pool->slots, reply->slots[i]);
	free(reply->extra);
	if (shared->spare_count >= SPARE_LIMIT) {
		free(reply);
		return;
	}
	reply->next = shared->spare;
	shared->spare = reply;
	shared->spare_count++;
}

void connection_shared_done(struct connection_shared *shared)
{
	while (shared->spare) {
		struct reply *reply = shared->spare;

		shared->spare = reply->next;
		free(reply);
	}
	shared->spare_count = 0;
	free(shared->unpacked);
	shared->unpacked = NULL;
	access_free(shared->access);
	shared->access = NULL;
}

void connection_queue(struct connection *connection, struct reply *reply, const struct message_header *request,
		      enum message_type type, uint8_t class, uint64_t object, uint64_t epoch)
{
	bool bulk = (class & MESSAGE_CLASS_MASK) != CLASS_DEMAND;
	struct reply_queue *queue = bulk ? &connection->bulk : &connection->urgent;
	uint64_t payload = reply->head_bytes - MESSAGE_HEADER_BYTES + (uint64_t)reply->slot_count * PAGE_BYTES +
			   reply->extra_bytes;

	assert(reply->head_bytes >= MESSAGE_HEADER_BYTES && payload <= MESSAGE_PAYLOAD_LIMIT);
	struct message_header header = { .length = (uint32_t)payload,
					 .type = (uint16_t)type,
					 .version = MESSAGE_VERSION,
					 .class = class,
					 .request = request->request,
					 .object = object,
					 .epoch = epoch,
					 .plain = (uint32_t)(reply->slot_count * (uint64_t)PAGE_BYTES + reply->plain) };
	const struct iovec pieces[] = { { reply->head + MESSAGE_HEADER_BYTES, reply->head_bytes - MESSAGE_HEADER_BYTES },
					{ reply->extra, reply->extra_bytes } };

	header.check = message_check(&header, pieces, ARRAY_LENGTH(pieces));
	message_header_encode(reply->head, &header);
	reply->total = MESSAGE_HEADER_BYTES + payload;
	reply->next = NULL;
	*queue->last = reply;
	queue->last = &reply->next;
	connection->queued_bytes += reply->total;
}

/* ---- life ---- */

static void queue_init(struct reply_queue *queue)
{
	queue->first = NULL;
	queue->last = &queue->first;
}

struct connection *connection_new(struct connection_shared *shared, struct stream *stream)
{
	struct connection *connection = calloc(1, sizeof(*connection));
	uint8_t *input = malloc(INPUT_SMALL_BYTES);

	if (!connection || !input) {
		free(connection);
		free(input);
		stream_close(stream);
		return NULL;
	}
	connection->shared = shared;
	connection->id = ++shared->next_connection_id;
	connection->stream = stream;
	connection->input = input;
	connection->input_size = INPUT_SMALL_BYTES;
	connection->last_active_ns = connection->accepted_ns = clock_now_ns();
	stream_peer(stream, &connection->peer);
	queue_init(&connection->urgent);
	queue_init(&connection->bulk);
	shared->connections++;
	return connection;
}

static void queue_free(struct connection_shared *shared, struct reply_queue *queue)
{
	while (queue->first) {
		struct reply *reply = queue->first;

		queue->first = reply->next;
		reply_free(shared, reply);
	}
}

void connection_free(struct connection *connection)
{
	struct connection_shared *shared = connection->shared;

	if (connection->current)
		reply_free(shared, connection->current);
	queue_free(shared, &connection->urgent);
	queue_free(shared, &connection->bulk);
	pool_owner_gone(shared->pool, connection);
	shared->connections--;
	stream_close(connection->stream);
	free(connection->input);
	free(connection);
}

/* ---- sending ---- */

struct gather {
	struct pool *pool;
	struct iovec iov[IOV_COUNT];
	int count;
};

static bool gather_add(struct gather *gather, const void *bytes, uint64_t length)
{
	struct iovec *last = gather->count ? &gather->iov[gather->count - 1] : NULL;

	if (last && (const uint8_t *)last->iov_base + last->iov_len == bytes) {
		last->iov_len += length;
		return true;
	}
	if (gather->count == IOV_COUNT)
		return false;
	gather->iov[gather->count++] = (struct iovec){ (void *)bytes, length };
	return true;
}

/* The rest of a reply, as far as there is room. */
static bool gather_reply(struct gather *gather, const struct reply *reply)
{
	uint64_t sent = reply->sent;
	struct store *store = gather->pool->store;

	if (sent < reply->head_bytes) {
		if (!gather_add(gather, reply->head + sent, reply->head_bytes - sent))
			return false;
		sent = reply->head_bytes;
	}
	sent -= reply->head_bytes;
	if (reply->extra_bytes)
		return sent == reply->extra_bytes || gather_add(gather, reply->extra + sent, reply->extra_bytes - sent);
	for (uint64_t i = sent / PAGE_BYTES; i < reply->slot_count; i++) {
		const uint8_t *page = store->ops->page(store, reply->slots[i]);
		uint64_t skip = i == sent / PAGE_BYTES ? sent % PAGE_BYTES : 0;

		if (!gather_add(gather, page + skip, PAGE_BYTES - skip))
			return false;
	}
	return true;
}

static void gather_queue(struct gather *gather, const struct reply_queue *queue)
{
	for (const struct reply *reply = queue->first; reply && gather_reply(gather, reply);)
		reply = reply->next;
}

/* Counts bytes as sent, in the order in which they were gathered. */
static void account(struct connection *connection, uint64_t sent)
{
	connection->queued_bytes -= sent;
	connection->shared->bytes_out += sent;
	while (sent) {
		if (!connection->current) {
			struct reply_queue *queue = connection->urgent.first ? &connection->urgent : &connection->bulk;

			connection->current = queue->first;
			queue->first = queue->first->next;
			if (!queue->first)
				queue->last = &queue->first;
		}
		struct reply *reply = connection->current;
		uint64_t part = DP_MIN(sent, reply->total - reply->sent);

		reply->sent += part;
		sent -= part;
		if (reply->sent == reply->total) {
			connection->current = NULL;
			reply_free(connection->shared, reply);
		}
	}
}

static int send_queued(struct connection *connection)
{
	struct gather gather;

	gather.pool = connection->shared->pool;
	while (connection->queued_bytes) {
		gather.count = 0;
		if (!connection->current || gather_reply(&gather, connection->current)) {
			gather_queue(&gather, &connection->urgent);
			/* Bulk only behind all that is urgent, or account() would take them for one another. */
			if (gather.count < IOV_COUNT)
				gather_queue(&gather, &connection->bulk);
		}
		ssize_t sent = stream_sendv(connection->stream, gather.iov, gather.count);

		if (sent == -EAGAIN)
			return 0;
		if (sent < 0)
			return (int)sent;
		account(connection, (uint64_t)sent);
	}
	int held = stream_flush(connection->stream);

	return held == -EAGAIN ? 0 : held;
}

/* ---- receiving ---- */

/* Bytes that the message at the start still lacks (at least 1), or 0 where it is whole. -EBADMSG for a bad header. */
static int64_t bytes_missing(const struct connection *connection, struct message_header *header)
{
	size_t have = connection->input_end - connection->input_start;

	if (have < MESSAGE_HEADER_BYTES)
		return (int64_t)(MESSAGE_HEADER_BYTES - have);
	int result = message_header_decode(connection->input + connection->input_start, header);

	if (result < 0)
		return result;
	uint64_t whole = MESSAGE_HEADER_BYTES + (uint64_t)header->length;

	return have >= whole ? 0 : (int64_t)(whole - have);
}

/* Handles whole messages until input runs out or output piles up. */
static int handle_input(struct connection *connection)
{
	struct message_header header;
	int64_t missing = 1;

	while (!connection->broken && !connection->committing && connection->queued_bytes <= OUTPUT_HIGH_BYTES) {
		missing = bytes_missing(connection, &header);
		if (missing < 0) {
			/* The stream is out of step, nothing behind can be understood: answer what can be answered, then
			 * close. */
			request_fail(connection, &(struct message_header){ .request = 0 }, (int)-missing,
				     missing == -EPROTONOSUPPORT ? "this pool speaks protocol version 2"
								 : "this is not a message");
			connection->broken = true;
			break;
		}
		if (missing > 0)
			break;
		const uint8_t *payload = connection->input + connection->input_start + MESSAGE_HEADER_BYTES;

		connection->input_start += MESSAGE_HEADER_BYTES + header.length;
		connection->shared->requests++;
		if (!message_check_good(&header, payload)) {
			/* Whatever it was to say, it was something else: nothing of it is done, and the sender must begin
			 * anew. */
			request_fail(connection, &(struct message_header){ .request = 0 }, EBADMSG, "a message arrived damaged");
			connection->broken = true;
			break;
		}
		int result = request_handle(connection, &header, payload);

		if (result < 0)
			return result;
	}
	if (connection->input_start == connection->input_end)
		connection->input_start = connection->input_end = 0;
	pool_flush(connection->shared->pool);
	return 0;
}

/* Makes room for some of what the message at the start lacks, at the front of the buffer. */
static int make_room(struct connection *connection, uint64_t missing)
{
	size_t have = connection->input_end - connection->input_start;

	if (connection->input_size - connection->input_end >= missing)
		return 0;
	if (connection->input_start) {
		memmove(connection->input, connection->input + connection->input_start, have);
		connection->input_start = 0;
		connection->input_end = have;
	}
	if (connection->input_size - have >= missing)
		return 0;
	/* Grows with what has come, not with what was announced: many peers that announce much and send little cost little. The
	 * whole is bounded: the header was checked. */
	size_t size = have + DP_MIN(missing, DP_MAX((uint64_t)have, (uint64_t)INPUT_SMALL_BYTES));

	if (size <= connection->input_size)
		return 0;
	uint8_t *grown = realloc(connection->input, size);

	if (!grown)
		return -ENOMEM;
	connection->input = grown;
	connection->input_size = size;
	return 0;
}

int connection_readable(struct connection *connection)
{
	struct message_header header;
	int64_t missing = bytes_missing(connection, &header);

	/* Zero or less cannot be here: handle_input leaves an incomplete message, or reading is paused. */
	if (missing <= 0)
		return 0;
	int result = make_room(connection, (uint64_t)missing);

	if (result < 0)
		return result;
	size_t room = connection->input_size - connection->input_end;

	/* A large message is read to its end and no further, so that nothing has to be moved to the front behind it. */
	if ((uint64_t)missing > INPUT_SMALL_BYTES / 2)
		room = DP_MIN(room, (size_t)missing);
	ssize_t got = stream_receive(connection->stream, connection->input + connection->input_end, room);

	if (got == -EAGAIN)
		return 0;
	if (got <= 0)
		return got == 0 ? -EPIPE : (int)got;
	connection->input_end += (size_t)got;
	connection->shared->bytes_in += (uint64_t)got;
	connection->last_active_ns = clock_now_ns();
	result = handle_input(connection);
	return result < 0 ? result : connection_writable(connection);
}

int connection_writable(struct connection *connection)
{
	int result = send_queued(connection);

	/* Messages that were held back because output had piled up: their bytes are here already, no event will tell. */
	while (result == 0 && !connection->broken && connection->queued_bytes <= OUTPUT_LOW_BYTES && connection->input_end) {
		size_t before = connection->input_end - connection->input_start;

		result = handle_input(connection);
		if (result < 0 || connection->input_end - connection->input_start == before)
			break;
		result = send_queued(connection);
	}
	pool_flush(connection->shared->pool);
	if (result == 0 && connection->broken && !connection_wants_write(connection))
		return -EPROTO;
	return result;
}

bool connection_wants_read(const struct connection *connection)
{
	return !connection->broken && !connection->committing && connection->queued_bytes <= OUTPUT_LOW_BYTES;
}

int connection_committed(struct connection *connection, const struct commit_job *job)
{
	connection->committing = false;
	request_committed(connection, job);
	return connection_writable(connection);
}

bool connection_wants_write(const struct connection *connection)
{
	return connection->queued_bytes > 0 || stream_holds(connection->stream);
}

void connection_shrink(struct connection *connection)
{
	if (connection->input_size <= INPUT_SMALL_BYTES || connection->input_end)
		return;
	uint8_t *small = realloc(connection->input, INPUT_SMALL_BYTES);

	if (small) {
		connection->input = small;
		connection->input_size = INPUT_SMALL_BYTES;
	}
}
