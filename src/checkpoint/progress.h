/* progress: the line that grows on a terminal while pages go to the pool. At most ten times a second. */
#ifndef DP_CHECKPOINT_PROGRESS_H
#define DP_CHECKPOINT_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
	bool enabled, shown;
	uint64_t expected_pages; /* 0: not known */
	uint64_t started_ns, last_ns;
};
void progress_start(struct progress *progress, bool enabled, uint64_t expected_pages);
void progress_update(struct progress *progress, uint64_t pages);
/* Takes the line away. */
void progress_end(struct progress *progress);

#endif
