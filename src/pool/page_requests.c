/* The messages about pages: the ones that are many. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "pool/request.h"

#define PART_RUNS_LIMIT (DATA_RUNS_LIMIT - DATA_PAGES_LIMIT) /* a damaged page may cut a run */

/* A DATA answer in the making. */
struct parts {
	struct request *request;
	struct reply *reply; /* the part being filled, or NULL */
	struct message_run runs[DATA_RUNS_LIMIT];
	uint32_t run_count;
};

static void release_slots(struct request *request, struct reply *reply)
{
	for (uint32_t i = 0; i < reply->slot_count; i++)
		slots_release(&request->pool->slots, reply->slots[i]);
	reply->slot_count = 0;
}

/* Stores without memory to point at are read into the reply; bit i of *damaged where page i cannot be read. */
static int read_slots(struct request *request, struct reply *reply, uint64_t *damaged)
{
	struct store *store = request->pool->store;
	void *pages[DATA_PAGES_LIMIT];

	if (!reply->slot_count || store->ops->page(store, reply->slots[0]))
		return 0;
	reply->extra = malloc((size_t)reply->slot_count * PAGE_BYTES);
	if (!reply->extra)
		return -ENOMEM;
	for (uint32_t i = 0; i < reply->slot_count; i++)
		pages[i] = reply->extra + (size_t)i * PAGE_BYTES;
	if (store->ops->read(store, reply->slots, pages, reply->slot_count) < 0)
		for (uint32_t i = 0; i < reply->slot_count; i++)
			if (store->ops->read(store, reply->slots + i, pages + i, 1) < 0)
				*damaged |= UINT64_C(1) << i;
	return 0;
}

/* The pages that are to be looked at before they are sent, since one came damaged, or did not fit its digest there. */
static void check_slots(struct request *request, const struct reply *reply, const struct page_digest *digests, uint64_t *damaged)
{
	struct store *store = request->pool->store;

	for (uint32_t i = 0; i < reply->slot_count; i++) {
		const void *page = reply->extra ? reply->extra + (size_t)i * PAGE_BYTES
						: store->ops->page(store, reply->slots[i]);

		if (!(*damaged >> i & 1) && page_digest_known(digests[i]) && !page_digest_same(page_digest(page), digests[i]))
			*damaged |= UINT64_C(1) << i;
	}
}

/* Takes the damaged pages out of the reply, and says so in the runs. */
static void leave_out(struct parts *parts, struct page_digest *digests, uint64_t damaged)
{
	struct reply *reply = parts->reply;
	struct message_run runs[DATA_RUNS_LIMIT];
	uint32_t count = 0, page = 0, kept = 0;

	for (uint32_t i = 0; i < parts->run_count; i++) {
		struct message_run run = parts->runs[i];

		if (run.zero) {
			runs[count++] = run;
			continue;
		}
		for (uint32_t at = 0; at < run.pages; at++, page++) {
			bool bad = damaged >> page & 1;

			if (at == 0 || runs[count - 1].damaged != bad)
				runs[count++] = (struct message_run){ .pgno = run.pgno + at, .damaged = bad };
			runs[count - 1].pages++;
			if (bad) {
				pool_note_damage(parts->request->pool, reply->slots[page], run.pgno + at,
						 parts->request->header->object);
				slots_release(&parts->request->pool->slots, reply->slots[page]);
				continue;
			}
			if (reply->extra && kept != page)
				memmove(reply->extra + (size_t)kept * PAGE_BYTES, reply->extra + (size_t)page * PAGE_BYTES,
					PAGE_BYTES);
			digests[kept] = digests[page];
			reply->slots[kept++] = reply->slots[page];
		}
	}
	reply->slot_count = kept;
	memcpy(parts->runs, runs, count * sizeof(*runs));
	parts->run_count = count;
}

/* Replaces the reply's pages by packed ones. */
static int pack_reply(struct request *request, struct reply *reply)
{
	struct store *store = request->pool->store;
	const void *pages[DATA_PAGES_LIMIT];
	size_t count = reply->slot_count;
	uint8_t *packed = malloc(PACK_ROOM(count) + 1);

	if (!packed)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++)
		pages[i] = reply->extra ? reply->extra + i * PAGE_BYTES : store->ops->page(store, reply->slots[i]);
	reply->extra_bytes = pack_pages(packed, pages, count);
	reply->plain = reply->extra_bytes - count * PACK_ENTRY_BYTES;
	free(reply->extra);
	reply->extra = packed;
	release_slots(request, reply);
	return 0;
}

static int parts_flush(struct parts *parts, bool more)
{
	struct request *request = parts->request;
	struct reply *reply = parts->reply;
	struct page_digest digests[DATA_PAGES_LIMIT];
	uint8_t class = request->header->class & MESSAGE_CLASS_MASK;
	bool packed = (request->header->class & MESSAGE_PACKED) && (reply->slot_count > 0);
	uint64_t damaged = 0;
	int result = read_slots(request, reply, &damaged);

	for (uint32_t i = 0; i < reply->slot_count; i++) {
		struct page_digest *digest = &request->pool->slots.digests[reply->slots[i]];

		if (request->pool->store->digests_late && !page_digest_known(*digest) && reply->extra && !(damaged >> i & 1))
			*digest = page_digest(reply->extra + (size_t)i * PAGE_BYTES);
		digests[i] = *digest;
	}
	if (result == 0 && request->header->class & MESSAGE_CHECKED)
		check_slots(request, reply, digests, &damaged);
	if (damaged)
		leave_out(parts, digests, damaged);
	uint8_t *head = reply->head + MESSAGE_HEADER_BYTES;
	uint32_t runs_bytes = (uint32_t)message_data_encode(head, REPLY_HEAD_BYTES - MESSAGE_HEADER_BYTES, parts->runs,
							    parts->run_count);

	reply->head_bytes = MESSAGE_HEADER_BYTES + runs_bytes +
			    (uint32_t)message_digests_encode(head + runs_bytes, DATA_PAGES_LIMIT * DIGEST_BYTES, digests,
							     reply->slot_count);
	if (result == 0 && packed) {
		result = pack_reply(request, reply);
	} else if (reply->extra) {
		reply->extra_bytes = reply->plain = (uint64_t)reply->slot_count * PAGE_BYTES;
		release_slots(request, reply);
	}
	if (result < 0)
		return result;
	parts->reply = NULL;
	parts->run_count = 0;
	if (packed)
		class |= MESSAGE_PACKED;
	request_answer(request, reply, MESSAGE_DATA, more ? class | MESSAGE_MORE : class, request->header->object, 0);
	return 0;
}

static int parts_add(struct parts *parts, uint64_t pgno, uint64_t slot)
{
	struct message_run *last = parts->run_count ? &parts->runs[parts->run_count - 1] : NULL;
	bool joins = last && last->zero == (slot == 0) && last->pgno + last->pages == pgno;

	if (parts->reply &&
	    ((slot && parts->reply->slot_count == DATA_PAGES_LIMIT) || (!joins && parts->run_count == PART_RUNS_LIMIT))) {
		int result = parts_flush(parts, true);

		if (result < 0)
			return result;
		joins = false;
	}
	if (!parts->reply) {
		parts->reply = reply_new(parts->request->connection->shared);
		if (!parts->reply)
			return -ENOMEM;
	}
	if (joins)
		last->pages++;
	else
		parts->runs[parts->run_count++] = (struct message_run){ .pgno = pgno, .pages = 1, .zero = slot == 0 };
	if (slot) {
		slots_take(&parts->request->pool->slots, slot);
		parts->reply->slots[parts->reply->slot_count++] = slot;
	}
	return 0;
}

/* A peer that did not say that it can is not taken at its word. */
static bool may_pack(const struct request *request)
{
	return !(request->header->class & MESSAGE_PACKED) || request->connection->can_pack;
}

int request_handle_get(struct request *request)
{
	struct message_ranges ranges;
	struct parts parts;
	uint64_t slots[GET_PAGES_LIMIT];
	int result = 0;

	if (message_get_decode(request->payload, request->header->length, &ranges) < 0 || !may_pack(request))
		return request_malformed(request);
	const struct space *space;
	int readable = request_space_to_read(request, &space);

	if (readable < 0)
		return readable;
	if ((request->header->class & MESSAGE_CLASS_MASK) == CLASS_DEMAND)
		awake_note(&request->connection->shared->awake, clock_now_ns());
	parts.request = request;
	parts.reply = NULL;
	parts.run_count = 0;
	for (uint32_t i = 0; i < ranges.count && result == 0; i++) {
		struct page_range range = message_range_at(&ranges, i);

		pagemap_read(&space->map, range.pgno, slots, range.pages);
		for (uint64_t page = 0; page < range.pages && result == 0; page++)
			result = parts_add(&parts, range.pgno + page, slots[page]);
	}
	if (result == 0)
		result = parts_flush(&parts, false);
	if (result < 0) {
		/* Parts that were queued already are followed by the error, which ends the request. */
		if (parts.reply)
			reply_free(request->connection->shared, parts.reply);
		request->answered = false;
	}
	return result;
}

/* The pages of a packed PUT, in room that the connections share: they are stored before the next request is looked at. */
static int unpack_put(struct request *request, struct message_put *put)
{
	struct connection_shared *shared = request->connection->shared;
	struct packed_pages packed;

	if (!may_pack(request) || message_put_decode_packed(request->payload, request->header->length, put, &packed) < 0)
		return request_malformed(request);
	if (!shared->unpacked)
		shared->unpacked = malloc((size_t)PUT_PAGES_LIMIT * PAGE_BYTES);
	if (!shared->unpacked)
		return -ENOMEM;
	if (pack_unpack(&packed, shared->unpacked, NULL) < 0)
		return dp_fail(&request->err, EBADMSG, "a packed page arrived damaged");
	put->pages = shared->unpacked;
	return 0;
}

int request_handle_put(struct request *request)
{
	struct message_put put;
	struct page_range ranges[PUT_RANGES_LIMIT];
	int result;

	if (request->header->class & MESSAGE_PACKED) {
		result = unpack_put(request, &put);
		if (result < 0)
			return result;
	} else if (message_put_decode(request->payload, request->header->length, &put) < 0) {
		return request_malformed(request);
	}
	for (uint32_t i = 0; i < put.ranges.count; i++)
		ranges[i] = message_range_at(&put.ranges, i);
	result = pool_put(request->pool, request->connection, request->header->object, request->header->epoch, ranges,
			  put.ranges.count, put.pages, put.digests);
	return result == -EBADMSG ? dp_fail(&request->err, EBADMSG, "a page arrived damaged") : result;
}

int request_handle_drop(struct request *request)
{
	struct message_ranges ranges;
	int result = 0;

	if (message_drop_decode(request->payload, request->header->length, &ranges) < 0)
		return request_malformed(request);
	for (uint32_t i = 0; i < ranges.count && result == 0; i++)
		result = pool_drop(request->pool, request->connection, request->header->object, request->header->epoch,
				   message_range_at(&ranges, i));
	return result;
}

int request_handle_move(struct request *request)
{
	struct message_move move;

	if (message_move_decode(request->payload, request->header->length, &move) < 0)
		return request_malformed(request);
	return pool_move(request->pool, request->connection, request->header->object, request->header->epoch, move.from_pgno,
			 move.to_pgno, move.pages);
}

int request_handle_fork(struct request *request)
{
	uint64_t child;

	if (message_number_decode(request->payload, request->header->length, &child) < 0)
		return request_malformed(request);
	return pool_fork(request->pool, request->connection, request->header->object, request->header->epoch, child);
}

int request_handle_space_free(struct request *request)
{
	if (request->header->length)
		return request_malformed(request);
	return pool_space_free(request->pool, request->connection, request->header->object, request->header->epoch);
}
