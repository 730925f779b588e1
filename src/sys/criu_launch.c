#include "sys/criu_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/base.h"
#include "sys/criu.h"

#define DIRECTORY_VARIABLE "DISTRI_PROC_LAUNCH"
#define CRIU_VARIABLE "DISTRI_PROC_CRIU"
#define CONFIG_VARIABLE "CRIU_CONFIG_FILE"
#define CONFIG_FILE "criu.conf"
#define CONFIG_LIMIT 65536

int criu_launch_prepare(const char *directory, const char *options, struct dp_err *err)
{
	char program[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	cleanup_free char *link = format_text("%s/criu", directory);
	cleanup_free char *file = format_text("%s/" CONFIG_FILE, directory);
	if (!link || !file)
		return dp_fail(err, ENOMEM, "out of memory");
	if (length < 0)
		return dp_fail_errno(err, errno, "read /proc/self/exe");
	program[length] = 0;
	if (symlink(program, link))
		return dp_fail_errno(err, errno, "make %s", link);
	int ret = io_write_file(file, options, strlen(options), 0600);
	return ret ? dp_fail_errno(err, -ret, "write %s", file) : 0;
}

int criu_launch_environment(const char *directory, const char *criu_path)
{
	const char *path = getenv("PATH");
	const char *usual = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";
	cleanup_free char *longer = format_text("%s:%s", directory, path && *path ? path : usual);
	if (!longer || setenv("PATH", longer, 1) || setenv(DIRECTORY_VARIABLE, directory, 1) ||
	    setenv(CRIU_VARIABLE, criu_path, 1))
		return -ENOMEM;
	return 0;
}

bool criu_launch_is(const char *name)
{
	const char *base = strrchr(name, '/');
	return !strcmp(base ? base + 1 : name, "criu") && getenv(DIRECTORY_VARIABLE) && getenv(CRIU_VARIABLE);
}

/* The page server's end, without CLOEXEC; -ENOENT where none is waited for. */
static int connect_pages(const char *directory)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	cleanup_free char *path = format_text("%s/" CRIU_LAUNCH_PAGES, directory);
	cleanup_fd int directory_fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (!path || directory_fd < 0)
		return -ENOENT;
	/* by way of a descriptor: a socket's address is shorter than a path may be */
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/" CRIU_LAUNCH_PAGES, directory_fd);
	if (access(path, F_OK))
		return -ENOENT;
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	int code = errno;
	dp_close_fd(&fd);
	return -code;
}

/* What the user's own file says comes first. */
static int write_options(const char *directory, int pages_fd)
{
	cleanup_free char *path = format_text("%s/" CONFIG_FILE, directory);
	cleanup_free char *ours = NULL, *users = NULL;
	const char *before = getenv(CONFIG_VARIABLE);
	if (!path || io_read_file(path, &ours, CONFIG_LIMIT) < 0)
		return -ENOENT;
	if (before && *before && io_read_file(before, &users, CONFIG_LIMIT) < 0)
		return -EINVAL;
	cleanup_free char *stream = pages_fd >= 0 ? format_text("page-server\nps-socket %d\n", pages_fd) : strdup("");
	cleanup_free char *text = stream ? format_text("%s\n%s\n%s", users ? users : "", ours, stream) : NULL;
	int fd = text ? memfd_create("criu.conf", 0) : -1;
	return fd < 0 ? -errno : io_write_full(fd, text, strlen(text)) ? -EIO : fd;
}

int criu_launch_main(int argc, char **argv)
{
	const char *directory = getenv(DIRECTORY_VARIABLE), *criu = getenv(CRIU_VARIABLE);
	char place[64];
	int pages_fd = connect_pages(directory);
	int config_fd = pages_fd < 0 && pages_fd != -ENOENT ? pages_fd : write_options(directory, pages_fd);
	if (config_fd < 0) {
		fprintf(stderr, "distri-proc: set up CRIU for a container: %s\n", strerror(-config_fd));
		return 1;
	}
	snprintf(place, sizeof(place), "/proc/self/fd/%d", config_fd);
	criu_steady_preload();
	if (setenv(CONFIG_VARIABLE, place, 1) == 0)
		execv(criu, argv);
	fprintf(stderr, "distri-proc: exec %s: %s\n", criu, strerror(errno));
	return 127;
}
