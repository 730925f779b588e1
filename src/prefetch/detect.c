/* Strides among the faults that nothing explained. */
#include "prefetch/inside.h"

static bool is_recent(const struct prefetcher *prefetcher, int64_t pgno)
{
	bool found = false;
	if (pgno < 0)
		return false;
	for (unsigned i = 0; i < PREFETCH_RECENT; i++) /* without a branch: the compiler compares several at once */
		found |= prefetcher->recent[i] == (uint64_t)pgno + 1;
	return found;
}

bool detect_sequential(const struct prefetcher *prefetcher, uint64_t pgno)
{
	return is_recent(prefetcher, (int64_t)pgno - 1);
}

/* Neighbours need two faults, other strides three: that two faults lie some distance apart says nothing. */
int64_t detect_stride(const struct prefetcher *prefetcher, uint64_t pgno, uint32_t *hits)
{
	*hits = 2;
	if (detect_sequential(prefetcher, pgno))
		return 1;
	*hits = 3;
	for (unsigned i = 1; i <= PREFETCH_RECENT; i++) { /* the latest first */
		uint64_t before = prefetcher->recent[(prefetcher->recent_at - i) % PREFETCH_RECENT];
		if (!before)
			break;
		int64_t stride = (int64_t)pgno - (int64_t)(before - 1);
		if (stride && is_recent(prefetcher, (int64_t)pgno - 2 * stride))
			return stride;
	}
	return 0;
}
