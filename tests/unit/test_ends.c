/* How a process and its memory end, as the kernel tells it: what space.c builds on. Real processes, a real userfaultfd. Each
 * target has, like a process with a warden, a second process in its memory ("sharer"), where the test wants one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "sys/proc.h"
#include "sys/uffd.h"

/* ---- the target ---- */

struct target {
	pid_t pid, sharer;
	int pidfd, uffd, order_fd; /* a byte on order_fd: go on */
	uint64_t address;          /* of a page whose first byte is 'm' */
};

/* Between test and target. */
struct board {
	pid_t sharer;
	int uffd;
	uint64_t address;
	_Atomic int ready;
};
static struct board *board;
static char sharer_stack[65536] __attribute__((aligned(16)));

static int sleep_on(void *ignored)
{
	(void)ignored;
	for (;;)
		pause();
	return 0;
}
static void *thread_sleeps(void *ignored)
{
	sleep_on(ignored);
	return NULL;
}

enum sharing { ALONE, SHARED };
enum ending { LEADER_ENDS, EXECUTES, EXITS, SLEEPS };

static void live(int order_fd, enum sharing sharing, enum ending ending) __attribute__((noreturn));
static void live(int order_fd, enum sharing sharing, enum ending ending)
{
	char byte;
	pthread_t thread;
	struct uffdio_api api = { .api = UFFD_API };
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	board->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (board->uffd < 0 || ioctl(board->uffd, UFFDIO_API, &api))
		_exit(2);
	char *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	page[0] = 'm';
	board->address = (uint64_t)(uintptr_t)page;
	if (sharing == SHARED)
		board->sharer = clone(sleep_on, sharer_stack + sizeof(sharer_stack), CLONE_VM, NULL);
	board->ready = 1;
	if (read(order_fd, &byte, 1) != 1)
		_exit(3);
	if (ending == LEADER_ENDS) {
		pthread_create(&thread, NULL, thread_sleeps, NULL);
		syscall(SYS_exit, 0); /* of this thread only */
	}
	if (ending == EXECUTES)
		execl("/bin/sleep", "sleep", "60", NULL);
	if (ending == SLEEPS)
		sleep_on(NULL);
	_exit(0);
}

static void start(struct target *target, enum sharing sharing, enum ending ending)
{
	int order[2];
	*board = (struct board){ .sharer = 0 };
	assert_int_equal(pipe2(order, O_CLOEXEC), 0);
	target->pid = fork();
	if (target->pid == 0)
		live(order[0], sharing, ending);
	close(order[0]);
	target->order_fd = order[1];
	while (!board->ready)
		usleep(100);
	target->sharer = board->sharer;
	target->address = board->address;
	target->pidfd = proc_pidfd_open(target->pid);
	target->uffd = proc_pidfd_getfd(target->pidfd, board->uffd);
	assert_true(target->pidfd >= 0 && target->uffd >= 0);
}

static void go_on(const struct target *target)
{
	assert_int_equal(write(target->order_fd, "g", 1), 1);
}

static void end(struct target *target)
{
	if (target->sharer > 0)
		kill(target->sharer, SIGKILL);
	kill(target->pid, SIGKILL);
	waitpid(target->pid, NULL, 0);
	close(target->order_fd);
	close(target->pidfd);
	close(target->uffd);
}

/* ---- what can be asked ---- */

static bool memory_is_gone(const struct target *target)
{
	int error;
	uffd_zero(target->uffd, 0x7fffffffe000ull, PAGE_BYTES, &error);
	return error == -ESRCH;
}

static bool reads_memory(pid_t pid, const struct target *target)
{
	char byte = 0;
	struct iovec local = { &byte, 1 }, remote = { (void *)target->address, 1 };
	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == 1 && byte == 'm';
}

static bool is_called_sleep(pid_t pid)
{
	char path[64];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	return io_read_file(path, &text, 64) > 0 && !strcmp(text, "sleep\n");
}

/* Events are waited for; 20 s is "never". */
#define WAIT_FOR(condition)                                        \
	do {                                                       \
		for (unsigned turn_ = 0; !(condition) && turn_ < 20000; turn_++) \
			usleep(1000);                              \
		assert_true(condition);                            \
	} while (0)

/* ---- the facts ---- */

static void first_thread_ends__others_go_on__process_lives(void **state)
{
	(void)state;
	struct target target;
	start(&target, SHARED, LEADER_ENDS);
	go_on(&target);
	WAIT_FOR(proc_state(target.pid) == 'Z');
	assert_false(proc_pidfd_has_ended(target.pidfd));
	assert_false(memory_is_gone(&target));
	/* All that is asked by the process's number is answered as if it had no memory, or another. */
	assert_false(proc_has_memory(target.pid));
	assert_int_equal(proc_same_memory(target.pid, target.sharer), 0);
	assert_false(reads_memory(target.pid, &target));
	pid_t thread = proc_live_thread(target.pid);
	assert_true(thread > 0 && thread != target.pid);
	assert_int_equal(proc_same_memory(thread, target.sharer), 1);
	assert_true(reads_memory(thread, &target));
	kill(target.pid, SIGKILL);
	WAIT_FOR(proc_pidfd_has_ended(target.pidfd));
	end(&target);
}

static void process_ends__sharer_lives__memory_stays(void **state)
{
	(void)state;
	struct target target;
	start(&target, SHARED, EXITS);
	go_on(&target);
	WAIT_FOR(proc_pidfd_has_ended(target.pidfd));
	assert_int_equal(proc_live_thread(target.pid), 0);
	assert_false(memory_is_gone(&target));
	assert_true(reads_memory(target.sharer, &target));
	kill(target.sharer, SIGKILL);
	WAIT_FOR(memory_is_gone(&target));
	end(&target);
}

static void process_executes__sharer_lives__memory_stays(void **state)
{
	(void)state;
	struct target target;
	start(&target, SHARED, EXECUTES);
	go_on(&target);
	WAIT_FOR(is_called_sleep(target.pid));
	assert_false(proc_pidfd_has_ended(target.pidfd));
	assert_false(memory_is_gone(&target));
	assert_int_equal(proc_same_memory(target.pid, target.sharer), 0);
	assert_true(proc_has_memory(target.pid) && proc_has_memory(target.sharer));
	assert_true(reads_memory(target.sharer, &target));
	kill(target.sharer, SIGKILL);
	WAIT_FOR(memory_is_gone(&target));
	end(&target);
}

static void process_executes__alone__memory_is_gone(void **state)
{
	(void)state;
	struct target target;
	start(&target, ALONE, EXECUTES);
	go_on(&target);
	WAIT_FOR(memory_is_gone(&target));
	assert_false(proc_pidfd_has_ended(target.pidfd));
	end(&target);
}

static void process_is_killed__alone__memory_is_gone_before_it_is_reaped(void **state)
{
	(void)state;
	struct target target;
	start(&target, ALONE, SLEEPS);
	assert_false(memory_is_gone(&target));
	kill(target.pid, SIGKILL);
	WAIT_FOR(memory_is_gone(&target));
	WAIT_FOR(proc_pidfd_has_ended(target.pidfd));
	assert_int_equal(proc_state(target.pid), 'Z');
	end(&target);
}

static void sharer_ends__before_it_is_reaped__differs_from_the_process(void **state)
{
	(void)state;
	struct target target;
	start(&target, SHARED, SLEEPS);
	assert_int_equal(proc_same_memory(target.pid, target.sharer), 1);
	kill(target.sharer, SIGKILL);
	WAIT_FOR(proc_state(target.sharer) == 'Z');
	assert_int_equal(proc_same_memory(target.pid, target.sharer), 0); /* as after an execve */
	assert_false(proc_has_memory(target.sharer));
	assert_false(memory_is_gone(&target));
	assert_true(reads_memory(target.pid, &target));
	end(&target);
}

int main(void)
{
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(first_thread_ends__others_go_on__process_lives),
		cmocka_unit_test(process_ends__sharer_lives__memory_stays),
		cmocka_unit_test(process_executes__sharer_lives__memory_stays),
		cmocka_unit_test(process_executes__alone__memory_is_gone),
		cmocka_unit_test(process_is_killed__alone__memory_is_gone_before_it_is_reaped),
		cmocka_unit_test(sharer_ends__before_it_is_reaped__differs_from_the_process),
	};
	return cmocka_run_group_tests_name("ends", tests, NULL, NULL);
}
