/* prefetch: which pages to ask for besides the one that faulted. Pure functions over the history of faults; no I/O.
 *
 * This one knows sequential runs: a few streams are followed, each with a window that doubles while the faults keep arriving where
 * it ended, as the kernel's readahead does. Others go behind the same two functions. Thread rule: the owner's. */
#ifndef DP_PREFETCH_PREFETCH_H
#define DP_PREFETCH_PREFETCH_H

#include <stdint.h>

#define PREFETCH_STREAMS 8u
#define PREFETCH_WINDOW_PAGES 64u

struct prefetch_stream {
	uint64_t next;   /* page number at which the stream would go on */
	uint64_t window; /* pages it was last given */
	uint64_t used;   /* the history's clock when it last matched */
};

struct prefetcher {
	struct prefetch_stream stream[PREFETCH_STREAMS];
	uint64_t clock;
};

struct prefetch_advice {
	uint64_t pages;  /* how many pages after the faulting one to fetch with it; 0: none */
	uint64_t proven; /* how many pages just before the faulting one this fault shows to have been used */
};

void prefetch_init(struct prefetcher *prefetcher);
/* A fault in page `pgno`. */
struct prefetch_advice prefetch_fault(struct prefetcher *prefetcher, uint64_t pgno);

#endif
