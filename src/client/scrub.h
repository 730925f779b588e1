/* client/scrub: looks through what a pool stores and puts right what is damaged. All calls block. They need the right `admin` for
 * the whole pool. Thread rule: the client's thread. */
#ifndef DP_CLIENT_SCRUB_H
#define DP_CLIENT_SCRUB_H

#include "client/client.h"
#include "wire/message.h"

/* The pool compares some of its pages with their digests: as many as asked for, from a slot on; fewer where many are damaged. */
int client_scrub(struct client *client, const struct message_scrub *scrub, struct message_scrubbed *scrubbed, struct dp_err *err);
/* Looks for whole pages with these digests, at most SCRUB_DAMAGED_LIMIT: bit i of *found, and the page at pages + i * 4096. */
int client_find_pages(struct client *client, const struct page_digest *digests, uint32_t count, uint64_t *found, uint8_t *pages,
		      struct dp_err *err);
/* Writes a page again where it is damaged; durable when it returns. -ENOENT: nothing uses it any more. */
int client_repair(struct client *client, uint64_t slot, struct page_digest digest, const void *page, struct dp_err *err);

#endif
