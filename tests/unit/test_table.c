/* Page table, range set and residency: small cases by hand, the table and the set also against simple models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "base/rangeset.h"
#include "pager/table.h"
#include "residency/residency.h"

#define MODEL 4096

static uint64_t seed_state;
static uint32_t next_random(uint32_t limit)
{
	seed_state = seed_state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((seed_state >> 33) % limit);
}

static void rangeset__random_changes__agrees_with_bitmap(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 40; seed++) {
		seed_state = seed;
		struct rangeset set = { 0 };
		bool model[MODEL] = { false };
		for (int step = 0; step < 400; step++) {
			uint32_t start = next_random(MODEL), end = start + next_random(1 + next_random(200));
			end = DP_MIN(end, MODEL);
			bool add = next_random(2);
			assert_int_equal(add ? rangeset_add(&set, start, end) : rangeset_remove(&set, start, end), 0);
			for (uint32_t i = start; i < end; i++)
				model[i] = add;
			uint64_t total = 0;
			for (uint32_t i = 0; i < MODEL; i++) {
				total += model[i];
				assert_int_equal(rangeset_contains(&set, i), model[i]);
			}
			assert_int_equal(set.total, total);
			for (size_t i = 0; i + 1 < set.count; i++)
				assert_true(set.ranges[i].end < set.ranges[i + 1].start);
		}
		rangeset_done(&set);
	}
}

struct model {
	uint8_t state[MODEL];
	bool copy[MODEL];
	bool queued[MODEL]; /* has an entry, perhaps stale */
};

static void check(struct table *table, const struct model *model)
{
	uint64_t counts[PAGE_STATES] = { 0 }, dirty = 0;
	for (uint32_t i = 0; i < MODEL; i++) {
		assert_int_equal(table_state(table, i), model->state[i]);
		counts[model->state[i]]++;
		dirty += model->state[i] == PAGE_LOCAL && !model->copy[i];
	}
	for (int state = PAGE_REMOTE; state < PAGE_STATES; state++)
		assert_int_equal(table->counts[state], counts[state]);
	assert_int_equal(table->dirty, dirty);
}

/* Random life of pages: fetched, evicted, given up, unmapped, moved, in a table that began with a page map. */
static void table__random_life__agrees_with_model(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 60; seed++) {
		seed_state = seed;
		struct table table;
		struct model model;
		memset(&model, 0, sizeof(model));
		assert_int_equal(table_init(&table), 0);
		for (int i = 0; i < 20; i++) {
			uint32_t start = next_random(MODEL), pages = next_random(300);
			pages = DP_MIN(pages, MODEL - start);
			rangeset_add(&table.initial, start, start + pages);
			memset(model.state + start, PAGE_REMOTE, pages);
		}
		table.counts[PAGE_REMOTE] = table.initial.total;
		for (int step = 0; step < 600; step++) {
			uint32_t start = next_random(MODEL), pages = 1 + next_random(200);
			pages = DP_MIN(pages, MODEL - start);
			switch (next_random(5)) {
			case 0: /* fetched */
				for (uint32_t i = start; i < start + pages; i++) {
					uint32_t page = table_make(&table, i);
					bool copy = next_random(2);
					table_change(&table, page, PAGE_LOCAL, copy ? PAGE_HAS_COPY : 0, PAGE_HAS_COPY);
					table_enqueue(&table, page, next_random(2));
					model.state[i] = PAGE_LOCAL;
					model.copy[i] = copy;
				}
				break;
			case 1: /* evicted */
				for (uint32_t i = 0; i < pages; i++) {
					uint32_t page = table_dequeue(&table, next_random(2));
					if (page == NO_PAGE || (*table_page(&table, page) & PAGE_STATE_MASK) != PAGE_LOCAL)
						continue;
					table_change(&table, page, PAGE_REMOTE, 0, PAGE_HAS_COPY);
					model.state[table_pgno(&table, page)] = PAGE_REMOTE;
				}
				break;
			case 2: /* unmapped */
				assert_int_equal(table_clear(&table, start, pages, false), 0);
				memset(model.state + start, PAGE_ZERO, pages);
				break;
			case 3: /* given up */
				assert_int_equal(table_clear(&table, start, pages, true), 0);
				for (uint32_t i = start; i < start + pages; i++) {
					if (model.state[i] == PAGE_LOCAL)
						model.copy[i] = false;
					else
						model.state[i] = PAGE_ZERO;
				}
				break;
			case 4: { /* moved, to where it does not overlap */
				uint32_t to = next_random(MODEL - pages + 1);
				if (to < start + pages && start < to + pages)
					break;
				assert_int_equal(table_relocate_copy(&table, start, to, pages), 0);
				assert_int_equal(table_clear(&table, start, pages, false), 0);
				memcpy(model.state + to, model.state + start, pages);
				memcpy(model.copy + to, model.copy + start, pages * sizeof(bool));
				memset(model.state + start, PAGE_ZERO, pages);
				break;
			}
			}
			if (step % 20 == 0)
				check(&table, &model);
		}
		check(&table, &model);
		struct table child;
		assert_int_equal(table_init(&child), 0);
		assert_int_equal(table_fork(&child, &table), 0);
		check(&child, &model);
		/* Every local page comes off the queues exactly once. */
		uint64_t local = 0;
		for (uint32_t page; (page = table_dequeue(&child, QUEUE_SMALL)) != NO_PAGE ||
				    (page = table_dequeue(&child, QUEUE_MAIN)) != NO_PAGE;)
			local += (*table_page(&child, page) & PAGE_STATE_MASK) == PAGE_LOCAL;
		assert_int_equal(local, table.counts[PAGE_LOCAL]);
		table_done(&child);
		table_done(&table);
	}
}

static void table__next_run__finds_every_run(void **state)
{
	(void)state;
	struct table table;
	assert_int_equal(table_init(&table), 0);
	rangeset_add(&table.initial, 100, 300);
	rangeset_add(&table.initial, 1ull << 30, (1ull << 30) + 7);
	table.counts[PAGE_REMOTE] = table.initial.total;
	table_change(&table, table_make(&table, 150), PAGE_LOCAL, 0, 0);
	uint64_t at = 0;
	assert_int_equal(table_next_run(&table, PAGE_REMOTE, &at, UINT64_MAX, 1000), 50);
	assert_int_equal(at, 100);
	at += 50;
	assert_int_equal(table_next_run(&table, PAGE_REMOTE, &at, UINT64_MAX, 1000), 149);
	assert_int_equal(at, 151);
	at += 149;
	assert_int_equal(table_next_run(&table, PAGE_REMOTE, &at, UINT64_MAX, 1000), 7);
	assert_int_equal(at, 1ull << 30);
	at += 7;
	assert_int_equal(table_next_run(&table, PAGE_REMOTE, &at, UINT64_MAX, 1000), 0);
	table_done(&table);
}

static void table__metadata__at_most_16_bytes_a_page(void **state)
{
	(void)state;
	struct table table;
	assert_int_equal(table_init(&table), 0);
	for (uint64_t i = 0; i < 100000; i++)
		table_change(&table, table_make(&table, 12345 + i), PAGE_LOCAL, 0, 0);
	assert_true(table_bytes(&table) <= 16 * 100000);
	table_done(&table);
}

static void residency__within_budget__nothing_leaves(void **state)
{
	(void)state;
	struct residency_budget plan;
	residency_plan(&plan, 256u << 20);
	assert_int_equal(residency_excess(&plan, plan.budget_pages / 2), 0);
	assert_true(residency_excess(&plan, plan.budget_pages) > 0);
	assert_true(residency_has_room(&plan, plan.budget_pages - 1, 1));
	assert_false(residency_has_room(&plan, plan.budget_pages, 1));
	residency_plan(&plan, 0);
	assert_int_equal(residency_excess(&plan, 1u << 30), 0);
	assert_true(residency_has_room(&plan, 1u << 30, 1));
}

static void residency__pages_come_back__fewer_are_staged(void **state)
{
	(void)state;
	struct residency_budget plan;
	struct residency_ahead ahead;
	residency_plan(&plan, 256u << 20);
	residency_ahead_init(&ahead, &plan);
	assert_int_equal(ahead.pages, plan.ahead_pages);
	for (int i = 0; i < 10000; i++)
		residency_ahead_note(&ahead, &plan, 1, 0);
	assert_true(ahead.pages > 0 && ahead.pages <= plan.ahead_pages / 16);
	for (int i = 0; i < 10000; i++)
		residency_ahead_note(&ahead, &plan, i % 2, (i + 1) % 2); /* as many stay: no reason to change */
	assert_true(ahead.pages <= plan.ahead_pages / 16);
	for (int i = 0; i < 10000; i++)
		residency_ahead_note(&ahead, &plan, 0, 1);
	assert_int_equal(ahead.pages, plan.ahead_pages);
}

/* One takeover after the other. */
static void table__hash_doubted_again_and_again__stays_doubted(void **state)
{
	(void)state;
	struct table table;
	assert_int_equal(table_init(&table), 0);
	uint32_t page = table_make(&table, 4711);
	const uint64_t hashes[] = { 0, 1, UINT64_MAX, 0x8000000000000000ull, 77 };
	for (size_t i = 0; i < ARRAY_LENGTH(hashes); i++) {
		*table_hash(&table, page) = hashes[i];
		for (unsigned doubts = 0; doubts < 1000; doubts++) {
			table_doubt_hash(&table, page);
			assert_true(*table_hash(&table, page) != hashes[i]);
		}
	}
	table_done(&table);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rangeset__random_changes__agrees_with_bitmap),
		cmocka_unit_test(table__random_life__agrees_with_model),
		cmocka_unit_test(table__next_run__finds_every_run),
		cmocka_unit_test(table__hash_doubted_again_and_again__stays_doubted),
		cmocka_unit_test(table__metadata__at_most_16_bytes_a_page),
		cmocka_unit_test(residency__within_budget__nothing_leaves),
		cmocka_unit_test(residency__pages_come_back__fewer_are_staged),
	};
	return cmocka_run_group_tests_name("table", tests, NULL, NULL);
}
