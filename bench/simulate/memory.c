#include "memory.h"

#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX
enum { ABSENT, LOCAL, STAGED };
enum { SMALL, MAIN, STAGING };

void memory_init(struct memory *memory, const struct replacement_options *options, uint32_t pages, uint32_t budget)
{
	*memory = (struct memory){ .options = options, .pages = pages, .budget = budget, .hand = NONE };
	memory->page = calloc(pages, sizeof(*memory->page));
	if (!memory->page)
		abort();
	for (int i = 0; i < 3; i++)
		memory->head[i] = memory->tail[i] = NONE;
}

void memory_done(struct memory *memory)
{
	free(memory->page);
	free(memory->heap);
}

static void push(struct memory *memory, uint32_t queue, uint32_t number)
{
	struct memory_page *page = &memory->page[number];
	page->queue = (uint8_t)queue;
	page->next = memory->head[queue];
	page->previous = NONE;
	if (memory->head[queue] != NONE)
		memory->page[memory->head[queue]].previous = number;
	else
		memory->tail[queue] = number;
	memory->head[queue] = number;
	memory->length[queue]++;
}

static void take(struct memory *memory, uint32_t number)
{
	struct memory_page *page = &memory->page[number];
	uint32_t queue = page->queue;
	if (memory->hand == number)
		memory->hand = page->previous;
	if (page->previous != NONE)
		memory->page[page->previous].next = page->next;
	else
		memory->head[queue] = page->next;
	if (page->next != NONE)
		memory->page[page->next].previous = page->previous;
	else
		memory->tail[queue] = page->previous;
	memory->length[queue]--;
}

/* SIEVE: what was touched keeps its place, which the hand has just passed. */
static void push_behind_hand(struct memory *memory, uint32_t number)
{
	uint32_t hand = memory->hand;
	struct memory_page *page = &memory->page[number];
	if (hand == NONE) {
		push(memory, MAIN, number);
		return;
	}
	page->queue = MAIN;
	page->previous = hand;
	page->next = memory->page[hand].next;
	memory->page[hand].next = number;
	if (page->next != NONE)
		memory->page[page->next].previous = number;
	else
		memory->tail[MAIN] = number;
	memory->length[MAIN]++;
}

/* ---- Belady's heap; stale entries are passed over ---- */

static void heap_push(struct memory *memory, uint64_t entry)
{
	if (memory->heap_count == memory->heap_room) {
		memory->heap_room = memory->heap_room * 2 + 1024;
		memory->heap = realloc(memory->heap, memory->heap_room * sizeof(*memory->heap));
		if (!memory->heap)
			abort();
	}
	uint32_t at = memory->heap_count++;
	for (; at && memory->heap[(at - 1) / 2] < entry; at = (at - 1) / 2)
		memory->heap[at] = memory->heap[(at - 1) / 2];
	memory->heap[at] = entry;
}

static uint64_t heap_pop(struct memory *memory)
{
	uint64_t top = memory->heap[0], last = memory->heap[--memory->heap_count];
	uint32_t at = 0;
	for (;;) {
		uint32_t child = 2 * at + 1;
		if (child + 1 < memory->heap_count && memory->heap[child + 1] > memory->heap[child])
			child++;
		if (child >= memory->heap_count || memory->heap[child] <= last)
			break;
		memory->heap[at] = memory->heap[child];
		at = child;
	}
	memory->heap[at] = last;
	return top;
}

/* ---- who leaves next ---- */

static void seen_touched(const struct memory *memory, struct memory_page *page)
{
	page->level = (uint8_t)(page->level < memory->options->counter ? page->level + 1 : page->level);
	page->skips = (uint8_t)(memory->options->doubling ? (1u << page->level) - 1 : page->level);
}

static uint32_t victim_of_queues(struct memory *memory)
{
	const struct replacement_options *options = memory->options;
	for (;;) {
		double local = (double)memory->length[SMALL] + memory->length[MAIN];
		uint32_t queue = memory->length[SMALL] &&
						 (memory->length[SMALL] > options->small_share * local || !memory->length[MAIN])
					 ? SMALL
					 : MAIN;
		uint32_t number = memory->tail[queue];
		struct memory_page *page = &memory->page[number];
		if (options->bit && page->seen) { /* the bit takes staging's place */
			page->seen = false;
			seen_touched(memory, page);
			take(memory, number);
			push(memory, options->small_share < 1 ? MAIN : SMALL, number);
			continue;
		}
		if (page->skips && (queue == MAIN || options->small_share >= 1)) {
			page->skips--;
			take(memory, number);
			push(memory, queue, number);
			continue;
		}
		return number;
	}
}

static uint32_t victim_of_sieve(struct memory *memory)
{
	uint32_t number = memory->hand;
	for (;;) {
		if (number == NONE)
			number = memory->tail[MAIN];
		struct memory_page *page = &memory->page[number];
		bool spared = false;
		if (memory->options->bit && page->seen) {
			page->seen = false;
			spared = true;
		}
		if (!spared && page->skips) {
			page->skips--;
			spared = true;
		}
		if (!spared)
			break;
		number = page->previous;
	}
	memory->hand = memory->page[number].previous;
	return number;
}

static uint32_t victim_of_belady(struct memory *memory)
{
	for (;;) {
		uint64_t entry = heap_pop(memory);
		const struct memory_page *page = &memory->page[(uint32_t)entry];
		if (page->state == LOCAL && page->use == entry >> 32)
			return (uint32_t)entry;
	}
}

static uint32_t choose(struct memory *memory)
{
	switch (memory->options->kind) {
	case REPLACE_QUEUES: return victim_of_queues(memory);
	case REPLACE_SIEVE: return victim_of_sieve(memory);
	case REPLACE_LRU: return memory->tail[MAIN];
	default: return victim_of_belady(memory);
	}
}

static void drop(struct memory *memory, uint32_t number)
{
	struct memory_page *page = &memory->page[number];
	page->state = ABSENT;
	page->gone_at = ++memory->evictions;
	page->level = page->skips = 0;
	if (memory->dropped)
		memory->dropped(memory->context, number);
}


static uint32_t present(const struct memory *memory)
{
	return memory->length[SMALL] + memory->length[MAIN] + memory->length[STAGING];
}

static void make_room(struct memory *memory)
{
	const struct replacement_options *options = memory->options;
	uint32_t staging = (uint32_t)(options->staging_share * memory->budget);
	while (present(memory) >= memory->budget) {
		if (!staging) {
			uint32_t number = choose(memory);
			take(memory, number);
			drop(memory, number);
			continue;
		}
		while (memory->length[STAGING] < staging) {
			uint32_t number = choose(memory);
			take(memory, number);
			memory->page[number].state = STAGED;
			push(memory, STAGING, number);
		}
		uint32_t oldest = memory->tail[STAGING];
		take(memory, oldest);
		drop(memory, oldest);
	}
}

enum touch_result memory_touch(struct memory *memory, uint32_t number, uint32_t next_use)
{
	const struct replacement_options *options = memory->options;
	struct memory_page *page = &memory->page[number];
	if (page->state == ABSENT)
		return TOUCH_MISS;
	page->seen = true;
	page->use = next_use;
	if (options->kind == REPLACE_BELADY)
		heap_push(memory, (uint64_t)next_use << 32 | number);
	if (options->kind == REPLACE_LRU) {
		take(memory, number);
		push(memory, MAIN, number);
	}
	if (page->state == LOCAL)
		return TOUCH_LOCAL;
	take(memory, number);
	page->state = LOCAL;
	seen_touched(memory, page);
	if (options->kind == REPLACE_SIEVE)
		push_behind_hand(memory, number);
	else
		push(memory, options->small_share < 1 ? MAIN : SMALL, number);
	return TOUCH_STAGED;
}

void memory_insert(struct memory *memory, uint32_t number, uint32_t next_use)
{
	const struct replacement_options *options = memory->options;
	struct memory_page *page = &memory->page[number];
	make_room(memory);
	bool known = page->gone_at && memory->evictions - page->gone_at < options->ghost_share * memory->budget;
	page->state = LOCAL;
	page->seen = false;
	page->use = next_use;
	push(memory, options->kind != REPLACE_QUEUES || (known && options->small_share < 1) ? MAIN : SMALL, number);
	if (options->kind == REPLACE_BELADY)
		heap_push(memory, (uint64_t)next_use << 32 | number);
}
