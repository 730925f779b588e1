#include "pager/record.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "pager/tree.h"

#define STORE_AFTER_NS (5ull * 1000 * 1000 * 1000)
#define END_WAIT_MS 2000
#define RUN_BYTES (ORDER_RUNS_LIMIT * sizeof(struct order_run))
#define AHEAD_PAGES (8u * REQUEST_PAGES)         /* on their way before the tree runs */
#define AHEAD_RUNNING_PAGES (2u * REQUEST_PAGES) /* and afterwards: a fault waits behind no more */
#define LOOKS 512u                               /* runs looked at for one request */
#define TRACE_FAULTS 65536u

struct record_fault {
	uint64_t ns, pgno;
	uint32_t space, state;
};

void record_init(struct tree *tree)
{
	const struct pager_config *config = tree->config;
	struct record *record = &tree->record;
	record->gate_fd = config->gate_fd > 0 ? config->gate_fd : -1;
	record->order = config->order;
	record->order_runs = config->order_runs;
	if (config->record && tree->source->ops->order_put) {
		record->run = mmap(NULL, RUN_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		record->noting = record->run != MAP_FAILED; /* without, nothing but speed is lost */
	}
	if (config->trace_path) {
		record->trace = fopen(config->trace_path, "we");
		record->fault = calloc(TRACE_FAULTS, sizeof(*record->fault));
	}
}

void record_done(struct tree *tree)
{
	struct record *record = &tree->record;
	dp_close_fd(&record->gate_fd);
	if (record->run && record->run != MAP_FAILED)
		munmap(record->run, RUN_BYTES);
	if (record->trace)
		fclose(record->trace);
	free(record->fault);
}

/* ---- noting ---- */

void record_note_pages(struct space *space, uint64_t pgno, uint64_t pages)
{
	struct record *record = &space->tree->record;
	if (space->vpid <= 0) /* forked since: nobody could name it the next time */
		return;
	for (uint64_t i = 0; i < pages; i++, pgno++) {
		uint32_t page = table_find(&space->table, pgno);
		if (page == NO_PAGE || (table_leaf(&space->table, page)->noted >> page % LEAF_PAGES & 1))
			continue;
		struct order_run *last = record->runs ? &record->run[record->runs - 1] : NULL;
		if (last && last->label == (uint64_t)space->vpid && last->pgno + last->pages == pgno) {
			last->pages++;
		} else if (record->runs == ORDER_RUNS_LIMIT) {
			record->noting = false;
			return;
		} else {
			record->run[record->runs++] = (struct order_run){ (uint64_t)space->vpid, pgno, 1 };
		}
		table_leaf(&space->table, page)->noted |= 1ull << page % LEAF_PAGES;
	}
}

void record_fault(struct space *space, uint64_t pgno)
{
	struct record *record = &space->tree->record;
	if (record->fault && record->faults < TRACE_FAULTS)
		record->fault[record->faults++] =
			(struct record_fault){ clock_now_ns(), pgno, space->number, (uint32_t)table_state(&space->table, pgno) };
}

static void write_trace(struct tree *tree)
{
	static const char states[] = "zrils"; /* zero, remote, in flight, local, staged */
	struct record *record = &tree->record;
	for (uint32_t i = 0; record->trace && i < record->faults; i++) {
		const struct record_fault *fault = &record->fault[i];
		fprintf(record->trace, "%lu %u %lx %c\n", fault->ns - tree->stats->started_ns, fault->space, fault->pgno,
			states[fault->state]);
	}
	record->faults = 0;
}

/* ---- storing ---- */

static void store(struct tree *tree)
{
	struct record *record = &tree->record;
	int ret = tree->source->ops->order_put(tree->source, record->run, record->runs, COOKIE_ORDER);
	if (ret == -EAGAIN)
		return; /* the next turn tries again */
	if (ret)
		log_warn("store the recorded order: %s", strerror(-ret));
	record->storing = !ret;
	record->stored_runs = record->runs;
	record->store_ns = UINT64_MAX;
}

void record_on_stored(struct tree *tree, int result)
{
	tree->record.storing = false;
	if (result < 0)
		log_warn("store the recorded order: %s", strerror(-result));
	else
		log_info("the order of the first %u runs of pages is stored with the snapshot", tree->record.stored_runs);
}

void record_end(struct tree *tree)
{
	struct record *record = &tree->record;
	uint64_t until = clock_now_ns() + END_WAIT_MS * 1000000ull;
	write_trace(tree);
	if (!record->run || record->run == MAP_FAILED || !tree->running)
		return;
	while (clock_now_ns() < until) {
		if (!record->storing && record->runs == record->stored_runs)
			return;
		if (!record->storing)
			store(tree);
		short events = POLLIN | (tree->source->ops->wants_write(tree->source) ? POLLOUT : 0);
		struct pollfd wait = { .fd = tree->source->ops->fd(tree->source), .events = events };
		poll(&wait, 1, END_WAIT_MS / 10);
		if (tree->source->ops->receive(tree->source) < 0)
			return;
	}
}

/* ---- replay ---- */

static struct space *space_of(const struct tree *tree, uint64_t label)
{
	for (struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed && space->vpid > 0 && (uint64_t)space->vpid == label)
			return space;
	return NULL;
}

struct batch {
	struct space *space;
	struct page_range range[REQUEST_PAGES];
	size_t ranges;
	uint64_t pages;
};

/* An order may name a page twice, by whatever made it; a request may not. */
static bool is_taken(const struct batch *batch, uint64_t pgno, uint64_t pages)
{
	for (size_t i = 0; i < batch->ranges; i++)
		if (pgno < batch->range[i].pgno + batch->range[i].pages && batch->range[i].pgno < pgno + pages)
			return true;
	return false;
}

/* The next remote pages of the order, all of one space. */
static void gather(struct tree *tree, struct batch *batch)
{
	struct record *record = &tree->record;
	for (unsigned looks = 0; record->at < record->order_runs && batch->pages < REQUEST_PAGES && looks < LOOKS; looks++) {
		const struct order_run *run = &record->order[record->at];
		struct space *space = space_of(tree, run->label);
		if (batch->space && space && space != batch->space)
			return;
		uint64_t pgno = run->pgno + record->at_page, end = run->pgno + run->pages;
		uint64_t pages = space ? table_next_run(&space->table, PAGE_REMOTE, &pgno, end, REQUEST_PAGES - batch->pages) : 0;
		if (!pages) {
			record->at++;
			record->at_page = 0;
			continue;
		}
		if (is_taken(batch, pgno, pages))
			return; /* the next request finds it on its way */
		batch->space = space;
		batch->range[batch->ranges++] = (struct page_range){ pgno, pages };
		batch->pages += pages;
		record->at_page = pgno + pages - run->pgno;
	}
}

/* One request more. false: not now. */
static bool replay(struct tree *tree)
{
	struct record *record = &tree->record;
	if (tree->in_flight >= (tree->running ? AHEAD_RUNNING_PAGES : AHEAD_PAGES) || tree->request_free_count <= REQUESTS / 2)
		return false;
	if (residency_should_stage(&tree->budget, tree_used_pages(tree) + REQUEST_PAGES)) { /* more would push pages out */
		log_info("%zu of %zu recorded runs fit the budget", record->at, record->order_runs);
		record->order_runs = record->at;
		return false;
	}
	size_t at = record->at;
	uint64_t at_page = record->at_page;
	struct batch batch = { .space = NULL };
	gather(tree, &batch);
	if (!batch.pages)
		return record->at < record->order_runs;
	int ret = install_fill(batch.space, batch.range, batch.ranges);
	if (ret == -EAGAIN) {
		record->at = at;
		record->at_page = at_page;
	} else if (ret) {
		tree_fail(tree, ret, "fetch recorded pages");
	} else {
		tree->stats->replayed_pages += batch.pages;
		record_note(batch.space, record, batch.range[0].pgno, batch.range[0].pages);
		for (size_t i = 1; i < batch.ranges; i++)
			record_note(batch.space, record, batch.range[i].pgno, batch.range[i].pages);
	}
	return !ret;
}

/* All recorded pages are there, or as many as may be: CRIU may resume the tree. */
static void open_gate(struct record *record)
{
	if (write(record->gate_fd, "\n", 1) < 0)
		log_warn("tell CRIU that the working set is there: %s", strerror(errno));
	dp_close_fd(&record->gate_fd);
	record->gate_fd = -1;
}

uint64_t record_work(struct tree *tree, uint64_t now_ns)
{
	struct record *record = &tree->record;
	if (record->faults > TRACE_FAULTS / 4)
		write_trace(tree);
	if (!tree->finished || tree->frozen)
		return UINT64_MAX;
	while (record->at < record->order_runs && !tree->failure && replay(tree))
		continue;
	if (record->gate_fd >= 0 && record->at >= record->order_runs && !tree->in_flight)
		open_gate(record);
	if (!record->noting || !tree->running)
		return UINT64_MAX;
	if (!record->store_ns)
		record->store_ns = now_ns + STORE_AFTER_NS;
	if (now_ns >= record->store_ns && record->runs > record->stored_runs && !record->storing)
		store(tree);
	return record->store_ns == UINT64_MAX ? UINT64_MAX : DP_MAX(record->store_ns, now_ns + 1000000) - now_ns;
}
