#include "sys/criu.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#include "base/base.h"

#define PRIVATE_CRIU DP_CRIU_PREFIX "/criu/bin/criu"
#define RUN_TIMEOUT_NS (10 * 1000000000ull)

static bool find_in_path(char path[static 256])
{
	const char *directories = getenv("PATH");
	/* sudo and cron leave the sbin directories out, where criu is */
	cleanup_free char *all = format_text("%s:/usr/local/sbin:/usr/sbin:/sbin", directories ? directories : "/usr/bin:/bin");
	char *rest = all;
	for (char *directory; (directory = strsep(&rest, ":"));) {
		int length = snprintf(path, 256, "%s/criu", *directory ? directory : ".");
		if (length < 256 && access(path, X_OK) == 0)
			return true;
	}
	return false;
}

int criu_find(char path[static 256], struct dp_err *err)
{
	const char *chosen = getenv("DISTRI_PROC_CRIU");
	if (chosen && *chosen) {
		if (snprintf(path, 256, "%s", chosen) >= 256)
			return dp_fail(err, ENOPKG, "DISTRI_PROC_CRIU names a path longer than 255 bytes");
		if (access(path, X_OK))
			return dp_fail(err, ENOPKG, "DISTRI_PROC_CRIU=%s: %s; unset it or name a criu program", path,
				       strerror(errno));
		return 0;
	}
	if (snprintf(path, 256, "%s", PRIVATE_CRIU) < 256 && access(path, X_OK) == 0)
		return 0;
	if (find_in_path(path))
		return 0;
	path[0] = 0;
	return dp_fail(err, ENOPKG, "no CRIU found (neither %s nor in PATH): run scripts/setup-criu as root", PRIVATE_CRIU);
}

/* Reads what the program prints until it closes its output or the time is over. */
static int read_output(int fd, char *output, size_t size)
{
	uint64_t deadline = clock_now_ns() + RUN_TIMEOUT_NS;
	size_t used = 0;
	for (;;) {
		uint64_t now = clock_now_ns();
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		if (now >= deadline || poll(&ready, 1, (int)((deadline - now) / 1000000) + 1) == 0)
			return -ETIMEDOUT;
		char rest[512]; /* what no longer fits is read and dropped, so that the program can end */
		bool fits = used + 1 < size;
		ssize_t got = read(fd, fits ? output + used : rest, fits ? size - 1 - used : sizeof(rest));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		if (fits)
			used += (size_t)got;
	}
	output[used] = 0;
	return 0;
}

/* Runs a program with its stdout and stderr into `output`. Returns its exit code (128 + n if signal n ended it) or -errno. */
static int run_program(char *const argv[], char *output, size_t size)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	cleanup_fd int reader = ends[0];
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
	pid_t pid;
	int failure = posix_spawn(&pid, argv[0], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(ends[1]);
	if (failure)
		return -failure;
	int ret = read_output(reader, output, size);
	if (ret)
		kill(pid, SIGKILL);
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	if (ret)
		return ret;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int criu_version(const char *path, struct criu_version *version, struct dp_err *err)
{
	char output[4096];
	char *const argv[] = { (char *)path, "--version", NULL };
	int ret = run_program(argv, output, sizeof(output));
	if (ret < 0)
		return dp_fail_errno(err, -ret, "run %s --version", path);
	*version = (struct criu_version){ 0 };
	const char *line = strstr(output, "Version: ");
	if (!line || sscanf(line, "Version: %31s", version->text) != 1 ||
	    sscanf(version->text, "%d.%d.%d", &version->major, &version->minor, &version->sublevel) < 2)
		return dp_fail(err, EBADMSG,
			       "%s --version names no version: is it a working CRIU? Run scripts/setup-criu as root", path);
	return 0;
}

int criu_check_version(const char *path, struct criu_version *version, struct dp_err *err)
{
	struct criu_version own;
	if (!version)
		version = &own;
	int ret = criu_version(path, version, err);
	if (ret)
		return ret;
	if (version->major == 4 && version->minor == 2)
		return 0;
	return dp_fail(err, ENOPKG, "%s is CRIU %s, only " CRIU_SUPPORTED " works here (%s): run scripts/setup-criu as root",
		       path, version->text,
		       version->major < 4 || (version->major == 4 && version->minor < 2) ? "older ones write other page maps"
											 : "newer ones change the image formats");
}

int criu_check_kernel(const char *path, struct dp_err *err)
{
	char output[16384];
	char *const argv[] = { (char *)path, "check", NULL };
	int ret = run_program(argv, output, sizeof(output));
	if (ret < 0)
		return dp_fail_errno(err, -ret, "run %s check", path);
	if (ret == 0)
		return 0;
	/* The first error is the cause, the later ones are its consequences. */
	const char *cause = NULL;
	for (char *rest = output, *line; (line = strsep(&rest, "\n"));) {
		bool error = strncmp(line, "Error", 5) == 0;
		if (error || (*line && !cause))
			cause = line;
		if (error)
			break;
	}
	return dp_fail(err, EOPNOTSUPP, "%s check: %s", path, cause ? cause : "it failed without a word");
}

bool criu_steady_preload(void)
{
	static const char *const places[] = { "src/sys", "../libexec/distri-proc" };
	char program[PATH_MAX];
	const char *others = getenv("LD_PRELOAD");
	ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	program[DP_MAX(length, 0)] = 0;
	char *slash = strrchr(program, '/');
	if (!slash || strpbrk(program, " :")) /* what LD_PRELOAD takes for the end of a name */
		return false;
	*slash = 0;
	for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
		cleanup_free char *library = format_text("%s/%s/libdp-criu-steady.so", program, places[i]);
		cleanup_free char *all = library ? format_text("%s%s%s", library, others ? ":" : "", others ? others : "") : NULL;
		if (all && !access(library, R_OK))
			return !setenv("LD_PRELOAD", all, 1);
	}
	return false;
}

static void become(const char *path, const char *preload, const char *const *arguments)
{
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3; i++)
		dup2(null_fd, i);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (preload) {
		setenv("LD_PRELOAD", preload, 1);
		setenv("LD_BIND_NOW", "1", 1);
	}
	execv(path, (char *const *)arguments);
	_exit(127);
}

int criu_run_quietly(const char *path, const char *preload, const char *const *arguments)
{
	int status = -1;
	pid_t child = fork();
	if (child == 0)
		become(path, preload, arguments);
	return child > 0 && waitpid(child, &status, 0) == child ? status : -errno;
}
