#include "pager/migrate.h"

#include <errno.h>
#include <time.h>

#include "base/log.h"
#include "pager/tree.h"

#define CHUNK_LEAST_PAGES 32u
#define IMMEDIATE_CHUNKS 2u /* of a source that answers at once, then the faults are looked at again */
#define PAUSE_NS (1000u * 1000)
#define HINT_STEPS 17u      /* leaves looked at around a fault: eight before, eight behind */
#define SAMPLE_NS (50u * 1000 * 1000)
#define LOOKS 64u           /* leaves looked at for one chunk */

_Static_assert(MIGRATE_CHUNKS == REQUESTS, "a chunk is a request");

static void set_state(struct tree *tree, enum migrate_state state)
{
	tree->stats->migrate_state = state;
}

static uint64_t processor_ns(void)
{
	struct timespec used;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

void migrate_start(struct tree *tree, uint64_t rate_bytes)
{
	struct migration *migration = &tree->migration;
	uint64_t now = clock_now_ns();
	if (!migration->known) {
		pace_init(&migration->pace, CHUNK_LEAST_PAGES * PAGE_BYTES, REQUEST_PAGES * PAGE_BYTES, rate_bytes, now);
		migration->known = true;
	}
	pace_set_rate(&migration->pace, rate_bytes, now);
	if (!migration->on)
		for (struct space *space = tree->spaces; space; space = space->next)
			space->fill_begun = false;
	migration->on = true;
	tree->stats->migrate_rate_bytes = rate_bytes;
	tree->stats->migrate_started_ns = now;
	migration->processor_ns = processor_ns();
	tree->stats->migrate_from_pages = tree->stats->migrated_pages;
	set_state(tree, MIGRATE_RUNNING);
}

void migrate_stop(struct tree *tree)
{
	if (tree->migration.on)
		set_state(tree, MIGRATE_STOPPED);
	tree->migration.on = false;
}

void migrate_lift_budget(struct tree *tree)
{
	if (!tree->budget.budget_pages)
		return;
	log_info("the budget of %lu pages is lifted", tree->budget.budget_pages);
	residency_plan(&tree->budget, 0);
	tree->migration.lifted = true;
	tree->stats->budget_pages = tree->stats->reserve_pages = 0;
}

/* The statistics outlive a pager: what they say of the dead one's transfer holds on. */
void migrate_go_on(struct tree *tree)
{
	struct pager_stats *stats = tree->stats;
	uint64_t state = stats->migrate_state, from_pages = stats->migrate_from_pages, started_ns = stats->migrate_started_ns;
	if (state == MIGRATE_NONE)
		return;
	if (!stats->budget_pages)
		migrate_lift_budget(tree);
	migrate_start(tree, stats->migrate_rate_bytes);
	stats->migrate_from_pages = from_pages;
	stats->migrate_started_ns = started_ns;
	if (state == MIGRATE_STOPPED)
		migrate_stop(tree);
}

/* ---- what comes next ---- */

struct chunk {
	struct page_range ranges[REQUEST_PAGES];
	size_t count;
	uint64_t pages, most; /* so many at most */
};

/* Adds the remote pages of [pgno, end) as far as there is room. Returns where it stopped. */
static uint64_t gather(const struct space *space, uint64_t pgno, uint64_t end, struct chunk *chunk)
{
	while (pgno < end && chunk->pages < chunk->most) {
		uint64_t pages = table_next_run(&space->table, PAGE_REMOTE, &pgno, end, chunk->most - chunk->pages);
		if (!pages)
			return end;
		chunk->ranges[chunk->count++] = (struct page_range){ pgno, pages };
		chunk->pages += pages;
		pgno += pages;
	}
	return pgno;
}

/* An order may name a page twice, by whatever made it; a request may not. */
static bool is_taken(const struct chunk *chunk, const struct order_run *run)
{
	for (size_t i = 0; i < chunk->count; i++)
		if (run->pgno < chunk->ranges[i].pgno + chunk->ranges[i].pages && chunk->ranges[i].pgno < run->pgno + run->pages)
			return true;
	return false;
}

/* In the order of an earlier run. Its replay goes on by itself, a little at a time; what it has asked for is not remote any more.
 * */
static struct space *in_recorded_order(struct tree *tree, struct chunk *chunk)
{
	struct migration *migration = &tree->migration;
	const struct record *record = &tree->record;
	struct space *chosen = NULL;
	for (unsigned looks = 0; migration->order_at < record->order_runs && looks < LOOKS; looks++) {
		const struct order_run *run = &record->order[migration->order_at];
		struct space *space = tree->spaces;
		while (space && (space->closed || space->vpid <= 0 || (uint64_t)space->vpid != run->label))
			space = space->next;
		if (chosen && space && (space != chosen || chunk->pages == chunk->most || is_taken(chunk, run)))
			break;
		uint64_t end = run->pgno + run->pages, at = run->pgno + migration->order_page;
		at = space ? gather(space, at, end, chunk) : end;
		if (chunk->pages)
			chosen = space ? space : chosen;
		migration->order_page = at - run->pgno;
		if (at < end)
			break; /* the chunk is full */
		migration->order_at++;
		migration->order_page = 0;
	}
	return chunk->pages ? chosen : NULL;
}

/* Around the latest faults: their own leaf, the next, the one before, and so on outwards. */
static struct space *around_faults(struct tree *tree, struct chunk *chunk)
{
	struct migration *migration = &tree->migration;
	for (unsigned looks = 0; migration->hint_count && looks < LOOKS; looks++) {
		struct migrate_hint *hint = &migration->hint[(migration->hint_top - 1) % MIGRATE_HINTS];
		struct space *space = space_find(tree, hint->space);
		uint32_t step = hint->step++;
		if (!space || step >= HINT_STEPS) {
			migration->hint_top--;
			migration->hint_count--;
			continue;
		}
		uint64_t leaf = hint->pgno / LEAF_PAGES, distance = (step + 1) / 2;
		if (step % 2 == 0 && leaf < distance)
			continue;
		leaf = step % 2 ? leaf + distance : leaf - distance;
		gather(space, leaf * LEAF_PAGES, (leaf + 1) * LEAF_PAGES, chunk);
		if (chunk->pages)
			return space;
	}
	return NULL;
}

/* Beside pages that were touched: leaves exist only where something happened, the newest last. */
/* true: there is more to look at. */
static bool beside_touched(struct space *space, struct chunk *chunk)
{
	const struct table *table = &space->table;
	if (!space->fill_begun)
		space->fill_leaf = table->leaf_top;
	space->fill_begun = true;
	for (unsigned looks = 0; space->fill_leaf && chunk->pages < chunk->most && looks < LOOKS; looks++) {
		const struct leaf *leaf = &table->leaves[space->fill_leaf - 1];
		uint64_t end = leaf->pgno + LEAF_PAGES;
		bool used = leaf->pgno != UINT64_MAX && leaf->nonzero;
		if (!used || gather(space, leaf->pgno, end, chunk) >= end)
			space->fill_leaf--; /* else the chunk is full: the rest of it is next */
	}
	return space->fill_leaf > 0;
}

static void by_address(struct space *space, struct chunk *chunk)
{
	if (!space->table.counts[PAGE_REMOTE])
		return;
	space->fill_at = gather(space, space->fill_at, UINT64_MAX, chunk);
	if (!chunk->pages)
		space->fill_at = gather(space, 0, UINT64_MAX, chunk); /* once more from the start: some may have been put back */
}

/* Restored tasks come first: most children end soon, and those forked from a parent that is whole are whole. */
static bool children_wait(const struct tree *tree)
{
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed && space->vpid && space->table.counts[PAGE_REMOTE])
			return true;
	return false;
}

/* The space whose turn it is, with the pages to ask for; NULL: nothing is left, or (*more) nothing was found so soon. */
static struct space *choose(struct tree *tree, struct chunk *chunk, bool *more)
{
	const struct migration *migration = &tree->migration;
	bool first_only = children_wait(tree);
	chunk->count = chunk->pages = 0;
	chunk->most = pace_chunk_bytes(&migration->pace) / PAGE_BYTES;
	struct space *space = around_faults(tree, chunk);
	if (!space)
		space = in_recorded_order(tree, chunk);
	if (space)
		return space;
	*more = migration->order_at < tree->record.order_runs;
	for (space = tree->spaces; space; space = space->next) {
		if (space->closed || (first_only && !space->vpid) || !space->table.counts[PAGE_REMOTE])
			continue;
		*more = true;
		bool searching = beside_touched(space, chunk);
		if (!searching && !chunk->pages)
			by_address(space, chunk);
		if (chunk->pages)
			return space;
	}
	return NULL;
}

/* ---- how much ---- */

/* Below the edge at which eviction would begin to prepare, and some room for what the tree itself adds. What is not in the tables
 * (program text, shared memory) is looked at more often meanwhile. */
static bool has_room(struct tree *tree, uint64_t now)
{
	const struct residency_budget *budget = &tree->budget;
	if (!budget->budget_pages)
		return true;
	tree->next_sample_ns = DP_MIN(tree->next_sample_ns, now + DP_MAX(SAMPLE_NS, 8 * tree->sample_cost_ns));
	return !residency_should_stage(budget, tree_used_pages(tree) + REQUEST_PAGES + budget->budget_pages / 32);
}

static bool wardens_left(struct tree *tree)
{
	bool left = false;
	for (struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed)
			left |= !evict_drain(space);
	return left;
}

void migrate_request_ended(struct tree *tree, uint32_t number)
{
	struct migration *migration = &tree->migration;
	struct pace_chunk chunk = migration->chunk[number];
	if (!chunk.bytes)
		return;
	migration->chunk[number].bytes = 0;
	migration->bytes_under_way -= chunk.bytes;
	tree->stats->migrated_pages += chunk.bytes / PAGE_BYTES;
	pace_delivered(&migration->pace, chunk, clock_now_ns());
}

static int ask(struct space *space, const struct chunk *chunk, uint64_t now)
{
	struct tree *tree = space->tree;
	struct migration *migration = &tree->migration;
	uint32_t number = tree->request_free[tree->request_free_count - 1]; /* the one that is taken next */
	int ret = install_fill(space, chunk->ranges, chunk->count);
	if (ret)
		return ret;
	struct pace_chunk sent = pace_sent(&migration->pace, chunk->pages * PAGE_BYTES, now);
	if (!tree->request[number].space) { /* a source that answers at once */
		tree->stats->migrated_pages += chunk->pages;
		return 0;
	}
	migration->chunk[number] = sent;
	migration->bytes_under_way += sent.bytes;
	return 0;
}

/* The pager may have to wait for nothing: what the state is then. */
static void nothing_left(struct tree *tree)
{
	bool under_way = tree->in_flight > 0;
	for (const struct space *space = tree->spaces; space; space = space->next)
		under_way |= !space->closed && space->table.counts[PAGE_STAGED];
	struct pager_stats *stats = tree->stats;
	if (under_way || stats->migrate_state == MIGRATE_DONE)
		return;
	set_state(tree, MIGRATE_DONE);
	uint64_t now = clock_now_ns();
	log_info("transfer done: %lu pages in %.3f s, %.3f s of processor time, window %lu KiB, backed off %lu times",
		 stats->migrated_pages - stats->migrate_from_pages, (double)(now - stats->migrate_started_ns) / 1e9,
		 (double)(processor_ns() - tree->migration.processor_ns) / 1e9,
		 pace_window_bytes(&tree->migration.pace, now) >> 10, tree->migration.pace.backed_off);
}

/* Whether one more chunk may be asked for now: 0, or ns to wait (UINT64_MAX: an answer or a turn of the loop tells). */
static uint64_t must_wait(struct tree *tree, uint64_t now)
{
	struct migration *migration = &tree->migration;
	if (migration->faults_seen != migration->hint_top)
		pace_fault(&migration->pace, now);
	migration->faults_seen = migration->hint_top;
	uint64_t next = migration->bytes_under_way + pace_chunk_bytes(&migration->pace);
	if (migration->bytes_under_way && next > pace_window_bytes(&migration->pace, now)) {
		pace_full(&migration->pace);
		return UINT64_MAX;
	}
	if (tree->request_free_count <= REQUESTS / 4) /* kept for demand */
		return UINT64_MAX;
	if (!has_room(tree, now)) {
		set_state(tree, MIGRATE_AT_BUDGET);
		return UINT64_MAX;
	}
	return pace_wait_ns(&migration->pace, now);
}

static uint64_t transfer(struct tree *tree)
{
	bool immediate = tree->source->ops->fd(tree->source) < 0, more = false;
	uint64_t installed = tree->stats->installed_pages;
	for (unsigned asked = 0; !immediate || asked < IMMEDIATE_CHUNKS; asked++) {
		uint64_t now = clock_now_ns(), wait = must_wait(tree, now);
		struct chunk chunk;
		if (wait)
			return wait;
		struct space *space = choose(tree, &chunk, &more);
		if (!space && !more)
			nothing_left(tree);
		if (!space)
			return more ? 0 : UINT64_MAX;
		set_state(tree, MIGRATE_RUNNING);
		int ret = ask(space, &chunk, now);
		if (ret && ret != -EAGAIN)
			tree_fail(tree, ret, "fetch page %#lx", chunk.ranges[0].pgno << PAGE_SHIFT);
		if (ret)
			return PAUSE_NS;
	}
	/* Nothing installed: an event is being waited for, or memory. */
	return tree->stats->installed_pages > installed ? 0 : PAUSE_NS;
}

uint64_t migrate_work(struct tree *tree)
{
	struct migration *migration = &tree->migration;
	struct pager_stats *stats = tree->stats;
	if (tree->config->fill && !migration->known)
		migrate_start(tree, tree->config->fill_rate_bytes);
	if (!tree->finished || tree->frozen)
		return UINT64_MAX;
	if (migration->lifted) {
		if (wardens_left(tree))
			return PAUSE_NS;
		migration->lifted = false;
	}
	if (!migration->on)
		return UINT64_MAX;
	uint64_t now = clock_now_ns();
	pace_faults(&migration->pace, stats->fault_remote.count, stats->fault_remote.sum_ns, now);
	stats->migrate_share = migration->pace.share;
	stats->migrate_backed_off = migration->pace.backed_off;
	stats->migrate_window_bytes = pace_window_bytes(&migration->pace, now);
	return transfer(tree);
}

bool migrate_is_whole(const struct space *space)
{
	const struct tree *tree = space->tree;
	const uint64_t *counts = space->table.counts;
	return tree->migration.on && !tree->budget.budget_pages && tree->running && !tree->frozen && !tree->deferred_count &&
	       !counts[PAGE_REMOTE] && !counts[PAGE_IN_FLIGHT] && !counts[PAGE_STAGED] && !counts[PAGE_DAMAGED] &&
	       space->warden.state == WARDEN_ABSENT;
}
