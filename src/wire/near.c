/* The messages about a pool whose memory the client can read. */
#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "wire/bytes.h"
#include "wire/message.h"

int message_places_encode(uint8_t *bytes, size_t size, const struct page_place *places, size_t count)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	for (size_t i = 0; i < count; i++) {
		bytes_put_u64(&out, places[i].address);
		bytes_put_u64(&out, places[i].digest.low);
		bytes_put_u64(&out, places[i].digest.high);
	}
	return out.bad ? -EMSGSIZE : (int)(out.at - out.start);
}

int message_places_decode(const uint8_t *bytes, size_t length, struct page_place *places, size_t count)
{
	if (length != count * PLACE_BYTES)
		return -EBADMSG;
	for (size_t i = 0; i < count; i++, bytes += PLACE_BYTES)
		places[i] = (struct page_place){ bytes_load_u64(bytes),
						 { bytes_load_u64(bytes + 8), bytes_load_u64(bytes + 16) } };
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
