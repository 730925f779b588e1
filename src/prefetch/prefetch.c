#include "prefetch/prefetch.h"

#include <string.h>

#include "base/base.h"
#include "prefetch/inside.h"

#define SILENCE_FAULTS 8192u   /* a silent detector is tried again after so many faults */
#define OUTCOMES_KEPT 512u
#define SETTLED_PAGES 1024u

static const char *const names[PREFETCH_POLICIES] = {
	[PREFETCH_ADAPTIVE] = "adaptive", [PREFETCH_NONE] = "none",       [PREFETCH_SEQUENTIAL] = "sequential",
	[PREFETCH_STRIDE] = "stride",     [PREFETCH_TREND] = "trend",     [PREFETCH_LEARNED] = "learned",
	[PREFETCH_RECORDED] = "recorded",
};

const char *prefetch_policy_name(enum prefetch_policy policy)
{
	return policy < PREFETCH_POLICIES ? names[policy] : "unknown";
}

int prefetch_policy_find(const char *name)
{
	for (int i = 0; i < PREFETCH_POLICIES; i++)
		if (!strcmp(name, names[i]))
			return i;
	return -1;
}

bool prefetch_policy_replays(enum prefetch_policy policy)
{
	return policy == PREFETCH_ADAPTIVE || policy == PREFETCH_RECORDED;
}

void prefetch_init(struct prefetcher *prefetcher, enum prefetch_policy policy)
{
	memset(prefetcher, 0, sizeof(*prefetcher));
	prefetcher->policy = policy;
}

uint32_t detector_least(enum prefetch_policy owner)
{
	return owner == PREFETCH_SEQUENTIAL ? 2 : 4;
}

/* A detector of which little is used becomes more careful with each stream that ends, a good one less. */
void detector_settle(struct prefetcher *prefetcher, enum prefetch_policy owner, uint32_t proven, uint32_t lost)
{
	struct prefetch_detector *detector = &prefetcher->detector[owner];
	uint32_t least = detector_least(owner);
	detector->patience = DP_MAX(detector->patience, least);
	detector->good += proven;
	detector->bad += lost;
	if (detector->bad * 2 > detector->good * 3 && lost > proven)
		detector->patience = DP_MIN(detector->patience + 1, PREFETCH_PATIENCE_LIMIT);
	else if (detector->good > detector->bad && proven > lost && detector->patience > least)
		detector->patience--;
	if (detector->good + detector->bad > SETTLED_PAGES) {
		detector->good /= 2;
		detector->bad /= 2;
	}
	if (detector->patience == PREFETCH_PATIENCE_LIMIT && !detector->silent_faults)
		detector->silent_faults = SILENCE_FAULTS;
}

bool detector_is_silent(struct prefetcher *prefetcher, enum prefetch_policy owner)
{
	struct prefetch_detector *detector = &prefetcher->detector[owner];
	if (prefetcher->policy != PREFETCH_ADAPTIVE || !detector->silent_faults)
		return false;
	if (--detector->silent_faults)
		return true;
	detector->patience = PREFETCH_PATIENCE_LIMIT / 2;
	return false;
}

static void remember(struct prefetcher *prefetcher, uint64_t pgno)
{
	prefetcher->recent[prefetcher->recent_at++ % PREFETCH_RECENT] = pgno + 1;
}

/* Asks the detectors of the policy for a stride. */
static int64_t find_stride(struct prefetcher *prefetcher, struct prefetch_area *area, uint64_t pgno, enum prefetch_policy *owner,
			   uint32_t *hits)
{
	enum prefetch_policy policy = prefetcher->policy;
	int64_t stride = 0;
	*hits = 2;
	*owner = policy;
	if (policy == PREFETCH_SEQUENTIAL)
		return detect_sequential(prefetcher, pgno) ? 1 : 0;
	if (policy == PREFETCH_STRIDE || policy == PREFETCH_ADAPTIVE) {
		stride = detect_stride(prefetcher, pgno, hits);
		if (policy == PREFETCH_ADAPTIVE)
			*owner = stride == 1 ? PREFETCH_SEQUENTIAL : PREFETCH_STRIDE;
	}
	if (!stride && (policy == PREFETCH_TREND || policy == PREFETCH_ADAPTIVE)) {
		stride = trend_find(area);
		*owner = PREFETCH_TREND;
		*hits = 3;
	}
	return stride;
}

/* A fault that no granted stream explains: first what the learned table knows, then a stride. */
static void seek(struct prefetcher *prefetcher, struct prefetch_area *area, uint64_t pgno, struct prefetch_advice *advice)
{
	enum prefetch_policy owner;
	uint32_t hits;
	if (prefetcher->policy != PREFETCH_ADAPTIVE && area)
		area_note(area, pgno, 0);
	int64_t stride = advice->runs ? 0 : find_stride(prefetcher, area, pgno, &owner, &hits);
	remember(prefetcher, pgno);
	if (stride)
		stream_advance(prefetcher, stream_begin(prefetcher, owner, pgno, stride, hits), pgno, advice);
}

static void follow(struct prefetcher *prefetcher, struct prefetch_area *area, uint64_t pgno, struct prefetch_advice *advice)
{
	int index = stream_match(prefetcher, pgno);
	bool granted = index >= 0 && prefetcher->stream[index].window;
	if (prefetcher->policy == PREFETCH_ADAPTIVE && !granted)
		learned_fault(prefetcher, area, pgno, advice);
	else if (index >= 0 && area)
		area_note(area, pgno, prefetcher->stream[index].stride);
	if (index < 0)
		seek(prefetcher, area, pgno, advice);
	else if (!advice->runs)
		stream_advance(prefetcher, index, pgno, advice);
}

void prefetch_fault(struct prefetcher *prefetcher, uint64_t area_start, uint64_t pgno, struct prefetch_advice *advice)
{
	advice->runs = 0;
	advice->proven.pages = 0;
	advice->owner = prefetcher->policy;
	advice->stream = -1;
	if (prefetcher->policy == PREFETCH_NONE || prefetcher->policy == PREFETCH_RECORDED || pgno >= PREFETCH_PGNO_END)
		return;
	prefetcher->clock++;
	bool simple = prefetcher->policy == PREFETCH_SEQUENTIAL || prefetcher->policy == PREFETCH_STRIDE;
	struct prefetch_area *area = simple ? NULL : area_find(prefetcher, area_start);
	if (prefetcher->policy == PREFETCH_LEARNED)
		learned_fault(prefetcher, area, pgno, advice);
	else
		follow(prefetcher, area, pgno, advice);
}

bool prefetch_follows(const struct prefetcher *prefetcher, uint64_t pgno)
{
	int index = pgno < PREFETCH_PGNO_END ? stream_match(prefetcher, pgno) : -1;
	return index >= 0 && prefetcher->stream[index].window >= PREFETCH_WINDOW_PAGES / 2;
}

void prefetch_asked(struct prefetcher *prefetcher, const struct prefetch_advice *advice, const struct prefetch_run *run,
		    const struct prefetch_asked *asked)
{
	prefetcher->detector[advice->owner].asked_pages += asked->pages;
	if (advice->stream >= 0) {
		struct prefetch_stream *stream = &prefetcher->stream[advice->stream];
		stream->asked[run->chunk] += asked->pages;
		if (asked->trigger != UINT64_MAX && run->chunk)
			stream->trigger = asked->trigger;
		/* its fault goes on with the stream, and so does the trigger's, if there is one before it */
		if (asked->cut != UINT64_MAX) {
			stream->front = (int64_t)asked->cut;
			if (!run->chunk || asked->trigger == UINT64_MAX)
				stream->trigger = asked->cut;
		}
	} else if (advice->stream <= -2) {
		prefetcher->area[-2 - advice->stream].chain_pages += asked->pages;
	}
}

void prefetch_went_on(struct prefetcher *prefetcher, const struct prefetch_advice *advice, const struct prefetch_run *run,
		      uint32_t steps, uint32_t pages)
{
	if (advice->stream < 0)
		return;
	struct prefetch_stream *stream = &prefetcher->stream[advice->stream];
	prefetcher->detector[advice->owner].asked_pages += pages;
	stream->asked[1] += pages;
	stream->front = (int64_t)run->pgno + run->stride * (int64_t)steps;
}

void prefetch_late(struct prefetcher *prefetcher, uint64_t pgno)
{
	for (unsigned i = 0; i < PREFETCH_STREAMS; i++) {
		struct prefetch_stream *stream = &prefetcher->stream[i];
		int64_t from = DP_MIN((int64_t)stream->low, stream->front), to = DP_MAX((int64_t)stream->low, stream->front);
		if (stream->stride && (int64_t)pgno > from && (int64_t)pgno < to)
			stream->late = true;
	}
}

void prefetch_outcome(struct prefetcher *prefetcher, uint32_t used, uint32_t wasted)
{
	prefetcher->used += used;
	prefetcher->wasted += wasted;
	if (prefetcher->used + prefetcher->wasted > OUTCOMES_KEPT) {
		prefetcher->used /= 2;
		prefetcher->wasted /= 2;
	}
}
