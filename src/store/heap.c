#include "store/heap.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/base.h"
#include "store/ready.h"

#define SLAB_BYTES ((uint64_t)HEAP_SLAB_SLOTS * PAGE_BYTES)
/* A hole smaller than this is not worth a system call: the slots are used again soon. */
#define PUNCH_SLOTS 16

static bool slot_used(const struct heap_slab *slab, uint64_t index)
{
	return slab->bits[index / 64] >> (index % 64) & 1;
}

static void slot_set(struct heap *heap, uint64_t slot)
{
	struct heap_slab *slab = heap->slabs[slot / HEAP_SLAB_SLOTS];
	uint64_t index = slot % HEAP_SLAB_SLOTS;

	assert(!slot_used(slab, index));
	slab->bits[index / 64] |= UINT64_C(1) << (index % 64);
	if (slab->touched) {
		slab->touched = false;
		heap->touched_slabs--;
	}
	slab->used++;
	heap->used_slots++;
}

/* Adds a slab; the file grows first, so that the mapping never reaches beyond it. */
static int grow(struct heap *heap)
{
	struct heap_slab **slabs = reallocarray(heap->slabs, heap->slab_count + 1, sizeof(struct heap_slab *));
	uint64_t offset = heap->slab_count * SLAB_BYTES;
	struct stat status;

	if (!slabs)
		return -ENOMEM;
	heap->slabs = slabs;
	struct heap_slab *slab = calloc(1, sizeof(*slab));

	if (!slab)
		return -ENOMEM;
	if (heap->fd >= 0 && (fstat(heap->fd, &status) < 0 || ((uint64_t)status.st_size < offset + SLAB_BYTES &&
							       ftruncate(heap->fd, (off_t)(offset + SLAB_BYTES)) < 0))) {
		int error = errno;

		free(slab);
		return error == EFBIG ? -ENOSPC : -error;
	}
	slab->memory = heap->fd < 0 ? mmap(NULL, SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
					   -1, 0)
				    : mmap(NULL, SLAB_BYTES, PROT_READ, MAP_SHARED, heap->fd, (off_t)offset);
	if (slab->memory == MAP_FAILED) {
		free(slab);
		return -ENOMEM;
	}
	if (heap->fd < 0)
		madvise(slab->memory, SLAB_BYTES, MADV_HUGEPAGE); /* a hint: fewer faults, fewer TLB misses */
	heap->slabs[heap->slab_count++] = slab;
	return 0;
}

int heap_init(struct heap *heap, int fd, uint64_t reserved, uint64_t limit_slots)
{
	struct stat status = { 0 };
	int result;

	assert(reserved >= 1 && reserved < HEAP_SLAB_SLOTS);
	*heap = (struct heap){ .fd = fd, .limit_slots = limit_slots, .reserved = reserved, .cursor = reserved,
			       .file_end = UINT64_MAX };
	if (fd >= 0 && fstat(fd, &status) < 0)
		return -errno;
	heap->found_end = (uint64_t)status.st_size / PAGE_BYTES;
	do {
		result = grow(heap);
		if (result < 0) {
			heap_done(heap);
			return result;
		}
	} while (heap->slab_count * SLAB_BYTES < (uint64_t)status.st_size);
	for (uint64_t slot = 0; slot < reserved; slot++)
		slot_set(heap, slot);
	heap->used_slots = 0;
	return 0;
}

static void touch(struct heap *heap, struct heap_slab *slab)
{
	slab->touched = true;
	heap->touched_slabs++;
	ready_touch(heap->ready, slab->memory, SLAB_BYTES);
}

/* Empty slabs are touched, or new ones made, until as many as wanted wait. Where memory is out, so be it. */
static void top_up(struct heap *heap)
{
	for (size_t i = 0; i < heap->slab_count && heap->touched_slabs < heap->ready_slabs; i++)
		if (heap->slabs[i]->used == 0 && !heap->slabs[i]->touched)
			touch(heap, heap->slabs[i]);
	/* Not where as many are free beside pages that stay: next fit would never come to its end, and never use them again. */
	while (heap->touched_slabs < heap->ready_slabs && heap_end(heap) < heap->limit_slots &&
	       heap_end(heap) < heap->reserved + heap->used_slots + heap->ready_slabs * HEAP_SLAB_SLOTS && grow(heap) == 0)
		touch(heap, heap->slabs[heap->slab_count - 1]);
}

int heap_keep_ready(struct heap *heap, uint64_t bytes)
{
	int result = ready_new(&heap->ready);

	assert(heap->fd < 0);
	if (result < 0)
		return result;
	heap->ready_slabs = bytes / SLAB_BYTES;
	ready_touch(heap->ready, heap->slabs[0]->memory,
		    DP_MIN(DP_MIN(bytes, SLAB_BYTES), DP_MIN(heap->limit_slots, (uint64_t)HEAP_SLAB_SLOTS) * PAGE_BYTES));
	top_up(heap);
	return 0;
}

void heap_done(struct heap *heap)
{
	ready_free(heap->ready);
	heap->ready = NULL;
	for (size_t i = 0; i < heap->slab_count; i++) {
		munmap(heap->slabs[i]->memory, SLAB_BYTES);
		free(heap->slabs[i]);
	}
	free(heap->slabs);
	heap->slabs = NULL;
	heap->slab_count = 0;
}

uint64_t heap_end(const struct heap *heap)
{
	return heap->slab_count * (uint64_t)HEAP_SLAB_SLOTS;
}

bool heap_mark(struct heap *heap, uint64_t slot)
{
	if (slot >= heap_end(heap) || slot_used(heap->slabs[slot / HEAP_SLAB_SLOTS], slot % HEAP_SLAB_SLOTS))
		return false;
	slot_set(heap, slot);
	return true;
}

/* The first free slot at or behind `from`, or UINT64_MAX. */
static uint64_t find_free(const struct heap *heap, uint64_t from)
{
	for (size_t i = from / HEAP_SLAB_SLOTS; i < heap->slab_count; i++) {
		const struct heap_slab *slab = heap->slabs[i];
		uint64_t start = i == from / HEAP_SLAB_SLOTS ? from % HEAP_SLAB_SLOTS : 0;

		if (slab->used == HEAP_SLAB_SLOTS)
			continue;
		for (uint64_t word = start / 64; word < HEAP_SLAB_WORDS; word++) {
			uint64_t vacant = ~slab->bits[word];

			if (word == start / 64)
				vacant &= ~UINT64_C(0) << (start % 64);
			if (vacant)
				return i * HEAP_SLAB_SLOTS + word * 64 + (uint64_t)__builtin_ctzll(vacant);
		}
	}
	return UINT64_MAX;
}

/* A slot in an empty slab without memory is left alone while there are slabs with some. */
static uint64_t prefer_touched(const struct heap *heap, uint64_t slot)
{
	const struct heap_slab *slab = heap->slabs[slot / HEAP_SLAB_SLOTS];

	if (slab->used > 0 || slab->touched || heap->touched_slabs == 0)
		return slot;
	for (size_t i = 0; i < heap->slab_count; i++)
		if (heap->slabs[i]->touched)
			return i * HEAP_SLAB_SLOTS;
	return slot;
}

static void give_back(struct heap *heap, uint64_t first, uint64_t count)
{
	/* Both are hints: where they fail, the room is only used again later. */
	if (heap->fd >= 0)
		fallocate(heap->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(first * PAGE_BYTES),
			  (off_t)(count * PAGE_BYTES));
	else
		madvise(heap_page(heap, first), count * PAGE_BYTES, MADV_DONTNEED);
}

static void slot_clear(struct heap *heap, uint64_t slot)
{
	struct heap_slab *slab = heap->slabs[slot / HEAP_SLAB_SLOTS];
	uint64_t index = slot % HEAP_SLAB_SLOTS;

	assert(slot >= heap->reserved && slot_used(slab, index));
	slab->bits[index / 64] &= ~(UINT64_C(1) << (index % 64));
	slab->used--;
	heap->used_slots--;
	if (slab->used > 0)
		return;
	/* Twice as many are kept as are made: a snapshot that is replaced again and again is not cleared again and again. */
	if (heap->touched_slabs < 2 * heap->ready_slabs) {
		slab->touched = true;
		heap->touched_slabs++;
	} else {
		give_back(heap, slot - index, HEAP_SLAB_SLOTS);
	}
}

int heap_alloc(struct heap *heap, uint64_t *slots, size_t count)
{
	if (count > heap->limit_slots || heap->used_slots > heap->limit_slots - count)
		return -ENOSPC;
	/* Room first, so that nothing has to be undone. */
	while (heap_end(heap) - heap->reserved - heap->used_slots < count) {
		int result = grow(heap);

		if (result < 0)
			return result;
	}
	for (size_t i = 0; i < count; i++) {
		uint64_t slot = find_free(heap, heap->cursor);

		if (slot >= heap->file_end)
			slot = find_free(heap, 0);
		assert(slot != UINT64_MAX || heap->file_end < UINT64_MAX);
		if (slot >= heap->file_end) {
			while (i--)
				slot_clear(heap, slots[i]);
			return -ENOSPC;
		}
		slot = prefer_touched(heap, slot);
		slot_set(heap, slot);
		slots[i] = slot;
		heap->cursor = slot + 1;
	}
	if (heap->touched_slabs < heap->ready_slabs)
		top_up(heap);
	return 0;
}

/* Where a run of free slots that starts at `slot` ends, looking at most `limit` slots far. */
static uint64_t free_run_end(const struct heap *heap, uint64_t slot, uint64_t limit)
{
	uint64_t end = DP_MIN(heap_end(heap), slot + limit);

	while (slot < end && !slot_used(heap->slabs[slot / HEAP_SLAB_SLOTS], slot % HEAP_SLAB_SLOTS))
		slot++;
	return slot;
}

int heap_alloc_run(struct heap *heap, uint64_t count, uint64_t *first)
{
	uint64_t start = find_free(heap, 0), end = 0;

	if (count > heap->limit_slots || heap->used_slots > heap->limit_slots - count)
		return -ENOSPC;
	while (start != UINT64_MAX) {
		end = free_run_end(heap, start, count);
		if (end - start == count || end == heap_end(heap))
			break;
		start = find_free(heap, end);
	}
	if (start == UINT64_MAX)
		start = end = heap_end(heap);
	while (end - start < count) {
		int result = grow(heap);

		if (result < 0)
			return result;
		end = heap_end(heap);
	}
	for (uint64_t i = 0; i < count; i++)
		slot_set(heap, start + i);
	*first = start;
	return 0;
}

void heap_free_run(struct heap *heap, uint64_t first, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		slot_clear(heap, first + i);
	if (heap->fd >= 0 && count >= PUNCH_SLOTS)
		give_back(heap, first, count);
}

void heap_free(struct heap *heap, const uint64_t *slots, size_t count)
{
	for (size_t i = 0, run; i < count; i += run) {
		for (run = 1; i + run < count && slots[i + run] == slots[i] + run;)
			run++;
		heap_free_run(heap, slots[i], run);
	}
}

/* Quotas and limits of file sizes are a full store, as a full disk is. */
static int no_space(int error)
{
	return error == EDQUOT || error == EFBIG ? -ENOSPC : -error;
}

/* pwritev of pages that lie together in the file. */
static int write_run(int fd, uint64_t offset, const void *const *pages, size_t count)
{
	struct iovec iov[64];

	while (count) {
		size_t part = DP_MIN(count, ARRAY_LENGTH(iov));
		ssize_t done;

		for (size_t i = 0; i < part; i++)
			iov[i] = (struct iovec){ (void *)pages[i], PAGE_BYTES };
		do
			done = pwritev(fd, iov, (int)part, (off_t)offset);
		while (done < 0 && errno == EINTR);
		if (done < 0)
			return -errno;
		/* A short write is finished page by page; there the error, if any, shows. */
		if ((size_t)done < part * PAGE_BYTES) {
			part = (size_t)done / PAGE_BYTES + 1;
			int result = io_pwrite_full(fd, pages[part - 1], PAGE_BYTES, offset + (part - 1) * PAGE_BYTES);

			if (result < 0)
				return result;
		}
		pages += part;
		count -= part;
		offset += part * PAGE_BYTES;
	}
	return 0;
}

int heap_write(struct heap *heap, const uint64_t *slots, const void *const *pages, size_t count)
{
	if (heap->fd < 0) {
		for (size_t i = 0; i < count; i++)
			memcpy(heap_page(heap, slots[i]), pages[i], PAGE_BYTES);
		return 0;
	}
	for (size_t i = 0, run; i < count; i += run) {
		for (run = 1; i + run < count && slots[i + run] == slots[i] + run;)
			run++;
		int result = write_run(heap->fd, slots[i] * PAGE_BYTES, pages + i, run);

		struct rlimit limit;

		if (result == -EFBIG && getrlimit(RLIMIT_FSIZE, &limit) == 0)
			heap->file_end = limit.rlim_cur / PAGE_BYTES;
		if (result < 0)
			return no_space(-result);
	}
	return 0;
}

uint8_t *heap_page(const struct heap *heap, uint64_t slot)
{
	return heap->slabs[slot / HEAP_SLAB_SLOTS]->memory + (slot % HEAP_SLAB_SLOTS) * PAGE_BYTES;
}
