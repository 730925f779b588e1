/* A target process for a pager under test: see pager_target.h. */
#include "pager_target.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "image/images.h"
#include "sys/uffd.h"

#define BASE TARGET_BASE
#define PAGES TARGET_PAGES

/* ---- content ---- */

#define VERSION_ZEROS UINT32_MAX /* a page that was written with zeros: no source keeps it */
static bool writes_zeros;

void target_fill(uint8_t *page, uint64_t number, uint32_t version)
{
	uint64_t *words = (uint64_t *)page;
	if (version == VERSION_ZEROS) {
		memset(page, 0, PAGE_BYTES);
		return;
	}
	for (unsigned i = 0; i < PAGE_BYTES / 8; i++)
		words[i] = number * 0x9e3779b97f4a7c15ull ^ (uint64_t)version << 40 ^ i;
}

static void must_be(const uint8_t *page, uint64_t number, uint32_t version, const char *what)
{
	uint64_t expected[PAGE_BYTES / 8];
	target_fill((uint8_t *)expected, number, version);
	if (memcmp(page, expected, PAGE_BYTES)) {
		fprintf(stderr, "%s: page %lu version %u: first word %#lx, expected %#lx\n", what, number, version,
			*(const uint64_t *)page, expected[0]);
		_exit(1);
	}
}

/* ---- the target ---- */

static uint32_t version[PAGES]; /* outside the watched areas until the pager finds them: bss */
static uint64_t random_state = 88172645463325252ull;
static uint64_t target_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	return random_state ^= random_state << 17;
}

static uint8_t *page_at(uint64_t number)
{
	return (uint8_t *)(BASE + number * PAGE_BYTES);
}

static void touch_randomly(unsigned rounds, const char *what)
{
	const char *part = getenv("DP_TARGET_PART"); /* a short life */
	rounds /= part ? (unsigned)atoi(part) : 1;
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t number = target_random() % PAGES;
		must_be(page_at(number), number, version[number], what);
		if (target_random() % 4 == 0) {
			version[number] = writes_zeros && target_random() % 4 == 0 ? VERSION_ZEROS : version[number] + 1;
			target_fill(page_at(number), number, version[number]);
		}
	}
}

static void check_all(const char *what)
{
	for (uint64_t number = 0; number < PAGES; number++)
		must_be(page_at(number), number, version[number], what);
}

static void zero_page_must_be(uint64_t number, const char *what)
{
	if (!page_is_zero(page_at(number))) {
		fprintf(stderr, "%s: page %lu is not zero\n", what, number);
		_exit(1);
	}
	target_fill(page_at(number), number, ++version[number]);
}

static void live_random(void)
{
	const char *enough = getenv("DP_TARGET_UNTIL");
	do {
		touch_randomly(60000, "random");
	} while (enough && access(enough, F_OK));
	check_all("random");
}

/* Areas of two pages, which a MOVE of several refuses. */
static void live_small_areas(void)
{
	for (uint64_t number = 0; number < PAGES; number += 4)
		madvise(page_at(number), 2 * PAGE_BYTES, MADV_DONTDUMP);
	for (unsigned round = 0; round < 3; round++)
		check_all("small areas");
	touch_randomly(20000, "small areas");
	check_all("small areas at the end");
}

static void live_fork(void)
{
	writes_zeros = true;
	for (int round = 0; round < 6; round++) {
		pid_t child = fork();
		if (child == 0) {
			random_state += (uint64_t)round;
			check_all("forked child");
			touch_randomly(4000, "forked child writing");
			check_all("forked child at its end");
			_exit(0);
		}
		touch_randomly(8000, "parent of a fork");
		int status;
		if (waitpid(child, &status, 0) != child || status)
			_exit(2);
		check_all("parent after a fork");
	}
}

static void live_madvise(void)
{
	for (int round = 0; round < 200; round++) {
		uint64_t number = target_random() % (PAGES - 64), pages = 1 + target_random() % 64;
		madvise(page_at(number), pages * PAGE_BYTES, MADV_DONTNEED);
		for (uint64_t i = 0; i < pages; i++)
			zero_page_must_be(number + i, "given up");
		number = target_random() % (PAGES - 64);
		madvise(page_at(number), pages * PAGE_BYTES, MADV_FREE);
		for (uint64_t i = 0; i < pages; i++) {
			if (*(uint64_t *)page_at(number + i))
				must_be(page_at(number + i), number + i, version[number + i], "freed and kept");
			target_fill(page_at(number + i), number + i, ++version[number + i]);
		}
		touch_randomly(200, "between given-up pages");
	}
	check_all("given up");
}

static void live_remap(void)
{
	uint8_t *elsewhere = (uint8_t *)(BASE + (uint64_t)(PAGES + 4096) * PAGE_BYTES);
	for (int round = 0; round < 60; round++) {
		/* Whole slices: what mremap does to a range of several areas differs between kernels. */
		uint64_t pages = 128, number = target_random() % (PAGES / 2 / pages) * pages;
		/* Away, looked at there, and back. */
		if (mremap(page_at(number), pages * PAGE_BYTES, pages * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere) !=
		    elsewhere)
			_exit(3);
		for (uint64_t i = 0; i < pages; i += 1 + target_random() % 4)
			must_be(elsewhere + i * PAGE_BYTES, number + i, version[number + i], "moved");
		if (mremap(elsewhere, pages * PAGE_BYTES, pages * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(number)) !=
		    page_at(number))
			_exit(4);
		touch_randomly(300, "between moves");
		/* Unmapped, mapped anew, zero. */
		number = PAGES / 2 + target_random() % (PAGES / 2 - 64);
		pages = 1 + target_random() % 64;
		munmap(page_at(number), pages * PAGE_BYTES);
		if (mmap(page_at(number), pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			 0) == MAP_FAILED)
			_exit(5);
		for (uint64_t i = 0; i < pages; i++)
			zero_page_must_be(number + i, "mapped anew");
	}
	check_all("moved");
}

/* Threads that map, unmap and map anew, in areas which the pager has yet to find, while it finds them. */
#define MAKERS 3u
#define SLOTS 96u
#define SLOT_PAGES 12u
static void *make_areas(void *argument)
{
	uint64_t first = PAGES + 16384 + (uint64_t)(uintptr_t)argument * SLOTS * SLOT_PAGES,
		 state = 77 + (uint64_t)(uintptr_t)argument;
	uint32_t content[SLOTS * SLOT_PAGES] = { 0 }; /* 0: not mapped; 1: zero; else the version */
	for (uint32_t turn = 2; turn < 30000; turn++) {
		state = state * 6364136223846793005ull + 1442695040888963407ull;
		uint32_t slot = (uint32_t)(state >> 33) % SLOTS, from = (uint32_t)(state >> 45) % SLOT_PAGES;
		uint32_t pages = 1 + (uint32_t)(state >> 53) % (SLOT_PAGES - from);
		for (uint32_t i = slot * SLOT_PAGES + from, end = i + pages; i < end; i++) {
			if (content[i] > 1)
				must_be(page_at(first + i), first + i, content[i], "new area");
			else if (content[i] == 1 && !page_is_zero(page_at(first + i)))
				_exit(7);
			if (content[i] && turn % 3) /* every third round gives areas up and makes them anew */
				target_fill(page_at(first + i), first + i, content[i] = turn);
		}
		uint8_t *address = page_at(first + slot * SLOT_PAGES + from);
		if (turn % 3 == 0) {
			if (state & 1 << 20 && munmap(address, pages * PAGE_BYTES))
				_exit(8);
			if (mmap(address, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
				 0) != address)
				_exit(8);
			for (uint32_t i = 0; i < pages; i++)
				content[slot * SLOT_PAGES + from + i] = 1;
		}
	}
	for (uint32_t i = 0; i < SLOTS * SLOT_PAGES; i++)
		if (content[i] > 1)
			must_be(page_at(first + i), first + i, content[i], "new area at the end");
	return NULL;
}

static void live_areas(void)
{
	pthread_t maker[MAKERS];
	for (uintptr_t i = 0; i < MAKERS; i++)
		if (pthread_create(&maker[i], NULL, make_areas, (void *)i))
			_exit(9);
	for (int round = 0; round < 4; round++) {
		pid_t child = fork();
		if (child == 0) {
			touch_randomly(2000, "forked child beside new areas");
			_exit(0);
		}
		touch_randomly(5000, "beside new areas");
		int status;
		if (waitpid(child, &status, 0) != child || status)
			_exit(2);
	}
	for (unsigned i = 0; i < MAKERS; i++)
		pthread_join(maker[i], NULL);
	check_all("beside new areas");
}

static void live_exec(void)
{
	touch_randomly(20000, "before execve");
	execl("/bin/true", "true", NULL);
	_exit(6);
}

static void live_killed(void)
{
	touch_randomly(5000, "before the end");
	raise(SIGKILL);
}

/* The first thread ends, the process goes on without it: most of what is asked by the process's number is answered as if it had
 * ended. */
static void *go_on_alone(void *argument)
{
	pthread_t first = *(pthread_t *)argument;
	pthread_join(first, NULL);
	touch_randomly(30000, "after the first thread's end");
	/* New memory, found through a thread that is not the first. */
	uint64_t more = PAGES + 8192;
	uint8_t *fresh = mmap(page_at(more), 1024 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			      -1, 0);
	for (uint64_t i = 0; i < 1024 && fresh == page_at(more); i++)
		target_fill(page_at(more + i), more + i, 1);
	touch_randomly(30000, "beside new memory");
	for (uint64_t i = 0; i < 1024; i++)
		must_be(page_at(more + i), more + i, 1, "new memory");
	pid_t child = fork();
	if (child == 0) {
		check_all("child of a process without its first thread");
		_exit(0);
	}
	check_all("after the first thread's end");
	int status;
	if (waitpid(child, &status, 0) != child || status)
		_exit(2);
	_exit(0);
}

static void live_leader(void)
{
	static pthread_t first, other;
	touch_randomly(10000, "before the first thread's end");
	first = pthread_self();
	if (pthread_create(&other, NULL, go_on_alone, &first))
		_exit(9);
	pthread_exit(NULL);
}

/* Another process shares the memory, as a vfork's child does, and goes on when the first has ended. */
static char sharer_stack[256 * 1024] __attribute__((aligned(16)));
static int share(void *reaper)
{
	while (getppid() != *(pid_t *)reaper)
		usleep(100);
	touch_randomly(40000, "sharer of the memory of a process that has ended");
	check_all("sharer of the memory of a process that has ended");
	_exit(0);
}

static void live_sharer(void)
{
	static pid_t reaper;
	reaper = getppid();
	touch_randomly(20000, "before another shares it");
	if (clone(share, sharer_stack + sizeof(sharer_stack), CLONE_VM | SIGCHLD, &reaper) < 0)
		_exit(9);
	_exit(0);
}

static void (*const scenes[])(void) = { live_random, live_fork,	 live_madvise, live_remap, live_exec,
					live_killed, live_areas, live_leader,  live_sharer, live_small_areas };

static void hand_over(int socket_fd)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
					      UFFD_FEATURE_EVENT_UNMAP };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		_exit(7);
	mmap((void *)BASE, (uint64_t)PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (uffd_register(uffd, BASE, (uint64_t)PAGES * PAGE_BYTES, false))
		_exit(8);
	int32_t pid = 4711, finished = 0x52535446;
	char byte = 0;
	struct iovec data = { &byte, 1 };
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &uffd, sizeof(int));
	if (send(socket_fd, &pid, 4, 0) != 4 || sendmsg(socket_fd, &message, 0) != 1 || send(socket_fd, &finished, 4, 0) != 4)
		_exit(9);
	close(uffd);
	close(socket_fd);
}

void target_write_images(const char *directory)
{
	char path[256];
	struct image_run run = { BASE >> PAGE_SHIFT, PAGES, PAGEMAP_LAZY, 0 };
	struct image_pagemap map = { 1, &run, 1 };
	void *bytes;
	size_t length;
	assert_int_equal(images_encode_pagemap(&map, &bytes, &length, NULL), 0);
	snprintf(path, sizeof(path), "%s/pagemap-4711.img", directory);
	assert_int_equal(io_write_file(path, bytes, length, 0600), 0);
	free(bytes);
	/* mm: magics, one record: field 14 (area) with start, end, prot, flags, status. */
	uint8_t record[64], *at = record;
	uint64_t values[][2] = { { 1, BASE }, { 2, BASE + (uint64_t)PAGES * PAGE_BYTES }, { 5, 3 }, { 6, 0x22 }, { 7, 0x201 } };
	for (size_t i = 0; i < ARRAY_LENGTH(values); i++) {
		*at++ = (uint8_t)(values[i][0] << 3);
		for (uint64_t value = values[i][1]; ; value >>= 7) {
			*at++ = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
			if (value <= 0x7f)
				break;
		}
	}
	uint8_t image[128];
	uint32_t inner = (uint32_t)(at - record), head[3] = { 0x54564319, 0x57492820, inner + 2 };
	memcpy(image, head, sizeof(head));
	image[12] = 14 << 3 | 2;
	image[13] = (uint8_t)inner;
	memcpy(image + 14, record, inner);
	snprintf(path, sizeof(path), "%s/mm-4711.img", directory);
	assert_int_equal(io_write_file(path, image, 14 + inner, 0600), 0);
}

/* The target's parent and that of its orphans, as a tree's reaper is. Ends with the first bad status; wardens are orphans too,
 * and killed. */
static int reap(void)
{
	int status, worst = 0;
	while (waitpid(-1, &status, 0) > 0)
		if (!worst && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
			worst = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	return worst;
}

/* The target is a fresh program, so that nothing of this one's memory is its. */
int target_live(const char *scene, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	int socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGBUS, SIG_DFL); /* a sanitizer's handler would make another end of it */
	if (atoi(scene) == SCENE_SHARER) {
		prctl(PR_SET_CHILD_SUBREAPER, 1);
		if (fork()) {
			close(socket_fd); /* the tree runs when nobody has it any more */
			return reap();
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	if (connect(socket_fd, (struct sockaddr *)&address, sizeof(address)))
		return 10;
	hand_over(socket_fd);
	scenes[atoi(scene)]();
	return 0;
}

