/* The gate before the resume: `--prefetch working-set`.
 *
 * CRIU runs its action scripts by path, without arguments, and tells the action in the environment. The path that it gets is a
 * link to this program in the instance's directory; so no file needs the right to be executed there, and the program knows by the
 * name it was called by what it is for, and where the FIFO is. Both ends of the FIFO are open in the pager: the read ends with
 * the pager's word, or with the pager. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "restore/plan.h"

#define FIFO_NAME "working-set"

int working_set_prepare(const struct instance *instance, struct dp_err *err)
{
	char path[PATH_MAX], self[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (length < 0)
		return dp_fail_errno(err, errno, "read /proc/self/exe");
	self[length] = 0;
	/* They are there already where CRIU is started a second time. */
	if (mkfifo(instance_path(instance, FIFO_NAME, path, sizeof(path)), 0600) && errno != EEXIST)
		return dp_fail_errno(err, errno, "make %s", path);
	if (symlink(self, instance_path(instance, WORKING_SET_ACTION, path, sizeof(path))) && errno != EEXIST)
		return dp_fail_errno(err, errno, "make %s", path);
	return 0;
}

int working_set_open(const struct instance *instance)
{
	char path[PATH_MAX];
	return open(instance_path(instance, FIFO_NAME, path, sizeof(path)), O_RDWR | O_CLOEXEC | O_NONBLOCK);
}

bool working_set_is_action(const char *name)
{
	const char *base = strrchr(name, '/');
	return base && !strcmp(base + 1, WORKING_SET_ACTION);
}

int working_set_action(char *name)
{
	const char *action = getenv("CRTOOLS_SCRIPT_ACTION");
	char path[PATH_MAX], byte;
	if (!action || strcmp(action, "pre-resume"))
		return 0;
	snprintf(path, sizeof(path), "%s/" FIFO_NAME, dirname(name));
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pager that has died has no end of it open */
	if (fd < 0)
		return 0;
	fcntl(fd, F_SETFL, 0);
	while (read(fd, &byte, 1) < 0 && errno == EINTR)
		continue;
	close(fd);
	return 0;
}
