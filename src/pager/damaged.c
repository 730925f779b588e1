/* Pages that are damaged in their pool, before a checkpoint. One that nobody has touched is remote like others: the snapshot
 * shares it, and it stays known as damaged. Where a thread was given a bus error the kernel has a mark in place of the page
 * (UFFDIO_POISON), which CRIU can neither read nor keep, and must not leave out. So they are asked for once more, for the pool
 * may have been repaired; what comes takes the mark's place. */
#include "pager/tree.h"

#include <unistd.h>

#include "base/base.h"

#define PAGEMAP_SOMETHING (UINT64_C(3) << 62) /* present, or something else than nothing */

/* What cannot be looked at is taken for marked. */
static bool is_marked(const struct space *space, uint64_t pgno)
{
	uint64_t entry;
	return pread(space->pagemap_fd, &entry, sizeof(entry), (off_t)(pgno * sizeof(entry))) != sizeof(entry) ||
	       (entry & PAGEMAP_SOMETHING);
}

static uint64_t look(struct space *space, bool ask)
{
	uint64_t marked = 0;
	if (!space->table.counts[PAGE_DAMAGED])
		return 0;
	for (uint64_t at = 0; table_next_run(&space->table, PAGE_DAMAGED, &at, UINT64_MAX, 1); at++) {
		if (!is_marked(space, at))
			continue;
		marked++;
		if (!ask)
			continue;
		uint32_t page = table_find(&space->table, at);
		table_change(&space->table, page, PAGE_REMOTE, 0, 0);
		if (install_request(space, at, 1, CLASS_PREFETCH, 0))
			table_change(&space->table, page, PAGE_DAMAGED, 0, 0); /* not now: as it was */
	}
	return marked;
}

uint64_t damaged_marked(struct tree *tree, bool ask)
{
	uint64_t marked = 0;
	for (struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed && space->pid > 0)
			marked += look(space, ask);
	return marked;
}
