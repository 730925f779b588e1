/* supervisor: parent of init and pager; keeps the userfaultfds (R1) and starts another pager if one dies, tells the caller what
 * happens, cleans up.
 *
 * One loop over poll: signals, the keeper's socket, init's messages, the caller. It never waits for anything but the death of
 * processes that it has killed, and reads the keeper until the tree is dead. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/base.h"
#include "base/log.h"
#include "instance/keeper.h"
#include "instance/process.h"
#include "instance/stats.h"
#include "restore/committer.h"
#include "restore/container.h"
#include "restore/criu_cache.h"
#include "restore/pager_process.h"
#include "restore/plan.h"
#include "restore/pool_source.h"
#include "restore/pool_starter.h"
#include "restore/processes.h"
#include "sys/proc.h"

#define PAGER_END_MS 5000   /* for a pager to leave after its tree; then it is killed */
#define PAGERS_MOST 20u     /* that die within this time and are followed by others: the next one is one that cannot work */
#define PAGERS_WITHIN_S 10u
#define GRACE_NS 10000000000u /* between TERM and KILL of a tree whose caller went away */

struct supervisor {
	struct restore_plan *plan;
	struct instance *instance;
	struct keeper keeper;
	int signal_fd, channel_fd, report_fd, pager_pidfd, root_pidfd, log_fd, gate_fd, listen_fd, control_fd;
	pid_t pager, init;      /* 0: not there, or reaped */
	int init_status, pager_status;
	int init_pidfd;
	uint64_t pager_deaths_ns[PAGERS_MOST]; /* the last ones, in a ring */
	unsigned pager_deaths;
	bool decided;           /* the caller's verdict has come */
	int guard[2];           /* init or watcher have the writing end too, pagers the other; -1 where the tree ends with init */
	struct hold hold;       /* of a spare */
	bool held, went;        /* it waits before its first instruction; it was let go */
	struct restore_options options; /* what the plan's are from then on */
	bool running;           /* the caller has been told so */
	bool failed;            /* ... or will be told that it failed */
	uint64_t kill_at_ns;    /* 0: never */
	struct committer_process committer;
	int starter;            /* pidfd, see pool_starter.h */
	bool pools_wanted;      /* when it has ended, another */
	struct restore_times times;
	struct dp_err err;      /* why it failed or was ended, "" if it was not */
};

static void close_fd(int *fd)
{
	dp_close_fd(fd);
	*fd = -1;
}

/* ---- the end ---- */

static void fail(struct supervisor *supervisor, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));

static void report(struct supervisor *supervisor, enum report_kind kind, int code)
{
	struct report message = {
		.kind = kind,
		.code = code,
		.instance = *supervisor->instance,
		.criu_started_ns = supervisor->times.criu_started_ns,
		.criu_done_ns = supervisor->times.criu_done_ns,
	};
	snprintf(message.text, sizeof(message.text), "%s", supervisor->err.text);
	int ret = supervisor->report_fd >= 0 ? send_with_fd(supervisor->report_fd, &message, sizeof(message), -1) : 0;
	if (ret < 0 && kind == REPORT_RUNNING) { /* a tree of which nobody knows */
		supervisor->running = false;
		fail(supervisor, "tell the caller: %s", strerror(-ret));
	}
}

/* The tree's end first, with every descriptor still held, then the pager's. */
static void end_tree(struct supervisor *supervisor)
{
	if (supervisor->init) {
		kill(supervisor->init, SIGKILL);
		waitpid(supervisor->init, &supervisor->init_status, __WALL);
		supervisor->init = 0;
	}
	keeper_kill(&supervisor->keeper);
	if (supervisor->plan->options->container) /* which is not below us */
		container_kill(supervisor->root_pidfd, supervisor->plan->nested);
	kill_descendants(supervisor->pager);
}

static void end_pager(struct supervisor *supervisor, int patience_ms)
{
	if (!supervisor->pager)
		return;
	struct pollfd ended = { .fd = supervisor->pager_pidfd, .events = POLLIN };
	uint64_t until_ns = clock_now_ns() + (uint64_t)patience_ms * 1000000u;
	for (uint64_t now = clock_now_ns(); now < until_ns && !ended.revents; now = clock_now_ns())
		poll(&ended, 1, (int)((until_ns - now) / 1000000u) + 1);
	if (!ended.revents)
		kill(supervisor->pager, SIGKILL);
	waitpid(supervisor->pager, &supervisor->pager_status, __WALL);
	supervisor->pager = 0;
}

static void finish(struct supervisor *supervisor) __attribute__((noreturn));
static void finish(struct supervisor *supervisor)
{
	char kept[PATH_MAX] = "";
	committer_kill(&supervisor->committer);
	end_tree(supervisor);
	end_pager(supervisor, supervisor->failed ? 0 : PAGER_END_MS);
	pool_source_end_left(supervisor->plan);
	keeper_receive(&supervisor->keeper);
	/* A pager that kills its tree is often seen after the tree. */
	if (!supervisor->err.text[0] && supervisor->keeper.text[0])
		snprintf(supervisor->err.text, sizeof(supervisor->err.text), "pager: %.1000s", supervisor->keeper.text);
	keeper_done(&supervisor->keeper);
	if (supervisor->err.text[0]) {
		log_error("%s", supervisor->err.text);
		instance_keep_logs(supervisor->instance, kept, sizeof(kept));
	}
	if (*kept) {
		size_t used = strlen(supervisor->err.text);
		snprintf(supervisor->err.text + used, sizeof(supervisor->err.text) - used, " (log: %s)", kept);
	}
	struct dp_err err;
	if (instance_remove(supervisor->instance, &err))
		log_error("%s", err.text);
	int status = supervisor->init_status;
	if (supervisor->failed)
		report(supervisor, REPORT_FAILED, EIO);
	else
		report(supervisor, REPORT_ENDED, WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
	_exit(0);
}

/* Ends everything because of `why`; before the tree ran that is a failed restore. */
static void fail(struct supervisor *supervisor, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(supervisor->err.text, sizeof(supervisor->err.text), format, args);
	va_end(args);
	supervisor->failed = !supervisor->running;
	finish(supervisor);
}

/* ---- what happens ---- */

static void restore_failed(struct supervisor *supervisor, const struct init_message *message) __attribute__((noreturn));

static void start_pager(struct supervisor *supervisor, bool follows);
static void take_init_message(struct supervisor *supervisor);

static bool died_too_often(struct supervisor *supervisor)
{
	uint64_t now = clock_now_ns(), *oldest = &supervisor->pager_deaths_ns[supervisor->pager_deaths++ % PAGERS_MOST];
	bool often = *oldest && now - *oldest < PAGERS_WITHIN_S * 1000000000ull;
	*oldest = now;
	return often;
}

/* One that was killed, or broke, is followed by another, which goes on where it was (pager/recover.h); the tree waits meanwhile.
 * One that ended by itself has said why, and killed the tree. */
static void pager_died(struct supervisor *supervisor)
{
	static const char consequence[] = "; the tree was stopped rather than fed zeros";
	int status = supervisor->pager_status;
	if (!supervisor->running && WIFSIGNALED(status) && supervisor->channel_fd >= 0)
		take_init_message(supervisor); /* it may run since this moment */
	if (!supervisor->running)
		restore_failed(supervisor, NULL);
	keeper_receive(&supervisor->keeper);
	if (supervisor->keeper.text[0])
		fail(supervisor, "pager: %s%s", supervisor->keeper.text, consequence);
	if (WIFSIGNALED(status) && died_too_often(supervisor))
		fail(supervisor, "pager died %u times within %u s, the last time by signal %d%s", PAGERS_MOST + 1,
		     PAGERS_WITHIN_S, WTERMSIG(status), consequence);
	if (WIFSIGNALED(status)) {
		log_warn("pager was killed by signal %d: another goes on", WTERMSIG(status));
		start_pager(supervisor, true);
		return;
	}
	fail(supervisor, "pager ended with code %d before the tree%s", WEXITSTATUS(status), consequence);
}

/* Waits a moment for the other side of a failure. */
static bool comes(int fd, int timeout_ms)
{
	struct pollfd polled = { .fd = fd, .events = POLLIN };
	return fd >= 0 && poll(&polled, 1, timeout_ms) > 0;
}

/* CRIU and the pager hang on each other: when one fails, the other's error is only an echo. CRIU's counts unless it is about
 * the pager. `message` is init's, or NULL where the pager's death was seen first. */
static void restore_failed(struct supervisor *supervisor, const struct init_message *message)
{
	struct init_message late;
	char path[PATH_MAX], text[512];
	int pidfd;
	if (!message && comes(supervisor->channel_fd, 1000) &&
	    receive_with_fd(supervisor->channel_fd, &late, sizeof(late), &pidfd) == sizeof(late) && late.kind == INIT_FAILED)
		message = &late;
	if (message && message->text[0])
		fail(supervisor, "%s", message->text);
	if (supervisor->pager && comes(supervisor->pager_pidfd, 100) &&
	    waitpid(supervisor->pager, &supervisor->pager_status, WNOHANG) == supervisor->pager)
		supervisor->pager = 0;
	keeper_receive(&supervisor->keeper);
	bool said = message && criu_log_last_error(instance_path(supervisor->instance, "restore.log", path, sizeof(path)), text,
						   sizeof(text));
	bool pager_failed = !supervisor->pager && supervisor->pager_status;
	if (said && !(pager_failed && (strstr(text, "uffd") || strstr(text, "lazy-pages"))))
		fail(supervisor, "criu: %s", text);
	if (pager_failed && supervisor->keeper.text[0])
		fail(supervisor, "pager: %s", supervisor->keeper.text);
	if (pager_failed && WIFSIGNALED(supervisor->pager_status))
		fail(supervisor, "pager was killed by signal %d", WTERMSIG(supervisor->pager_status));
	if (message && WIFSIGNALED(message->status))
		fail(supervisor, "criu was killed by signal %d", WTERMSIG(message->status));
	if (message)
		fail(supervisor, "criu ended with code %d and no error in its log", WEXITSTATUS(message->status));
	fail(supervisor, "pager ended early");
}

/* Everything is local: the tree needs neither a pager nor the descriptors that were kept for it. */
static void pager_left(struct supervisor *supervisor)
{
	keeper_receive(&supervisor->keeper);
	keeper_done(&supervisor->keeper);
	log_info("all memory is local, the pager has left");
}

static void tree_waits(struct supervisor *supervisor)
{
	struct dp_err err;
	if (!hold_reached(&supervisor->hold))
		return;
	supervisor->held = supervisor->instance->spare = true;
	if (instance_save(supervisor->instance, &err))
		log_error("%s", err.text);
	report(supervisor, REPORT_HELD, 0);
}

static void let_go(struct supervisor *supervisor, const struct go *go)
{
	struct restore_plan *plan = supervisor->plan;
	struct instance *instance = supervisor->instance;
	if (!supervisor->held || supervisor->went)
		return;
	supervisor->went = true;
	supervisor->options = *plan->options;
	supervisor->options.foreground = go->foreground;
	plan->options = &supervisor->options;
	supervisor->times.start_ns = go->start_ns;
	if (go->name[0])
		snprintf(instance->name, sizeof(instance->name), "%.*s", (int)sizeof(go->name) - 1, go->name);
	if (go->group[0])
		snprintf(instance->group, sizeof(instance->group), "%.*s", (int)sizeof(go->group) - 1, go->group);
	instance->spare = false;
	int ret = hold_release(&supervisor->hold);
	if (ret)
		fail(supervisor, "let a spare go: %s", strerror(-ret));
}

/* CRIU has mapped them; nobody reads them any more, and they lie in memory. */
static void drop_page_images(const struct instance *instance)
{
	char path[PATH_MAX];
	DIR *images = opendir(instance_path(instance, "images", path, sizeof(path)));
	for (struct dirent *entry = images ? readdir(images) : NULL; entry; entry = readdir(images))
		if (!strncmp(entry->d_name, "pages-", 6))
			unlinkat(dirfd(images), entry->d_name, 0);
	if (images)
		closedir(images);
}

static void tree_runs(struct supervisor *supervisor, const struct init_message *message, int pidfd)
{
	struct instance *instance = supervisor->instance;
	struct dp_err err;
	if (supervisor->plan->options->hold && !supervisor->went)
		fail(supervisor, "the spare did not wait: criu could not run its action script");
	supervisor->root_pidfd = pidfd;
	supervisor->times.criu_started_ns = message->criu_started_ns;
	supervisor->times.criu_done_ns = message->criu_done_ns;
	instance->root.pid = DP_MAX(proc_pidfd_pid(pidfd), 0);
	/* In the foreground the caller hears how it ended; a pid file must not say 0. */
	if (instance->root.pid <= 0 && !supervisor->plan->options->foreground) {
		int status = 0;
		bool ended = comes(supervisor->init_pidfd, 1000) &&
			     waitpid(supervisor->init, &status, __WALL | WNOHANG) == supervisor->init;
		if (ended)
			supervisor->init = 0;
		fail(supervisor, ended ? "the tree ended as soon as it ran, with code %d" : "the tree ended as soon as it ran",
		     WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
	}
	instance->root.start_time = process_start_time(instance->root.pid);
	instance->running = true;
	instance->restore_ns = clock_now_ns() - supervisor->times.start_ns;
	if (instance_save(instance, &err))
		log_error("%s", err.text);
	supervisor->running = true;
	committer_wanted(&supervisor->committer, supervisor->plan->options);
	report(supervisor, REPORT_RUNNING, 0);
	drop_page_images(instance);
	/* From here on we only fork pagers; but the committer is a program, and needs all that a checkpoint needs, and so is a
	 * pool. */
	if (!committer_is_needed(supervisor->plan->options) && !pool_starter_is_needed(supervisor->plan->options))
		enter_sandbox(instance);
}

static void take_init_message(struct supervisor *supervisor)
{
	struct init_message message;
	int pidfd;
	ssize_t got = receive_with_fd(supervisor->channel_fd, &message, sizeof(message), &pidfd);
	if (got == -EAGAIN)
		return;
	if (got != sizeof(message)) {
		close(supervisor->channel_fd); /* init ends: its status says why */
		supervisor->channel_fd = -1;
		if (!supervisor->running && supervisor->init)
			kill(supervisor->init, SIGKILL); /* if it does not, what it had to say is lost: nobody would ever know */
	} else if (message.kind == INIT_FAILED) {
		restore_failed(supervisor, &message);
	} else {
		tree_runs(supervisor, &message, pidfd);
	}
}

static void signal_root(struct supervisor *supervisor, int number)
{
	if (supervisor->root_pidfd >= 0)
		pidfd_send_signal(supervisor->root_pidfd, number, NULL, 0);
	else if (number == SIGTERM || number == SIGINT || number == SIGHUP)
		fail(supervisor, "stopped by signal %d before it was done", number);
}

static void take_verdict(struct supervisor *supervisor, const struct verdict *verdict);

static void take_caller_message(struct supervisor *supervisor)
{
	union {
		struct verdict verdict;
		struct go go;
		int32_t number;
	} message;
	ssize_t got = recv(supervisor->report_fd, &message, sizeof(message), MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got == sizeof(message.verdict)) {
		if (!supervisor->decided)
			take_verdict(supervisor, &message.verdict);
		return;
	}
	if (got == sizeof(message.go)) {
		let_go(supervisor, &message.go);
		return;
	}
	if (got == sizeof(message.number)) {
		if (message.number > 0 && message.number < SIGRTMAX)
			signal_root(supervisor, message.number);
		return;
	}
	close(supervisor->report_fd);
	supervisor->report_fd = -1;
	if (supervisor->plan->options->container && supervisor->decided)
		return; /* it is the runtime now, and the watcher's to look after */
	if (supervisor->held && !supervisor->went) { /* a spare that nobody wanted: no failure */
		supervisor->failed = true;
		finish(supervisor);
	}
	if (!supervisor->running)
		fail(supervisor, "the caller went away");
	if (supervisor->plan->options->foreground) {
		signal_root(supervisor, SIGTERM);
		supervisor->kill_at_ns = clock_now_ns() + GRACE_NS;
	}
}

static void start_init(struct supervisor *supervisor);

/* It is no more than a watcher: the container runs, and gets another one. */
static void follow_watcher(struct supervisor *supervisor)
{
	struct init_order order = { .highest_pid = 0 };
	struct dp_err err;
	log_warn("the watcher was killed: another goes on");
	close_fd(&supervisor->channel_fd);
	start_init(supervisor);
	send_with_fd(supervisor->channel_fd, &order, sizeof(order), supervisor->pager ? supervisor->pager_pidfd : -1);
	if (instance_save(supervisor->instance, &err))
		log_warn("%s", err.text);
}

static void init_ended(struct supervisor *supervisor)
{
	/* Its last message may wait behind its death. */
	if (!supervisor->running && supervisor->channel_fd >= 0)
		take_init_message(supervisor);
	int status = supervisor->init_status;
	if (supervisor->plan->options->container && supervisor->running && WIFSIGNALED(status)) {
		follow_watcher(supervisor);
		return;
	}
	if (!supervisor->running)
		fail(supervisor, WIFSIGNALED(status) ? "init was killed by signal %d" : "init ended early with code %d",
		     WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	char path[PATH_MAX]; /* it passes the root's end on as an exit code, so this is its own */
	if (WIFSIGNALED(status) && access(instance_path(supervisor->instance, INSTANCE_STOPPED, path, sizeof(path)), F_OK)) {
		log_error("init was killed by signal %d, and the tree with it", WTERMSIG(status));
		instance_keep_logs(supervisor->instance, path, sizeof(path));
	}
	finish(supervisor);
}

static void take_signals(struct supervisor *supervisor)
{
	struct signalfd_siginfo info;
	int status;
	while (read(supervisor->signal_fd, &info, sizeof(info)) == sizeof(info))
		if (info.ssi_signo == SIGTERM)
			signal_root(supervisor, SIGTERM);
	bool init_gone = false, pager_gone = false;
	for (pid_t pid = waitpid(-1, &status, WNOHANG | __WALL); pid > 0; pid = waitpid(-1, &status, WNOHANG | __WALL)) {
		if (pid == supervisor->init) {
			supervisor->init = 0;
			supervisor->init_status = status;
			init_gone = true;
		} else if (pid == supervisor->pager) {
			supervisor->pager = 0;
			supervisor->pager_status = status;
			pager_gone = true;
		} else {
			committer_ended(&supervisor->committer, pid, status);
		}
	}
	if (init_gone)
		init_ended(supervisor);
	char path[PATH_MAX];
	if (pager_gone && stats_pager_left(instance_path(supervisor->instance, "stats", path, sizeof(path)))) {
		pager_left(supervisor);
		return;
	}
	if (pager_gone && (!supervisor->running || supervisor->pager_status))
		pager_died(supervisor);
	if (supervisor->pager)
		return;
	/* A pager that ends well has seen its whole tree go: init is about to follow. */
	if (pager_gone)
		supervisor->kill_at_ns = clock_now_ns() + GRACE_NS;
}

static void start_pools(struct supervisor *supervisor)
{
	supervisor->pools_wanted = !pool_starter_run(supervisor->plan->options, &supervisor->starter);
}

static void watch(struct supervisor *supervisor)
{
	struct pollfd polls[] = {
		{ .fd = supervisor->keeper.socket_fd, .events = POLLIN },
		{ .fd = supervisor->channel_fd, .events = POLLIN },
		{ .fd = supervisor->report_fd, .events = POLLIN },
		{ .fd = supervisor->signal_fd, .events = POLLIN },
		{ .fd = supervisor->pools_wanted ? supervisor->starter : -1, .events = POLLIN },
		{ .fd = supervisor->hold.held_fd, .events = POLLIN },
	};
	int timeout_ms = committer_work(&supervisor->committer, supervisor->plan->options, supervisor->instance);
	if (supervisor->kill_at_ns) {
		uint64_t now = clock_now_ns();
		if (now >= supervisor->kill_at_ns)
			fail(supervisor, "killed: it did not end by itself in time");
		timeout_ms = (int)((supervisor->kill_at_ns - now) / 1000000u) + 1;
	}
	if (poll(polls, ARRAY_LENGTH(polls), timeout_ms) < 0)
		return;
	if (polls[0].revents) {
		int ret = keeper_receive(&supervisor->keeper);
		if (ret < 0 && ret != -EPIPE)
			fail(supervisor, "userfaultfds cannot be kept safe: %s", strerror(-ret));
		if (supervisor->keeper.lost && supervisor->running)
			start_pools(supervisor);
		supervisor->keeper.lost = false;
	}
	if (polls[5].revents)
		tree_waits(supervisor);
	if (polls[1].revents)
		take_init_message(supervisor);
	if (polls[2].revents)
		take_caller_message(supervisor);
	if (polls[3].revents)
		take_signals(supervisor);
	if (polls[4].revents)
		start_pools(supervisor);
}

/* ---- the start ---- */

static void set_up_process(struct supervisor *supervisor)
{
	struct restore_plan *plan = supervisor->plan;
	char path[PATH_MAX];
	sigset_t all;
	prctl(PR_SET_NAME, "distri-superv");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	setsid();
	int caller_pidfd = plan->options->container ? plan->options->container->caller_pidfd : -1;
	const int keep[] = { plan->report_fd, plan->stdio[0], plan->stdio[1], plan->stdio[2], caller_pidfd };
	close_all_but(keep, ARRAY_LENGTH(keep));
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	int log_fd = open(instance_path(supervisor->instance, "supervisor.log", path, sizeof(path)),
			  O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	dup2(null_fd, 0);
	dup2(null_fd, 1);
	dup2(log_fd >= 0 ? log_fd : null_fd, 2);
	close(null_fd);
	if (log_fd >= 0)
		close(log_fd);
	log_setup(2, plan->options->verbose > 1 ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, "supervisor");
	/* Two descriptors a process of the tree are kept here. */
	struct rlimit files;
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	supervisor->report_fd = plan->report_fd;
	supervisor->signal_fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (supervisor->signal_fd < 0) /* no death would be seen */
		fail(supervisor, "signalfd: %s", strerror(errno));
}

/* What went wrong is in supervisor->err. */
static void give_up(struct supervisor *supervisor) __attribute__((noreturn));
static void give_up(struct supervisor *supervisor)
{
	supervisor->failed = true;
	finish(supervisor);
}

static void listen_for_criu(struct supervisor *supervisor)
{
	struct dp_err *err = &supervisor->err;
	supervisor->listen_fd = pager_listen(supervisor->instance, "work/lazy-pages.socket", SOCK_STREAM, err);
	if (supervisor->listen_fd >= 0)
		supervisor->control_fd = pager_listen(supervisor->instance, "control.sock", SOCK_SEQPACKET, err);
	if (supervisor->control_fd < 0)
		give_up(supervisor);
}

static void start_pager(struct supervisor *supervisor, bool follows)
{
	struct dp_err *err = &supervisor->err;
	struct init_order order = { .highest_pid = supervisor->plan->highest_pid };
	struct pager_ends ends = {
		.listen_fd = supervisor->listen_fd, .control_fd = supervisor->control_fd, .keeper_fd = -1,
		.init_pidfd = supervisor->init_pidfd, .guard_fd = supervisor->guard[0],
		.inherited = follows ? &supervisor->keeper : NULL,
	};
	if (follows)
		start_pools(supervisor); /* both may have been killed */
	int ret = (follows ? keeper_renew : keeper_init)(&supervisor->keeper, &ends.keeper_fd, err);
	if (!ret)
		ret = pager_start(supervisor->plan, &ends, err);
	close_fd(&ends.keeper_fd);
	if (ret > 0) {
		supervisor->pager = ret;
		close_fd(&supervisor->pager_pidfd);
		supervisor->pager_pidfd = pidfd_open(ret, 0);
		supervisor->instance->pager = (struct instance_process){ ret, process_start_time(ret) };
	}
	if (ret < 0 || supervisor->pager_pidfd < 0)
		give_up(supervisor);
	ret = send_with_fd(supervisor->channel_fd, &order, sizeof(order), supervisor->pager_pidfd);
	if (ret < 0 && !follows) /* it is gone, and may have said why */
		restore_failed(supervisor, NULL);
	struct dp_err ignored;
	if (follows && instance_save(supervisor->instance, &ignored))
		log_warn("%s", ignored.text);
}

static void start_init(struct supervisor *supervisor)
{
	struct restore_plan *plan = supervisor->plan;
	struct criu_command command = { 0 };
	char path[PATH_MAX];
	int channel[2];
	cleanup_fd int gate_fd = -1; /* a container's */
	if (plan->options->container && !supervisor->running)
		gate_fd = container_prepare(plan, &supervisor->err);
	/* With a PID namespace of ours the kernel ends the tree with init. */
	if (!plan->own_pid_namespace && supervisor->guard[0] < 0 && pipe2(supervisor->guard, O_CLOEXEC))
		fail(supervisor, "pipe for init: %s", strerror(errno));
	if (plan->options->container ? !supervisor->running && gate_fd < 0 : criu_command_make(plan, &command, &supervisor->err))
		give_up(supervisor);
	close_fd(&supervisor->log_fd);
	supervisor->log_fd = open(instance_path(supervisor->instance, "criu-output.log", path, sizeof(path)),
				  O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel))
		fail(supervisor, "socket pair for init: %s", strerror(errno));
	struct clone_args clone = { .exit_signal = SIGCHLD };
	if (plan->own_pid_namespace)
		clone.flags |= CLONE_NEWPID;
	if (!plan->options->host_pid_namespace)
		clone.flags |= CLONE_NEWNS;
	if (plan->options->network && !strcmp(plan->options->network, RESTORE_NETWORK_OWN))
		clone.flags |= CLONE_NEWNET;
	long pid = syscall(SYS_clone3, &clone, sizeof(clone));
	if (pid < 0)
		fail(supervisor, "make namespaces for the tree: %s", strerror(errno));
	if (pid == 0) {
		struct init_config config = {
			.plan = plan, .command = &command, .channel_fd = channel[1], .log_fd = supervisor->log_fd,
			.gate_fd = gate_fd, .root_pidfd = supervisor->running ? supervisor->root_pidfd : -1,
			.guard_fd = supervisor->guard[1],
		};
		if (plan->options->container)
			container_watch(&config);
		init_main(&config);
	}
	free(command.argv);
	close(channel[1]);
	if (plan->options->hold && supervisor->hold.go_fd < 0 &&
	    hold_open(supervisor->instance, &supervisor->hold, &supervisor->err))
		give_up(supervisor);
	supervisor->channel_fd = channel[0];
	supervisor->init = (pid_t)pid;
	close_fd(&supervisor->init_pidfd);
	supervisor->init_pidfd = pidfd_open(supervisor->init, 0);
	supervisor->instance->init = (struct instance_process){ (pid_t)pid, process_start_time((pid_t)pid) };
}

static void stop_init(struct supervisor *supervisor)
{
	if (!supervisor->init)
		return;
	kill(supervisor->init, SIGKILL);
	waitpid(supervisor->init, NULL, __WALL);
	supervisor->init = 0;
	close_fd(&supervisor->channel_fd);
}

static void save_state(struct supervisor *supervisor)
{
	if (instance_save(supervisor->instance, &supervisor->err))
		give_up(supervisor);
}

/* The skeleton is here and good, and CRIU goes on, or is started; or there is none, and that was it. */
static void take_verdict(struct supervisor *supervisor, const struct verdict *verdict)
{
	struct restore_plan *plan = supervisor->plan;
	const struct restore_plan *right = &verdict->plan;
	bool guessed = plan_was_guessed(plan, right);
	struct instance_process init = supervisor->instance->init, self = supervisor->instance->supervisor;
	supervisor->decided = true;
	if (verdict->cancelled)
		give_up(supervisor);
	if (plan->options->late)
		*plan->options->late = verdict->late;
	supervisor->times.start_ns = right->start_ns;
	plan->nested = right->nested;
	plan->own_mounts = right->own_mounts;
	plan->own_pid_namespace = right->own_pid_namespace;
	plan->last_pid = right->last_pid;
	plan->highest_pid = right->highest_pid;
	plan->instance = right->instance;
	plan->instance.init = init;
	plan->instance.supervisor = self;
	if (!guessed)
		stop_init(supervisor);
	if (supervisor->gate_fd >= 0 && gate_open(&plan->instance, supervisor->gate_fd, &supervisor->err))
		give_up(supervisor);
	supervisor->gate_fd = -1;
	if (!guessed)
		start_init(supervisor);
	start_pager(supervisor, false);
	for (int i = 0; i < 3; i++)
		close_fd(&plan->stdio[i]); /* the tree's now: who reads them must see their end when it ends */
	save_state(supervisor);
	if (plan->options->container)
		report(supervisor, REPORT_READY, 0);
}

void supervisor_main(struct restore_plan *plan)
{
	struct supervisor supervisor = {
		.plan = plan,
		.instance = &plan->instance,
		.keeper = { .socket_fd = -1 },
		.signal_fd = -1,
		.channel_fd = -1,
		.report_fd = -1,
		.init_pidfd = -1,
		.pager_pidfd = -1,
		.root_pidfd = -1,
		.log_fd = -1,
		.gate_fd = -1,
		.listen_fd = -1,
		.control_fd = -1,
		.starter = -1,
		.hold = { -1, -1 },
		.guard = { -1, -1 },
		.times = { .start_ns = plan->start_ns },
	};
	set_up_process(&supervisor);
	supervisor.instance->supervisor = (struct instance_process){ getpid(), process_start_time(getpid()) };
	if (plan->early) {
		supervisor.gate_fd = gate_make(supervisor.instance, &supervisor.err);
		if (supervisor.gate_fd < 0)
			give_up(&supervisor);
		start_init(&supervisor);
	}
	listen_for_criu(&supervisor);
	save_state(&supervisor); /* from here on a sweep sees whose this is */
	for (;;)
		watch(&supervisor);
}
