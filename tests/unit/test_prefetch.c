/* Prefetch policies: what each finds, what it leaves alone, and that no history makes any of them say something impossible. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "prefetch/order.h"
#include "prefetch/prefetch.h"

/* A memory of PAGES pages from BASE on, all remote at first; every page that is touched or fetched ahead stays, so that each
 * touch of a page that is not there is a fault. */
#define PAGES (1u << 18)
#define BASE 0x7f0000000ull

struct memory {
	struct prefetcher prefetcher;
	uint8_t local[PAGES];   /* 1: touched; 2: fetched ahead */
	uint64_t touches, faults, ahead, ahead_used;
};

static struct memory *memory_new(enum prefetch_policy policy)
{
	struct memory *memory = calloc(1, sizeof(*memory));
	assert_non_null(memory);
	prefetch_init(&memory->prefetcher, policy);
	return memory;
}

static bool is_remote(const struct memory *memory, uint64_t pgno)
{
	return pgno >= BASE && pgno < BASE + PAGES && !memory->local[pgno - BASE];
}

static void fetch_run(struct memory *memory, const struct prefetch_advice *advice, const struct prefetch_run *run)
{
	uint64_t trigger = UINT64_MAX;
	uint32_t asked = 0;
	for (uint32_t i = 0; i < run->pages; i++) {
		uint64_t pgno = run->pgno + (uint64_t)(run->stride * i);
		if (!is_remote(memory, pgno))
			continue;
		if (run->trigger && trigger == UINT64_MAX) {
			trigger = pgno;
			continue;
		}
		memory->local[pgno - BASE] = 2;
		asked++;
	}
	memory->ahead += asked;
	prefetch_asked(&memory->prefetcher, advice, run, &(struct prefetch_asked){ asked, trigger, UINT64_MAX });
}

static void touch(struct memory *memory, uint64_t page)
{
	struct prefetch_advice advice;
	memory->touches++;
	memory->ahead_used += memory->local[page] == 2;
	if (memory->local[page]) {
		memory->local[page] = 1;
		return;
	}
	memory->faults++;
	memory->local[page] = 1;
	prefetch_fault(&memory->prefetcher, BASE, BASE + page, &advice);
	for (uint32_t i = 0; i < advice.runs; i++)
		fetch_run(memory, &advice, &advice.run[i]);
}

static double coverage(const struct memory *memory)
{
	return 1.0 - (double)memory->faults / (double)memory->touches;
}

static const enum prefetch_policy seekers[] = { PREFETCH_STRIDE, PREFETCH_TREND, PREFETCH_ADAPTIVE };

static void sequential__long_run__nearly_no_faults(void **state)
{
	(void)state;
	static const enum prefetch_policy policies[] = { PREFETCH_SEQUENTIAL, PREFETCH_STRIDE, PREFETCH_TREND,
							 PREFETCH_ADAPTIVE };
	for (size_t i = 0; i < ARRAY_LENGTH(policies); i++) {
		struct memory *memory = memory_new(policies[i]);
		for (uint64_t page = 0; page < 20000; page++)
			touch(memory, page);
		assert_true(coverage(memory) >= 0.985);
		assert_true(memory->ahead <= 20000 + 2 * PREFETCH_WIDE_WINDOW_PAGES);
		free(memory);
	}
}

static void stride__any_distance_and_direction__nearly_no_faults(void **state)
{
	(void)state;
	static const int strides[] = { 7, -1, -7, 2, 40, -64, 13 };
	for (size_t i = 0; i < ARRAY_LENGTH(seekers); i++)
		for (size_t s = 0; s < ARRAY_LENGTH(strides); s++) {
			struct memory *memory = memory_new(seekers[i]);
			int64_t page = strides[s] > 0 ? 3 : PAGES - 3;
			for (; page >= 0 && page < PAGES && memory->touches < 4000; page += strides[s])
				touch(memory, (uint64_t)page);
			assert_true(coverage(memory) >= 0.96);
			free(memory);
		}
}

static void stride__interleaved_with_others_and_noise__is_followed(void **state)
{
	(void)state;
	static const enum prefetch_policy policies[] = { PREFETCH_STRIDE, PREFETCH_ADAPTIVE };
	for (size_t i = 0; i < ARRAY_LENGTH(policies); i++) {
		struct memory *memory = memory_new(policies[i]);
		srand(7);
		for (uint64_t step = 0; step < 8000; step++) {
			touch(memory, step);
			touch(memory, PAGES - 1 - step * 3);
			if (step % 8 == 0)
				touch(memory, PAGES / 4 + (uint64_t)rand() % (PAGES / 16));
		}
		assert_true(memory->faults < 1000 + 600);
		free(memory);
	}
}

static void stride__pages_that_are_there_already__are_stepped_over(void **state)
{
	(void)state;
	struct memory *memory = memory_new(PREFETCH_ADAPTIVE);
	srand(3);
	for (uint64_t page = 0; page < 40000; page++)
		memory->local[page] = rand() % 3 == 0; /* as after a round in which some pages were kept */
	for (uint64_t page = 0; page < 40000; page++)
		touch(memory, page);
	assert_true(coverage(memory) >= 0.98);
	free(memory);
}

/* Memory is short: of each run a part is asked for. The stream goes on at the cut. */
static void stream__runs_are_cut__leaves_no_hole(void **state)
{
	(void)state;
	struct prefetcher prefetcher;
	struct prefetch_advice advice;
	uint8_t *local = calloc(PAGES, 1);
	uint64_t faults = 0;
	prefetch_init(&prefetcher, PREFETCH_ADAPTIVE);
	for (uint64_t page = 0; page < 30000; page++) {
		if (local[page])
			continue;
		uint32_t left = (uint32_t)(faults++ * 7 % 60);
		prefetch_fault(&prefetcher, BASE, BASE + page, &advice);
		bool cut = false;
		for (uint32_t r = 0; r < advice.runs && !cut; r++) {
			const struct prefetch_run *run = &advice.run[r];
			struct prefetch_asked asked = { 0, run->trigger ? run->pgno : UINT64_MAX, UINT64_MAX };
			for (uint32_t i = run->trigger; i < run->pages && !cut; i++) {
				uint64_t at = run->pgno + (uint64_t)(run->stride * i);
				cut = !left;
				if (cut)
					asked.cut = at;
				else
					asked.pages++, left--, local[at - BASE] = 1;
			}
			prefetch_asked(&prefetcher, &advice, run, &asked);
		}
	}
	assert_true(faults < 30000 / 20); /* about 30 pages for each fault are allowed */
	free(local);
}

static void random__uniform__is_left_alone(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(seekers); i++) {
		struct memory *memory = memory_new(seekers[i]);
		srand(11);
		for (int n = 0; n < 60000; n++)
			touch(memory, (uint64_t)rand() % PAGES);
		assert_true(memory->ahead * 100 < memory->faults * 2);
		free(memory);
	}
}

/* Objects of two pages: each looks like the beginning of a run, and never is one. */
static void random__pairs__adaptive_grows_patient(void **state)
{
	(void)state;
	struct memory *adaptive = memory_new(PREFETCH_ADAPTIVE), *plain = memory_new(PREFETCH_SEQUENTIAL);
	srand(13);
	for (int n = 0; n < 30000; n++) {
		uint64_t page = (uint64_t)rand() % (PAGES / 8) * 8;
		touch(adaptive, page);
		touch(adaptive, page + 1);
		touch(plain, page);
		touch(plain, page + 1);
	}
	assert_true(plain->ahead > plain->faults / 2);
	assert_true(adaptive->ahead * 20 < adaptive->faults);
	/* And it has not given up on real runs. */
	uint64_t faults = adaptive->faults;
	memset(adaptive->local, 0, sizeof(adaptive->local));
	for (uint64_t page = 0; page < 10000; page++)
		touch(adaptive, page);
	assert_true(adaptive->faults - faults < 400);
	free(adaptive);
	free(plain);
}

/* Records of five pages of which the first, second and fourth are touched: no single stride. */
static void learned__records__are_foretold(void **state)
{
	(void)state;
	struct memory *memory = memory_new(PREFETCH_LEARNED);
	for (uint64_t record = 0; record < 4000; record++) {
		touch(memory, record * 5);
		touch(memory, record * 5 + 1);
		touch(memory, record * 5 + 3);
	}
	assert_true(coverage(memory) >= 0.8);
	assert_true(memory->ahead <= memory->ahead_used + 2 * PREFETCH_CHAIN_PAGES);
	free(memory);
}

static void outcome__wasted__windows_shrink(void **state)
{
	(void)state;
	struct memory *memory = memory_new(PREFETCH_ADAPTIVE);
	prefetch_outcome(&memory->prefetcher, 0, 100);
	for (uint64_t page = 0; page < 3000; page++)
		touch(memory, page);
	assert_true(memory->faults > 300);
	prefetch_outcome(&memory->prefetcher, 1000, 0);
	uint64_t faults = memory->faults;
	for (uint64_t page = 3000; page < 10000; page++)
		touch(memory, page);
	assert_true(memory->faults - faults < 120);
	free(memory);
}

static void late__pages_on_their_way__window_stays_one_chunk(void **state)
{
	(void)state;
	struct prefetcher prefetcher;
	struct prefetch_advice advice;
	uint32_t widest = 0;
	prefetch_init(&prefetcher, PREFETCH_ADAPTIVE);
	for (uint64_t pgno = 1000, next; pgno < 100000; pgno = next) {
		prefetch_fault(&prefetcher, 0, pgno, &advice);
		next = pgno + 1;
		for (uint32_t i = 0; i < advice.runs; i++) {
			widest = DP_MAX(widest, advice.run[i].pages);
			const struct prefetch_asked asked = { advice.run[i].pages - advice.run[i].trigger,
							      advice.run[i].trigger ? advice.run[i].pgno : UINT64_MAX,
							      UINT64_MAX };
			prefetch_asked(&prefetcher, &advice, &advice.run[i], &asked);
			next = advice.run[i].trigger ? advice.run[i].pgno : advice.run[i].pgno + advice.run[i].pages;
		}
		prefetch_late(&prefetcher, pgno + 1);
	}
	assert_int_equal(widest, PREFETCH_WINDOW_PAGES);
}

static void check_advice(const struct prefetch_advice *advice, uint64_t pgno)
{
	uint64_t pages = 0;
	assert_true(advice->runs <= PREFETCH_RUNS);
	for (uint32_t i = 0; i < advice->runs; i++) {
		const struct prefetch_run *run = &advice->run[i];
		assert_true(run->stride != 0 && run->pages > 0);
		pages += run->pages;
		for (uint32_t n = 0; n < run->pages; n++) {
			uint64_t page = run->pgno + (uint64_t)(run->stride * n);
			assert_true(page < PREFETCH_PGNO_END);
			assert_true(page != pgno);
		}
	}
	assert_true(pages <= PREFETCH_ADVICE_PAGES);
	for (uint32_t n = 0; n < advice->proven.pages; n++)
		assert_true(advice->proven.pgno + (uint64_t)(advice->proven.stride * n) < PREFETCH_PGNO_END);
	assert_true(advice->proven.pages <= 3 * PREFETCH_WIDE_WINDOW_PAGES);
}

static uint64_t random_number(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* Runs, strides at both ends of what is possible, jumps, the same page again. */
static uint64_t next_fault(uint64_t *seed, uint64_t pgno)
{
	static const int64_t strides[] = { 1, -1, 7, -7, 1 << 20, -(1 << 20), 1ll << 44, -(1ll << 44), 1ll << 51 };
	static const uint64_t ends[] = {
		0, 1, 5, PREFETCH_PGNO_END - 1, PREFETCH_PGNO_END - 6, PREFETCH_PGNO_END, UINT64_MAX, 1ull << 63
	};
	uint64_t choice = random_number(seed) % 64;
	if (choice < 58)
		return pgno + (uint64_t)strides[*seed >> 32 & 1 ? 0 : (*seed >> 40) % ARRAY_LENGTH(strides)];
	if (choice < 60)
		return ends[(*seed >> 20) % ARRAY_LENGTH(ends)];
	return choice < 63 ? random_number(seed) % PREFETCH_PGNO_END : pgno;
}

static void every_policy__any_history__bounded_and_repeatable(void **state)
{
	(void)state;
	struct prefetcher *first = malloc(sizeof(*first)), *second = malloc(sizeof(*second));
	for (int policy = 0; policy < PREFETCH_POLICIES; policy++) {
		uint64_t seed = 0x1234567 + (uint64_t)policy, pgno = 100;
		prefetch_init(first, (enum prefetch_policy)policy);
		prefetch_init(second, (enum prefetch_policy)policy);
		for (int n = 0; n < 60000; n++) {
			struct prefetch_advice one, two;
			uint32_t repeats = n % 7 ? 1 : (uint32_t)(random_number(&seed) % 20);
			int64_t stride = (int64_t)(random_number(&seed) % 9) - 4;
			pgno = next_fault(&seed, pgno);
			for (uint32_t i = 0; i < repeats; i++, pgno += (uint64_t)stride) {
				prefetch_fault(first, pgno >> 18, pgno, &one);
				prefetch_fault(second, pgno >> 18, pgno, &two);
				check_advice(&one, pgno);
				assert_int_equal(one.runs, two.runs);
				assert_memory_equal(one.run, two.run, 0);
				for (uint32_t r = 0; r < one.runs; r++) {
					assert_int_equal(one.run[r].pgno, two.run[r].pgno);
					assert_int_equal(one.run[r].pages, two.run[r].pages);
					const struct prefetch_asked asked = { one.run[r].pages, UINT64_MAX,
									      n % 3 ? UINT64_MAX : one.run[r].pgno };
					prefetch_asked(first, &one, &one.run[r], &asked);
					prefetch_asked(second, &two, &two.run[r], &asked);
				}
			}
			if (n % 5 == 0) {
				prefetch_late(first, pgno);
				prefetch_late(second, pgno);
			}
		}
	}
	free(first);
	free(second);
}

static void names__each__is_found(void **state)
{
	(void)state;
	for (int policy = 0; policy < PREFETCH_POLICIES; policy++)
		assert_int_equal(prefetch_policy_find(prefetch_policy_name((enum prefetch_policy)policy)), policy);
	assert_int_equal(prefetch_policy_find("eager"), -1);
	assert_true(prefetch_policy_replays(PREFETCH_RECORDED) && !prefetch_policy_replays(PREFETCH_NONE));
}

/* Nothing is lost or made up; neighbours are joined; the first pages stay first. */
static void order__arranged__same_pages_in_fewer_runs(void **state)
{
	(void)state;
	enum { RUNS = 5000 };
	struct order_run *runs = calloc(RUNS, sizeof(*runs));
	uint8_t *seen = calloc(RUNS, 1);
	for (uint32_t i = 0; i < RUNS; i++) /* all pages of two spaces, in a jumbled order */
		runs[i] = (struct order_run){ 1 + i % 2, 7919ull * (i / 2) % (RUNS / 2), 1 };
	uint64_t first = runs[0].pgno;
	size_t kept = order_arrange(runs, RUNS), pages = 0;
	bool early = false;
	assert_true(kept < RUNS / 2);
	for (size_t i = 0; i < kept; i++)
		for (uint64_t n = 0; n < runs[i].pages; n++) {
			uint64_t place = (runs[i].pgno + n) * 2 + runs[i].label - 1;
			assert_true(place < RUNS && !seen[place]);
			seen[place] = 1;
			early |= pages++ < 64 && runs[i].label == 1 && runs[i].pgno + n == first;
		}
	assert_int_equal(pages, RUNS);
	assert_true(early);
	assert_int_equal(order_arrange(runs, 0), 0);
	assert_int_equal(order_arrange(NULL, 0), 0);
	free(runs);
	free(seen);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sequential__long_run__nearly_no_faults),
		cmocka_unit_test(stride__any_distance_and_direction__nearly_no_faults),
		cmocka_unit_test(stride__interleaved_with_others_and_noise__is_followed),
		cmocka_unit_test(stride__pages_that_are_there_already__are_stepped_over),
		cmocka_unit_test(stream__runs_are_cut__leaves_no_hole),
		cmocka_unit_test(random__uniform__is_left_alone),
		cmocka_unit_test(random__pairs__adaptive_grows_patient),
		cmocka_unit_test(learned__records__are_foretold),
		cmocka_unit_test(outcome__wasted__windows_shrink),
		cmocka_unit_test(late__pages_on_their_way__window_stays_one_chunk),
		cmocka_unit_test(every_policy__any_history__bounded_and_repeatable),
		cmocka_unit_test(names__each__is_found),
		cmocka_unit_test(order__arranged__same_pages_in_fewer_runs),
	};
	return cmocka_run_group_tests_name("prefetch", tests, NULL, NULL);
}
