/* A pager dies and another goes on, where the pages lie in several pools: the real sources, the real operation log, real pools.
 * The pager's death is a longjmp out of a call of a link or of what a mirror keeps, anywhere, also while the other takes over;
 * connections break, pools are away for so long that a mirror puts them out, and come back.
 *
 * What must hold, for every seed (DP_SEVERAL_SEEDS of them for each kind, 6 by default; DP_SEED=N for one, or the first): what is
 * read is what the calls made of it, and in the end each pool of a mirror has exactly that, and of spread pools each its part. */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/base.h"
#include "several_world.h"

static void arm(void)
{
	world.crash_in = (unsigned)(1 + dice(dice(4) ? 12 : 200));
	world.armed = true;
}

/* Also this one may die. */
static void take_over(void)
{
	uint64_t replayed;
	volatile unsigned deaths = 0;
	world.reading = false;
	if (setjmp(world.crash))
		deaths++;
	close_source();
	open_source(NULL);
	if (deaths < 4 && dice(2)) {
		arm();
		world.crash_in = 1 + (unsigned)dice(60);
	}
	int ret = oplog_replay(world.log, read_put, failed, NULL, PATIENCE_NS, -1, &replayed);
	if (ret)
		fail_msg("kind %d, seed %" PRIu64 ": taken over: %s", world.kind, world.seed, strerror(-ret));
	world.armed = false;
}

/* ---- calls ---- */

/* The source took none of it, and the log's head, which was set before, was not set back. */
static bool dies_refused(void)
{
	if (world.area->head - world.area->tail >= OPLOG_RECORDS - 1) /* it was the log that refused: there is no record */
		return false;
	if ((world.random + world.pumps * 7) % 32)
		return false;
	world.area->head++;
	seen.crashes++;
	return true;
}

/* Until it was taken, by whichever pager. */
static void call(struct chosen *chosen, uint64_t *versions)
{
	const volatile uint64_t number = world.area->head + 1;
	volatile bool fell = false;
	int ret = -EAGAIN;
	while (setjmp(world.crash)) {
		take_over();
		fell = true;
		if (world.area->head < number)
			break;
		/* It was begun, so it was made. The number of a child is not known if all pools had made it. */
		const struct op *op = &world.area->op[number % OPLOG_RECORDS];
		if (chosen->call == CALL_FORK && !op->to) {
			chosen->child_id = 0;
			call(chosen, versions);
			return;
		}
		chosen->child_id = op->to;
		return;
	}
	if (!fell && dice(6) == 0)
		arm();
	while ((ret = call_once(chosen, versions)) == -EAGAIN) {
		if (!fell && dies_refused())
			longjmp(world.crash, 1);
		pump();
	}
	world.armed = false;
	if (ret)
		fail_msg("kind %d, seed %" PRIu64 ": %s", world.kind, world.seed, strerror(-ret));
}

static void change_something(void)
{
	uint64_t versions[WINDOW];
	uint64_t kind = dice(12), window = dice(3), other = dice(3);
	struct chosen chosen = { .space = (uint32_t)dice(SPACES),
				 .child = 1 + (uint32_t)dice(SPACES - 1),
				 .pages = 1 + dice(48) };
	chosen.from = window * WINDOW + dice(WINDOW - chosen.pages);
	chosen.to = other * WINDOW + dice(WINDOW - chosen.pages);
	chosen.call = kind < 6			  ? CALL_PUT
		      : kind < 8		  ? CALL_DROP
		      : kind < 10		  ? CALL_MOVE
		      : world.space[chosen.child] ? CALL_FREE
						  : CALL_FORK;
	if (chosen.call == CALL_FREE)
		chosen.space = chosen.child;
	if (!world.space[chosen.space] || (chosen.call == CALL_MOVE && window == other))
		return;
	for (uint64_t i = 0; i < chosen.pages; i++)
		versions[i] = ++world.version << NUMBER_BITS | pgno_of(chosen.from + i);
	seen.calls++;
	call(&chosen, versions);
	follow(&chosen, versions);
}

static void read_something(void)
{
	uint64_t window = dice(3), pages = 1 + dice(60), at = window * WINDOW + dice(WINDOW - pages);
	struct page_range range = { pgno_of(at), pages };
	world.read_space = (uint32_t)dice(SPACES);
	if (!world.space[world.read_space])
		return;
	if (setjmp(world.crash)) {
		take_over(); /* nobody waits for the rest */
		return;
	}
	seen.reads++;
	world.read_at = at;
	world.read_pages = pages;
	world.reading = true;
	if (dice(6) == 0)
		arm();
	while (world.reading) {
		int ret = world.log->ops->get(world.log, CLASS_DEMAND, world.space[world.read_space], &range, 1, 6);
		if (ret == -EAGAIN)
			pump();
		else if (ret)
			fail_msg("read: %s", strerror(-ret));
		while (!ret && world.reading)
			pump();
	}
	world.armed = false;
}

static void disturb(void)
{
	unsigned pool = (unsigned)dice(world.count);
	if (dice(3) == 0)
		memset(world.away, 0, sizeof(world.away));
	if (dice(3))
		return;
	world.away[pool] = dice(2);
	seen.absences += world.away[pool];
	seen.breaks++;
	shutdown(world.fd[pool], SHUT_RDWR); /* of a descriptor that was closed: nothing, or another of ours breaks */
}

static void run_seed(enum kind kind, uint64_t seed)
{
	begin_seed(kind, seed);
	for (unsigned round = 0; round < 120; round++) {
		if (dice(10) == 0)
			disturb();
		if (dice(6) == 0)
			read_something();
		else
			change_something();
	}
	end_seed();
}

static void run_seeds(enum kind kind)
{
	const char *one = getenv("DP_SEED"), *many = getenv("DP_SEVERAL_SEEDS");
	uint64_t first = one ? strtoull(one, NULL, 10) : 0, count = many ? strtoull(many, NULL, 10) : one ? 1 : 6;
	for (uint64_t seed = first; seed < first + count; seed++)
		run_seed(kind, seed);
	print_message("%" PRIu64 " changes, %" PRIu64 " reads, %" PRIu64 " pagers died, %" PRIu64 " connections broken, %" PRIu64
		      " pools away\n", seen.calls, seen.reads, seen.crashes, seen.breaks, seen.absences);
	assert_true(one || seen.crashes > 0);
	memset(&seen, 0, sizeof(seen));
}

static void mirror__pagers_die_anywhere__both_pools_have_exactly_what_was_written(void **state)
{
	(void)state;
	run_seeds(MIRROR);
}

static void mirror_ack_one__pagers_die_anywhere__nothing_acknowledged_is_missing(void **state)
{
	(void)state;
	run_seeds(MIRROR_ACK_ONE);
}

static void spread__pagers_die_anywhere__each_pool_has_its_part(void **state)
{
	(void)state;
	run_seeds(SPREAD);
}

/* What made another pager make changes twice: it failed once in a few runs. */
static void mirror_ack_one__pool_comes_back_while_pagers_die__seed_147(void **state)
{
	(void)state;
	run_seed(MIRROR_ACK_ONE, 147);
}

/* A space was freed and its number given again, while a pool caught up: blocks of the second were forgotten with the first. */
static void mirror_ack_one__number_given_again_while_a_pool_copies__seed_435(void **state)
{
	(void)state;
	run_seed(MIRROR_ACK_ONE, 435);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mirror__pagers_die_anywhere__both_pools_have_exactly_what_was_written),
		cmocka_unit_test(mirror_ack_one__pagers_die_anywhere__nothing_acknowledged_is_missing),
		cmocka_unit_test(mirror_ack_one__pool_comes_back_while_pagers_die__seed_147),
		cmocka_unit_test(mirror_ack_one__number_given_again_while_a_pool_copies__seed_435),
		cmocka_unit_test(spread__pagers_die_anywhere__each_pool_has_its_part),
	};

	return cmocka_run_group_tests_name("several", tests, start_pools, stop_pools);
}
