/* protect: one incremental checkpoint of a running instance, or of a plain process, after the other; the newest ones are kept. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/commit_line.h"
#include "instance/process.h"

static const char usage[] =
	"Usage: distri-proc protect INSTANCE [--every 60s] [--keep 10] [--to NAME]\n"
	"       distri-proc protect --pid N --to POOL/REPO [--every 60s] [--keep 10]\n"
	"       distri-proc protect --stop INSTANCE\n"
	"\n"
	"Stays in the foreground and stores the state of a running instance each interval, as `restore --latest NAME` goes on from.\n"
	"Only changed pages travel. A state that cannot be stored harms neither the process nor the newest complete one.\n"
	"Ends when the instance ends, at SIGINT or SIGTERM, or by --stop.\n"
	"\n"
	"  --every TIME       from one state to the next (default 60s)\n"
	"  --keep N           newest states that stay in the pool (default 10)\n"
	"  --to NAME          what the states are called: NAME:TIME (default protected/INSTANCE/...)\n"
	"  --pid N            a process that is no instance; then --to names the pool too, such as dir:/var/lib/pool#redis-safe\n"
	"  --stop             end a protect of this instance that runs elsewhere, and wait for its end\n"
	"  --rate RATE        push at most RATE bytes a second ahead of each state, such as 100M (default: no limit)\n"
	"  --criu-option=OPT  a further option for `criu dump`; those that the snapshot was made with are used anyway\n"
	"  --json             one object for each state\n"
	"  --root DIRECTORY   registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n"
	"  -v, --verbose      a detailed log of CRIU, if it fails\n";

enum { OPTION_TO = COMMIT_OWN_OPTIONS, OPTION_PID, OPTION_STOP };

static const struct option options[] = {
	COMMIT_OPTIONS,
	{ "to", required_argument, NULL, OPTION_TO },
	{ "pid", required_argument, NULL, OPTION_PID },
	{ "stop", no_argument, NULL, OPTION_STOP },
	{ 0 },
};

#define STOP_WAIT_MS 60000 /* a commit under way is brought to its end */

struct settings {
	struct commit_settings common;
	bool stop;
};

static int read_pid(const char *command, const char *text, pid_t *pid)
{
	char *end;
	long number = strtol(text, &end, 10);
	if (end == text || *end || number <= 0 || number > 1 << 22)
		return cli_usage_error(command, "--pid wants the number of a process, not '%s'", text);
	*pid = (pid_t)number;
	return 0;
}

static int read_option(struct settings *settings, char **argv, int option)
{
	struct commit_options *commit = &settings->common.commit;
	switch (option) {
	case OPTION_TO: commit->to = optarg; return 0;
	case OPTION_PID: return read_pid(argv[0], optarg, &commit->pid);
	case OPTION_STOP: settings->stop = true; return 0;
	default: return commit_line_option(&settings->common, argv[0], option);
	}
}

static int read_options(struct settings *settings, int argc, char **argv)
{
	int code = 0;
	for (int option; !code && !settings->common.help && (option = getopt_long(argc, argv, "vh", options, NULL)) != -1;)
		code = read_option(settings, argv, option);
	if (code || settings->common.help)
		return code;
	if (settings->common.commit.pid ? optind != argc : argc - optind != 1)
		return cli_usage_error(argv[0], "which instance? Give one, or --pid N; `distri-proc ps` lists them");
	settings->common.commit.instance = settings->common.commit.pid ? NULL : argv[optind];
	return 0;
}

/* A lock that the running protect holds, with its pid in it: two of one instance would remove each other's states. */
static const char *mark_path(const struct settings *settings, const char *id, char *path, size_t size)
{
	char file[INSTANCE_ID_BYTES + 16];
	snprintf(file, sizeof(file), "%s.protect", id);
	return commits_path(settings->common.commit.registry, file, path, size);
}

/* Who holds the lock; 0: nobody. */
static pid_t mark_holder(const char *path)
{
	cleanup_free char *text = NULL;
	cleanup_fd int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || !flock(fd, LOCK_EX | LOCK_NB) || io_read_file(path, &text, 64) < 0)
		return 0;
	return (pid_t)strtol(text, NULL, 10);
}

static int mark(const struct settings *settings, const char *id, int *fd, struct dp_err *err)
{
	char path[PATH_MAX], text[32];
	*fd = open(mark_path(settings, id, path, sizeof(path)), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (*fd < 0)
		return dp_fail_errno(err, errno, "open %s", path);
	if (flock(*fd, LOCK_EX | LOCK_NB))
		return dp_fail(err, EBUSY, "%s is protected already, by process %d: `distri-proc protect --stop %s` ends that",
			       id, (int)mark_holder(path), id);
	int length = snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(*fd, 0) || pwrite(*fd, text, (size_t)length, 0) != length)
		return dp_fail_errno(err, errno, "write %s", path);
	return 0;
}

static int stop_other(const struct settings *settings, struct dp_err *err)
{
	char path[PATH_MAX], id[INSTANCE_ID_BYTES];
	struct instance instance;
	if (settings->common.commit.pid)
		snprintf(id, sizeof(id), "pid-%d", (int)settings->common.commit.pid);
	else if (!instance_find(settings->common.commit.registry, settings->common.commit.instance, &instance, err))
		snprintf(id, sizeof(id), "%s", instance.id);
	else
		return -ENOENT;
	pid_t pid = mark_holder(mark_path(settings, id, path, sizeof(path)));
	cleanup_fd int pidfd = pid > 0 ? pidfd_open(pid, 0) : -1;
	if (pidfd < 0 || mark_holder(path) != pid)
		return dp_fail(err, ENOENT, "nobody protects %s", id);
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };
	if (pidfd_send_signal(pidfd, SIGTERM, NULL, 0))
		return dp_fail_errno(err, errno, "stop process %d", (int)pid);
	if (poll(&ended, 1, STOP_WAIT_MS) <= 0)
		return dp_fail(err, ETIMEDOUT, "process %d does not end", (int)pid);
	return 0;
}

static int run(struct settings *settings, struct dp_err *err)
{
	struct committer *committer;
	cleanup_fd int mark_fd = -1;
	char path[PATH_MAX];
	int ret = commit_open(&committer, &settings->common.commit, err);
	if (ret)
		return ret;
	char id[INSTANCE_ID_BYTES];
	snprintf(id, sizeof(id), "%s", commit_last(committer)->id);
	ret = mark(settings, id, &mark_fd, err);
	if (!ret) {
		commit_line_loop(&settings->common.line, committer, settings->common.commit.interval_ns);
		unlink(mark_path(settings, id, path, sizeof(path)));
	}
	commit_close(committer);
	return ret;
}

int cmd_protect(int argc, char **argv)
{
	struct settings settings = {
		.common.commit = { .registry = instance_root(NULL), .keep = 10, .interval_ns = 60000000000u, .protect = true },
		.common.line.verb = "protected",
	};
	struct dp_err err = { "" };
	settings.common.commit.criu_arguments = settings.common.criu_arguments;
	int code = read_options(&settings, argc, argv);
	if (settings.common.help && !code)
		return fputs(usage, stdout), EXIT_OK;
	if (code)
		return code;
	int ret = settings.stop ? stop_other(&settings, &err) : run(&settings, &err);
	return ret ? cli_print_error(ret, &err, settings.common.line.json) : EXIT_OK;
}
