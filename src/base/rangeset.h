/* rangeset: a set of 64-bit numbers kept as sorted, disjoint, non-touching ranges [start, end). Used for registered areas
 * and for the page maps of snapshots. One array; lookups are binary searches, changes move memory: made for up to some
 * ten thousands of ranges that change rarely. Empty ranges (start >= end) are ignored. Thread rule: the owner's. */
#ifndef DP_BASE_RANGESET_H
#define DP_BASE_RANGESET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct range {
	uint64_t start, end;
};

struct rangeset {
	struct range *ranges;
	size_t count, room;
	uint64_t total; /* numbers in the set */
};

void rangeset_done(struct rangeset *set);
/* 0 or -ENOMEM (the set is unchanged then). */
int rangeset_add(struct rangeset *set, uint64_t start, uint64_t end);
int rangeset_remove(struct rangeset *set, uint64_t start, uint64_t end);
int rangeset_copy(struct rangeset *to, const struct rangeset *from);
bool rangeset_contains(const struct rangeset *set, uint64_t number);
/* Index of the first range with end > number; count if none. */
size_t rangeset_find(const struct rangeset *set, uint64_t number);
/* Numbers of the set within [start, end). */
uint64_t rangeset_overlap(const struct rangeset *set, uint64_t start, uint64_t end);

#endif
