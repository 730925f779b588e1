#include "client/captive.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/base.h"

#define RETRY_NS 10000000

static const char *program = "/proc/self/exe";

void captive_set_program(const char *path)
{
	program = path;
}

int captive_socket_path(const struct endpoint *endpoint, char *path, unsigned size)
{
	const char *suffix = endpoint->kind == ENDPOINT_DIR ? "/.pool.sock" : ".pool.sock";
	int length = snprintf(path, size, "%s%s", endpoint->path, suffix);

	if (length > 0 && (unsigned)length < size && (size_t)length < sizeof(((struct sockaddr_un *)0)->sun_path))
		return 0;
	/* Both sides must find the same name: the path's hash is one. */
	mkdir("/run/distri-proc", 0700);
	mkdir("/run/distri-proc/pools", 0700);
	XXH128_hash_t hash = XXH3_128bits(endpoint->path, strlen(endpoint->path));

	length = snprintf(path, size, "/run/distri-proc/pools/%016" PRIx64 "%016" PRIx64 ".sock", (uint64_t)hash.high64,
			  (uint64_t)hash.low64);
	return length > 0 && (unsigned)length < size ? 0 : -ENAMETOOLONG;
}

/* Between fork and exec: only calls that are safe there. */
static void run_server(const char *store, bool create, int ready_fd)
{
	const char *const arguments[] = { "distri-proc", "pool", "serve", "--captive", "--store", store, "--ready-fd", "3",
					  create ? "--create" : NULL, NULL };
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	/* A second fork: the server is nobody's child, so nobody has to wait for it. */
	if (fork() != 0)
		_exit(0);
	if (ready_fd == 3)
		fcntl(3, F_SETFD, 0);
	else
		dup2(ready_fd, 3);
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null_fd >= 0) {
		dup2(null_fd, 0);
		dup2(null_fd, 1);
		dup2(null_fd, 2);
	}
	/* Nothing else of the starter's goes along: a forgotten pipe would keep its reader waiting. */
	syscall(SYS_close_range, 4u, ~0u, 0u);
	if (chdir("/") == 0)
		execv(program, (char *const *)arguments);
	dprintf(3, "error %d start %s: %s\n", errno, program, strerror(errno));
	_exit(127);
}

/* Reads the server's one line: "ready", or "error ERRNO TEXT". */
static int read_verdict(int fd, uint64_t deadline_ns, struct dp_err *err)
{
	char line[1200];
	size_t used = 0;

	for (;;) {
		uint64_t now = clock_now_ns();
		struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

		if (now >= deadline_ns)
			return dp_fail(err, ETIMEDOUT, "the pool's server did not start in time");
		if (poll(&poll_fd, 1, (int)((deadline_ns - now) / 1000000 + 1)) <= 0)
			continue;
		ssize_t got = read(fd, line + used, sizeof(line) - 1 - used);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		used += (size_t)got;
		line[used] = 0;
		if (strchr(line, '\n') || used == sizeof(line) - 1)
			break;
	}
	line[used] = 0;
	line[strcspn(line, "\n")] = 0;
	int code = 0, at = 0;

	if (strcmp(line, "ready") == 0)
		return 0;
	if (sscanf(line, "error %d %n", &code, &at) == 1 && at > 0 && code > 0)
		return dp_fail(err, code, "%s", line + at);
	return dp_fail(err, EIO, "the pool's server ended before it was ready");
}

static int start(const struct endpoint *endpoint, bool create, uint64_t deadline_ns, struct dp_err *err)
{
	char store[1200];
	int pipe_fds[2];

	endpoint_pool_text(endpoint, store, sizeof(store));
	if (endpoint->compress[0])
		snprintf(store + strlen(store), sizeof(store) - strlen(store), "?compress=%s", endpoint->compress);
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return dp_fail_errno(err, errno, "pipe");
	cleanup_fd int read_fd = pipe_fds[0];
	pid_t child = fork();

	if (child == 0)
		run_server(store, create, pipe_fds[1]);
	close(pipe_fds[1]);
	if (child < 0)
		return dp_fail_errno(err, errno, "start the pool's server");
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	return read_verdict(read_fd, deadline_ns, err);
}

int captive_connect(struct stream **stream, const struct endpoint *endpoint, bool create, uint64_t deadline_ns,
		    struct dp_err *err)
{
	char path[1200], text[1100];
	struct stat status;
	int result = captive_socket_path(endpoint, path, sizeof(path));

	endpoint_pool_text(endpoint, text, sizeof(text));
	if (result < 0)
		return dp_fail_errno(err, -result, "open pool %s", text);
	for (;;) {
		result = stream_connect_unix(stream, path, err);
		if ((result != -ENOENT && result != -ECONNREFUSED) || !program)
			return result;
		if (!create && stat(endpoint->path, &status) < 0)
			return dp_fail(err, errno, "there is no pool at %s", text);
		result = start(endpoint, create, deadline_ns, err);
		/* In use: another was quicker to start it, or the last one is just leaving. */
		if (result < 0 && (result != -EBUSY || clock_now_ns() >= deadline_ns))
			return result;
		if (result < 0)
			nanosleep(&(struct timespec){ .tv_nsec = RETRY_NS }, NULL);
	}
}
