/* pace: how fast a background transfer may go. Pure arithmetic over numbers and times that the caller gives; no clock, no I/O.
 *
 * Three limits, the narrowest counts:
 *   rate    what the user allows: a token bucket that holds at most 20 ms of it, and at least one chunk.
 *   window  what the link holds: bandwidth (the most delivered lately) times round trip (the shortest seen lately) plus one
 *           chunk, so that the link never idles and a fault waits behind one chunk and not more (BBR's estimate: Cardwell et al.,
 *           2016).
 *           Until the bandwidth stops growing, twice as much: a long link is filled in a few round trips. Only round trips count
 *           in which the window was full. Later one in eight is tried with a quarter more; if that brings more, it starts anew.
 *           For two milliseconds after each fault it is less by two chunks, but one at least: what the link itself holds, and
 *           nothing queued.
 *           A chunk is an eighth of it, between two bounds: the nearer the pool, the less a fault has to wait for.
 *   share   what the faults leave: every 50 ms the mean latency of the demand faults that were served in it (four at least) is
 *           compared with the baseline, the least such mean so far (it rises by a 256th an interval, to follow a link that has
 *           changed). More than twice the baseline plus the time of one chunk: the share halves. Else it grows by a sixteenth.
 *           It stays between a 32nd and the whole of the bandwidth.
 * Thread rule: none, the caller's. */
#ifndef DP_PAGER_PACE_H
#define DP_PAGER_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define PACE_SHARE_FULL 1024u
#define PACE_SHARE_LEAST 32u

struct pace {
	uint64_t least_bytes, most_bytes; /* of a chunk */
	/* rate */
	uint64_t rate_bytes;  /* a second; 0: no limit */
	int64_t tokens_bytes; /* negative: in debt */
	uint64_t filled_ns;   /* when tokens were last added */
	/* window */
	uint64_t delivered_bytes;
	uint64_t bandwidth[2];     /* most delivered a second: in the running and in the last period */
	uint64_t round_trip_ns[2]; /* the shortest, the same way; 0: none yet */
	uint64_t period_ns;        /* when the running period began */
	uint64_t grew_to;          /* start-up: bandwidth at the last look */
	uint64_t looked_ns;
	uint64_t fault_ns;         /* the last fault; 0: none yet */
	unsigned plateaus;         /* looks in a row without growth; three end the start-up */
	unsigned looks;
	bool full, measured;       /* since the last look: the window kept something back; the bandwidth was seen */
	/* share */
	unsigned share;
	uint64_t baseline_ns; /* 0: none yet */
	uint64_t interval_ns, fault_count, fault_sum_ns; /* totals when the running interval began */
	uint64_t backed_off;  /* times */
};

/* What is remembered of a chunk while it is under way. */
struct pace_chunk {
	uint64_t bytes, sent_ns, delivered_bytes;
};

void pace_init(struct pace *pace, uint64_t least_bytes, uint64_t most_bytes, uint64_t rate_bytes, uint64_t now_ns);
void pace_set_rate(struct pace *pace, uint64_t rate_bytes, uint64_t now_ns);
/* Bytes that may be under way at once. */
uint64_t pace_window_bytes(const struct pace *pace, uint64_t now_ns);
/* How large the next chunk should be. */
uint64_t pace_chunk_bytes(const struct pace *pace);
/* A thread waits for a page. */
void pace_fault(struct pace *pace, uint64_t now_ns);
/* A chunk has to wait because the window is full. */
void pace_full(struct pace *pace);
/* How long the next chunk has to wait for the rate and the share; 0: it may go. */
uint64_t pace_wait_ns(struct pace *pace, uint64_t now_ns);
/* A chunk of so many bytes goes out. */
struct pace_chunk pace_sent(struct pace *pace, uint64_t bytes, uint64_t now_ns);
/* It has come. */
void pace_delivered(struct pace *pace, struct pace_chunk chunk, uint64_t now_ns);
/* Demand faults so far: how many, and the sum of their latencies. */
void pace_faults(struct pace *pace, uint64_t count, uint64_t sum_ns, uint64_t now_ns);

#endif
