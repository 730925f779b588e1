#include "sys/criu_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/base.h"
#include "sys/criu.h"
#include "sys/proc.h"

#define DIRECTORY_VARIABLE "DISTRI_PROC_LAUNCH"
#define CRIU_VARIABLE "DISTRI_PROC_CRIU"
#define CONFIG_VARIABLE "CRIU_CONFIG_FILE"
#define PRELOAD_VARIABLE "DISTRI_PROC_LAUNCH_PRELOAD" /* PID VARIABLE ORDERS LIBRARY */
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

int criu_launch_preload(const char *library, const char *variable, const char *orders)
{
	if (!library)
		return unsetenv(PRELOAD_VARIABLE) ? -ENOMEM : 0;
	cleanup_free char *text = format_text("%d %s %s %s", (int)getpid(), variable, orders, library);
	return !text || setenv(PRELOAD_VARIABLE, text, 1) ? -ENOMEM : 0;
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

/* One word of the orders: a descriptor of that process becomes ours, for CRIU to inherit. */
static int take_order(int pidfd, const char *word, char *text, size_t size)
{
	bool descriptor = *word == 'f' && word[1] != '-'; /* -1: there is none */
	int fd = descriptor ? proc_pidfd_getfd(pidfd, atoi(word + 1)) : -1;
	if (descriptor && fd < 0)
		return fd;
	if (descriptor)
		fcntl(fd, F_SETFD, 0);
	size_t used = strlen(text);
	const char *comma = used ? "," : "";
	int length = *word == 'f' ? snprintf(text + used, size - used, "%s%d", comma, fd) :
				    snprintf(text + used, size - used, "%s%s", comma, word);
	return length < 0 || (size_t)length >= size - used ? -E2BIG : 0;
}

static int preload(void)
{
	char variable[64], orders[128], library[PATH_MAX], text[128] = "";
	const char *given = getenv(PRELOAD_VARIABLE);
	int pid;
	if (!given)
		return 0;
	if (sscanf(given, "%d %63s %127s %4095s", &pid, variable, orders, library) != 4)
		return -EINVAL;
	cleanup_fd int pidfd = proc_pidfd_open(pid);
	int ret = pidfd < 0 ? pidfd : 0;
	char *rest = orders;
	for (char *word = strsep(&rest, ","); word && !ret; word = strsep(&rest, ","))
		ret = take_order(pidfd, word, text, sizeof(text));
	if (!ret && (setenv(variable, text, 1) || setenv("LD_PRELOAD", library, 1) || unsetenv(PRELOAD_VARIABLE)))
		ret = -ENOMEM;
	return ret;
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
	int ret = preload();
	if (ret) {
		fprintf(stderr, "distri-proc: what is preloaded into CRIU: %s\n", strerror(-ret));
		return 1;
	}
	criu_steady_preload();
	if (setenv(CONFIG_VARIABLE, place, 1) == 0)
		execv(criu, argv);
	fprintf(stderr, "distri-proc: exec %s: %s\n", criu, strerror(errno));
	return 127;
}
