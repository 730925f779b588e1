/* Streams: a stride that is followed, a window that grows. */
#include "prefetch/inside.h"

#include "base/base.h"

#define FIRST_WINDOW 4u
#define PIPELINE_WINDOW 16u /* from here on a chunk is kept ahead of the one in use */
#define WASTED_WINDOW 8u
#define WASTED_PAGES 32u
#define FORGOTTEN_FAULTS 2048u

uint32_t run_clamp(int64_t start, int64_t stride, uint32_t pages)
{
	if (start < 0 || start >= (int64_t)PREFETCH_PGNO_END)
		return 0;
	uint64_t room = stride > 0 ? (PREFETCH_PGNO_END - 1 - (uint64_t)start) / (uint64_t)stride
				   : (uint64_t)start / (uint64_t)-stride;
	return (uint32_t)DP_MIN((uint64_t)pages, room + 1);
}

void advice_add(struct prefetch_advice *advice, int64_t start, int64_t stride, uint32_t pages, bool trigger, uint8_t chunk)
{
	pages = run_clamp(start, stride, pages);
	if (pages && advice->runs < PREFETCH_RUNS)
		advice->run[advice->runs++] = (struct prefetch_run){ (uint64_t)start, stride, pages, trigger, chunk };
}

/* Steps from the stream's last fault to the page; 0: not on its way. */
static int64_t steps_to(const struct prefetch_stream *stream, int64_t pgno)
{
	int64_t distance = pgno - (int64_t)stream->low;
	return distance % stream->stride ? 0 : distance / stream->stride;
}

int stream_match(const struct prefetcher *prefetcher, uint64_t pgno)
{
	int best = -1;
	for (unsigned i = 0; i < PREFETCH_STREAMS; i++) {
		const struct prefetch_stream *stream = &prefetcher->stream[i];
		if (!stream->stride)
			continue;
		int64_t steps = steps_to(stream, (int64_t)pgno), front = steps_to(stream, stream->front);
		/* What lies between trigger and front was asked for, if there was room. Where all of it was there already the
		 * program may be well beyond. */
		int64_t slack = !stream->window ? 0 : stream->ahead && !stream->asked[1] ? stream->window : 1;
		if (steps >= 1 && steps >= steps_to(stream, (int64_t)stream->trigger) && steps <= front + slack &&
		    (best < 0 || stream->hits > prefetcher->stream[best].hits))
			best = (int)i;
	}
	return best;
}

static void settle(struct prefetcher *prefetcher, struct prefetch_stream *stream)
{
	if (stream->stride && stream->window)
		detector_settle(prefetcher, stream->owner, stream->proven, stream->asked[0] + stream->asked[1]);
	stream->stride = 0;
}

/* The oldest of those that never asked for anything; else the oldest. */
static struct prefetch_stream *choose_slot(struct prefetcher *prefetcher)
{
	struct prefetch_stream *quiet = NULL, *oldest = &prefetcher->stream[0];
	for (unsigned i = 0; i < PREFETCH_STREAMS; i++) {
		struct prefetch_stream *stream = &prefetcher->stream[i];
		if (stream->stride && prefetcher->clock - stream->used > FORGOTTEN_FAULTS)
			settle(prefetcher, stream);
		if (!stream->stride)
			return stream;
		if (!stream->window && (!quiet || stream->used < quiet->used))
			quiet = stream;
		if (stream->used < oldest->used)
			oldest = stream;
	}
	return quiet ? quiet : oldest;
}

int stream_begin(struct prefetcher *prefetcher, enum prefetch_policy owner, uint64_t pgno, int64_t stride, uint32_t hits)
{
	struct prefetch_stream *stream = choose_slot(prefetcher);
	settle(prefetcher, stream);
	*stream = (struct prefetch_stream){ .stride = stride,
					    .low = (uint64_t)((int64_t)pgno - stride),
					    .front = (int64_t)pgno,
					    .trigger = pgno,
					    .hits = hits - 1,
					    .owner = (uint8_t)owner,
					    .used = prefetcher->clock };
	return (int)(stream - prefetcher->stream);
}

static bool guesses_are_wasted(const struct prefetcher *prefetcher)
{
	return prefetcher->wasted > 2 * prefetcher->used && prefetcher->wasted >= WASTED_PAGES;
}

static uint32_t next_window(const struct prefetcher *prefetcher, const struct prefetch_stream *stream, bool expected)
{
	if (!stream->window)
		return DP_MIN(DP_MAX(stream->hits, FIRST_WINDOW), PIPELINE_WINDOW);
	uint32_t limit = stream->late ? PREFETCH_WINDOW_PAGES : PREFETCH_WIDE_WINDOW_PAGES;
	if (guesses_are_wasted(prefetcher))
		limit = WASTED_WINDOW;
	return DP_MIN(expected ? stream->window * 2 : stream->window, limit);
}

void stream_advance(struct prefetcher *prefetcher, int index, uint64_t pgno, struct prefetch_advice *advice)
{
	struct prefetch_stream *stream = &prefetcher->stream[index];
	struct prefetch_detector *detector = &prefetcher->detector[stream->owner];
	int64_t stride = stream->stride, steps = steps_to(stream, (int64_t)pgno), asked = steps_to(stream, stream->front);
	bool expected = pgno == stream->trigger || (int64_t)pgno == stream->front;
	uint32_t least = prefetcher->policy == PREFETCH_ADAPTIVE ? DP_MAX(detector->patience, detector_least(stream->owner)) : 1;
	if (stream->window) { /* what was asked for between the last fault and this one has been used */
		uint32_t used = stream->asked[0] + (steps >= asked ? stream->asked[1] : 0);
		advice->proven = (struct prefetch_run){ (uint64_t)((int64_t)stream->low + stride), stride,
							(uint32_t)(DP_MIN(steps, asked) - 1), false, 0 };
		stream->proven += used;
		detector->proven_pages += used;
		stream->asked[0] = steps >= asked ? 0 : stream->asked[1];
		stream->asked[1] = 0;
	}
	stream->low = pgno;
	stream->hits++;
	stream->used = prefetcher->clock;
	if (prefetcher->policy == PREFETCH_ADAPTIVE &&
	    (detector_is_silent(prefetcher, stream->owner) || guesses_are_wasted(prefetcher)))
		least = STREAM_PROOF_FAULTS;
	if (stream->hits < least) {
		stream->front = (int64_t)pgno + stride;
		stream->trigger = (uint64_t)stream->front;
		return;
	}
	bool first = !stream->window;
	stream->window = next_window(prefetcher, stream, expected);
	stream->late = false;
	advice->stream = index;
	advice->owner = stream->owner;
	int64_t chunk = stride * (int64_t)stream->window, next = (int64_t)pgno + stride;
	bool behind = steps >= asked;
	if (behind) { /* nothing is ahead: the next pages come at once */
		advice_add(advice, next, stride, stream->window - 1, false, 0);
		stream->front = next + chunk - stride;
	}
	stream->trigger = (uint64_t)stream->front;
	stream->ahead = behind ? !first && stream->window >= PIPELINE_WINDOW : asked - steps <= (int64_t)stream->window;
	if (stream->ahead) {
		advice_add(advice, stream->front, stride, stream->window, true, 1);
		stream->front += chunk;
	}
}
