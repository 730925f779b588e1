/* Background transfer: pages come in unasked, until everything is local. Demand goes first. */
#include "pager/tree.h"

#include <errno.h>

#include "base/log.h"

#define FILL_REQUESTS 16u /* of a background fill at once */
#define FILL_PAUSE_NS (1000u * 1000)

/* One request for the next remote pages of the space. 1: asked; 0: it has none left, or all of them are on their way; or an error. */
static int fill_space(struct space *space)
{
	uint64_t pgno = space->fill_at;
	uint64_t pages = table_next_run(&space->table, PAGE_REMOTE, &pgno, UINT64_MAX, REQUEST_PAGES);
	if (!pages) {
		space->fill_at = 0; /* once more from the start: some may have been put back */
		space->filled = !space->table.counts[PAGE_REMOTE] && !space->table.counts[PAGE_IN_FLIGHT];
		return 0;
	}
	int ret = install_request(space, pgno, pages, CLASS_PREFETCH, 0);
	if (ret)
		return ret;
	space->fill_at = pgno + pages;
	return 1;
}

/* Restored tasks come first: most children end soon, and those forked from a parent that is whole are whole. */
static bool children_wait(const struct tree *tree)
{
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed && !space->filled && space->vpid)
			return true;
	return false;
}

uint64_t migrate_work(struct tree *tree)
{
	bool immediate = tree->source->ops->fd(tree->source) < 0, left = false, asked = true, first_only = children_wait(tree);
	uint64_t before = tree->stats->installed_pages;
	unsigned requests = 0;
	/* One request of each space in turn; an immediate source gets a few, then the faults are looked at again. */
	while (asked && requests < (immediate ? FILL_REQUESTS / 2 : FILL_REQUESTS)) {
		asked = left = false;
		for (struct space *space = tree->spaces; space; space = space->next) {
			if (space->closed || space->filled || (first_only && !space->vpid))
				continue;
			if (tree->request_free_count <= REQUESTS - FILL_REQUESTS)
				return UINT64_MAX; /* the next answer goes on */
			int ret = fill_space(space);
			if (ret < 0 && ret != -EAGAIN) {
				tree_fail(tree, ret, "fetch page %#lx", space->fill_at << PAGE_SHIFT);
				return 0;
			}
			asked |= ret == 1;
			left |= !space->filled;
			requests++;
		}
	}
	if (!left)
		return UINT64_MAX;
	/* Nothing installed: an event is being waited for, or memory. */
	return immediate && tree->stats->installed_pages > before ? 0 : FILL_PAUSE_NS;
}
