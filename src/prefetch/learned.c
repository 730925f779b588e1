/* A table of delta transitions, learned as the program runs: after the last two deltas, which came next? It foretells what no
 * single stride can: records of which some pages are touched, walks that alternate. */
#include "prefetch/inside.h"

#include "base/base.h"

#define SURE 2u
#define SUREST 3u
#define DELTA_LIMIT (1ll << 40)

static struct prefetch_transition *find(struct prefetcher *prefetcher, int64_t first, int64_t second, uint32_t *tag)
{
	uint64_t key = ((uint64_t)first * 0x9e3779b97f4a7c15ull ^ (uint64_t)second) * 0xd6e8feb86659fd93ull;
	*tag = (uint32_t)(key >> 32) | 1;
	return &prefetcher->transition[(key >> 20) % PREFETCH_TRANSITIONS];
}

static void learn(struct prefetcher *prefetcher, int64_t first, int64_t second, int64_t next)
{
	uint32_t tag;
	struct prefetch_transition *transition = find(prefetcher, first, second, &tag);
	if (transition->tag == tag && transition->delta == next) {
		transition->confidence = DP_MIN(transition->confidence + 1, SUREST);
	} else if (transition->tag == tag && transition->confidence) {
		transition->confidence--;
	} else {
		*transition = (struct prefetch_transition){ tag, 0, next };
	}
}

static int64_t last_delta(const struct prefetch_area *area, uint32_t back)
{
	return area->deltas >= back ? area->delta[(area->deltas - back) % PREFETCH_DELTAS] : 0;
}

/* The chain that was foretold goes on where the fault is: what lies before it was used, and is part of the history. */
static void confirm(struct prefetcher *prefetcher, struct prefetch_area *area, uint64_t pgno)
{
	uint32_t at = 0, used;
	while (at < area->chain_length && area->chain[at] != pgno)
		at++;
	if (!area->chain_length)
		return;
	used = at < area->chain_length ? DP_MIN(at, area->chain_pages) : 0;
	for (uint32_t i = 0; i < at && at < area->chain_length; i++)
		area_note(area, area->chain[i], 0);
	prefetcher->detector[PREFETCH_LEARNED].proven_pages += used;
	detector_settle(prefetcher, PREFETCH_LEARNED, used, area->chain_pages - used);
	area->chain_length = area->chain_pages = 0;
}

static bool is_straight(const struct prefetch_area *area, uint32_t length)
{
	for (uint32_t i = 2; i < length; i++)
		if (area->chain[i] - area->chain[i - 1] != area->chain[1] - area->chain[0])
			return false;
	return true;
}

void learned_fault(struct prefetcher *prefetcher, struct prefetch_area *area, uint64_t pgno, struct prefetch_advice *advice)
{
	uint32_t had = area->chain_length, tag;
	confirm(prefetcher, area, pgno);
	if (area->last != UINT64_MAX && area->deltas >= 2)
		learn(prefetcher, last_delta(area, 2), last_delta(area, 1), (int64_t)(pgno - area->last));
	area_note(area, pgno, 0);
	if (area->deltas < 2 || detector_is_silent(prefetcher, PREFETCH_LEARNED))
		return;
	int64_t first = last_delta(area, 2), second = last_delta(area, 1), at = (int64_t)pgno;
	/* A chain that was right may be twice as long. */
	uint32_t limit = DP_MIN(DP_MAX(had * 2, 3u), PREFETCH_CHAIN_PAGES), length = 0;
	while (length < limit) {
		const struct prefetch_transition *transition = find(prefetcher, first, second, &tag);
		if (transition->tag != tag || transition->confidence < SURE || llabs(transition->delta) > DELTA_LIMIT)
			break;
		at += transition->delta;
		if (!run_clamp(at, 1, 1) || (uint64_t)at == pgno)
			break;
		area->chain[length++] = (uint64_t)at;
		first = second;
		second = transition->delta;
	}
	if (length < 2) /* the trigger alone is no help */
		return;
	/* A chain that is as long as can be and has one delta only is a stream's to follow. */
	if (prefetcher->policy == PREFETCH_ADAPTIVE && length == PREFETCH_CHAIN_PAGES && is_straight(area, length)) {
		enum prefetch_policy owner = second == 1 ? PREFETCH_SEQUENTIAL : PREFETCH_STRIDE;
		stream_advance(prefetcher, stream_begin(prefetcher, owner, pgno, second, STREAM_PROOF_FAULTS), pgno, advice);
		return;
	}
	area->chain_length = length;
	advice->owner = PREFETCH_LEARNED;
	for (uint32_t i = 0; i + 1 < length; i++)
		advice_add(advice, (int64_t)area->chain[i], 1, 1, false, 0);
	advice->stream = -2 - (int)(area - prefetcher->area);
}
