/* shadow: a process's memory as it is now, kept by a fork of it that never runs.
 *
 * How it works: in the process, one thread of which CRIU holds stopped and is about to let go, a helper is cloned that shares all
 * of it, and forks the shadow; the helper ends and the process reaps it, so that the shadow is no child of the process's: nothing
 * that it waits for finds it, and who reaps orphans reaps it. Both are traced by CRIU from birth. The shadow gives up the
 * process's descriptors, then stays where it is, stopped, as long as CRIU lives (PTRACE_O_EXITKILL: not a moment longer).
 * Its memory is shared with the process until one of them writes; the kernel copies pages that are pinned for devices at once.
 * What a fork has not got (MADV_DONTFORK, MADV_WIPEONFORK) hide.c does not hide. It counts as a process of the same user and
 * cgroup, and is the first to go where memory is out. x86-64. Thread rule: CRIU's thread, which is the tracer. */
#ifndef DP_MIGRATE_HIDE_SHADOW_H
#define DP_MIGRATE_HIDE_SHADOW_H

#include <sys/types.h>

/* `thread` is stopped and traced by this thread, and is let go in the end, whatever comes of it: as PTRACE_DETACH. The shadow's
 * pid, or -errno: -EAGAIN no further process is allowed there. */
pid_t shadow_make(pid_t thread);

#endif
