/* latency: a histogram of times, 16 linear steps in each power of two (error below 7 %). */
#ifndef DP_TESTS_REDIS_LATENCY_H
#define DP_TESTS_REDIS_LATENCY_H

#include <stdint.h>

#define LATENCY_BUCKETS (61 * 16)
struct latency {
	uint64_t count, max_ns;
	uint64_t bucket[LATENCY_BUCKETS];
};
void latency_add(struct latency *latency, uint64_t ns, uint64_t times);
void latency_merge(struct latency *into, const struct latency *from);
double latency_quantile_ns(const struct latency *latency, double share);

#endif
