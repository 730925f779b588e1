/* offered_snapshot: the snapshot of a frozen tree, made in a pool of this very process: CRIU's images are its files, the frozen
 * pages its pages. Nothing is copied but the images. Thread rule: that of the pool. */
#ifndef DP_MIGRATE_OFFERED_SNAPSHOT_H
#define DP_MIGRATE_OFFERED_SNAPSHOT_H

#include "checkpoint/skeleton.h"
#include "migrate/frozen_tree.h"
#include "pool/pool.h"

/* `store` is the pool's (frozen_store.h). only_left: of each task, task->left alone; a file of the snapshot says which they are
 * (landing.h). The memories of the tree are taken by the store. `facts` gets the tree's numbers.
 * -ENOMEM and those of the pool; the pool is of no use then. */
int offered_snapshot_make(struct pool *pool, struct frozen_tree *tree, const char *name, bool only_left,
			  struct skeleton_facts *facts, uint64_t *skeleton_bytes, struct dp_err *err);

#endif
