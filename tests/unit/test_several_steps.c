/* A pager dies and another goes on, where the pages lie in several pools: at those moments that were the hard ones. What
 * test_several.c found by chance, made sure of. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/base.h"
#include "several_world.h"

static void lose_pool_1(void)
{
	world.away[1] = true;
	world.refusals = 0;
	shutdown(world.fd[1], SHUT_RDWR);
}

/* Called, and answered by all that are in: of a mirror not by pool 1. */
static void change_and_wait(struct chosen chosen)
{
	uint64_t versions[WINDOW];
	int ret;
	for (uint64_t i = 0; i < chosen.pages; i++)
		versions[i] = ++world.version << NUMBER_BITS | pgno_of(chosen.from + i);
	while ((ret = call_once(&chosen, versions)) == -EAGAIN)
		pump();
	assert_int_equal(ret, 0);
	follow(&chosen, versions);
	for (unsigned rounds = 0; world.area->tail < world.area->head; rounds++) {
		world.away[1] = world.kind == MIRROR;
		pump();
		assert_true(rounds < 20000);
	}
}

/* What had to be made again. */
static uint64_t take_over_calmly(void)
{
	uint64_t replayed;
	close_source();
	open_source(NULL);
	assert_int_equal(oplog_replay(world.log, read_put, failed, NULL, PATIENCE_NS, -1, &replayed), 0);
	return replayed;
}

/* A pool that was away has all again; then the pager dies, and has not seen the answers of the other pool. */
static void mirror__pool_caught_up_and_pager_died__no_change_is_made_there_again(void **state)
{
	(void)state;
	begin_seed(MIRROR, 0);
	lose_pool_1();
	change_and_wait((struct chosen){ .call = CALL_PUT, .pages = 20 });
	change_and_wait((struct chosen){ .call = CALL_MOVE, .pages = 30, .to = WINDOW });
	change_and_wait((struct chosen){ .call = CALL_FORK, .child = 2 });
	change_and_wait((struct chosen){ .call = CALL_PUT, .space = 2, .from = 5, .pages = 9 });
	change_and_wait((struct chosen){ .call = CALL_FREE, .space = 2 });
	come_to_rest();
	world.area->tail = 0;
	assert_int_equal(take_over_calmly(), 0);
	end_seed();
}

/* Pool 1 is to be put out, and the move is noted as missed; then the pager dies. It gets the move after all, and is out later. */
static void mirror__pager_died_putting_a_pool_out__what_that_missed_then_is_not_made_later(void **state)
{
	const struct chosen move = { .call = CALL_MOVE, .pages = 30, .to = WINDOW };
	(void)state;
	begin_seed(MIRROR, 0);
	lose_pool_1();
	world.dies_leaving = true;
	if (!setjmp(world.crash)) {
		change_and_wait(move);
		fail_msg("no pool was put out");
	}
	world.dies_leaving = false;
	memset(world.away, 0, sizeof(world.away));
	assert_int_equal(take_over_calmly(), 1); /* pool 1 has it now */
	come_to_rest();
	change_and_wait((struct chosen){ .call = CALL_PUT, .pages = 20 });
	lose_pool_1();
	change_and_wait((struct chosen){ .call = CALL_PUT, .pages = 2, .from = WINDOW + 50 });
	end_seed();
}

/* From a page of pool 2 on to pool 0. */
static const struct chosen across = { .call = CALL_MOVE, .pages = 50, .from = 5, .to = 2 * WINDOW + WINDOW / 2 + 3 };

/* A move has been taken, and its pages are still with the pool that took them along; the pager has begun a put, of which the
 * source will have nothing before they are in place, when it dies. */
static void spread__pager_died_in_a_put_behind_a_move__moved_pages_are_in_place(void **state)
{
	uint64_t versions[] = { 7ull << NUMBER_BITS | pgno_of(70) };
	struct chosen move = across, put = { .call = CALL_PUT, .pages = 1, .from = 70 };
	(void)state;
	begin_seed(SPREAD, 0);
	change_and_wait((struct chosen){ .call = CALL_PUT, .pages = 40, .from = across.from });
	assert_int_equal(spread_place(pgno_of(move.from), 3), 2);
	assert_int_equal(spread_place(pgno_of(move.to), 3), 0);
	assert_int_equal(call_once(&move, NULL), 0);
	follow(&move, NULL);
	poll(NULL, 0, 20); /* the pools make it, and nobody fetches the pages */
	assert_int_equal(call_once(&put, versions), -EAGAIN);
	world.area->head++;
	follow(&put, versions);
	assert_int_equal(take_over_calmly(), 2);
	end_seed();
}

/* A pool lacks a move that does not concern it. The moved pages are in place, and are written again and taken away; then the
 * pager dies. Another makes the move once more, for that pool. */
static void spread__pages_were_written_behind_a_move__are_not_moved_again(void **state)
{
	uint64_t versions[WINDOW];
	struct chosen fork = { .call = CALL_FORK, .child = 1 }, move = across, free = { .call = CALL_FREE, .space = 1 };
	struct chosen put = { .call = CALL_PUT, .pages = 20, .from = across.to + 7 };
	(void)state;
	begin_seed(SPREAD, 0);
	lose_pool_1();
	for (uint64_t i = 0; i < put.pages; i++)
		versions[i] = 2ull << NUMBER_BITS | pgno_of(put.from + i);
	struct chosen *const calls[] = { &fork, &move, &put, &move, &free };
	for (size_t i = 0; i < ARRAY_LENGTH(calls); i++) {
		int ret;
		move.space = i == 3;
		while ((ret = call_once(calls[i], versions)) == -EAGAIN)
			pump();
		assert_int_equal(ret, 0);
		follow(calls[i], versions);
	}
	for (unsigned i = 0; i < 20; i++) /* pool 0 has the put, and pool 2 has freed the space */
		pump();
	assert_int_equal(take_over_calmly(), 5);
	end_seed();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mirror__pool_caught_up_and_pager_died__no_change_is_made_there_again),
		cmocka_unit_test(mirror__pager_died_putting_a_pool_out__what_that_missed_then_is_not_made_later),
		cmocka_unit_test(spread__pager_died_in_a_put_behind_a_move__moved_pages_are_in_place),
		cmocka_unit_test(spread__pages_were_written_behind_a_move__are_not_moved_again),
	};

	return cmocka_run_group_tests_name("several steps", tests, start_pools, stop_pools);
}
