/* For clients on this host that may read our memory: who we are, and where pages lie. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/base.h"
#include "pool/request.h"

/* Addresses are told to those only who could read this process anyway. */
static bool may_read_us(const struct connection *connection)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);

	return !stream_is_network(connection->stream) &&
	       getsockopt(connection->stream->fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
	       (peer.uid == 0 || peer.uid == geteuid());
}

int request_handle_near(struct request *request)
{
	static uint8_t proof[NEAR_PROOF_BYTES]; /* read by those who want to know whether they can */
	static bool made;
	struct store *store = request->pool->store;

	if (request->header->length)
		return request_malformed(request);
	if (!may_read_us(request->connection) || !store->ops->page(store, 1))
		return -EOPNOTSUPP;
	if (!made && getrandom(proof, sizeof(proof), 0) != (ssize_t)sizeof(proof))
		return -EOPNOTSUPP;
	made = true;
	struct reply *reply = reply_new(request->connection->shared);

	if (!reply)
		return -ENOMEM;
	struct message_near near = { .pid = (uint64_t)getpid(), .proof_place = (uintptr_t)proof };

	memcpy(near.proof, proof, sizeof(proof));
	reply->head_bytes = MESSAGE_HEADER_BYTES + (uint32_t)message_near_encode(reply->head + MESSAGE_HEADER_BYTES, 64, &near);
	request->connection->near = true;
	request_answer(request, reply, MESSAGE_NEAR, CLASS_DEMAND, 0, 0);
	return 0;
}

int request_handle_locate(struct request *request)
{
	struct store *store = request->pool->store;
	struct message_ranges ranges;
	uint64_t slots[GET_PAGES_LIMIT];
	struct page_place places[GET_PAGES_LIMIT];
	uint64_t count = 0;

	if (message_get_decode(request->payload, request->header->length, &ranges) < 0 || !request->connection->near)
		return request_malformed(request);
	const struct space *space;
	int readable = request_space_to_read(request, &space);

	if (readable < 0)
		return readable;
	for (uint32_t i = 0; i < ranges.count; i++) {
		struct page_range range = message_range_at(&ranges, i);

		pagemap_read(&space->map, range.pgno, slots + count, range.pages);
		count += range.pages;
	}
	for (uint64_t i = 0; i < count; i++) {
		places[i] = (struct page_place){ 0 };
		if (!slots[i])
			continue;
		places[i] = (struct page_place){ (uintptr_t)store->ops->page(store, slots[i]),
						 request->pool->slots.digests[slots[i]] };
		if (!places[i].address)
			return -EIO;
	}
	struct reply *reply = reply_new(request->connection->shared);

	if (!reply)
		return -ENOMEM;
	reply->extra = malloc(count * PLACE_BYTES);
	if (!reply->extra) {
		reply_free(request->connection->shared, reply);
		return -ENOMEM;
	}
	reply->head_bytes = MESSAGE_HEADER_BYTES;
	reply->extra_bytes = (uint64_t)message_places_encode(reply->extra, count * PLACE_BYTES, places, count);
	request_answer(request, reply, MESSAGE_PLACES, request->header->class & MESSAGE_CLASS_MASK, request->header->object, 0);
	return 0;
}
