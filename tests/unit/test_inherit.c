/* Which pages a checkpoint of an instance takes from the pool: by hand, and against a plain page-by-page model. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/base.h"
#include "checkpoint/inherit.h"

static void list__runs_that_touch__are_joined(void **state)
{
	struct page_list list = {0};
	assert_int_equal(page_list_add(&list, 10, 2), 0);
	assert_int_equal(page_list_add(&list, 12, 3), 0);
	assert_int_equal(page_list_add(&list, 20, 1), 0);
	assert_int_equal(list.count, 2);
	assert_int_equal(list.ranges[0].pages, 5);
	assert_int_equal(list.pages, 6);
	page_list_done(&list);
}

static void missing__sent_pages_win__rest_is_inherited(void **state)
{
	/* the pager exports in-flight pages after remote ones: not ascending; what is local and was not sent (200) is zero,
	 * whatever the pool has */
	struct page_range remote[] = {{100, 50}, {300, 10}, {10, 5}};
	struct control_copy copies[] = {{12, 1}, {200, 2}, {201, 3}};
	struct control_space space = {.remote = remote, .remote_count = 3, .copies = copies, .copy_count = 3};
	struct page_list sent = {0}, missing = {0};
	page_list_add(&sent, 90, 15);  /* into the first run */
	page_list_add(&sent, 120, 1);  /* a hole in it */
	page_list_add(&sent, 201, 99); /* up to the third */
	assert_int_equal(inherit_missing(&space, &sent, &missing), 0);
	const struct page_range expected[] = {{10, 5}, {105, 15}, {121, 29}, {300, 10}};
	assert_int_equal(missing.count, ARRAY_LENGTH(expected));
	for (size_t i = 0; i < ARRAY_LENGTH(expected); i++) {
		assert_int_equal(missing.ranges[i].pgno, expected[i].pgno);
		assert_int_equal(missing.ranges[i].pages, expected[i].pages);
	}
	page_list_done(&sent);
	page_list_done(&missing);
}

#define WORLD 400
static void missing__random__equals_the_model(void **state)
{
	unsigned seed = 7;
	for (int round = 0; round < 2000; round++) {
		bool exported[WORLD] = {0}, is_sent[WORLD] = {0};
		struct page_range remote[20];
		struct control_copy copies[WORLD];
		size_t copy_count = 0;
		struct page_list sent = {0}, missing = {0};
		for (size_t i = 0; i < ARRAY_LENGTH(remote); i++) {
			remote[i] = (struct page_range){(uint64_t)rand_r(&seed) % 380, 1 + (uint64_t)rand_r(&seed) % 20};
			memset(exported + remote[i].pgno, 1, remote[i].pages);
		}
		for (uint64_t page = 0; page < WORLD; page++) {
			if (rand_r(&seed) % 8 == 0)
				copies[copy_count++] = (struct control_copy){page, page};
			if (rand_r(&seed) % 3 == 0) {
				is_sent[page] = true;
				page_list_add(&sent, page, 1);
			}
		}
		struct control_space space = {.remote = remote, .remote_count = 20, .copies = copies, .copy_count = copy_count};
		assert_int_equal(inherit_missing(&space, &sent, &missing), 0);
		bool got[WORLD] = {0};
		uint64_t last = 0;
		for (size_t i = 0; i < missing.count; i++) {
			assert_true(missing.ranges[i].pgno >= last);
			last = missing.ranges[i].pgno + missing.ranges[i].pages;
			assert_true(last <= WORLD);
			memset(got + missing.ranges[i].pgno, 1, missing.ranges[i].pages);
		}
		for (int page = 0; page < WORLD; page++)
			assert_int_equal(got[page], exported[page] && !is_sent[page]);
		page_list_done(&sent);
		page_list_done(&missing);
	}
}

static void copies__looked_up_ascending__are_found(void **state)
{
	struct control_copy copies[] = {{5, 50}, {6, 60}, {9, 90}};
	struct control_space space = {.copies = copies, .copy_count = 3};
	size_t cursor = 0;
	assert_null(inherit_find_copy(&space, 4, &cursor));
	assert_int_equal(inherit_find_copy(&space, 5, &cursor)->hash, 50);
	assert_null(inherit_find_copy(&space, 7, &cursor));
	assert_int_equal(inherit_find_copy(&space, 9, &cursor)->hash, 90);
	assert_null(inherit_find_copy(&space, 10, &cursor));
}

static void areas__pages_in_none__are_dropped_and_locked_ones_refused(void **state)
{
	const struct image_vma vmas[] = {
		{.start = 0x10000, .end = 0x20000, .flags = MAP_PRIVATE | MAP_ANONYMOUS},
		{.start = 0x20000, .end = 0x28000, .flags = MAP_PRIVATE | MAP_ANONYMOUS},
		{.start = 0x40000, .end = 0x50000, .flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED},
	};
	struct page_list pages = {0}, lazy = {0};
	uint64_t at = 0;
	page_list_add(&pages, 0x8, 0x28); /* 0x8..0x30: before, through two areas, behind */
	assert_int_equal(inherit_within_areas(&pages, vmas, 3, &lazy, &at), 0);
	assert_int_equal(lazy.count, 1);
	assert_int_equal(lazy.ranges[0].pgno, 0x10);
	assert_int_equal(lazy.ranges[0].pages, 0x18);
	page_list_add(&pages, 0x41, 1);
	page_list_done(&lazy);
	assert_int_equal(inherit_within_areas(&pages, vmas, 3, &lazy, &at), -ENOTSUP);
	assert_int_equal(at, 0x41);
	page_list_done(&lazy);
	page_list_done(&pages);
}

static void runs__merged__ascend_and_present_ones_keep_their_order(void **state)
{
	struct image_run *runs = malloc(3 * sizeof(*runs));
	runs[0] = (struct image_run){.pgno = 10, .pages = 2, .flags = PAGEMAP_LAZY};
	runs[1] = (struct image_run){.pgno = 12, .pages = 1, .flags = PAGEMAP_PRESENT};
	runs[2] = (struct image_run){.pgno = 20, .pages = 1, .flags = PAGEMAP_LAZY};
	struct image_pagemap pagemap = {.pages_id = 1, .runs = runs, .count = 3};
	struct page_list lazy = {0};
	page_list_add(&lazy, 5, 5);
	page_list_add(&lazy, 13, 7);
	assert_int_equal(inherit_merge_runs(&pagemap, &lazy), 0);
	assert_int_equal(pagemap.count, 3);
	assert_int_equal(pagemap.runs[0].pgno, 5);
	assert_int_equal(pagemap.runs[0].pages, 7);
	assert_int_equal(pagemap.runs[1].flags, PAGEMAP_PRESENT);
	assert_int_equal(pagemap.runs[2].pgno, 13);
	assert_int_equal(pagemap.runs[2].pages, 8);
	page_list_done(&lazy);
	image_pagemap_done(&pagemap);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(list__runs_that_touch__are_joined),
		cmocka_unit_test(missing__sent_pages_win__rest_is_inherited),
		cmocka_unit_test(missing__random__equals_the_model),
		cmocka_unit_test(copies__looked_up_ascending__are_found),
		cmocka_unit_test(areas__pages_in_none__are_dropped_and_locked_ones_refused),
		cmocka_unit_test(runs__merged__ascend_and_present_ones_keep_their_order),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
