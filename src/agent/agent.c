#include "agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/base.h"
#include "base/log.h"
#include "migrate/ferry.h"
#include "transport/tls.h"

#define SESSIONS_MOST 256u
#define DRAIN_NS UINT64_C(30000000000)
#define SWEEP_MS 60000
#define LISTEN_FDS_FIRST 3 /* sd_listen_fds(3) */

struct agent {
	struct agent_place place;
	struct listener control, peers;
	int signal_fd;
	unsigned sessions;
	bool draining;
	uint64_t drain_until_ns;
};

/* ---- systemd: sd_notify(3), sd_listen_fds(3) ---- */

static void notify_systemd(const char *text)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof(address.sun_path))
		return;
	memcpy(address.sun_path, path, strlen(path));
	if (path[0] == '@')
		address.sun_path[0] = 0;
	cleanup_fd int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	if (fd < 0 || sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address, length) < 0)
		log_warn("systemd could not be told: %s", strerror(errno));
}

/* Takes a socket that systemd made over: a Unix one is the control socket, another is where agents come in. */
static int take_handed(struct agent *agent, int fd, const struct agent_options *options, struct dp_err *err)
{
	int domain = 0;
	socklen_t length = sizeof(domain);
	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length))
		return dp_fail_errno(err, errno, "descriptor %d of systemd", fd);
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	struct listener *listener = domain == AF_UNIX ? &agent->control : &agent->peers;
	if (listener->fd >= 0)
		return dp_fail(err, EINVAL, "systemd hands over two sockets of one kind: one is enough");
	*listener = (struct listener){ .fd = fd, .endpoint = { .kind = domain == AF_UNIX ? ENDPOINT_UNIX : ENDPOINT_TCP } };
	if (domain == AF_UNIX)
		return 0;
	struct sockaddr_storage bound;
	const struct tls_module *module;
	length = sizeof(bound);
	if (getsockname(fd, (struct sockaddr *)&bound, &length))
		return dp_fail_errno(err, errno, "descriptor %d of systemd", fd);
	listener->endpoint.port = ntohs(domain == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port :
							     ((struct sockaddr_in *)&bound)->sin_port);
	listener->endpoint.tls = true; /* where it may be reached from is systemd's business; so nothing goes without */
	snprintf(listener->endpoint.host, sizeof(listener->endpoint.host), "%s", domain == AF_INET6 ? "::" : "0.0.0.0");
	(void)options;
	return tls_context(&module, &listener->tls, true, err);
}

static int take_all_handed(struct agent *agent, const struct agent_options *options, struct dp_err *err)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	int ret = 0;
	if (!pid || !count || strtol(pid, NULL, 10) != getpid())
		return 0;
	long fds = strtol(count, NULL, 10);
	for (long i = 0; i < fds && i < 2 && !ret; i++)
		ret = take_handed(agent, LISTEN_FDS_FIRST + (int)i, options, err);
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return ret;
}

/* ---- listening ---- */

static int listen_for_others(struct agent *agent, const struct agent_options *options, struct dp_err *err)
{
	struct endpoint endpoint;
	char uri[512];
	if (!options->listen || agent->peers.fd >= 0)
		return 0;
	bool tls = !strncmp(options->listen, "tls://", 6);
	snprintf(uri, sizeof(uri), "%s%s", tls ? "dps://" : "", options->listen + (tls ? 6 : 0));
	int ret = endpoint_parse(&endpoint, uri, err);
	if (!ret && endpoint.kind != ENDPOINT_TCP)
		ret = dp_fail(err, EINVAL, "--listen %s: other hosts need tls://ADDRESS:PORT", options->listen);
	const char *host = strstr(uri, "://") + 3, *bracket = strchr(host, ']'); /* of an IPv6 address */
	if (!ret && !strchr(bracket ? bracket : host, ':'))
		endpoint.port = AGENT_PORT;
	return ret ? ret : listener_open(&agent->peers, &endpoint, options->allow_plaintext, err);
}

static int open_all(struct agent *agent, const struct agent_options *options, struct dp_err *err)
{
	struct endpoint control = { .kind = ENDPOINT_UNIX };
	char path[PATH_MAX];
	int ret = ferry_make_home(options->root, err);
	if (!ret && options->access_file)
		ret = access_read(&agent->place.access, options->access_file, err);
	if (!ret)
		ret = take_all_handed(agent, options, err);
	if (!ret && agent->control.fd < 0) {
		if (strlen(ferry_home_path(options->root, "control.sock", path)) >= sizeof(control.path))
			return dp_fail(err, ENAMETOOLONG, "%s: shorter, please", path);
		strcpy(control.path, path);
		ret = listener_open(&agent->control, &control, false, err);
	}
	if (!ret)
		ret = listen_for_others(agent, options, err);
	if (!ret && agent->peers.fd >= 0)
		agent->place.listen = agent->peers.endpoint;
	return ret;
}

/* ---- processes ---- */

/* A process that outlives us: a session of its own, and none of what is ours. */
static pid_t fork_session(struct agent *agent)
{
	pid_t pid = agent->sessions < SESSIONS_MOST ? fork() : -1;
	if (pid < 0) {
		log_warn("%s", agent->sessions < SESSIONS_MOST ? "fork failed" : "too many connections at once");
		return -1;
	}
	if (pid > 0) {
		agent->sessions++;
		return pid;
	}
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	prctl(PR_SET_NAME, "distri-session");
	close(agent->signal_fd);
	dp_close_fd(&agent->control.fd);
	dp_close_fd(&agent->peers.fd);
	signal(SIGPIPE, SIG_IGN);
	return 0;
}

static void serve(struct agent *agent, struct listener *listener,
		  int (*session)(const struct agent_place *place, struct stream *stream))
{
	int error;
	struct stream *stream = listener_accept(listener, &error);
	if (!stream)
		return;
	if (fork_session(agent) == 0)
		_exit(session(&agent->place, stream));
	stream_close(stream); /* the process has it; what encrypts has not said a word yet, and says none now */
}

static void recover(void *context, const char *kind, const char *id)
{
	struct agent *agent = context;
	if (fork_session(agent) != 0)
		return;
	log_info("migration %s (%s) has lost its ferry: another goes on", id, kind);
	_exit((kind[0] == 'i' ? ferry_recover_in : ferry_recover_out)(agent->place.root, id));
}

static void take_signals(struct agent *agent)
{
	struct signalfd_siginfo info;
	bool ended = false;
	while (read(agent->signal_fd, &info, sizeof(info)) == sizeof(info))
		if (info.ssi_signo != SIGCHLD && !agent->draining) {
			agent->draining = true;
			agent->drain_until_ns = clock_now_ns() + DRAIN_NS;
			notify_systemd("STOPPING=1");
			log_info("told to end: nothing new is taken, %u connections are under way", agent->sessions);
		}
	int status;
	while (waitpid(-1, &status, WNOHANG) > 0) {
		agent->sessions--;
		ended = true;
	}
	/* One that was killed has left its migration behind. */
	if (ended && !agent->draining)
		ferry_each_orphan(agent->place.root, recover, agent);
}

static int run(struct agent *agent)
{
	ferry_each_orphan(agent->place.root, recover, agent);
	while (!agent->draining || (agent->sessions && clock_now_ns() < agent->drain_until_ns)) {
		struct pollfd polls[] = {
			{ .fd = agent->signal_fd, .events = POLLIN },
			{ .fd = agent->draining ? -1 : agent->control.fd, .events = POLLIN },
			{ .fd = agent->draining ? -1 : agent->peers.fd, .events = POLLIN },
		};
		int ready = poll(polls, ARRAY_LENGTH(polls), agent->draining ? 100 : SWEEP_MS);
		if (!ready && !agent->draining)
			ferry_each_orphan(agent->place.root, recover, agent);
		if (polls[0].revents)
			take_signals(agent);
		if (polls[1].revents)
			serve(agent, &agent->control, agent_control_session);
		if (polls[2].revents)
			serve(agent, &agent->peers, agent_peer_session);
	}
	return 0;
}

int agent_run(const struct agent_options *options, struct dp_err *err)
{
	char uri[1400];
	sigset_t set;
	struct agent agent = {
		.control = { .fd = -1 }, .peers = { .fd = -1 }, .signal_fd = -1,
		.place = { .root = options->root, .started_ns = clock_now_ns(), .agent_pid = getpid() },
	};
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	agent.signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	int ret = agent.signal_fd < 0 ? dp_fail_errno(err, errno, "signalfd") : open_all(&agent, options, err);
	if (!ret) {
		if (agent.peers.fd >= 0)
			printf("listening %s\n", endpoint_pool_text(&agent.peers.endpoint, uri, sizeof(uri)));
		printf("control %s/.agent/control.sock\n", options->root);
		fflush(stdout);
		notify_systemd("READY=1\nSTATUS=takes and gives processes");
		ret = run(&agent);
	}
	if (agent.control.fd >= 0)
		listener_close(&agent.control);
	if (agent.peers.fd >= 0)
		listener_close(&agent.peers);
	dp_close_fd(&agent.signal_fd);
	access_free(agent.place.access);
	return ret;
}

int agent_connect(const char *root, struct lines *lines, struct dp_err *err)
{
	char path[PATH_MAX];
	struct stream *stream;
	int ret = stream_connect_unix(&stream, ferry_home_path(root, "control.sock", path), err);
	if (ret)
		return dp_fail(err, ENOTCONN, "no agent runs on this host (%s: %s): start one with `distri-proc agent --listen tls://...`", path,
			       strerror(-ret));
	lines_init(lines, stream);
	return 0;
}
