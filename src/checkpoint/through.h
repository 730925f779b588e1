/* through: the process that `restore --propagate through` keeps beside an instance. It stands behind each thread that writes to a
 * page which the pool has: stops the process, has the one instruction made, pushes what was written, lets the process go on
 * (pager/through.h has the protocol and the invariants).
 *
 * The process is seized for one write at a time, so that wardens, checkpoints and debuggers find it free between two; one that
 * somebody else traces at that moment is waited for, and after a while its page is opened without a stop: who traces it may be
 * the one that writes.
 * Source: ptrace(2), PTRACE_SEIZE. Thread rule: one thread, which waits for all children of its process. Blocks. */
#ifndef DP_CHECKPOINT_THROUGH_H
#define DP_CHECKPOINT_THROUGH_H

#include <stdbool.h>

#include "base/err.h"

/* Until the tree has ended (0), *stop is true (1), or the pager is gone or refuses (-errno). `instance` as instance_find takes
 * it. */
int through_run(const char *registry, const char *instance, const volatile bool *stop, struct dp_err *err);

#endif
