#include "migrate/offer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "checkpoint/criu_dump.h"
#include "migrate/offerer.h"
#include "migrate/record.h"
#include "sys/proc.h"

struct offer {
	pid_t offerer; /* 0: waited for */
	int control_fd, pidfd;
	bool settled; /* released or resumed */
	int exit_code;
};

/* Everything but where errors go and what it talks to us by: a forgotten pipe would keep its reader waiting. */
static int keep_only(int control_fd)
{
	int low = STDERR_FILENO + 1, null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0)
		return -errno;
	if (control_fd != low && dup3(control_fd, low, O_CLOEXEC) < 0)
		return -errno;
	return syscall(SYS_close_range, (unsigned)low + 1, ~0u, 0u) < 0 ? -errno : 0;
}

static void run_offerer(const struct offer_options *options, int control_fd)
{
	sigset_t none;
	sigemptyset(&none);
	for (int number = 1; number < 32; number++)
		signal(number, SIG_DFL);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (keep_only(control_fd) < 0)
		_exit(1);
	offerer_main(options, STDERR_FILENO + 1);
}

/* The offerer's next reply, whole. -ECANCELED: it is gone. */
static int hear(struct offer *offer, struct offerer_reply *reply, struct dp_err *err)
{
	ssize_t got;
	while ((got = recv(offer->control_fd, reply, sizeof(*reply), 0)) < 0 && errno == EINTR)
		;
	if (got != sizeof(*reply))
		return dp_fail(err, ECANCELED, "the offering process has ended: the tree runs on, or is dead");
	return reply->result < 0 ? dp_fail(err, -reply->result, "%s", reply->err.text) : 0;
}

static int ask(struct offer *offer, struct offerer_command command, struct offerer_reply *reply, struct dp_err *err)
{
	if (send(offer->control_fd, &command, sizeof(command), MSG_NOSIGNAL) < 0)
		return dp_fail(err, ECANCELED, "the offering process has ended: the tree runs on, or is dead");
	return hear(offer, reply, err);
}

static void reap(struct offer *offer)
{
	int status = 0;
	if (offer->offerer <= 0)
		return;
	while (waitpid(offer->offerer, &status, 0) < 0 && errno == EINTR)
		;
	offer->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	offer->offerer = 0;
}

static int start(struct offer *offer, const struct offer_options *options, struct dp_err *err)
{
	int pair[2], size = 1 << 16;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return dp_fail_errno(err, errno, "make a control socket");
	setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	offer->control_fd = pair[0];
	offer->offerer = fork();
	if (offer->offerer == 0)
		run_offerer(options, pair[1]);
	close(pair[1]);
	if (offer->offerer < 0)
		return dp_fail_errno(err, errno, "start the offering process");
	offer->pidfd = proc_pidfd_open(offer->offerer);
	return offer->pidfd < 0 ? dp_fail_errno(err, -offer->pidfd, "watch the offering process") : 0;
}

int offer_make(struct offer **result, const struct offer_options *options, struct offer_facts *facts, struct dp_err *err)
{
	struct offer *offer = calloc(1, sizeof(*offer));
	struct offerer_reply *reply = calloc(1, sizeof(*reply));
	int rc = offer && reply ? 0 : dp_fail_errno(err, ENOMEM, "offer");
	if (offer)
		offer->control_fd = offer->pidfd = -1;
	if (rc == 0)
		rc = start(offer, options, err);
	while (rc == 0 && (rc = hear(offer, reply, err)) == 0 && reply->result == OFFERER_ROUND)
		if (options->on_round)
			options->on_round(options->context, &reply->round);
	if (rc == 0) {
		*facts = reply->facts;
		*result = offer;
	} else {
		dp_err_doing(err, "offer of process %d", options->pid);
		offer_free(offer);
	}
	free(reply);
	return rc;
}

int offer_fd(const struct offer *offer)
{
	return offer->pidfd;
}

int offer_progress(struct offer *offer, struct offer_progress *progress, struct dp_err *err)
{
	struct offerer_reply reply;
	int rc = ask(offer, (struct offerer_command){ .verb = OFFERER_PROGRESS }, &reply, err);
	if (rc == 0)
		*progress = reply.progress;
	return rc;
}

int offer_confirm(struct offer *offer, struct dp_err *err)
{
	struct offerer_reply reply;
	return ask(offer, (struct offerer_command){ .verb = OFFERER_CONFIRM }, &reply, err);
}

int offer_release(struct offer *offer, bool keep_pages, struct dp_err *err)
{
	struct offerer_reply reply;
	int rc = ask(offer, (struct offerer_command){ .verb = OFFERER_RELEASE, .keep_pages = keep_pages }, &reply, err);
	offer->settled = offer->settled || rc == 0;
	return rc;
}

int offer_resume(struct offer *offer, struct dp_err *err)
{
	struct offerer_reply reply;
	int rc = ask(offer, (struct offerer_command){ .verb = OFFERER_RESUME }, &reply, err);
	offer->settled = offer->settled || rc == 0;
	return rc;
}

int offer_detach(struct offer *offer, struct dp_err *err)
{
	struct offerer_reply reply;
	int rc = ask(offer, (struct offerer_command){ .verb = OFFERER_DETACH }, &reply, err);
	offer->settled = offer->settled || rc == 0;
	return rc;
}

int offer_wait(struct offer *offer, struct dp_err *err)
{
	reap(offer);
	return offer->exit_code ? dp_fail(err, ECANCELED, "the offering process failed (code %d)", offer->exit_code) : 0;
}

int offer_hook(void)
{
	const char *record = getenv(OFFERER_RECORD);
	const char *step = getenv("CRTOOLS_SCRIPT_ACTION");
	int code = criu_dump_hook();
	bool decides = record && step && !strcmp(step, "post-dump");
	return code && decides && switch_heir(record) ? 0 : code;
}

void offer_free(struct offer *offer)
{
	if (!offer)
		return;
	dp_close_fd(&offer->control_fd); /* not settled: the offerer lets the tree go on */
	if (!offer->settled || (offer->pidfd >= 0 && proc_pidfd_has_ended(offer->pidfd)))
		reap(offer);
	dp_close_fd(&offer->pidfd);
	free(offer);
}
