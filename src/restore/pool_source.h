/* pool_source: the pager's source in a restore: the instance that is made for it in the pool, and how one that is there already
 * is taken over.
 *
 * What says which instance it is, and under which lease, is in the file `lease` of the instance's directory from the moment it is
 * there until it was ended: a pager that follows a dead one attaches by it, and a supervisor that is left without any ends the
 * instance by it.
 * Inside src/restore only. Calls block. */
#ifndef DP_RESTORE_POOL_SOURCE_H
#define DP_RESTORE_POOL_SOURCE_H

#include "pager/pager.h"
#include "restore/plan.h"

/* A new instance of the plan's snapshot, and the source over it. The order of an earlier run, if one is wanted, is in config. */
int pool_source_create(const struct restore_plan *plan, struct pager_config *config, struct source **source, struct dp_err *err);
/* The source of an instance that a dead pager of ours left: its lease is taken, so that nothing the dead one sent is applied from
 * now on. source_ops.resume says which of its changes was the last. -ESTALE: another has the lease. */
int pool_source_take_over(const struct restore_plan *plan, struct source **source, struct dp_err *err);
/* The instance ends, its source is freed. Where the pool cannot be asked, it ends the instance by itself after a while. Takes
 * NULL. */
void pool_source_end(const struct restore_plan *plan, struct source *source);
/* The same without a source, by the file `lease`; nothing where there is none. */
void pool_source_end_left(const struct restore_plan *plan);

#endif
