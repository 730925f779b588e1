/* store/heap_store: the page half of the stores that are built on a heap; each adds its own blobs. */
#ifndef DP_STORE_HEAP_STORE_H
#define DP_STORE_HEAP_STORE_H

#include "store/heap.h"
#include "store/store.h"

struct heap_store {
	struct store store; /* first: the functions below cast */
	struct heap heap;
};

int heap_store_alloc(struct store *store, uint64_t *slots, size_t count);
void heap_store_free(struct store *store, const uint64_t *slots, size_t count);
int heap_store_write(struct store *store, const uint64_t *slots, const void *const *pages, size_t count);
int heap_store_read(struct store *store, const uint64_t *slots, void *const *pages, size_t count);
const void *heap_store_page(struct store *store, uint64_t slot);
int heap_store_adopt(struct store *store, bool (*used)(void *context, uint64_t slot), void *context);
void heap_store_capacity(struct store *store, struct store_capacity *capacity);

#endif
