/* cgroup: how much memory the control group of a process may have, in either version of control groups.
 *
 * Version 2: the least of memory.max and memory.high of the group and all above it, below the mount. Version 1: the line
 * hierarchical_memory_limit of memory.stat, which is that of memory.limit_in_bytes. Where both are mounted, that counts which has
 * the memory controller. Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
 * Thread rule: none, no state. */
#ifndef DP_SYS_CGROUP_H
#define DP_SYS_CGROUP_H

#include <stdint.h>
#include <sys/types.h>

#define CGROUP_NO_LIMIT UINT64_MAX

struct cgroup {
	int version;     /* 1 or 2; 0: no group with a memory controller was found */
	char mount[256]; /* where the controller is mounted */
	char path[1024]; /* of the process's group, the mount included */
};

/* The group of a process. 0, or -errno: -ESRCH no such process. */
int cgroup_find(pid_t pid, struct cgroup *cgroup);
/* Its limit in bytes, or CGROUP_NO_LIMIT; read anew each time. 0, or -errno: -ENOENT where the group is gone. */
int cgroup_limit(const struct cgroup *cgroup, uint64_t *limit_bytes);
/* What it has now (memory.current, memory.usage_in_bytes). 0 or -errno. */
int cgroup_usage(const struct cgroup *cgroup, uint64_t *usage_bytes);

/* Inside cgroup.c, for its tests: takes the texts of /proc/PID/cgroup and /proc/self/mountinfo. */
int cgroup_parse(const char *membership, const char *mounts, struct cgroup *cgroup);

#endif
