/* store/over: what a store that lies over another one passes on to it unchanged; entries for its table. Its own structure begins
 * with a struct store_over. */
#ifndef DP_STORE_OVER_H
#define DP_STORE_OVER_H

#include "store/store.h"

struct store_over {
	struct store store;
	struct store *own; /* the one below, owned */
};

static inline struct store *store_below(const struct store *store)
{
	return ((const struct store_over *)store)->own;
}

int store_over_blob_put(struct store *store, const char *name, const void *bytes, uint64_t length);
int store_over_blob_get(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit);
int store_over_blob_list(struct store *store, store_blob_visit visit, void *context);
int store_over_blob_delete(struct store *store, const char *name);
int store_over_adopt(struct store *store, bool (*used)(void *context, uint64_t slot), void *context);
void store_over_capacity(struct store *store, struct store_capacity *capacity);

#endif
