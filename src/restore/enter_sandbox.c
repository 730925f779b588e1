/* What the pager and the supervisor give up (sys/sandbox.h), and what they must keep. */
#include <linux/capability.h>
#include <sys/stat.h>

#include "base/log.h"
#include "restore/processes.h"
#include "sys/sandbox.h"

#define EMPTY_IMAGE_BYTES 12 /* two magic numbers and a record of no bytes: CRIU writes that where there are no filters */

/* Has the tree seccomp filters of its own? Putting the warden in then needs PTRACE_O_SUSPEND_SECCOMP, and that the kernel grants
 * to a tracer with CAP_SYS_ADMIN and without a filter only. */
static bool tree_has_filters(const struct instance *instance)
{
	char path[PATH_MAX];
	struct stat info;

	return stat(instance_path(instance, "images/seccomp.img", path, sizeof(path)), &info) == 0 &&
	       info.st_size > EMPTY_IMAGE_BYTES;
}

void enter_sandbox(const struct instance *instance)
{
	struct dp_err err;
	bool filters = tree_has_filters(instance);
	/* The tree's processes may be any user's: tracing and reading them, looking at /proc, ending them, and their wardens'
	 * priority. */
	uint64_t keep = SANDBOX_CAPABILITY(CAP_SYS_PTRACE) | SANDBOX_CAPABILITY(CAP_KILL) |
			SANDBOX_CAPABILITY(CAP_DAC_READ_SEARCH) | SANDBOX_CAPABILITY(CAP_SYS_NICE);
	int result = sandbox_drop_capabilities(filters ? keep | SANDBOX_CAPABILITY(CAP_SYS_ADMIN) : keep, &err);

	if (result == 0 && filters)
		log_info("no filter of system calls for us: the tree has its own, and to suspend them a tracer must have none");
	else if (result == 0)
		result = sandbox_filter(SANDBOX_KEEPER, &err);
	if (result < 0)
		log_warn("not all was given up that is not needed: %s", err.text);
}
