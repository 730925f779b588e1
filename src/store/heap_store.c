#include "store/heap_store.h"

#include <errno.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/base.h"

static struct heap *heap_of(struct store *store)
{
	return &((struct heap_store *)store)->heap;
}

int heap_store_alloc(struct store *store, uint64_t *slots, size_t count)
{
	return heap_alloc(heap_of(store), slots, count);
}

void heap_store_free(struct store *store, const uint64_t *slots, size_t count)
{
	heap_free(heap_of(store), slots, count);
}

int heap_store_write(struct store *store, const uint64_t *slots, const void *const *pages, size_t count)
{
	return heap_write(heap_of(store), slots, pages, count);
}

int heap_store_read(struct store *store, const uint64_t *slots, void *const *pages, size_t count)
{
	const struct heap *heap = heap_of(store);

	for (size_t i = 0; i < count; i++) {
		if (heap->fd < 0) {
			memcpy(pages[i], heap_page(heap, slots[i]), PAGE_BYTES);
			continue;
		}
		/* Not through the mapping: what a disk cannot read would be SIGBUS there. */
		ssize_t got = pread(heap->fd, pages[i], PAGE_BYTES, (off_t)(slots[i] * PAGE_BYTES));

		if (got != (ssize_t)PAGE_BYTES)
			return got < 0 ? -errno : -EIO;
	}
	return 0;
}

const void *heap_store_page(struct store *store, uint64_t slot)
{
	return heap_page(heap_of(store), slot);
}

int heap_store_adopt(struct store *store, bool (*used)(void *context, uint64_t slot), void *context)
{
	struct heap *heap = heap_of(store);
	uint64_t end = heap_end(heap);

	for (uint64_t slot = 1; slot < end; slot++)
		if (used(context, slot) && !heap_mark(heap, slot))
			return -EBADMSG;
	return 0;
}

void heap_store_capacity(struct store *store, struct store_capacity *capacity)
{
	const struct heap *heap = heap_of(store);
	struct statvfs file_system;

	*capacity = (struct store_capacity){ .used_pages = heap->used_slots, .stored_bytes = heap->used_slots * PAGE_BYTES,
					     .free_pages = UINT64_MAX, .end_slot = heap->found_end };
	if (heap->limit_slots != UINT64_MAX)
		capacity->free_pages = heap->limit_slots - heap->used_slots;
	else if (heap->fd >= 0 && fstatvfs(heap->fd, &file_system) == 0)
		capacity->free_pages = (uint64_t)file_system.f_bavail * file_system.f_frsize / PAGE_BYTES;
}
