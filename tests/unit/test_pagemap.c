/* The page map against a simple model: an array of numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "pool/pagemap.h"

#define MODEL_PAGES 4096u /* pages the model knows, at four places far apart */
#define MAPS 6

/* Where the model's pages are in the 36-bit space: borders of leaves, of inner nodes, and the end. */
static const uint64_t places[] = { 0, 512 * 512 - 600, PGNO_END - MODEL_PAGES / 4, UINT64_C(1) << 27 };

static uint64_t pgno_of(unsigned index)
{
	unsigned quarter = MODEL_PAGES / 4;

	return places[index / quarter] + index % quarter;
}

struct fixture {
	struct store *store;
	struct slots slots;
	struct pagemap map[MAPS];
	uint64_t model[MAPS][MODEL_PAGES];
	uint64_t random;
};

static uint64_t next_random(struct fixture *fixture)
{
	fixture->random ^= fixture->random << 13;
	fixture->random ^= fixture->random >> 7;
	fixture->random ^= fixture->random << 17;
	return fixture->random;
}

static int setup(void **state)
{
	struct fixture *fixture = calloc(1, sizeof(*fixture));

	assert_non_null(fixture);
	assert_int_equal(store_open(&fixture->store, "memory:", true, NULL), 0);
	assert_int_equal(slots_init(&fixture->slots, fixture->store), 0);
	for (unsigned i = 0; i < MAPS; i++)
		pagemap_init(&fixture->map[i], &fixture->slots);
	*state = fixture;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *fixture = *state;
	struct store_capacity capacity;

	for (unsigned i = 0; i < MAPS; i++)
		pagemap_clear(&fixture->map[i]);
	slots_flush(&fixture->slots);
	/* Every slot came back: no reference was lost, none was released twice (that would have been an assertion). */
	fixture->store->ops->capacity(fixture->store, &capacity);
	assert_int_equal(capacity.used_pages, 0);
	slots_done(&fixture->slots);
	store_close(fixture->store);
	free(fixture);
	return 0;
}

static void put(struct fixture *fixture, unsigned map, unsigned index)
{
	uint64_t slot;

	assert_int_equal(slots_alloc(&fixture->slots, &slot, 1), 0);
	assert_int_equal(pagemap_set(&fixture->map[map], pgno_of(index), slot), 0);
	fixture->model[map][index] = slot;
}

/* A range that stays in one quarter, so that it is one in both worlds. */
static void random_range(struct fixture *fixture, unsigned quarter, unsigned *index, unsigned *pages)
{
	unsigned size = MODEL_PAGES / 4;

	*index = (unsigned)(next_random(fixture) % size);
	*pages = 1 + (unsigned)(next_random(fixture) % (size - *index));
	if (next_random(fixture) % 2)
		*pages = DP_MIN(*pages, 1 + (unsigned)(next_random(fixture) % 8));
	*index += quarter * size;
}

static void drop(struct fixture *fixture, unsigned map)
{
	unsigned index, pages;

	random_range(fixture, (unsigned)(next_random(fixture) % 4), &index, &pages);
	assert_int_equal(pagemap_drop(&fixture->map[map], pgno_of(index), pages), 0);
	memset(&fixture->model[map][index], 0, pages * sizeof(uint64_t));
}

static void move(struct fixture *fixture, unsigned map)
{
	unsigned from, to, pages, pages_to;
	uint64_t moved[MODEL_PAGES];

	random_range(fixture, (unsigned)(next_random(fixture) % 4), &from, &pages);
	random_range(fixture, (unsigned)(next_random(fixture) % 4), &to, &pages_to);
	pages = DP_MIN(pages, pages_to);
	/* Often aligned alike, so that whole leaves are grafted. */
	if (next_random(fixture) % 2) {
		from = from / (MODEL_PAGES / 4) * (MODEL_PAGES / 4);
		to = to / (MODEL_PAGES / 4) * (MODEL_PAGES / 4);
	}
	assert_int_equal(pagemap_move(&fixture->map[map], pgno_of(from), pgno_of(to), pages), 0);
	memcpy(moved, &fixture->model[map][from], pages * sizeof(uint64_t));
	memset(&fixture->model[map][from], 0, pages * sizeof(uint64_t));
	memcpy(&fixture->model[map][to], moved, pages * sizeof(uint64_t));
}

static void clone(struct fixture *fixture, unsigned map, unsigned from)
{
	if (map == from)
		return;
	pagemap_clear(&fixture->map[map]);
	pagemap_clone(&fixture->map[map], &fixture->map[from]);
	memcpy(fixture->model[map], fixture->model[from], sizeof(fixture->model[map]));
}

static void inherit(struct fixture *fixture, unsigned map, unsigned from)
{
	unsigned index, pages;

	if (map == from)
		return;
	random_range(fixture, (unsigned)(next_random(fixture) % 4), &index, &pages);
	assert_int_equal(pagemap_copy(&fixture->map[map], &fixture->map[from], pgno_of(index), pgno_of(index), pages), 0);
	for (unsigned i = index; i < index + pages; i++)
		if (fixture->model[from][i])
			fixture->model[map][i] = fixture->model[from][i];
}

static void compare(struct fixture *fixture, unsigned map)
{
	uint64_t slots[MODEL_PAGES / 4], pages = 0;

	for (unsigned quarter = 0; quarter < 4; quarter++) {
		unsigned first = quarter * (MODEL_PAGES / 4);

		pagemap_read(&fixture->map[map], pgno_of(first), slots, MODEL_PAGES / 4);
		assert_memory_equal(slots, &fixture->model[map][first], sizeof(slots));
	}
	for (unsigned i = 0; i < MODEL_PAGES; i++)
		pages += fixture->model[map][i] != 0;
	assert_int_equal(pagemap_pages(&fixture->map[map]), pages);
	assert_true(pagemap_consistent(&fixture->map[map]));
}

static void pagemap__random_changes_of_sharing_maps__agree_with_the_model(void **state)
{
	struct fixture *fixture = *state;

	for (uint64_t seed = 1; seed <= 12; seed++) {
		fixture->random = seed * 0x9e3779b97f4a7c15u;
		for (unsigned step = 0; step < 600; step++) {
			unsigned map = (unsigned)(next_random(fixture) % MAPS), from = (unsigned)(next_random(fixture) % MAPS);

			switch (next_random(fixture) % 16) {
			case 0:
				clone(fixture, map, from);
				break;
			case 1:
			case 2:
				drop(fixture, map);
				break;
			case 3:
			case 4:
				move(fixture, map);
				break;
			case 5:
				inherit(fixture, map, from);
				break;
			default:
				for (unsigned i = 0; i < 16; i++)
					put(fixture, map, (unsigned)(next_random(fixture) % MODEL_PAGES));
			}
			if (step % 8 == 0)
				compare(fixture, map);
		}
		for (unsigned map = 0; map < MAPS; map++)
			compare(fixture, map);
	}
}

static void pagemap_clone__of_a_large_map__costs_only_what_changes(void **state)
{
	struct fixture *fixture = *state;

	for (unsigned i = 0; i < MODEL_PAGES; i++)
		put(fixture, 0, i);
	clone(fixture, 1, 0);
	assert_int_equal(pagemap_own_pages(&fixture->map[1]), 0);
	assert_int_equal(pagemap_own_bytes(&fixture->map[1]), 0);
	put(fixture, 1, 7);
	assert_int_equal(pagemap_own_pages(&fixture->map[1]), 1);
	/* A path of four nodes. */
	assert_true(pagemap_own_bytes(&fixture->map[1]) < 5 * 4200);
	assert_int_equal(pagemap_own_pages(&fixture->map[0]), 1);
	compare(fixture, 0);
	compare(fixture, 1);
}

static void pagemap_own_slot__of_a_shared_page__is_none(void **state)
{
	struct fixture *fixture = *state;

	put(fixture, 0, 3);
	assert_int_equal(pagemap_own_slot(&fixture->map[0], pgno_of(3)), fixture->model[0][3]);
	assert_int_equal(pagemap_own_slot(&fixture->map[0], pgno_of(4)), 0);
	clone(fixture, 1, 0);
	assert_int_equal(pagemap_own_slot(&fixture->map[0], pgno_of(3)), 0);
	pagemap_clear(&fixture->map[1]);
	assert_int_equal(pagemap_own_slot(&fixture->map[0], pgno_of(3)), fixture->model[0][3]);
	/* An answer that waits to be sent refers to it too. */
	slots_take(&fixture->slots, fixture->model[0][3]);
	assert_int_equal(pagemap_own_slot(&fixture->map[0], pgno_of(3)), 0);
	slots_release(&fixture->slots, fixture->model[0][3]);
}

static void pagemap_drop__of_everything__leaves_nothing(void **state)
{
	struct fixture *fixture = *state;

	for (unsigned i = 0; i < MODEL_PAGES; i += 3)
		put(fixture, 0, i);
	assert_int_equal(pagemap_drop(&fixture->map[0], 1, PGNO_END - 1), 0);
	assert_int_equal(pagemap_pages(&fixture->map[0]), 1);
	assert_int_equal(pagemap_drop(&fixture->map[0], 0, PGNO_END), 0);
	assert_null(fixture->map[0].root);
	memset(fixture->model[0], 0, sizeof(fixture->model[0]));
}

static void pagemap_move__of_half_the_address_space__keeps_every_page(void **state)
{
	struct fixture *fixture = *state;
	uint64_t half = PGNO_END / 2, slot;

	for (unsigned i = 0; i < MODEL_PAGES / 2; i++)
		put(fixture, 0, i);
	uint64_t pages = pagemap_pages(&fixture->map[0]);

	assert_int_equal(pagemap_move(&fixture->map[0], 0, half, half), 0);
	assert_int_equal(pagemap_pages(&fixture->map[0]), pages);
	pagemap_read(&fixture->map[0], half + pgno_of(5), &slot, 1);
	assert_int_equal(slot, fixture->model[0][5]);
	assert_int_equal(pagemap_move(&fixture->map[0], half, 1, half - 1), 0);
	pagemap_read(&fixture->map[0], 1 + pgno_of(5), &slot, 1);
	assert_int_equal(slot, fixture->model[0][5]);
	assert_true(pagemap_consistent(&fixture->map[0]));
	assert_int_equal(pagemap_pages(&fixture->map[0]), pages);
}

static void pagemap_move__of_whole_inner_nodes_by_one_leaf__lands_each_page_right(void **state)
{
	struct fixture *fixture = *state;
	const uint64_t inner = 512 * 512, pgnos[] = { 0, 513, inner - 1, inner, inner + 5, 2 * inner - 1 };
	uint64_t slot[ARRAY_LENGTH(pgnos)], found;

	for (unsigned i = 0; i < ARRAY_LENGTH(pgnos); i++) {
		assert_int_equal(slots_alloc(&fixture->slots, &slot[i], 1), 0);
		assert_int_equal(pagemap_set(&fixture->map[0], pgnos[i], slot[i]), 0);
	}
	assert_int_equal(pagemap_move(&fixture->map[0], 0, 512, 2 * inner), 0);
	for (unsigned i = 0; i < ARRAY_LENGTH(pgnos); i++) {
		pagemap_read(&fixture->map[0], pgnos[i] + 512, &found, 1);
		assert_int_equal(found, slot[i]);
	}
	assert_int_equal(pagemap_pages(&fixture->map[0]), ARRAY_LENGTH(pgnos));
	assert_true(pagemap_consistent(&fixture->map[0]));
}

/* Runs that begin and end within leaves and reach over a border of inner nodes, beside pages that are there. */
static void pagemap_fill__over_borders__is_as_setting_each_page(void **state)
{
	struct fixture *fixture = *state;
	const uint64_t start = 512 * 512 - 600, pages = 1500;
	uint64_t slots[1502], found[1500];

	assert_int_equal(slots_alloc(&fixture->slots, slots, 1502), 0);
	for (unsigned i = 1; i < 1502; i++)
		assert_int_equal(slots[i], slots[0] + i);
	assert_int_equal(pagemap_set(&fixture->map[0], start - 1, slots[1500]), 0);
	assert_int_equal(pagemap_set(&fixture->map[0], start + pages, slots[1501]), 0);
	assert_int_equal(pagemap_fill(&fixture->map[0], start, slots[0], pages), 0);
	assert_int_equal(pagemap_pages(&fixture->map[0]), 1502);
	assert_true(pagemap_consistent(&fixture->map[0]));
	pagemap_read(&fixture->map[0], start, found, pages);
	for (unsigned i = 0; i < pages; i++)
		assert_int_equal(found[i], slots[i]);
	assert_int_equal(pagemap_own_slot(&fixture->map[0], start - 1), slots[1500]);
	assert_int_equal(pagemap_drop(&fixture->map[0], start - 1, pages + 2), 0);
	assert_int_equal(pagemap_pages(&fixture->map[0]), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(pagemap__random_changes_of_sharing_maps__agree_with_the_model, setup, teardown),
		cmocka_unit_test_setup_teardown(pagemap_clone__of_a_large_map__costs_only_what_changes, setup, teardown),
		cmocka_unit_test_setup_teardown(pagemap_own_slot__of_a_shared_page__is_none, setup, teardown),
		cmocka_unit_test_setup_teardown(pagemap_drop__of_everything__leaves_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(pagemap_fill__over_borders__is_as_setting_each_page, setup, teardown),
		cmocka_unit_test_setup_teardown(pagemap_move__of_whole_inner_nodes_by_one_leaf__lands_each_page_right, setup,
						teardown),
		cmocka_unit_test_setup_teardown(pagemap_move__of_half_the_address_space__keeps_every_page, setup, teardown),
	};

	return cmocka_run_group_tests_name("pagemap", tests, NULL, NULL);
}
