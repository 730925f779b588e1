/* client/compress: whether packing pages makes this link carry more. Pure functions over numbers; one meter a direction.
 *
 * The rule of `auto`: while the link is busy (64 pages and more under way all the time), take the time of four windows of 512
 * pages, or of what comes in 100 ms. If one of them went at 300 MB/s or more, a core that packs would be the bottleneck: nothing
 * is tried.
 * Else the pages of two more windows go packed; if they shrink, and flow faster than before by a fifth, packing stays, as long as
 * no window falls to half of what it was without; if not, it does not. Either verdict holds for 64 windows, then it is measured
 * anew. So a link that is slow for want of CPU, or slow for a moment, or pages that do not shrink, leave packing off by
 * themselves.
 * Requests carry the meter's turn at their sending, so that a window counts only answers to requests made its own way.
 * Thread rule: the client's thread. */
#ifndef DP_CLIENT_COMPRESS_H
#define DP_CLIENT_COMPRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "client/client.h"

#define COMPRESS_BUSY_PAGES 64
#define COMPRESS_WINDOW_PAGES 512 /* or what comes in COMPRESS_WINDOW_NS, if that is less */
#define COMPRESS_WINDOW_NS UINT64_C(100000000)
#define COMPRESS_PLAIN_WINDOWS 4
#define COMPRESS_TRIAL_WINDOWS 2
#define COMPRESS_VERDICT_WINDOWS 64
#define COMPRESS_FAST_BYTES_PER_SECOND UINT64_C(300000000)

enum compress_phase { COMPRESS_PLAIN, COMPRESS_TRIAL, COMPRESS_SETTLED };

struct compress_meter {
	bool automatic;
	bool on; /* pack the next request */
	enum compress_phase phase;
	uint8_t turn;         /* counts the changes of `on` */
	uint32_t windows;     /* timed so far in this phase */
	uint64_t start_ns;    /* of the window; 0: none has begun */
	uint64_t pages;       /* in it */
	uint64_t phase_pages, phase_ns; /* of all windows of the phase */
	uint64_t plain_bytes_per_second; /* while it was off */
	uint64_t packed_pages, packed_bytes; /* of the phase */
	uint64_t pages_under_way;
};

/* possible: the pool can unpack, and the mode is not moot (on a Unix socket `auto` never packs). */
void compress_init(struct compress_meter *meter, enum client_compress mode, bool possible);
/* A request was sent; returns the turn to be given back. */
uint8_t compress_sent(struct compress_meter *meter, uint64_t pages);
/* Pages were packed into so many bytes: where that is more than seven eighths, nothing else is looked at. */
void compress_packed(struct compress_meter *meter, uint64_t pages, uint64_t bytes);
/* It was answered, or failed. now_ns is only asked of the clock where it counts: see compress_measures. */
void compress_answered(struct compress_meter *meter, uint8_t turn, uint64_t pages, uint64_t now_ns);
static inline bool compress_measures(const struct compress_meter *meter)
{
	return meter->automatic && (meter->start_ns || meter->pages_under_way >= COMPRESS_BUSY_PAGES);
}

#endif
