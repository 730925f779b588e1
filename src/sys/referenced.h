/* referenced: the kernel's evidence of use, area by area: /proc/PID/clear_refs takes the accessed bits away, /proc/PID/smaps says
 * how much of each area has them again (Documentation/filesystems/proc.rst). Needs the rights of ptrace on the process. No
 * state; blocks as procfs does (about 10 ms a GiB). -ESRCH where the process is gone. */
#ifndef DP_SYS_REFERENCED_H
#define DP_SYS_REFERENCED_H

#include <stdint.h>
#include <sys/types.h>

struct referenced_area {
	uint64_t start, end; /* bytes */
	uint64_t resident_bytes, referenced_bytes;
	char name[32]; /* last column, cut */
};

int referenced_clear(pid_t pid);
/* Calls `each` for every area in ascending order until it returns non-zero (which is returned). */
int referenced_each(pid_t pid, int (*each)(void *context, const struct referenced_area *area), void *context);

#endif
