/* brk: small blocks of malloc, many of them, allocated and freed at random; the heap grows and shrinks by brk. */
#include "torture.h"

#include <malloc.h>
#include <stdlib.h>

struct block {
	uint64_t seed;
	uint32_t words;
	uint32_t check;
	uint64_t content[];
};
struct heap {
	uint64_t most;
	struct block **blocks;
	uint64_t most_bytes, bytes;
};

static bool brk_start(struct worker *worker)
{
	struct heap *heap = calloc(1, sizeof(*heap));

	mallopt(M_ARENA_MAX, 1); /* one arena: this thread's blocks come from brk too */
	mallopt(M_TRIM_THRESHOLD, 64 * 1024);
	if (!heap)
		return torture_fail("brk: no memory");
	heap->most_bytes = worker_pages(worker) * PAGE_BYTES;
	heap->most = heap->most_bytes / 512 + 16;
	heap->blocks = calloc(heap->most, sizeof(*heap->blocks));
	worker->state = heap;
	return heap->blocks || torture_fail("brk: no memory");
}

static bool block_check(const struct block *block)
{
	uint64_t state = block->seed;

	if (block->check != (uint32_t)(block->seed ^ block->words))
		return torture_fail("WRONG brk block %p: its head is damaged (%016llx, %u words)", (const void *)block,
				    (unsigned long long)block->seed, block->words);
	for (uint32_t i = 0; i < block->words; i++) {
		uint64_t expected = random_next(&state);
		if (block->content[i] != expected)
			return torture_fail("WRONG brk block %p word %u at %p: expected %016llx, found %016llx",
					    (const void *)block, i, (const void *)&block->content[i],
					    (unsigned long long)expected, (unsigned long long)block->content[i]);
	}
	return true;
}

static bool block_make(struct worker *worker, struct heap *heap, struct block **slot)
{
	uint32_t words = 1 + (uint32_t)random_below(&worker->random, 256);
	struct block *block = malloc(sizeof(*block) + words * sizeof(uint64_t));

	if (!block)
		return torture_fail("brk: malloc failed");
	block->seed = random_next(&worker->random);
	block->words = words;
	block->check = (uint32_t)(block->seed ^ words);
	uint64_t state = block->seed;
	for (uint32_t i = 0; i < words; i++)
		block->content[i] = random_next(&state);
	heap->bytes += words * sizeof(uint64_t);
	*slot = block;
	return true;
}

static bool brk_round(struct worker *worker)
{
	struct heap *heap = worker->state;
	bool shrink = worker->round / 256 % 2;

	for (unsigned i = 0; i < 256; i++) {
		struct block **slot = &heap->blocks[random_below(&worker->random, heap->most)];

		if (!*slot) {
			if (!shrink && heap->bytes < heap->most_bytes && !block_make(worker, heap, slot))
				return false;
			continue;
		}
		if (!block_check(*slot))
			return false;
		if (shrink || random_below(&worker->random, 4) == 0) {
			heap->bytes -= (*slot)->words * sizeof(uint64_t);
			free(*slot);
			*slot = NULL;
		}
	}
	return true;
}

const struct kind kind_brk = { .name = "brk",
			       .what = "small blocks of malloc on a heap that grows and shrinks",
			       .share_percent = 6,
			       .start = brk_start,
			       .round = brk_round };
