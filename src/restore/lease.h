/* lease: until when a restored tree may run, where somebody else may have the right to run it too (migrate/switch.h).
 *
 * The caller of restore_start maps a page shared (MAP_SHARED), names it in restore_options.lease, and renews it for as long as
 * the tree lives; init, which the tree cannot outlive, has the same page by fork. Past until_ns init stops every process of the
 * tree, whoever else is dead by then; renewed, the tree goes on. The writer never takes back what it gave: until_ns only rises.
 * Invariant: L1 from until_ns on (and the time it takes to wake and to stop them) no process of the tree runs.
 * Thread rule: one writer; readers anywhere. */
#ifndef DP_RESTORE_LEASE_H
#define DP_RESTORE_LEASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define LEASE_NONE_YET 0u          /* the tree is not to be resumed yet: its caller sees to that */
#define LEASE_FOR_EVER UINT64_MAX

struct restore_lease {
	_Atomic uint64_t until_ns; /* CLOCK_BOOTTIME */
};

enum lease_tree {
	LEASE_NAMESPACE, /* all processes of a PID namespace of which the caller is pid 1 */
	LEASE_CHILDREN,  /* the caller's descendants */
	LEASE_ROOT,      /* process `root` and its descendants: a container, whose watcher is no parent of it */
};

/* For init, before it waits: stops the tree, or lets it go on. `stopped` is init's memory of it. Returns for how many ms init may
 * wait until it calls again; -1: as long as it likes. */
int lease_follow(const struct restore_lease *lease, enum lease_tree kind, pid_t root, bool *stopped);

#endif
