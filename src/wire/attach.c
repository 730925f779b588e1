/* ATTACH and ATTACHED: an instance goes on over another connection. */
#include <errno.h>

#include "wire/bytes.h"
#include "wire/message.h"

static int written(const struct bytes_writer *out)
{
	return out->bad ? -EMSGSIZE : (int)(out->at - out->start);
}

int message_attach_encode(uint8_t *bytes, size_t size, const struct message_attach *attach)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u32(&out, attach->flags);
	bytes_put_u32(&out, attach->step);
	bytes_put(&out, attach->identity, IDENTITY_BYTES);
	return written(&out);
}

int message_attach_decode(const uint8_t *bytes, size_t length, struct message_attach *attach)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };

	attach->flags = bytes_get_u32(&in);
	attach->step = bytes_get_u32(&in);
	const uint8_t *identity = bytes_take(&in, IDENTITY_BYTES);

	if (!identity || attach->flags & ~ATTACH_FLAG_TAKE || (attach->step && !(attach->flags & ATTACH_FLAG_TAKE)))
		return -EBADMSG;
	memcpy(attach->identity, identity, IDENTITY_BYTES);
	return bytes_complete(&in) ? 0 : -EBADMSG;
}

int message_attached_encode(uint8_t *bytes, size_t size, const struct message_attached *attached)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put(&out, attached->identity, IDENTITY_BYTES);
	bytes_put_u64(&out, attached->applied);
	bytes_put_u32(&out, attached->failure_count);
	bytes_put_u32(&out, attached->space_count);
	bytes_put_u32(&out, (uint32_t)attached->note.length);
	bytes_put_u32(&out, 0);
	bytes_put(&out, attached->note.at, attached->note.length);
	return written(&out);
}

int message_failure_encode(uint8_t *bytes, size_t size, const struct message_failure *failure)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, failure->sequence);
	bytes_put_u32(&out, message_error_number(failure->error));
	bytes_put_u32(&out, 0);
	return written(&out);
}

int message_attached_decode(const uint8_t *bytes, size_t length, struct message_attached *attached)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };
	const uint8_t *identity = bytes_take(&in, IDENTITY_BYTES);

	attached->applied = bytes_get_u64(&in);
	attached->failure_count = bytes_get_u32(&in);
	attached->space_count = bytes_get_u32(&in);
	attached->note.length = bytes_get_u32(&in);
	uint32_t reserved = bytes_get_u32(&in);

	if (!identity || reserved || attached->note.length > NOTE_LIMIT || attached->failure_count > SEQUENCE_WINDOW)
		return -EBADMSG;
	memcpy(attached->identity, identity, IDENTITY_BYTES);
	attached->note.at = bytes_take(&in, attached->note.length);
	attached->failures = bytes_take(&in, (uint64_t)attached->failure_count * 16);
	attached->spaces = bytes_take(&in, (uint64_t)attached->space_count * 24);
	return bytes_complete(&in) ? 0 : -EBADMSG;
}

struct message_failure message_failure_at(const uint8_t *failures, uint32_t index)
{
	const uint8_t *at = failures + (size_t)index * 16;

	return (struct message_failure){ bytes_load_u64(at), message_error_errno(bytes_load_u32(at + 8)) };
}
