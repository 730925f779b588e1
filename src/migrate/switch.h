/* switch: which of the two copies of a tree that is migrating may run. Pure functions over messages and clocks, no I/O: what they
 * decide is carried out by the ferries (ferry.h), recorded by record.h, and proven in tests/unit/test_switch.c.
 *
 *   source       FROZEN ──GRANT──▶ GRANTED ──RELEASE──▶ RELEASED   (CRIU kills it)
 *                   │                 └─ DEAD, silence ─▶ RESUMED  (CRIU lets it run on as if nothing had been)
 *                   └─ DEAD, gives up, silence ─────────▶ RESUMED
 *   destination  WAITING ─▶ RUNNING ◀─▶ STOPPED ─▶ FREE (runs, owes nobody)
 *                   └──────────┴────────────┴────▶ DEAD
 *
 * The destination asks, the source answers; an ask may be repeated, lost, late or overtaken, and so may its answer. With each
 * answer the destination may run for lease_ns *from when it asked*; the source keeps its tree frozen for lease_ns + margin_ns
 * *from when it answered*. No clocks are compared, only their speeds: the margin is for clocks that differ, and for the time
 * that it takes to stop a tree. Clocks are CLOCK_BOOTTIME: a host that slept has missed its lease.
 *
 * Invariants:
 *  S1 the source's tree runs only in RESUMED, the destination's only in RUNNING while now < until_ns, or in FREE;
 *  S2 so never both: until_ns of the destination passes before that of the source, by margin_ns;
 *  S3 RELEASED and RESUMED are final: whoever asks, however often, hears the same;
 *  S4 GRANTED and RELEASED are recorded before they are answered, RESUMED before the tree is let go; who comes after a source
 *     that died (its heir) goes on from the record: nothing -> RESUMED at once, granted -> RESUMED when the longest lease that
 *     can have been answered is over, released -> RELEASED;
 *  S5 the destination asks for RELEASE only when it has every page, so FREE needs nobody; its tree's end from then on is its own;
 *  S6 an answer without which the destination cannot go on is asked for again until it comes: it is never guessed.
 * The record has to outlive processes, not the host: with the source's host its frozen tree is gone, and the destination hears
 * of that as of a record that is not there after another boot (switch_destination_lost_source).
 * Thread rule: one thread per object. */
#ifndef DP_MIGRATE_SWITCH_H
#define DP_MIGRATE_SWITCH_H

#include <stdbool.h>
#include <stdint.h>

#define SWITCH_LEASE_NS UINT64_C(10000000000)
#define SWITCH_MARGIN_NS UINT64_C(3000000000)
#define SWITCH_LEASE_LEAST_NS UINT64_C(500000000)
#define SWITCH_MARGIN_LEAST_NS UINT64_C(500000000) /* it takes a moment to stop a tree */
#define SWITCH_PREPARE_NS UINT64_C(60000000000) /* how long a frozen tree waits for the first ask */

enum switch_state { SWITCH_FROZEN, SWITCH_GRANTED, SWITCH_RELEASED, SWITCH_RESUMED };
enum switch_ask {
	ASK_GRANT,   /* may it run? Everything of the tree is restored but its pages */
	ASK_RENEW,   /* it runs; may it go on? */
	ASK_RELEASE, /* every page is here (S5) */
	ASK_DEAD,    /* nothing of it runs or will */
};
enum switch_answer { ANSWER_GRANTED, ANSWER_RELEASED, ANSWER_RESUMED, ANSWER_REFUSED };

/* ---- the source's side ---- */
struct switch_source {
	enum switch_state state;
	uint64_t lease_ns, margin_ns;
	uint64_t until_ns; /* FROZEN, GRANTED: then it is RESUMED */
};

/* Just frozen. */
void switch_source_init(struct switch_source *source, uint64_t lease_ns, uint64_t margin_ns, uint64_t now_ns);
/* After another that died, and recorded this (S4). recorded FROZEN: no record. */
void switch_source_inherit(struct switch_source *source, enum switch_state recorded, uint64_t lease_ns, uint64_t margin_ns,
			   uint64_t now_ns);
/* What an ask is answered; the state may have changed and is to be recorded before the answer goes out. */
enum switch_answer switch_source_ask(struct switch_source *source, enum switch_ask ask, uint64_t now_ns);
/* Time passes. The state after it. */
enum switch_state switch_source_tick(struct switch_source *source, uint64_t now_ns);
/* The migration is to end here and now: RESUMED, but only while nothing was granted. */
enum switch_state switch_source_give_up(struct switch_source *source);

/* ---- the destination's side ---- */
enum switch_place { PLACE_WAITING, PLACE_RUNNING, PLACE_STOPPED, PLACE_FREE, PLACE_DEAD };
struct switch_destination {
	enum switch_place place;
	uint64_t lease_ns;
	uint64_t until_ns; /* the lease's end; 0: none yet */
	bool granted;      /* once */
};

void switch_destination_init(struct switch_destination *destination, uint64_t lease_ns);
/* A ferry that follows one that died, of a tree that may have run. */
void switch_destination_inherit(struct switch_destination *destination, uint64_t lease_ns);
/* An answer to what was asked at asked_ns. The place after it: DEAD means that the tree is to be killed. */
enum switch_place switch_destination_answer(struct switch_destination *destination, enum switch_answer answer, uint64_t asked_ns,
					    uint64_t now_ns);
/* Time passes. STOPPED: the tree is to stand still. */
enum switch_place switch_destination_tick(struct switch_destination *destination, uint64_t now_ns);
/* The tree has ended, or will never be. */
void switch_destination_dead(struct switch_destination *destination);
/* The source's host has started again: its tree is gone. All pages here: FREE, else DEAD, for nothing can be had any more. */
enum switch_place switch_destination_lost_source(struct switch_destination *destination, bool whole);

/* The words of the protocol and of the record; the functions return -1 for a word that is none. */
const char *switch_state_name(enum switch_state state);
const char *switch_ask_name(enum switch_ask ask);
const char *switch_answer_name(enum switch_answer answer);
int switch_state_parse(const char *name);
int switch_ask_parse(const char *name);
int switch_answer_parse(const char *name);
/* CLOCK_BOOTTIME. */
uint64_t switch_clock_ns(void);

#endif
