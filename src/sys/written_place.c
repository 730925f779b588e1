#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/base.h"
#include "sys/inject.h"
#include "sys/proc.h"
#include "sys/written.h"

#define STOP_NS 1000000000u
#define REAP_TURNS 2000 /* of 50 us */

/* What the process that does it answers; the descriptor comes along where result is 0. */
struct answer {
	int result;
	struct dp_err err;
};

/* ---- in the process that does it ---- */

static int make_in(struct injection *target, struct dp_err *err)
{
	struct injection child;
	pid_t own_pid;
	pid_t pid = inject_clone(target, CLONE_VM, 0, &own_pid);
	if (pid < 0)
		return dp_fail_errno(err, -pid, "make a process that shares the memory of process %d", target->thread);
	int ret = inject_adopt(&child, target, pid);
	cleanup_fd int pidfd = proc_pidfd_open(pid);
	long made = ret ? ret : inject_call(&child, SYS_userfaultfd, WRITTEN_UFFD_FLAGS, 0, 0, 0, 0, 0);
	int uffd = made < 0 ? (int)made : proc_pidfd_getfd(pidfd, (int)made);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, __WALL);
	/* Its parent is the target, to which it must leave no zombie. */
	for (int i = 0; i < REAP_TURNS; i++) {
		long reaped = inject_call(target, SYS_wait4, (uint64_t)own_pid, 0, (uint64_t)(unsigned)__WALL | WNOHANG, 0, 0, 0);
		if (reaped == own_pid || reaped == -ECHILD || reaped == -ESRCH)
			break;
		usleep(50);
	}
	if (uffd < 0)
		return dp_fail_errno(err, -uffd, "make a userfaultfd in process %d", target->thread);
	return uffd;
}

static int stop_and_make(pid_t pid, struct dp_err *err)
{
	struct injection target;
	pid_t thread = proc_live_thread(pid);
	if (!thread)
		return dp_fail(err, ESRCH, "process %d is gone", pid);
	int ret = inject_begin(&target, thread, err);
	uint64_t until_ns = clock_now_ns() + STOP_NS;
	while (!ret) {
		ret = inject_stopped(&target, err);
		/* the kernel lets go of the thread when this process ends */
		if (!ret && (target.needs_page || clock_now_ns() > until_ns))
			return dp_fail(err, EAGAIN, "process %d waits in the kernel and does not stop", pid);
		if (!ret)
			usleep(20);
	}
	if (ret < 0)
		return ret;
	int uffd = make_in(&target, err);
	inject_leave(&target);
	return uffd;
}

static void place(pid_t pid, int socket_fd) __attribute__((noreturn));
static void place(pid_t pid, int socket_fd)
{
	struct answer answer = { 0 };
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL); /* an interrupt at the terminal is for others */
	signal(SIGCHLD, SIG_DFL);
	prctl(PR_SET_NAME, "dp-injector");
	int uffd = stop_and_make(pid, &answer.err);
	int ret = uffd < 0 ? uffd : written_begin(uffd);
	if (uffd >= 0 && ret)
		dp_fail_errno(&answer.err, EOPNOTSUPP, "find out which pages process %d writes", pid);
	answer.result = ret;
	const struct iovec part = { &answer, sizeof(answer) };
	io_send_with_fd(socket_fd, &part, 1, ret ? -1 : uffd, 0);
	_exit(0);
}

/* ---- in the caller ---- */

static int receive_answer(int socket_fd, pid_t pid, struct dp_err *err)
{
	struct answer answer;
	struct iovec data = { &answer, sizeof(answer) };
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t got;
	while ((got = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
		;
	if (got != sizeof(answer))
		return dp_fail(err, ESRCH, "what was to look at process %d died", pid);
	if (answer.result)
		return dp_fail(err, -answer.result, "%s", answer.err.text);
	const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(sizeof(int)))
		return dp_fail(err, EPROTO, "no descriptor of process %d came", pid);
	int uffd;
	memcpy(&uffd, CMSG_DATA(header), sizeof(int));
	return uffd;
}

int written_place(pid_t pid, struct dp_err *err)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return dp_fail_errno(err, errno, "make a socket");
	pid_t child = fork();
	if (child == 0) {
		close(pair[0]);
		place(pid, pair[1]);
	}
	int failure = errno;
	close(pair[1]);
	int ret = child < 0 ? dp_fail_errno(err, failure, "start a process") : receive_answer(pair[0], pid, err);
	close(pair[0]);
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	return ret;
}
