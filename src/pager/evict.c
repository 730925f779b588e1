/* The way out: cold pages go to staging (MOVE), changed ones to the source, and away (DROP) when they were not touched meanwhile.
 *
 * One warden does one thing at a time; each turn of the loop advances each space that needs it by one step, so that a fault
 * never waits for more than one batch. */
#include "pager/tree.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include "base/log.h"

#define PAUSE_NS (20u * 1000 * 1000)
#define MOVED_ON (NO_PAGE - 1) /* in the place of a slot's page: it is remote already, by the content that is on its way */

int staging_init(struct staging *staging, uint64_t capacity)
{
	memset(staging, 0, sizeof(*staging));
	staging->page = calloc(capacity, sizeof(*staging->page));
	staging->state = calloc(capacity, sizeof(*staging->state));
	staging->capacity = capacity;
	return staging->page && staging->state ? 0 : -ENOMEM;
}

void staging_done(struct staging *staging)
{
	free(staging->page);
	free(staging->state);
	memset(staging, 0, sizeof(*staging));
}

uint64_t staging_address(const struct space *space, uint32_t page)
{
	return space->warden.staging + (uint64_t)*table_link(&space->table, page) * PAGE_BYTES;
}

void staging_release(struct space *space, uint32_t page, enum page_state state)
{
	struct staging *staging = &space->staging;
	uint32_t at = *table_link(&space->table, page);
	assert(at < staging->capacity && staging->page[at] == page && staging->state[at] != SLOT_EMPTY);
	bool zeros = staging->state[at] == SLOT_ZEROS, pending = staging->state[at] == SLOT_PENDING;
	if (!pending)
		staging->state[at] = SLOT_GARBAGE;
	staging->page[at] = pending && state == PAGE_REMOTE ? MOVED_ON : NO_PAGE;
	staging->held--;
	space->tree->stats->staged_pages--;
	if (zeros && state == PAGE_REMOTE)
		state = PAGE_ZERO;
	/* A copy that the source has not acknowledged is none. */
	table_change(&space->table, page, state, 0, zeros || pending ? PAGE_HAS_COPY : 0);
}

/* ---- from local to staging ---- */

static int by_page_number(const void *first, const void *second)
{
	uint64_t a = *(const uint64_t *)first, b = *(const uint64_t *)second;
	return a < b ? -1 : a > b;
}

/* Takes the coldest local pages off the queues, as ascending page numbers. */
static uint32_t choose_victims(struct space *space, uint64_t *victims, uint32_t limit)
{
	struct table *table = &space->table;
	uint32_t count = 0;
	/* Pages that were just made exclusive come first: the sooner they go, the fewer copies there are. */
	space->second_try = space->again_count > 0;
	for (uint32_t i = 0; i < space->again_count; i++) {
		uint8_t now = *table_page(table, space->again_page[i]);
		if ((now & PAGE_STATE_MASK) != PAGE_LOCAL || (now & PAGE_QUEUED))
			continue;
		if (count < limit)
			victims[count++] = table_pgno(table, space->again_page[i]);
		else
			table_enqueue(table, space->again_page[i], QUEUE_SMALL);
	}
	space->again_count = 0;
	for (uint32_t looked = 0; !space->second_try && count < limit && looked < 8 * limit;
	     looked++) {
		bool small = residency_take_small(table->queue[QUEUE_SMALL].length, table->queue[QUEUE_MAIN].length);
		uint32_t page = table_dequeue(table, small ? QUEUE_SMALL : QUEUE_MAIN);
		if (page == NO_PAGE)
			page = table_dequeue(table, small ? QUEUE_MAIN : QUEUE_SMALL);
		if (page == NO_PAGE)
			break;
		if ((*table_page(table, page) & PAGE_STATE_MASK) == PAGE_LOCAL)
			victims[count++] = table_pgno(table, page);
	}
	qsort(victims, count, sizeof(*victims), by_page_number);
	return count;
}

/* Lays victims out as runs of the warden's ring, one slot a page from the head of staging on. Returns pages laid out. */
static uint32_t lay_out(struct space *space, const uint64_t *victims, uint32_t count)
{
	struct staging *staging = &space->staging;
	struct warden_ring *ring = space->warden.ring;
	uint32_t runs = 0, at = 0;
	while (at < count && runs < WARDEN_RUNS) {
		uint64_t slot = (staging->head + at) % staging->capacity;
		uint32_t pages = 1;
		while (at + pages < count && pages < 64 && victims[at + pages] == victims[at] + pages && slot + pages < staging->capacity)
			pages++;
		ring->run[runs++] = (struct warden_run){
			.from = victims[at] << PAGE_SHIFT,
			.to = space->warden.staging + slot * PAGE_BYTES,
			.pages = pages,
		};
		at += pages;
	}
	ring->run_count = runs;
	return at;
}

/* What MOVE could not take: not there any more, or shared or pinned, or (an event is unread, the area cannot) for later. */
static void not_moved(struct space *space, const struct warden_run *run, uint32_t i, uint32_t page)
{
	struct table *table = &space->table;
	if (run->missing >> i & 1) {
		table_change(table, page, PAGE_ZERO, 0, (uint8_t)~(PAGE_STATE_MASK | PAGE_QUEUED));
		return;
	}
	bool busy = run->busy >> i & 1;
	if (busy && !space->second_try) { /* in no queue until it was tried again */
		space->unshare_page[space->unshare_count++] = page;
		return;
	}
	space->tree->stats->busy_pages += busy;
	table_enqueue(table, page, QUEUE_MAIN);
}

/* Books the result of MOVE; fills `remote` with what to read from staging. Returns pages moved. */
static uint32_t book_moved(struct space *space, struct iovec *remote, uint32_t *remote_count)
{
	struct staging *staging = &space->staging;
	const struct warden_ring *ring = space->warden.ring;
	uint32_t moved = 0;
	*remote_count = 0;
	for (uint32_t r = 0; r < ring->run_count; r++) {
		const struct warden_run *run = &ring->run[r];
		for (uint32_t i = 0; i < run->pages; i++) {
			uint32_t page = table_find(&space->table, (run->from >> PAGE_SHIFT) + i);
			uint64_t slot = (run->to - space->warden.staging) / PAGE_BYTES + i;
			staging->state[slot] = SLOT_EMPTY;
			staging->page[slot] = NO_PAGE;
			if (r >= ring->runs_tried || !(run->done >> i & 1)) {
				not_moved(space, run, i, page);
				continue;
			}
			staging->page[slot] = page;
			staging->state[slot] = SLOT_CLEAN;
			table_change(&space->table, page, PAGE_STAGED, 0, 0);
			*table_link(&space->table, page) = (uint32_t)slot;
			moved++;
			struct iovec *last = *remote_count ? &remote[*remote_count - 1] : NULL;
			char *address = (char *)(uintptr_t)(space->warden.staging + slot * PAGE_BYTES);
			if (last && (char *)last->iov_base + last->iov_len == address)
				last->iov_len += PAGE_BYTES;
			else
				remote[(*remote_count)++] = (struct iovec){ address, PAGE_BYTES };
		}
	}
	staging->present += moved;
	staging->held += moved;
	space->tree->stats->staged_pages += moved;
	space->tree->stats->moved_pages += moved;
	return moved;
}

static struct write_batch *batch_new(struct tree *tree)
{
	for (unsigned i = 0; i < WRITE_BATCHES; i++)
		if (!tree->batch[i].space)
			return &tree->batch[i];
	return NULL;
}

/* Sends a message to the source and must succeed before anything else happens (P2): a full queue is waited for. */
static int insist(struct tree *tree, struct space *space, const struct page_range *ranges, size_t count, const struct iovec *data,
		  size_t data_count, uint64_t cookie)
{
	struct source *source = tree->source;
	for (;;) {
		int ret = data ? source->ops->put(source, space->source_space, ranges, count, data, data_count, cookie)
			       : source->ops->drop(source, space->source_space, ranges, count, cookie);
		if (ret != -EAGAIN)
			return ret;
		ret = source->ops->receive(source);
		if (ret < 0)
			return ret;
	}
}

struct gathering {
	struct page_range put[MOVE_PAGES], zero[MOVE_PAGES];
	struct iovec data[MOVE_PAGES];
	size_t puts, zeros, put_pages;
};

static void add_range(struct page_range *ranges, size_t *count, uint64_t pgno)
{
	if (*count && ranges[*count - 1].pgno + ranges[*count - 1].pages == pgno)
		ranges[*count - 1].pages++;
	else
		ranges[(*count)++] = (struct page_range){ pgno, 1 };
}

/* Clean, changed or all zero: decided by content, since MOVE loses the kernel's written bit. */
static void sort_out(struct space *space, uint32_t moved, struct gathering *gathering)
{
	struct staging *staging = &space->staging;
	struct tree *tree = space->tree;
	uint64_t at = staging->head;
	for (uint32_t i = 0; i < moved; at++) {
		uint64_t slot = at % staging->capacity;
		if (staging->state[slot] == SLOT_EMPTY)
			continue;
		const uint8_t *content = tree->buffer + (uint64_t)i++ * PAGE_BYTES;
		uint32_t page = staging->page[slot];
		uint8_t now = *table_page(&space->table, page);
		uint64_t pgno = table_pgno(&space->table, page);
		if (page_is_zero(content)) {
			staging->state[slot] = SLOT_ZEROS;
			if (now & PAGE_HAS_COPY)
				add_range(gathering->zero, &gathering->zeros, pgno);
			table_change(&space->table, page, PAGE_STAGED, 0, PAGE_HAS_COPY);
			continue;
		}
		uint64_t hash = page_hash(content);
		if ((now & PAGE_HAS_COPY) && *table_hash(&space->table, page) == hash)
			continue;
		ahead_used(space, page); /* it was written */
		staging->state[slot] = SLOT_PENDING;
		*table_hash(&space->table, page) = hash;
		table_change(&space->table, page, PAGE_STAGED, PAGE_HAS_COPY, 0);
		add_range(gathering->put, &gathering->puts, pgno);
		gathering->data[gathering->put_pages++] = (struct iovec){ (void *)content, PAGE_BYTES };
	}
}

static int write_back(struct space *space, uint32_t slots, uint32_t moved)
{
	struct tree *tree = space->tree;
	struct write_batch *batch = batch_new(tree);
	struct gathering gathering = { .puts = 0 };
	assert(batch); /* checked before the move */
	sort_out(space, moved, &gathering);
	int ret = 0;
	if (gathering.put_pages) {
		*batch = (struct write_batch){ .space = space, .first_slot = space->staging.head, .slots = slots, .messages = 1 };
		/* Neighbours in the buffer are joined. */
		size_t count = 0;
		for (size_t i = 0; i < gathering.put_pages; i++) {
			struct iovec *last = count ? &gathering.data[count - 1] : NULL;
			if (last && (char *)last->iov_base + last->iov_len == gathering.data[i].iov_base)
				last->iov_len += PAGE_BYTES;
			else
				gathering.data[count++] = gathering.data[i];
		}
		tree->stats->written_back_pages += gathering.put_pages;
		ret = insist(tree, space, gathering.put, gathering.puts, gathering.data, count, COOKIE_WRITE | (uint64_t)(batch - tree->batch));
	}
	if (!ret && gathering.zeros)
		ret = insist(tree, space, gathering.zero, gathering.zeros, NULL, 0, COOKIE_IGNORED);
	return ret;
}

static void move_out(struct space *space, uint32_t limit)
{
	struct tree *tree = space->tree;
	struct staging *staging = &space->staging;
	uint64_t victims[MOVE_PAGES];
	uint32_t count = choose_victims(space, victims, DP_MIN(limit, MOVE_PAGES));
	if (!count) {
		space->evict_after_ns = clock_now_ns() + PAUSE_NS;
		return;
	}
	uint32_t laid_out = lay_out(space, victims, count);
	int ret = warden_move(&space->warden);
	if (ret) {
		space_lost(space);
		return;
	}
	struct iovec remote[MOVE_PAGES], local;
	uint32_t remotes;
	uint32_t moved = book_moved(space, remote, &remotes);
	for (uint32_t i = laid_out; i < count; i++)
		table_enqueue(&space->table, table_find(&space->table, victims[i]), QUEUE_MAIN);
	local = (struct iovec){ tree->buffer, (size_t)moved * PAGE_BYTES };
	if (moved && process_vm_readv(space->warden.pid, &local, 1, remote, remotes, 0) != (ssize_t)local.iov_len) {
		space_lost(space); /* staged pages are present (P4): only the end of the mm explains it */
		return;
	}
	ret = write_back(space, laid_out, moved);
	staging->head += laid_out;
	if (ret)
		tree_fail(tree, ret, "write pages back");
	if (!moved && !space->unshare_count)
		space->evict_after_ns = clock_now_ns() + PAUSE_NS; /* an unread event, or nothing that can leave */
}

/* ---- from staging to away ---- */

/* Slots at the tail that hold nothing which is still needed here; neighbours only, so that one DROP takes them. */
static uint64_t droppable(const struct space *space, uint64_t limit)
{
	const struct staging *staging = &space->staging;
	uint64_t count = 0;
	while (count < limit && staging->tail + count < staging->head) {
		uint64_t slot = (staging->tail + count) % staging->capacity;
		if (staging->state[slot] == SLOT_PENDING || staging->state[slot] == SLOT_STUCK || (count && slot == 0))
			break;
		count++;
	}
	return count;
}

static void drop_slot(struct space *space, uint64_t slot)
{
	struct staging *staging = &space->staging;
	struct pager_stats *stats = space->tree->stats;
	uint32_t page = staging->page[slot];
	if (staging->state[slot] != SLOT_EMPTY)
		staging->present--;
	if (page < MOVED_ON) {
		bool zeros = staging->state[slot] == SLOT_ZEROS, main = *table_page(&space->table, page) & PAGE_MAIN;
		ahead_wasted(space, page);
		stats->clean_dropped_pages += !zeros && !main;
		stats->zero_pages += zeros;
		stats->evicted_pages++;
		staging_release(space, page, zeros ? PAGE_ZERO : PAGE_REMOTE);
		*table_page(&space->table, page) &= (uint8_t)~(PAGE_PREFETCHED | PAGE_HAS_COPY);
		if (!zeros) { /* remembered: if it comes back soon, it goes to the main queue */
			*table_link(&space->table, page) = space->evictions++;
			*table_page(&space->table, page) |= PAGE_MAIN;
		}
	}
	staging->state[slot] = SLOT_EMPTY;
}

static void drop_out(struct space *space, uint64_t count)
{
	struct staging *staging = &space->staging;
	uint64_t slot = staging->tail % staging->capacity;
	if (warden_drop(&space->warden, space->warden.staging + slot * PAGE_BYTES, count * PAGE_BYTES)) {
		space_lost(space);
		return;
	}
	for (uint64_t i = 0; i < count; i++)
		drop_slot(space, slot + i);
	staging->dropping = count;
}

void evict_warden_done(struct space *space)
{
	struct warden *warden = &space->warden;
	if (warden->state != WARDEN_READY || !warden_finished(warden))
		return;
	if (warden->ring->command == WARDEN_DROP) {
		space->staging.tail += space->staging.dropping;
		space->staging.dropping = 0;
	} else if (warden->ring->command == WARDEN_UNSHARE) {
		for (uint32_t i = 0; i < warden->ring->run_count; i++) {
			space->tree->stats->unshared_pages += warden->ring->run[i].done & 1;
			uint32_t page = table_find(&space->table, warden->ring->run[i].from >> PAGE_SHIFT);
			if (page != NO_PAGE)
				space->again_page[space->again_count++] = page;
		}
	}
}

/* Pages shared with a relative (or once shared) are made the process's own; the next MOVE takes them. */
static void unshare(struct space *space)
{
	struct warden_ring *ring = space->warden.ring;
	ring->run_count = 0;
	for (uint32_t i = 0; i < space->unshare_count; i++) {
		uint32_t page = space->unshare_page[i];
		if ((*table_page(&space->table, page) & PAGE_STATE_MASK) != PAGE_LOCAL)
			continue;
		ring->run[ring->run_count++] = (struct warden_run){ .from = table_pgno(&space->table, page) << PAGE_SHIFT, .pages = 1 };
	}
	space->unshare_count = 0;
	if (ring->run_count && warden_unshare(&space->warden))
		space_lost(space);
}

/* ---- the source's answers ---- */

/* The source could not take pages: they are the process's again, and nothing is evicted for a while. */
static void write_failed(struct space *space, struct write_batch *batch, int error)
{
	struct staging *staging = &space->staging;
	if (space->shared || error != -ENOSPC) {
		tree_fail(space->tree, error, "write pages back");
		return;
	}
	log_error("the pool is full: nothing of process %d is evicted for a second", space->pid);
	for (uint64_t at = batch->first_slot; at < batch->first_slot + batch->slots; at++) {
		uint64_t slot = at % staging->capacity;
		uint32_t page = staging->page[slot];
		if (staging->state[slot] != SLOT_PENDING)
			continue;
		if (page == MOVED_ON) {
			tree_fail(space->tree, error, "write moved pages back");
			return;
		}
		staging->state[slot] = page == NO_PAGE ? SLOT_GARBAGE : SLOT_STUCK;
		if (page != NO_PAGE) {
			table_change(&space->table, page, PAGE_STAGED, 0, PAGE_HAS_COPY);
			fault_serve(space, table_pgno(&space->table, page) << PAGE_SHIFT, true, clock_now_ns());
		}
	}
	space->evict_after_ns = clock_now_ns() + 1000000000u;
}

void evict_on_done(struct tree *tree, uint64_t cookie, int result)
{
	if (cookie == COOKIE_IGNORED) {
		if (result < 0 && result != -ENOENT)
			tree_fail(tree, result, "the pool refused a change");
		return;
	}
	uint64_t number = cookie & ~COOKIE_WRITE;
	if (!(cookie & COOKIE_WRITE) || number >= WRITE_BATCHES || !tree->batch[number].space) {
		tree_fail(tree, result < 0 ? result : -EPROTO, "the pool's answer");
		return;
	}
	struct write_batch *batch = &tree->batch[number];
	struct space *space = batch->space;
	struct staging *staging = &space->staging;
	batch->space = NULL;
	if (space->closed)
		return;
	if (result < 0)
		write_failed(space, batch, result);
	for (uint64_t at = batch->first_slot; at < batch->first_slot + batch->slots; at++) {
		uint64_t slot = at % staging->capacity;
		if (staging->state[slot] == SLOT_PENDING)
			staging->state[slot] = staging->page[slot] >= MOVED_ON ? SLOT_GARBAGE : SLOT_CLEAN;
	}
}

/* ---- the steps ---- */

static bool can_evict(struct space *space, uint64_t now)
{
	return !space->closed && space->pid > 0 && now >= space->evict_after_ns;
}

/* A stopped thread cannot run calls before this page is there; nobody else asks for it. */
static void bring_needed_page(struct space *space)
{
	if (space->warden.injection.needs_page)
		fault_serve(space, space->warden.injection.needs_page, true, clock_now_ns());
}

/* A warden is injected when there is something to evict for the first time. */
static void bring_warden(struct space *space, uint64_t now)
{
	struct tree *tree = space->tree;
	struct dp_err err;
	int ret;
	if (space->warden.state == WARDEN_ABSENT) {
		ret = warden_begin(&space->warden, space->pid, &err);
		ret = ret < 0 ? ret : 0;
	} else {
		ret = warden_poll(&space->warden, space->pid, space->uffd, tree->budget.staging_pages * PAGE_BYTES, &err);
		if (ret == 0)
			bring_needed_page(space);
		if (ret == 1) {
			staging_done(&space->staging);
			ret = staging_init(&space->staging, tree->budget.staging_pages);
			if (!ret)
				ret = tree_watch_fd(tree, space->warden.event_fd, &space->warden_handle);
			tree->stats->wardens++;
			log_info("warden %d placed in process %d", space->warden.pid, space->pid);
		}
	}
	if (ret < 0) {
		log_warn("%s", err.text);
		space->evict_after_ns = now + 5 * (uint64_t)PAUSE_NS;
	}
}

/* true: something was done, and there may be more. */
static bool evict_step(struct space *space, uint64_t excess, uint64_t used)
{
	struct tree *tree = space->tree;
	struct staging *staging = &space->staging;
	evict_warden_done(space);
	if (space->warden.busy)
		return false; /* its event comes */
	if (space->unshare_count) {
		unshare(space);
		return true;
	}
	uint64_t ready = droppable(space, staging->capacity / 4);
	uint64_t room = staging->capacity - (staging->head - staging->tail);
	bool urgent = excess > 0;
	if (urgent && ready >= DP_MIN(64, excess)) {
		drop_out(space, DP_MIN(ready, DP_MAX(excess, MOVE_PAGES)));
		return true;
	}
	bool want = urgent || (staging->held < staging->capacity * 3 / 4 && residency_should_stage(&tree->budget, used));
	if (want && room >= 64 && batch_new(tree) && space->table.counts[PAGE_LOCAL]) {
		move_out(space, (uint32_t)DP_MIN(room, MOVE_PAGES));
		return true;
	}
	if ((room < 64 || urgent) && ready) {
		drop_out(space, ready);
		return true;
	}
	return false;
}

bool evict_work(struct tree *tree)
{
	uint64_t used = tree_used_pages(tree);
	if (!tree->running || tree->frozen || !residency_should_stage(&tree->budget, used))
		return false;
	uint64_t now = clock_now_ns(), local = 0;
	bool more = false;
	for (struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed)
			local += space->table.counts[PAGE_LOCAL] + space->staging.present;
	uint64_t excess = residency_excess(&tree->budget, used);
	for (struct space *space = tree->spaces; space && !tree->failure; space = space->next) {
		uint64_t mine = space->table.counts[PAGE_LOCAL] + space->staging.present;
		if (!can_evict(space, now) || mine < 32 || mine < local / 64)
			continue;
		if (space->warden.state != WARDEN_READY)
			bring_warden(space, now);
		else /* each gives in proportion to what it has */
			more |= evict_step(space, excess ? DP_MAX(excess * mine / local, 1) : 0, used);
	}
	return more;
}

/* ---- for a checkpoint: nothing staged, no warden ---- */

static bool retire(struct space *space)
{
	struct warden *warden = &space->warden;
	struct dp_err err;
	if (warden->state == WARDEN_READY) {
		int ret = inject_begin(&warden->injection, space->pid, &err);
		if (ret) {
			log_warn("%s", err.text);
			return false;
		}
		warden->state = WARDEN_LEAVING;
	}
	int ret = inject_stopped(&warden->injection, &err);
	if (ret < 0)
		space_lost(space);
	else if (ret == 0)
		bring_needed_page(space);
	if (ret <= 0)
		return false;
	struct injection stopped = warden->injection;
	epoll_ctl(space->tree->epoll_fd, EPOLL_CTL_DEL, warden->event_fd, NULL);
	warden->state = WARDEN_READY;
	warden_retire(warden, space->uffd, &stopped);
	inject_leave(&stopped);
	space->tree->stats->wardens--;
	return true;
}

bool evict_drain(struct space *space)
{
	struct staging *staging = &space->staging;
	struct warden *warden = &space->warden;
	if (warden->state == WARDEN_ABSENT)
		return true;
	if (warden->state == WARDEN_STOPPING_TARGET) {
		bring_warden(space, clock_now_ns());
		return warden->state == WARDEN_ABSENT;
	}
	if (warden->state == WARDEN_LEAVING)
		return retire(space);
	evict_warden_done(space);
	if (warden->busy)
		return false;
	for (uint32_t i = 0; i < space->unshare_count; i++)
		if ((*table_page(&space->table, space->unshare_page[i]) & PAGE_STATE_MASK) == PAGE_LOCAL)
			table_enqueue(&space->table, space->unshare_page[i], QUEUE_SMALL);
	for (uint32_t i = 0; i < space->again_count; i++)
		if ((*table_page(&space->table, space->again_page[i]) & PAGE_STATE_MASK) == PAGE_LOCAL)
			table_enqueue(&space->table, space->again_page[i], QUEUE_SMALL);
	space->unshare_count = space->again_count = 0;
	if (staging->tail < staging->head) {
		uint64_t ready = droppable(space, staging->capacity);
		if (ready)
			drop_out(space, ready);
		return false;
	}
	return retire(space);
}
