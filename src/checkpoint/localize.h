/* localize: brings the few pages of an instance into local memory that CRIU reads by ptrace.
 *
 * A ptrace peek (and /proc/PID/mem, /proc/PID/cmdline) does not wait for a page behind a userfaultfd as the process itself would:
 * it fails. CRIU peeks at each thread's rseq area and, where that names one, its critical section; a failed peek ends the dump
 * ("unsupported RSEQ ABI version = -1"). process_vm_readv does wait, so one byte of each is read that way, after the pager has
 * been told to evict nothing. The command line comes along, for the snapshot's description.
 * Source of the addresses: PTRACE_GET_RSEQ_CONFIGURATION (Linux 5.13), proc_pid_stat(5). Thread rule: one thread; stops each
 * thread of the tree for some microseconds. */
#ifndef DP_CHECKPOINT_LOCALIZE_H
#define DP_CHECKPOINT_LOCALIZE_H

#include <sys/types.h>

#include "base/err.h"

/* pid and all its descendants. A task that ends meanwhile is no error. -EPERM and others of ptrace. */
int localize_tree(pid_t pid, struct dp_err *err);

#endif
