#include "restore/container.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/base.h"
#include "base/log.h"
#include "instance/stats.h"
#include "restore/lease.h"
#include "restore/pager_process.h"
#include "restore/plan.h"
#include "restore/processes.h"
#include "sys/criu_launch.h"
#include "sys/proc.h"

#define GATE_ACTION "container-gate" /* file of the instance's directory: CRIU's action script */
#define GATE_SOCKET "gate.sock"
#define LAZY_SOCKET "lazy-pages.socket"
#define DEAD_WITHIN_MS 10000

struct gate_message {
	int32_t root; /* pid */
};

/* ---- before the runtime runs ---- */

static int link_action(const struct instance *instance, struct dp_err *err)
{
	char path[PATH_MAX], self[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (length < 0)
		return dp_fail_errno(err, errno, "read /proc/self/exe");
	self[length] = 0;
	return symlink(self, instance_path(instance, GATE_ACTION, path, sizeof(path)))
		       ? dp_fail_errno(err, errno, "make %s", path)
		       : 0;
}

/* Where this runtime's CRIU looks for the socket. */
static char *socket_link(const struct restore_plan *plan)
{
	const char *work = plan->options->container->work_path;
	return work ? format_text("%s/" LAZY_SOCKET, work) : format_text("%s/images/" LAZY_SOCKET, plan->instance.directory);
}

static int link_socket(const struct restore_plan *plan, struct dp_err *err)
{
	char path[PATH_MAX];
	cleanup_free char *link = socket_link(plan);
	if (!link)
		return dp_fail(err, ENOMEM, "out of memory");
	instance_path(&plan->instance, "work/" LAZY_SOCKET, path, sizeof(path));
	unlink(link); /* of an earlier restore */
	return symlink(path, link) ? dp_fail_errno(err, errno, "make %s", link) : 0;
}

static void unlink_socket(const struct restore_plan *plan)
{
	cleanup_free char *link = socket_link(plan);
	if (link)
		unlink(link);
}

int container_prepare(const struct restore_plan *plan, struct dp_err *err)
{
	const struct instance *instance = &plan->instance;
	const char *further = plan->options->container->action_script;
	cleanup_free char *options = format_text("action-script %s/" GATE_ACTION "\nlazy-pages\n%s%s\n", instance->directory,
						 further ? "action-script " : "", further ? further : "");
	int ret = options ? link_action(instance, err) : dp_fail(err, ENOMEM, "out of memory");
	if (!ret)
		ret = criu_launch_prepare(instance->directory, options, err);
	if (!ret && plan->options->working_set)
		ret = working_set_prepare(instance, true, false, err);
	if (!ret)
		ret = link_socket(plan, err);
	return ret ? ret : pager_listen(instance, GATE_SOCKET, SOCK_SEQPACKET, err);
}

/* ---- CRIU's action script ---- */

bool container_gate_is_action(const char *name)
{
	const char *base = strrchr(name, '/');
	return base && !strcmp(base + 1, GATE_ACTION);
}

int container_gate_action(char *name)
{
	const char *action = getenv("CRTOOLS_SCRIPT_ACTION"), *pid = getenv("CRTOOLS_INIT_PID");
	if (action && !strcmp(action, "pre-resume"))
		return working_set_action(name);
	if (!action || strcmp(action, "post-restore"))
		return 0;
	struct gate_message message = { .root = pid ? atoi(pid) : 0 };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char answer = 0;
	cleanup_fd int directory_fd = open(dirname(name), O_PATH | O_DIRECTORY | O_CLOEXEC);
	cleanup_fd int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/" GATE_SOCKET, directory_fd);
	bool good = message.root > 0 && directory_fd >= 0 && fd >= 0 &&
		    !connect(fd, (struct sockaddr *)&address, sizeof(address)) &&
		    send(fd, &message, sizeof(message), MSG_NOSIGNAL) == sizeof(message) &&
		    recv(fd, &answer, 1, 0) == 1 && answer == 'y';
	return good ? 0 : 1; /* then CRIU gives up, and no task has run */
}

/* ---- the watcher ---- */

static struct {
	const struct init_config *config;
	int channel_fd;  /* -1: the supervisor is gone */
	int gate_fd;     /* -1: not waited at */
	int caller_fd;   /* pidfd of the runtime, until there is a container */
	int root_fd;     /* pidfd; -1: no container yet */
	int pager_fd;    /* pidfd; -1: gone */
	bool pager_gone;
	bool stopped;    /* the container's lease is over (lease.h) */
} watcher;

static void close_fd(int *fd)
{
	dp_close_fd(fd);
	*fd = -1;
}

void container_kill(int root_pidfd, bool own_pid_namespace)
{
	struct pollfd dead = { .fd = root_pidfd, .events = POLLIN };
	cleanup_free pid_t *pids = NULL;
	pid_t root = root_pidfd >= 0 ? proc_pidfd_pid(root_pidfd) : 0;
	if (root <= 0)
		return;
	/* The kernel ends a PID namespace with its first process; whoever shares the host's is killed one by one. */
	ssize_t count = own_pid_namespace ? 0 : proc_tree(root, &pids);
	pidfd_send_signal(root_pidfd, SIGKILL, NULL, 0);
	for (ssize_t i = 1; i < count; i++)
		kill(pids[i], SIGKILL);
	poll(&dead, 1, DEAD_WITHIN_MS);
}

static void finish(const char *why) __attribute__((noreturn));
static void finish(const char *why)
{
	const struct restore_plan *plan = watcher.config->plan;
	char path[PATH_MAX], kept[PATH_MAX];
	if (watcher.gate_fd >= 0)
		unlink_socket(plan);
	if (watcher.channel_fd >= 0) /* the rest is the supervisor's */
		_exit(0);
	if (why) {
		int fd = open(instance_path(&plan->instance, "supervisor.log", path, sizeof(path)),
			      O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		log_setup(fd >= 0 ? fd : 2, LOG_LEVEL_INFO, "watcher");
		log_error("%s", why);
	}
	instance_keep_logs(&plan->instance, kept, sizeof(kept)); /* the pager may have said why it ended the container */
	container_kill(watcher.root_fd, plan->nested);
	instance_remove(&plan->instance, NULL);
	_exit(0);
}

static void fail(const char *text) __attribute__((noreturn));
static void fail(const char *text)
{
	struct init_message message = { .kind = INIT_FAILED };
	snprintf(message.text, sizeof(message.text), "%s", text);
	if (watcher.channel_fd >= 0)
		send_with_fd(watcher.channel_fd, &message, sizeof(message), -1);
	finish(text);
}

/* CRIU waits until the supervisor knows the container's first process. */
static void take_announcement(void)
{
	struct init_message running = { .kind = INIT_RUNNING, .criu_done_ns = clock_now_ns() };
	struct gate_message message;
	cleanup_fd int fd = accept4(watcher.gate_fd, NULL, NULL, SOCK_CLOEXEC);
	struct pollfd comes = { .fd = fd, .events = POLLIN };
	if (fd < 0 || poll(&comes, 1, DEAD_WITHIN_MS) != 1 ||
	    recv(fd, &message, sizeof(message), MSG_DONTWAIT) != sizeof(message))
		return;
	watcher.root_fd = message.root > 0 ? pidfd_open(message.root, 0) : -1;
	if (watcher.root_fd < 0)
		return; /* the end of the connection is a no */
	if (watcher.channel_fd < 0 || send_with_fd(watcher.channel_fd, &running, sizeof(running), watcher.root_fd) < 0)
		fail("the supervisor was killed before the container ran");
	send(fd, "y", 1, MSG_NOSIGNAL);
	unlink_socket(watcher.config->plan);
	close_fd(&watcher.gate_fd);
	close_fd(&watcher.caller_fd);
}

static void take_order(void)
{
	struct init_order order;
	int pidfd;
	ssize_t got = receive_with_fd(watcher.channel_fd, &order, sizeof(order), &pidfd);
	if (got == -EAGAIN)
		return;
	if (got == sizeof(order)) {
		close_fd(&watcher.pager_fd);
		watcher.pager_fd = pidfd;
		watcher.pager_gone = false;
		return;
	}
	close_fd(&watcher.channel_fd);
}

/* For how many ms the watcher may wait. */
static int follow_lease(void)
{
	pid_t root = watcher.root_fd >= 0 ? proc_pidfd_pid(watcher.root_fd) : 0;
	return root > 0 ? lease_follow(watcher.config->plan->options->lease, LEASE_ROOT, root, &watcher.stopped) : -1;
}

static void look(void)
{
	char path[PATH_MAX];
	struct pollfd polls[] = {
		{ .fd = watcher.channel_fd, .events = POLLIN },
		{ .fd = watcher.gate_fd, .events = POLLIN },
		{ .fd = watcher.caller_fd, .events = POLLIN },
		{ .fd = watcher.root_fd, .events = POLLIN },
		{ .fd = watcher.pager_fd, .events = POLLIN },
	};
	if (poll(polls, ARRAY_LENGTH(polls), follow_lease()) < 0)
		return;
	if (polls[4].revents) {
		/* One that left with everything local is not missed. */
		watcher.pager_gone =
			!stats_pager_left(instance_path(&watcher.config->plan->instance, "stats", path, sizeof(path)));
		close_fd(&watcher.pager_fd);
	}
	if (polls[0].revents)
		take_order();
	if (polls[3].revents)
		finish(NULL);
	if (watcher.channel_fd < 0 && watcher.root_fd < 0)
		fail("the supervisor was killed before the container ran");
	if (watcher.channel_fd < 0 && watcher.pager_gone)
		finish("the supervisor was killed, and the pager has ended: nobody can serve the container's memory any more; "
		       "it was stopped rather than fed zeros");
	if (polls[1].revents)
		take_announcement();
	else if (polls[2].revents && watcher.root_fd < 0)
		fail("the runtime ended before the container was restored: its own message says why");
}

void container_watch(const struct init_config *config)
{
	sigset_t all;
	watcher.config = config;
	watcher.channel_fd = config->channel_fd;
	watcher.gate_fd = config->gate_fd;
	watcher.root_fd = config->root_pidfd;
	watcher.caller_fd = watcher.root_fd >= 0 ? -1 : config->plan->options->container->caller_pidfd;
	watcher.pager_fd = -1;
	watcher.stopped = watcher.root_fd >= 0 && config->plan->options->lease; /* the one before may have stopped it */
	prctl(PR_SET_NAME, "distri-watcher");
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	setsid();
	/* the last one only has to be open: a pager sees by it that we live */
	const int keep[] = { watcher.channel_fd, watcher.gate_fd, watcher.root_fd, watcher.caller_fd, config->guard_fd };
	close_all_but(keep, ARRAY_LENGTH(keep));
	for (;;)
		look();
}
