#include "store/over.h"

int store_over_blob_put(struct store *store, const char *name, const void *bytes, uint64_t length)
{
	struct store *own = store_below(store);
	return own->ops->blob_put(own, name, bytes, length);
}

int store_over_blob_get(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit)
{
	struct store *own = store_below(store);
	return own->ops->blob_get(own, name, bytes, length, limit);
}

int store_over_blob_list(struct store *store, store_blob_visit visit, void *context)
{
	struct store *own = store_below(store);
	return own->ops->blob_list(own, visit, context);
}

int store_over_blob_delete(struct store *store, const char *name)
{
	struct store *own = store_below(store);
	return own->ops->blob_delete(own, name);
}

int store_over_adopt(struct store *store, bool (*used)(void *context, uint64_t slot), void *context)
{
	struct store *own = store_below(store);
	return own->ops->adopt(own, used, context);
}

void store_over_capacity(struct store *store, struct store_capacity *capacity)
{
	struct store *own = store_below(store);
	own->ops->capacity(own, capacity);
}
