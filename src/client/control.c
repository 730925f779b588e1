/* The blocking control calls: one message out, wait for its answer. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "client/connection.h"

#define FILES_AT_ONCE 64 /* requests for files in flight: one bit each of take_files */

static int wait_for_event(struct client *client, uint64_t deadline_ns, struct dp_err *err)
{
	struct pollfd poll_fd = { .fd = client->stream->fd,
				  .events = (short)(POLLIN | (client_wants_write(client) ? POLLOUT : 0)) };
	uint64_t now = clock_now_ns();
	int timeout_ms = -1;

	if (stream_pending(client->stream))
		return 0;
	if (deadline_ns) {
		if (now >= deadline_ns)
			return dp_fail(err, ETIMEDOUT, "pool %s: no answer in time", client->text);
		timeout_ms = (int)((deadline_ns - now) / 1000000 + 1);
	}
	if (poll(&poll_fd, 1, timeout_ms) < 0 && errno != EINTR)
		return dp_fail_errno(err, errno, "poll");
	return 0;
}

static int lost(struct client *client, struct dp_err *err)
{
	const char *why = stream_why(client->stream);

	return dp_fail(err, -client->error, "pool %s: connection lost: %s", client->text, *why ? why : strerror(-client->error));
}

/* Waits for the answer to any of `count` control requests with ids from `first` on. */
int control_wait_any(struct client *client, uint64_t first, uint64_t count, unsigned timeout_ms, struct message_header *answer,
		     const uint8_t **payload, struct dp_err *err)
{
	uint64_t deadline_ns = timeout_ms ? clock_now_ns() + timeout_ms * UINT64_C(1000000) : 0;

	for (;;) {
		int result = connection_next(client, answer, payload);

		if (result < 0)
			return lost(client, err);
		if (result > 0) {
			if (answer->request - first < count)
				return 0;
			/* Request 0 in an error: the pool could not make out what was sent. */
			if (answer->request & CONTROL_REQUEST || connection_hold(client, answer, *payload) < 0) {
				connection_fail(client, -EPROTO);
				return lost(client, err);
			}
			continue;
		}
		if (connection_flush(client) < 0)
			return lost(client, err);
		result = connection_fill(client);
		if (result < 0)
			return lost(client, err);
		if (result == 0 && (result = wait_for_event(client, deadline_ns, err)) < 0) {
			/* Its answer may come yet and would be taken for nonsense: the connection is of no more use. */
			connection_fail(client, result);
			return result;
		}
	}
}

int control_wait(struct client *client, uint64_t request, unsigned timeout_ms, struct message_header *answer,
		 const uint8_t **payload, struct dp_err *err)
{
	return control_wait_any(client, request, 1, timeout_ms, answer, payload, err);
}

/* Turns an ERROR answer into err and its errno; anything but `expected` (ANY_ANSWER: whatever) ends the client. */
int control_check_answer(struct client *client, const struct message_header *answer, const uint8_t *payload,
			 enum message_type expected, struct dp_err *err)
{
	struct message_error error;

	if (answer->type == expected || (expected == ANY_ANSWER && answer->type != MESSAGE_ERROR))
		return 0;
	if (answer->type == MESSAGE_ERROR && message_error_decode(payload, answer->length, &error) == 0)
		return dp_fail(err, error.error, "%.*s", (int)error.text.length, error.text.at);
	connection_fail(client, -EPROTO);
	return lost(client, err);
}

int control_call(struct client *client, struct message_header *request, const void *payload, size_t payload_bytes,
		 const struct iovec *data, size_t data_bytes, enum message_type expected, unsigned timeout_ms,
		 struct message_header *answer, const uint8_t **answer_payload, struct dp_err *err)
{
	uint64_t deadline_ns = timeout_ms ? clock_now_ns() + timeout_ms * UINT64_C(1000000) : 0;
	int result;

	if (client->error)
		return lost(client, err);
	request->request = CONTROL_REQUEST | client->control_count++;
	while ((result = connection_send(client, request, payload, payload_bytes, data, data ? 1 : 0, data_bytes,
					 OUTPUT_BYTES)) == -EAGAIN) {
		/* Full of page requests: let the pool take some, and take its answers, or neither of us would move. */
		result = wait_for_event(client, deadline_ns, err);
		if (result < 0)
			return result;
		if (connection_fill(client) < 0)
			return lost(client, err);
		while ((result = connection_next(client, answer, answer_payload)) > 0)
			if (connection_hold(client, answer, *answer_payload) < 0)
				break;
		if (client->error)
			return lost(client, err);
	}
	if (result == -EMSGSIZE)
		return dp_fail(err, EMSGSIZE, "the request is too long for the protocol");
	if (result < 0)
		return lost(client, err);
	result = control_wait(client, request->request, timeout_ms, answer, answer_payload, err);
	return result < 0 ? result : control_check_answer(client, answer, *answer_payload, expected, err);
}

/* A call whose answer is OK. */
static int call_ok(struct client *client, struct message_header *request, const void *payload, int payload_bytes,
		   const struct iovec *data, size_t data_bytes, unsigned timeout_ms, struct message_header *answer,
		   struct dp_err *err)
{
	struct message_header unused;
	const uint8_t *answer_payload;

	if (payload_bytes < 0)
		return dp_fail(err, EINVAL, "the request is too long for the protocol");
	return control_call(client, request, payload, (size_t)payload_bytes, data, data_bytes, MESSAGE_OK, timeout_ms,
			    answer ? answer : &unused, &answer_payload, err);
}

static struct message_text text_of(const char *text)
{
	return (struct message_text){ text, (uint32_t)strlen(text) };
}

int control_hello(struct client *client, unsigned timeout_ms, struct dp_err *err)
{
	struct message_hello hello = { MESSAGE_VERSION, MESSAGE_VERSION,
				       HELLO_FEATURE_LZ4 | HELLO_FEATURE_NEAR | HELLO_FEATURE_RESUME };
	struct message_header request = { .type = MESSAGE_HELLO }, answer;
	const uint8_t *answer_payload;
	uint8_t payload[16];
	int bytes = message_hello_encode(payload, sizeof(payload), &hello);
	int result = control_call(client, &request, payload, (size_t)bytes, NULL, 0, MESSAGE_HELLO, timeout_ms, &answer,
				  &answer_payload, err);

	if (result == 0 && (message_hello_decode(answer_payload, answer.length, &hello) < 0 || hello.lowest > MESSAGE_VERSION ||
			    hello.highest < MESSAGE_VERSION))
		return dp_fail(err, EPROTONOSUPPORT, "pool %s speaks another version of the protocol", client->text);
	client->features = result == 0 ? hello.features & (HELLO_FEATURE_LZ4 | HELLO_FEATURE_NEAR | HELLO_FEATURE_RESUME) : 0;
	if (result == -EPROTO || result == -EPROTONOSUPPORT)
		dp_err_doing(err, "%s does not answer like a pool", client->text);
	return result;
}

/* ---- writing a snapshot ---- */

int client_snapshot_begin(struct client *client, const char *name, bool replace, uint64_t *draft, struct dp_err *err)
{
	uint8_t payload[512];
	struct message_name message = { replace ? NAME_FLAG_REPLACE : 0, text_of(name) };
	struct message_header request = { .type = MESSAGE_SNAPSHOT_BEGIN }, answer;
	int result = call_ok(client, &request, payload, message_name_encode(payload, sizeof(payload), &message), NULL, 0,
			     CONTROL_TIMEOUT_MS, &answer, err);

	if (result == 0)
		*draft = answer.object;
	return result;
}

int client_snapshot_space(struct client *client, uint64_t draft, uint64_t label, uint64_t *space, struct dp_err *err)
{
	uint8_t payload[8];
	struct message_header request = { .type = MESSAGE_SNAPSHOT_SPACE, .object = draft }, answer;
	int result = call_ok(client, &request, payload, message_number_encode(payload, sizeof(payload), label), NULL, 0,
			     CONTROL_TIMEOUT_MS, &answer, err);

	if (result == 0)
		*space = answer.object;
	return result;
}

int client_snapshot_inherit(struct client *client, uint64_t draft_space, uint64_t source, const struct page_range *ranges,
			    size_t count, struct dp_err *err)
{
	size_t size = 16 + (size_t)DROP_RANGES_LIMIT * 16;
	cleanup_free uint8_t *payload = malloc(size);
	int result = 0;

	if (!payload)
		return dp_fail_errno(err, ENOMEM, "inherit pages");
	for (size_t at = 0, part; at < count && result == 0; at += part) {
		struct message_header request = { .type = MESSAGE_SNAPSHOT_INHERIT, .object = draft_space };

		part = DP_MIN(count - at, (size_t)DROP_RANGES_LIMIT);
		result = call_ok(client, &request, payload, message_inherit_encode(payload, size, source, ranges + at, part),
				 NULL, 0, CONTROL_TIMEOUT_MS, NULL, err);
	}
	return result;
}

int client_snapshot_file(struct client *client, uint64_t draft, const char *name, const void *content, uint64_t bytes,
			 struct dp_err *err)
{
	uint64_t offset = 0;
	int result;

	if (strlen(name) > FILE_NAME_LIMIT || !*name)
		return dp_fail(err, ENAMETOOLONG, "file name '%.150s' has not 1 to %d bytes", name, FILE_NAME_LIMIT);
	do {
		uint8_t head[256];
		uint64_t part = DP_MIN(bytes - offset, (uint64_t)FILE_PART_LIMIT);
		const struct message_file file = { .total = bytes, .offset = offset, .name = text_of(name) };
		const struct iovec data = { part ? (uint8_t *)content + offset : NULL, part };
		struct message_header request = { .type = MESSAGE_SNAPSHOT_FILE, .object = draft };

		result = call_ok(client, &request, head, message_file_encode(head, sizeof(head), &file), part ? &data : NULL,
				 part, CONTROL_TIMEOUT_MS, NULL, err);
		offset += part;
	} while (result == 0 && offset < bytes);
	return result;
}

int client_snapshot_commit(struct client *client, uint64_t draft, const char *meta_json, struct dp_err *err)
{
	struct message_header request = { .type = MESSAGE_SNAPSHOT_COMMIT, .object = draft };
	size_t length = strlen(meta_json);

	if (length > META_LIMIT)
		return dp_fail(err, EFBIG, "the snapshot's metadata is longer than 64 KiB");
	/* No timeout: the pool may have gigabytes to write to its disk first. A dead pool is noticed by the transport. */
	return call_ok(client, &request, meta_json, (int)length, NULL, 0, 0, NULL, err);
}

int client_snapshot_abort(struct client *client, uint64_t draft, struct dp_err *err)
{
	struct message_header request = { .type = MESSAGE_SNAPSHOT_ABORT, .object = draft };

	return call_ok(client, &request, NULL, 0, NULL, 0, CONTROL_TIMEOUT_MS, NULL, err);
}

int client_remove(struct client *client, const char *name, bool force, struct dp_err *err)
{
	uint8_t payload[512];
	struct message_name message = { force ? NAME_FLAG_FORCE : 0, text_of(name) };
	struct message_header request = { .type = MESSAGE_REMOVE };

	return call_ok(client, &request, payload, message_name_encode(payload, sizeof(payload), &message), NULL, 0,
		       CONTROL_TIMEOUT_MS, NULL, err);
}

/* ---- instances ---- */

static int take_spaces(const uint8_t *encoded, uint32_t count, struct snapshot_space **spaces)
{
	*spaces = calloc(count + 1u, sizeof(**spaces));
	if (!*spaces)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++) {
		struct message_info_space space = message_info_space_at(encoded, i);

		(*spaces)[i] = (struct snapshot_space){ space.label, space.space, space.pages };
	}
	return 0;
}

int client_instance_create(struct client *client, const char *snapshot, const char *name, bool keep, struct instance_info *info,
			   struct dp_err *err)
{
	uint8_t payload[1024];
	const struct message_instance_create create = { keep ? INSTANCE_FLAG_KEEP : 0, text_of(snapshot), text_of(name) };
	struct message_header request = { .type = MESSAGE_INSTANCE_CREATE }, answer;
	struct message_instance_info encoded;
	const uint8_t *answer_payload;
	int bytes = message_instance_create_encode(payload, sizeof(payload), &create);

	*info = (struct instance_info){ 0 };
	if (bytes < 0)
		return dp_fail(err, EINVAL, "the instance's name is too long");
	int result = control_call(client, &request, payload, (size_t)bytes, NULL, 0, MESSAGE_INSTANCE_INFO, CONTROL_TIMEOUT_MS,
				  &answer, &answer_payload, err);

	if (result < 0)
		return result;
	if (message_instance_info_decode(answer_payload, answer.length, &encoded) < 0) {
		connection_fail(client, -EPROTO);
		return lost(client, err);
	}
	info->id = answer.object;
	info->epoch = answer.epoch;
	info->space_count = encoded.space_count;
	return take_spaces(encoded.spaces, encoded.space_count, &info->spaces) < 0 ? dp_fail_errno(err, ENOMEM, "instance") : 0;
}

int client_instance_end(struct client *client, uint64_t instance, uint64_t epoch, struct dp_err *err)
{
	struct message_header request = { .type = MESSAGE_INSTANCE_END, .object = instance, .epoch = epoch };

	return call_ok(client, &request, NULL, 0, NULL, 0, CONTROL_TIMEOUT_MS, NULL, err);
}

int client_lease_take(struct client *client, uint64_t instance, uint64_t *epoch, struct dp_err *err)
{
	struct message_header request = { .type = MESSAGE_LEASE_TAKE, .object = instance }, answer;
	int result = call_ok(client, &request, NULL, 0, NULL, 0, CONTROL_TIMEOUT_MS, &answer, err);

	if (result == 0)
		*epoch = answer.epoch;
	return result;
}

/* ---- reading ---- */

static int take_info(const struct message_header *answer, const uint8_t *payload, struct snapshot_info *info)
{
	struct message_info encoded;

	*info = (struct snapshot_info){ 0 };
	if (message_info_decode(payload, answer->length, &encoded) < 0)
		return -EPROTO;
	info->id = answer->object;
	message_text_copy(encoded.name, info->name, sizeof(info->name));
	info->created_unix_ns = encoded.created_unix_ns;
	info->stored_pages = encoded.stored_pages;
	info->own_pages = encoded.own_pages;
	info->stored_bytes = encoded.stored_bytes;
	info->instances = encoded.instances;
	info->meta_json = malloc(encoded.meta.length + 1u);
	info->files = calloc(encoded.file_count + 1u, sizeof(*info->files));
	info->instance_list = calloc(encoded.list_count + 1u, sizeof(*info->instance_list));
	if (!info->meta_json || !info->files || !info->instance_list ||
	    take_spaces(encoded.spaces, encoded.space_count, &info->spaces) < 0) {
		client_snapshot_info_done(info);
		return -ENOMEM;
	}
	message_text_copy(encoded.meta, info->meta_json, encoded.meta.length + 1u);
	info->space_count = encoded.space_count;
	info->file_count = encoded.file_count;
	info->instance_list_count = encoded.list_count;
	const uint8_t *at = encoded.files, *list = encoded.list;

	for (uint32_t i = 0; i < encoded.file_count; i++) {
		struct message_text name;

		message_info_file(&at, &name, &info->files[i].bytes);
		message_text_copy(name, info->files[i].name, sizeof(info->files[i].name));
	}
	for (uint32_t i = 0; i < encoded.list_count; i++) {
		struct message_info_instance instance;

		message_info_instance(&list, &instance);
		info->instance_list[i] = (struct snapshot_instance){ instance.id, instance.epoch, instance.own_pages, "" };
		message_text_copy(instance.name, info->instance_list[i].name, sizeof(info->instance_list[i].name));
	}
	return 0;
}

void client_snapshot_info_done(struct snapshot_info *info)
{
	free(info->meta_json);
	free(info->files);
	free(info->spaces);
	free(info->instance_list);
	*info = (struct snapshot_info){ 0 };
}

static int open_snapshot(struct client *client, const char *name, uint32_t flags, struct snapshot_info *info, struct dp_err *err)
{
	uint8_t payload[512];
	const struct message_name message = { flags, text_of(name) };
	struct message_header request = { .type = MESSAGE_SNAPSHOT_OPEN }, answer;
	const uint8_t *answer_payload;
	int bytes = message_name_encode(payload, sizeof(payload), &message);

	*info = (struct snapshot_info){ 0 };
	if (bytes < 0)
		return dp_fail(err, EINVAL, "the snapshot's name is too long");
	int result = control_call(client, &request, payload, (size_t)bytes, NULL, 0, MESSAGE_SNAPSHOT_INFO, CONTROL_TIMEOUT_MS,
				  &answer, &answer_payload, err);

	if (result < 0)
		return result;
	result = take_info(&answer, answer_payload, info);
	if (result == -EPROTO) {
		connection_fail(client, -EPROTO);
		return lost(client, err);
	}
	return result < 0 ? dp_fail_errno(err, -result, "snapshot %s", name) : 0;
}

int client_snapshot_open(struct client *client, const char *name, struct snapshot_info *info, struct dp_err *err)
{
	return open_snapshot(client, name, 0, info, err);
}

int client_snapshot_inspect(struct client *client, const char *name, struct snapshot_info *info, struct dp_err *err)
{
	return open_snapshot(client, name, NAME_FLAG_SHARING, info, err);
}

int client_file_get(struct client *client, uint64_t snapshot, const char *name, uint64_t bytes, void **content,
		    struct dp_err *err)
{
	cleanup_free uint8_t *buffer = NULL;
	uint8_t payload[256];
	uint64_t offset = 0;

	/* The size is what snapshot_open told; a part that does not come ends the loop, so a lie costs one buffer. */
	buffer = malloc(bytes + 1);
	if (!buffer)
		return dp_fail_errno(err, ENOMEM, "file %s", name);
	buffer[bytes] = 0;
	while (offset < bytes) {
		const struct message_file_get get = { offset, DP_MIN(bytes - offset, (uint64_t)FILE_PART_LIMIT), text_of(name) };
		struct message_header request = { .type = MESSAGE_FILE_GET, .object = snapshot }, answer;
		const uint8_t *part;
		int length = message_file_get_encode(payload, sizeof(payload), &get);

		if (length < 0)
			return dp_fail(err, ENAMETOOLONG, "file name '%.150s' is too long", name);
		int result = control_call(client, &request, payload, (size_t)length, NULL, 0, MESSAGE_FILE_BYTES,
					  CONTROL_TIMEOUT_MS, &answer, &part, err);

		if (result < 0)
			return result;
		if (answer.length == 0 || answer.length > get.bytes)
			return dp_fail(err, EPROTO, "file %s: the pool sent %u bytes where %" PRIu64 " were to come", name,
				       answer.length, get.bytes);
		memcpy(buffer + offset, part, answer.length);
		offset += answer.length;
	}
	*content = buffer;
	buffer = NULL;
	return 0;
}

/* Queues requests for files from `from` on, at most FILES_AT_ONCE of them and as much as the connection takes. */
static int ask_for_files(struct client *client, uint64_t snapshot, const struct snapshot_file *files, size_t count,
			 uint64_t *first, struct dp_err *err)
{
	size_t asked = 0;
	int result = 0;

	*first = CONTROL_REQUEST | client->control_count;
	for (; asked < DP_MIN(count, (size_t)FILES_AT_ONCE) && files[asked].bytes <= FILE_PART_LIMIT; asked++) {
		const struct message_file_get get = { 0, files[asked].bytes, text_of(files[asked].name) };
		struct message_header request = { .type = MESSAGE_FILE_GET, .object = snapshot,
						  .request = CONTROL_REQUEST | client->control_count };
		uint8_t payload[256];
		int length = message_file_get_encode(payload, sizeof(payload), &get);

		if (length < 0)
			return dp_fail(err, ENAMETOOLONG, "file name '%.150s' is too long", files[asked].name);
		result = connection_send(client, &request, payload, (size_t)length, NULL, 0, 0, OUTPUT_BYTES);
		if (result < 0)
			break;
		client->control_count++;
	}
	if (asked == 0 && result < 0 && result != -EAGAIN)
		return lost(client, err);
	return (int)asked;
}

/* A file of its own: too large for one answer, or the connection is full of page requests. */
static int get_one_file(struct client *client, uint64_t snapshot, const struct snapshot_file *file, size_t index,
			client_on_file *on_file, void *context, struct dp_err *err)
{
	void *content;
	int result = client_file_get(client, snapshot, file->name, file->bytes, &content, err);

	if (result < 0)
		return result;
	result = on_file(context, index, content, file->bytes, err);
	free(content);
	return result;
}

static int take_files(struct client *client, const struct snapshot_file *files, size_t at, size_t asked, uint64_t first,
		      client_on_file *on_file, void *context, struct dp_err *err)
{
	uint64_t seen = 0;

	for (size_t taken = 0; taken < asked; taken++) {
		struct message_header answer;
		const uint8_t *content;
		int result = control_wait_any(client, first, asked, CONTROL_TIMEOUT_MS, &answer, &content, err);

		if (result < 0)
			return result;
		size_t index = (size_t)(answer.request - first);
		const struct snapshot_file *file = &files[at + index];
		result = control_check_answer(client, &answer, content, MESSAGE_FILE_BYTES, err);
		if (result == 0 && (seen >> index & 1 || answer.length != file->bytes))
			result = dp_fail(err, EPROTO, "file %s: the pool sent %u bytes where %" PRIu64 " were to come",
					 file->name, answer.length, file->bytes);
		seen |= UINT64_C(1) << index;
		if (result == 0)
			result = on_file(context, at + index, content, file->bytes, err);
		if (result < 0) {
			connection_fail(client, result); /* the other answers would be taken for nonsense */
			return result;
		}
	}
	return 0;
}

int client_files_get(struct client *client, uint64_t snapshot, const struct snapshot_file *files, size_t count,
		     client_on_file *on_file, void *context, struct dp_err *err)
{
	for (size_t at = 0; at < count;) {
		uint64_t first;
		int asked = ask_for_files(client, snapshot, files + at, count - at, &first, err);
		int result = asked < 0 ? asked
			   : asked > 0 ? take_files(client, files, at, (size_t)asked, first, on_file, context, err)
				       : get_one_file(client, snapshot, &files[at], at, on_file, context, err);

		if (result < 0)
			return result;
		at += (size_t)DP_MAX(asked, 1);
	}
	return 0;
}

/* One page of the list: the snapshots behind `after`. 1 where there are more. */
static int list_part(struct client *client, const char *after, struct snapshot_info **list, size_t *count, struct dp_err *err)
{
	uint8_t payload[512];
	const struct message_name message = { 0, text_of(after) };
	struct message_header request = { .type = MESSAGE_LIST }, answer;
	const uint8_t *answer_payload;
	int bytes = message_name_encode(payload, sizeof(payload), &message);
	int result = control_call(client, &request, payload, (size_t)bytes, NULL, 0, ANY_ANSWER, CONTROL_TIMEOUT_MS, &answer,
				  &answer_payload, err);

	while (result == 0 && answer.type == MESSAGE_SNAPSHOT_INFO) {
		struct snapshot_info *grown = reallocarray(*list, *count + 1, sizeof(*grown));

		if (!grown)
			return dp_fail_errno(err, ENOMEM, "list");
		*list = grown;
		result = take_info(&answer, answer_payload, &grown[*count]);
		if (result < 0)
			return dp_fail_errno(err, -result, "list");
		++*count;
		result = control_wait(client, request.request, CONTROL_TIMEOUT_MS, &answer, &answer_payload, err);
	}
	if (result == 0)
		result = control_check_answer(client, &answer, answer_payload, MESSAGE_OK, err);
	return result < 0 ? result : answer.object != 0;
}

int client_list(struct client *client, struct snapshot_info **list, size_t *count, struct dp_err *err)
{
	int more = 1;

	*list = NULL;
	*count = 0;
	while (more > 0) {
		char after[256] = "";

		if (*count)
			memcpy(after, (*list)[*count - 1].name, sizeof(after));
		more = list_part(client, after, list, count, err);
	}
	if (more < 0) {
		for (size_t i = 0; i < *count; i++)
			client_snapshot_info_done(&(*list)[i]);
		free(*list);
		*list = NULL;
		*count = 0;
	}
	return more;
}

int client_status(struct client *client, struct pool_status *status, struct dp_err *err)
{
	struct message_header request = { .type = MESSAGE_STATUS }, answer;
	struct message_status encoded;
	const uint8_t *payload;
	int result = control_call(client, &request, NULL, 0, NULL, 0, MESSAGE_STATUS, CONTROL_TIMEOUT_MS, &answer, &payload, err);

	if (result < 0)
		return result;
	if (message_status_decode(payload, answer.length, &encoded) < 0) {
		connection_fail(client, -EPROTO);
		return lost(client, err);
	}
	*status = (struct pool_status){ .page_slots_used = encoded.page_slots_used,
					.page_slots_free = encoded.page_slots_free,
					.snapshots = encoded.snapshots,
					.instances = encoded.instances,
					.spaces = encoded.spaces,
					.connections = encoded.connections,
					.bytes_in = encoded.bytes_in,
					.bytes_out = encoded.bytes_out,
					.requests = encoded.requests,
					.uptime_ns = encoded.uptime_ns,
					.stored_bytes = encoded.stored_bytes };
	return 0;
}
