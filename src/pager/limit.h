/* limit: the budget follows the control group of the tree, also when its limit is changed while the tree runs.
 *
 * How it works: with config->follow_cgroup the limit of the group of the tree's first process is read again twice a second
 * (sys/cgroup.h), and the budget planned anew from it (residency_of_limit) where it changed. Staging areas keep their size.
 * The limit is the group's: what else is in it, page cache and programs that were started in the container, the kernel reclaims
 * before it kills. Thread rule: the pager's. */
#ifndef DP_PAGER_LIMIT_H
#define DP_PAGER_LIMIT_H

#include <stdint.h>

struct tree;

struct limit {
	uint64_t next_ns;
	uint64_t limit_bytes; /* what the budget was last planned by; 0: not yet */
};

/* Looks, where it is time to. */
void limit_work(struct tree *tree, uint64_t now_ns);

#endif
