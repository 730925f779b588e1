/* written: which pages of a process were written since somebody looked. Linux 6.7: a userfaultfd with WP_ASYNC, for which the
 * kernel takes a write protection away by itself at the first write and tells nobody, and PAGEMAP_SCAN, which finds the pages
 * of which it was taken away, protects them again and flushes the TLB in one step (Documentation/admin-guide/mm/pagemap.rst).
 *
 * Registered for write protection only, nothing is ever missing behind such a descriptor: no thread ever waits for us, and the
 * last close takes the protection away and loses nothing. A page of such an area is WRITTEN until it is protected, whatever
 * became of it: new, copied after a fork, dropped and touched again. An area that mremap moved, and a child's after fork, are not
 * registered any more and not protected. All that was tried on Linux 6.18 (tests/unit/test_tracker.c); written_supported
 * tries the one thing that older kernels do otherwise.
 * Not seen are writes that pass page tables by: of a device, or of the kernel into a page that it pinned before (direct I/O).
 * Thread rule: none, no state. */
#ifndef DP_SYS_WRITTEN_H
#define DP_SYS_WRITTEN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

/* For userfaultfd(2): only what user mode may have is needed, so a process without rights can be asked to make one. */
#define WRITTEN_UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK | 1 /* UFFD_USER_MODE_ONLY */)

/* Can this kernel do it? -EOPNOTSUPP says what is missing. Tries it on memory of this process; microseconds. */
int written_supported(struct dp_err *err);
/* A descriptor of this kind for the memory of a running process, which has it in no table of its own when this returns. A process
 * of ours (it lives on where this one is killed) stops one of its threads for some 200 us, the others run on; a process that
 * shares its memory (clone(CLONE_VM), exit signal 0) makes the descriptor and ends. Invariants:
 *  D1 nothing is ever missing behind it, so whoever of us dies, and whenever, nobody waits and no byte changes;
 *  D2 but for who holds a thread with registers that are not its own (those 200 us, that one process, SIGKILL to it): then the
 *     kernel kills the target rather than let it run on with them (PTRACE_O_EXITKILL).
 * -EPERM: it is traced, or has a filter that cannot be suspended, or no right to; -ESRCH; -EAGAIN: its thread did not stop
 * within a second (it waits in the kernel); -EOPNOTSUPP. Blocks. Forks: the caller has one thread. */
int written_place(pid_t pid, struct dp_err *err);
/* Makes a fresh userfaultfd one of this kind. -EINVAL: the kernel cannot. */
int written_begin(int uffd);
/* Registers a range; again is no error. -EBUSY: another descriptor has some of it; -EINVAL: an area of it cannot be, or there is
 * none; -ENOMEM, -ESRCH: the memory is gone. */
int written_watch(int uffd, uint64_t start, uint64_t bytes);

struct written_run {
	uint64_t start, end; /* bytes */
	bool watched;        /* in a registered area */
	bool written;        /* since it was protected; always where it is not watched */
	bool zero;           /* the kernel's zero page */
};
/* The next runs of pages that are present or swapped out from *start on, ascending: their number, at most `room` runs and
 * max_pages pages (0: no limit); *start becomes where to go on, `end` when it is done. protect: watched areas only, and what is
 * told is protected in the same step. pagemap_fd: /proc/PID/pagemap, bound to the memory that the process had when it was opened.
 * -ESRCH: that memory is gone. */
ssize_t written_scan(int pagemap_fd, uint64_t *start, uint64_t end, bool protect, uint64_t max_pages, struct written_run *runs,
		     size_t room);

#endif
