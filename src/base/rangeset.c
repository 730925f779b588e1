#include "base/rangeset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

void rangeset_done(struct rangeset *set)
{
	free(set->ranges);
	memset(set, 0, sizeof(*set));
}

size_t rangeset_find(const struct rangeset *set, uint64_t number)
{
	size_t low = 0, high = set->count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (set->ranges[middle].end > number)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

bool rangeset_contains(const struct rangeset *set, uint64_t number)
{
	size_t at = rangeset_find(set, number);
	return at < set->count && set->ranges[at].start <= number;
}

uint64_t rangeset_overlap(const struct rangeset *set, uint64_t start, uint64_t end)
{
	uint64_t total = 0;
	for (size_t i = rangeset_find(set, start); i < set->count && set->ranges[i].start < end; i++)
		total += DP_MIN(end, set->ranges[i].end) - DP_MAX(start, set->ranges[i].start);
	return total;
}

/* Replaces ranges[at .. at + old_count) by new_count ranges. */
static int splice(struct rangeset *set, size_t at, size_t old_count, const struct range *replacement, size_t new_count)
{
	size_t count = set->count - old_count + new_count;
	if (count > set->room) {
		size_t room = DP_MAX(count, set->room * 2 + 8);
		struct range *larger = realloc(set->ranges, room * sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		set->ranges = larger;
		set->room = room;
	}
	if (set->count > at + old_count)
		memmove(set->ranges + at + new_count, set->ranges + at + old_count,
			(set->count - at - old_count) * sizeof(struct range));
	if (new_count)
		memcpy(set->ranges + at, replacement, new_count * sizeof(*replacement));
	set->count = count;
	return 0;
}

int rangeset_add(struct rangeset *set, uint64_t start, uint64_t end)
{
	if (start >= end)
		return 0;
	/* Neighbours that only touch are joined too. */
	size_t first = start ? rangeset_find(set, start - 1) : 0;
	size_t last = first;
	struct range joined = { start, end };
	uint64_t already = 0;
	while (last < set->count && set->ranges[last].start <= end) {
		joined.start = DP_MIN(joined.start, set->ranges[last].start);
		joined.end = DP_MAX(joined.end, set->ranges[last].end);
		already += set->ranges[last].end - set->ranges[last].start;
		last++;
	}
	int ret = splice(set, first, last - first, &joined, 1);
	if (!ret)
		set->total += joined.end - joined.start - already;
	return ret;
}

int rangeset_remove(struct rangeset *set, uint64_t start, uint64_t end)
{
	if (start >= end)
		return 0;
	size_t first = rangeset_find(set, start), last = first, kept = 0;
	struct range rest[2];
	uint64_t removed = 0;
	while (last < set->count && set->ranges[last].start < end) {
		struct range old = set->ranges[last++];
		removed += DP_MIN(end, old.end) - DP_MAX(start, old.start);
		if (old.start < start)
			rest[kept++] = (struct range){ old.start, start };
		if (old.end > end)
			rest[kept++] = (struct range){ end, old.end };
	}
	int ret = splice(set, first, last - first, rest, kept);
	if (!ret)
		set->total -= removed;
	return ret;
}

int rangeset_copy(struct rangeset *to, const struct rangeset *from)
{
	struct range *ranges = NULL;
	if (from->count) {
		ranges = malloc(from->count * sizeof(*ranges));
		if (!ranges)
			return -ENOMEM;
		memcpy(ranges, from->ranges, from->count * sizeof(*ranges));
	}
	*to = (struct rangeset){ ranges, from->count, from->count, from->total };
	return 0;
}
