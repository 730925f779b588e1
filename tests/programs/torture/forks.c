/* fork: the child must see its parent's memory as of the fork, whatever the parent writes afterwards, and the other way round. */
#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static bool fork_start(struct worker *worker)
{
	worker->region = region_new("fork", worker_pages(worker), worker_pages(worker), 0);
	if (!worker->region)
		return false;
	region_write_all(worker->region);
	return true;
}

/* Child checks every region of the program; the locks make the moment of the fork consistent. */
static bool fork_everything(struct worker *worker)
{
	pthread_rwlock_wrlock(&world);
	int pid = fork();
	if (pid == 0)
		_exit(regions_check_everything() ? 0 : 1);
	pthread_rwlock_unlock(&world);
	return child_wait(pid, "fork: check everything");
}

/* No lock: the other threads fault and write on while the fork happens; the child looks at this thread's pages only. */
static bool fork_own(struct worker *worker)
{
	int pid = fork();

	if (pid == 0)
		_exit(region_check_all(worker->region) ? 0 : 1);
	pthread_rwlock_rdlock(&world);
	for (uint64_t i = 0; i < worker->region->pages / 2; i++)
		region_write(worker->region, random_below(&worker->random, worker->region->pages));
	pthread_rwlock_unlock(&world);
	return child_wait(pid, "fork: check own region") && region_check_all(worker->region);
}

static void grandchild(struct worker *worker)
{
	struct region *region = worker->region;

	if (!region_check_all(region))
		_exit(1);
	for (uint64_t index = 0; index < region->pages; index += 3)
		region_write(region, index);
	_exit(region_check_all(region) ? 0 : 1);
}

static bool fork_again(struct worker *worker)
{
	struct region *region = worker->region;
	int pid = fork();

	if (pid == 0) {
		for (uint64_t index = 0; index < region->pages; index += 2)
			region_write(region, index);
		int second = fork();
		if (second == 0)
			grandchild(worker);
		for (uint64_t index = 1; index < region->pages; index += 2)
			region_write(region, index);
		_exit(child_wait(second, "fork: grandchild") && region_check_all(region) ? 0 : 1);
	}
	return child_wait(pid, "fork: child that forks") && region_check_all(region);
}

/* A child that ends while most of its pages were never looked at: its faults and its space must not outlive it. */
static bool fork_and_leave(struct worker *worker)
{
	int pid = fork();

	if (pid == 0)
		_exit(region_check(worker->region, 0) ? 0 : 1);
	return child_wait(pid, "fork: child that leaves at once");
}

static bool fork_round(struct worker *worker)
{
	switch (worker->round % 8) {
	case 3:
		return fork_everything(worker);
	case 1:
	case 5:
		return fork_again(worker);
	case 6:
		return fork_and_leave(worker);
	default:
		return fork_own(worker);
	}
}

static bool exec_start(struct worker *worker)
{
	return true;
}

static bool exec_round(struct worker *worker)
{
	char *const arguments[] = {(char *)"true", NULL};
	int pid = fork();

	if (pid == 0) {
		execv("/bin/true", arguments);
		_exit(errno == ENOENT ? 0 : 127);
	}
	usleep(20000);
	return child_wait(pid, "exec: child that runs /bin/true");
}

/* CRIU refuses a tree in which a vfork is under way (two tasks, one mm), so this waits for SIGUSR2, sent after a restore. */
static bool spawn_round(struct worker *worker)
{
	char *const arguments[] = {(char *)"true", NULL};
	pid_t pid;

	usleep(20000);
	if (!board->spawn_allowed)
		return true;
	pthread_mutex_lock(&places); /* it maps a stack */
	int error = posix_spawn(&pid, "/bin/true", NULL, NULL, arguments, environ);
	pthread_mutex_unlock(&places);
	if (error)
		return torture_fail("spawn: /bin/true: %s", strerror(error));
	return child_wait(pid, "spawn: /bin/true");
}

const struct kind kind_fork = {.name = "fork", .what = "children and grandchildren that check the memory as of the fork",
			       .share_percent = 8, .start = fork_start, .round = fork_round};
const struct kind kind_exec = {.name = "exec", .what = "children that exec", .start = exec_start, .round = exec_round};
const struct kind kind_spawn = {.name = "spawn", .what = "posix_spawn (vfork), from SIGUSR2 on", .start = exec_start,
				.round = spawn_round};
