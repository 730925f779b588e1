/* sys/sandbox: a process gives up what it does not need, once it is set up: capabilities, core dumps, new privileges by exec, and
 * all system calls that are not on its list (seccomp).
 *
 * The lists are in sandbox_lists.c; libseccomp makes BPF programs of them when DistriProc is built, so that a start costs neither
 * its loading nor its work. A call that is not listed is not made: the process says which one it was and is killed by SIGSYS.
 * Sanitizers make system calls of their own (and trace themselves, to look for leaks), so sanitized builds have no filter.
 * Thread rule: capabilities are a thread's own: enter before the first further thread, or accept that older ones keep theirs. */
#ifndef DP_SYS_SANDBOX_H
#define DP_SYS_SANDBOX_H

#include <stdint.h>

#include "base/err.h"

enum sandbox_role {
	SANDBOX_POOL,   /* pool serve: sockets, its store's files, threads; no other process */
	SANDBOX_KEEPER, /* pager and supervisor: what they do to the tree (ptrace, process_vm_readv), and forks of themselves */
};

#define SANDBOX_CAPABILITY(number) (UINT64_C(1) << (number))

/* Drops every capability but those in `keep`, also from the bounding set; without root it has none to drop. Sets no_new_privs and
 * forbids core dumps: they would hold other processes' memory. -errno. */
int sandbox_drop_capabilities(uint64_t keep, struct dp_err *err);
/* From here on only the role's system calls, in all threads. -errno. */
int sandbox_filter(enum sandbox_role role, struct dp_err *err);

#endif
