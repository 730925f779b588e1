#include "checkpoint/through.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"
#include "checkpoint/push.h"
#include "instance/instance.h"
#include "instance/process.h"
#include "pager/control.h"
#include "pager/through.h"
#include "sys/proc.h"

#define COME_TO_REST_NS 500000u    /* who runs code of its own has stopped long before; the others are within the kernel */
#define WRITE_NS 100000000u        /* for the write to be made; who needs longer waits for something else too */
#define NAP_NS 20000
#define TRIES 20u                  /* a millisecond apart, to seize what another traces */
#define RUN_NS 2000000u            /* a writer makes its writes for so long, or until its next system call */

struct thread {
	pid_t tid;
	bool faulted; /* waited for a page in user mode when it was seized */
	bool stopped;
	int signal;   /* that it was stopped for: delivered when it goes on */
};

/* Stays writable: the kernel writes to it (PTRACE_GET_RSEQ_CONFIGURATION). */
struct left {
	uint64_t space, pgno;
	uint64_t hash; /* as it was pushed last; 0: never */
};

struct tracer {
	struct push push;
	struct left *left;
	size_t left_count, left_room;
	struct thread *threads; /* seized, by this session or by one before that did not see them stop */
	size_t count, room;
	pid_t pid;
	uint64_t space; /* of the session */
	const volatile bool *stop;
};

static void nap(long ns)
{
	nanosleep(&(const struct timespec){ .tv_nsec = ns }, NULL);
}

/* ---- threads ---- */

static struct thread *find(struct tracer *tracer, pid_t tid)
{
	for (size_t i = 0; i < tracer->count; i++)
		if (tracer->threads[i].tid == tid)
			return &tracer->threads[i];
	return NULL;
}

static struct thread *add(struct tracer *tracer, pid_t tid)
{
	if (tracer->count == tracer->room) {
		size_t room = tracer->room ? tracer->room * 2 : 64;
		struct thread *larger = reallocarray(tracer->threads, room, sizeof(*larger));
		if (!larger)
			return NULL;
		tracer->threads = larger;
		tracer->room = room;
	}
	tracer->threads[tracer->count] = (struct thread){ .tid = tid };
	return &tracer->threads[tracer->count++];
}

static void forget(struct tracer *tracer, const struct thread *thread)
{
	size_t at = (size_t)(thread - tracer->threads);
	tracer->threads[at] = tracer->threads[--tracer->count];
}

/* Until its next system call: so far nobody outside can have seen what it writes, as the others stand still. */
static void run(struct thread *thread)
{
	thread->stopped = ptrace(PTRACE_SYSCALL, thread->tid, NULL, (void *)(uintptr_t)thread->signal) != 0; /* it is ending */
	thread->faulted = false;
	thread->signal = 0;
}

static void take_stop(struct thread *thread, int status)
{
	bool call = WSTOPSIG(status) == (SIGTRAP | 0x80); /* PTRACE_O_TRACESYSGOOD */
	thread->stopped = true;
	if (!call && status >> 16 == 0)
		thread->signal = WSTOPSIG(status);
}

/* Takes one thing that has happened to a thread. false: nothing has. */
static bool take_event(struct tracer *tracer)
{
	int status;
	pid_t tid = waitpid(-1, &status, __WALL | WNOHANG);
	if (tid <= 0)
		return false;
	struct thread *thread = find(tracer, tid);
	if (!thread)
		thread = add(tracer, tid); /* one that was being made (PTRACE_O_TRACECLONE) */
	if (thread && WIFSTOPPED(status))
		take_stop(thread, status);
	else if (thread)
		forget(tracer, thread);
	return true;
}

static bool all_stopped(const struct tracer *tracer)
{
	for (size_t i = 0; i < tracer->count; i++)
		if (!tracer->threads[i].stopped)
			return false;
	return true;
}

static void wait_for_stops(struct tracer *tracer, uint64_t ns)
{
	uint64_t until_ns = clock_now_ns() + ns;
	while (!all_stopped(tracer) && clock_now_ns() < until_ns)
		if (!take_event(tracer))
			nap(NAP_NS);
}

static void let_go(struct tracer *tracer)
{
	for (size_t i = tracer->count; i-- > 0;)
		if (tracer->threads[i].stopped) {
			ptrace(PTRACE_DETACH, tracer->threads[i].tid, NULL, (void *)(uintptr_t)tracer->threads[i].signal);
			forget(tracer, &tracer->threads[i]);
		}
}

/* Seizes it and asks it to stop, if that was not done, by this session or one before. -EPERM: another traces it. */
static int seize(void *context, pid_t tid)
{
	struct tracer *tracer = context;
	long call = 0;
	uint64_t run_ns;
	struct thread *thread = find(tracer, tid);
	if (thread && !thread->stopped) /* by a session before, which did not see it stop */
		ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	if (thread)
		return 0;
	/* Within no system call, and not running: it waits for a page. */
	bool faulted = !proc_thread_call(tracer->pid, tid, &call, &run_ns) && call == -1;
	if (ptrace(PTRACE_SEIZE, tid, NULL, (void *)(uintptr_t)(PTRACE_O_TRACECLONE | PTRACE_O_TRACESYSGOOD)))
		return errno == ESRCH ? 0 : -errno;
	thread = add(tracer, tid);
	if (!thread)
		return -ENOMEM;
	thread->faulted = faulted;
	ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	return 0;
}

/* false: another traces it, and goes on to. */
static bool stop_process(struct tracer *tracer)
{
	for (unsigned try = 0; try < TRIES; try++) {
		size_t before;
		int ret;
		do { /* those that were made meanwhile too */
			before = tracer->count;
			ret = proc_each_thread(tracer->pid, seize, tracer);
			wait_for_stops(tracer, COME_TO_REST_NS);
		} while (!ret && tracer->count > before);
		if (!ret || ret == -ESRCH)
			return true;
		let_go(tracer);
		nap(1000000);
	}
	return false;
}

static void interrupt_others(const struct tracer *tracer)
{
	for (size_t i = 0; i < tracer->count; i++)
		if (!tracer->threads[i].stopped)
			ptrace(PTRACE_INTERRUPT, tracer->threads[i].tid, NULL, NULL);
}

/* Each that waited in user mode makes its write, and goes on to its next system call, or for a moment; on its way to user mode
 * the kernel may first write to its rseq area, which is why some come to rest only now. */
static void make_writes(struct tracer *tracer)
{
	uint64_t until_ns = clock_now_ns() + RUN_NS;
	do {
		if (!take_event(tracer) && !all_stopped(tracer))
			nap(NAP_NS);
		for (size_t i = 0; i < tracer->count; i++) {
			struct thread *thread = &tracer->threads[i];
			if (thread->stopped && thread->faulted)
				run(thread);
		}
	} while (!all_stopped(tracer) && clock_now_ns() < until_ns);
	interrupt_others(tracer);
	wait_for_stops(tracer, WRITE_NS);
}

/* ---- sessions ---- */

static int leave(struct tracer *tracer, uint64_t pgno, struct dp_err *err)
{
	char request[64];
	for (size_t i = 0; i < tracer->left_count; i++)
		if (tracer->left[i].space == tracer->space && tracer->left[i].pgno == pgno)
			return 0;
	if (tracer->left_count == tracer->left_room) {
		size_t room = tracer->left_room ? tracer->left_room * 2 : 64;
		struct left *larger = reallocarray(tracer->left, room, sizeof(*larger));
		if (!larger)
			return dp_fail(err, ENOMEM, "out of memory");
		tracer->left = larger;
		tracer->left_room = room;
	}
	tracer->left[tracer->left_count++] = (struct left){ tracer->space, pgno, 0 };
	snprintf(request, sizeof(request), "through-leave %lu", pgno);
	return control_ask(tracer->push.connection, request, NULL, err);
}

static int leave_rseq_areas(struct tracer *tracer, struct dp_err *err)
{
	int ret = 0;
	for (size_t i = 0; !ret && i < tracer->count; i++) {
		struct __ptrace_rseq_configuration rseq = { 0 };
		if (tracer->threads[i].stopped &&
		    ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tracer->threads[i].tid, (void *)sizeof(rseq), &rseq) > 0 &&
		    rseq.rseq_abi_pointer)
			ret = leave(tracer, rseq.rseq_abi_pointer >> PAGE_SHIFT, err);
	}
	return ret;
}

static int flush(struct tracer *tracer, struct dp_err *err)
{
	int ret = tracer->push.window->count ? -EAGAIN : 0;
	while (ret == -EAGAIN && !*tracer->stop) {
		ret = propagate_push(tracer->push.connection, err);
		if (ret == -EAGAIN)
			nap(1000000);
	}
	tracer->push.window->count = 0;
	return ret == -EAGAIN ? 0 : ret;
}

/* Into the window, in ascending order; what has gone is left out, and what is as `known` (NULL: nothing is) says. */
static int add_page(struct tracer *tracer, uint64_t pgno, uint64_t *known, struct dp_err *err)
{
	struct push_window *window = tracer->push.window;
	bool behind = !window->count || pgno > window->pgno[window->count - 1];
	int ret = behind && window->count < PUSH_PAGES ? 0 : flush(tracer, err);
	void *to = window->content[window->count];
	struct iovec local = { to, PAGE_BYTES }, remote = { (void *)(pgno << PAGE_SHIFT), PAGE_BYTES };
	if (ret || process_vm_readv(tracer->pid, &local, 1, &remote, 1, 0) != (ssize_t)PAGE_BYTES)
		return ret;
	uint64_t hash = known ? page_hash(to) : 0;
	if (known && hash == *known)
		return 0;
	if (known)
		*known = hash;
	window->pgno[window->count++] = pgno;
	return 0;
}

static int push_pages(struct tracer *tracer, const struct through_pages *pages, struct dp_err *err)
{
	int ret = 0;
	tracer->push.window->space = pages->space;
	tracer->push.window->count = 0;
	for (uint64_t i = 0; !ret && i < pages->count; i++)
		ret = add_page(tracer, pages->pgno[i], NULL, err);
	for (size_t i = 0; !ret && i < tracer->left_count; i++)
		if (tracer->left[i].space == tracer->space)
			ret = add_page(tracer, tracer->left[i].pgno, &tracer->left[i].hash, err);
	return ret ? ret : flush(tracer, err);
}

static int serve(struct tracer *tracer, struct through_pages *pages, struct dp_err *err)
{
	int connection = tracer->push.connection;
	tracer->pid = (pid_t)pages->pid;
	tracer->space = pages->space;
	bool stopped = stop_process(tracer);
	int ret = control_ask(connection, "through-open", NULL, err);
	if (!ret && stopped)
		make_writes(tracer);
	if (!ret)
		ret = leave_rseq_areas(tracer, err);
	if (!ret)
		ret = control_say(connection, "through-close", "ask the pager for what was written", err);
	if (!ret)
		ret = through_receive(connection, pages, err);
	if (!ret)
		ret = push_pages(tracer, pages, err);
	let_go(tracer);
	return ret;
}

/* What differs from the pool's copy now: written before there was a tracer. */
static int push_all(struct tracer *tracer, struct dp_err *err)
{
	int64_t ret = -EAGAIN;
	while (ret == -EAGAIN && !*tracer->stop) {
		ret = push_round(&tracer->push, UINT64_MAX, tracer->stop, err);
		if (ret == -EAGAIN)
			nap(10000000);
	}
	return (int)DP_MIN(ret, 0);
}

static int wait_for_writes(struct tracer *tracer, int tree_fd, struct dp_err *err)
{
	struct pollfd polled[] = { { .fd = tracer->push.connection, .events = POLLIN }, { .fd = tree_fd, .events = POLLIN } };
	int ret = control_say(tracer->push.connection, "through-next", "ask the pager for writes", err);
	while (!ret) {
		poll(polled, ARRAY_LENGTH(polled), tracer->count ? 1 : 1000);
		while (take_event(tracer)) /* threads that had not stopped when their session was over */
			;
		let_go(tracer);
		if (*tracer->stop || polled[1].revents)
			return 1;
		if (polled[0].revents)
			return 0;
	}
	return ret;
}

static int trace(struct tracer *tracer, int tree_fd, struct dp_err *err)
{
	struct through_pages pages;
	int ret = push_all(tracer, err);
	while (!ret && !*tracer->stop) {
		ret = wait_for_writes(tracer, tree_fd, err);
		if (ret)
			break;
		ret = through_receive(tracer->push.connection, &pages, err);
		if (!ret)
			ret = serve(tracer, &pages, err);
	}
	bool ended = poll(&(struct pollfd){ .fd = tree_fd, .events = POLLIN }, 1, ret < 0 ? 100 : 0) > 0;
	return ended ? 0 : ret < 0 ? ret : 1;
}

int through_run(const char *registry, const char *key, const volatile bool *stop, struct dp_err *err)
{
	struct instance instance;
	char path[PATH_MAX];
	struct tracer tracer = { .stop = stop };
	int ret = instance_find(registry, key, &instance, err);
	if (ret)
		return ret;
	cleanup_fd int tree_fd = process_open(instance.root.pid, instance.root.start_time);
	if (tree_fd < 0)
		return dp_fail_errno(err, -tree_fd, "instance %s has ended", instance.id);
	int connection = control_connect(instance_path(&instance, "control.sock", path, sizeof(path)), err);
	if (connection < 0)
		return connection;
	ret = push_open(&tracer.push, connection, err);
	if (ret)
		return ret;
	prctl(PR_SET_TIMERSLACK, 1000);
	ret = trace(&tracer, tree_fd, err);
	push_close(&tracer.push);
	free(tracer.threads);
	free(tracer.left);
	return ret;
}
