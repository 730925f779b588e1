/* A store whose pages lie in another process: what is read is what that process has, and what cannot be read is an error. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/base.h"
#include "migrate/frozen_store.h"
#include "migrate/frozen_tree.h"

#define PAGES 100u

static struct world {
	pid_t child;
	uint8_t *area; /* the child's, at the same address here */
	int life[2];
	struct store *store;
	uint64_t first;
} world;

static uint8_t pattern(uint64_t page)
{
	return (uint8_t)(1 + page * 3);
}

/* A child with PAGES pages, the last ten of which it may not read itself, and a store over them. */
static int setup(void **state)
{
	char path[64];
	world.area = mmap(NULL, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (world.area == MAP_FAILED || pipe2(world.life, O_CLOEXEC))
		return -1;
	for (unsigned i = 0; i < PAGES; i++)
		memset(world.area + i * PAGE_BYTES, pattern(i), PAGE_BYTES);
	mprotect(world.area + (PAGES - 10) * PAGE_BYTES, 10 * PAGE_BYTES, PROT_NONE);
	int ready[2]; /* hangs up when the child has let go of the pipe */
	if (pipe(ready))
		return -1;
	world.child = fork();
	if (world.child == 0) {
		close(world.life[1]);
		close(ready[1]);
		for (;;)
			pause();
	}
	close(ready[1]);
	bool alone = read(ready[0], path, 1) == 0;
	close(ready[0]);
	if (!alone)
		return -1;
	munmap(world.area, PAGES * PAGE_BYTES);
	snprintf(path, sizeof(path), "/proc/%d/mem", world.child);
	if (frozen_store_open(&world.store, world.life[0], NULL))
		return -1;
	int memory = frozen_store_add_memory(world.store, open(path, O_RDONLY | O_CLOEXEC));
	return memory < 0 ||
	       frozen_store_add_pages(world.store, memory, (uintptr_t)world.area >> PAGE_SHIFT, PAGES, &world.first);
}

static void end_child(void)
{
	if (world.child <= 0)
		return;
	kill(world.child, SIGKILL);
	waitpid(world.child, NULL, 0);
	world.child = 0;
}

static int teardown(void **state)
{
	end_child();
	store_close(world.store);
	close(world.life[0]);
	if (world.life[1] >= 0)
		close(world.life[1]);
	return 0;
}

static int read_page(uint64_t slot, uint8_t *page)
{
	void *pages[] = { page };
	return world.store->ops->read(world.store, &slot, pages, 1);
}

static bool is_pattern(const uint8_t *page, uint8_t value)
{
	for (unsigned i = 0; i < PAGE_BYTES; i++)
		if (page[i] != value)
			return false;
	return true;
}

static void frozen_store__read__gives_what_the_process_has(void **state)
{
	static uint8_t buffer[PAGES][PAGE_BYTES];
	uint64_t slots[PAGES];
	void *pages[PAGES];
	for (unsigned i = 0; i < PAGES; i++) { /* backwards in part, so that runs break */
		slots[i] = world.first + (i < 50 ? i : PAGES + 49 - i);
		pages[i] = buffer[i];
	}
	assert_int_equal(world.store->ops->read(world.store, slots, pages, PAGES), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_true(is_pattern(buffer[i], pattern(slots[i] - world.first)));
	assert_int_equal(frozen_store_read_pages(world.store), PAGES);
	assert_int_equal(frozen_store_left_pages(world.store), 0);
}

static void frozen_store__process_killed__is_an_error_not_zeros(void **state)
{
	uint8_t page[PAGE_BYTES];
	assert_int_equal(read_page(world.first, page), 0);
	end_child();
	assert_int_equal(read_page(world.first, page), -EIO);
	assert_int_equal(read_page(world.first + 1, page), -EIO);
}

static void frozen_store__holder_gone__is_an_error_though_the_process_lives(void **state)
{
	uint8_t page[PAGE_BYTES];
	close(world.life[1]);
	world.life[1] = -1;
	assert_int_equal(read_page(world.first, page), -EIO);
	assert_int_equal(frozen_store_read_pages(world.store), 0);
}

static void frozen_store__ended__frozen_slots_fail_and_own_ones_live(void **state)
{
	uint8_t page[PAGE_BYTES];
	uint64_t slot;
	const void *pages[] = { page };
	assert_int_equal(world.store->ops->alloc(world.store, &slot, 1), 0);
	assert_true(slot >= world.first + PAGES);
	memset(page, 0xaa, sizeof(page));
	assert_int_equal(world.store->ops->write(world.store, &slot, pages, 1), 0);
	frozen_store_end(world.store);
	assert_int_equal(read_page(world.first, page), -EIO);
	memset(page, 0, sizeof(page));
	assert_int_equal(read_page(slot, page), 0);
	assert_true(is_pattern(page, 0xaa));
}

static void frozen_store__slot_written__is_ours_from_then_on(void **state)
{
	uint8_t page[PAGE_BYTES];
	uint64_t slot = world.first + 7;
	const void *pages[] = { page };
	memset(page, 0x55, sizeof(page));
	assert_int_equal(world.store->ops->write(world.store, &slot, pages, 1), 0);
	end_child();
	memset(page, 0, sizeof(page));
	assert_int_equal(read_page(slot, page), 0);
	assert_true(is_pattern(page, 0x55));
	assert_int_equal(read_page(slot + 1, page), -EIO);
	assert_int_equal(frozen_store_left_pages(world.store), PAGES - 1);
	world.store->ops->free(world.store, &slot, 1);
	assert_int_equal(frozen_store_left_pages(world.store), PAGES - 1);
}

static void frozen_store__slots_freed__are_not_left_to_be_read(void **state)
{
	uint64_t slots[] = { world.first, world.first + 1, world.first + 2 };
	world.store->ops->free(world.store, slots, 3);
	assert_int_equal(frozen_store_left_pages(world.store), PAGES - 3);
}

static void frozen_store__kept__needs_the_process_no_more(void **state)
{
	uint8_t page[PAGE_BYTES];
	uint64_t gone = world.first + 3;
	world.store->ops->free(world.store, &gone, 1);
	assert_int_equal(frozen_store_keep(world.store), 0);
	end_child();
	frozen_store_end(world.store);
	for (unsigned i = 0; i < PAGES; i++) {
		if (i == 3)
			continue;
		assert_int_equal(read_page(world.first + i, page), 0);
		assert_true(is_pattern(page, pattern(i)));
	}
}

/* Of an area with more runs than the kernel hands on at once, and fewer than twice as many. */
static void frozen_tree__area_of_many_runs__each_page_is_found_once(void **state)
{
	const unsigned runs = 700;
	uint8_t *area = mmap(NULL, 2 * runs * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(area != MAP_FAILED);
	madvise(area, 2 * runs * PAGE_BYTES, MADV_NOHUGEPAGE);
	for (unsigned i = 0; i < runs; i++)
		area[2 * i * PAGE_BYTES] = 1;
	struct frozen_task task = { .vpid = 1, .mem_fd = -1, .smaps_fd = -1 };
	struct frozen_tree tree;
	frozen_tree_init(&tree, -1);
	task.pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	assert_int_equal(page_list_add(&task.hidden, (uintptr_t)area >> PAGE_SHIFT, 2 * runs), 0);
	tree.tasks = &task;
	tree.task_count = 1;
	assert_true(frozen_tree_scan(&tree, NULL, NULL, NULL) < 0); /* it has no images, which are looked at later */
	assert_int_equal(task.pages.pages, runs);
	for (size_t i = 0; i < task.pages.count; i++)
		assert_int_equal(task.pages.ranges[i].pgno, ((uintptr_t)area >> PAGE_SHIFT) + 2 * i);
	close(task.pagemap_fd);
	page_list_done(&task.hidden);
	page_list_done(&task.pages);
	munmap(area, 2 * runs * PAGE_BYTES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(frozen_tree__area_of_many_runs__each_page_is_found_once),
		cmocka_unit_test_setup_teardown(frozen_store__read__gives_what_the_process_has, setup, teardown),
		cmocka_unit_test_setup_teardown(frozen_store__process_killed__is_an_error_not_zeros, setup, teardown),
		cmocka_unit_test_setup_teardown(frozen_store__holder_gone__is_an_error_though_the_process_lives, setup, teardown),
		cmocka_unit_test_setup_teardown(frozen_store__ended__frozen_slots_fail_and_own_ones_live, setup, teardown),
		cmocka_unit_test_setup_teardown(frozen_store__slot_written__is_ours_from_then_on, setup, teardown),
		cmocka_unit_test_setup_teardown(frozen_store__slots_freed__are_not_left_to_be_read, setup, teardown),
		cmocka_unit_test_setup_teardown(frozen_store__kept__needs_the_process_no_more, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
