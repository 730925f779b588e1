/* What each message does: decode, call the pool, answer. Those about pages are in page_requests.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/base.h"
#include "pool/connection.h"
#include "pool/journal.h"
#include "pool/request.h"
#include "transport/endpoint.h"

#define LIST_BYTES (1u << 20) /* of one answer to LIST */

int request_malformed(struct request *request)
{
	return dp_fail(&request->err, EBADMSG, "malformed %s message", message_type_name(request->header->type));
}

/* Takes a name out of a message and normalises it; whoever names it must have the right to it. */
static int take_name(struct request *request, struct message_text text, unsigned right, char name[static 256])
{
	char raw[NAME_LIMIT + 1];

	message_text_copy(text, raw, sizeof(raw));
	int result = endpoint_name_check(raw, name, &request->err);

	return result < 0 ? result : request_right_name(request, name, right);
}

/* A reply whose payload is in a fresh buffer of the given size, to be filled by the caller; NULL where memory is out. */
static struct reply *reply_with_buffer(struct request *request, uint64_t bytes)
{
	struct reply *reply = reply_new(request->connection->shared);

	if (!reply)
		return NULL;
	reply->head_bytes = MESSAGE_HEADER_BYTES;
	reply->extra = malloc(bytes + 1);
	if (!reply->extra) {
		reply_free(request->connection->shared, reply);
		return NULL;
	}
	return reply;
}

void request_answer(struct request *request, struct reply *reply, enum message_type type, uint8_t class, uint64_t object,
		    uint64_t epoch)
{
	connection_queue(request->connection, reply, request->header, type, class, object, epoch);
	request->answered = true;
}

/* ---- hello, status ---- */

static int handle_hello(struct request *request)
{
	struct message_hello hello, ours = { MESSAGE_VERSION, MESSAGE_VERSION, 0 };

	if (message_hello_decode(request->payload, request->header->length, &hello) < 0)
		return request_malformed(request);
	if (hello.lowest > MESSAGE_VERSION || hello.highest < MESSAGE_VERSION)
		return dp_fail(&request->err, EPROTONOSUPPORT, "this pool speaks protocol version %d", MESSAGE_VERSION);
	struct reply *reply = reply_new(request->connection->shared);

	if (!reply)
		return -ENOMEM;
	ours.features = hello.features & (HELLO_FEATURE_LZ4 | HELLO_FEATURE_NEAR | HELLO_FEATURE_RESUME);
	request->connection->can_pack = ours.features & HELLO_FEATURE_LZ4;
	reply->head_bytes = MESSAGE_HEADER_BYTES + (uint32_t)message_hello_encode(reply->head + MESSAGE_HEADER_BYTES, 64, &ours);
	request->connection->hello = true;
	request_answer(request, reply, MESSAGE_HELLO, CLASS_DEMAND, 0, 0);
	return 0;
}

static int handle_status(struct request *request)
{
	const struct connection_shared *shared = request->connection->shared;
	struct store_capacity capacity;
	struct reply *reply = reply_new(request->connection->shared);

	if (!reply)
		return -ENOMEM;
	request->pool->store->ops->capacity(request->pool->store, &capacity);
	const struct message_status status = {
		.page_slots_used = capacity.used_pages,
		.page_slots_free = capacity.free_pages,
		.snapshots = request->pool->snapshot_count,
		.instances = request->pool->instance_count,
		.spaces = request->pool->spaces.count,
		.connections = shared->connections,
		.bytes_in = shared->bytes_in,
		.bytes_out = shared->bytes_out,
		.requests = shared->requests,
		.uptime_ns = clock_now_ns() - shared->started_ns,
		.stored_bytes = capacity.stored_bytes,
	};

	reply->head_bytes =
		MESSAGE_HEADER_BYTES + (uint32_t)message_status_encode(reply->head + MESSAGE_HEADER_BYTES, 256, &status);
	request_answer(request, reply, MESSAGE_STATUS, CLASS_DEMAND, 0, 0);
	return 0;
}

/* ---- snapshots ---- */

static int handle_snapshot_begin(struct request *request)
{
	struct message_name message;
	char name[256];

	if (message_name_decode(request->payload, request->header->length, &message) < 0)
		return request_malformed(request);
	int result = take_name(request, message.name, RIGHT_WRITE, name);

	if (result < 0)
		return result;
	return pool_snapshot_begin(request->pool, request->connection, name, message.flags & NAME_FLAG_REPLACE,
				   &request->ok_object, &request->err);
}

static int handle_snapshot_space(struct request *request)
{
	uint64_t label;

	if (message_number_decode(request->payload, request->header->length, &label) < 0)
		return request_malformed(request);
	return pool_snapshot_space(request->pool, request->connection, request->header->object, label, &request->ok_object,
				   &request->err);
}

static int handle_snapshot_inherit(struct request *request)
{
	struct message_inherit message;
	int result = 0;

	if (message_inherit_decode(request->payload, request->header->length, &message) < 0)
		return request_malformed(request);
	result = request_right_object(request, message.source >> SPACE_NUMBER_BITS, RIGHT_READ);
	for (uint32_t i = 0; i < message.ranges.count && result == 0; i++)
		result = pool_snapshot_inherit(request->pool, request->connection, request->header->object, message.source,
					       message_range_at(&message.ranges, i), &request->err);
	return result;
}

static int handle_snapshot_file(struct request *request)
{
	struct message_file message;
	char name[FILE_NAME_LIMIT + 1];

	if (message_file_decode(request->payload, request->header->length, &message) < 0)
		return request_malformed(request);
	message_text_copy(message.name, name, sizeof(name));
	return pool_snapshot_file(request->pool, request->connection, request->header->object, name, message.total,
				  message.offset, message.content.at, message.content.length, &request->err);
}

static int handle_snapshot_commit(struct request *request)
{
	const char *meta = (const char *)request->payload;

	if (request->header->length > META_LIMIT || memchr(meta, 0, request->header->length))
		return request_malformed(request);
	uint64_t draft = request->header->object;
	struct connection_shared *shared = request->connection->shared;
	int result = pool_snapshot_commit_begin(request->pool, request->connection, draft, meta, request->header->length,
						&request->err);

	if (result < 0)
		return result;
	struct store *store = request->pool->store;

	if (!store->persistent || !shared->committer)
		return pool_snapshot_commit_finish(request->pool, request->connection, draft,
						   store->persistent ? store->ops->sync(store) : 0, &request->err);
	struct commit_job *job = calloc(1, sizeof(*job));

	if (!job)
		return -ENOMEM;
	job->connection_id = request->connection->id;
	job->request = request->header->request;
	job->draft = draft;
	request->connection->committing = true;
	request->answered = true; /* by request_committed */
	committer_submit(shared->committer, job);
	return 0;
}

static int handle_snapshot_abort(struct request *request)
{
	if (request->header->length)
		return request_malformed(request);
	return pool_snapshot_abort(request->pool, request->connection, request->header->object, &request->err);
}

/* An upper bound of what a snapshot's INFO takes. */
static uint64_t info_size(const struct object *snapshot, bool lists, bool sharing)
{
	uint64_t size = 512 + snapshot->meta_length;

	if (sharing)
		size += snapshot->instances * (NAME_LIMIT + 26ull);

	if (lists)
		size += snapshot->file_count * (FILE_NAME_LIMIT + 10u) + snapshot->space_count * 24ull;
	return size;
}

static int answer_info(struct request *request, const struct object *snapshot, bool lists, bool sharing, bool more)
{
	uint64_t size = info_size(snapshot, lists, sharing), used;
	struct message_info info = { .created_unix_ns = snapshot->created_unix_ns,
				     .stored_pages = object_pages(snapshot),
				     .own_pages = sharing ? object_own_pages(snapshot) : UINT64_MAX,
				     .stored_bytes = sharing ? object_stored_bytes(request->pool, snapshot) : UINT64_MAX,
				     .instances = snapshot->instances,
				     .file_count = lists ? (uint32_t)snapshot->file_count : 0,
				     .space_count = lists ? snapshot->space_count : 0,
				     .list_count = sharing ? snapshot->instances : 0,
				     .name = { snapshot->name, (uint32_t)strlen(snapshot->name) },
				     .meta = { snapshot->meta, snapshot->meta_length } };

	if (size > MESSAGE_PAYLOAD_LIMIT)
		return dp_fail(&request->err, EMSGSIZE, "snapshot %s has too many files, spaces or instances for one message",
			       snapshot->name);
	struct reply *reply = reply_with_buffer(request, size);

	if (!reply)
		return -ENOMEM;
	used = (uint64_t)message_info_encode(reply->extra, size, &info);
	for (uint32_t i = 0; i < info.file_count; i++) {
		const struct pool_file *file = &snapshot->files[i];
		struct message_text name = { file->name, (uint32_t)strlen(file->name) };

		used += (uint64_t)message_info_file_encode(reply->extra + used, size - used, name, file->total);
	}
	for (const struct space *space = snapshot->spaces; space && lists; space = space->next)
		used += (uint64_t)message_info_space_encode(
			reply->extra + used, size - used,
			&(struct message_info_space){ space->label, space->id, pagemap_pages(&space->map) });
	for (const struct object *object = request->pool->all; object && sharing; object = object->next) {
		if (object->kind != OBJECT_INSTANCE || object->base != snapshot->id)
			continue;
		struct message_info_instance instance = { object->id, object->epoch, object_own_pages(object),
							  { object->name, (uint32_t)strlen(object->name) } };

		used += (uint64_t)message_info_instance_encode(reply->extra + used, size - used, &instance);
	}
	reply->extra_bytes = used;
	request_answer(request, reply, MESSAGE_SNAPSHOT_INFO, more ? CLASS_PREFETCH | MESSAGE_MORE : CLASS_DEMAND, snapshot->id,
		       0);
	return 0;
}

static int handle_snapshot_open(struct request *request)
{
	struct message_name message;
	char name[256];

	if (message_name_decode(request->payload, request->header->length, &message) < 0)
		return request_malformed(request);
	int result = take_name(request, message.name, RIGHT_READ, name);

	if (result < 0)
		return result;
	const struct object *snapshot = pool_snapshot(request->pool, name);

	if (!snapshot)
		return dp_fail(&request->err, ENOENT, "there is no snapshot %s", name);
	return answer_info(request, snapshot, true, message.flags & NAME_FLAG_SHARING, false);
}

/* The snapshots whose names come after the one given, one INFO each, as many as fit LIST_BYTES; then an OK whose object says
 * whether there are more. All are bulk, so they stay in order. */
static int handle_list(struct request *request)
{
	struct message_name message;
	char after[NAME_LIMIT + 1];
	const struct object *snapshot = request->pool->by_name;
	uint64_t bytes = 0;
	int result = 0;

	if (message_name_decode(request->payload, request->header->length, &message) < 0)
		return request_malformed(request);
	message_text_copy(message.name, after, sizeof(after));
	while (snapshot && strcmp(snapshot->name, after) <= 0)
		snapshot = snapshot->next_name;
	for (; snapshot && bytes < LIST_BYTES && result == 0; snapshot = snapshot->next_name) {
		if (!request_may_read(request, snapshot))
			continue;
		bytes += info_size(snapshot, false, false);
		result = answer_info(request, snapshot, false, false, true);
	}
	request->answered = false;
	if (result < 0)
		return result;
	struct reply *end = reply_new(request->connection->shared);

	if (!end)
		return -ENOMEM;
	end->head_bytes = MESSAGE_HEADER_BYTES;
	request_answer(request, end, MESSAGE_OK, CLASS_PREFETCH, snapshot != NULL, 0);
	return 0;
}

static int handle_file_get(struct request *request)
{
	struct message_file_get message;
	char name[FILE_NAME_LIMIT + 1];

	if (message_file_get_decode(request->payload, request->header->length, &message) < 0)
		return request_malformed(request);
	message_text_copy(message.name, name, sizeof(name));
	const struct object *snapshot = pool_object(request->pool, request->header->object, OBJECT_SNAPSHOT);
	const struct pool_file *file = snapshot ? pool_file_find(snapshot, name) : NULL;

	if (!file)
		return dp_fail(&request->err, ENOENT,
			       snapshot ? "the snapshot has no file %s" : "the snapshot of file %s is gone", name);
	if (message.offset > file->total)
		return dp_fail(&request->err, EINVAL, "file %s is shorter", name);
	uint64_t bytes = DP_MIN(message.bytes, file->total - message.offset);
	struct reply *reply = reply_with_buffer(request, bytes);

	if (!reply)
		return -ENOMEM;
	/* A copy: the snapshot may be removed before it is sent. */
	memcpy(reply->extra, file->content + message.offset, bytes);
	reply->extra_bytes = bytes;
	request_answer(request, reply, MESSAGE_FILE_BYTES, CLASS_PREFETCH, request->header->object, 0);
	return 0;
}

static int handle_remove(struct request *request)
{
	struct message_name message;
	char name[256];

	if (message_name_decode(request->payload, request->header->length, &message) < 0)
		return request_malformed(request);
	int result = take_name(request, message.name, RIGHT_ADMIN, name);

	return result < 0 ? result : pool_snapshot_remove(request->pool, name, message.flags & NAME_FLAG_FORCE, &request->err);
}

/* ---- recorded orders ---- */

static int handle_order_put(struct request *request)
{
	struct message_order order;

	if (message_order_decode(request->payload, request->header->length, &order) < 0)
		return request_malformed(request);
	return pool_order_put(request->pool, request->header->object, request->header->epoch, request->payload,
			      request->header->length, &request->err);
}

static int handle_order_get(struct request *request)
{
	if (request->header->length)
		return request_malformed(request);
	const struct object *snapshot = pool_order_get(request->pool, request->header->object);

	if (!snapshot)
		return dp_fail(&request->err, ENOENT, "the snapshot has no recorded order");
	struct reply *reply = reply_with_buffer(request, snapshot->order_bytes);

	if (!reply)
		return -ENOMEM;
	memcpy(reply->extra, snapshot->order, snapshot->order_bytes);
	reply->extra_bytes = snapshot->order_bytes;
	request_answer(request, reply, MESSAGE_ORDER, CLASS_PREFETCH, snapshot->id, 0);
	return 0;
}

/* ---- instances ---- */

static int answer_instance(struct request *request, const struct object *instance)
{
	uint64_t size = 8 + instance->space_count * 24ull;

	if (size > MESSAGE_PAYLOAD_LIMIT)
		return dp_fail(&request->err, EMSGSIZE, "the snapshot has too many spaces");
	struct message_info_space *spaces = calloc(instance->space_count + 1u, sizeof(*spaces));
	struct reply *reply = spaces ? reply_with_buffer(request, size) : NULL;
	size_t count = 0;

	if (!reply) {
		free(spaces);
		return -ENOMEM;
	}
	for (const struct space *space = instance->spaces; space; space = space->next)
		spaces[count++] = (struct message_info_space){ space->label, space->id, pagemap_pages(&space->map) };
	reply->extra_bytes = (uint64_t)message_instance_info_encode(reply->extra, size, spaces, count);
	free(spaces);
	request_answer(request, reply, MESSAGE_INSTANCE_INFO, CLASS_DEMAND, instance->id, instance->epoch);
	return 0;
}

static int handle_instance_create(struct request *request)
{
	struct message_instance_create message;
	char snapshot[256], name[NAME_LIMIT + 1];
	struct object *instance;

	if (message_instance_create_decode(request->payload, request->header->length, &message) < 0)
		return request_malformed(request);
	int result = take_name(request, message.snapshot, RIGHT_READ, snapshot);

	if (result < 0)
		return result;
	message_text_copy(message.name, name, sizeof(name));
	result = pool_instance_create(request->pool, request->connection, snapshot, name, message.flags, &instance,
				      &request->err);
	if (result < 0)
		return result;
	result = answer_instance(request, instance);
	if (result < 0)
		object_free(request->pool, instance);
	return result;
}

static int handle_instance_end(struct request *request)
{
	if (request->header->length)
		return request_malformed(request);
	return pool_instance_end(request->pool, request->header->object, request->header->epoch, &request->err);
}

static int handle_lease_take(struct request *request)
{
	if (request->header->length)
		return request_malformed(request);
	request->ok_object = request->header->object;
	const struct object *instance = pool_object(request->pool, request->header->object, OBJECT_INSTANCE);
	const struct connection *before = instance ? instance->owner : NULL;
	int result = pool_lease_take(request->pool, request->connection, request->header->object, 1, &request->ok_epoch,
				     &request->err);

	/* Whoever had it learns of it at once, not only when he asks for something: he attaches again, and is refused. */
	if (result == 0 && before && before != request->connection)
		shutdown(before->stream->fd, SHUT_RDWR);
	return result;
}

/* ---- dispatch ---- */

static int (*const handlers[])(struct request *request) = {
	[MESSAGE_HELLO] = handle_hello,
	[MESSAGE_GET] = request_handle_get,
	[MESSAGE_PUT] = request_handle_put,
	[MESSAGE_NEAR] = request_handle_near,
	[MESSAGE_LOCATE] = request_handle_locate,
	[MESSAGE_DROP] = request_handle_drop,
	[MESSAGE_MOVE] = request_handle_move,
	[MESSAGE_FORK] = request_handle_fork,
	[MESSAGE_SPACE_FREE] = request_handle_space_free,
	[MESSAGE_SNAPSHOT_BEGIN] = handle_snapshot_begin,
	[MESSAGE_SNAPSHOT_SPACE] = handle_snapshot_space,
	[MESSAGE_SNAPSHOT_INHERIT] = handle_snapshot_inherit,
	[MESSAGE_SNAPSHOT_FILE] = handle_snapshot_file,
	[MESSAGE_SNAPSHOT_COMMIT] = handle_snapshot_commit,
	[MESSAGE_SNAPSHOT_ABORT] = handle_snapshot_abort,
	[MESSAGE_SNAPSHOT_OPEN] = handle_snapshot_open,
	[MESSAGE_FILE_GET] = handle_file_get,
	[MESSAGE_LIST] = handle_list,
	[MESSAGE_REMOVE] = handle_remove,
	[MESSAGE_STATUS] = handle_status,
	[MESSAGE_ORDER_PUT] = handle_order_put,
	[MESSAGE_ORDER_GET] = handle_order_get,
	[MESSAGE_INSTANCE_CREATE] = handle_instance_create,
	[MESSAGE_INSTANCE_END] = handle_instance_end,
	[MESSAGE_LEASE_TAKE] = handle_lease_take,
	[MESSAGE_SCRUB] = request_handle_scrub,
	[MESSAGE_FIND] = request_handle_find,
	[MESSAGE_REPAIR] = request_handle_repair,
	[MESSAGE_ATTACH] = request_handle_attach,
	[MESSAGE_NOTE] = request_handle_note,
};

int request_fail(struct connection *connection, const struct message_header *header, int error, const char *text)
{
	struct reply *reply = reply_new(connection->shared);
	uint8_t class = header->class & MESSAGE_CLASS_MASK;

	if (!reply)
		return -ENOMEM;
	/* An error behind parts of an answer keeps their class, so that it cannot overtake them. */
	int length = message_error_encode(reply->head + MESSAGE_HEADER_BYTES, REPLY_HEAD_BYTES - MESSAGE_HEADER_BYTES,
					  &(struct message_error){ error, { text, (uint32_t)strlen(text) } });

	reply->head_bytes = MESSAGE_HEADER_BYTES + (uint32_t)length;
	if (header->type == MESSAGE_LIST)
		class = CLASS_PREFETCH;
	connection_queue(connection, reply, header, MESSAGE_ERROR, class, header->object, 0);
	return 0;
}

static int answer_ok(struct connection *connection, const struct message_header *header, uint64_t object, uint64_t epoch)
{
	struct reply *reply = reply_new(connection->shared);

	if (!reply)
		return -ENOMEM;
	reply->head_bytes = MESSAGE_HEADER_BYTES;
	/* Short answers are urgent: who waits for one waits for little. */
	connection_queue(connection, reply, header, MESSAGE_OK, CLASS_DEMAND, object, epoch);
	return 0;
}

void request_committed(struct connection *connection, const struct commit_job *job)
{
	const struct message_header header = { .type = MESSAGE_SNAPSHOT_COMMIT, .request = job->request, .object = job->draft };
	struct dp_err err = { "" };
	int result = pool_snapshot_commit_finish(connection->shared->pool, connection, job->draft, job->result, &err);

	result = result < 0 ? request_fail(connection, &header, -result, err.text) : answer_ok(connection, &header, 0, 0);
	if (result < 0)
		connection->broken = true; /* an answer is owed that there is no memory for */
}

/* Operations of an instance: each once, in the order of their numbers where they have any; on the journal before they are
 * answered. */
static bool is_operation(unsigned type)
{
	return (type >= MESSAGE_PUT && type <= MESSAGE_SPACE_FREE) || type == MESSAGE_NOTE;
}

static int handle_operation(struct request *request)
{
	const struct message_header *header = request->header;
	uint64_t sequence = header->request & SEQUENCE_BIT ? header->request & ~SEQUENCE_BIT : 0;
	struct object *instance = NULL;
	bool refused = false;
	int result = sequence ? request_sequence_check(request, &instance, &refused) : 0;

	/* What comes behind on this connection counts on the operation: it must not be answered as if that had been made. */
	if (refused)
		request->connection->broken = true;
	if (result)
		return DP_MIN(result, 0);
	uint64_t id = header->type == MESSAGE_NOTE ? header->object : header->object >> SPACE_NUMBER_BITS;

	result = handlers[header->type](request);
	if (sequence && result == -EBADMSG) { /* damaged on its way: it comes again under the same number */
		request->connection->broken = true;
		return result;
	}
	if (sequence)
		pool_applied(instance, sequence, result);
	else
		instance = pool_object(request->pool, id, OBJECT_INSTANCE);
	if (instance)
		journal_commit(request->pool, instance, sequence, result);
	return result;
}

int request_handle(struct connection *connection, const struct message_header *header, const uint8_t *payload)
{
	struct request request;
	int result;

	request.connection = connection;
	request.pool = connection->shared->pool;
	request.header = header;
	request.payload = payload;
	request.err.text[0] = 0; /* the rest of the text is not cleared: this is the hot path */
	request.ok_object = request.ok_epoch = 0;
	request.answered = false;
	if (header->type >= ARRAY_LENGTH(handlers) || !handlers[header->type]) {
		connection->broken = true;
		return request_fail(connection, header, EPROTO, "this message is an answer, not a request");
	}
	if (!connection->hello && header->type != MESSAGE_HELLO) {
		connection->broken = true;
		return request_fail(connection, header, EPROTO, "the first message must be hello");
	}
	result = request_check(&request);
	if (result < 0)
		return request_fail(connection, header, -result, request.err.text);
	result = is_operation(header->type) ? handle_operation(&request) : handlers[header->type](&request);
	if (result < 0)
		return request_fail(connection, header, -result, request.err.text[0] ? request.err.text : strerror(-result));
	if (request.answered)
		return 0;
	return answer_ok(connection, header, request.ok_object, request.ok_epoch);
}
