/* init: the first process of a restored tree and the parent of CRIU.
 *
 * By default it is pid 1 of a PID namespace made for the tree, in a mount namespace whose only difference is /proc. It starts
 * `criu restore` as its child, reaps whatever ends below it, passes every signal it gets on to the root task, and exits with
 * the root's code; the kernel ends the rest of the namespace with it. With the host's pids, or where CRIU makes the
 * snapshot's own namespace, it is a subreaper that does the same. Mostly it is there before the skeleton is; what it has to know
 * of that, and the pager to watch, come by an order of the supervisor's.
 *
 * It is deliberately small: one thread, no allocation after start, blocked signals read from a signalfd. Should the
 * supervisor be killed, it goes on alone (R4): then it also watches the pager and ends the tree if that one dies, while the
 * pager's holder keeps the userfaultfds (pager/recover.h). */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/socket.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "base/base.h"
#include "base/log.h"
#include "instance/stats.h"
#include "restore/criu_cache.h"
#include "restore/lease.h"
#include "restore/plan.h"
#include "restore/private_files.h"
#include "restore/processes.h"
#include "sys/criu.h"
#include "sys/proc.h"

#define REAP_TRIES 8

static struct {
	const struct init_config *config;
	int signal_fd;
	int channel_fd;   /* -1: the supervisor is gone */
	int pager_pidfd;  /* -1: the pager is gone */
	bool pager_gone;
	pid_t highest_pid; /* of the tree, once it is known */
	pid_t criu;       /* 0: not running */
	pid_t root;       /* 0: the tree does not run yet */
	bool stopped;     /* its lease is over (lease.h) */
	int kdat_lock;
	uint64_t criu_started_ns;
	/* Tasks that ended before CRIU did: one of them may turn out to be the root. */
	struct { pid_t pid; int status; } early[64];
	size_t early_count;
} self = { .signal_fd = -1, .channel_fd = -1, .pager_pidfd = -1, .kdat_lock = -1 };

/* 0 also where there is no supervisor any more. */
static int tell_supervisor(struct init_message *message, int pidfd)
{
	message->criu_started_ns = self.criu_started_ns;
	message->criu_done_ns = clock_now_ns();
	return self.channel_fd >= 0 ? send_with_fd(self.channel_fd, message, sizeof(*message), pidfd) : 0;
}

static void give_up(const char *what, int code)
{
	struct init_message message = { .kind = INIT_FAILED, .status = -code };
	snprintf(message.text, sizeof(message.text), "%s: %s", what, strerror(code));
	tell_supervisor(&message, -1);
	_exit(125);
}

static int exit_code_of(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Nobody else is left to say it. */
static void say_why(const char *why)
{
	const struct instance *instance = &self.config->plan->instance;
	char path[PATH_MAX];
	int fd = open(instance_path(instance, "supervisor.log", path, sizeof(path)), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC,
		      0600);
	if (fd >= 0) {
		log_setup(fd, LOG_LEVEL_INFO, "init");
		log_error("%s", why);
		close(fd);
	}
}

/* Everything below us dies; in a namespace of our own the kernel does that when we exit. */
static void end_tree(int code)
{
	const struct restore_plan *plan = self.config->plan;
	if (!plan->own_pid_namespace)
		kill_descendants(0);
	if (self.channel_fd < 0) { /* nobody else is left to do it */
		char kept[PATH_MAX];
		if (code == 128 + SIGKILL) /* by the pager, say */
			instance_keep_logs(&plan->instance, kept, sizeof(kept));
		instance_remove(&plan->instance, NULL);
	}
	_exit(code);
}

static void enter_private_files(void)
{
	const struct instance *instance = &self.config->plan->instance;
	struct dp_err err;
	char stage[PATH_MAX], real[PATH_MAX];
	instance_path(instance, "files", stage, sizeof(stage));
	if ((mkdir(stage, 0700) && errno != EEXIST) || !realpath(stage, real))
		give_up("make a directory for private files", errno);
	int ret = private_files_enter(real, instance->directory, &err);
	if (ret)
		give_up(err.text, -ret);
}

static void enter_namespaces(void)
{
	if (mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL))
		give_up("make mounts private", errno);
	if (self.config->plan->options->private_files)
		enter_private_files();
	if (self.config->plan->own_pid_namespace && mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		give_up("mount /proc", errno);
}

static void set_loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	cleanup_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
		give_up("the loopback of the tree's network namespace", errno);
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request))
		give_up("the loopback of the tree's network namespace", errno);
}

/* One of our own is there already: clone made it. Its sockets are the tree's, ours are not: the pager stays outside. */
static void enter_network(const char *network)
{
	if (!strcmp(network, RESTORE_NETWORK_OWN)) {
		set_loopback_up();
		return;
	}
	cleanup_fd int fd = open(network, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		give_up("enter the network namespace of --network", errno);
}

static int set_last_pid(pid_t last_pid)
{
	char text[32];
	int length = snprintf(text, sizeof(text), "%d", (int)last_pid);
	cleanup_fd int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
	return fd < 0 || write(fd, text, (size_t)length) != length ? -errno : 0;
}

static void start_criu(void)
{
	const struct init_config *config = self.config;
	const int *stdio = config->plan->stdio;
	self.criu_started_ns = clock_now_ns();
	self.criu = fork();
	if (self.criu < 0)
		give_up("fork", errno);
	if (self.criu > 0)
		return;
	for (int i = 0; i < 3; i++)
		if (dup2(stdio[i] >= 0 ? stdio[i] : i == 0 ? 0 : config->log_fd, i) < 0)
			_exit(126);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	char **argv = config->command->argv;
	if (config->command->preload[0])
		setenv("LD_PRELOAD", config->command->preload, 1);
	criu_steady_preload();
	execv(argv[0], argv);
	dprintf(config->log_fd, "Error (init): exec %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* CRIU wrote the root's pid as we see it; in its own namespace that is not the image's. */
static pid_t read_root_pid(void)
{
	char path[PATH_MAX], *text = NULL;
	if (io_read_file(instance_path(&self.config->plan->instance, "work/root.pid", path, sizeof(path)), &text, 64) < 0)
		return 0;
	pid_t pid = (pid_t)strtol(text, NULL, 10);
	free(text);
	return pid > 0 ? pid : 0;
}

static void criu_ended(int status)
{
	struct init_message message = { .kind = INIT_RUNNING };
	self.criu = 0;
	criu_cache_take_back(self.config->command->kdat, self.kdat_lock);
	self.kdat_lock = -1;
	/* What the tree starts from here on comes after its own pids, as it would have done where it came from. */
	if (self.config->plan->own_pid_namespace && self.highest_pid)
		set_last_pid(self.highest_pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		message.kind = INIT_FAILED;
		message.status = status;
		tell_supervisor(&message, -1);
		end_tree(125);
	}
	self.root = read_root_pid();
	if (self.root == 0)
		give_up("read the pid file of criu", ENOENT);
	int pidfd = pidfd_open(self.root, 0);
	if (pidfd < 0 && errno != ESRCH) /* one that has ended already is among the early */
		give_up("pidfd of the tree's first process", errno);
	/* A tree of which the supervisor does not know is nobody's. */
	if (tell_supervisor(&message, pidfd) < 0)
		end_tree(125);
	if (pidfd >= 0)
		close(pidfd);
	for (size_t i = 0; i < self.early_count; i++)
		if (self.early[i].pid == self.root)
			end_tree(exit_code_of(self.early[i].status));
}

static void take_order(void)
{
	struct init_order order;
	int pidfd;
	ssize_t got = receive_with_fd(self.channel_fd, &order, sizeof(order), &pidfd);
	if (got == -EAGAIN)
		return;
	if (got == sizeof(order)) {
		dp_close_fd(&self.pager_pidfd);
		self.pager_pidfd = pidfd; /* the first, or one that follows another which died */
		self.pager_gone = false;
		self.highest_pid = order.highest_pid;
		return;
	}
	close(self.channel_fd);
	self.channel_fd = -1;
}

static void reap(void)
{
	int status;
	for (unsigned tries = 0; tries < REAP_TRIES;) {
		pid_t pid = waitpid(-1, &status, WNOHANG | __WALL);
		if (pid < 0 && errno != ECHILD) { /* there is no second signal for what was not heard of */
			tries++;
			continue;
		}
		if (pid <= 0)
			return;
		if (pid == self.criu)
			criu_ended(status);
		else if (pid == self.root)
			end_tree(exit_code_of(status));
		else if (self.root == 0 && self.early_count < ARRAY_LENGTH(self.early)) {
			self.early[self.early_count].pid = pid;
			self.early[self.early_count++].status = status;
		}
	}
}

static void take_signals(void)
{
	struct signalfd_siginfo info;
	while (read(self.signal_fd, &info, sizeof(info)) == sizeof(info)) {
		int number = (int)info.ssi_signo;
		if (number == SIGCHLD)
			continue;
		/* A key's signal: the terminal has sent it to the whole group of processes itself. */
		if (info.ssi_code == SI_KERNEL && self.root && getpgid(self.root) == getpgrp())
			continue;
		if (self.root)
			kill(self.root, number);
		else if (number == SIGTERM || number == SIGINT)
			end_tree(128 + number);
	}
	reap();
}

static void watch(void)
{
	struct pollfd polls[3] = {
		{ .fd = self.signal_fd, .events = POLLIN },
		{ .fd = self.channel_fd, .events = POLLIN },
		{ .fd = self.pager_pidfd, .events = POLLIN },
	};
	const struct restore_plan *plan = self.config->plan;
	enum lease_tree kind = plan->own_pid_namespace ? LEASE_NAMESPACE : LEASE_CHILDREN;
	if (poll(polls, ARRAY_LENGTH(polls), lease_follow(plan->options->lease, kind, 0, &self.stopped)) < 0)
		return;
	if (polls[2].revents) {
		char path[PATH_MAX];
		/* One that left with everything local is not missed. */
		self.pager_gone = !stats_pager_left(instance_path(&self.config->plan->instance, "stats", path, sizeof(path)));
		dp_close_fd(&self.pager_pidfd);
		self.pager_pidfd = -1;
	}
	if (polls[1].revents)
		take_order();
	/* With the supervisor there, ending the tree is its part: it holds the userfaultfds meanwhile (R1). A tree that was not
	 * running yet when the supervisor went is nobody's. */
	if (self.channel_fd < 0 && (self.pager_gone || !self.root)) {
		reap(); /* a pager also ends when the tree has */
		say_why(self.root
				? "the supervisor was killed, and the pager has ended: nobody can serve the tree's memory any more; it was stopped rather "
				  "than fed zeros"
				: "the supervisor was killed before the tree ran");
		end_tree(128 + SIGKILL);
	}
	if (polls[0].revents)
		take_signals();
}

void init_main(const struct init_config *config)
{
	const struct restore_plan *plan = config->plan;
	sigset_t all;
	self.config = config;
	self.channel_fd = config->channel_fd;
	prctl(PR_SET_NAME, "distri-init");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	self.signal_fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (self.signal_fd < 0)
		give_up("signalfd", errno);
	setsid();
	/* the last one only has to be open: a pager sees by it that we live */
	const int keep[] = { self.signal_fd, self.channel_fd, config->log_fd, plan->stdio[0], plan->stdio[1], plan->stdio[2],
			     config->guard_fd };
	close_all_but(keep, ARRAY_LENGTH(keep));
	if (plan->options->shell_job && plan->stdio[0] >= 0 && isatty(plan->stdio[0]))
		ioctl(plan->stdio[0], TIOCSCTTY, 0); /* without one, jobs of the tree just have no job control */
	if (!plan->options->host_pid_namespace)
		enter_namespaces();
	if (plan->options->network)
		enter_network(plan->options->network);
	/* CRIU and its helpers get pids that are none of the snapshot's; CRIU asks for those by number. */
	int ret = plan->own_pid_namespace ? set_last_pid(plan->last_pid) : 0;
	if (ret)
		give_up("set ns_last_pid", -ret);
	self.kdat_lock = criu_cache_lend(config->command->kdat);
	start_criu();
	for (;;)
		watch();
}
