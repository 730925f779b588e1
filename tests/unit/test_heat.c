/* Heat of pages: decay, classes, the export of a tree in pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "pager/heat.h"
#include "pager/tree.h"

#define EVICTIONS_OWN 0x03u /* the bits that are not ours */

static const struct heat_rule rule = { .hot_uses = 2, .cold_age = 6 };

static void decay__a_page_that_is_never_used_again__is_as_old_as_its_age_says(void **state)
{
	(void)state;
	for (uint64_t used_at = 0; used_at < 64; used_at++) { /* sweeps come every two seconds */
		uint8_t heat = HEAT_YOUTH | 7 * HEAT_USE | EVICTIONS_OWN;
		for (uint64_t sweep = used_at + 1; sweep <= used_at + 200; sweep++) {
			unsigned before = heat_age(heat);
			heat = heat_decay(heat, sweep);
			unsigned age = heat_age(heat);
			uint64_t since = 2 * (sweep - used_at);
			assert_true(age == before || age == before + 1);
			if (age != before) { /* age k is reached within twice of 2^k seconds, and not at once */
				assert_true(since <= 2ull << age);
				assert_true(age < 3 || since >= (1ull << age) / 4);
			}
			assert_int_equal(heat & EVICTIONS_OWN, EVICTIONS_OWN); /* eviction's own */
		}
		assert_int_equal(heat_age(heat), HEAT_AGES);
		assert_int_equal(heat_uses(heat), 4); /* each of the last three steps cost one */
	}
	assert_int_equal(heat_decay(0, 64), 0);
}

static void classes__by_uses_and_age__as_the_rule_says(void **state)
{
	(void)state;
	assert_int_equal(heat_classify(HEAT_YOUTH | 2 * HEAT_USE, true, &rule), HEAT_HOT);
	assert_int_equal(heat_classify(HEAT_YOUTH | 2 * HEAT_USE, false, &rule), HEAT_HOT);
	assert_int_equal(heat_classify(HEAT_YOUTH | HEAT_USE, true, &rule), HEAT_WARM);
	assert_int_equal(heat_classify(HEAT_YOUTH, false, &rule), HEAT_COLD); /* it left untouched */
	assert_int_equal(heat_classify(7 * HEAT_USE, true, &rule), HEAT_COLD); /* long ago */
	assert_int_equal(heat_classify(HEAT_YEAR * 1 | 7 * HEAT_USE, true, &rule), HEAT_COLD);
	assert_int_equal(heat_classify(HEAT_YEAR * 2 | 7 * HEAT_USE, true, &rule), HEAT_HOT);
	assert_int_equal(heat_age_of_ns(1000000000u), 1);
	assert_int_equal(heat_age_of_ns(2000000000u), 1);
	assert_int_equal(heat_age_of_ns(60000000000u), 6);
	assert_int_equal(heat_age_of_ns(UINT64_MAX), HEAT_AGES);
}

static void area__speaks_only_for_pages_that_nobody_asked(void **state)
{
	(void)state;
	assert_true(heat_area_speaks(100, 0, 100));
	assert_true(heat_area_speaks(60, 5, 95));
	assert_false(heat_area_speaks(40, 0, 100));
	assert_false(heat_area_speaks(100, 30, 70)); /* staging has asked many */
	assert_false(heat_area_speaks(0, 0, 0));
	assert_false(heat_area_speaks(5, 10, 100));
}

static void evidence__touched_in_staging_and_left__counts_and_forgets(void **state)
{
	struct table table;
	(void)state;
	assert_int_equal(table_init(&table), 0);
	uint32_t page = table_make(&table, 1000);
	assert_int_equal(heat_age(*table_heat(&table, page)), HEAT_AGES);
	heat_used(&table, page);
	assert_int_equal(heat_age(*table_heat(&table, page)), 0);
	for (int i = 1; i < 10; i++) {
		heat_touched(&table, page);
		assert_int_equal(heat_uses(*table_heat(&table, page)), DP_MIN(i, 7));
	}
	heat_left(&table, page);
	assert_int_equal(heat_uses(*table_heat(&table, page)), 0);
	assert_int_equal(heat_age(*table_heat(&table, page)), 0);
	table_done(&table);
}

/* ---- a tree of two spaces; the newer is listed first ---- */

#define PAGES 40000u

static struct tree *make_tree(void)
{
	struct tree *tree = calloc(1, sizeof(*tree));
	for (uint32_t number = 1; number <= 2; number++) {
		struct space *space = calloc(1, sizeof(*space));
		assert_int_equal(table_init(&space->table), 0);
		assert_int_equal(rangeset_add(&space->table.initial, 1 << 20, (1 << 20) + PAGES), 0);
		space->table.counts[PAGE_REMOTE] = PAGES;
		space->number = number;
		space->pid = 100 + (pid_t)number;
		space->next = tree->spaces;
		tree->spaces = space;
		for (uint64_t i = 0; i < PAGES / 2; i++) {
			uint32_t page = table_make(&space->table, (1 << 20) + i);
			table_change(&space->table, page, PAGE_LOCAL, 0, 0);
			heat_used(&space->table, page);
		}
	}
	return tree;
}

static void free_tree(struct tree *tree)
{
	while (tree->spaces) {
		struct space *space = tree->spaces;
		tree->spaces = space->next;
		table_done(&space->table);
		free(space);
	}
	free(tree);
}

static void export__two_spaces_in_pieces__every_page_once(void **state)
{
	(void)state;
	struct tree *tree = make_tree();
	struct heat_piece *piece = malloc(sizeof(*piece));
	uint64_t space = UINT64_MAX, at = 0, local[3] = { 0 }, ranges[3] = { 0 }, pieces = 0;
	do {
		heat_export(tree, space, at, piece);
		assert_true(piece->count <= HEAT_PIECE_LEAVES);
		assert_true(piece->space <= 2);
		assert_true(!piece->space || piece->pid == 100 + (int64_t)piece->space);
		for (uint64_t i = 0; i < piece->count; i++) {
			local[piece->space] += (uint64_t)__builtin_popcountll(piece->leaf[i].local);
			ranges[piece->space] += piece->leaf[i].range ? piece->leaf[i].pages : 0;
		}
		space = piece->next_space;
		at = piece->next_at;
		assert_true(++pieces < 100);
	} while (space);
	for (int number = 1; number <= 2; number++) {
		assert_int_equal(local[number], PAGES / 2);
		assert_int_equal(ranges[number], PAGES);
	}
	/* A caller may ask for anything. */
	heat_export(tree, 1, UINT64_MAX, piece);
	assert_int_equal(piece->count, 0);
	heat_export(tree, 0, 5, piece);
	assert_int_equal(piece->next_space, 0);
	free(piece);
	free_tree(tree);
}

static void sweep__in_pieces__makes_every_page_older_once(void **state)
{
	(void)state;
	struct tree *tree = make_tree();
	uint64_t now = 1000, wait = heat_work(tree, now), turns = 0;
	assert_int_equal(wait, 2000000000u);
	now += wait;
	while (!heat_work(tree, now))
		turns++;
	assert_true(turns >= 2 * PAGES / 2 / LEAF_PAGES / 512);
	for (struct space *space = tree->spaces; space; space = space->next)
		for (uint64_t i = 0; i < PAGES / 2; i++)
			assert_int_equal(heat_age(*table_heat(&space->table, table_find(&space->table, (1 << 20) + i))), 1);
	assert_true(heat_work(tree, now) > 0);
	free_tree(tree);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(decay__a_page_that_is_never_used_again__is_as_old_as_its_age_says),
		cmocka_unit_test(classes__by_uses_and_age__as_the_rule_says),
		cmocka_unit_test(area__speaks_only_for_pages_that_nobody_asked),
		cmocka_unit_test(evidence__touched_in_staging_and_left__counts_and_forgets),
		cmocka_unit_test(export__two_spaces_in_pieces__every_page_once),
		cmocka_unit_test(sweep__in_pieces__makes_every_page_older_once),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
