/* The pager with a real userfaultfd, a real target process and a source in memory: CRIU's place is taken by the target itself,
 * which hands its descriptor over as a restored task does. The target then does to its memory what the pager must follow, checks
 * every byte, and says by its exit status whether all was right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/base.h"
#include "base/log.h"
#include "image/images.h"
#include "instance/stats.h"
#include "pager/pager.h"
#include "sys/uffd.h"

#define BASE 0x200000000000ull
#define PAGES 8192u /* 32 MiB */
#define BUDGET (12u << 20)

/* ---- allocations are counted: the fault path makes none ---- */

static volatile uint64_t allocations;
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
#ifndef __SANITIZE_ADDRESS__
void *malloc(size_t bytes)
{
	allocations++;
	return __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes)
{
	allocations++;
	return __libc_calloc(count, bytes);
}
#endif

/* ---- a source in memory: spaces are arrays of page pointers ---- */

#define SPACES 64
#define BUCKETS (1u << 17)
struct memory_space {
	uint64_t key[BUCKETS]; /* page number + 1 */
	uint8_t *page[BUCKETS];
};
struct memory_source {
	struct source source;
	struct memory_space *space[SPACES];
	unsigned spaces;
	uint64_t puts;
};

static struct memory_space *memory_space_new(void)
{
	return mmap(NULL, sizeof(struct memory_space), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static uint8_t **slot(struct memory_source *memory, uint64_t space, uint64_t pgno)
{
	struct memory_space *in = memory->space[space];
	uint64_t at = pgno * 0x9e3779b97f4a7c15ull >> 47;
	while (in->key[at] && in->key[at] != pgno + 1)
		at = (at + 1) % BUCKETS;
	in->key[at] = pgno + 1;
	return &in->page[at];
}

static int memory_find(struct source *source, int vpid, uint64_t *space, struct dp_err *err)
{
	(void)source, (void)vpid, (void)err;
	*space = 0;
	return 0;
}

static int memory_get(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count,
		      uint64_t cookie)
{
	struct memory_source *memory = (struct memory_source *)source;
	static uint8_t buffer[64 * PAGE_BYTES];
	(void)class;
	for (size_t r = 0; r < count; r++) {
		for (uint64_t i = 0; i < ranges[r].pages; i++) {
			uint8_t **from = slot(memory, space, ranges[r].pgno + i);
			if (*from)
				memcpy(buffer + i * PAGE_BYTES, *from, PAGE_BYTES);
			else
				memset(buffer + i * PAGE_BYTES, 0, PAGE_BYTES);
		}
		source->handler.on_pages(source->handler.context, cookie, ranges[r], buffer, r + 1 == count);
	}
	return 0;
}

static int memory_put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
		      size_t data_count, uint64_t cookie)
{
	struct memory_source *memory = (struct memory_source *)source;
	size_t piece = 0, used = 0;
	for (size_t r = 0; r < count; r++) {
		for (uint64_t i = 0; i < ranges[r].pages; i++) {
			uint8_t **to = slot(memory, space, ranges[r].pgno + i);
			if (used == data[piece].iov_len) {
				piece++;
				used = 0;
			}
			assert_true(piece < data_count);
			if (!*to)
				*to = __libc_malloc(PAGE_BYTES);
			memcpy(*to, (uint8_t *)data[piece].iov_base + used, PAGE_BYTES);
			used += PAGE_BYTES;
			memory->puts++;
		}
	}
	source->handler.on_done(source->handler.context, cookie, 0);
	return 0;
}

static int memory_drop(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	for (size_t r = 0; r < count; r++)
		for (uint64_t i = 0; i < ranges[r].pages; i++)
			*slot((struct memory_source *)source, space, ranges[r].pgno + i) = NULL;
	source->handler.on_done(source->handler.context, cookie, 0);
	return 0;
}

static int memory_move(struct source *source, uint64_t space, uint64_t from, uint64_t to, uint64_t pages, uint64_t cookie)
{
	for (uint64_t i = 0; i < pages; i++) {
		uint8_t **a = slot((struct memory_source *)source, space, from + i), **b = slot((struct memory_source *)source, space, to + i);
		*b = *a;
		*a = NULL;
	}
	source->handler.on_done(source->handler.context, cookie, 0);
	return 0;
}

static int memory_fork(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	struct memory_source *memory = (struct memory_source *)source;
	assert_true(memory->spaces < SPACES);
	*child = memory->spaces++;
	memory->space[*child] = memory_space_new();
	for (uint64_t i = 0; i < BUCKETS; i++)
		if (memory->space[parent]->key[i]) {
			memory->space[*child]->key[i] = memory->space[parent]->key[i];
			if (memory->space[parent]->page[i]) {
				memory->space[*child]->page[i] = __libc_malloc(PAGE_BYTES);
				memcpy(memory->space[*child]->page[i], memory->space[parent]->page[i], PAGE_BYTES);
			}
		}
	source->handler.on_done(source->handler.context, cookie, 0);
	return 0;
}

static int memory_receive(struct source *source)
{
	(void)source;
	return 0;
}
static int memory_fd(const struct source *source)
{
	(void)source;
	return -1;
}
static bool memory_wants_write(const struct source *source)
{
	(void)source;
	return false;
}
static void memory_bytes(const struct source *source, uint64_t *in, uint64_t *out)
{
	(void)source;
	*in = *out = 0;
}

static const struct source_ops memory_ops = {
	.find_space = memory_find, .get = memory_get, .put = memory_put, .drop = memory_drop, .move = memory_move, .fork = memory_fork,
	.receive = memory_receive, .fd = memory_fd, .wants_write = memory_wants_write, .bytes = memory_bytes,
};

/* ---- content ---- */

static void fill(uint8_t *page, uint64_t number, uint32_t version)
{
	uint64_t *words = (uint64_t *)page;
	for (unsigned i = 0; i < PAGE_BYTES / 8; i++)
		words[i] = number * 0x9e3779b97f4a7c15ull ^ (uint64_t)version << 40 ^ i;
}

static void must_be(const uint8_t *page, uint64_t number, uint32_t version, const char *what)
{
	uint64_t expected[PAGE_BYTES / 8];
	fill((uint8_t *)expected, number, version);
	if (memcmp(page, expected, PAGE_BYTES)) {
		fprintf(stderr, "%s: page %lu version %u: first word %#lx, expected %#lx\n", what, number, version, *(const uint64_t *)page, expected[0]);
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
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t number = target_random() % PAGES;
		must_be(page_at(number), number, version[number], what);
		if (target_random() % 4 == 0)
			fill(page_at(number), number, ++version[number]);
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
	fill(page_at(number), number, ++version[number]);
}

static void live_random(void)
{
	touch_randomly(60000, "random");
	check_all("random");
}

static void live_fork(void)
{
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
			fill(page_at(number + i), number + i, ++version[number + i]);
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
		if (mremap(page_at(number), pages * PAGE_BYTES, pages * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere) != elsewhere)
			_exit(3);
		for (uint64_t i = 0; i < pages; i += 1 + target_random() % 4)
			must_be(elsewhere + i * PAGE_BYTES, number + i, version[number + i], "moved");
		if (mremap(elsewhere, pages * PAGE_BYTES, pages * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(number)) != page_at(number))
			_exit(4);
		touch_randomly(300, "between moves");
		/* Unmapped, mapped anew, zero. */
		number = PAGES / 2 + target_random() % (PAGES / 2 - 64);
		pages = 1 + target_random() % 64;
		munmap(page_at(number), pages * PAGE_BYTES);
		if (mmap(page_at(number), pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
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
	uint64_t first = PAGES + 16384 + (uint64_t)(uintptr_t)argument * SLOTS * SLOT_PAGES, state = 77 + (uint64_t)(uintptr_t)argument;
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
				fill(page_at(first + i), first + i, content[i] = turn);
		}
		uint8_t *address = page_at(first + slot * SLOT_PAGES + from);
		if (turn % 3 == 0) {
			if (state & 1 << 20 && munmap(address, pages * PAGE_BYTES))
				_exit(8);
			if (mmap(address, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != address)
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

static void (*const scenes[])(void) = { live_random, live_fork, live_madvise, live_remap, live_exec, live_killed, live_areas };

static void hand_over(int socket_fd)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		_exit(7);
	mmap((void *)BASE, (uint64_t)PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (uffd_register(uffd, BASE, (uint64_t)PAGES * PAGE_BYTES))
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

static void write_images(const char *directory)
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

/* The target is a fresh program, so that nothing of this one's memory is its. */
static int live(const char *scene, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	int socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (connect(socket_fd, (struct sockaddr *)&address, sizeof(address)))
		return 10;
	hand_over(socket_fd);
	scenes[atoi(scene)]();
	return 0;
}

/* Allocations while faults are served. */
extern void __real_fault_read(void *space);
void __wrap_fault_read(void *space);
static uint64_t fault_allocations, fault_reads;
void __wrap_fault_read(void *space)
{
	uint64_t before = allocations;
	__real_fault_read(space);
	/* The first faults fill the table's index; later ones of known memory allocate nothing. */
	if (++fault_reads > 1000)
		fault_allocations += allocations - before;
}

static void run_scene(int scene, int expected_status, bool forks)
{
	char directory[] = "/tmp/dp-test-pager-XXXXXX", path[256];
	assert_non_null(mkdtemp(directory));
	write_images(directory);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/lazy-pages.socket", directory);
	int one = 1, listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	setsockopt(listener, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one));
	setsockopt(listener, SOL_SOCKET, SO_PASSPIDFD, &one, sizeof(one));
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 1), 0);
	fault_allocations = fault_reads = 0;
	struct memory_source memory = { .source = { .ops = &memory_ops, .writable = true }, .spaces = 1 };
	memory.space[0] = memory_space_new();
	for (uint64_t i = 0; i < PAGES; i++) {
		uint8_t **page = slot(&memory, 0, (BASE >> PAGE_SHIFT) + i);
		*page = __libc_malloc(PAGE_BYTES);
		fill(*page, i, 0);
	}
	pid_t child = fork();
	if (child == 0) {
		char number[8];
		snprintf(number, sizeof(number), "%d", scene);
		execl("/proc/self/exe", "test_pager", "--target", number, address.sun_path, NULL);
		_exit(11);
	}
	snprintf(path, sizeof(path), "%s/stats", directory);
	struct pager_config config = {
		.images_dir = directory, .source = &memory.source, .listen_fd = listener, .control_fd = -1, .keeper_fd = -1,
		.stats_path = path, .budget_bytes = BUDGET,
	};
	struct dp_err err = { "" };
	int ret = pager_run(&config, &err);
	int status = -1;
	assert_int_equal(waitpid(child, &status, 0), child);
	if (ret)
		print_error("%s\n", err.text);
	assert_int_equal(ret, 0);
	assert_int_equal(status, expected_status);
	struct pager_stats *stats = stats_map(path, 0, NULL);
	assert_non_null(stats);
	print_message("faults: %lu remote %lu staged %lu zero; evicted %lu, written back %lu, second chance %lu, unshared %lu, stalls %lu\n",
		      stats->faults[FAULT_REMOTE], stats->faults[FAULT_STAGED], stats->faults[FAULT_ZERO], stats->evicted_pages,
		      stats->written_back_pages, stats->second_chance_pages, stats->unshared_pages, stats->stalls);
	assert_true(stats->evicted_pages > 0);
	stats_unmap(stats);
	if (!forks)
		assert_int_equal(fault_allocations, 0);
	remove_tree(directory);
}

static void pager__random_touches__every_byte_right(void **state)
{
	(void)state;
	run_scene(0, 0, false);
}
static void pager__fork_while_writing__both_see_their_own(void **state)
{
	(void)state;
	run_scene(1, 0, true);
}
static void pager__madvise__given_up_pages_read_zero(void **state)
{
	(void)state;
	run_scene(2, 0, false);
}
static void pager__mremap_and_munmap__pages_follow(void **state)
{
	(void)state;
	run_scene(3, 0, false);
}
static void pager__execve__leaves_the_new_program_alone(void **state)
{
	(void)state;
	run_scene(4, 0, false);
}
static void pager__killed_target__ends(void **state)
{
	(void)state;
	run_scene(5, SIGKILL, false);
}

static void pager__areas_made_while_they_are_found__nothing_is_lost(void **state)
{
	(void)state;
	run_scene(6, 0, true);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "--target"))
		return live(argv[2], argv[3]);
	log_setup(2, getenv("DP_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, "pager");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pager__random_touches__every_byte_right),
		cmocka_unit_test(pager__fork_while_writing__both_see_their_own),
		cmocka_unit_test(pager__madvise__given_up_pages_read_zero),
		cmocka_unit_test(pager__mremap_and_munmap__pages_follow),
		cmocka_unit_test(pager__execve__leaves_the_new_program_alone),
		cmocka_unit_test(pager__killed_target__ends),
		cmocka_unit_test(pager__areas_made_while_they_are_found__nothing_is_lost),
	};
	return cmocka_run_group_tests_name("pager", tests, NULL, NULL);
}
