#include "checkpoint/criu_dump.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/base.h"
#include "checkpoint/hidden.h"
#include "sys/criu.h"
#include "sys/proc.h"

#define FIXED_ARGUMENTS 24
#define HOOK_SCRIPT "./hook"
#define HOOK_SOCKET "hook.sock"
#define STREAM_BUFFER_BYTES (4 << 20)

/* ---- where to dump from ---- */

static int innermost_pid(pid_t pid)
{
	char path[64];
	cleanup_free char *status = NULL;
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (io_read_file(path, &status, 65536) < 0)
		return -ESRCH;
	char *line = strstr(status, "\nNSpid:");
	char *end = line ? strchr(line + 1, '\n') : NULL;
	if (!end)
		return -ESRCH;
	*end = 0;
	char *last = strrchr(line, '\t');
	return last ? atoi(last + 1) : -ESRCH;
}

int criu_dump_target(pid_t pid, struct criu_target *target, struct dp_err *err)
{
	char path[64];
	struct stat own, its;
	snprintf(path, sizeof(path), "/proc/%d/ns/pid", pid);
	if (stat("/proc/self/ns/pid", &own) < 0 || stat(path, &its) < 0)
		return dp_fail_errno(err, errno, "look at the PID namespace of process %d", pid);
	*target = (struct criu_target){.pid = pid};
	if (own.st_ino == its.st_ino && own.st_dev == its.st_dev)
		return 0;
	int inner = innermost_pid(pid);
	if (inner <= 0)
		return dp_fail(err, ESRCH, "process %d is gone", pid);
	if (inner != 1) /* a container's first process is dumped from outside, its namespaces with it */
		*target = (struct criu_target){.pid = inner, .entering = true};
	return 0;
}

/* ---- the command ---- */

struct command {
	char *argv[FIXED_ARGUMENTS + 256];
	char texts[6][320]; /* made arguments */
	size_t count, texts_used;
};

static void add_path(struct command *command, const char *option, const char *base, const char *name)
{
	char *slot = command->texts[command->texts_used++];
	snprintf(slot, sizeof(command->texts[0]), "%s/%s", base, name);
	command->argv[command->count++] = (char *)(uintptr_t)option;
	command->argv[command->count++] = slot;
}

static void add_number(struct command *command, const char *option, int number)
{
	char *slot = command->texts[command->texts_used++];
	snprintf(slot, sizeof(command->texts[0]), "%d", number);
	command->argv[command->count++] = (char *)(uintptr_t)option;
	command->argv[command->count++] = slot;
}

static void add(struct command *command, const char *argument)
{
	command->argv[command->count++] = (char *)(uintptr_t)argument;
}

static int make_command(struct command *command, const struct criu_dump_options *options, pid_t pid,
			const struct workspace *workspace, int page_fd, struct dp_err *err)
{
	if (options->argument_count > ARRAY_LENGTH(command->argv) - FIXED_ARGUMENTS)
		return dp_fail(err, E2BIG, "too many options for CRIU");
	*command = (struct command){0};
	add(command, options->criu);
	add(command, "dump");
	add(command, "--no-default-config"); /* a lazy-pages left in there would hang the dump */
	add_number(command, "--tree", pid);
	add_path(command, "--images-dir", workspace->path, "images");
	add_path(command, "--work-dir", workspace->path, "work");
	add(command, "--page-server");
	add_number(command, "--ps-socket", page_fd);
	add(command, "--action-script");
	add(command, HOOK_SCRIPT);
	add(command, "--log-file");
	add(command, CRIU_DUMP_LOG);
	add(command, options->verbose ? "-v4" : "-v2");
	if (options->leave_running)
		add(command, "--leave-running");
	for (size_t i = 0; i < options->argument_count; i++)
		command->argv[command->count++] = options->arguments[i];
	return 0;
}

/* An action script is one path without arguments; hence a script, beside the images, so that it is there in every namespace. */
static int write_hook(const struct workspace *workspace, struct dp_err *err)
{
	char program[1024];
	ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	if (length < 0)
		return dp_fail_errno(err, errno, "find this program's own path");
	program[length] = 0;
	cleanup_free char *script = format_text("#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-dump ] || exit 0\n"
						   "exec '%s' criu-hook\n", program); /* other steps ask nothing */
	if (!script || strchr(program, '\''))
		return dp_fail(err, EINVAL, "this program's path (%s) has a quote in it", program);
	cleanup_fd int fd = openat(workspace->work_fd, HOOK_SCRIPT, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
	int rc = fd < 0 ? -errno : io_write_full(fd, script, strlen(script));
	return rc < 0 ? dp_fail_errno(err, -rc, "write CRIU's action script") : 0;
}

static int listen_for_hook(const struct workspace *workspace, struct dp_err *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int used = snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/" HOOK_SOCKET, workspace->work_fd);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || used >= (int)sizeof(address.sun_path) || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(fd, 4) < 0) {
		int code = errno;
		dp_close_fd(&fd);
		return dp_fail_errno(err, code, "listen for CRIU's action script");
	}
	return fd;
}

/* ---- the process ---- */

static void run_criu(char *const *argv, const struct hidden *hidden, int page_fd, int workspace_fd)
{
	criu_steady_preload();
	if (hidden && hidden_environment(hidden))
		_exit(127);
	fcntl(page_fd, F_SETFD, 0);
	fcntl(workspace_fd, F_SETFD, 0);
	signal(SIGPIPE, SIG_IGN); /* a closed page stream is an error for criu, not its end */
	int null = open("/dev/null", O_RDWR);
	if (null >= 0) {
		dup2(null, 0);
		dup2(null, 1);
		dup2(null, 2);
	}
	execv(argv[0], argv);
	_exit(127);
}

static int exit_code(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* setns(CLONE_NEWPID) holds for children only: criu is our child's child then. */
static void run_inside(int target_pidfd, char *const *argv, const struct hidden *hidden, int page_fd, int workspace_fd)
{
	if (setns(target_pidfd, CLONE_NEWPID | CLONE_NEWNS) < 0)
		_exit(126);
	pid_t child = fork();
	if (child == 0)
		run_criu(argv, hidden, page_fd, workspace_fd);
	/* The stream must end with criu, and for criu with us: whoever holds its other end, or those of the pool and the pager,
	 * keeps criu waiting in a full stream and the tree frozen. Nothing of it is needed here. */
	close_range(STDERR_FILENO + 1, ~0u, 0);
	int status = 127 << 8;
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	_exit(child < 0 ? 126 : exit_code(status));
}

static int open_stream(struct criu_dump *dump, int *page_fd, struct dp_err *err)
{
	int pair[2], size = STREAM_BUFFER_BYTES;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return dp_fail_errno(err, errno, "make the page stream");
	/* a larger buffer lets criu fill the next pipe while we store; without it, it works too */
	if (setsockopt(pair[1], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
		setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	dump->pages_fd = pair[0];
	*page_fd = pair[1];
	return 0;
}

static void close_all(struct criu_dump *dump)
{
	dp_close_fd(&dump->pages_fd);
	dp_close_fd(&dump->hook_listen_fd);
	dp_close_fd(&dump->hook_fd);
	dp_close_fd(&dump->pidfd);
	dump->pages_fd = dump->hook_listen_fd = dump->hook_fd = dump->pidfd = -1;
}

static int start_child(struct criu_dump *dump, char *const *argv, const struct hidden *hidden, int page_fd, int workspace_fd,
		       int target_pidfd, struct dp_err *err)
{
	dump->child = fork();
	if (dump->child == 0) {
		setpgid(0, 0);
		if (target_pidfd >= 0)
			run_inside(target_pidfd, argv, hidden, page_fd, workspace_fd);
		run_criu(argv, hidden, page_fd, workspace_fd);
	}
	if (dump->child < 0)
		return dp_fail_errno(err, errno, "start criu");
	dump->pidfd = proc_pidfd_open(dump->child);
	return dump->pidfd < 0 ? dp_fail_errno(err, -dump->pidfd, "watch criu") : 0;
}

int criu_dump_start(struct criu_dump *dump, const struct criu_dump_options *options, const struct workspace *workspace,
		    struct dp_err *err)
{
	struct command command;
	struct criu_target target;
	cleanup_fd int page_fd = -1;
	cleanup_fd int target_pidfd = -1;
	*dump = (struct criu_dump){.child = -1, .pidfd = -1, .pages_fd = -1, .hook_listen_fd = -1, .hook_fd = -1};
	int rc = criu_dump_target(options->pid, &target, err);
	if (rc == 0 && target.entering) {
		target_pidfd = proc_pidfd_open(options->pid);
		rc = target_pidfd < 0 ? dp_fail_errno(err, -target_pidfd, "open process %d", options->pid) : 0;
	}
	if (rc == 0)
		rc = open_stream(dump, &page_fd, err);
	if (rc == 0)
		rc = make_command(&command, options, target.pid, workspace, page_fd, err);
	if (rc == 0)
		rc = write_hook(workspace, err);
	if (rc == 0)
		rc = dump->hook_listen_fd = listen_for_hook(workspace, err);
	if (rc >= 0)
		rc = start_child(dump, command.argv, options->hidden, page_fd, workspace->root_fd, target_pidfd, err);
	if (rc < 0)
		close_all(dump);
	return rc < 0 ? rc : 0;
}

int criu_dump_wait_hook(struct criu_dump *dump, struct dp_err *err)
{
	struct pollfd fds[2] = {{.fd = dump->hook_listen_fd, .events = POLLIN}, {.fd = dump->pidfd, .events = POLLIN}};
	while (poll(fds, 2, -1) < 0)
		if (errno != EINTR)
			return dp_fail_errno(err, errno, "wait for criu");
	if (!(fds[0].revents & POLLIN))
		return 0;
	dump->hook_fd = accept4(dump->hook_listen_fd, NULL, NULL, SOCK_CLOEXEC);
	return dump->hook_fd < 0 ? dp_fail_errno(err, errno, "accept CRIU's action script") : 1;
}

int criu_dump_answer(struct criu_dump *dump, bool good, struct dp_err *err)
{
	int rc = io_write_full(dump->hook_fd, good ? "y" : "n", 1);
	dp_close_fd(&dump->hook_fd);
	dump->hook_fd = -1;
	return rc < 0 ? dp_fail_errno(err, -rc, "answer CRIU's action script") : 0;
}

int criu_dump_wait(struct criu_dump *dump)
{
	if (dump->child < 0)
		return 127;
	pid_t child = dump->child;
	int status;
	close_all(dump);
	dump->child = -1;
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return 127;
	return exit_code(status);
}

/* ---- its log ---- */

/* Lines that say no more than that it went wrong, or that are no reason (a limit it could not raise). */
static bool says_nothing(const char *text)
{
	static const char *const phrases[] = { "Dumping FAILED", "rlimit:",	    "failed with -",   "action scripts failed",
					       "exited with",	 "exited, status=", "Can't dump file", "dump failed" };
	for (size_t i = 0; i < ARRAY_LENGTH(phrases); i++)
		if (strstr(text, phrases[i]))
			return true;
	return false;
}

bool criu_dump_last_error(char *log, char *text, size_t size)
{
	char *rest = log, *line;
	const char *last = NULL, *last_empty = NULL;
	while ((line = strsep(&rest, "\n"))) {
		char *mark = strstr(line, "Error (");
		if (!mark)
			continue;
		char *says = strstr(mark, "): "); /* behind file and line */
		says = says ? says + 3 : mark;
		if (says_nothing(says))
			last_empty = says;
		else
			last = says;
	}
	if (!last)
		last = last_empty;
	if (last)
		snprintf(text, size, "%s", last);
	return last;
}

bool criu_dump_reason(const struct workspace *workspace, char *text, size_t size)
{
	cleanup_free char *log = NULL;
	return io_read_file_at(workspace->work_fd, CRIU_DUMP_LOG, &log, (size_t)256 << 20) >= 0 &&
	       criu_dump_last_error(log, text, size);
}

/* ---- the hook ---- */

int criu_dump_hook(void)
{
	const char *step = getenv("CRTOOLS_SCRIPT_ACTION");
	if (!step)
		return 2;
	if (strcmp(step, "post-dump") != 0)
		return 0;
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = HOOK_SOCKET};
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return 1;
	char answer = 0;
	return io_read_full(fd, &answer, 1) == 0 && answer == 'y' ? 0 : 1;
}
