/* Leap's trend (Al Maruf and Chowdhury, ATC'20): the majority of the last deltas between faults, by Boyer and Moore's vote, first
 * over few of them, then over twice as many until one is found. Leap keeps a history per process; here there is one per area, as
 * the userfaultfd that CRIU makes does not tell threads apart. */
#include "prefetch/inside.h"

#define FIRST_DELTAS 8u

static int64_t majority(const struct prefetch_area *area, uint32_t count)
{
	int64_t candidate = 0;
	uint32_t votes = 0, found = 0;
	for (uint32_t i = 1; i <= count; i++) {
		int64_t delta = area->delta[(area->deltas - i) % PREFETCH_DELTAS];
		if (!votes)
			candidate = delta;
		votes += delta == candidate ? 1 : -1u;
	}
	for (uint32_t i = 1; i <= count; i++)
		found += area->delta[(area->deltas - i) % PREFETCH_DELTAS] == candidate;
	return found > count / 2 ? candidate : 0;
}

int64_t trend_find(const struct prefetch_area *area)
{
	for (uint32_t count = FIRST_DELTAS; count <= PREFETCH_DELTAS && count <= area->deltas; count *= 2) {
		int64_t delta = majority(area, count);
		if (delta)
			return delta;
	}
	return 0;
}

struct prefetch_area *area_find(struct prefetcher *prefetcher, uint64_t start)
{
	struct prefetch_area *oldest = &prefetcher->area[0];
	for (unsigned i = 0; i < PREFETCH_AREAS; i++) {
		struct prefetch_area *area = &prefetcher->area[i];
		if (area->used && area->start == start) {
			area->used = prefetcher->clock;
			return area;
		}
		if (area->used < oldest->used)
			oldest = area;
	}
	oldest->start = start;
	oldest->used = prefetcher->clock;
	oldest->deltas = oldest->chain_length = oldest->chain_pages = 0;
	oldest->last = UINT64_MAX;
	return oldest;
}

void area_note(struct prefetch_area *area, uint64_t pgno, int64_t delta)
{
	if (!delta && area->last != UINT64_MAX)
		delta = (int64_t)(pgno - area->last);
	if (delta)
		area->delta[area->deltas++ % PREFETCH_DELTAS] = delta;
	area->last = pgno;
}
