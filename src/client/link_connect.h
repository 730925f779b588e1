/* client/link_connect: one try to connect to a pool and attach to an instance, in a thread of its own. Connecting, looking up a
 * name, a handshake and a peer that accepts and never answers may each take seconds, and a pager's thread must not wait for any
 * of them.
 * Thread rule: the calls below are the owner's; the thread writes its result and then says so, once. */
#ifndef DP_CLIENT_LINK_CONNECT_H
#define DP_CLIENT_LINK_CONNECT_H

#include "client/link.h"

struct link_connector;

/* With config->connect there is no thread: the result is there when it returns. */
int link_connector_start(struct link_connector **connector, const struct link_config *config, const struct endpoint *endpoint,
			 uint64_t instance, uint64_t epoch, const uint8_t *identity, struct dp_err *err);
/* Readable when there is a result. */
int link_connector_fd(const struct link_connector *connector);
/* true: it is over; what came is the caller's now. */
bool link_connector_take(struct link_connector *connector, int *result, struct client **client, struct client_attached *attached,
			 struct dp_err *err);
/* Did a pool answer the attachment, and was the error its? After take. */
bool link_connector_asked(const struct link_connector *connector);
/* Takes NULL. Does not wait: a try under way ends by itself, and what it makes is closed. */
void link_connector_free(struct link_connector *connector);
/* A descriptor that never becomes readable. */
int link_idle_fd(void);

#endif
