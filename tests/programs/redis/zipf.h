/* zipf: ranks with the popularity of YCSB's requests, theta 0.99. Method: Gray et al., "Quickly Generating Billion-Record
 * Synthetic Databases". */
#ifndef DP_TESTS_REDIS_ZIPF_H
#define DP_TESTS_REDIS_ZIPF_H

#include <stdint.h>

struct zipf {
	uint64_t items;
	double zeta, eta;
};
void zipf_init(struct zipf *zipf, uint64_t items);
/* 0 is the most popular. */
uint64_t zipf_rank(const struct zipf *zipf, uint64_t *random);
/* The same with popular items scattered over 0..items-1, as hashed keys are over pages. */
uint64_t zipf_scattered(const struct zipf *zipf, uint64_t *random);

#endif
