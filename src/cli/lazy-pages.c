/* lazy-pages: in the place of `criu lazy-pages`, with its options, for any tool that starts that.
 *
 * Two processes: the one the caller knows is the keeper. It holds a duplicate of every userfaultfd, and of the connection to the
 * page server, and waits for the other, the pager. So when the pager dies, or is told to, first the restored tree is killed,
 * then the connection is reset and the source's tasks go on: nobody reads zeros, and no two copies of the tree run. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/base.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "instance/keeper.h"
#include "pager/pager.h"
#include "pager/source_criu.h"
#include "pager/source_images.h"
#include "sys/proc.h"
#include "sys/uffd_abi.h"

#define SOCKET_NAME "lazy-pages.socket"
#define CONNECT_TIMEOUT_MS 10000
#define DEAD_WITHIN_MS 5000

static const char usage[] =
	"Usage: distri-proc lazy-pages --images-dir DIRECTORY [options]\n"
	"\n"
	"Does what `criu lazy-pages` does, for `criu restore --lazy-pages`: takes the restored tasks' page faults over and brings\n"
	"their memory, from the images or from a page server. Ends with 0 when every task has all its memory or has ended.\n"
	"\n"
	"  -D, --images-dir DIRECTORY  the checkpoint (default: the current directory)\n"
	"  -W, --work-dir DIRECTORY    where lazy-pages.socket, the log and the pidfile are (default: the images directory)\n"
	"      --page-server           the pages come from `criu dump --lazy-pages` or `criu page-server --lazy-pages`\n"
	"      --address HOST          the page server's (default 127.0.0.1)\n"
	"      --port PORT             the page server's\n"
	"      --ps-socket FD          an open connection to the page server instead\n"
	"      --status-fd FD          gets one zero byte when the socket listens, and is closed\n"
	"  -o, --log-file FILE         default: standard error\n"
	"  -v[N], --verbosity[=N]      0 and 1 errors, 2 warnings (default), 3 what happens, 4 everything\n"
	"  -d, --daemon                go to the background when the socket listens\n"
	"      --pidfile FILE          where the daemon's pid is written\n"
	"\n"
	"CRIU's other options are accepted and mean nothing here, except --tls*, which is refused.\n";

struct lazy {
	const char *command;
	const char *images_option, *work_option, *log_file, *pidfile, *address;
	char images[PATH_MAX];
	int images_fd, listen_fd, status_fd, connection_fd;
	unsigned port, verbosity;
	bool page_server, daemon;
};

enum {
	OPTION_PAGE_SERVER = 256,
	OPTION_ADDRESS,
	OPTION_PORT,
	OPTION_PS_SOCKET,
	OPTION_STATUS_FD,
	OPTION_PIDFILE,
	OPTION_TLS,
	OPTION_IGNORED
};

/* CRIU's options that have nothing to do with this command; tools pass one set to all of CRIU's. */
static const struct option options[] = {
	{ "images-dir", required_argument, NULL, 'D' },
	{ "work-dir", required_argument, NULL, 'W' },
	{ "log-file", required_argument, NULL, 'o' },
	{ "verbosity", optional_argument, NULL, 'v' },
	{ "daemon", no_argument, NULL, 'd' },
	{ "help", no_argument, NULL, 'h' },
	{ "page-server", no_argument, NULL, OPTION_PAGE_SERVER },
	{ "address", required_argument, NULL, OPTION_ADDRESS },
	{ "port", required_argument, NULL, OPTION_PORT },
	{ "ps-socket", required_argument, NULL, OPTION_PS_SOCKET },
	{ "status-fd", required_argument, NULL, OPTION_STATUS_FD },
	{ "pidfile", required_argument, NULL, OPTION_PIDFILE },
	{ "tls", no_argument, NULL, OPTION_TLS },
	{ "tls-cacert", required_argument, NULL, OPTION_TLS },
	{ "tls-cacrl", required_argument, NULL, OPTION_TLS },
	{ "tls-cert", required_argument, NULL, OPTION_TLS },
	{ "tls-key", required_argument, NULL, OPTION_TLS },
	{ "tls-no-cn-verify", no_argument, NULL, OPTION_TLS },
	{ "no-default-config", no_argument, NULL, OPTION_IGNORED },
	{ "config", required_argument, NULL, OPTION_IGNORED },
	{ "lazy-pages", no_argument, NULL, OPTION_IGNORED },
	{ "auto-dedup", no_argument, NULL, OPTION_IGNORED },
	{ "log-pid", no_argument, NULL, OPTION_IGNORED },
	{ "display-stats", no_argument, NULL, OPTION_IGNORED },
	{ "shell-job", no_argument, NULL, OPTION_IGNORED },
	{ "tcp-established", no_argument, NULL, OPTION_IGNORED },
	{ "tcp-close", no_argument, NULL, OPTION_IGNORED },
	{ "ext-unix-sk", optional_argument, NULL, OPTION_IGNORED },
	{ "file-locks", no_argument, NULL, OPTION_IGNORED },
	{ "link-remap", no_argument, NULL, OPTION_IGNORED },
	{ "evasive-devices", no_argument, NULL, OPTION_IGNORED },
	{ "manage-cgroups", optional_argument, NULL, OPTION_IGNORED },
	{ "network-lock", required_argument, NULL, OPTION_IGNORED },
	{ "unprivileged", no_argument, NULL, OPTION_IGNORED },
	{ "restore-detached", no_argument, NULL, OPTION_IGNORED },
	{ "libdir", required_argument, NULL, OPTION_IGNORED },
	{ 0 },
};

static int parse_number(const char *text, unsigned limit, unsigned *number)
{
	char *end;
	errno = 0;
	unsigned long value = strtoul(text, &end, 10);
	if (errno || end == text || *end || value > limit || *text == '-')
		return -EINVAL;
	*number = (unsigned)value;
	return 0;
}

/* -v, -v4, -vvv, --verbosity, --verbosity=4 */
static int parse_verbosity(struct lazy *lazy, const char *text)
{
	if (!text) {
		lazy->verbosity++;
		return 0;
	}
	if (strspn(text, "v") == strlen(text)) {
		lazy->verbosity += 1 + (unsigned)strlen(text);
		return 0;
	}
	return parse_number(text, 9, &lazy->verbosity);
}

static int parse_fd(const char *text, int *fd)
{
	unsigned number;
	if (parse_number(text, 1u << 20, &number) || fcntl((int)number, F_SETFD, FD_CLOEXEC) < 0)
		return -EINVAL;
	*fd = (int)number;
	return 0;
}

/* 0, or -1 with the exit code in *code. */
static int parse_option(struct lazy *lazy, int option, const char *name, int *code)
{
	int ret = 0;
	switch (option) {
	case 'D': lazy->images_option = optarg; break;
	case 'W': lazy->work_option = optarg; break;
	case 'o': lazy->log_file = optarg; break;
	case 'v': ret = parse_verbosity(lazy, optarg); break;
	case 'd': lazy->daemon = true; break;
	case OPTION_PAGE_SERVER: lazy->page_server = true; break;
	case OPTION_ADDRESS: lazy->address = optarg; break;
	case OPTION_PORT: ret = parse_number(optarg, 65535, &lazy->port); break;
	case OPTION_PS_SOCKET:
		ret = parse_fd(optarg, &lazy->connection_fd);
		lazy->page_server = true;
		break;
	case OPTION_STATUS_FD: ret = parse_fd(optarg, &lazy->status_fd); break;
	case OPTION_PIDFILE: lazy->pidfile = optarg; break;
	case OPTION_TLS:
		*code = cli_usage_error(lazy->command, "--%s: TLS to a page server is not there yet; use a tunnel", name);
		return -1;
	case OPTION_IGNORED:
	case 'j':
		break;
	case 'h':
		fputs(usage, stdout);
		*code = EXIT_OK;
		return -1;
	default:
		*code = cli_usage_hint(lazy->command);
		return -1;
	}
	if (ret)
		*code = cli_usage_error(lazy->command, "--%s %s is no number that it can take", name ? name : "verbosity",
					optarg);
	return ret ? -1 : 0;
}

static int parse_options(struct lazy *lazy, int argc, char **argv, int *code)
{
	for (int option, index = -1; (option = getopt_long(argc, argv, "D:W:o:v::djh", options, &index)) != -1; index = -1)
		if (parse_option(lazy, option, index >= 0 ? options[index].name : NULL, code))
			return -1;
	if (optind != argc)
		*code = cli_usage_error(lazy->command, "unexpected argument '%s'", argv[optind]);
	else if (lazy->page_server && !lazy->port && lazy->connection_fd < 0)
		*code = cli_usage_error(lazy->command, "--page-server needs the server's --port");
	else
		return 0;
	return -1;
}

/* ---- set-up ---- */

/* As CRIU does: from here on the work directory is the current one, and relative names are names in it. */
static int enter_directories(struct lazy *lazy, struct dp_err *err)
{
	if (!realpath(lazy->images_option, lazy->images))
		return dp_fail_errno(err, errno, "images directory %s", lazy->images_option);
	lazy->images_fd = open(lazy->images, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (lazy->images_fd < 0)
		return dp_fail_errno(err, errno, "open %s", lazy->images);
	const char *work = lazy->work_option ? lazy->work_option : lazy->images;
	return chdir(work) ? dp_fail_errno(err, errno, "work directory %s", work) : 0;
}

static int open_log(const struct lazy *lazy, struct dp_err *err)
{
	static const enum log_level levels[] = { LOG_LEVEL_ERROR, LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO,
						 LOG_LEVEL_DEBUG };
	int fd = 2;
	if (lazy->log_file && strcmp(lazy->log_file, "-") != 0)
		fd = open(lazy->log_file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0)
		return dp_fail_errno(err, errno, "log file %s", lazy->log_file);
	log_setup(fd, levels[DP_MIN(lazy->verbosity, ARRAY_LENGTH(levels) - 1)], "lazy-pages");
	return 0;
}

/* A tree may have more tasks than the usual limit has descriptors. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int open_source(struct lazy *lazy, struct source **source, struct dp_err *err)
{
	struct stream *stream;
	int ret;
	if (!lazy->page_server) {
		ret = source_images_new(source, lazy->images_fd, err);
		if (ret)
			dp_err_doing(err, "images in %s", lazy->images);
		return ret;
	}
	if (lazy->connection_fd >= 0) {
		stream = stream_from_socket(lazy->connection_fd);
		if (!stream)
			return dp_fail(err, EBADF, "--ps-socket %d is not a connection", lazy->connection_fd);
	} else {
		struct endpoint endpoint = { .kind = ENDPOINT_TCP, .port = (uint16_t)lazy->port };
		if (snprintf(endpoint.host, sizeof(endpoint.host), "%s", lazy->address) >= (int)sizeof(endpoint.host))
			return dp_fail(err, EINVAL, "--address is too long");
		ret = stream_connect(&stream, &endpoint, CONNECT_TIMEOUT_MS, err);
		if (ret) {
			dp_err_doing(err, "page server");
			return ret;
		}
	}
	lazy->connection_fd = stream->fd;
	ret = source_criu_new(source, lazy->images_fd, stream, err);
	if (ret)
		dp_err_doing(err, "images in %s", lazy->images);
	return ret;
}

static int listen_for_criu(struct lazy *lazy, struct dp_err *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = SOCKET_NAME };
	int on = 1;
	unlink(SOCKET_NAME);
	lazy->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (lazy->listen_fd < 0 || bind(lazy->listen_fd, (struct sockaddr *)&address, sizeof(address)) ||
	    setsockopt(lazy->listen_fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) || listen(lazy->listen_fd, 10))
		return dp_fail_errno(err, errno, "listen at " SOCKET_NAME " in the work directory");
	setsockopt(lazy->listen_fd, SOL_SOCKET, SO_PASSPIDFD, &on, sizeof(on)); /* Linux 6.5; without it the pid has to do */
	return 0;
}

/* Returns in the daemon; the process that was started ends when the pidfile is there. */
static int go_to_background(const struct lazy *lazy, struct dp_err *err)
{
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	pid_t pid = null_fd < 0 ? -1 : fork();
	if (pid < 0)
		return dp_fail_errno(err, errno, "start the daemon");
	if (pid == 0) {
		setsid();
		for (int fd = 0; fd < 3; fd++)
			if (fd != 2 || (lazy->log_file && strcmp(lazy->log_file, "-") != 0))
				dup2(null_fd, fd);
		close(null_fd);
		return 0;
	}
	char text[32];
	int length = snprintf(text, sizeof(text), "%d", pid);
	int ret = lazy->pidfile ? io_write_file(lazy->pidfile, text, (size_t)length, 0644) : 0;
	if (ret) {
		kill(pid, SIGTERM);
		fprintf(stderr, "distri-proc: pidfile %s: %s\n", lazy->pidfile, strerror(-ret));
	}
	_exit(ret ? EXIT_FAILED : EXIT_OK);
}

/* Where it cannot be said, whoever waits for it would wait for ever, and so would we for him. */
static int say_ready(struct lazy *lazy, struct dp_err *err)
{
	if (lazy->status_fd < 0)
		return 0;
	char zero = 0;
	int ret = io_write_full(lazy->status_fd, &zero, 1);
	close(lazy->status_fd);
	lazy->status_fd = -1;
	return ret ? dp_fail_errno(err, -ret, "--status-fd") : 0;
}

/* ---- the pager ---- */

static int page(struct lazy *lazy, struct source *source, int keeper_fd, struct dp_err *err)
{
	struct pager_config config = {
		.images_dir = lazy->images,
		.source = source,
		.listen_fd = lazy->listen_fd,
		.control_fd = -1,
		.keeper_fd = keeper_fd,
		.fill = true,
	};
	int ret = pager_run(&config, err);
	if (ret || !lazy->page_server)
		return ret;
	struct dp_err late = { "" };
	if (source_criu_end(source, &late))
		log_warn("%s: all pages have come; look whether the source's tasks have ended", late.text);
	return 0;
}

static void pager_main(struct lazy *lazy, struct source *source, int keeper_fd)
{
	struct dp_err err = { "" };
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	int why_fd = fcntl(keeper_fd, F_DUPFD_CLOEXEC, 3); /* pager_run takes its own */
	int ret = page(lazy, source, keeper_fd, &err);
	if (ret < 0) {
		log_error("%s", err.text);
		keeper_send_text(why_fd, err.text);
	}
	_exit(cli_exit_code(ret));
}

/* ---- the keeper ---- */

static void wait_dead(int pidfd)
{
	struct pollfd wait = { .fd = pidfd, .events = POLLIN };
	poll(&wait, 1, DEAD_WITHIN_MS);
}

/* The tree's memory can no longer be served: it is killed while its userfaultfds are open (invariant 1), with the children
 * that its tasks have made. */
static void kill_tree(struct keeper *keeper)
{
	keeper_receive(keeper);
	for (size_t i = 0; i < keeper->count; i++) {
		pid_t pid = keeper->kept[i].kind == KEEPER_PIDFD ? proc_pidfd_pid(keeper->kept[i].fd) : 0;
		cleanup_free pid_t *pids = NULL;
		ssize_t count = pid > 0 ? proc_tree(pid, &pids) : 0;
		for (ssize_t child = 1; child < count; child++)
			if (pids[child] != getpid())
				kill(pids[child], SIGKILL);
	}
	keeper_kill(keeper);
	for (size_t i = 0; i < keeper->count; i++)
		if (keeper->kept[i].kind == KEEPER_PIDFD)
			wait_dead(keeper->kept[i].fd);
}

/* Returns the exit code. */
static int keep(struct keeper *keeper, pid_t pager, int pidfd, int signal_fd, struct dp_err *err)
{
	bool told = false;
	for (;;) {
		struct pollfd wait[] = {
			{ .fd = keeper->socket_fd, .events = POLLIN },
			{ .fd = pidfd, .events = POLLIN },
			{ .fd = signal_fd, .events = POLLIN },
		};
		if (poll(wait, ARRAY_LENGTH(wait), -1) < 0 && errno != EINTR)
			return dp_fail_errno(err, errno, "poll");
		if (wait[0].revents)
			keeper_receive(keeper);
		if (wait[1].revents)
			break;
		if (wait[2].revents) {
			/* Stopped first: it must not take the tree's death for a good end. */
			told = true;
			kill(pager, SIGSTOP);
			kill_tree(keeper);
			kill(pager, SIGKILL);
			wait_dead(pidfd);
			break;
		}
	}
	int status = 0;
	while (waitpid(pager, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	kill_tree(keeper);
	if (told)
		return dp_fail(err, EINTR, "ended by a signal: the restored tasks, whose memory had not all come, were killed");
	if (WIFSIGNALED(status))
		return dp_fail(err, EIO, "the pager was killed by signal %d: the restored tasks were killed too",
			       WTERMSIG(status));
	return dp_fail(err, EIO, "%s", keeper->text[0] ? keeper->text : "the pager failed");
}

static int serve(struct lazy *lazy, struct source *source, struct dp_err *err)
{
	struct keeper keeper;
	int pager_end;
	sigset_t ends;
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGHUP);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	cleanup_fd int signal_fd = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
	int ret = signal_fd < 0 ? dp_fail_errno(err, errno, "signalfd") : keeper_init(&keeper, &pager_end, err);
	if (ret)
		return ret;
	pid_t pager = fork();
	if (pager < 0)
		return dp_fail_errno(err, errno, "fork the pager");
	if (pager == 0) {
		close(keeper.socket_fd);
		close(signal_fd);
		pager_main(lazy, source, pager_end);
	}
	close(pager_end);
	close(lazy->listen_fd);
	cleanup_fd int pidfd = proc_pidfd_open(pager);
	ret = pidfd < 0 ? pidfd : keep(&keeper, pager, pidfd, signal_fd, err);
	keeper_done(&keeper);
	return ret;
}

static int run(struct lazy *lazy, struct dp_err *err)
{
	struct source *source = NULL;
	int ret = enter_directories(lazy, err);
	if (!ret)
		ret = open_log(lazy, err);
	if (!ret)
		ret = open_source(lazy, &source, err);
	if (!ret)
		ret = listen_for_criu(lazy, err);
	if (!ret && lazy->daemon)
		ret = go_to_background(lazy, err);
	if (!ret)
		ret = say_ready(lazy, err);
	if (!ret)
		ret = serve(lazy, source, err);
	/* The last descriptor of the connection: without a good end, closing it resets it. */
	if (source)
		source->ops->free(source);
	return ret;
}

int cmd_lazy_pages(int argc, char **argv)
{
	struct lazy lazy = {
		.command = argv[0], .images_option = ".", .address = "127.0.0.1",
		.images_fd = -1, .listen_fd = -1, .status_fd = -1, .connection_fd = -1, .verbosity = 2,
	};
	struct dp_err err = { "" };
	int code;
	if (parse_options(&lazy, argc, argv, &code))
		return code;
	signal(SIGPIPE, SIG_IGN);
	raise_descriptor_limit();
	int ret = run(&lazy, &err);
	if (ret && lazy.log_file)
		log_error("%s", err.text);
	dp_close_fd(&lazy.images_fd);
	return ret ? cli_print_error(ret, &err, false) : EXIT_OK;
}
