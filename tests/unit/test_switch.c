/* The switch of a migration in a world that is simulated: two hosts whose clocks run at different speeds, a network that delays,
 * drops, doubles and reorders and is parted for a while, a source ferry that dies and leaves an heir, a destination ferry that
 * dies and is followed by another, a tree that dies at the destination.
 *
 * What must hold, for every seed (DP_SEEDS of them, 1000 by default; DP_SEED=N for one):
 *   - never do both copies run, not for a moment;
 *   - a destination that is free has every page;
 *   - when all is quiet exactly one copy is there and runs, and the other is gone. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "migrate/switch.h"

#define MS UINT64_C(1000000)
#define LEASE (1000 * MS)
#define MARGIN (300 * MS)
#define MESSAGES 64u
#define FOREVER UINT64_MAX

struct packet {
	bool used, to_source;
	int what; /* ask or answer */
	uint64_t asked_ns, at;
};

enum tree { TREE_NONE, TREE_GATED, TREE_THERE, TREE_GONE };

struct world {
	uint64_t now, random, seed, source_rate, destination_rate; /* rates in thousandths */
	bool quiet, parted;
	struct packet packet[MESSAGES];
	/* source */
	struct switch_source source;
	bool ferry, heir; /* who decides: the ferry, after it its heir; no heir: it has decided */
	enum switch_state record;
	bool source_runs, source_gone;
	/* destination */
	struct switch_destination destination;
	bool destination_ferry;
	enum tree tree;
	uint64_t page_until, pages_at, next_ask; /* pages_at: then it is whole */
	bool asked_release;
};

static uint64_t draw(struct world *world, uint64_t below)
{
	world->random ^= world->random << 13;
	world->random ^= world->random >> 7;
	world->random ^= world->random << 17;
	return world->random % below;
}

static uint64_t source_clock(const struct world *world)
{
	return world->now / 1000 * world->source_rate;
}

static uint64_t destination_clock(const struct world *world)
{
	return world->now / 1000 * world->destination_rate;
}

static void send_packet(struct world *world, bool to_source, int what, uint64_t asked_ns)
{
	unsigned copies = !world->quiet && draw(world, 8) == 0 ? 2 : 1;
	if (world->parted || (!world->quiet && draw(world, 6) == 0))
		return;
	for (unsigned i = 0; i < MESSAGES && copies; i++) {
		if (world->packet[i].used)
			continue;
		uint64_t delay = world->quiet ? MS : draw(world, 4) ? draw(world, 20 * MS) : draw(world, 3 * LEASE);
		world->packet[i] = (struct packet){ true, to_source, what, asked_ns, world->now + delay };
		copies--;
	}
}

static bool whole(const struct world *world)
{
	return world->tree == TREE_THERE && world->pages_at && world->now >= world->pages_at;
}

static bool destination_runs(const struct world *world)
{
	return world->tree == TREE_THERE && (world->page_until == FOREVER || destination_clock(world) < world->page_until);
}

/* ---- the source ---- */

static void carry_out(struct world *world)
{
	if (world->source.state != SWITCH_FROZEN)
		world->record = world->source.state;
	if (world->source.state == SWITCH_RESUMED)
		world->source_runs = true;
	if (world->source.state == SWITCH_RELEASED)
		world->source_gone = true;
	if (world->source_runs || world->source_gone)
		world->heir = false;
}

static void source_receives(struct world *world, const struct packet *packet)
{
	if (world->ferry) {
		enum switch_answer answer = switch_source_ask(&world->source, (enum switch_ask)packet->what, source_clock(world));
		/* it may die on every step: before the record, after it, before the answer */
		bool dies = !world->quiet && draw(world, 40) == 0;
		if (!dies || draw(world, 2)) {
			if (world->source.state != SWITCH_FROZEN)
				world->record = world->source.state;
		}
		if (dies) {
			world->ferry = false;
			world->heir = true;
			switch_source_inherit(&world->source, world->record, LEASE, MARGIN, source_clock(world));
			return;
		}
		carry_out(world);
		send_packet(world, false, (int)answer, packet->asked_ns);
	} else if (world->record == SWITCH_RELEASED) { /* the agent reads it out */
		send_packet(world, false, ANSWER_RELEASED, packet->asked_ns);
	} else if (world->record == SWITCH_RESUMED) {
		send_packet(world, false, ANSWER_RESUMED, packet->asked_ns);
	}
}

static void source_works(struct world *world)
{
	if (world->ferry && !world->quiet && draw(world, 400) == 0) {
		world->ferry = false;
		world->heir = true;
		switch_source_inherit(&world->source, world->record, LEASE, MARGIN, source_clock(world));
	}
	if (!world->ferry && !world->heir)
		return;
	if (world->ferry && !world->quiet && draw(world, 500) == 0)
		switch_source_give_up(&world->source);
	switch_source_tick(&world->source, source_clock(world));
	carry_out(world);
}

/* ---- the destination ---- */

static void follow_place(struct world *world)
{
	struct switch_destination *destination = &world->destination;
	if (destination->place == PLACE_DEAD && world->tree != TREE_GONE) {
		world->tree = TREE_GONE;
	} else if (destination->place == PLACE_FREE) {
		assert_true(whole(world));
		world->page_until = FOREVER;
	} else if (destination->granted && world->page_until != FOREVER) {
		world->page_until = DP_MAX(world->page_until, destination->until_ns);
	}
	if (destination->place == PLACE_RUNNING && world->tree == TREE_GATED) {
		world->tree = TREE_THERE;
		world->pages_at = world->now + draw(world, 4 * LEASE);
	}
}

static void destination_receives(struct world *world, const struct packet *packet)
{
	if (!world->destination_ferry || world->destination.place == PLACE_FREE)
		return;
	switch_destination_answer(&world->destination, (enum switch_answer)packet->what, packet->asked_ns,
				  destination_clock(world));
	follow_place(world);
}

static void destination_works(struct world *world)
{
	if (world->destination_ferry && !world->quiet && draw(world, 300) == 0) {
		world->destination_ferry = false;
		if (world->tree == TREE_GATED || world->tree == TREE_NONE)
			world->tree = TREE_GONE; /* CRIU's hook hears of it */
	}
	if (!world->destination_ferry && (world->quiet || draw(world, 40) == 0)) {
		world->destination_ferry = true;
		switch_destination_inherit(&world->destination, LEASE);
	}
	if (world->tree == TREE_NONE && draw(world, 10) == 0)
		world->tree = TREE_GATED;
	/* whose end comes after it asked for the release has ended as a process of its own */
	if (world->tree != TREE_GONE && !world->asked_release && !world->quiet && draw(world, 600) == 0)
		world->tree = TREE_GONE;
	if (!world->destination_ferry || world->tree == TREE_NONE)
		return;
	if (world->tree == TREE_GONE)
		switch_destination_dead(&world->destination);
	switch_destination_tick(&world->destination, destination_clock(world));
	if (world->now < world->next_ask || world->destination.place == PLACE_FREE)
		return;
	world->next_ask = world->now + LEASE / 5;
	enum switch_ask ask = world->tree == TREE_GONE ? ASK_DEAD : world->tree == TREE_GATED ? ASK_GRANT :
			      whole(world) ? ASK_RELEASE : ASK_RENEW;
	world->asked_release |= ask == ASK_RELEASE;
	send_packet(world, true, (int)ask, destination_clock(world));
}

/* ---- the run ---- */

static void deliver(struct world *world)
{
	for (unsigned i = 0; i < MESSAGES; i++) {
		struct packet packet = world->packet[i];
		if (!packet.used || packet.at > world->now)
			continue;
		world->packet[i].used = false;
		if (packet.to_source)
			source_receives(world, &packet);
		else
			destination_receives(world, &packet);
	}
}

static void step(struct world *world)
{
	world->now += world->quiet ? 5 * MS : 1 + draw(world, 10 * MS);
	if (!world->quiet && draw(world, 200) == 0)
		world->parted = !world->parted;
	deliver(world);
	source_works(world);
	destination_works(world);
	if (world->source_runs && destination_runs(world))
		fail_msg("seed %" PRIu64 ": both run", world->seed);
	if (world->page_until == FOREVER && world->source_runs)
		fail_msg("seed %" PRIu64 ": the destination is free and the source runs", world->seed);
}

static void run_seed(uint64_t seed)
{
	struct world world = { .seed = seed, .random = seed * UINT64_C(0x9E3779B97F4A7C15) + 1, .now = 1000 * MS,
			       .ferry = true, .destination_ferry = true };
	for (unsigned i = 0; i < 8; i++)
		draw(&world, 2);
	world.source_rate = 960 + draw(&world, 80);
	world.destination_rate = 960 + draw(&world, 80);
	switch_source_init(&world.source, LEASE, MARGIN, source_clock(&world));
	switch_destination_init(&world.destination, LEASE);
	unsigned steps = 200 + (unsigned)draw(&world, 2000);
	for (unsigned i = 0; i < steps; i++)
		step(&world);
	world.quiet = true;
	world.parted = false;
	for (unsigned i = 0; i < 20000 && world.now < 200000 * MS; i++)
		step(&world);
	bool there = world.tree == TREE_THERE;
	if (world.source_runs == destination_runs(&world) || world.source_runs == there)
		fail_msg("seed %" PRIu64 ": source %s, destination %s", seed, world.source_runs ? "runs" : "does not run",
			 !there ? "gone" : destination_runs(&world) ? "runs" : "stands still");
	if (world.source_runs == world.source_gone)
		fail_msg("seed %" PRIu64 ": the source is neither let go nor released", seed);
}

static void switch__any_order_of_messages_and_deaths__exactly_one_copy_runs(void **state)
{
	(void)state;
	const char *one = getenv("DP_SEED"), *many = getenv("DP_SEEDS");
	uint64_t seeds = many ? strtoull(many, NULL, 10) : 1000;
	if (one) {
		run_seed(strtoull(one, NULL, 10));
		return;
	}
	for (uint64_t seed = 1; seed <= seeds; seed++)
		run_seed(seed);
}

static void switch__silence_before_a_grant__source_runs_on(void **state)
{
	(void)state;
	struct switch_source source;
	switch_source_init(&source, LEASE, MARGIN, 5);
	assert_int_equal(switch_source_tick(&source, 5 + SWITCH_PREPARE_NS - 1), SWITCH_FROZEN);
	assert_int_equal(switch_source_tick(&source, 5 + SWITCH_PREPARE_NS), SWITCH_RESUMED);
	assert_int_equal(switch_source_ask(&source, ASK_GRANT, 6), ANSWER_RESUMED);
}

static void switch__given_up_after_a_grant__stays_granted(void **state)
{
	(void)state;
	struct switch_source source;
	switch_source_init(&source, LEASE, MARGIN, 0);
	assert_int_equal(switch_source_ask(&source, ASK_GRANT, 1), ANSWER_GRANTED);
	assert_int_equal(switch_source_give_up(&source), SWITCH_GRANTED);
	assert_int_equal(switch_source_ask(&source, ASK_RELEASE, 2), ANSWER_RELEASED);
	assert_int_equal(switch_source_ask(&source, ASK_DEAD, 3), ANSWER_RELEASED);
	assert_int_equal(switch_source_tick(&source, UINT64_MAX), SWITCH_RELEASED);
}

static void switch__asked_out_of_turn__refused(void **state)
{
	(void)state;
	struct switch_source source;
	switch_source_init(&source, LEASE, MARGIN, 0);
	assert_int_equal(switch_source_ask(&source, ASK_RELEASE, 1), ANSWER_REFUSED);
	assert_int_equal(switch_source_ask(&source, ASK_RENEW, 1), ANSWER_REFUSED);
	assert_int_equal(source.state, SWITCH_FROZEN);
}

static void switch__answer_after_its_lease__runs_nobody(void **state)
{
	(void)state;
	struct switch_destination destination;
	switch_destination_init(&destination, LEASE);
	assert_int_equal(switch_destination_answer(&destination, ANSWER_GRANTED, 0, LEASE), PLACE_WAITING);
	assert_int_equal(switch_destination_answer(&destination, ANSWER_GRANTED, LEASE, LEASE + 1), PLACE_RUNNING);
	assert_int_equal(switch_destination_tick(&destination, 2 * LEASE), PLACE_STOPPED);
	assert_int_equal(switch_destination_answer(&destination, ANSWER_GRANTED, 2 * LEASE, 2 * LEASE + 1), PLACE_RUNNING);
	assert_int_equal(switch_destination_answer(&destination, ANSWER_RESUMED, 2 * LEASE, 2 * LEASE + 2), PLACE_DEAD);
	assert_int_equal(switch_destination_answer(&destination, ANSWER_GRANTED, 3 * LEASE, 3 * LEASE), PLACE_DEAD);
}

static void switch__source_host_lost__only_a_whole_tree_goes_on(void **state)
{
	(void)state;
	struct switch_destination destination;
	switch_destination_inherit(&destination, LEASE);
	assert_int_equal(switch_destination_lost_source(&destination, true), PLACE_FREE);
	switch_destination_inherit(&destination, LEASE);
	assert_int_equal(switch_destination_lost_source(&destination, false), PLACE_DEAD);
	switch_destination_init(&destination, LEASE); /* it was never granted anything */
	assert_int_equal(switch_destination_lost_source(&destination, true), PLACE_DEAD);
}

static void switch__words__are_read_back(void **state)
{
	(void)state;
	for (int i = 0; i <= SWITCH_RESUMED; i++)
		assert_int_equal(switch_state_parse(switch_state_name((enum switch_state)i)), i);
	for (int i = 0; i <= ASK_DEAD; i++)
		assert_int_equal(switch_ask_parse(switch_ask_name((enum switch_ask)i)), i);
	for (int i = 0; i <= ANSWER_REFUSED; i++)
		assert_int_equal(switch_answer_parse(switch_answer_name((enum switch_answer)i)), i);
	assert_int_equal(switch_state_parse("nonsense"), -1);
	assert_int_equal(switch_ask_parse(NULL), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(switch__any_order_of_messages_and_deaths__exactly_one_copy_runs),
		cmocka_unit_test(switch__silence_before_a_grant__source_runs_on),
		cmocka_unit_test(switch__given_up_after_a_grant__stays_granted),
		cmocka_unit_test(switch__asked_out_of_turn__refused),
		cmocka_unit_test(switch__answer_after_its_lease__runs_nobody),
		cmocka_unit_test(switch__source_host_lost__only_a_whole_tree_goes_on),
		cmocka_unit_test(switch__words__are_read_back),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
