/* target: may this process be checkpointed, and how large is its tree? Looks only. */
#ifndef DP_CHECKPOINT_TARGET_H
#define DP_CHECKPOINT_TARGET_H

#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

/* -ESRCH, -EINVAL (kernel thread, a process of the tree whose first thread has ended, this process or one above it), -EPERM (this
 * process lacks a capability). */
int target_check(pid_t pid, struct dp_err *err);
/* Resident pages of the tree, without what files back; an estimate for the progress line. 0 where it cannot be told. */
uint64_t target_resident_pages(pid_t pid);
/* The command line as one printable string, fresh; "" where it has none; NULL where memory is out. */
char *target_command_line(pid_t pid);

#endif
