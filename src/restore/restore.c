/* restore: the caller's side. */
#include "restore/restore.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/base.h"
#include "restore/container.h"
#include "restore/plan.h"
#include "restore/processes.h"
#include "sys/awake.h"

/* What CRIU, and a tree with --shell-job, get as their standard files: the caller's; of a terminal in the foreground, one of
 * the tree's own that we connect with it. */
static int give_stdio(struct restore_plan *plan, struct restore_session *session, struct dp_err *err)
{
	const struct restore_options *options = plan->options;
	cleanup_fd int slave_fd = -1;
	if (!options->foreground && !options->shell_job)
		return 0;
	if (options->foreground && options->shell_job && isatty(0)) {
		int ret = terminal_open(&session->terminal, &slave_fd, err);
		if (ret)
			return ret;
	}
	for (int i = 0; i < 3; i++)
		plan->stdio[i] = fcntl(slave_fd >= 0 && isatty(i) ? slave_fd : i, F_DUPFD_CLOEXEC, 3);
	return 0;
}

static int fork_supervisor(struct restore_plan *plan, struct restore_session *session, struct dp_err *err)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return dp_fail_errno(err, errno, "socket pair for the supervisor");
	plan->report_fd = pair[1];
	int ret = give_stdio(plan, session, err);
	if (ret) {
		close(pair[0]);
		close(pair[1]);
		return ret;
	}
	session->supervisor = fork();
	if (session->supervisor == 0 && plan->options->container && fork() != 0)
		_exit(0); /* a runtime must not find a child that it never made */
	if (session->supervisor == 0)
		supervisor_main(plan);
	int code = errno;
	for (int i = 0; i < 3; i++)
		if (plan->stdio[i] >= 0)
			close(plan->stdio[i]);
	close(pair[1]);
	session->report_fd = pair[0];
	return session->supervisor < 0 ? dp_fail_errno(err, code, "fork the supervisor") : 0;
}

/* Blocks for the next report. -EPIPE: the supervisor died without one. */
static int next_report(struct restore_session *session, struct report *report)
{
	ssize_t got;
	do
		got = recv(session->report_fd, report, sizeof(*report), 0);
	while (got < 0 && errno == EINTR);
	return got == sizeof(*report) ? 0 : -EPIPE;
}

/* A pool that was not known before; what was waited is no part of the restore. */
static int await_pool(struct restore_plan *plan, struct restore_session *session, struct dp_err *err)
{
	const struct restore_options *options = plan->options;
	int ret = options->late ? options->await(options->await_context, options->late, err) : 0;
	if (options->late && !ret) {
		endpoint_pool_text(options->late, plan->instance.pool, sizeof(plan->instance.pool));
		session->times.start_ns = plan->start_ns = clock_now_ns();
	}
	return ret;
}

/* Fetches and checks, and tells the supervisor what came of it. */
static int decide(struct restore_plan *plan, struct restore_session *session, struct dp_err *err)
{
	struct verdict verdict;
	int ret = await_pool(plan, session, err);
	if (!ret)
		ret = plan_make(plan, &session->times, err);
	verdict = (struct verdict){ .cancelled = ret, .plan = *plan };
	if (plan->options->late)
		verdict.late = *plan->options->late;
	int told = send_with_fd(session->report_fd, &verdict, sizeof(verdict), -1);
	/* Where it cannot be told, the supervisor has failed, and its report says why; should it still be there, it must not wait
	 * for ever. */
	if (told < 0)
		shutdown(session->report_fd, SHUT_WR);
	return ret;
}

static enum report_kind wanted_report(const struct restore_options *options)
{
	return options->container ? REPORT_READY : options->hold ? REPORT_HELD : REPORT_RUNNING;
}

static int start(const struct restore_options *options, struct restore_session *session, struct dp_err *err)
{
	struct restore_plan plan;
	struct report report;
	*session = (struct restore_session){ .report_fd = -1, .terminal.master_fd = -1, .times.start_ns = clock_now_ns() };
	int ret = plan_begin(options, &plan, err);
	plan.start_ns = session->times.start_ns;
	if (!ret) {
		ret = fork_supervisor(&plan, session, err);
		if (ret)
			instance_remove(&plan.instance, NULL);
	}
	if (!ret) {
		ret = decide(&plan, session, err);
		bool none = next_report(session, &report); /* after a failure of ours: all is cleaned up */
		if (!ret && none)
			ret = dp_fail(err, EOWNERDEAD, "the supervisor was killed before the tree ran");
		else if (!ret && report.kind != wanted_report(options))
			ret = dp_fail(err, report.code, "%s", report.text);
	}
	if (ret) {
		restore_session_done(session);
		dp_err_doing(err, "restore %s", options->endpoint->name);
		return ret;
	}
	session->instance = report.instance;
	session->times.criu_started_ns = report.criu_started_ns;
	session->times.criu_done_ns = report.criu_done_ns;
	session->times.done_ns = clock_now_ns();
	return 0;
}

int restore_start(const struct restore_options *options, struct restore_session *session, struct dp_err *err)
{
	struct awake awake; /* a restore is a chain of processes that wake each other */
	awake_init(&awake, !options->may_sleep);
	awake_hold(&awake, clock_now_ns());
	int ret = start(options, session, err);
	awake_done(&awake);
	return ret;
}

int restore_prepare(const struct restore_options *options, struct restore_session *session, struct dp_err *err)
{
	return start(options, session, err);
}

int restore_go(struct restore_session *session, const char *name, const char *group, bool foreground, struct dp_err *err)
{
	struct go go = { .start_ns = clock_now_ns(), .foreground = foreground };
	struct report report;
	snprintf(go.name, sizeof(go.name), "%s", name);
	snprintf(go.group, sizeof(go.group), "%s", group);
	session->times = (struct restore_times){ .start_ns = go.start_ns };
	if (send_with_fd(session->report_fd, &go, sizeof(go), -1) || next_report(session, &report))
		return dp_fail(err, EOWNERDEAD, "the spare was not there any more");
	if (report.kind != REPORT_RUNNING)
		return dp_fail(err, report.code, "%s", report.text);
	session->instance = report.instance;
	session->times.opened_ns = session->times.fetched_ns = session->times.checked_ns = go.start_ns;
	session->times.criu_started_ns = go.start_ns;
	session->times.criu_done_ns = report.criu_done_ns;
	session->times.done_ns = clock_now_ns();
	return 0;
}

int restore_container_start(struct restore_options *options, struct restore_container *container, struct instance *instance,
			    struct dp_err *err)
{
	struct restore_session session;
	options->container = container;
	options->host_pid_namespace = true; /* the runtime makes what there is to make */
	cleanup_fd int self = pidfd_open(getpid(), 0);
	if (self < 0)
		return dp_fail_errno(err, errno, "pidfd of this process");
	container->caller_pidfd = self;
	int ret = start(options, &session, err);
	if (ret)
		return ret;
	waitpid(session.supervisor, NULL, 0); /* the one between, which has ended */
	close(session.report_fd);
	*instance = session.instance;
	return 0;
}

static void pass_on(const struct restore_session *session, int signal_fd)
{
	struct signalfd_siginfo info;
	if (read(signal_fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo == SIGWINCH && session->terminal.master_fd >= 0) {
		terminal_resize(&session->terminal); /* the tree's terminal tells whom it concerns */
		return;
	}
	int32_t number = (int32_t)info.ssi_signo;
	send(session->report_fd, &number, sizeof(number), MSG_NOSIGNAL);
}

int restore_wait(struct restore_session *session, const sigset_t *forward, int *exit_code, struct dp_err *err)
{
	struct report report;
	cleanup_fd int signal_fd = forward ? signalfd(-1, forward, SFD_CLOEXEC | SFD_NONBLOCK) : -1;
	if (forward && signal_fd < 0)
		return dp_fail_errno(err, errno, "signalfd");
	struct pollfd polls[] = {
		{ .fd = session->report_fd, .events = POLLIN },
		{ .fd = signal_fd, .events = POLLIN },
		{ .fd = session->terminal.master_fd >= 0 ? 0 : -1, .events = POLLIN },
		{ .fd = session->terminal.master_fd, .events = POLLIN },
	};
	if (session->terminal.master_fd >= 0)
		terminal_start(&session->terminal);
	while (!polls[0].revents) {
		if (poll(polls, ARRAY_LENGTH(polls), -1) < 0 && errno != EINTR)
			return dp_fail_errno(err, errno, "poll");
		if (polls[1].revents)
			pass_on(session, signal_fd);
		if (polls[2].revents && !terminal_copy_in(&session->terminal))
			polls[2].fd = -1;
		if (polls[3].revents && !terminal_copy_out(&session->terminal))
			polls[3].fd = -1;
	}
	terminal_done(&session->terminal);
	int ret = 0;
	if (next_report(session, &report)) {
		ret = dp_fail(err, EOWNERDEAD, "the supervisor was killed; %s runs on without it (`distri-proc stop %s` ends it)",
			      session->instance.name, session->instance.id);
	} else {
		*exit_code = report.code;
		if (report.text[0])
			ret = dp_fail(err, ECHILD, "%s", report.text);
	}
	if (ret)
		dp_err_doing(err, "%s", session->instance.name);
	return ret;
}

void restore_session_done(struct restore_session *session)
{
	if (session->report_fd >= 0)
		close(session->report_fd);
	session->report_fd = -1;
	terminal_done(&session->terminal);
	if (session->supervisor > 0)
		waitpid(session->supervisor, NULL, WNOHANG);
	session->supervisor = 0;
}
