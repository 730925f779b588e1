/* The store layer that fails on purpose: what it is told to do happens, as often as told, and nothing else. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "base/log.h"
#include "store/store.h"

#define PAGES 512u

static uint8_t pages[PAGES][PAGE_BYTES];
static uint64_t slots[PAGES];

static struct store *open_store(const char *uri)
{
	struct store *store = NULL;
	struct dp_err err = { "" };

	if (store_open(&store, uri, true, &err) < 0)
		fail_msg("%s: %s", uri, err.text);
	return store;
}

static int write_page(struct store *store, unsigned page)
{
	return store->ops->write(store, &slots[page], &(const void *){ pages[page] }, 1);
}

static struct store *filled_store(const char *uri)
{
	struct store *store = open_store(uri);

	for (unsigned i = 0; i < PAGES; i++)
		memset(pages[i], (int)(1 + i % 255), PAGE_BYTES);
	assert_int_equal(store->ops->alloc(store, slots, PAGES), 0);
	for (unsigned i = 0; i < PAGES; i++)
		write_page(store, i);
	return store;
}

/* How many pages read differ from what was written; each by one byte. A bit a page. */
static unsigned read_damaged(struct store *store, uint8_t damaged[PAGES])
{
	uint8_t read[PAGE_BYTES];
	unsigned count = 0;

	for (unsigned i = 0; i < PAGES; i++) {
		unsigned bytes = 0;

		assert_int_equal(store->ops->read(store, &slots[i], &(void *){ read }, 1), 0);
		for (unsigned byte = 0; byte < PAGE_BYTES; byte++)
			bytes += read[byte] != pages[i][byte];
		assert_true(bytes <= 1);
		damaged[i] = (uint8_t)bytes;
		count += bytes;
	}
	return count;
}

static void chaos__nth__only_that_call_fails(void **state)
{
	struct store *store = filled_store("memory:?chaos=op:write,nth:514,errno:ENOSPC");

	assert_int_equal(write_page(store, 0), 0);
	assert_int_equal(write_page(store, 1), -ENOSPC);
	assert_int_equal(write_page(store, 1), 0);
	store_close(store);
	store = open_store("memory:?chaos=op:alloc,after:1,times:2");
	assert_int_equal(store->ops->alloc(store, slots, 1), 0);
	assert_int_equal(store->ops->alloc(store, slots, 1), -EIO);
	assert_int_equal(store->ops->alloc(store, slots, 1), -EIO);
	assert_int_equal(store->ops->alloc(store, slots, 1), 0);
	store_close(store);
}

static void chaos__fail__some_calls_fail_the_same_with_the_same_seed(void **state)
{
	uint8_t failed[2][PAGES];
	unsigned count = 0;

	for (unsigned round = 0; round < 2; round++) {
		struct store *store = filled_store("memory:?chaos=op:read,fail:0.1,seed:3");
		uint8_t read[PAGE_BYTES];

		for (unsigned i = 0; i < PAGES; i++) {
			int result = store->ops->read(store, &slots[i], &(void *){ read }, 1);

			assert_true(result == 0 || result == -EIO);
			failed[round][i] = result < 0;
			count += result < 0;
		}
		store_close(store);
	}
	assert_memory_equal(failed[0], failed[1], PAGES);
	assert_in_range(count, 20, 300);
}

static void chaos__corrupt__a_page_is_wrong_now_and_right_later(void **state)
{
	struct store *store = filled_store("memory:?chaos=corrupt:0.1");
	uint8_t first[PAGES], second[PAGES];

	assert_null(store->ops->page(store, slots[0])); /* what is read past this layer could not be damaged */
	assert_in_range(read_damaged(store, first), 10, 150);
	assert_in_range(read_damaged(store, second), 10, 150);
	assert_memory_not_equal(first, second, PAGES);
	store_close(store);
}

static void chaos__rot__a_page_stays_wrong_and_the_writers_is_right(void **state)
{
	struct store *store = filled_store("memory:?chaos=rot:0.1&ready=4M");
	uint8_t first[PAGES], second[PAGES];

	for (unsigned i = 0; i < PAGES; i++)
		for (unsigned byte = 0; byte < PAGE_BYTES; byte++)
			assert_int_equal(pages[i][byte], 1 + i % 255);
	assert_in_range(read_damaged(store, first), 10, 150);
	read_damaged(store, second);
	assert_memory_equal(first, second, PAGES);
	store_close(store);
}

/* A packed page that rots is refused by the packed layer's own check. */
static void chaos__rot_below_packed__reads_are_refused_never_wrong(void **state)
{
	struct store *store = filled_store("memory:?compress=lz4&chaos=corrupt:0.5");
	unsigned refused = 0;

	for (unsigned i = 0; i < PAGES; i++) {
		uint8_t read[PAGE_BYTES];
		int result = store->ops->read(store, &slots[i], &(void *){ read }, 1);

		assert_true(result == 0 || result == -EBADMSG || result == -EIO);
		refused += result < 0;
		if (result == 0)
			assert_memory_equal(read, pages[i], PAGE_BYTES);
	}
	assert_true(refused > 0);
	store_close(store);
}

static void chaos__bad_options__are_refused(void **state)
{
	static const char *const bad[] = { "memory:?chaos=fail:2", "memory:?chaos=fail:-1",  "memory:?chaos=fail:x",
					   "memory:?chaos=nth:0",  "memory:?chaos=op:laugh", "memory:?chaos=errno:EHUH",
					   "memory:?chaos=what:1", "memory:?chaos=fail",     "memory:?chaos=corrupt:nan" };

	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		struct store *store;
		struct dp_err err = { "" };

		assert_int_equal(store_open(&store, bad[i], true, &err), -EINVAL);
		assert_non_null(strstr(err.text, "chaos="));
		assert_null(store);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(chaos__nth__only_that_call_fails),
		cmocka_unit_test(chaos__fail__some_calls_fail_the_same_with_the_same_seed),
		cmocka_unit_test(chaos__corrupt__a_page_is_wrong_now_and_right_later),
		cmocka_unit_test(chaos__rot__a_page_stays_wrong_and_the_writers_is_right),
		cmocka_unit_test(chaos__rot_below_packed__reads_are_refused_never_wrong),
		cmocka_unit_test(chaos__bad_options__are_refused),
	};

	log_setup(2, LOG_LEVEL_ERROR, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
