/* Fetching ahead: which pages are asked for besides the one that faulted, and what became of them. */
#include "pager/tree.h"

/* How many pages from pgno on are remote, at most `limit`. */
static uint64_t remote_run(struct space *space, uint64_t pgno, uint64_t limit)
{
	uint64_t pages = 1;
	while (pages < limit && table_state(&space->table, pgno + pages) == PAGE_REMOTE)
		pages++;
	return pages;
}

void ahead_used(struct space *space, uint32_t page)
{
	uint8_t *at = table_page(&space->table, page);
	if (!(*at & PAGE_PREFETCHED))
		return;
	*at &= (uint8_t)~PAGE_PREFETCHED;
	space->tree->stats->prefetch_used_pages++;
}

void ahead_wasted(struct space *space, uint32_t page)
{
	uint8_t *at = table_page(&space->table, page);
	if (!(*at & PAGE_PREFETCHED))
		return;
	*at &= (uint8_t)~PAGE_PREFETCHED;
	space->tree->stats->prefetch_wasted_pages++;
}

/* The run went on behind these pages: so they were used. */
static void prove_used(struct space *space, uint64_t pgno, uint64_t pages)
{
	for (uint64_t i = 0; i < pages; i++) {
		uint32_t page = table_find(&space->table, pgno + i);
		if (page != NO_PAGE)
			ahead_used(space, page);
	}
}

int ahead_fault(struct space *space, uint64_t pgno, uint64_t read_ns)
{
	struct tree *tree = space->tree;
	struct prefetch_advice advice = prefetch_fault(&space->prefetcher, pgno);
	uint64_t pages = remote_run(space, pgno, DP_MIN(1 + advice.pages, REQUEST_PAGES));
	if (advice.pages && !residency_has_room(&tree->budget, tree_used_pages(tree), pages))
		pages = 1;
	prove_used(space, pgno - advice.proven, advice.proven);
	return install_request(space, pgno, pages, CLASS_DEMAND, read_ns);
}
