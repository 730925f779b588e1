/* touch: a process whose memory is one area of numbered pages, and the patterns in which it touches them when told to. */
#ifndef DP_BENCH_TOUCH_H
#define DP_BENCH_TOUCH_H

#include <stdbool.h>
#include <stdint.h>

#include "latency.h"

#define TOUCH_PAGE_BYTES 4096
#define TOUCH_SLOW_NS 1000 /* a touch that took longer waited for something: a local one takes well below 0.2 us */

struct area {
	uint8_t *memory;
	uint64_t pages, seed;
};
/* Maps the area and fills each page: its number, 2 KiB that do not compress, 2 KiB of zeros. NULL memory where that failed. */
bool area_make(struct area *area, uint64_t pages, uint64_t seed);

enum pattern { PATTERN_SEQUENTIAL, PATTERN_STRIDE, PATTERN_UNIFORM, PATTERN_ZIPF, PATTERN_TWO_STREAMS, PATTERNS };
struct touch_job {
	enum pattern pattern;
	int64_t stride;   /* pages; PATTERN_STRIDE, may be negative */
	double writes;    /* share of touches that change the page */
	uint64_t touches; /* ends after so many, or */
	double seconds;   /* so long, whichever is first; 0: no such end */
	uint64_t seed;
	bool beat;        /* a second thread that touches nothing but its stack notes each time it stood still */
};
struct touch_result {
	struct latency latency;
	uint64_t touches, writes, slow, wrong, time_ns; /* time_ns: spent in touching only */
	uint64_t major_faults, minor_faults;
	uint64_t beat_ns, beat_gaps, beat_gap_ns, beat_longest_ns; /* gaps above 100 us */
};
/* false where the text is no job: "pattern=zipf writes=0.1 seconds=2". Patterns: seq, stride:N, uniform, zipf, two. */
bool touch_job_parse(struct touch_job *job, char *text);
void touch_run(const struct area *area, const struct touch_job *job, struct touch_result *result);
/* One page, chosen by number. false where its content is wrong. */
bool touch_one(const struct area *area, uint64_t page);

#endif
