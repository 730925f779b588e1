/* Putting pages into a space: by COPY, by zeros, and as the source's answers arrive. */
#include "pager/tree.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/log.h"
#include "sys/uffd.h"

/* The kernel installed it (P5): it is the process's now, and waits in a queue for its turn to leave. */
static void made_local(struct space *space, uint64_t pgno, const void *data, uint8_t flags)
{
	struct table *table = &space->table;
	uint32_t page = table_make(table, pgno);
	assert(page != NO_PAGE);
	uint8_t *at = table_page(table, page);
	bool was_remote = (*at & PAGE_STATE_MASK) == PAGE_IN_FLIGHT, demanded = *at & PAGE_DEMANDED;
	bool again = (*at & PAGE_MAIN) && was_remote;
	bool recent = was_remote && !(*at & PAGE_QUEUED) && again &&
		      residency_remembered(*table_link(table, page), space->evictions, table->counts[PAGE_LOCAL]);
	if (data && space->tree->source->writable) { /* else no page ever leaves again */
		*table_hash(table, page) = page_hash(data);
		flags |= PAGE_HAS_COPY;
	}
	if (recent)
		flags |= PAGE_MAIN;
	if (was_remote)
		flags |= *at & PAGE_PREFETCHED; /* as it was asked for, unless it was touched on its way */
	table_change(table, page, PAGE_LOCAL, flags, PAGE_DEMANDED | PAGE_PREFETCHED | PAGE_MAIN | PAGE_HAS_COPY);
	if (demanded || !was_remote)
		heat_used(table, page);
	table_enqueue(table, page, recent ? QUEUE_MAIN : QUEUE_SMALL);
}

/* A page that could not be installed for a reason that is its own. */
static enum install_result install_failed(struct space *space, uint64_t pgno, int error)
{
	uint32_t page = table_make(&space->table, pgno);
	switch (error) {
	case -EEXIST: /* there already: what the process sees is what counts */
		table_change(&space->table, page, PAGE_LOCAL, 0, PAGE_DEMANDED | PAGE_PREFETCHED | PAGE_HAS_COPY);
		table_enqueue(&space->table, page, QUEUE_SMALL);
		uffd_wake(space->uffd, pgno << PAGE_SHIFT, PAGE_BYTES);
		return INSTALL_DONE;
	case -EAGAIN:
	case -ENOMEM:
		return INSTALL_AGAIN;
	case -ESRCH:
		space_lost(space);
		return INSTALL_GONE;
	default: /* no longer mapped: the event that says so is on its way */
		uffd_wake(space->uffd, pgno << PAGE_SHIFT, PAGE_BYTES);
		return INSTALL_GONE;
	}
}

enum install_result install_pages(struct space *space, uint64_t pgno, const void *data, uint64_t pages, uint8_t flags,
				  uint64_t *installed)
{
	const uint8_t *from = data;
	uint64_t done = 0, limit = pages;
	*installed = 0;
	while (done < pages) {
		int error;
		uint64_t count = DP_MIN(limit, pages - done);
		uint64_t bytes = uffd_copy(space->uffd, (pgno + done) << PAGE_SHIFT, from + done * PAGE_BYTES, count * PAGE_BYTES,
					   space->protects, &error);
		for (uint64_t i = 0; i < bytes / PAGE_BYTES; i++)
			made_local(space, pgno + done + i, from + (done + i) * PAGE_BYTES, flags);
		done += bytes / PAGE_BYTES;
		*installed += bytes / PAGE_BYTES;
		space->tree->stats->installed_pages += bytes / PAGE_BYTES;
		if (!error)
			continue;
		if ((error == -ENOENT || error == -EINVAL || error == -EFAULT) && count > 1) {
			limit = 1; /* the run may span two areas: one page at a time tells */
			continue;
		}
		enum install_result result = install_failed(space, pgno + done, error);
		if (result == INSTALL_AGAIN || space->closed) {
			*installed = done;
			return result;
		}
		if (result == INSTALL_GONE) {
			/* Not mapped, and every event has been followed: the page is gone (a child lacks its parent's
			 * MADV_DONTFORK areas). */
			bool unmapped = error == -ENOENT && !space->tree->reading_events && !space_is_changing(space);
			table_change(&space->table, table_make(&space->table, pgno + done), unmapped ? PAGE_ZERO : PAGE_REMOTE, 0,
				     PAGE_DEMANDED);
		}
		done++;
		limit = pages;
	}
	*installed = done;
	return INSTALL_DONE;
}

enum install_result install_zeros(struct space *space, uint64_t pgno, uint64_t pages, bool write)
{
	/* A write gets a page of its own at once; a read gets the shared zero page, which the first write replaces, and of which
	 * nobody hears: it cannot be protected. */
	int error;
	uint64_t bytes = pages * PAGE_BYTES;
	uint64_t done;
	if (write || space->protects)
		done = uffd_copy(space->uffd, pgno << PAGE_SHIFT, space->tree->zero_page, bytes, space->protects, &error);
	else
		done = uffd_zero(space->uffd, pgno << PAGE_SHIFT, bytes, &error);
	for (uint64_t i = 0; i < done / PAGE_BYTES; i++)
		made_local(space, pgno + i, NULL, 0);
	space->tree->stats->zero_filled_pages += done / PAGE_BYTES;
	if (!error)
		return INSTALL_DONE;
	return done ? INSTALL_DONE : install_failed(space, pgno, error);
}

static uint64_t request_cookie(const struct tree *tree, const struct request *request)
{
	return (uint64_t)request->generation << 8 | (uint64_t)(request - tree->request);
}

static void request_end(struct tree *tree, struct request *request)
{
	request->space = NULL;
	request->generation = (request->generation + 1) & 0xffffff;
	tree->request_free[tree->request_free_count++] = (uint32_t)(request - tree->request);
	migrate_request_ended(tree, (uint32_t)(request - tree->request));
}

/* Takes a request and makes its pages in flight. `ahead`: all but the page that is demanded are a guess of the prefetcher. */
static struct request *request_new(struct space *space, const struct page_range *ranges, size_t count, uint64_t read_ns,
				   bool ahead)
{
	struct tree *tree = space->tree;
	struct request *request = &tree->request[tree->request_free[--tree->request_free_count]];
	request->space = space;
	request->pages = 0;
	request->asked_ns = read_ns;
	request->demanded = 0;
	request->parked = 0;
	request->answered = false;
	request->lowest = UINT64_MAX;
	request->highest = 0;
	for (size_t range = 0; range < count; range++) {
		request->lowest = DP_MIN(request->lowest, ranges[range].pgno);
		request->highest = DP_MAX(request->highest, ranges[range].pgno + ranges[range].pages - 1);
		for (uint64_t i = 0; i < ranges[range].pages; i++) {
			uint64_t pgno = ranges[range].pgno + i;
			uint32_t page = table_make(&space->table, pgno);
			bool demanded = read_ns && !request->pages;
			assert(page != NO_PAGE && (*table_page(&space->table, page) & PAGE_STATE_MASK) == PAGE_REMOTE);
			assert(request->pages < REQUEST_PAGES);
			table_change(&space->table, page, PAGE_IN_FLIGHT,
				     demanded ? PAGE_DEMANDED
				     : ahead  ? PAGE_PREFETCHED
					      : 0,
				     0);
			request->pgno[request->pages++] = pgno;
		}
	}
	request->wanted = request->pages == 64 ? ~0ull : (1ull << request->pages) - 1;
	tree->in_flight += request->pages;
	return request;
}

static int request_ranges(struct space *space, const struct page_range *ranges, size_t count, enum request_class class,
			  uint64_t read_ns, bool ahead)
{
	struct tree *tree = space->tree;
	/* A few are kept for demand. */
	if (tree->request_free_count <= (class == CLASS_DEMAND ? 0u : REQUESTS / 4))
		return -EAGAIN;
	struct request *request = request_new(space, ranges, count, read_ns, ahead);
	uint32_t pages = request->pages; /* a source that answers at once has ended the request when get returns */
	int ret = tree->source->ops->get(tree->source, class, space->source_space, ranges, count, request_cookie(tree, request));
	if (ret) {
		for (uint32_t i = 0; i < pages; i++)
			table_change(&space->table, table_find(&space->table, request->pgno[i]), PAGE_REMOTE, 0,
				     PAGE_DEMANDED | PAGE_PREFETCHED);
		tree->in_flight -= pages;
		request_end(tree, request);
		return ret;
	}
	tree->stats->requests++;
	if (class == CLASS_DEMAND)
		migrate_note_fault(&tree->migration, space->number, ranges[0].pgno);
	if (ahead)
		tree->stats->prefetched_pages += pages - (class == CLASS_DEMAND);
	return 0;
}

int install_request(struct space *space, uint64_t pgno, uint64_t pages, enum request_class class, uint64_t read_ns)
{
	struct page_range range = { pgno, pages };
	return request_ranges(space, &range, 1, class, read_ns, class == CLASS_DEMAND);
}

int install_ahead(struct space *space, const struct page_range *ranges, size_t count)
{
	return request_ranges(space, ranges, count, CLASS_PREFETCH, 0, true);
}

int install_fill(struct space *space, const struct page_range *ranges, size_t count)
{
	return request_ranges(space, ranges, count, CLASS_PREFETCH, 0, false);
}

void install_cancel(struct space *space, uint64_t pgno, uint64_t pages, enum page_state state)
{
	struct tree *tree = space->tree;
	for (unsigned i = 0; i < REQUESTS; i++) {
		struct request *request = &tree->request[i];
		if (request->space != space || request->lowest >= pgno + pages || request->highest < pgno)
			continue;
		for (uint32_t at = 0; at < request->pages; at++) {
			uint64_t number = request->pgno[at];
			if (number < pgno || number >= pgno + pages || !(request->wanted >> at & 1))
				continue;
			request->wanted &= ~(1ull << at);
			uint32_t page = table_find(&space->table, number);
			if (page != NO_PAGE && (*table_page(&space->table, page) & PAGE_STATE_MASK) == PAGE_IN_FLIGHT)
				table_change(&space->table, page, state, 0, PAGE_DEMANDED | PAGE_PREFETCHED);
			uffd_wake(space->uffd, number << PAGE_SHIFT, PAGE_BYTES);
		}
	}
}

static uint8_t *parked_data(const struct tree *tree, const struct request *request)
{
	return tree->parked_data + (uint64_t)(request - tree->request) * REQUEST_PAGES * PAGE_BYTES;
}

/* Pages that cannot be installed yet, mostly for an event whose thread has not run since, wait here: asking for them again
 * would cost a round trip, and a process that is never without such an event would never get them. */
static void park(struct request *request, uint32_t first, uint32_t pages, const uint8_t *data)
{
	struct tree *tree = request->space->tree;
	uint64_t mask = (pages == 64 ? ~0ull : (1ull << pages) - 1) << first;
	uint8_t *to = parked_data(tree, request) + (uint64_t)first * PAGE_BYTES;
	if (to != data)
		memcpy(to, data, (uint64_t)pages * PAGE_BYTES);
	tree->parked_requests += !request->parked;
	request->parked |= mask;
	request->wanted |= mask;
	tree->in_flight += pages;
}

static void answer_run(struct request *request, uint32_t first, uint32_t pages, const uint8_t *data)
{
	struct space *space = request->space;
	struct tree *tree = space->tree;
	uint64_t installed = 0;
	enum install_result result = INSTALL_AGAIN; /* P7: an event that is still to be followed may be about these pages */
	if (!tree->reading_events)
		result = install_pages(space, request->pgno[first], data, pages, 0, &installed);
	if (space->closed)
		return;
	if (result == INSTALL_AGAIN)
		park(request, first + (uint32_t)installed, pages - (uint32_t)installed, data + installed * PAGE_BYTES);
	if (request->asked_ns && first <= request->demanded && request->demanded < first + installed) {
		tree->stats->faults[FAULT_REMOTE]++;
		histogram_add(&tree->stats->fault_remote, clock_now_ns() - request->asked_ns);
	}
	if (tree->frozen)
		space->installed_since_freeze += installed;
}

/* Pages of the mask have come; `data` is where the request's first page would be. */
static void answer(struct request *request, uint64_t mask, const uint8_t *data)
{
	for (uint32_t at = 0; at < request->pages && !request->space->closed;) {
		uint32_t run = at;
		while (run < request->pages && (mask & request->wanted) >> run & 1 &&
		       request->pgno[run] == request->pgno[at] + run - at)
			request->wanted &= ~(1ull << run++);
		if (run > at) {
			answer_run(request, at, run - at, data + (uint64_t)at * PAGE_BYTES);
			at = run;
		} else {
			at++; /* none of these, or something happened to it meanwhile (P3) */
		}
	}
}

/* Which of the request's pages the range begins with; REQUEST_PAGES where it was not asked for. */
static uint32_t place_in_request(const struct request *request, struct page_range range)
{
	uint32_t first = 0;
	while (first < request->pages && request->pgno[first] != range.pgno)
		first++;
	bool whole = range.pages && range.pages <= request->pages - first &&
		     request->pgno[first + range.pages - 1] == range.pgno + range.pages - 1;
	return whole ? first : REQUEST_PAGES;
}

/* The request that an answer is to, and which of its pages the answer begins with; NULL: the tree fails. */
static struct request *request_answered(struct tree *tree, uint64_t cookie, struct page_range range, uint32_t *first)
{
	struct request *request = &tree->request[cookie & 0xff];
	bool known = (cookie & 0xff) < REQUESTS && request->generation == cookie >> 8 && request->space;
	*first = known ? place_in_request(request, range) : REQUEST_PAGES;
	if (*first == REQUEST_PAGES) {
		tree_fail(tree, -EPROTO, "the pages' source answered what was not asked");
		return NULL;
	}
	tree->in_flight -= range.pages;
	return request;
}

static void request_end_answered(struct tree *tree, struct request *request, bool last)
{
	request->answered |= last;
	if (request->answered && !request->parked)
		request_end(tree, request);
}

#define DAMAGE_LINES 100u

/* SIGBUS for whoever waits for the page, and whoever touches it later; never zeros, never what came. */
static void poison_page(struct space *space, uint64_t pgno, uint32_t page, uint64_t read_ns)
{
	/* P7, and the kernel's own "not now": the page is asked for again, and comes damaged again. */
	int result = space->tree->reading_events ? -EAGAIN : uffd_poison(space->uffd, pgno << PAGE_SHIFT, PAGE_BYTES);
	switch (result) {
	case 0:
		space->tree->stats->corrupt_pages++;
		break;
	case -EAGAIN:
		table_change(&space->table, page, PAGE_REMOTE, 0, 0);
		fault_defer(space, pgno << PAGE_SHIFT, false, read_ns ? read_ns : clock_now_ns());
		break;
	case -ENOTTY:
	case -EINVAL:
		tree_fail(space->tree, -EIO,
			  "page at %#" PRIx64
			  " of process %d is damaged in the pool, and this kernel cannot give a bus error there "
			  "(UFFDIO_POISON, Linux 6.6)",
			  pgno << PAGE_SHIFT, space->pid);
		break;
	default:
		install_failed(space, pgno, result);
	}
}

/* `what`: is wrong with it in the pool. */
static void take_damaged(struct request *request, uint32_t at, const char *what)
{
	static unsigned lines; /* the log is not for ever */
	struct space *space = request->space;
	uint64_t pgno = request->pgno[at];
	uint32_t page = table_find(&space->table, pgno);
	if (!(request->wanted >> at & 1))
		return; /* P3 */
	request->wanted &= ~(1ull << at);
	bool demanded = *table_page(&space->table, page) & PAGE_DEMANDED;
	table_change(&space->table, page, PAGE_DAMAGED, 0, PAGE_DEMANDED | PAGE_PREFETCHED | PAGE_HAS_COPY);
	if (lines++ < DAMAGE_LINES)
		log_error("page at %#" PRIx64
			  " of process %d %s%s; distri-proc pool scrub --repair-from may repair it",
			  pgno << PAGE_SHIFT, space->pid, what, demanded ? ": the process gets a bus error (SIGBUS)" : "");
	if (demanded)
		poison_page(space, pgno, page, request->asked_ns);
}

static void answer_damaged(struct tree *tree, uint64_t cookie, struct page_range range, bool last, const char *what)
{
	uint32_t first;
	struct request *request = request_answered(tree, cookie, range, &first);
	if (!request)
		return;
	for (uint32_t i = 0; i < range.pages && !request->space->closed; i++)
		take_damaged(request, first + i, what);
	request_end_answered(tree, request, last);
}

void install_on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	answer_damaged(context, cookie, range, last, "is damaged in the pool");
}

/* Only what the source has is asked for, and its zeros are known here (PAGE_ZERO): where it says zero, it has lost the page
 * (P11). */
void install_on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	if (!data) {
		answer_damaged(context, cookie, range, last, "is missing from the pool, which had it");
		return;
	}
	uint32_t first;
	struct request *request = request_answered(context, cookie, range, &first);
	if (!request)
		return;
	uint64_t mask = (range.pages == 64 ? ~0ull : (1ull << range.pages) - 1) << first;
	answer(request, mask, (const uint8_t *)data - (uint64_t)first * PAGE_BYTES);
	request_end_answered(context, request, last);
}

void install_parked(struct tree *tree)
{
	for (unsigned i = 0; tree->parked_requests && i < REQUESTS; i++) {
		struct request *request = &tree->request[i];
		uint64_t mask = request->parked;
		if (!request->space || !mask)
			continue;
		request->parked = 0;
		tree->parked_requests--;
		tree->in_flight -= (uint64_t)__builtin_popcountll(mask);
		answer(request, mask, parked_data(tree, request));
		request_end_answered(tree, request, false);
	}
}
