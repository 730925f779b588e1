/* Pages read from the pool's memory: random changes and reads against a model, reads while changes are under way, and a pool that
 * cannot be read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "client/near.h"
#include "pool_fixture.h"
#include "wire/message.h"

#define SPACES 3
#define PAGES 700u

static uint64_t seed_state;
static uint64_t next_random(uint64_t limit)
{
	seed_state = seed_state * 6364136223846793005ull + 1442695040888963407ull;
	return (seed_state >> 33) % limit;
}

struct model {
	uint64_t version[SPACES][PAGES]; /* 0: zeros */
	uint64_t origin[SPACES][PAGES];  /* the page number it was written with */
	bool exists[SPACES];
	uint64_t space[SPACES], versions;
};

static struct client *client;

static struct page_range random_range(uint64_t most)
{
	uint64_t pgno = next_random(PAGES), pages = 1 + next_random(most);
	return (struct page_range){ pgno, DP_MIN(pages, PAGES - pgno) };
}

static void change(struct model *model, unsigned at, uint64_t *sent)
{
	struct page_range range = random_range(20);
	uint64_t space = model->space[at], to = next_random(PAGES - range.pages + 1);
	unsigned other = (at + 1) % SPACES;
	static uint8_t pages[20 * PAGE_BYTES];
	struct iovec data = { pages, range.pages * PAGE_BYTES };
	uint64_t moved_version[20], moved_origin[20];
	switch (next_random(8)) {
	case 0:
		assert_int_equal(client_drop(client, space, 1, &range, 1, 0), 0);
		memset(&model->version[at][range.pgno], 0, range.pages * sizeof(uint64_t));
		break;
	case 1:
		if (to < range.pgno + range.pages && range.pgno < to + range.pages)
			return; /* mremap's ranges do not overlap */
		assert_int_equal(client_move(client, space, 1, range.pgno, to, range.pages, 0), 0);
		memcpy(moved_version, &model->version[at][range.pgno], range.pages * sizeof(uint64_t));
		memcpy(moved_origin, &model->origin[at][range.pgno], range.pages * sizeof(uint64_t));
		memset(&model->version[at][range.pgno], 0, range.pages * sizeof(uint64_t));
		memcpy(&model->version[at][to], moved_version, range.pages * sizeof(uint64_t));
		memcpy(&model->origin[at][to], moved_origin, range.pages * sizeof(uint64_t));
		break;
	case 2: /* the other space ends, or begins as this one's copy; ids are used again */
		if (other == 0)
			return;
		if (model->exists[other]) {
			assert_int_equal(client_space_free(client, model->space[other], 1, 0), 0);
		} else {
			assert_int_equal(client_fork(client, space, 1, model->space[other], 0), 0);
			memcpy(model->version[other], model->version[at], sizeof(model->version[0]));
			memcpy(model->origin[other], model->origin[at], sizeof(model->origin[0]));
		}
		model->exists[other] = !model->exists[other];
		break;
	default:
		model->versions++;
		for (uint64_t i = 0; i < range.pages; i++) {
			fill_page(pages + i * PAGE_BYTES, range.pgno + i, model->versions);
			model->version[at][range.pgno + i] = model->versions;
			model->origin[at][range.pgno + i] = range.pgno + i;
		}
		assert_int_equal(client_put(client, space, 1, &range, 1, &data, 1, 0), 0);
	}
	++*sent;
}

static void check_read(const struct model *model, unsigned at, struct page_range range, const uint8_t *memory)
{
	uint8_t page[PAGE_BYTES];
	for (uint64_t i = 0; i < range.pages; i++) {
		fill_page(page, model->origin[at][range.pgno + i], model->version[at][range.pgno + i]);
		assert_memory_equal(memory + i * PAGE_BYTES, page, PAGE_BYTES);
	}
}

static uint64_t read_pages(const struct model *model, unsigned at, uint64_t changes)
{
	static uint8_t memory[100 * PAGE_BYTES];
	struct page_range range = random_range(100);
	struct results results = { .memory = memory, .base = range.pgno, .pages = range.pages };
	struct client_handler handler = results_handler(&results);
	memset(memory, 0xee, sizeof(memory));
	int got = client_get_near(client, &handler, model->space[at], &range, 1, 1);
	assert_true(got >= 0);
	if (!got)
		assert_int_equal(client_get(client, CLASS_DEMAND, model->space[at], &range, 1, 1), 0);
	/* The changes before it are acknowledged on the way. */
	assert_int_equal(results_wait(client, &results, (unsigned)changes + 1), 0);
	assert_int_equal(results.data_pages + results.zero_pages, range.pages);
	check_read(model, at, range, memory);
	return got > 0;
}

static void random_changes_and_reads(const char *store)
{
	uint64_t direct = 0;
	for (uint64_t seed = 1; seed <= 6; seed++) {
		struct pool_fixture fixture = { 0 };
		struct instance_info instance;
		static struct model model;
		memset(&model, 0, sizeof(model));
		seed_state = seed;
		fixture_start(&fixture, store);
		client = fixture_connect(&fixture);
		make_snapshot(client, "base", PAGES);
		assert_int_equal(client_instance_create(client, "base", "i", false, &instance, NULL), 0);
		assert_true(client_read_near(client));
		for (unsigned i = 0; i < SPACES; i++)
			model.space[i] = instance.spaces[0].space + i;
		model.exists[0] = true;
		model.versions = 1;
		for (uint64_t i = 0; i < PAGES; i++) {
			model.version[0][i] = 1;
			model.origin[0][i] = i;
		}
		for (unsigned step = 0; step < 1500; step++) {
			unsigned at = (unsigned)next_random(SPACES);
			uint64_t changes = 0;
			for (uint64_t count = next_random(3); count && model.exists[at]; count--)
				change(&model, at, &changes);
			at = model.exists[at] ? at : 0;
			for (unsigned reads = 0; reads < 3; reads++, changes = 0)
				direct += read_pages(&model, at, changes);
		}
		free(instance.spaces);
		client_close(client);
		fixture_end(&fixture);
		remove_tree(fixture.directory);
	}
	print_message("%lu reads without a message\n", direct);
	assert_true(direct > 1000);
}

static void near__random_changes__reads_what_was_written(void **state)
{
	(void)state;
	random_changes_and_reads("memory:");
}

static void near__random_changes_in_files__reads_what_was_written(void **state)
{
	(void)state;
	random_changes_and_reads("dir:%s/store");
}

/* N2: the neighbours' places come with an answer that was asked for before they changed. */
static void near__change_while_places_are_on_their_way__is_seen(void **state)
{
	(void)state;
	struct pool_fixture fixture = { 0 };
	struct instance_info instance;
	struct page_range first = { 10, 1 }, neighbour = { 11, 1 };
	uint8_t page[PAGE_BYTES];
	struct iovec data = { page, PAGE_BYTES };
	struct results results = { 0 };
	fixture_start(&fixture, "memory:");
	client = fixture_connect(&fixture);
	make_snapshot(client, "base", 64);
	assert_int_equal(client_instance_create(client, "base", "i", false, &instance, NULL), 0);
	assert_true(client_read_near(client));
	uint64_t space = instance.spaces[0].space;
	assert_int_equal(client_get(client, CLASS_DEMAND, space, &first, 1, 1), 0);
	fill_page(page, 11, 9);
	assert_int_equal(client_put(client, space, 1, &neighbour, 1, &data, 1, 2), 0);
	assert_int_equal(results_wait(client, &results, 2), 0);
	expect_pages(client, space, 11, 1, 9);
	expect_pages(client, space, 10, 1, 1);
	free(instance.spaces);
	client_close(client);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

static void near__other_memory_than_the_pools__is_refused(void **state)
{
	(void)state;
	uint8_t lie[NEAR_PROOF_BYTES] = { 1 };
	struct message_near pool = { .pid = (uint64_t)getpid(), .proof_place = (uintptr_t)lie };
	assert_null(near_open(&pool));
	memcpy(pool.proof, lie, sizeof(lie));
	struct near *near = near_open(&pool);
	assert_non_null(near);
	near_close(near);
	pool.proof_place = 8; /* not mapped */
	assert_null(near_open(&pool));
	pool.pid = 0x3ffffff;
	assert_null(near_open(&pool));
}

static void near__store_without_memory__answers_by_messages(void **state)
{
	(void)state;
	struct pool_fixture fixture = { 0 };
	fixture_start(&fixture, "memory:?chaos=op:read,nth:1000000");
	client = fixture_connect(&fixture);
	make_snapshot(client, "base", 64);
	assert_false(client_read_near(client));
	client_close(client);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(near__random_changes__reads_what_was_written),
		cmocka_unit_test(near__random_changes_in_files__reads_what_was_written),
		cmocka_unit_test(near__change_while_places_are_on_their_way__is_seen),
		cmocka_unit_test(near__other_memory_than_the_pools__is_refused),
		cmocka_unit_test(near__store_without_memory__answers_by_messages),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
