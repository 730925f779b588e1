#include "restore/starter.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/base.h"
#include "restore/processes.h"
#include "restore/spares.h"

int many_start_one(const struct restore_options *options, bool spare, struct restore_session *session, bool *was_spare,
		   struct dp_err *err)
{
	*was_spare = false;
	if (spare && spares_fit(options)) {
		int ret = options->name && !options->name_is_free ? instance_check_name(options->root, options->name, err) : 0;
		if (ret)
			return ret;
		if (!spares_take(options, session)) {
			ret = restore_go(session, options->name ? options->name : "", options->group ? options->group : "",
					 options->foreground, err);
			*was_spare = !ret;
			if (!ret)
				return 0;
			restore_session_done(session); /* it has just died: then one that is made now */
		}
	}
	return restore_start(options, session, err);
}

static void start(int fd, const struct restore_options *options, bool spare) __attribute__((noreturn));
static void start(int fd, const struct restore_options *options, bool spare)
{
	struct many_start done = { .report_fd = -1 };
	struct restore_session session;
	struct dp_err err = { "" };
	uint64_t began_ns = clock_now_ns();
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	done.error = options->hold ? restore_prepare(options, &session, &err)
				   : many_start_one(options, spare, &session, &done.was_spare, &err);
	done.elapsed_ns = clock_now_ns() - began_ns;
	snprintf(done.text, sizeof(done.text), "%s", err.text);
	if (!done.error)
		done.instance = session.instance;
	send_with_fd(fd, &done, sizeof(done), done.error ? -1 : session.report_fd);
	_exit(0);
}

int starter_begin(struct starter *starter, const struct restore_options *options, bool spare, struct dp_err *err)
{
	int pair[2];
	*starter = (struct starter){ .fd = -1 };
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return dp_fail_errno(err, errno, "socket pair for a start");
	pid_t pid = fork();
	if (pid == 0) {
		close(pair[0]);
		start(pair[1], options, spare);
	}
	int code = errno;
	close(pair[1]);
	if (pid < 0) {
		close(pair[0]);
		return dp_fail_errno(err, code, "fork for a start");
	}
	*starter = (struct starter){ pid, pair[0] };
	return 0;
}

void starter_end(struct starter *starter, struct many_start *start, int *report_fd)
{
	ssize_t got = receive_with_fd(starter->fd, start, sizeof(*start), report_fd);
	if (got != sizeof(*start)) {
		*start = (struct many_start){ .error = -EOWNERDEAD };
		snprintf(start->text, sizeof(start->text), "the process that was to start it was killed");
	}
	start->report_fd = -1;
	close(starter->fd);
	waitpid(starter->pid, NULL, 0);
	*starter = (struct starter){ .fd = -1 };
}

void starter_cancel(struct starter *starter)
{
	if (!starter->pid)
		return;
	kill(starter->pid, SIGKILL);
	waitpid(starter->pid, NULL, 0);
	close(starter->fd); /* with what it may have sent: a session that nobody holds */
	*starter = (struct starter){ .fd = -1 };
}
