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
#include "pager_target.h"
#include "sys/proc.h"
#include "sys/uffd.h"

#define BASE TARGET_BASE
#define PAGES TARGET_PAGES
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
	return mmap(NULL, sizeof(struct memory_space), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		    0);
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

static int memory_get(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges,
		      size_t count, uint64_t cookie)
{
	struct memory_source *memory = (struct memory_source *)source;
	(void)class;
	for (size_t r = 0; r < count; r++) {
		for (uint64_t i = 0; i < ranges[r].pages; i++) {
			uint8_t **from = slot(memory, space, ranges[r].pgno + i);
			bool last = r + 1 == count && i + 1 == ranges[r].pages;
			struct page_range range = { ranges[r].pgno + i, 1 };
			source->handler.on_pages(source->handler.context, cookie, range, *from, last);
		}
	}
	return 0;
}

static int memory_put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count,
		      const struct iovec *data, size_t data_count, uint64_t cookie)
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
		uint8_t **a = slot((struct memory_source *)source, space, from + i),
			**b = slot((struct memory_source *)source, space, to + i);
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
	.find_space = memory_find,
	.get = memory_get,
	.put = memory_put,
	.drop = memory_drop,
	.move = memory_move,
	.fork = memory_fork,
	.receive = memory_receive,
	.fd = memory_fd,
	.wants_write = memory_wants_write,
	.bytes = memory_bytes,
};

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

static uint64_t lost_page = PAGES; /* that the source had and has no longer; PAGES: none */

static bool leaves_ahead; /* of need: hardly a fault has to wait for room */

static void run_scene(int scene, int expected_status, bool forks)
{
	char directory[] = "/tmp/dp-test-pager-XXXXXX", path[256];
	assert_non_null(mkdtemp(directory));
	target_write_images(directory);
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
		if (i == lost_page)
			continue;
		uint8_t **page = slot(&memory, 0, (BASE >> PAGE_SHIFT) + i);
		*page = __libc_malloc(PAGE_BYTES);
		target_fill(*page, i, 0);
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
		.stats_path = path, .budget_bytes = BUDGET, .init_pid = scene == SCENE_SHARER ? child : 0,
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
	print_message(
		"faults: %lu remote %lu staged %lu zero; evicted %lu, written back %lu, second chance %lu, unshared %lu, stalls %lu\n",
		stats->faults[FAULT_REMOTE], stats->faults[FAULT_STAGED], stats->faults[FAULT_ZERO], stats->evicted_pages,
		stats->written_back_pages, stats->second_chance_pages, stats->unshared_pages, stats->stalls);
	assert_true(stats->evicted_pages > 0 || lost_page < PAGES);
	assert_true(!leaves_ahead || stats->stalls * 20 < stats->faults[FAULT_REMOTE]);
	assert_int_equal(stats->corrupt_pages, lost_page < PAGES);
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

static void pager__first_thread_ends__others_go_on_right(void **state)
{
	(void)state;
	run_scene(SCENE_LEADER, 0, true);
}

static void pager__process_ends__whoever_shares_its_memory_goes_on_right(void **state)
{
	(void)state;
	run_scene(SCENE_SHARER, 0, true);
}

static void pager__areas_of_two_pages__leave_as_others_do(void **state)
{
	(void)state;
	leaves_ahead = true;
	run_scene(SCENE_SMALL_AREAS, 0, false);
	leaves_ahead = false;
}

static void *spin(void *stop)
{
	while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED))
		;
	return NULL;
}

/* P10: what a thread that could be on its way looks like, and one that cannot. */
static void thread_call__waiting_and_running__are_told_apart(void **state)
{
	(void)state;
	int stop = 0;
	long call = 0;
	uint64_t before, after;
	pid_t waiting = fork();
	if (waiting == 0)
		for (;;)
			pause();
	for (int i = 0; i < 1000 && (proc_thread_call(waiting, waiting, &call, &after) || call == PROC_RUNNING); i++)
		usleep(10000);
	assert_int_equal(call, SYS_pause);
	kill(waiting, SIGKILL);
	waitpid(waiting, NULL, 0);
	assert_int_equal(proc_thread_call(waiting, waiting, &call, &after), -ESRCH);
	pid_t running = fork();
	if (running == 0)
		spin(&stop);
	assert_int_equal(proc_thread_call(running, running, &call, &before), 0);
	do {
		assert_int_equal(proc_thread_call(running, running, &call, &after), 0);
	} while (call != PROC_RUNNING || after < before + 1000000);
	kill(running, SIGKILL);
	waitpid(running, NULL, 0);
}

/* P11 */
static void pager__page_missing_from_the_pool__bus_error_not_zeros(void **state)
{
	(void)state;
	lost_page = 4000;
	run_scene(0, SIGBUS, false);
	lost_page = PAGES;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "--target"))
		return target_live(argv[2], argv[3]);
	log_setup(2, getenv("DP_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, "pager");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pager__random_touches__every_byte_right),
		cmocka_unit_test(pager__fork_while_writing__both_see_their_own),
		cmocka_unit_test(pager__madvise__given_up_pages_read_zero),
		cmocka_unit_test(pager__mremap_and_munmap__pages_follow),
		cmocka_unit_test(pager__execve__leaves_the_new_program_alone),
		cmocka_unit_test(pager__killed_target__ends),
		cmocka_unit_test(pager__areas_made_while_they_are_found__nothing_is_lost),
		cmocka_unit_test(pager__first_thread_ends__others_go_on_right),
		cmocka_unit_test(pager__process_ends__whoever_shares_its_memory_goes_on_right),
		cmocka_unit_test(pager__areas_of_two_pages__leave_as_others_do),
		cmocka_unit_test(thread_call__waiting_and_running__are_told_apart),
		cmocka_unit_test(pager__page_missing_from_the_pool__bus_error_not_zeros),
	};
	return cmocka_run_group_tests_name("pager", tests, NULL, NULL);
}
