/* What waits at the destination of a migration (migrate/landing.h): slots whose content is still to come, and a draft and an
 * offer that become one snapshot, each page from the place that has it. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "migrate/arriving_store.h"
#include "migrate/landing.h"
#include "pool_fixture.h"

#define NAME "migration/test:offer"

/* ---- slots whose content is to come ---- */

static struct arriving {
	struct store *store;
	unsigned fetched;
	uint8_t value;
} arriving;

static void fetch(void *context, uint64_t slot)
{
	uint8_t page[PAGE_BYTES];
	memset(page, arriving.value, sizeof(page));
	arriving.fetched++;
	assert_int_equal(arriving_store_take(arriving.store, slot, page), 0);
}

static void open_arriving(uint64_t *slots, size_t count)
{
	arriving = (struct arriving){ .value = 7 };
	assert_int_equal(arriving_store_open(&arriving.store, fetch, NULL, NULL), 0);
	assert_int_equal(arriving.store->ops->alloc(arriving.store, slots, count), 0);
	assert_int_equal(arriving_store_expect(arriving.store, slots, count), 0);
	assert_int_equal(arriving_store_left(arriving.store), count);
}

static uint8_t first_byte(uint64_t slot)
{
	uint8_t page[PAGE_BYTES];
	void *pages[] = { page };
	assert_int_equal(arriving.store->ops->read(arriving.store, &slot, pages, 1), 0);
	return page[0];
}

static void arriving_store__read_before_it_is_here__waits_and_gives_the_content(void **state)
{
	uint64_t slots[3];
	open_arriving(slots, 3);
	assert_int_equal(first_byte(slots[1]), 7);
	assert_int_equal(arriving.fetched, 1);
	const uint8_t *page = arriving.store->ops->page(arriving.store, slots[2]);
	assert_int_equal(page[PAGE_BYTES - 1], 7);
	assert_int_equal(arriving.fetched, 2);
	assert_int_equal(first_byte(slots[1]), 7);
	assert_int_equal(arriving.fetched, 2);
	assert_int_equal(arriving_store_left(arriving.store), 1);
	store_close(arriving.store);
}

static void arriving_store__written_before_it_is_here__keeps_what_was_written(void **state)
{
	uint64_t slots[2];
	uint8_t page[PAGE_BYTES] = { 9 };
	const void *pages[] = { page };
	open_arriving(slots, 2);
	assert_int_equal(arriving.store->ops->write(arriving.store, slots, pages, 1), 0);
	assert_int_equal(arriving_store_left(arriving.store), 1);
	page[0] = 1;
	assert_int_equal(arriving_store_take(arriving.store, slots[0], page), 0); /* late: dropped (A1) */
	assert_int_equal(first_byte(slots[0]), 9);
	assert_int_equal(arriving.fetched, 0);
	store_close(arriving.store);
}

static void arriving_store__freed_before_it_is_here__is_not_expected_by_who_gets_it_next(void **state)
{
	uint64_t slots[2], again;
	uint8_t page[PAGE_BYTES] = { 5 };
	const void *pages[] = { page };
	open_arriving(slots, 2);
	arriving.store->ops->free(arriving.store, slots, 2);
	assert_int_equal(arriving_store_left(arriving.store), 0);
	assert_int_equal(arriving.store->ops->alloc(arriving.store, &again, 1), 0);
	assert_int_equal(arriving.store->ops->write(arriving.store, &again, pages, 1), 0);
	page[0] = 1;
	assert_int_equal(arriving_store_take(arriving.store, again, page), 0);
	assert_int_equal(first_byte(again), 5);
	store_close(arriving.store);
}

static void arriving_store__zeros_come__are_zeros(void **state)
{
	uint64_t slot;
	open_arriving(&slot, 1);
	assert_int_equal(arriving_store_take(arriving.store, slot, NULL), 0);
	assert_int_equal(first_byte(slot), 0);
	assert_int_equal(arriving.fetched, 0);
	store_close(arriving.store);
}

/* ---- a draft and an offer ---- */

static struct world {
	char directory[64], socket[96];
	struct landing landing;
	struct pool_fixture source;
	struct client *ahead, *offer; /* to the landing as the source, and to the source's pool */
	uint64_t draft, space;
	struct endpoint here;
} world;

static int setup(void **state)
{
	char far[96], uri[128];
	struct dp_err err = { "" };
	world = (struct world){ .landing = LANDING_NONE };
	strcpy(world.directory, "/tmp/dp-landing-XXXXXX");
	if (!mkdtemp(world.directory))
		return -1;
	snprintf(world.socket, sizeof(world.socket), "%s/here.sock", world.directory);
	snprintf(far, sizeof(far), "unix://%s/far.sock", world.directory);
	const struct landing_place place = { .listen = far, .socket_path = world.socket };
	if (landing_start(&world.landing, &place, &err)) { /* before there is a thread */
		print_error("%s\n", err.text);
		return -1;
	}
	fixture_start(&world.source, "memory:");
	world.offer = fixture_connect(&world.source);
	struct endpoint ahead;
	assert_int_equal(endpoint_parse(&ahead, world.landing.uri, NULL), 0);
	assert_int_equal(client_open(&world.ahead, &ahead, 0, NULL), 0);
	assert_int_equal(client_snapshot_begin(world.ahead, NAME, false, &world.draft, NULL), 0);
	assert_int_equal(client_snapshot_space(world.ahead, world.draft, 1, &world.space, NULL), 0);
	snprintf(uri, sizeof(uri), "dp+unix://%s#" NAME, world.socket);
	return endpoint_parse(&world.here, uri, NULL);
}

static int teardown(void **state)
{
	client_close(world.ahead);
	client_close(world.offer);
	landing_end(&world.landing);
	fixture_end(&world.source);
	remove_tree(world.directory);
	return 0;
}

/* The source's offer: of task 1 pages [from, to), and where `more`, page 7 of task 2, which was forked at last. */
static void make_offer(uint64_t from, uint64_t to, bool more, const struct landing_run *runs, size_t count)
{
	uint64_t draft, space;
	assert_int_equal(client_snapshot_begin(world.offer, NAME, false, &draft, NULL), 0);
	assert_int_equal(client_snapshot_space(world.offer, draft, 1, &space, NULL), 0);
	assert_int_equal(put_pages(world.offer, space, 0, from, to - from, 2), 0);
	if (more) {
		assert_int_equal(client_snapshot_space(world.offer, draft, 2, &space, NULL), 0);
		assert_int_equal(put_pages(world.offer, space, 0, 7, 1, 3), 0);
	}
	assert_int_equal(client_snapshot_file(world.offer, draft, "core-1.img", "core", 4, NULL), 0);
	uint64_t bytes = count * sizeof(*runs);
	if (runs)
		assert_int_equal(client_snapshot_file(world.offer, draft, LANDING_LEFT_FILE, runs, bytes, NULL), 0);
	assert_int_equal(client_snapshot_commit(world.offer, draft, "{}", NULL), 0);
}

static int take(struct dp_err *err)
{
	char uri[1400];
	return landing_take(&world.landing, endpoint_pool_text(&world.source.endpoint, uri, sizeof(uri)), NAME, err);
}

static uint64_t space_of(const struct snapshot_info *info, uint64_t label)
{
	for (size_t i = 0; i < info->space_count; i++)
		if (info->spaces[i].label == label)
			return info->spaces[i].space;
	fail();
	return 0;
}

static void landing__draft_and_offer__each_page_comes_from_its_place(void **state)
{
	const struct landing_run runs[] = { { 1, 1000, 700 }, { 2, 7, 1 } };
	struct snapshot_info info;
	struct client *client;
	struct dp_err err = { "" };
	assert_int_equal(put_pages(world.ahead, world.space, 0, 0, 1000, 1), 0);
	assert_int_equal(put_pages(world.ahead, world.space, 0, 1700, 50, 1), 0);
	make_offer(1000, 1700, true, runs, 2);
	if (take(&err))
		fail_msg("%s", err.text);
	client_close(world.ahead); /* the source's connection may go: the draft is the landing's */
	world.ahead = NULL;
	assert_int_equal(client_open(&client, &world.here, 0, NULL), 0);
	assert_int_equal(client_snapshot_open(client, NAME, &info, NULL), 0);
	assert_int_equal(info.space_count, 2);
	assert_int_equal(info.file_count, 1); /* the list of pages is no image of CRIU's */
	assert_int_equal(info.stored_pages, 1751);
	expect_pages(client, space_of(&info, 1), 1500, 100, 2); /* some that nobody has asked for yet, out of order */
	expect_pages(client, space_of(&info, 1), 0, 1000, 1);
	expect_pages(client, space_of(&info, 1), 1000, 700, 2);
	expect_pages(client, space_of(&info, 1), 1700, 50, 1);
	expect_pages(client, space_of(&info, 2), 7, 1, 3);
	client_snapshot_info_done(&info);
	client_close(client);
}

/* Nothing depends on the source any more then. */
static void landing__offer_gone_when_all_is_here__goes_on(void **state)
{
	const struct landing_run runs[] = { { 1, 10, 20 } };
	struct snapshot_info info;
	struct client *client;
	assert_int_equal(put_pages(world.ahead, world.space, 0, 0, 10, 1), 0);
	make_offer(10, 30, false, runs, 1);
	assert_int_equal(take(NULL), 0);
	assert_int_equal(client_open(&client, &world.here, 0, NULL), 0);
	assert_int_equal(client_snapshot_open(client, NAME, &info, NULL), 0);
	expect_pages(client, info.spaces[0].space, 0, 10, 1);
	expect_pages(client, info.spaces[0].space, 10, 20, 2);
	client_close(world.offer);
	world.offer = NULL;
	fixture_stop(&world.source);
	expect_pages(client, info.spaces[0].space, 10, 20, 2);
	assert_false(landing_has_ended(&world.landing));
	client_snapshot_info_done(&info);
	client_close(client);
}

static void landing__page_in_two_places__is_refused(void **state)
{
	const struct landing_run runs[] = { { 1, 90, 20 } };
	struct dp_err err;
	assert_int_equal(put_pages(world.ahead, world.space, 0, 0, 100, 1), 0);
	make_offer(90, 110, false, runs, 1);
	assert_int_equal(take(&err), -EBADMSG);
	assert_non_null(strstr(err.text, "two places"));
}

static void landing__offer_without_a_list__is_refused(void **state)
{
	assert_int_equal(put_pages(world.ahead, world.space, 0, 0, 100, 1), 0);
	make_offer(100, 110, false, NULL, 0);
	assert_int_equal(take(NULL), -EBADMSG);
}

static void landing__list_that_makes_no_sense__is_refused(void **state)
{
	const struct landing_run runs[] = { { 1, UINT64_MAX - 1, 4 } };
	make_offer(0, 1, false, runs, 1);
	assert_int_equal(take(NULL), -EBADMSG);
}

static void landing__draft_lost_with_its_connection__is_an_error(void **state)
{
	const struct landing_run runs[] = { { 1, 0, 1 } };
	assert_int_equal(put_pages(world.ahead, world.space, 0, 0, 100, 1), 0);
	make_offer(0, 1, false, runs, 1);
	client_close(world.ahead);
	world.ahead = NULL;
	int ret;
	struct dp_err err;
	unsigned tries = 0;
	while ((ret = take(&err)) == -EBADMSG && tries++ < 1000) /* it has not seen the connection's end yet */
		usleep(1000);
	assert_int_equal(ret, -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arriving_store__read_before_it_is_here__waits_and_gives_the_content),
		cmocka_unit_test(arriving_store__written_before_it_is_here__keeps_what_was_written),
		cmocka_unit_test(arriving_store__freed_before_it_is_here__is_not_expected_by_who_gets_it_next),
		cmocka_unit_test(arriving_store__zeros_come__are_zeros),
		cmocka_unit_test_setup_teardown(landing__draft_and_offer__each_page_comes_from_its_place, setup, teardown),
		cmocka_unit_test_setup_teardown(landing__offer_gone_when_all_is_here__goes_on, setup, teardown),
		cmocka_unit_test_setup_teardown(landing__page_in_two_places__is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(landing__offer_without_a_list__is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(landing__list_that_makes_no_sense__is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(landing__draft_lost_with_its_connection__is_an_error, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
