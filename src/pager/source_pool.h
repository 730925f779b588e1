/* The source that is a pool: an instance of a snapshot, over one link (client/link.h): connections come and go. */
#ifndef DP_PAGER_SOURCE_POOL_H
#define DP_PAGER_SOURCE_POOL_H

#include "client/link.h"
#include "pager/source.h"

/* Takes the client, which is attached, on success; it belongs to the source then. `attached` is borrowed. */
int source_pool_new(struct source **source, const struct link_config *config, struct client *client,
		    const struct client_attached *attached, struct dp_err *err);
/* The instance behind a source, false where it is no pool. */
bool source_pool_instance(const struct source *source, uint64_t *instance, uint64_t *epoch);

#endif
