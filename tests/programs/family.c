/* family: a process tree that does, once released by SIGUSR1, what is hard for a lazy restore whose pages are still missing.
 *
 * Before that it is a parent with patterned memory, and children that inherited it: one is a zombie, the others wait. Released,
 * one checks all, one leaves at once, one execs, one is killed in the middle of reading, one drops and one unmaps a range of
 * 3 GiB before it ever touched it, one forks children that check, one reads with many threads. The parent reaps all and checks
 * its own memory; the status file then says ok, or what was wrong first. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "torture/torture.h"

#define BIG_BYTES (3ull << 30)
#define BIG_STEP (64ull << 20) /* one page in each */
#define THREADS 64

static uint8_t *memory, *big;
static uint64_t pages;
static const char *status_path;

static void write_status(const char *text)
{
	char path[512];

	snprintf(path, sizeof(path), "%s.new", status_path);
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
	if (fd < 0)
		return;
	dprintf(fd, "%s\n", text);
	close(fd);
	rename(path, status_path);
}

static bool check_range(const uint8_t *base, uint64_t first, uint64_t last, uint64_t step, uint32_t region)
{
	for (uint64_t index = first; index < last; index += step) {
		const uint8_t *page = base + index * PAGE_BYTES;
		int wrong = pattern_find_wrong(page, region, index, 1);
		char text[160];

		if (wrong < 0)
			continue;
		pattern_describe(page, text, sizeof(text));
		return torture_fail("WRONG page %llu of region %u at %p byte %d (pid %d): found %s", (unsigned long long)index,
				    region, (const void *)page, wrong, getpid(), text);
	}
	return true;
}

static bool check_all(void)
{
	return check_range(memory, 0, pages, 1, 1) && check_range(big, 0, BIG_BYTES / PAGE_BYTES, BIG_STEP / PAGE_BYTES, 2);
}

static int check_child(void)
{
	return check_all() ? 0 : 1;
}

static int leave_child(void)
{
	return 0;
}

static int exec_child(void)
{
	execl("/bin/true", "true", (char *)NULL);
	return errno == ENOENT ? 0 : 1;
}

static int killed_child(void)
{
	for (;;)
		if (!check_all())
			return 1;
}

static bool all_zeros(void)
{
	for (uint64_t at = 0; at < BIG_BYTES; at += BIG_STEP)
		if (!page_is_zero(big + at))
			return torture_fail("WRONG big page at %p is not zeros after it was dropped (pid %d)", (void *)(big + at),
					    getpid());
	return true;
}

static int drop_child(void)
{
	if (madvise(big, BIG_BYTES, MADV_DONTNEED))
		return 1;
	return all_zeros() && check_range(memory, 0, pages, 7, 1) ? 0 : 1;
}

static int unmap_child(void)
{
	if (munmap(big, BIG_BYTES))
		return 1;
	if (mmap(big, BIG_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
		 0) != big)
		return 1;
	return all_zeros() && check_range(memory, 0, pages, 5, 1) ? 0 : 1;
}

static int move_child(void)
{
	void *place = mmap(NULL, BIG_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (place == MAP_FAILED || mremap(big, BIG_BYTES, BIG_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED)
		return 1;
	big = place;
	return check_all() ? 0 : 1;
}

static int fork_child(void)
{
	int children[4];

	for (unsigned i = 0; i < 4; i++) {
		children[i] = fork();
		if (children[i] == 0)
			_exit(check_range(memory, i, pages, 4, 1) ? 0 : 1);
	}
	for (uint64_t index = 0; index < pages; index += 2)
		pattern_write(memory + index * PAGE_BYTES, 1, index, 0, 40);
	for (unsigned i = 0; i < 4; i++)
		if (!child_wait(children[i], "child of a child"))
			return 1;
	return check_range(memory, 1, pages, 2, 1) ? 0 : 1;
}

static void *read_thread(void *argument)
{
	check_range(memory, (uintptr_t)argument, pages, THREADS, 1);
	return NULL;
}

static int threads_child(void)
{
	pthread_t threads[THREADS];

	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, read_thread, (void *)i))
			return 1;
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return board->failed;
}

static struct {
	const char *name;
	int (*released)(void);
	int pid;
} members[] = {{"check", check_child, 0}, {"leave", leave_child, 0}, {"exec", exec_child, 0},	{"killed", killed_child, 0},
	       {"drop", drop_child, 0},	  {"unmap", unmap_child, 0}, {"move", move_child, 0}, {"fork", fork_child, 0},
	       {"threads", threads_child, 0}};
#define MEMBERS (sizeof(members) / sizeof(members[0]))

static void wait_for_release(void)
{
	sigset_t set;
	int number;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	while (sigwait(&set, &number) || number != SIGUSR1)
		;
}

static bool set_up(uint64_t bytes)
{
	pages = bytes / PAGE_BYTES;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	big = mmap(NULL, BIG_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED || big == MAP_FAILED || !board_open())
		return false;
	for (uint64_t index = 0; index < pages; index++)
		pattern_write(memory + index * PAGE_BYTES, 1, index, 0, 1);
	for (uint64_t at = 0; at < BIG_BYTES; at += BIG_STEP)
		pattern_write(big + at, 2, at / PAGE_BYTES, 0, 1);
	for (unsigned i = 0; i < MEMBERS; i++) {
		members[i].pid = fork();
		if (members[i].pid == 0) {
			wait_for_release();
			_exit(members[i].released());
		}
	}
	return fork() != 0 || (_exit(0), false); /* the zombie */
}

static bool run_family(void)
{
	bool good = true;

	for (unsigned i = 0; i < MEMBERS; i++)
		kill(members[i].pid, SIGUSR1);
	usleep(5000); /* long enough for the one that is killed to be in the middle of its faults */
	for (unsigned i = 0; i < MEMBERS; i++)
		if (members[i].released == killed_child) {
			kill(members[i].pid, SIGKILL);
			waitpid(members[i].pid, NULL, 0);
		}
	good = check_all();
	for (unsigned i = 0; i < MEMBERS; i++)
		if (members[i].released != killed_child)
			good = child_wait(members[i].pid, members[i].name) && good;
	return waitpid(-1, NULL, 0) > 0 && good;
}

int main(int argc, char **argv)
{
	sigset_t set;
	char text[640];

	if (argc != 3 || argv[1][0] == '-') {
		printf("usage: family MEGABYTES STATUS-FILE\n"
		       "A process tree that writes `ready`, waits for SIGUSR1, then reads, drops, unmaps, forks, execs and exits, and writes\n"
		       "`ok` or the first error to the status file; exits 0 or 1.\n");
		return argc == 2 && !strcmp(argv[1], "--help") ? 0 : 2;
	}
	status_path = argv[2];
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (!set_up(strtoull(argv[1], NULL, 10) << 20)) {
		fprintf(stderr, "family: set up: %s\n", strerror(errno));
		return 2;
	}
	write_status("ready");
	wait_for_release();
	bool good = run_family() && !board->failed;
	snprintf(text, sizeof(text), "%s%s", good ? "ok" : "failed: ", board->error);
	write_status(text);
	return good ? 0 : 1;
}
