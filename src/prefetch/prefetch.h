/* prefetch: which pages to ask for besides the one that faulted. Pure functions over the history of faults; no I/O, no clock.
 *
 * A touched page that is there makes no fault, so the history sees misses only. Whoever fetches ahead must therefore leave
 * something to fault: the first page of each chunk, its *trigger*, is not fetched; the fault in it says that the chunk before it
 * was used, and orders the chunk after it while the program works on its own. A growing window makes triggers rare: one page in
 * 64.
 *
 * The parts: detectors find a stride in the faults that nothing explains (detect.c: sequential, stride; trend.c: Leap's majority
 * vote; learned.c: a table of delta transitions); a stream follows it with a window that doubles (stream.c). The adaptive policy
 * asks all detectors in turn. It gives each a *patience*, the faults in a row that a stream must explain before anything is
 * fetched for it, and moves that by what became of the streams; a detector whose streams always end at once falls silent.
 * The order of an earlier run ("recorded") needs no history: who drives this replays it (order.h).
 *
 * Invariants: Q1 no advice names a page outside [0, PREFETCH_PGNO_END) or the faulting page; Q2 at most PREFETCH_ADVICE_PAGES
 * pages in at most PREFETCH_RUNS runs; Q3 equal histories give equal advice. A prefetcher of zero bytes but for `policy` is ready
 * for use; its tables are touched only as they are needed. Thread rule: the owner's. */
#ifndef DP_PREFETCH_PREFETCH_H
#define DP_PREFETCH_PREFETCH_H

#include <stdbool.h>
#include <stdint.h>

#define PREFETCH_PGNO_END (1ull << 52)
#define PREFETCH_RUNS 16u
#define PREFETCH_WINDOW_PAGES 64u         /* a chunk while its pages come too late: one request, one copy */
#define PREFETCH_WIDE_WINDOW_PAGES 256u   /* and while they come in time */
#define PREFETCH_ADVICE_PAGES (2 * PREFETCH_WIDE_WINDOW_PAGES)
#define PREFETCH_STREAMS 16u
#define PREFETCH_RECENT 16u
#define PREFETCH_AREAS 8u
#define PREFETCH_DELTAS 32u
#define PREFETCH_TRANSITIONS 1024u
#define PREFETCH_CHAIN_PAGES 12u
#define PREFETCH_PATIENCE_LIMIT 16u       /* a detector that needs more evidence than that is silent */

enum prefetch_policy {
	PREFETCH_ADAPTIVE,
	PREFETCH_NONE,
	PREFETCH_SEQUENTIAL,
	PREFETCH_STRIDE,
	PREFETCH_TREND,
	PREFETCH_LEARNED,
	PREFETCH_RECORDED,
	PREFETCH_POLICIES
};

/* Its name, as --prefetch-policy takes it; and back, or -1. */
const char *prefetch_policy_name(enum prefetch_policy policy);
int prefetch_policy_find(const char *name);
/* Does it use the recorded order of an earlier run? */
bool prefetch_policy_replays(enum prefetch_policy policy);

struct prefetch_stream {
	int64_t stride;      /* pages from one fault to the next; 0: free */
	uint64_t low;        /* where it was last seen */
	uint64_t trigger;    /* the first page beyond `low` that was not asked for: its fault is waited for */
	int64_t front;       /* the next page that would be asked for; may lie outside of what is possible */
	uint32_t window;     /* pages of the last chunk; 0: nothing was asked for yet */
	uint32_t hits;       /* faults it has explained */
	uint32_t asked[2];   /* pages asked for: between the last fault and the trigger; behind the trigger */
	uint32_t proven;     /* pages that were asked for and used */
	uint8_t owner;       /* enum prefetch_policy: who found it */
	bool ahead;          /* a chunk behind the trigger was advised */
	bool late;           /* a page was touched while it was still on its way */
	uint64_t used;       /* the clock when it was last seen */
};

/* What happens in one area of memory (a mapping): the deltas from fault to fault. */
struct prefetch_area {
	uint64_t start, last, used;
	int64_t delta[PREFETCH_DELTAS];
	uint32_t deltas; /* ever */
	uint64_t chain[PREFETCH_CHAIN_PAGES]; /* what the learned table foretold last; the last one is the trigger */
	uint32_t chain_pages, chain_length;
};

struct prefetch_transition {
	uint32_t tag;
	uint32_t confidence;
	int64_t delta;
};

struct prefetch_detector {
	uint32_t patience; /* 0: the least of its kind */
	uint32_t silent_faults;
	uint64_t good, bad; /* pages of streams that ended lately: used, not used as far as is known */
	uint64_t asked_pages, proven_pages;
};

struct prefetcher {
	enum prefetch_policy policy;
	uint64_t clock;
	uint64_t used, wasted; /* outcomes that were told lately, halved as they grow */
	struct prefetch_detector detector[PREFETCH_POLICIES];
	struct prefetch_stream stream[PREFETCH_STREAMS];
	uint64_t recent[PREFETCH_RECENT]; /* faults that no stream explained, plus one; 0: none */
	uint32_t recent_at;
	struct prefetch_area area[PREFETCH_AREAS];
	struct prefetch_transition transition[PREFETCH_TRANSITIONS];
};

/* Pages pgno, pgno + stride, ... */
struct prefetch_run {
	uint64_t pgno;
	int64_t stride; /* not 0 */
	uint32_t pages;
	bool trigger;   /* leave the first of them that could be fetched: its fault will tell */
	uint8_t chunk;  /* for prefetch_asked */
};

struct prefetch_advice {
	uint32_t runs;
	struct prefetch_run run[PREFETCH_RUNS]; /* most urgent first */
	/* pages asked for earlier that this fault shows to have been used; pages may be 0 */
	struct prefetch_run proven;
	enum prefetch_policy owner;             /* who advises */
	int stream;                             /* for prefetch_asked; -1: none */
};

void prefetch_init(struct prefetcher *prefetcher, enum prefetch_policy policy);
/* A fault in page `pgno` of the area that starts at page `area`. Fills advice. */
void prefetch_fault(struct prefetcher *prefetcher, uint64_t area, uint64_t pgno, struct prefetch_advice *advice);
/* Is the fault at pgno the next one of a stream that is fetched ahead in chunks of 32 pages or more? */
bool prefetch_follows(const struct prefetcher *prefetcher, uint64_t pgno);
/* What was made of a run of the advice. */
struct prefetch_asked {
	uint32_t pages;   /* asked for; others were there */
	uint64_t trigger; /* the page that was left to fault, where one was to be; UINT64_MAX: none */
	uint64_t cut;     /* from this page on nothing was asked for, for want of room; UINT64_MAX: all was */
};
/* Runs are told in order, until one was cut. */
void prefetch_asked(struct prefetcher *prefetcher, const struct prefetch_advice *advice, const struct prefetch_run *run,
		    const struct prefetch_asked *asked);
/* The run's pages [0, steps), which had been cut off, were looked at after all, and `pages` of them asked for; no fault came
 * since. */
void prefetch_went_on(struct prefetcher *prefetcher, const struct prefetch_advice *advice, const struct prefetch_run *run,
		      uint32_t steps, uint32_t pages);
/* A page was touched while it was on its way: its stream is faster than the pages come. */
void prefetch_late(struct prefetcher *prefetcher, uint64_t pgno);
/* Pages that were fetched ahead turned out to be used, or left untouched. */
void prefetch_outcome(struct prefetcher *prefetcher, uint32_t used, uint32_t wasted);

#endif
