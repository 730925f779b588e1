/* What acker and acker-check agree on. */
#ifndef DP_TESTS_ACKER_H
#define DP_TESTS_ACKER_H

#include <fcntl.h>
#include <stdint.h>

#define ACKER_THREADS 64u
#define ACKER_PAGES 16u /* a thread */
#define ACKER_WORDS 100u /* of a page that a repeating instruction writes */

static inline uint64_t acker_page(uint64_t thread, uint64_t count)
{
	return thread * ACKER_PAGES + count % ACKER_PAGES;
}

static inline int open_acks(const char *path)
{
	return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

#endif
