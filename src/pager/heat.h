/* heat: which pages are hot, which are cold.
 *
 * User space sees no accessed bits, so evidence is what happens to pass by: a page that is fetched or zero-filled is used at that
 * moment (youth); a page that is touched while it waits in staging was in use although it was taken for cold (one more use); a
 * page that leaves staging untouched was not (no uses). One byte a page in the table holds it:
 *     bits 0-1  eviction's own (table.h)
 *     bits 2-4  uses: touches in staging in a row, at most 7
 *     bits 5-7  youth: 7 just used, one less each time the time since then doubles; 0: for two minutes or never
 * A sweep over the leaves, every two seconds and in bounded pieces, lets youth decay: in the n-th sweep pages whose age (7 -
 * youth) is at most the number of trailing zero bits of n grow older, so age k means about 2^k seconds. Old pages lose a use with
 * each step.
 *
 * Classes: hot is what has `hot_uses` uses and is not cold by age; cold is what was not seen used for `cold_after`, and what left
 * untouched; the rest is warm. Evidence of whole areas (the kernel's Referenced) speaks for resident pages that nobody asked: see
 * heat_area_speaks. Where the kernel has the idle-page bitmap, that decides instead (sys/page_idle.h).
 * The export goes over the control socket in pieces of HEAT_PIECE_LEAVES, one a turn of the pager's loop. */
#ifndef DP_PAGER_HEAT_H
#define DP_PAGER_HEAT_H

#include <stdbool.h>
#include <stdint.h>

#include "pager/table.h"

#define HEAT_USES 0x1cu
#define HEAT_USE 0x04u
#define HEAT_YOUTH 0xe0u
#define HEAT_YEAR 0x20u /* one step of youth */
#define HEAT_AGES 7u    /* the oldest age */
#ifdef DP_FUZZ /* so that a small tree has several pieces */
#define HEAT_PIECE_LEAVES 2u
#else
#define HEAT_PIECE_LEAVES 256u
#endif

enum heat_class { HEAT_HOT, HEAT_WARM, HEAT_COLD, HEAT_CLASSES };

struct heat_rule {
	unsigned hot_uses; /* 1..7 */
	unsigned cold_age; /* 1..7 */
};

/* A sweep under way: spaces by falling numbers. */
struct heat_sweep {
	uint64_t number, due_ns;
	uint32_t space, leaf; /* goes on here; space 0: none is under way */
};

/* ---- evidence; on the fault path ---- */

/* The page is used at this moment. */
static inline void heat_used(const struct table *table, uint32_t page)
{
	*table_heat(table, page) |= HEAT_YOUTH;
}
/* It was touched in staging. */
static inline void heat_touched(const struct table *table, uint32_t page)
{
	uint8_t *heat = table_heat(table, page);
	if ((*heat & HEAT_USES) != HEAT_USES)
		*heat += HEAT_USE;
	*heat |= HEAT_YOUTH;
}
/* It left staging untouched. */
static inline void heat_left(const struct table *table, uint32_t page)
{
	*table_heat(table, page) &= (uint8_t)~HEAT_USES;
}

static inline unsigned heat_uses(uint8_t heat)
{
	return (heat & HEAT_USES) / HEAT_USE;
}
static inline unsigned heat_age(uint8_t heat)
{
	return HEAT_AGES - heat / HEAT_YEAR;
}

/* ---- pure functions ---- */

/* The byte after the n-th sweep (n from 1 on). */
uint8_t heat_decay(uint8_t heat, uint64_t sweep);
/* The age that stands for so many ns: the first that is not younger, 1..7. */
unsigned heat_age_of_ns(uint64_t ns);
enum heat_class heat_classify(uint8_t heat, bool local, const struct heat_rule *rule);
/* Of an area's resident pages `referenced` were used in the sampled time, `asked` were touched in staging, `unknown` not: are
 * these to be called hot? More than half of them must have been used, and few have been asked: where eviction is at work, staging
 * knows better, since one use within the sample is not yet heat. */
bool heat_area_speaks(uint64_t referenced, uint64_t asked, uint64_t unknown);

/* ---- export ---- */

/* A leaf; or (range) a run of the snapshot's page map: its pages that no leaf describes are remote and were never touched. */
struct heat_leaf {
	uint64_t pgno, pages;
	uint64_t local, remote; /* bit i: page i is */
	uint64_t range;
	uint8_t heat[LEAF_PAGES];
};

struct heat_piece {
	uint64_t space;      /* number of the space that the leaves are of; 0: there is none any more */
	int64_t pid;         /* its process, 0: not known yet */
	uint64_t next_space; /* ask for these next; next_space 0: that was all */
	uint64_t next_at;
	uint64_t count;
	struct heat_leaf leaf[HEAT_PIECE_LEAVES];
};

struct tree;
/* Fills a piece, from a position that the piece before gave; begin with (UINT64_MAX, 0). */
void heat_export(const struct tree *tree, uint64_t space, uint64_t at, struct heat_piece *piece);
/* A piece of a sweep that is due. Returns ns until it wants to go on. */
uint64_t heat_work(struct tree *tree, uint64_t now_ns);

#endif
