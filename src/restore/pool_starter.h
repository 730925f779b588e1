/* pool_starter: starts the pool of an embedded store (client/captive.h) again that was killed below a running tree. The pager
 * cannot: its sandbox forbids exec, and what it started would end with its tree. So it tells the supervisor that a pool is not
 * reached (KEEPER_LOST).
 *
 * The supervisor of a tree with such a pool stays out of the sandbox for that. The process that starts the pool is not its child
 * but its parent's (CLONE_PARENT): what lies below a supervisor is killed with the tree, and others use the pool too.
 * Thread rule: the supervisor's one thread. */
#ifndef DP_RESTORE_POOL_STARTER_H
#define DP_RESTORE_POOL_STARTER_H

#include <stdbool.h>

#include "restore/restore.h"

/* Is any of its pools one that could be started? */
bool pool_starter_is_needed(const struct restore_options *options);
/* Starts those that are not there, in a process of their own. *starter: pidfd of the last such process (-1 at first). false: that
 * runs still, and may have seen a pool that has died since. Does not block. */
bool pool_starter_run(const struct restore_options *options, int *starter);

#endif
