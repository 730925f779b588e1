/* Fetching ahead: which pages are asked for besides the one that faulted, and what became of them.
 *
 * The page that a thread waits for goes out first, alone or with its neighbours; guesses follow as requests of their own, which
 * the pool may answer later. A guess is only ever made for pages that are remote, while the budget has room, and while requests
 * are free. */
#include "pager/tree.h"

#include <errno.h>

/* Guesses may take this part of the requests and no more, so that demand and fill find some. */
#define FREE_REQUESTS (REQUESTS / 2)
#define OWED_PAGES 32u
#define ROOM_WAIT_NS (500u * 1000)

void ahead_used(struct space *space, uint32_t page)
{
	uint8_t *at = table_page(&space->table, page);
	if (!(*at & PAGE_PREFETCHED))
		return;
	*at &= (uint8_t)~PAGE_PREFETCHED;
	space->tree->stats->prefetch_used_pages++;
	heat_used(&space->table, page);
	prefetch_outcome(&space->prefetcher, 1, 0);
}

void ahead_wasted(struct space *space, uint32_t page)
{
	uint8_t *at = table_page(&space->table, page);
	if (!(*at & PAGE_PREFETCHED))
		return;
	*at &= (uint8_t)~PAGE_PREFETCHED;
	space->tree->stats->prefetch_wasted_pages++;
	prefetch_outcome(&space->prefetcher, 0, 1);
}

void ahead_late(struct space *space, uint64_t pgno, uint32_t page)
{
	if (!(*table_page(&space->table, page) & PAGE_PREFETCHED))
		return;
	ahead_used(space, page);
	prefetch_late(&space->prefetcher, pgno);
}

/* The stream went on behind these pages: so they were used. */
static void prove_used(struct space *space, const struct prefetch_run *run)
{
	for (uint32_t i = 0; i < run->pages; i++) {
		uint32_t page = table_find(&space->table, run->pgno + (uint64_t)(run->stride * i));
		if (page != NO_PAGE)
			ahead_used(space, page);
	}
}

/* Pages gathered for one request. */
struct guess {
	struct page_range range[REQUEST_PAGES];
	uint32_t ranges, pages;
};

static void guess_add(struct guess *guess, uint64_t pgno)
{
	struct page_range *last = guess->ranges ? &guess->range[guess->ranges - 1] : NULL;
	guess->pages++;
	if (last && last->pgno + last->pages == pgno)
		last->pages++;
	else if (last && pgno + 1 == last->pgno) /* backwards */
		*last = (struct page_range){ pgno, last->pages + 1 };
	else
		guess->range[guess->ranges++] = (struct page_range){ pgno, 1 };
}

/* How many pages more the budget has room for, but for a few that faults may need meanwhile. */
static uint64_t room(const struct tree *tree)
{
	uint64_t used = tree_used_pages(tree) + tree->budget.headroom_pages / 8, budget = tree->budget.budget_pages;
	return !budget ? UINT64_MAX : budget > used ? budget - used : 0;
}

/* Sends what was gathered. false: not now; an error other than that ends the tree. */
static bool guess_send(struct space *space, struct guess *guess)
{
	if (!guess->pages)
		return true;
	int ret = space->tree->request_free_count > FREE_REQUESTS ? install_ahead(space, guess->range, guess->ranges) : -EAGAIN;
	if (ret && ret != -EAGAIN)
		tree_fail(space->tree, ret, "fetch pages ahead");
	for (uint32_t i = 0; !ret && i < guess->ranges; i++)
		record_note(space, &space->tree->record, guess->range[i].pgno, guess->range[i].pages);
	guess->ranges = guess->pages = 0;
	return !ret;
}

/* The rest of the run is asked for when there is room, unless a fault comes first. Its first page is the trigger where none was
 * left before it. */
static void note_owed(struct space *space, const struct prefetch_advice *advice, const struct prefetch_run *run,
		      const struct prefetch_asked *asked)
{
	bool is_trigger = !run->chunk || asked->trigger == UINT64_MAX;
	uint32_t done = (uint32_t)((int64_t)(asked->cut - run->pgno) / run->stride) + is_trigger;
	if (advice->stream < 0 || done >= run->pages)
		return;
	space->owed = *run;
	space->owed.pgno += (uint64_t)(run->stride * done);
	space->owed.pages -= done;
	space->owed_advice.stream = advice->stream;
	space->owed_advice.owner = advice->owner;
}

/* Asks for what is remote of a run. `joined` of its pages have been asked for with the demanded page. false: there was no room
 * for all of it; the stream goes on where it was cut. */
static bool follow_run(struct space *space, const struct prefetch_advice *advice, const struct prefetch_run *run, uint32_t joined)
{
	struct guess guess = { .ranges = 0 };
	struct prefetch_asked asked = { .pages = joined, .trigger = UINT64_MAX, .cut = UINT64_MAX };
	/* What is not wanted at once leaves half of the room to what will be. */
	uint64_t left = run->trigger ? room(space->tree) / 2 : room(space->tree);
	if (run->trigger && left < OWED_PAGES)
		left = 0;
	uint32_t from = joined; /* what is gathered begins here */
	for (uint32_t i = joined; i < run->pages && !space->closed; i++) {
		uint64_t pgno = run->pgno + (uint64_t)(run->stride * i);
		if (table_state(&space->table, pgno) != PAGE_REMOTE)
			continue;
		if (run->trigger && asked.trigger == UINT64_MAX) {
			asked.trigger = pgno;
			continue;
		}
		if (!left--) {
			asked.cut = pgno;
			break;
		}
		guess_add(&guess, pgno);
		uint32_t pages = guess.pages;
		if (pages == REQUEST_PAGES) {
			if (!guess_send(space, &guess)) {
				asked.cut = run->pgno + (uint64_t)(run->stride * from);
				break;
			}
			asked.pages += pages;
			from = i + 1;
		}
	}
	uint32_t pages = guess.pages;
	if (!space->closed && guess_send(space, &guess))
		asked.pages += pages;
	else
		asked.cut = run->pgno + (uint64_t)(run->stride * from);
	prefetch_asked(&space->prefetcher, advice, run, &asked);
	space->tree->stats->prefetched_by[advice->owner] += asked.pages;
	if (asked.cut != UINT64_MAX)
		note_owed(space, advice, run, &asked);
	return asked.cut == UINT64_MAX;
}

void ahead_work(struct tree *tree)
{
	for (struct space *space = tree->spaces; space && !tree->failure; space = space->next) {
		struct prefetch_run *owed = &space->owed;
		if (!owed->pages || space->closed || tree->frozen)
			continue;
		uint64_t left = room(tree) / 2;
		if (left < DP_MIN(owed->pages, OWED_PAGES))
			continue; /* small pieces are not worth a request each */
		struct guess guess = { .ranges = 0 };
		uint32_t steps = 0;
		for (; steps < owed->pages && guess.pages < DP_MIN(left, (uint64_t)REQUEST_PAGES); steps++) {
			uint64_t pgno = owed->pgno + (uint64_t)(owed->stride * steps);
			if (table_state(&space->table, pgno) == PAGE_REMOTE)
				guess_add(&guess, pgno);
		}
		uint32_t pages = guess.pages;
		if (!guess_send(space, &guess))
			continue;
		prefetch_went_on(&space->prefetcher, &space->owed_advice, owed, steps, pages);
		tree->stats->prefetched_by[space->owed_advice.owner] += pages;
		owed->pgno += (uint64_t)(owed->stride * steps);
		owed->pages -= steps;
	}
}

/* How many pages of a forward run may go with the faulting page: one request, one copy, one waking. */
static uint32_t joined_pages(struct space *space, const struct prefetch_run *run, uint64_t pgno)
{
	uint32_t pages = 0;
	if (run->stride != 1 || run->trigger || run->pgno != pgno + 1)
		return 0;
	uint64_t limit = DP_MIN(room(space->tree), (uint64_t)REQUEST_PAGES);
	while (pages < run->pages && pages + 1 < limit && table_state(&space->table, run->pgno + pages) == PAGE_REMOTE)
		pages++;
	return pages;
}

/* A scan that is faster than pages leave waits for them here rather than page by page: with room for a chunk it faults once in 64
 * pages. */
static bool wait_for_room(struct space *space, uint64_t pgno, uint64_t read_ns)
{
	uint64_t enough = DP_MIN(REQUEST_PAGES, space->tree->budget.headroom_pages / 2);
	return room(space->tree) < enough && prefetch_follows(&space->prefetcher, pgno) &&
	       clock_now_ns() - read_ns < ROOM_WAIT_NS;
}

int ahead_fault(struct space *space, uint64_t pgno, uint64_t read_ns)
{
	struct prefetch_advice advice;
	/* Before CRIU has put every area in its place, a page beside the one that faulted may have none yet. */
	if (!space->tree->finished || space->tree->frozen) {
		record_note(space, &space->tree->record, pgno, 1);
		return install_request(space, pgno, 1, CLASS_DEMAND, read_ns);
	}
	if (wait_for_room(space, pgno, read_ns))
		return -EAGAIN;
	size_t area = rangeset_find(&space->registered, pgno << PAGE_SHIFT);
	uint64_t start = area < space->registered.count ? space->registered.ranges[area].start >> PAGE_SHIFT : 0;
	space->owed.pages = 0;
	prefetch_fault(&space->prefetcher, start, pgno, &advice);
	prove_used(space, &advice.proven);
	uint32_t joined = advice.runs ? joined_pages(space, &advice.run[0], pgno) : 0;
	int ret = install_request(space, pgno, 1 + joined, CLASS_DEMAND, read_ns);
	if (!ret)
		record_note(space, &space->tree->record, pgno, 1 + joined);
	for (uint32_t i = 0; !ret && i < advice.runs && !space->closed; i++)
		if (!follow_run(space, &advice, &advice.run[i], i == 0 ? joined : 0))
			break;
	return ret;
}
