#include "prefetch/prefetch.h"

#include <string.h>

#include "base/base.h"

void prefetch_init(struct prefetcher *prefetcher)
{
	memset(prefetcher, 0, sizeof(*prefetcher));
	for (unsigned i = 0; i < PREFETCH_STREAMS; i++)
		prefetcher->stream[i].next = UINT64_MAX;
}

struct prefetch_advice prefetch_fault(struct prefetcher *prefetcher, uint64_t pgno)
{
	struct prefetch_stream *oldest = &prefetcher->stream[0];
	prefetcher->clock++;
	for (unsigned i = 0; i < PREFETCH_STREAMS; i++) {
		struct prefetch_stream *stream = &prefetcher->stream[i];
		if (stream->next == pgno) {
			struct prefetch_advice advice = { .proven = stream->window };
			stream->window = stream->window ? DP_MIN(stream->window * 2, PREFETCH_WINDOW_PAGES - 1) : 3;
			stream->next = pgno + 1 + stream->window;
			stream->used = prefetcher->clock;
			advice.pages = stream->window;
			return advice;
		}
		if (stream->used < oldest->used)
			oldest = stream;
	}
	*oldest = (struct prefetch_stream){ .next = pgno + 1, .used = prefetcher->clock };
	return (struct prefetch_advice){ 0 };
}
