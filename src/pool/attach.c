/* An instance goes on over another connection: who holds it, which of its operations were handled, and what came of them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "pool/journal.h"
#include "pool/request.h"

static struct object *instance_of(const struct pool *pool, const struct message_header *header)
{
	uint64_t id = header->type == MESSAGE_NOTE ? header->object : header->object >> SPACE_NUMBER_BITS;

	return pool_object(pool, id, OBJECT_INSTANCE);
}

/* What came of an operation of the window. */
static int recorded_result(const struct object *instance, uint64_t sequence)
{
	for (uint32_t i = 0; i < instance->failure_count; i++)
		if (instance->failures[i].sequence == sequence)
			return -instance->failures[i].error;
	return 0;
}

static void forget_old_failures(struct object *instance)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < instance->failure_count; i++)
		if (instance->failures[i].sequence + SEQUENCE_WINDOW > instance->applied)
			instance->failures[kept++] = instance->failures[i];
	instance->failure_count = kept;
}

void pool_applied(struct object *instance, uint64_t sequence, int result)
{
	instance->applied = sequence;
	if (result == 0)
		return;
	forget_old_failures(instance); /* at most one an operation: the array has room for the window */
	instance->failures[instance->failure_count++] = (struct message_failure){ sequence, -result };
}

int request_sequence_check(struct request *request, struct object **instance, bool *refused)
{
	const struct message_header *header = request->header;
	uint64_t sequence = header->request & ~SEQUENCE_BIT;

	*instance = instance_of(request->pool, header);
	*refused = true;
	if (!*instance)
		return dp_fail(&request->err, ENOENT, "there is no such instance");
	if ((*instance)->epoch != header->epoch)
		return dp_fail(&request->err, ESTALE, "the lease of instance %s was taken by another", (*instance)->name);
	/* What an older connection still had under way comes again over the new one, or has come. Not ESTALE: an attachment that
	 * was under way on an older connection of the same writer may have come late, and he attaches again. */
	if ((*instance)->owner != request->connection)
		return dp_fail(&request->err, EBUSY, "instance %s is held by another connection", (*instance)->name);
	if (sequence > (*instance)->applied + 1)
		return dp_fail(&request->err, EPROTO, "operation %llu of instance %s comes behind operation %llu",
			       (unsigned long long)sequence, (*instance)->name, (unsigned long long)(*instance)->applied);
	*refused = false;
	if (sequence <= (*instance)->applied) {
		int result = recorded_result(*instance, sequence);

		return result < 0 ? dp_fail_errno(&request->err, -result, "operation %llu", (unsigned long long)sequence) : 1;
	}
	if (!(*instance)->failures)
		(*instance)->failures = calloc(SEQUENCE_WINDOW + 1, sizeof(*(*instance)->failures));
	*refused = !(*instance)->failures;
	return *refused ? -ENOMEM : 0;
}

int request_space_to_read(const struct request *request, const struct space **space)
{
	const struct object *instance = request->header->epoch ? instance_of(request->pool, request->header) : NULL;

	if (instance && instance->epoch != request->header->epoch)
		return -ESTALE;
	*space = pool_space(request->pool, request->header->object);
	return *space ? 0 : -ENOENT;
}

static int answer_attached(struct request *request, const struct object *instance)
{
	uint64_t size = 64 + NOTE_LIMIT + instance->failure_count * 16ull + instance->space_count * 24ull;
	struct message_attached attached = { .applied = instance->applied,
					     .failure_count = instance->failure_count,
					     .space_count = instance->space_count,
					     .note = { instance->note, instance->note_bytes } };

	memcpy(attached.identity, request->pool->identity, IDENTITY_BYTES);
	if (size > MESSAGE_PAYLOAD_LIMIT)
		return dp_fail(&request->err, EMSGSIZE, "the instance has too many spaces");
	struct reply *reply = reply_new(request->connection->shared);

	if (!reply)
		return -ENOMEM;
	reply->head_bytes = MESSAGE_HEADER_BYTES;
	reply->extra = malloc(size);
	if (!reply->extra) {
		reply_free(request->connection->shared, reply);
		return -ENOMEM;
	}
	uint64_t used = (uint64_t)message_attached_encode(reply->extra, size, &attached);

	for (uint32_t i = 0; i < instance->failure_count; i++)
		used += (uint64_t)message_failure_encode(reply->extra + used, size - used, &instance->failures[i]);
	for (const struct space *space = instance->spaces; space; space = space->next)
		used += (uint64_t)message_info_space_encode(
			reply->extra + used, size - used,
			&(struct message_info_space){ space->label, space->id, pagemap_pages(&space->map) });
	reply->extra_bytes = used;
	request_answer(request, reply, MESSAGE_ATTACHED, CLASS_DEMAND, instance->id, instance->epoch);
	return 0;
}

int request_handle_attach(struct request *request)
{
	static const uint8_t any[IDENTITY_BYTES];
	struct message_attach attach;

	if (message_attach_decode(request->payload, request->header->length, &attach) < 0)
		return request_malformed(request);
	if (memcmp(attach.identity, any, IDENTITY_BYTES) && memcmp(attach.identity, request->pool->identity, IDENTITY_BYTES))
		return dp_fail(&request->err, ENXIO,
			       "this is another pool than the one that holds the instance, or it was restarted without a "
			       "store that keeps");
	struct object *instance = pool_object(request->pool, request->header->object, OBJECT_INSTANCE);

	if (!instance)
		return dp_fail(&request->err, ENOENT, "there is no such instance any more");
	bool take = attach.flags & ATTACH_FLAG_TAKE;

	if ((!take || attach.step) && instance->epoch != request->header->epoch)
		return dp_fail(&request->err, ESTALE, "the lease of instance %s was taken by another", instance->name);
	forget_old_failures(instance);
	if (take) {
		uint64_t epoch;
		int result = pool_lease_take(request->pool, request->connection, instance->id, DP_MAX(attach.step, 1u), &epoch,
					     &request->err);

		if (result < 0)
			return result;
	}
	instance->owner = request->connection;
	instance->attached = true;
	instance->lost_ns = 0;
	return answer_attached(request, instance);
}

int pool_note(struct pool *pool, uint64_t id, uint64_t epoch, const void *note, uint32_t bytes)
{
	struct object *instance = pool_object(pool, id, OBJECT_INSTANCE);

	if (!instance)
		return -ENOENT;
	if (instance->epoch != epoch)
		return -ESTALE;
	uint8_t *copy = malloc(bytes + 1u);

	if (!copy)
		return -ENOMEM;
	if (bytes)
		memcpy(copy, note, bytes);
	free(instance->note);
	instance->note = copy;
	instance->note_bytes = bytes;
	journal_note(instance, note, bytes);
	return 0;
}

int request_handle_note(struct request *request)
{
	const struct object *instance = instance_of(request->pool, request->header);

	if (request->header->length > NOTE_LIMIT)
		return request_malformed(request);
	/* What an older connection still had under way must not replace what came since. */
	if (instance && instance->epoch == request->header->epoch && instance->owner != request->connection) {
		request->connection->broken = true;
		return dp_fail(&request->err, EBUSY, "instance %s is held by another connection", instance->name);
	}
	return pool_note(request->pool, request->header->object, request->header->epoch, request->payload,
			 request->header->length);
}
