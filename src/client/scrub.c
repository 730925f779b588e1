/* Comparing what a pool stores, and putting it right. */
#include <errno.h>
#include <string.h>

#include "client/connection.h"
#include "client/scrub.h"

int client_scrub(struct client *client, const struct message_scrub *scrub, struct message_scrubbed *scrubbed, struct dp_err *err)
{
	uint8_t payload[16];
	struct message_header request = { .type = MESSAGE_SCRUB }, answer;
	const uint8_t *bytes;
	int result = control_call(client, &request, payload, (size_t)message_scrub_encode(payload, sizeof(payload), scrub), NULL,
				  0, MESSAGE_SCRUBBED, CONTROL_TIMEOUT_MS, &answer, &bytes, err);

	if (result < 0)
		return result;
	return message_scrubbed_decode(bytes, answer.length, scrubbed) < 0
		       ? dp_fail(err, EPROTO, "the pool's answer makes no sense")
		       : 0;
}

int client_find_pages(struct client *client, const struct page_digest *digests, uint32_t count, uint64_t *found, uint8_t *pages,
		      struct dp_err *err)
{
	uint8_t payload[8 + SCRUB_DAMAGED_LIMIT * DIGEST_BYTES];
	struct message_header request = { .type = MESSAGE_FIND }, answer;
	const uint8_t *bytes, *from;
	int length = message_find_encode(payload, sizeof(payload), digests, count);
	int result = length < 0 ? dp_fail(err, EINVAL, "too many pages")
				: control_call(client, &request, payload, (size_t)length, NULL, 0, MESSAGE_FOUND,
					       CONTROL_TIMEOUT_MS, &answer, &bytes, err);

	if (result < 0)
		return result;
	if (message_found_decode(bytes, answer.length, count, found, &from) < 0)
		return dp_fail(err, EPROTO, "the pool's answer makes no sense");
	for (uint32_t i = 0; i < count; i++) {
		if (!(*found >> i & 1))
			continue;
		memcpy(pages + (size_t)i * PAGE_BYTES, from, PAGE_BYTES);
		from += PAGE_BYTES;
		if (!page_digest_same(page_digest(pages + (size_t)i * PAGE_BYTES), digests[i]))
			*found &= ~(UINT64_C(1) << i);
	}
	return 0;
}

int client_repair(struct client *client, uint64_t slot, struct page_digest digest, const void *page, struct dp_err *err)
{
	uint8_t payload[8 + DIGEST_BYTES + PAGE_BYTES];
	const struct message_repair repair = { slot, digest, page };
	struct message_header request = { .type = MESSAGE_REPAIR }, answer;
	const uint8_t *unused;

	return control_call(client, &request, payload, (size_t)message_repair_encode(payload, sizeof(payload), &repair), NULL, 0,
			    MESSAGE_OK, CONTROL_TIMEOUT_MS, &answer, &unused, err);
}
