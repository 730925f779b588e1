#include "migrate/pull.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/base.h"
#include "base/log.h"
#include "client/link.h"
#include "migrate/arriving_store.h"

#define WINDOW_PAGES 512u /* asked for at once in the background, */
#define REQUEST_PAGES 64u /* in requests of so many */
#define REQUEST_RANGES 64u
#define NEAR_PAGES 32u    /* with one that somebody waits for */
#define WAIT_MS 20
#define NO_SPACE UINT32_MAX

struct pull {
	struct store *store;   /* borrowed */
	struct slots *counted; /* borrowed */
	struct pull_run *runs; /* ascending by label, then by page */
	uint64_t *labels;      /* of each run */
	size_t run_count, run_room;
	uint64_t *slots;       /* of all runs, one after the other */
	uint64_t slot_count, slot_room;
	uint32_t *index_of;    /* of each slot of the store, + 1; 0: none */
	uint64_t index_count;
	struct link *link;     /* NULL: not begun, or over */
	uint64_t instance, epoch;
	size_t run;            /* what is asked for next in the background, */
	uint64_t at;           /* and how far in it */
	uint64_t under_way;    /* pages that were asked for and have not come */
};

static void lost(const char *why) __attribute__((noreturn));
static void lost(const char *why)
{
	log_error("pages of the source cannot be had any more: %s", why);
	_exit(1); /* U1 */
}

int pull_open(struct pull **pull, struct store *store, struct slots *slots, struct dp_err *err)
{
	*pull = calloc(1, sizeof(**pull));
	if (!*pull)
		return dp_fail_errno(err, ENOMEM, "pull pages");
	(*pull)->store = store;
	(*pull)->counted = slots;
	return 0;
}

static int make_room(struct pull *pull, uint64_t pages, uint64_t highest_slot)
{
	if (pull->run_count == pull->run_room) {
		size_t room = pull->run_room ? pull->run_room * 2 : 64;
		struct pull_run *runs = reallocarray(pull->runs, room, sizeof(*runs));
		pull->runs = runs ? runs : pull->runs;
		uint64_t *labels = reallocarray(pull->labels, room, sizeof(*labels));
		pull->labels = labels ? labels : pull->labels;
		if (!runs || !labels)
			return -ENOMEM;
		pull->run_room = room;
	}
	if (pull->slot_count + pages > pull->slot_room) {
		uint64_t room = DP_MAX(pull->slot_room * 2, pull->slot_count + pages);
		uint64_t *slots = reallocarray(pull->slots, room, sizeof(*slots));
		if (!slots)
			return -ENOMEM;
		pull->slots = slots;
		pull->slot_room = room;
	}
	if (highest_slot >= pull->index_count) {
		uint64_t count = DP_MAX(pull->index_count * 2, highest_slot + 1);
		uint32_t *index_of = reallocarray(pull->index_of, count, sizeof(*index_of));
		if (!index_of)
			return -ENOMEM;
		memset(index_of + pull->index_count, 0, (count - pull->index_count) * sizeof(*index_of));
		pull->index_of = index_of;
		pull->index_count = count;
	}
	return 0;
}

int pull_add(struct pull *pull, uint64_t label, uint64_t pgno, const uint64_t *slots, uint64_t pages)
{
	uint64_t highest = 0;
	for (uint64_t i = 0; i < pages; i++)
		highest = DP_MAX(highest, slots[i]);
	if (pull->slot_count + pages >= UINT32_MAX)
		return -E2BIG;
	int ret = make_room(pull, pages, highest);
	if (!ret)
		ret = arriving_store_expect(pull->store, slots, pages);
	if (ret)
		return ret;
	pull->labels[pull->run_count] = label;
	pull->runs[pull->run_count++] = (struct pull_run){ NO_SPACE, pgno, pages, pull->slot_count };
	for (uint64_t i = 0; i < pages; i++) {
		pull->index_of[slots[i]] = (uint32_t)(pull->slot_count + i + 1);
		pull->slots[pull->slot_count + i] = slots[i];
	}
	pull->slot_count += pages;
	return 0;
}

/* ---- what comes ---- */

/* The run with this page of a space. The runs of a space follow each other. */
static const struct pull_run *find_run(const struct pull *pull, uint32_t space, uint64_t pgno)
{
	for (size_t low = 0, high = pull->run_count; low < high;) {
		size_t middle = low + (high - low) / 2;
		const struct pull_run *run = &pull->runs[middle];
		if (run->space == space && run->pgno <= pgno && pgno - run->pgno < run->pages)
			return run;
		if (run->space < space || (run->space == space && run->pgno < pgno))
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

/* cookie: the space. */
static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct pull *pull = context;
	for (uint64_t i = 0; i < range.pages; i++) {
		const struct pull_run *run = find_run(pull, (uint32_t)cookie, range.pgno + i);
		const uint8_t *page = data ? (const uint8_t *)data + i * PAGE_BYTES : NULL;
		if (!run)
			lost("it sent a page that was not asked for");
		uint64_t slot = pull->slots[run->first + (range.pgno + i - run->pgno)];
		if (!arriving_store_expects(pull->store, slot))
			continue;
		if (arriving_store_take(pull->store, slot, page) < 0)
			lost("there is no memory for them");
		if (page)
			pull->counted->digests[slot] = page_digest(page);
	}
	pull->under_way -= DP_MIN(pull->under_way, range.pages);
}

static void on_done(void *context, uint64_t cookie, int result)
{
	if (result < 0)
		lost(strerror(-result));
}

static void on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	lost("what it sends is not what it has");
}

static void receive(struct pull *pull)
{
	const struct client_handler handler = { pull, on_pages, on_done, on_damaged };
	int got;
	do {
		got = link_receive(pull->link, &handler);
		if (got < 0)
			lost(*link_why(pull->link) ? link_why(pull->link) : strerror(-got));
	} while (got > 0);
	link_work(pull->link);
}

/* ---- what is asked for ---- */

static bool is_wanted(const struct pull *pull, const struct pull_run *run, uint64_t at)
{
	return arriving_store_expects(pull->store, pull->slots[run->first + at]);
}

/* false: there is no room for it now. */
static bool ask(struct pull *pull, enum request_class class, uint32_t space, const struct page_range *ranges, size_t count)
{
	const struct client_handler handler = { pull, on_pages, on_done, on_damaged };
	uint64_t pages = 0;
	for (size_t i = 0; i < count; i++)
		pages += ranges[i].pages;
	int ret = link_get(pull->link, &handler, class, space, ranges, count, space);
	if (ret == -EAGAIN)
		return false;
	if (ret < 0)
		lost(strerror(-ret));
	pull->under_way += pages;
	return true;
}

/* The next wanted page at or behind *run, *at. false: there is none. */
static bool find_wanted(const struct pull *pull, size_t *run, uint64_t *at)
{
	for (; *run < pull->run_count; ++*run, *at = 0)
		for (; *at < pull->runs[*run].pages; ++*at)
			if (is_wanted(pull, &pull->runs[*run], *at))
				return true;
	return false;
}

/* The next pages in order, of one space. */
static size_t gather(const struct pull *pull, size_t *run, uint64_t *at, struct page_range *ranges)
{
	const uint32_t space = pull->runs[*run].space;
	size_t count = 0;
	for (uint64_t pages = 0; pages < REQUEST_PAGES && find_wanted(pull, run, at); pages++, ++*at) {
		const struct pull_run *of = &pull->runs[*run];
		struct page_range *last = count ? &ranges[count - 1] : NULL;
		if (of->space != space)
			break;
		if (last && last->pgno + last->pages == of->pgno + *at)
			last->pages++;
		else if (count < REQUEST_RANGES)
			ranges[count++] = (struct page_range){ of->pgno + *at, 1 };
		else
			break;
	}
	return count;
}

static void ask_in_background(struct pull *pull)
{
	while (pull->under_way < WINDOW_PAGES && find_wanted(pull, &pull->run, &pull->at)) {
		struct page_range ranges[REQUEST_RANGES];
		size_t run = pull->run;
		uint64_t at = pull->at;
		uint32_t space = pull->runs[run].space;
		size_t count = gather(pull, &run, &at, ranges);
		if (!ask(pull, CLASS_PREFETCH, space, ranges, count))
			return;
		pull->run = run;
		pull->at = at;
	}
}

static void end(struct pull *pull)
{
	struct client *client = link_disown(pull->link);
	link_free(pull->link);
	pull->link = NULL;
	if (client)
		client_instance_end(client, pull->instance, pull->epoch, NULL);
	client_close(client);
}

void pull_work(struct pull *pull)
{
	if (!pull->link)
		return;
	receive(pull);
	if (!arriving_store_left(pull->store))
		end(pull);
	else
		ask_in_background(pull);
}

void pull_fetch(void *context, uint64_t slot)
{
	struct pull *pull = context;
	if (!pull->link || slot >= pull->index_count || !pull->index_of[slot])
		lost("one was read that nobody knows of");
	uint64_t index = pull->index_of[slot] - 1;
	size_t low = 0;
	for (size_t high = pull->run_count; high - low > 1;) {
		size_t middle = low + (high - low) / 2;
		*(pull->runs[middle].first <= index ? &low : &high) = middle;
	}
	const struct pull_run *run = &pull->runs[low];
	uint64_t at = index - run->first, pages = 1;
	while (at + pages < run->pages && pages < NEAR_PAGES && is_wanted(pull, run, at + pages))
		pages++;
	const struct page_range range = { run->pgno + at, pages };
	bool asked = false;
	while (arriving_store_expects(pull->store, slot)) {
		asked = asked || ask(pull, CLASS_DEMAND, run->space, &range, 1);
		struct pollfd polled = { link_fd(pull->link), (short)(POLLIN | (link_wants_write(pull->link) ? POLLOUT : 0)), 0 };
		poll(&polled, 1, WAIT_MS);
		receive(pull);
	}
}

int pull_fd(const struct pull *pull)
{
	return pull->link ? link_fd(pull->link) : -1;
}

/* ---- begin and end ---- */

static uint32_t space_of(const struct client_attached *attached, uint64_t label)
{
	for (size_t i = 0; i < attached->space_count; i++)
		if (attached->spaces[i].label == label)
			return (uint32_t)(attached->spaces[i].space & ((UINT64_C(1) << 20) - 1));
	return NO_SPACE;
}

static int compare_runs(const void *left, const void *right)
{
	const struct pull_run *a = left, *b = right;
	if (a->space != b->space)
		return a->space < b->space ? -1 : 1;
	return (a->pgno > b->pgno) - (a->pgno < b->pgno);
}

/* Sorted for find_run, and numbered for pull_fetch again: slots and their places go along. */
static int arrange(struct pull *pull)
{
	uint64_t *slots = calloc(pull->slot_count ? pull->slot_count : 1, sizeof(*slots)), next = 0;
	if (!slots)
		return -ENOMEM;
	if (pull->run_count > 1)
		qsort(pull->runs, pull->run_count, sizeof(*pull->runs), compare_runs);
	for (size_t i = 0; i < pull->run_count; i++) {
		struct pull_run *run = &pull->runs[i];
		for (uint64_t page = 0; page < run->pages; page++) {
			slots[next + page] = pull->slots[run->first + page];
			pull->index_of[slots[next + page]] = (uint32_t)(next + page + 1);
		}
		run->first = next;
		next += run->pages;
	}
	free(pull->slots);
	pull->slots = slots;
	pull->slot_room = pull->slot_count;
	return 0;
}

int pull_begin(struct pull *pull, struct client *client, const struct endpoint *endpoint, const char *snapshot,
	       struct dp_err *err)
{
	struct client_attached attached;
	const struct link_config config = { .endpoint = endpoint, .compress = CLIENT_COMPRESS_AUTO };
	int ret = client_instance_create_resumable(client, snapshot, "landing", &attached, err);
	if (ret)
		return ret;
	for (size_t i = 0; i < pull->run_count && !ret; i++) {
		pull->runs[i].space = space_of(&attached, pull->labels[i]);
		if (pull->runs[i].space == NO_SPACE)
			ret = dp_fail(err, EBADMSG, "the source left pages of a task that it does not know");
	}
	if (!ret && arrange(pull))
		ret = dp_fail_errno(err, ENOMEM, "pull pages");
	if (!ret)
		ret = link_new(&pull->link, &config, client, &attached, err);
	pull->instance = attached.instance;
	pull->epoch = attached.epoch;
	client_attached_done(&attached);
	return ret;
}

void pull_close(struct pull *pull)
{
	if (!pull)
		return;
	if (pull->link)
		link_free(pull->link);
	free(pull->runs);
	free(pull->labels);
	free(pull->slots);
	free(pull->index_of);
	free(pull);
}
