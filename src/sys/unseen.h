/* unseen: may a process's pages be written without its page tables telling (written.h)? By its open descriptors: direct I/O,
 * and file systems that read straight into a program's memory (FUSE, 9P), pin pages, and what was read comes into them some
 * time later, from a device or another process; io_uring has registered buffers, RDMA and VFIO whatever their owner sets up. A
 * userfaultfd of the program's own is an answer of the same kind: it may be looking for written pages itself, and both would
 * see half. Look after pages were protected and before they are read: what is under way then, and ends after that, has its file
 * open now (unless another thread closes it under the first, which programs do not do). Thread rule: none, no state. */
#ifndef DP_SYS_UNSEEN_H
#define DP_SYS_UNSEEN_H

#include <stddef.h>
#include <sys/types.h>

/* 1: yes, and why; 0: no; -ESRCH, -EACCES and others: it cannot be told. Reads /proc/PID/fd. */
int unseen_writes(pid_t pid, char *why, size_t size);

#endif
