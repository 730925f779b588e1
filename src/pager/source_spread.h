/* The source that is several pools, each with a part of the pages: whole chunks of 2 MiB, each in the pool that rendezvous
 * hashing of its number gives (the one whose hash together with the chunk's number is highest; Thaler and Ravishankar, 1998). So
 * the place of every page follows from its number and the list of pools alone, the parts are even, and another list moves only
 * what it must.
 *
 * Each pool has the snapshot, and an instance of it: a page that was never changed is read from its own pool like any other. PUT
 * goes to the pool of each page, DROP, FORK and SPACE_FREE to all. A MOVE is made by all; then the pages whose old and new place
 * are in different pools are read where they were taken along and put where they belong, and until that is done no other call is
 * taken (-EAGAIN).
 * A change is acknowledged when all pools that it went to have it. All pools are needed: one that is lost is waited for.
 *
 * What outlives the pager is which pools have a part in a change, and its number in each one's own sequence, noted before the
 * pool can see it. Who takes over attaches to all, and has each make the parts that it has not made. A move's pages that were on
 * their way are fetched again.
 * Thread rule: the pager's fault thread. */
#ifndef DP_PAGER_SOURCE_SPREAD_H
#define DP_PAGER_SOURCE_SPREAD_H

#include "pager/source_mirror.h"

#define SPREAD_CHUNK_PAGES 512u

/* As source_mirror_new. */
int source_spread_new(struct source **source, const struct mirror_member *members, size_t count, struct dp_err *err);
bool source_is_spread(const struct source *source);
/* The instance in each pool; count, 0 where it is not spread. */
size_t source_spread_instances(const struct source *source, uint64_t *instances, uint64_t *epochs);
/* Which of `count` pools has the page. */
unsigned spread_place(uint64_t pgno, unsigned count);

#endif
