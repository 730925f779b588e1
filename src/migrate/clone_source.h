/* clone_source: what is to be cloned: found by what people call it, and looked at.
 *
 * A container's first process has namespaces of its own, which CRIU takes along; its mounts from outside (root filesystem,
 * volumes) are found again by their paths on the host. Thread rule: no state. */
#ifndef DP_MIGRATE_CLONE_SOURCE_H
#define DP_MIGRATE_CLONE_SOURCE_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"

struct clone_source {
	pid_t pid;
	bool contained;      /* the first process of a PID and mount namespace of its own */
	bool own_network;    /* contained: a network namespace too, of which the clone gets an empty one */
	char root[PATH_MAX]; /* contained: its root as this host calls it, the same on both hosts */
};

/* An instance's id or name, a container's id, a pid. `registry` as instance_root gives it. -ENOENT. */
int clone_source_find(const char *registry, const char *what, pid_t *pid, struct dp_err *err);
/* -ESRCH; -EOPNOTSUPP: it shares memory by number (unless share_files), or is a container whose root cannot be found. */
int clone_source_look(pid_t pid, bool share_files, struct clone_source *source, struct dp_err *err);
/* In two texts of mountinfo (of a process, and the host's): where on the host the directory is that the process has as its root.
 * Pure. */
bool clone_source_root(const char *its_mounts, const char *host_mounts, char root[static PATH_MAX]);

#endif
