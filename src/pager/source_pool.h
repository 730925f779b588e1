/* The source that is a pool: an instance of a snapshot, over one client connection. */
#ifndef DP_PAGER_SOURCE_POOL_H
#define DP_PAGER_SOURCE_POOL_H

#include "pager/source.h"

/* `client` is borrowed and outlives the source; `instance` is what client_instance_create filled (its spaces are copied). */
int source_pool_new(struct source **source, struct client *client, const struct instance_info *instance, struct dp_err *err);
/* The instance behind a source, false where it is no pool. */
bool source_pool_instance(const struct source *source, uint64_t *instance, uint64_t *epoch);

#endif
