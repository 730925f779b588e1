/* Many files of a draft's skeleton at once: with a request for each part under way, a tree that stands still waits for one round
 * trip, not for one a file. */
#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "client/connection.h"

#define PARTS_AT_ONCE 64 /* one bit each of `seen` */

struct place {
	size_t file;
	uint64_t offset;
};

/* 1: queued; 0: the connection takes no more now. */
static int send_part(struct client *client, uint64_t draft, const struct client_file *file, uint64_t offset, struct dp_err *err)
{
	uint8_t head[256];
	uint64_t bytes = DP_MIN(file->bytes - offset, (uint64_t)FILE_PART_LIMIT);
	const struct message_file part = { .total = file->bytes, .offset = offset,
					   .name = { file->name, (uint32_t)strlen(file->name) } };
	const struct iovec data = { (uint8_t *)(uintptr_t)file->content + offset, bytes };
	struct message_header request = { .type = MESSAGE_SNAPSHOT_FILE, .object = draft,
					  .request = CONTROL_REQUEST | client->control_count };
	int length = strlen(file->name) > FILE_NAME_LIMIT || !*file->name ? -1 : message_file_encode(head, sizeof(head), &part);
	if (length < 0)
		return dp_fail(err, ENAMETOOLONG, "file name '%.150s' has not 1 to %d bytes", file->name, FILE_NAME_LIMIT);
	int result = connection_send(client, &request, head, (size_t)length, bytes ? &data : NULL, bytes ? 1 : 0, bytes,
				     OUTPUT_BYTES);
	if (result < 0)
		return result == -EAGAIN ? 0 : dp_fail_errno(err, -result, "store image %s", file->name);
	client->control_count++;
	return 1;
}

/* Sends parts from *place on, which it moves along. Their number. */
static int send_parts(struct client *client, uint64_t draft, const struct client_file *files, size_t count, struct place *place,
		      struct dp_err *err)
{
	int sent = 0;
	while (place->file < count && sent < PARTS_AT_ONCE) {
		const struct client_file *file = &files[place->file];
		int result = send_part(client, draft, file, place->offset, err);
		if (result <= 0)
			return result < 0 ? result : sent;
		sent++;
		place->offset += FILE_PART_LIMIT;
		if (place->offset >= file->bytes)
			*place = (struct place){ place->file + 1, 0 };
	}
	return sent;
}

static int take_answers(struct client *client, uint64_t first, int sent, struct dp_err *err)
{
	uint64_t seen = 0;
	for (int i = 0; i < sent; i++) {
		struct message_header answer;
		const uint8_t *payload;
		int result = control_wait_any(client, first, (uint64_t)sent, CONTROL_TIMEOUT_MS, &answer, &payload, err);
		if (result < 0)
			return result;
		uint64_t index = answer.request - first;
		result = control_check_answer(client, &answer, payload, MESSAGE_OK, err);
		if (result == 0 && seen >> index & 1)
			result = dp_fail(err, EPROTO, "pool %s answers twice", client->text);
		if (result < 0) {
			connection_fail(client, result); /* the other answers would be taken for nonsense */
			return result;
		}
		seen |= UINT64_C(1) << index;
	}
	return 0;
}

int client_snapshot_files(struct client *client, uint64_t draft, const struct client_file *files, size_t count,
			  struct dp_err *err)
{
	struct place place = { 0, 0 };
	while (place.file < count) {
		uint64_t first = CONTROL_REQUEST | client->control_count;
		int sent = send_parts(client, draft, files, count, &place, err);
		int result = sent > 0 ? take_answers(client, first, sent, err) : sent;
		if (sent == 0) { /* full of page requests: alone, and it waits for room */
			const struct client_file *file = &files[place.file];
			result = client_snapshot_file(client, draft, file->name, file->content, file->bytes, err);
			place = (struct place){ place.file + 1, 0 };
		}
		if (result < 0)
			return result;
	}
	return 0;
}
