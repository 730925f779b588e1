#include "pager/heat.h"

#include <string.h>

#include "base/base.h"
#include "pager/tree.h"

#define SWEEP_NS 2000000000ull
#define SWEEP_LEAVES 512u /* a turn of the loop: some ten microseconds */
#define RANGES_FROM (1ull << 32) /* positions in an export: leaf numbers, then these of ranges */
#define FORGETFUL_AGE 4u  /* from here on a step of age costs a use */

uint8_t heat_decay(uint8_t heat, uint64_t sweep)
{
	unsigned age = heat_age(heat);
	if (age == HEAT_AGES || (sweep & ((1ull << age) - 1)))
		return heat;
	heat -= HEAT_YEAR;
	if (age >= FORGETFUL_AGE && (heat & HEAT_USES))
		heat -= HEAT_USE;
	return heat;
}

unsigned heat_age_of_ns(uint64_t ns)
{
	unsigned age = 1;
	while (age < HEAT_AGES && (1000000000ull << age) < ns)
		age++;
	return age;
}

enum heat_class heat_classify(uint8_t heat, bool local, const struct heat_rule *rule)
{
	if (heat_age(heat) >= rule->cold_age)
		return HEAT_COLD;
	if (heat_uses(heat) >= rule->hot_uses)
		return HEAT_HOT;
	return local ? HEAT_WARM : HEAT_COLD;
}

bool heat_area_speaks(uint64_t referenced, uint64_t asked, uint64_t unknown)
{
	return asked * 8 < unknown && referenced > asked && (referenced - asked) * 2 > unknown;
}

/* ---- decay ---- */

static void sweep_leaf(struct leaf *leaf, uint64_t sweep)
{
	for (unsigned i = 0; i < LEAF_PAGES; i++)
		if (leaf->heat[i] & HEAT_YOUTH)
			leaf->heat[i] = heat_decay(leaf->heat[i], sweep);
}

uint64_t heat_work(struct tree *tree, uint64_t now)
{
	struct heat_sweep *sweep = &tree->heat;
	unsigned left = SWEEP_LEAVES;
	if (!sweep->due_ns)
		sweep->due_ns = now + SWEEP_NS;
	if (!sweep->space && now < sweep->due_ns)
		return sweep->due_ns - now;
	if (!sweep->space) {
		sweep->number++;
		sweep->due_ns = now + SWEEP_NS;
		sweep->space = UINT32_MAX; /* spaces are listed newest first */
		sweep->leaf = 0;
	}
	for (struct space *space = tree->spaces; space; space = space->next) {
		if (space->closed || space->number > sweep->space)
			continue;
		if (space->number < sweep->space) {
			sweep->space = space->number;
			sweep->leaf = 0;
		}
		for (; sweep->leaf < space->table.leaf_top && left; left--)
			sweep_leaf(&space->table.leaves[sweep->leaf++], sweep->number);
		if (!left)
			return 0;
		sweep->space--;
		sweep->leaf = 0;
	}
	sweep->space = 0;
	return sweep->due_ns - now;
}

/* ---- export ---- */

static void export_leaf(const struct table *table, uint32_t number, struct heat_leaf *out)
{
	const struct leaf *leaf = &table->leaves[number];
	*out = (struct heat_leaf){ .pgno = leaf->pgno, .pages = LEAF_PAGES };
	memcpy(out->heat, leaf->heat, sizeof(out->heat));
	for (unsigned i = 0; i < LEAF_PAGES; i++) {
		unsigned state = leaf->page[i] & PAGE_STATE_MASK;
		out->local |= (uint64_t)(state == PAGE_LOCAL || state == PAGE_STAGED) << i;
		out->remote |= (uint64_t)(state == PAGE_REMOTE || state == PAGE_IN_FLIGHT) << i;
	}
}

/* First the leaves, then the snapshot's page map. false: the piece is full; *at is where to go on. */
static bool export_space(const struct space *space, uint64_t *at, struct heat_piece *piece)
{
	const struct table *table = &space->table;
	const struct rangeset *initial = &table->initial;
	for (; *at < table->leaf_top; ++*at) {
		const struct leaf *leaf = &table->leaves[*at];
		if (leaf->pgno == UINT64_MAX)
			continue; /* free */
		if (piece->count == HEAT_PIECE_LEAVES)
			return false;
		export_leaf(table, (uint32_t)*at, &piece->leaf[piece->count++]);
	}
	if (*at < RANGES_FROM)
		*at = RANGES_FROM;
	for (; *at - RANGES_FROM < initial->count; ++*at) {
		const struct range *range = &initial->ranges[*at - RANGES_FROM];
		if (piece->count == HEAT_PIECE_LEAVES)
			return false;
		uint64_t pages = range->end - range->start;
		piece->leaf[piece->count++] = (struct heat_leaf){ .pgno = range->start, .pages = pages, .range = true };
	}
	return true;
}

/* Spaces are listed newest first, with falling numbers; 0 is none's. */
static const struct space *next_space(const struct tree *tree, uint64_t number)
{
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed && space->number <= number)
			return space;
	return NULL;
}

void heat_export(const struct tree *tree, uint64_t number, uint64_t at, struct heat_piece *piece)
{
	const struct space *space = next_space(tree, number);
	*piece = (struct heat_piece){ .count = 0 };
	if (!space)
		return;
	at = space->number == number ? at : 0;
	piece->space = space->number;
	piece->pid = space->pid;
	bool whole = export_space(space, &at, piece);
	piece->next_at = whole ? 0 : at;
	piece->next_space = whole ? space->number - 1 : space->number;
}
