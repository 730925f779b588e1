/* residency: which page leaves next, and how much has to leave. Pure functions over numbers, no I/O, no state.
 *
 * Shape of S3-FIFO (Yang et al., SOSP'23): new pages enter a small queue; a page that is touched while it waits in staging has
 * shown that it is wanted and comes back through the main queue; a page that was evicted not long ago enters the main queue
 * at once; a page that was touched in staging is left alone for one round of the main queue. Small queue 5 %, memory of evicted
 * pages half of what is local: docs/policies.md says why. Staging takes the part of the "accessed" bit, which user space does not
 * have. */
#ifndef DP_RESIDENCY_RESIDENCY_H
#define DP_RESIDENCY_RESIDENCY_H

#include <stdbool.h>
#include <stdint.h>

struct residency_budget {
	uint64_t budget_pages;   /* 0: none */
	uint64_t headroom_pages; /* kept free below the budget, so that a fault never waits for an eviction */
	uint64_t reserve_pages;  /* the tree may exceed the budget by this much for a moment (growth that nobody announces) */
	uint64_t ahead_pages;    /* wait in a space's staging ahead of need, for evidence that they are cold */
	uint64_t staging_pages;  /* room in a space's staging: more than that, since the way to the source takes its time */
};

/* How many pages wait in staging ahead of need. Where nearly all that are staged are touched there, none of them is cold, and
 * each costs a fault: then fewer are staged, and not so often; more again when pages stay untouched. */
struct residency_ahead {
	uint32_t pages, returned, left; /* returned, left: since it was last thought about */
};
void residency_ahead_init(struct residency_ahead *ahead, const struct residency_budget *plan);
/* Pages that were staged came back, or left for good. */
void residency_ahead_note(struct residency_ahead *ahead, const struct residency_budget *plan, uint32_t returned, uint32_t left);

/* Derives the rest from the budget (bytes). */
void residency_plan(struct residency_budget *plan, uint64_t budget_bytes);

/* The least budget for a tree of that many tasks that can work at all, in bytes. */
uint64_t residency_minimum_bytes(uint64_t tasks);

/* The budget of a tree whose control group may have that much: less by the reserve, which the tree may use for a moment, and by
 * what the kernel keeps for it (page tables, stacks), a 32nd. */
uint64_t residency_of_limit(uint64_t limit_bytes, uint64_t tasks);

/* How many pages should leave local memory now; 0: none. `used` counts everything resident plus what is on its way in. */
uint64_t residency_excess(const struct residency_budget *plan, uint64_t used_pages);
/* Should pages be moved to staging already, ahead of need? */
bool residency_should_stage(const struct residency_budget *plan, uint64_t used_pages);
/* May one more fault bring in pages? */
bool residency_has_room(const struct residency_budget *plan, uint64_t used_pages, uint64_t pages);

/* true: the next victim is the head of the small queue; false: of the main queue. */
bool residency_take_small(uint64_t small_length, uint64_t main_length);
/* Does a page that was evicted when the space's eviction counter stood at `then` come back into the main queue? */
bool residency_remembered(uint32_t then, uint32_t now, uint64_t local_pages);

#endif
