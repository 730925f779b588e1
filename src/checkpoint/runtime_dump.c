#include "checkpoint/runtime_dump.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/base.h"
#include "sys/criu_launch.h"
#include "sys/proc.h"

#define HOOK "hook"
#define HOOK_SOCKET "hook.sock"

int runtime_dump_open(const struct runtime_dump *runtime, struct workspace *workspace, struct dp_err *err)
{
	int ret = workspace_open_private(workspace, err);
	if (ret)
		return ret;
	workspace->images_fd = open(runtime->images, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	workspace->work_fd = open(runtime->work, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (workspace->images_fd >= 0 && workspace->work_fd >= 0)
		return 0;
	int code = errno;
	const char *which = workspace->images_fd < 0 ? runtime->images : runtime->work;
	workspace_close(workspace);
	return dp_fail_errno(err, code, "open %s", which);
}

static int listen_at(const struct workspace *workspace, const char *name, struct dp_err *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", workspace->root_fd, name);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof(address)) && !listen(fd, 8))
		return fd;
	int code = errno;
	dp_close_fd(&fd);
	return dp_fail_errno(err, code, "listen at %s/%s", workspace->directory, name);
}

/* CRIU runs the hook in the runtime's work directory: so it goes to where our socket is. */
static int write_hook(const struct workspace *workspace, struct dp_err *err)
{
	char program[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	if (length < 0)
		return dp_fail_errno(err, errno, "find this program's own path");
	program[length] = 0;
	if (strchr(program, '\'') || strchr(workspace->directory, '\''))
		return dp_fail(err, EINVAL, "this program's path (%s) or $TMPDIR has a quote in it", program);
	cleanup_free char *script = format_text("#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-dump ] || exit 0\n"
						"cd '%s' && exec '%s' criu-hook\n", workspace->directory, program);
	cleanup_fd int fd = openat(workspace->root_fd, HOOK, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
	int ret = !script ? -ENOMEM : fd < 0 ? -errno : io_write_full(fd, script, strlen(script));
	return ret ? dp_fail_errno(err, -ret, "write CRIU's action script") : 0;
}

static int start_child(struct criu_dump *dump, const struct runtime_dump *runtime, const char *criu, const char *directory,
		       struct dp_err *err)
{
	dump->child = fork();
	if (dump->child == 0) {
		/* An interrupt at the terminal ends us; the runtime's CRIU then finds its stream closed, and thaws. */
		setpgid(0, 0);
		signal(SIGPIPE, SIG_DFL);
		if (criu_launch_environment(directory, criu) == 0)
			execvp(runtime->argv[0], runtime->argv);
		fprintf(stderr, "distri-proc: run %s: %s\n", runtime->argv[0], strerror(errno));
		_exit(127);
	}
	if (dump->child < 0)
		return dp_fail_errno(err, errno, "start %s", runtime->argv[0]);
	dump->pidfd = proc_pidfd_open(dump->child);
	return dump->pidfd < 0 ? dp_fail_errno(err, -dump->pidfd, "watch %s", runtime->argv[0]) : 0;
}

/* The runtime runs CRIU several times, and each of them connects; the one that sends is the one that dumps. Returns its
 * connection, or -ECANCELED where the runtime has ended without. */
static int accept_pages(int listen_fd, int pidfd, struct dp_err *err)
{
	cleanup_fd int fd = -1;
	for (;;) {
		struct pollfd polls[] = {
			{ .fd = fd < 0 ? listen_fd : -1, .events = POLLIN },
			{ .fd = fd, .events = POLLIN },
			{ .fd = pidfd, .events = POLLIN },
		};
		char byte;
		if (poll(polls, ARRAY_LENGTH(polls), -1) < 0) {
			if (errno != EINTR)
				return dp_fail_errno(err, errno, "wait for the container's pages");
		} else if (polls[1].revents && recv(fd, &byte, 1, MSG_PEEK) == 1) {
			int found = fd;
			fd = -1;
			return found;
		} else if (polls[1].revents) {
			close(fd);
			fd = -1;
		} else if (polls[0].revents) {
			fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
		} else {
			return dp_fail(err, ECANCELED, "the runtime ended before CRIU sent a page");
		}
	}
}

int runtime_dump_start(struct criu_dump *dump, const struct runtime_dump *runtime, const char *criu,
		       const struct workspace *workspace, struct dp_err *err)
{
	*dump = (struct criu_dump){ .child = -1, .pidfd = -1, .pages_fd = -1, .hook_listen_fd = -1, .hook_fd = -1 };
	cleanup_fd int pages_fd = listen_at(workspace, CRIU_LAUNCH_PAGES, err);
	int ret = pages_fd < 0 ? pages_fd : write_hook(workspace, err);
	if (!ret) {
		cleanup_free char *options = format_text("action-script %s/" HOOK "\n%s", workspace->directory,
							 runtime->criu_options ? runtime->criu_options : "");
		ret = options ? criu_launch_prepare(workspace->directory, options, err) : dp_fail(err, ENOMEM, "out of memory");
	}
	if (!ret)
		ret = dump->hook_listen_fd = listen_at(workspace, HOOK_SOCKET, err);
	if (ret >= 0)
		ret = start_child(dump, runtime, criu, workspace->directory, err);
	if (!ret)
		ret = dump->pages_fd = accept_pages(pages_fd, dump->pidfd, err);
	if (ret < 0)
		criu_dump_wait(dump);
	return ret < 0 ? ret : 0;
}
