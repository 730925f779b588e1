/* The tracker (checkpoint/tracker.h) and what it rests on: which pages of a live process were written. Each behaviour of the
 * kernel that it counts on is a test of its own; then a tree that does all of it at once is copied in rounds, stopped, and
 * compared. DP_ROUNDS: how often (default 8). One file, as all of it is
 * done to the same two kinds of target. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "base/pageset.h"
#include "checkpoint/tracker.h"
#include "sys/proc.h"
#include "sys/unseen.h"

#define BASE ((char *)0x500000000000)
#define AWAY ((char *)0x510000000000)
#define PAGES 512u
#define PAGE(i) (BASE + (size_t)(i) * PAGE_BYTES)

/* ---- a process that does what it is told ---- */

enum order { IDLE, WRITE, MOVE, REPLACE, FORK, EXEC, DROP, PROTECT, HIDE, READ, DIRECT, QUIET_FILE };

struct control {
	volatile int order, done;
	volatile pid_t child;
	volatile int first, pages;
};

static struct control *control;

static void obey(int order)
{
	static int file = -1;
	size_t bytes = (size_t)control->pages * PAGE_BYTES;
	char *at = PAGE(control->first);
	switch (order) {
	case WRITE:
		for (int i = 0; i < control->pages; i++)
			at[(size_t)i * PAGE_BYTES]++;
		break;
	case MOVE: mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, AWAY); break;
	case REPLACE:
		munmap(at, bytes);
		mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		memset(at, 7, bytes);
		break;
	case FORK: {
		pid_t child = fork();
		while (child == 0)
			pause();
		control->child = child;
		break;
	}
	case EXEC: execl("/bin/sleep", "sleep", "1000", NULL); break;
	case DROP: madvise(at, bytes, MADV_DONTNEED); break;
	case PROTECT:
		mprotect(at, bytes, PROT_READ);
		mprotect(at, bytes, PROT_READ | PROT_WRITE);
		break;
	case HIDE: mprotect(at, bytes, PROT_NONE); break;
	case READ: {
		int zero = open("/dev/zero", O_RDONLY);
		if (read(zero, at, bytes) != (ssize_t)bytes)
			_exit(1);
		close(zero);
		break;
	}
	case DIRECT: file = open("/proc/self/exe", O_RDONLY | O_DIRECT | O_CLOEXEC); break;
	case QUIET_FILE: close(file); break;
	}
}

static pid_t start(void)
{
	control->order = control->done = IDLE;
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		mmap(BASE, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		madvise(BASE, PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
		memset(BASE, 1, PAGES * PAGE_BYTES);
		for (control->done = 1;; control->done++) {
			while (control->order == IDLE)
				usleep(100);
			obey(control->order);
			control->order = IDLE;
		}
	}
	assert_true(pid > 0);
	while (!control->done)
		usleep(100);
	return pid;
}

static void tell(int order, int first, int pages)
{
	int before = control->done;
	control->first = first;
	control->pages = pages;
	control->order = order;
	while (control->done == before)
		usleep(100);
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static int make_control(void **state)
{
	control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return control == MAP_FAILED;
}

/* ---- what a round tells of the window ---- */

struct told {
	uint64_t written, clean; /* pages within the window */
	pid_t pid;               /* of this process only; 0: any */
};

static int count_runs(void *context, struct tracked *process, const struct written_run *runs, size_t count, struct dp_err *err)
{
	struct told *told = context;
	for (size_t i = 0; i < count; i++) {
		uint64_t from = DP_MAX(runs[i].start, (uintptr_t)BASE), to = DP_MIN(runs[i].end, (uintptr_t)PAGE(PAGES));
		if (from >= to || (told->pid && told->pid != process->pid))
			continue;
		*(runs[i].written ? &told->written : &told->clean) += (to - from) / PAGE_BYTES;
	}
	return 0;
}

static struct told one_round(struct tracker *tracker)
{
	struct dp_err err = { "" };
	struct told told = { 0 };
	const struct tracker_sink sink = { &told, count_runs };
	int ret = tracker_round(tracker, &sink, &err);
	if (ret)
		print_message("%s\n", err.text);
	assert_int_equal(ret, 0);
	return told;
}

/* What would be told while it stands still, of a range. */
static struct told look(struct tracker *tracker, uint32_t vpid, const void *start, size_t bytes)
{
	struct told told = { 0 };
	struct written_run runs[64];
	const struct tracked *process = tracker_find(tracker, vpid);
	assert_non_null(process);
	cleanup_fd int pagemap = tracker_open_pagemap(process);
	assert_true(pagemap >= 0);
	for (uint64_t at = (uintptr_t)start, stop = at + bytes; at < stop;) {
		ssize_t found = tracker_scan(process, pagemap, &at, stop, false, runs, ARRAY_LENGTH(runs));
		assert_true(found >= 0);
		for (ssize_t i = 0; i < found; i++)
			*(runs[i].written ? &told.written : &told.clean) += (runs[i].end - runs[i].start) / PAGE_BYTES;
	}
	return told;
}

static struct tracker *follow(pid_t pid)
{
	struct tracker *tracker;
	struct dp_err err = { "" };
	int ret = tracker_open(&tracker, pid, NULL, &err);
	if (ret == -EOPNOTSUPP) {
		print_message("%s\n", err.text);
		skip();
	}
	assert_int_equal(ret, 0);
	struct told told = one_round(tracker);
	const struct tracked *process = tracker_find(tracker, (uint32_t)pid);
	if (process->uffd < 0)
		print_message("%s\n", process->why);
	assert_true(process->uffd >= 0);
	assert_int_equal(told.written, PAGES);
	return tracker;
}

/* ---- the kernel ---- */

static void tracker__nothing_written__tells_all_as_clean(void **state)
{
	pid_t pid = start();
	struct tracker *tracker = follow(pid);
	struct told told = one_round(tracker);
	assert_int_equal(told.written, 0);
	assert_int_equal(told.clean, PAGES);
	tracker_close(tracker);
	end(pid);
}

static void tracker__written_pages__are_told_once(void **state)
{
	pid_t pid = start();
	struct tracker *tracker = follow(pid);
	tell(WRITE, 10, 5);
	struct told told = one_round(tracker);
	assert_int_equal(told.written, 5);
	assert_int_equal(one_round(tracker).written, 0);
	tell(READ, 100, 3); /* the kernel writes into it */
	assert_int_equal(one_round(tracker).written, 3);
	tracker_close(tracker);
	end(pid);
}

static void tracker__moved_area__is_written_where_it_is(void **state)
{
	pid_t pid = start();
	struct tracker *tracker = follow(pid);
	tell(MOVE, 0, 16);
	assert_int_equal(look(tracker, (uint32_t)pid, AWAY, 16 * PAGE_BYTES).written, 16);
	one_round(tracker); /* registers it anew */
	struct told told = look(tracker, (uint32_t)pid, AWAY, 16 * PAGE_BYTES);
	assert_int_equal(told.clean, 16);
	tracker_close(tracker);
	end(pid);
}

static void tracker__area_replaced_at_its_place__is_written(void **state)
{
	pid_t pid = start();
	struct tracker *tracker = follow(pid);
	tell(REPLACE, 32, 8);
	assert_int_equal(look(tracker, (uint32_t)pid, PAGE(32), 8 * PAGE_BYTES).written, 8);
	assert_int_equal(one_round(tracker).written, 8);
	tell(WRITE, 33, 1);
	assert_int_equal(one_round(tracker).written, 1);
	tracker_close(tracker);
	end(pid);
}

static void tracker__dropped_pages__are_not_there(void **state)
{
	pid_t pid = start();
	struct tracker *tracker = follow(pid);
	tell(DROP, 64, 8);
	struct told told = one_round(tracker);
	assert_int_equal(told.written, 0);
	assert_int_equal(told.clean, PAGES - 8);
	tell(WRITE, 64, 2); /* new pages in the place of what was clean */
	assert_int_equal(one_round(tracker).written, 2);
	tracker_close(tracker);
	end(pid);
}

static void tracker__protection_changed__stays_clean(void **state)
{
	pid_t pid = start();
	struct tracker *tracker = follow(pid);
	tell(PROTECT, 0, 16);
	assert_int_equal(one_round(tracker).written, 0);
	tell(WRITE, 3, 1);
	assert_int_equal(one_round(tracker).written, 1);
	tell(HIDE, 3, 1);
	assert_int_equal(one_round(tracker).clean, PAGES);
	tracker_close(tracker);
	end(pid);
}

static void tracker__forked__child_is_written_and_parent_goes_on(void **state)
{
	pid_t pid = start();
	struct tracker *tracker = follow(pid);
	tell(FORK, 0, 0);
	pid_t child = control->child;
	assert_int_equal(tracker_frozen(tracker, NULL), 0);
	assert_int_equal(look(tracker, (uint32_t)child, BASE, PAGES * PAGE_BYTES).written, PAGES);
	assert_int_equal(look(tracker, (uint32_t)pid, BASE, PAGES * PAGE_BYTES).written, 0);
	tell(WRITE, 0, 4); /* copies pages that both have */
	struct told told = one_round(tracker);
	assert_int_equal(told.written, PAGES + 4);
	assert_true(tracker_find(tracker, (uint32_t)child)->uffd >= 0);
	tell(WRITE, 8, 4);
	assert_int_equal(one_round(tracker).written, 4);
	kill(child, SIGKILL);
	tracker_close(tracker);
	end(pid);
}

static void tracker__executed__is_another_memory(void **state)
{
	pid_t pid = start();
	struct tracker *tracker = follow(pid);
	control->order = EXEC;
	char link[64] = "", path[64];
	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	for (int i = 0; i < 5000 && strncmp(link, "sleep", 5); i++) {
		cleanup_free char *text = NULL;
		if (io_read_file(path, &text, 64) > 0)
			snprintf(link, sizeof(link), "%s", text);
		usleep(1000);
	}
	one_round(tracker); /* finds that it is gone */
	one_round(tracker); /* takes the new one up */
	const struct tracked *process = tracker_find(tracker, (uint32_t)pid);
	assert_true(process->uffd >= 0);
	tracker_close(tracker);
	end(pid);
}

/* ---- nothing of ours stays ---- */

static bool is_watched(pid_t pid)
{
	char path[64];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	assert_true(io_read_file(path, &text, 1 << 22) > 0);
	return strstr(text, " uw") != NULL;
}

static void count_files(pid_t pid, int *files, int *children)
{
	char path[64];
	cleanup_free pid_t *pids = NULL;
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	*files = 0;
	for (int i = 0; i < 64; i++) {
		char name[96], target[64];
		snprintf(name, sizeof(name), "%s/%d", path, i);
		*files += readlink(name, target, sizeof(target)) > 0;
	}
	*children = (int)proc_tree(pid, &pids) - 1;
}

static void tracker__closed__leaves_nothing(void **state)
{
	int files, children, files_then, children_then;
	pid_t pid = start();
	count_files(pid, &files, &children);
	struct tracker *tracker = follow(pid);
	assert_true(is_watched(pid));
	count_files(pid, &files_then, &children_then);
	assert_int_equal(files_then, files);
	assert_int_equal(children_then, children);
	tracker_close(tracker);
	assert_false(is_watched(pid));
	tell(WRITE, 0, PAGES);
	end(pid);
}

static void tracker__killed__leaves_nothing_and_no_byte_changes(void **state)
{
	pid_t pid = start();
	pid_t ours = fork();
	if (ours == 0) {
		struct tracker *tracker;
		if (tracker_open(&tracker, pid, NULL, NULL))
			_exit(1);
		for (;;)
			one_round(tracker);
	}
	while (!is_watched(pid))
		usleep(1000);
	tell(WRITE, 0, 100);
	kill(ours, SIGKILL);
	waitpid(ours, NULL, 0);
	for (int i = 0; i < 5000 && is_watched(pid); i++) /* a process that was placing one may live a moment longer */
		usleep(1000);
	assert_false(is_watched(pid));
	unsigned char page[PAGE_BYTES];
	struct iovec local = { page, PAGE_BYTES }, remote = { PAGE(5), PAGE_BYTES };
	assert_int_equal(process_vm_readv(pid, &local, 1, &remote, 1, 0), PAGE_BYTES);
	assert_int_equal(page[0], 2);
	assert_int_equal(page[1], 1);
	tell(WRITE, 0, PAGES);
	end(pid);
}

static void tracker__direct_io__counts_as_written_always(void **state)
{
	char why[100];
	pid_t pid = start();
	struct tracker *tracker = follow(pid);
	assert_int_equal(unseen_writes(pid, why, sizeof(why)), 0);
	tell(DIRECT, 0, 0);
	assert_int_equal(unseen_writes(pid, why, sizeof(why)), 1);
	assert_string_equal(why, "has a file open for direct I/O");
	one_round(tracker);
	assert_false(is_watched(pid));
	tell(QUIET_FILE, 0, 0);
	one_round(tracker); /* what it read may still have come into what was sent before */
	assert_int_equal(look(tracker, (uint32_t)pid, BASE, PAGES * PAGE_BYTES).written, PAGES);
	tracker_close(tracker);
	end(pid);
}

static void tracker__two_of_them__one_watches_and_the_other_takes_all_as_written(void **state)
{
	pid_t pid = start();
	struct tracker *first = follow(pid), *second;
	assert_int_equal(tracker_open(&second, pid, NULL, NULL), 0);
	assert_int_equal(one_round(second).written, 0);
	tell(WRITE, 0, 7);
	one_round(second); /* takes nothing away from the other */
	assert_int_equal(look(second, (uint32_t)pid, BASE, PAGES * PAGE_BYTES).written, PAGES);
	assert_int_equal(one_round(first).written, 7);
	tracker_close(first);
	assert_int_equal(one_round(second).written, PAGES);
	tracker_close(second);
	end(pid);
}

/* ---- all at once ---- */

#define WINDOW 4096u /* pages of each mutator */
#define SLOTS 65536u

struct copy { /* what was read of one process */
	uint64_t pgno[SLOTS];
	unsigned char *page[SLOTS];
};

static void free_copy(void *data)
{
	struct copy *copy = data;
	for (size_t i = 0; i < SLOTS; i++)
		free(copy->page[i]);
	free(copy);
}

static unsigned char **find_page(struct copy *copy, uint64_t pgno, bool make)
{
	size_t at = (size_t)(pgno * 0x9e3779b97f4a7c15ull >> 48) % SLOTS;
	while (copy->page[at] && copy->pgno[at] != pgno)
		at = (at + 1) % SLOTS;
	copy->pgno[at] = pgno;
	if (!copy->page[at] && make)
		copy->page[at] = malloc(PAGE_BYTES);
	return &copy->page[at];
}

static bool read_page(pid_t pid, uint64_t pgno, void *to)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 && pread(fd, to, PAGE_BYTES, (off_t)(pgno << PAGE_SHIFT)) == PAGE_BYTES;
}

static struct copy *copy_of(struct tracked *process)
{
	if (!process->data)
		process->data = calloc(1, sizeof(struct copy));
	assert_non_null(process->data);
	return process->data;
}

static int copy_runs(void *context, struct tracked *process, const struct written_run *runs, size_t count, struct dp_err *err)
{
	struct copy *copy = copy_of(process);
	for (size_t i = 0; i < count; i++)
		for (uint64_t pgno = runs[i].start >> PAGE_SHIFT; runs[i].written && pgno < runs[i].end >> PAGE_SHIFT; pgno++) {
			unsigned char **page = find_page(copy, pgno, true);
			if (!read_page(process->pid, pgno, *page)) { /* gone meanwhile: nothing is known of it */
				memset(*page, 0xee, PAGE_BYTES);
				(*page)[0] = 0x11;
			}
		}
	return 0;
}

static uint64_t next_random(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return *seed >> 33;
}

static char *make_window(char *at)
{
	return mmap(at, WINDOW * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
}

static void mutate_once(char *window, uint64_t *seed, int random)
{
	size_t first = next_random(seed) % WINDOW, pages = 1 + next_random(seed) % 16;
	pages = DP_MIN(pages, WINDOW - first);
	char *at = window + first * PAGE_BYTES;
	size_t bytes = pages * PAGE_BYTES;
	switch (next_random(seed) % 40) {
	case 0: madvise(at, bytes, MADV_DONTNEED); break;
	case 1: madvise(at, bytes, MADV_FREE); break;
	case 2: { /* away and back, so that it lies where something else was */
		char *to = window + next_random(seed) % (WINDOW - pages) * PAGE_BYTES;
		if (to + bytes > at && at + bytes > to)
			break;
		/* where it cannot be moved, since it is of several areas, there may be holes in either place */
		if (mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
			mmap(to, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		break;
	}
	case 3:
		munmap(at, bytes);
		mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		break;
	case 4:
		mprotect(at, bytes, PROT_READ);
		mprotect(at, bytes, PROT_READ | PROT_WRITE);
		break;
	case 5:
		if (read(random, at, bytes) < 0)
			break;
		break;
	case 6: madvise(window, WINDOW * PAGE_BYTES, next_random(seed) % 2 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE); break;
	default:
		for (size_t i = 0; i < pages; i++)
			*(uint64_t *)(at + i * PAGE_BYTES + next_random(seed) % 512 * 8) = *seed;
	}
}

static void *mutate(void *argument) __attribute__((noreturn));
static void *mutate(void *argument)
{
	uint64_t seed = (uintptr_t)argument;
	char *window = make_window(NULL);
	int random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	memset(window, 1, WINDOW * PAGE_BYTES);
	for (unsigned turn = 1;; turn++) {
		mutate_once(window, &seed, random);
		if (turn % 4 == 0)
			usleep(2000);
	}
}

/* Two threads, and now and then a child, which mutates too, and becomes another program in the end. */
static void run_tree(void)
{
	static const int faults[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE };
	pthread_t thread;
	for (size_t i = 0; i < ARRAY_LENGTH(faults); i++)
		signal(faults[i], SIG_DFL); /* cmocka has handlers for them */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pthread_create(&thread, NULL, mutate, (void *)(uintptr_t)1);
	pthread_create(&thread, NULL, mutate, (void *)(uintptr_t)2);
	for (uint64_t seed = 3;; next_random(&seed)) {
		pid_t child = fork();
		if (child == 0) {
			char *window = make_window(NULL);
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			int random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
			memset(window, 1, WINDOW * PAGE_BYTES);
			for (unsigned i = 0; i < 300; i++) {
				mutate_once(window, &seed, random);
				if (i % 4 == 0)
					usleep(2000);
			}
			execl("/bin/sleep", "sleep", "0.05", NULL);
			_exit(1);
		}
		waitpid(child, NULL, 0);
	}
}

static bool stands_still(pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	DIR *tasks = opendir(path);
	bool still = true;
	for (struct dirent *entry; tasks && still && (entry = readdir(tasks));) {
		int state = entry->d_name[0] == '.' ? 'T' : proc_state(atoi(entry->d_name));
		still = state == 'T' || state == 'Z' || state == -ESRCH;
	}
	if (tasks)
		closedir(tasks);
	return still;
}

/* SIGSTOP to all, until nobody new is there. */
static void stop_tree(pid_t root)
{
	ssize_t before = -1;
	for (int turn = 0; turn < 5000; turn++) {
		pid_t *pids;
		bool still = true;
		ssize_t count = proc_tree(root, &pids);
		assert_true(count > 0);
		for (ssize_t i = 0; i < count; i++) {
			kill(pids[i], SIGSTOP);
			still &= stands_still(pids[i]);
		}
		free(pids);
		if (still && count == before)
			return;
		before = still ? count : -1;
		usleep(1000);
	}
	fail_msg("the tree does not stop");
}

static void let_go(pid_t root)
{
	pid_t *pids;
	ssize_t count = proc_tree(root, &pids);
	for (ssize_t i = count; i-- > 0;)
		kill(pids[i], SIGCONT);
	free(pids);
}

struct compare {
	struct tracked *process;
	int pagemap;
	uint64_t clean, written;
};

static int compare_area(void *context, const struct proc_area *area)
{
	struct compare *compare = context;
	struct written_run runs[64];
	unsigned char now[PAGE_BYTES];
	if (!area->anonymous)
		return 0;
	for (uint64_t at = area->start; at < area->end;) {
		ssize_t found = tracker_scan(compare->process, compare->pagemap, &at, area->end, false, runs, ARRAY_LENGTH(runs));
		assert_true(found >= 0);
		for (ssize_t i = 0; i < found; i++)
			for (uint64_t pgno = runs[i].start >> PAGE_SHIFT; pgno < runs[i].end >> PAGE_SHIFT; pgno++) {
				compare->written += runs[i].written;
				if (runs[i].written)
					continue;
				compare->clean++;
				unsigned char **page = find_page(copy_of(compare->process), pgno, false);
				assert_non_null(*page);
				assert_true(read_page(compare->process->pid, pgno, now));
				if (memcmp(now, *page, PAGE_BYTES)) {
					print_message("process %d page %llx of %s differs\n", compare->process->pid,
						      (unsigned long long)pgno, area->name);
					return -EIO;
				}
			}
	}
	return 0;
}

static void tracker__tree_that_does_everything__clean_pages_are_what_was_read(void **state)
{
	const char *wanted = getenv("DP_ROUNDS");
	int rounds = wanted ? atoi(wanted) : 8;
	struct tracker *tracker;
	uint64_t clean = 0, written = 0, processes = 0;
	pid_t root = fork();
	if (root == 0)
		run_tree();
	if (tracker_open(&tracker, root, free_copy, NULL))
		skip();
	const struct tracker_sink sink = { NULL, copy_runs };
	for (int i = 0; i < rounds; i++) {
		struct dp_err err = { "" };
		assert_int_equal(tracker_round(tracker, &sink, &err), 0);
		if (i % 3)
			continue;
		stop_tree(root);
		assert_int_equal(tracker_frozen(tracker, &err), 0);
		for (struct tracked *process = tracker_next(tracker, NULL); process; process = tracker_next(tracker, process)) {
			struct compare compare = { .process = process, .pagemap = tracker_open_pagemap(process) };
			assert_true(compare.pagemap >= 0);
			assert_int_equal(proc_each_area(process->pid, compare_area, &compare), 0);
			close(compare.pagemap);
			clean += compare.clean;
			written += compare.written;
			processes++;
		}
		let_go(root);
	}
	print_message("compared %llu clean pages, %llu written, of %llu processes\n", (unsigned long long)clean,
		      (unsigned long long)written, (unsigned long long)processes);
	assert_true(clean > 1000);
	tracker_close(tracker);
	end(root);
}

/* ---- the set of pages ---- */

static void pageset__random_changes__is_what_a_table_says(void **state)
{
	enum { SPACE = 20000 };
	static bool table[SPACE];
	struct pageset set = { 0 };
	uint64_t seed = 5, count = 0;
	const uint64_t base = (UINT64_C(1) << 34) - 7000; /* not at a chunk's border */
	memset(table, 0, sizeof(table));
	for (int turn = 0; turn < 3000; turn++) {
		uint64_t first = next_random(&seed) % SPACE, pages = next_random(&seed) % (turn % 50 ? 100 : 9000);
		bool in = next_random(&seed) % 2;
		pages = DP_MIN(pages, SPACE - first);
		for (uint64_t i = first; i < first + pages; i++)
			table[i] = in;
		if (in)
			assert_int_equal(pageset_add(&set, base + first, pages), 0);
		else
			pageset_remove(&set, base + first, pages);
	}
	for (uint64_t i = 0; i < SPACE; i++) {
		assert_int_equal(pageset_has(&set, base + i), table[i]);
		count += table[i];
	}
	assert_int_equal(set.pages, count);
	uint64_t seen = 0, at = 0, pages;
	for (; (pages = pageset_next(&set, &at)); at += pages)
		for (uint64_t i = at; i < at + pages; i++, seen++)
			assert_true(table[i - base]);
	assert_int_equal(seen, count);
	pageset_done(&set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pageset__random_changes__is_what_a_table_says),
		cmocka_unit_test(tracker__nothing_written__tells_all_as_clean),
		cmocka_unit_test(tracker__written_pages__are_told_once),
		cmocka_unit_test(tracker__moved_area__is_written_where_it_is),
		cmocka_unit_test(tracker__area_replaced_at_its_place__is_written),
		cmocka_unit_test(tracker__dropped_pages__are_not_there),
		cmocka_unit_test(tracker__protection_changed__stays_clean),
		cmocka_unit_test(tracker__forked__child_is_written_and_parent_goes_on),
		cmocka_unit_test(tracker__executed__is_another_memory),
		cmocka_unit_test(tracker__closed__leaves_nothing),
		cmocka_unit_test(tracker__killed__leaves_nothing_and_no_byte_changes),
		cmocka_unit_test(tracker__direct_io__counts_as_written_always),
		cmocka_unit_test(tracker__two_of_them__one_watches_and_the_other_takes_all_as_written),
		cmocka_unit_test(tracker__tree_that_does_everything__clean_pages_are_what_was_read),
	};
	return cmocka_run_group_tests(tests, make_control, NULL);
}
