/* The gate before the resume: of `--prefetch working-set`, which waits for pages, and of spares, which wait to be wanted.
 *
 * CRIU runs its action scripts by path, without arguments, and tells the action in the environment. The path that it gets is a
 * link to this program in the instance's directory; so no file needs the right to be executed there, and the program knows by the
 * name it was called by what it is for, and where the FIFO is. Both ends of the FIFO are open in the pager: the read ends with
 * the pager's word, or with the pager. A spare's two FIFOs are the supervisor's in the same way; should it die, init ends a tree
 * that never ran. */
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
#define HELD_NAME "held" /* to the supervisor: it is there */
#define GO_NAME "go"     /* from it */

/* They are there already where CRIU is started a second time. */
static int make_fifo(const struct instance *instance, const char *name, struct dp_err *err)
{
	char path[PATH_MAX];
	if (mkfifo(instance_path(instance, name, path, sizeof(path)), 0600) && errno != EEXIST)
		return dp_fail_errno(err, errno, "make %s", path);
	return 0;
}

int working_set_prepare(const struct instance *instance, bool working_set, bool hold, struct dp_err *err)
{
	char path[PATH_MAX], self[PATH_MAX];
	int ret = working_set ? make_fifo(instance, FIFO_NAME, err) : 0;
	if (!ret && hold)
		ret = make_fifo(instance, HELD_NAME, err);
	if (!ret && hold)
		ret = make_fifo(instance, GO_NAME, err);
	if (ret)
		return ret;
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (length < 0)
		return dp_fail_errno(err, errno, "read /proc/self/exe");
	self[length] = 0;
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

/* Returns with a byte of the FIFO, at its end, or where there is none. */
static void wait_at(const char *directory, const char *fifo)
{
	char path[PATH_MAX], byte;
	snprintf(path, sizeof(path), "%s/%s", directory, fifo);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* who has died has no end of it open */
	if (fd < 0)
		return;
	fcntl(fd, F_SETFL, 0);
	while (read(fd, &byte, 1) < 0 && errno == EINTR)
		continue;
	close(fd);
}

static bool say_held(const char *directory)
{
	char path[PATH_MAX];
	snprintf(path, sizeof(path), "%s/" HELD_NAME, directory);
	cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
	return fd >= 0 && write(fd, "", 1) == 1;
}

int working_set_action(char *name)
{
	const char *action = getenv("CRTOOLS_SCRIPT_ACTION");
	if (!action || strcmp(action, "pre-resume"))
		return 0;
	const char *directory = dirname(name);
	wait_at(directory, FIFO_NAME);
	if (say_held(directory))
		wait_at(directory, GO_NAME);
	return 0;
}

int hold_open(const struct instance *instance, struct hold *hold, struct dp_err *err)
{
	char path[PATH_MAX];
	/* For both ways, so that neither end waits for the other to be opened. */
	hold->held_fd = open(instance_path(instance, HELD_NAME, path, sizeof(path)), O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (hold->held_fd >= 0)
		hold->go_fd = open(instance_path(instance, GO_NAME, path, sizeof(path)), O_RDWR | O_CLOEXEC | O_NONBLOCK);
	return hold->held_fd < 0 || hold->go_fd < 0 ? dp_fail_errno(err, errno, "open %s", path) : 0;
}

bool hold_reached(struct hold *hold)
{
	char byte;
	if (read(hold->held_fd, &byte, 1) != 1)
		return false;
	dp_close_fd(&hold->held_fd);
	hold->held_fd = -1;
	return true;
}

int hold_release(struct hold *hold)
{
	/* The descriptor stays open: closed before the byte is read, it would take the byte along. */
	return write(hold->go_fd, "", 1) == 1 ? 0 : -errno;
}
