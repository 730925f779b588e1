/* What the files of this room share. */
#ifndef DP_PREFETCH_INSIDE_H
#define DP_PREFETCH_INSIDE_H

#include "prefetch/prefetch.h"

/* How many of `pages` pages from `start` on lie inside of what is possible. */
uint32_t run_clamp(int64_t start, int64_t stride, uint32_t pages);
void advice_add(struct prefetch_advice *advice, int64_t start, int64_t stride, uint32_t pages, bool trigger, uint8_t chunk);

/* ---- prefetch.c ---- */
/* The least evidence with which this detector begins. */
uint32_t detector_least(enum prefetch_policy owner);
/* What became of a stream or chain of this detector. */
void detector_settle(struct prefetcher *prefetcher, enum prefetch_policy owner, uint32_t proven, uint32_t lost);
bool detector_is_silent(struct prefetcher *prefetcher, enum prefetch_policy owner);

/* ---- stream.c ---- */
#define STREAM_PROOF_FAULTS 32u /* so many in a row are followed even where the detector has fallen silent */
/* The stream that explains the fault, or -1. */
int stream_match(const struct prefetcher *prefetcher, uint64_t pgno);
/* A new one, seen for the `hits`th time at pgno. */
int stream_begin(struct prefetcher *prefetcher, enum prefetch_policy owner, uint64_t pgno, int64_t stride, uint32_t hits);
/* The fault at pgno belongs to it: advises what to fetch. */
void stream_advance(struct prefetcher *prefetcher, int index, uint64_t pgno, struct prefetch_advice *advice);

/* ---- detect.c, trend.c, learned.c ---- */
/* A stride d so that pgno - d, pgno - 2d, ... are among the recent faults, `least` faults in all; 0: none. */
int64_t detect_stride(const struct prefetcher *prefetcher, uint64_t pgno, uint32_t *hits);
bool detect_sequential(const struct prefetcher *prefetcher, uint64_t pgno);
struct prefetch_area *area_find(struct prefetcher *prefetcher, uint64_t start);
/* The fault came `delta` after the last of its area (0: unknown). */
void area_note(struct prefetch_area *area, uint64_t pgno, int64_t delta);
int64_t trend_find(const struct prefetch_area *area);
/* Learns from the fault and advises. */
void learned_fault(struct prefetcher *prefetcher, struct prefetch_area *area, uint64_t pgno, struct prefetch_advice *advice);

#endif
