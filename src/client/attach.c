/* Making instances that outlive their connection, and attaching to them again. Blocking. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/base.h"
#include "client/connection.h"

static int nonsense(struct client *client, struct dp_err *err)
{
	connection_fail(client, -EPROTO);
	return dp_fail(err, EPROTO, "pool %s: its answer makes no sense", client->text);
}

static int take_failures(const struct message_attached *from, struct client_attached *to)
{
	to->failures = calloc(from->failure_count + 1u, sizeof(*to->failures));
	to->spaces = calloc(from->space_count + 1u, sizeof(*to->spaces));
	if (!to->failures || !to->spaces)
		return -ENOMEM;
	to->failure_count = from->failure_count;
	to->space_count = from->space_count;
	for (uint32_t i = 0; i < from->failure_count; i++)
		to->failures[i] = message_failure_at(from->failures, i);
	for (uint32_t i = 0; i < from->space_count; i++) {
		struct message_info_space space = message_info_space_at(from->spaces, i);

		to->spaces[i] = (struct snapshot_space){ space.label, space.space, space.pages };
	}
	memcpy(to->identity, from->identity, IDENTITY_BYTES);
	to->applied = from->applied;
	if (from->note.length)
		memcpy(to->note, from->note.at, from->note.length);
	to->note_bytes = (uint32_t)from->note.length;
	return 0;
}

bool client_can_resume(const struct client *client)
{
	return client->features & HELLO_FEATURE_RESUME;
}

int client_attach(struct client *client, uint64_t instance, uint64_t epoch, uint32_t step, const uint8_t *identity,
		  unsigned timeout_ms, struct client_attached *attached, struct dp_err *err)
{
	struct message_attach attach = { .flags = step ? ATTACH_FLAG_TAKE : 0, .step = step };
	struct message_header request = { .type = MESSAGE_ATTACH, .object = instance, .epoch = epoch }, answer;
	struct message_attached decoded;
	const uint8_t *answer_payload;
	uint8_t payload[64];

	*attached = (struct client_attached){ 0 };
	if (!client_can_resume(client))
		return dp_fail(err, EPROTONOSUPPORT, "pool %s is too old to hold an instance while a connection is lost",
			       client->text);
	if (identity)
		memcpy(attach.identity, identity, IDENTITY_BYTES);
	int bytes = message_attach_encode(payload, sizeof(payload), &attach);
	int result = control_call(client, &request, payload, (size_t)bytes, NULL, 0, MESSAGE_ATTACHED, timeout_ms, &answer,
				  &answer_payload, err);

	if (result < 0)
		return result;
	if (message_attached_decode(answer_payload, answer.length, &decoded) < 0 || answer.object != instance)
		return nonsense(client, err);
	attached->instance = instance;
	attached->epoch = answer.epoch;
	if (take_failures(&decoded, attached) == 0)
		return 0;
	client_attached_done(attached);
	return dp_fail_errno(err, ENOMEM, "attach");
}

/* Under the epoch that is held, as far as is known: the one before or behind a raise of which the answer was not heard. */
static int attach_as_noted(struct client *client, struct client_lease *lease, unsigned timeout_ms, struct dp_err *err)
{
	struct client_attached attached;
	int result = client_attach(client, lease->instance, lease->epoch, 0, lease->identity, timeout_ms, &attached, err);

	if (result == -ESTALE && lease->next) {
		result = client_attach(client, lease->instance, lease->next, 0, lease->identity, timeout_ms, &attached, err);
		if (result == 0) {
			lease->epoch = lease->next;
			lease->next = 0;
		}
	}
	if (result == 0)
		client_attached_done(&attached);
	return result;
}

/* What was chosen before stays: the asking of that time may still arrive. */
static int choose_next(struct client_lease *lease, struct dp_err *err)
{
	uint32_t step = 0;

	while (!lease->next && !step)
		if (getrandom(&step, sizeof(step), 0) != sizeof(step))
			return dp_fail_errno(err, errno, "get a random number");
	if (!lease->next)
		lease->next = lease->epoch + step;
	return 0;
}

static int raise_lease(struct client *client, struct client_lease *lease, client_note_lease *note, void *context,
		       unsigned timeout_ms, struct client_attached *attached, struct dp_err *err)
{
	int result = attach_as_noted(client, lease, timeout_ms, err);

	if (result == 0)
		result = choose_next(lease, err);
	if (result < 0)
		return result;
	result = note(context, lease);
	if (result < 0)
		return dp_fail_errno(err, -result, "note the lease");
	return client_attach(client, lease->instance, lease->epoch, (uint32_t)(lease->next - lease->epoch), lease->identity,
			     timeout_ms, attached, err);
}

int client_take_over(struct client *client, struct client_lease *lease, client_note_lease *note, void *context,
		     unsigned timeout_ms, struct client_attached *attached, struct dp_err *err)
{
	int result = raise_lease(client, lease, note, context, timeout_ms, attached, err);

	if (result == -ESTALE && lease->next) /* an earlier asking of ours may just have come; if not, another has the lease */
		result = raise_lease(client, lease, note, context, timeout_ms, attached, err);
	if (result < 0)
		return result;
	lease->epoch = attached->epoch;
	lease->next = 0;
	result = note(context, lease);
	if (result == 0)
		return 0;
	client_attached_done(attached);
	return dp_fail_errno(err, -result, "note the lease");
}

void client_attached_done(struct client_attached *attached)
{
	free(attached->failures);
	free(attached->spaces);
	*attached = (struct client_attached){ 0 };
}

int client_instance_create_resumable(struct client *client, const char *snapshot, const char *name,
				     struct client_attached *attached, struct dp_err *err)
{
	uint8_t payload[1024];
	const struct message_instance_create create = { INSTANCE_FLAG_RESUME,
							{ snapshot, (uint32_t)strlen(snapshot) },
							{ name, (uint32_t)strlen(name) } };
	struct message_header request = { .type = MESSAGE_INSTANCE_CREATE }, answer;
	const uint8_t *answer_payload;
	int bytes = message_instance_create_encode(payload, sizeof(payload), &create);

	*attached = (struct client_attached){ 0 };
	if (bytes < 0)
		return dp_fail(err, EINVAL, "the instance's name is too long");
	if (!client_can_resume(client))
		return dp_fail(err, EPROTONOSUPPORT, "pool %s is too old to hold an instance while a connection is lost",
			       client->text);
	int result = control_call(client, &request, payload, (size_t)bytes, NULL, 0, MESSAGE_INSTANCE_INFO, CONTROL_TIMEOUT_MS,
				  &answer, &answer_payload, err);

	/* What came with it comes again with the attachment, and who the pool is. */
	return result < 0 ? result
			  : client_attach(client, answer.object, answer.epoch, 0, NULL, CONTROL_TIMEOUT_MS, attached, err);
}

void client_set_sequence(struct client *client, uint64_t sequence)
{
	client->sequence = sequence;
}

void client_set_read_epoch(struct client *client, uint64_t epoch)
{
	client->read_epoch = epoch;
}

int client_note(struct client *client, uint64_t instance, uint64_t epoch, const void *note, uint32_t bytes, uint64_t cookie)
{
	struct message_header header = { .type = MESSAGE_NOTE, .object = instance, .epoch = epoch };

	return connection_send_change(client, &header, note, bytes > NOTE_LIMIT ? -EMSGSIZE : (int)bytes, cookie);
}
