/* The messages about a pool whose memory the client can read. */
#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "wire/bytes.h"
#include "wire/message.h"

int message_places_encode(uint8_t *bytes, size_t size, const uint64_t *places, size_t count)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	for (size_t i = 0; i < count; i++)
		bytes_put_u64(&out, places[i]);
	return out.bad ? -EMSGSIZE : (int)(out.at - out.start);
}

int message_places_decode(const uint8_t *bytes, size_t length, uint64_t *places, size_t count)
{
	if (length != count * sizeof(uint64_t))
		return -EBADMSG;
	for (size_t i = 0; i < count; i++)
		places[i] = bytes_load_u64(bytes + i * sizeof(uint64_t));
	return 0;
}

int message_near_encode(uint8_t *bytes, size_t size, const struct message_near *near)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, near->pid);
	bytes_put_u64(&out, near->proof_place);
	bytes_put(&out, near->proof, sizeof(near->proof));
	return out.bad ? -EMSGSIZE : (int)(out.at - out.start);
}

int message_near_decode(const uint8_t *bytes, size_t length, struct message_near *near)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };
	const uint8_t *proof;

	near->pid = bytes_get_u64(&in);
	near->proof_place = bytes_get_u64(&in);
	proof = bytes_take(&in, sizeof(near->proof));
	if (!proof || !bytes_complete(&in) || near->pid == 0 || near->pid > INT32_MAX)
		return -EBADMSG;
	memcpy(near->proof, proof, sizeof(near->proof));
	return 0;
}
