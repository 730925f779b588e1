/* The way out: cold pages go to staging (MOVE), changed ones to the source, and away (DROP) when they were not touched meanwhile.
 *
 * One warden does one thing at a time; each turn of the loop advances each space that needs it by one step, so that a fault
 * never waits for more than one batch. */
#include "pager/tree.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "pager/control.h"
#include "sys/proc.h"

#define PAUSE_NS (2u * 1000 * 1000)
#define STAGE_PAUSE_NS (1000u * 1000)
#define WARDEN_PAUSE_NS (100u * 1000 * 1000)
#define MOVE_LEAST 64u  /* pages: a smaller batch is not worth the hand-off */
#define ENDING_MS 20u
#define WRITE_PAGES 64u /* compared and sent at once: faults are looked at between */

/* ---- from local to staging ---- */

static int by_page_number(const void *first, const void *second)
{
	uint64_t a = *(const uint64_t *)first, b = *(const uint64_t *)second;
	return a < b ? -1 : a > b;
}

/* P8, P10. */
static bool may_leave(const struct space *space, uint64_t pgno)
{
	return rangeset_contains(&space->registered, pgno << PAGE_SHIFT) && !doubt_covers(space, pgno);
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
		if (count < limit && may_leave(space, table_pgno(table, space->again_page[i])))
			victims[count++] = table_pgno(table, space->again_page[i]);
		else
			table_enqueue(table, space->again_page[i], QUEUE_SMALL);
	}
	space->again_count = 0;
	for (uint32_t looked = 0; !space->second_try && count < limit && looked < 8 * limit; looked++) {
		bool small = residency_take_small(table->queue[QUEUE_SMALL].length, table->queue[QUEUE_MAIN].length);
		uint32_t page = table_dequeue(table, small ? QUEUE_SMALL : QUEUE_MAIN);
		if (page == NO_PAGE) {
			small = !small;
			page = table_dequeue(table, small ? QUEUE_SMALL : QUEUE_MAIN);
		}
		if (page == NO_PAGE)
			break;
		if ((*table_page(table, page) & PAGE_STATE_MASK) != PAGE_LOCAL)
			continue;
		if (!small && *table_heat(table, page) & HEAT_TOUCHED) { /* not asked again this round */
			*table_heat(table, page) &= (uint8_t)~HEAT_TOUCHED;
			table_enqueue(table, page, QUEUE_MAIN);
			continue;
		}
		if (!may_leave(space, table_pgno(table, page))) {
			table_enqueue(table, page, QUEUE_MAIN);
			continue;
		}
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
		while (at + pages < count && pages < 64 && victims[at + pages] == victims[at] + pages &&
		       slot + pages < staging->capacity)
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
static void not_moved(struct space *space, const struct warden_run *run, uint32_t i, uint32_t page, bool changing)
{
	struct table *table = &space->table;
	if (run->missing >> i & 1 && !changing) {
		table_change(table, page, PAGE_ZERO, 0, (uint8_t)~(PAGE_STATE_MASK | PAGE_QUEUED));
		return;
	}
	bool busy = run->busy >> i & 1;
	if (busy && !space->second_try) { /* in no queue until it was tried again */
		space->unshare_page[space->unshare_count++] = page;
		return;
	}
	space->tree->stats->busy_pages += busy;
	if (run->unable >> i & 1)
		*table_heat(table, page) |= HEAT_TOUCHED; /* not asked again this round */
	table_enqueue(table, page, QUEUE_MAIN);
}

/* Books the result of MOVE. Returns pages moved. */
static uint32_t book_moved(struct space *space)
{
	struct staging *staging = &space->staging;
	const struct warden_ring *ring = space->warden.ring;
	uint32_t moved = 0;
	bool missing = false;
	for (uint32_t r = 0; r < ring->runs_tried; r++)
		missing |= ring->run[r].missing;
	/* The kernel answers the same for an area that an mremap has just taken elsewhere (P9). */
	bool changing = missing && space_is_changing(space);
	for (uint32_t r = 0; r < ring->run_count; r++) {
		const struct warden_run *run = &ring->run[r];
		for (uint32_t i = 0; i < run->pages; i++) {
			uint32_t page = table_find(&space->table, (run->from >> PAGE_SHIFT) + i);
			uint64_t slot = (run->to - space->warden.staging) / PAGE_BYTES + i;
			staging->state[slot] = SLOT_EMPTY;
			staging->page[slot] = NO_PAGE;
			if (r >= ring->runs_tried || !(run->done >> i & 1)) {
				not_moved(space, run, i, page, changing);
				continue;
			}
			staging->page[slot] = page;
			staging->state[slot] = SLOT_FRESH;
			*table_link(&space->table, page) = (uint32_t)slot; /* before it counts as staged (recover.h) */
			table_change(&space->table, page, PAGE_STAGED, 0, 0);
			moved++;
		}
	}
	staging->present += moved;
	staging->held += moved;
	space->tree->stats->moved_pages += moved;
	return moved;
}

static void move_out(struct space *space, uint32_t limit)
{
	uint64_t victims[MOVE_PAGES];
	const struct page_queue *queue = space->table.queue;
	uint32_t count = choose_victims(space, victims, DP_MIN(limit, MOVE_PAGES));
	if (!count) {
		if (!queue[QUEUE_SMALL].length && !queue[QUEUE_MAIN].length)
			space->evict_after_ns = clock_now_ns() + PAUSE_NS;
		return;
	}
	uint32_t laid_out = lay_out(space, victims, count);
	recover_announce_move(space, laid_out);
	if (warden_move(&space->warden)) {
		evict_warden_lost(space);
		for (uint32_t i = 0; i < count && !space->closed; i++) {
			uint32_t page = table_find(&space->table, victims[i]);
			if ((*table_page(&space->table, page) & PAGE_STATE_MASK) == PAGE_LOCAL)
				table_enqueue(&space->table, page, QUEUE_MAIN);
		}
		return;
	}
	uint32_t moved = book_moved(space);
	recover_booked_move(space);
	for (uint32_t i = laid_out; i < count; i++)
		table_enqueue(&space->table, table_find(&space->table, victims[i]), QUEUE_MAIN);
	space->staging.head += laid_out;
	if (!moved && !space->unshare_count)
		space->evict_after_ns = clock_now_ns() + PAUSE_NS; /* an unread event, or nothing that can leave */
}

/* ---- from staging to away ---- */

static void drop_out(struct space *space, uint64_t count)
{
	struct staging *staging = &space->staging;
	uint64_t slot = staging->tail % staging->capacity;
	recover_announce_drop(space, count);
	if (warden_drop(&space->warden, space->warden.staging + slot * PAGE_BYTES, count * PAGE_BYTES)) {
		evict_warden_lost(space);
		return;
	}
	for (uint64_t i = 0; i < count; i++)
		staging_drop_slot(space, slot + i);
	staging->dropping = count;
}

struct slots {
	struct space *space;
	uint64_t from, to; /* of the ring, in slots */
};

static void slots_present(void *context, uint64_t start, uint64_t end)
{
	struct slots *slots = context;
	struct staging *staging = &slots->space->staging;
	uint64_t first = slots->space->warden.staging;
	for (uint64_t slot = (start - first) / PAGE_BYTES; slot < (end - first) / PAGE_BYTES; slot++)
		if (staging->state[slot] == SLOT_EMPTY) {
			staging->state[slot] = SLOT_GARBAGE;
			staging->page[slot] = NO_PAGE;
			staging->present++;
		}
}

/* What the last MOVE filled: its pages are staged, whatever the warden came to say of them. */
static void settle_move(struct space *space)
{
	struct staging *staging = &space->staging;
	const struct warden_ring *ring = space->warden.ring;
	const struct space_saved *saved = space->saved;
	if (saved->move_posted != ring->posted || saved->move_booked == saved->move_posted || ring->command != WARDEN_MOVE)
		return;
	for (uint32_t r = 0; r < DP_MIN(ring->run_count, (uint32_t)WARDEN_RUNS); r++) {
		const struct warden_run *run = &ring->run[r];
		uint64_t first = (run->to - space->warden.staging) / PAGE_BYTES;
		for (uint64_t i = 0; i < run->pages && first + i < staging->capacity; i++) {
			uint32_t page = table_find(&space->table, (run->from >> PAGE_SHIFT) + i);
			if (staging->state[first + i] == SLOT_EMPTY)
				staging->page[first + i] = NO_PAGE;
			if (staging->state[first + i] != SLOT_GARBAGE || page == NO_PAGE)
				continue;
			if ((*table_page(&space->table, page) & PAGE_STATE_MASK) != PAGE_LOCAL)
				continue;
			staging->page[first + i] = page;
			staging->state[first + i] = SLOT_FRESH;
			staging->held++;
			*table_link(&space->table, page) = (uint32_t)(first + i);
			table_change(&space->table, page, PAGE_STAGED, 0, 0);
		}
	}
	staging->head = saved->head;
	recover_booked_move(space);
}

void evict_settle(struct space *space)
{
	struct staging *staging = &space->staging;
	struct slots slots = { .space = space };
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/pagemap", staging_reader(space));
	cleanup_fd int pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t start = space->warden.staging;
	int ret = pagemap_fd < 0
			  ? -errno
			  : proc_scan_present(pagemap_fd, start, start + staging->capacity * PAGE_BYTES, slots_present, &slots);
	if (ret)
		log_warn("look at the staging of process %d: %s", space->pid, strerror(-ret));
	staging->dropping = 0; /* what it did not drop is garbage now, and dropped again */
	if (space->warden.ring)
		settle_move(space);
}

void evict_warden_lost(struct space *space)
{
	/* Mostly the whole tree was killed, and its memory goes any moment. Nothing is served while that is waited for: what the
	 * last MOVE took is not known. */
	for (unsigned ms = 0; ms < ENDING_MS && !space_memory_is_gone(space); ms++)
		usleep(1000);
	if (space_memory_is_gone(space)) {
		space_lost(space);
		return;
	}
	/* What it had begun is found out as after a crash of ours, for that is the way that is proven: this pager ends, another
	 * takes over
	 * (takeover.c, take_warden) and places the next warden. */
	if (keeper_is_there(space->tree->keeper_fd)) {
		log_warn("warden %d of process %d has died: another pager goes on, and places another", space->warden.pid,
			 space->pid);
		kill(getpid(), SIGKILL);
	}
	tree_fail(space->tree, -ESRCH, "the warden of process %d has died, and nobody is left to start another pager",
		  space->pid);
}

int evict_watch_warden(struct space *space)
{
	int ret = tree_watch_fd(space->tree, space->warden.event_fd, &space->warden_handle);
	return ret ? ret : tree_watch_fd(space->tree, space->warden.pidfd, &space->warden_handle);
}

void evict_warden_event(struct space *space)
{
	if (space->warden.state != WARDEN_READY || evict_warden_done(space))
		return;
	if (warden_is_dead(&space->warden))
		evict_warden_lost(space);
	else
		warden_hear(&space->warden); /* of a command whose end was seen otherwise */
}

bool evict_warden_done(struct space *space)
{
	struct warden *warden = &space->warden;
	if (warden->state != WARDEN_READY || !warden_finished(warden))
		return false;
	if (warden->ring->command == WARDEN_DROP) {
		space->staging.tail += space->staging.dropping;
		space->staging.dropping = 0;
		recover_booked_drop(space);
	} else if (warden->ring->command == WARDEN_UNSHARE) {
		for (uint32_t i = 0; i < warden->ring->run_count; i++) {
			space->tree->stats->unshared_pages += warden->ring->run[i].done & 1;
			uint32_t page = table_find(&space->table, warden->ring->run[i].from >> PAGE_SHIFT);
			if (page != NO_PAGE)
				space->again_page[space->again_count++] = page;
		}
	}
	return true;
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
		ring->run[ring->run_count++] = (struct warden_run){ .from = table_pgno(&space->table, page) << PAGE_SHIFT,
								    .pages = 1 };
	}
	space->unshare_count = 0;
	if (ring->run_count && warden_unshare(&space->warden))
		evict_warden_lost(space);
}

/* ---- the steps ---- */

static bool can_evict(struct space *space, uint64_t now)
{
	return !space->closed && space->pid > 0 && now >= space->evict_after_ns;
}

/* A stopped thread cannot run calls before this page is there; nobody else asks for it. */
static void bring_needed_page(struct space *space)
{
	uint64_t address = __atomic_load_n(&space->warden.job->needs_page, __ATOMIC_ACQUIRE);
	if (address)
		fault_serve(space, address, true, clock_now_ns());
}

/* A warden is injected when there is something to evict for the first time. */
static void bring_warden(struct space *space, uint64_t now)
{
	struct tree *tree = space->tree;
	struct dp_err err;
	int ret;
	if (space->warden.state == WARDEN_ABSENT || space->warden.state == WARDEN_LOST) {
		if (!space_find_thread(space))
			return; /* it is ending */
		ret = warden_prepare(&space->warden);
		if (ret)
			dp_fail_errno(&err, -ret, "ring for the warden of process %d", space->pid);
		else
			recover_placing(space);
		if (!ret)
			ret = warden_begin(&space->warden, JOB_PLACE, space->thread, space->uffd,
					   tree->budget.staging_pages * PAGE_BYTES, &err);
	} else {
		ret = warden_poll(&space->warden, &err);
		if (ret == 0)
			bring_needed_page(space);
		if (ret == 1) {
			ret = space->staging.capacity ? 0 : staging_init(&space->staging, tree->budget.staging_pages);
			if (!ret)
				ret = evict_watch_warden(space);
			recover_save_warden(space);
			warden_job_over(&space->warden);
			setpriority(PRIO_PROCESS, (id_t)space->warden.pid, PAGER_NICE);
			log_info("warden %d placed in process %d", space->warden.pid, space->pid);
		}
	}
	if (ret < 0) {
		log_warn("%s", err.text);
		space->evict_after_ns = now + WARDEN_PAUSE_NS;
	}
}

static uint64_t cpu_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Booked for what was done only: to look whether there is anything to do must not cost two system calls at each fault. */
static bool did(struct tree *tree, uint64_t began_ns)
{
	tree->stats->evict_cpu_ns += cpu_now_ns() - began_ns;
	return true;
}

/* true: something was done, and there may be more. Pages are prepared for leaving ahead of need; they leave when room is
 * needed. */
static bool evict_step(struct space *space, uint64_t excess, uint64_t used, uint64_t now)
{
	struct tree *tree = space->tree;
	struct staging *staging = &space->staging;
	evict_warden_done(space);
	if (space->closed || space->warden.state != WARDEN_READY)
		return false; /* it has died */
	uint64_t fresh = staging->head - staging->written, judged = staging->written - staging->tail;
	uint64_t room = staging->capacity - fresh - judged, ahead = space->ahead.pages;
	bool urgent = excess > 0;
	if (!space->warden.busy) { /* else its event comes */
		if (space->unshare_count) {
			uint64_t began = cpu_now_ns();
			unshare(space);
			return did(tree, began);
		}
		uint64_t ready = urgent || room < MOVE_LEAST ? staging_droppable(space, staging->capacity / 4) : 0;
		/* A DROP ends where the ring does: then a few are worth one too. */
		bool worth = ready >= DP_MIN(MOVE_LEAST, excess) || (staging->tail + ready) % staging->capacity == 0;
		if (ready && ((urgent && worth) || room < MOVE_LEAST)) {
			uint64_t began = cpu_now_ns();
			drop_out(space, DP_MIN(ready, DP_MAX(excess, MOVE_PAGES)));
			return did(tree, began);
		}
		bool want = staging->held < (urgent ? ahead + excess : ahead * 3 / 4) &&
			    residency_should_stage(&tree->budget, used) && (urgent || now >= space->stage_after_ns);
		if (want && room >= MOVE_LEAST && space->table.counts[PAGE_LOCAL]) {
			uint64_t began = cpu_now_ns();
			move_out(space, (uint32_t)DP_MIN(DP_MIN(room, MOVE_PAGES), ahead / 4 + excess));
			if (ahead < tree->budget.ahead_pages) /* pages mostly come back */
				space->stage_after_ns = now + STAGE_PAUSE_NS;
			return did(tree, began);
		}
	}
	bool short_of_judged = judged < (urgent ? ahead / 4 + excess : ahead / 4) &&
			       (urgent || fresh >= ahead / 2 || room < MOVE_LEAST);
	if (!short_of_judged)
		return false;
	uint64_t began = cpu_now_ns();
	bool more = staging_write_back(space, WRITE_PAGES);
	did(tree, began);
	return more;
}

static bool retire(struct space *space);

/* A thread that was stopped for an injection goes on as soon as that is over, whether there is still anything to evict or not. */
static void finish_injections(struct tree *tree, uint64_t now)
{
	for (struct space *space = tree->spaces; space && !tree->failure; space = space->next) {
		bool lost = space->warden.state == WARDEN_LOST && can_evict(space, now);
		if (!space->closed && (lost || space->warden.state == WARDEN_STOPPING_TARGET))
			bring_warden(space, now);
		else if (!space->closed && space->warden.state == WARDEN_LEAVING)
			retire(space); /* of a freeze that ended with another pager */
	}
}

bool evict_work(struct tree *tree)
{
	uint64_t used = tree_used_pages(tree);
	for (struct space *space = tree->spaces; space && tree->running && !tree->deferred_count; space = space->next)
		if (space->stuck && !space->closed)
			staging_take_back(space);
	if (!tree->running || tree->frozen)
		return false;
	uint64_t now = clock_now_ns(), local = 0;
	finish_injections(tree, now);
	if (!residency_should_stage(&tree->budget, used))
		return false;
	bool more = false;
	for (struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed)
			local += space->table.counts[PAGE_LOCAL] + space->staging.present;
	uint64_t excess = residency_excess(&tree->budget, used);
	for (struct space *space = tree->spaces; space && !tree->failure; space = space->next) {
		uint64_t mine = space->table.counts[PAGE_LOCAL] + space->staging.present;
		if (!can_evict(space, now) || through_is_busy(tree, space) || mine < 32 || mine < local / 64)
			continue;
		if (space->warden.state == WARDEN_ABSENT)
			bring_warden(space, now);
		else if (space->warden.state == WARDEN_READY) /* each gives in proportion to what it has */
			more |= evict_step(space, excess ? DP_MAX(excess * mine / local, 1) : 0, used, now);
	}
	return more;
}

/* ---- for a checkpoint: nothing staged, no warden ---- */

/* Its thread could not be stopped: it ended, another traces it. The warden is there as before, and goes on; who wants the tree
 * frozen hears of it. */
static void not_retired(struct space *space, const char *why)
{
	char text[320];
	snprintf(text, sizeof(text), "take the warden of process %d out: %s", space->pid, why);
	log_warn("%s", text);
	if (space->warden.state == WARDEN_READY) {
		int ret = evict_watch_warden(space);
		if (ret)
			tree_fail(space->tree, ret, "watch a warden");
		recover_save_warden(space);
	}
	if (space->thread > 0 && proc_has_memory(space->thread)) /* else it is ending, or another thread serves as well */
		control_refuse(space->tree, text);
}

static bool retire(struct space *space)
{
	struct warden *warden = &space->warden;
	struct dp_err err;
	if (warden->state == WARDEN_READY) {
		if (!space_find_thread(space))
			return false; /* it is ending */
		epoll_ctl(space->tree->epoll_fd, EPOLL_CTL_DEL, warden->event_fd, NULL);
		epoll_ctl(space->tree->epoll_fd, EPOLL_CTL_DEL, warden->pidfd, NULL);
		recover_retiring(space);
		int ret = warden_begin(warden, JOB_RETIRE, space->thread, space->uffd, 0, &err);
		if (ret) {
			not_retired(space, err.text);
			return false;
		}
	}
	int ret = warden_poll(warden, &err);
	if (ret < 0) {
		warden_job_over(warden);
		not_retired(space, err.text);
	} else if (ret == 0) {
		bring_needed_page(space);
	}
	if (ret <= 0)
		return false;
	staging_done(&space->staging);
	recover_save_warden(space);
	warden_job_over(warden);
	return true;
}

bool evict_drain(struct space *space)
{
	struct staging *staging = &space->staging;
	struct warden *warden = &space->warden;
	if (space->warden_killed)
		return false; /* its memory goes any moment */
	if (warden->state == WARDEN_ABSENT)
		return true;
	if (warden->state == WARDEN_STOPPING_TARGET || warden->state == WARDEN_LOST) {
		bring_warden(space, clock_now_ns());
		return warden->state == WARDEN_ABSENT;
	}
	if (warden->state == WARDEN_LEAVING)
		return retire(space);
	evict_warden_done(space);
	if (space->closed || warden->state != WARDEN_READY || warden->busy)
		return false;
	for (uint32_t i = 0; i < space->unshare_count; i++)
		if ((*table_page(&space->table, space->unshare_page[i]) & PAGE_STATE_MASK) == PAGE_LOCAL)
			table_enqueue(&space->table, space->unshare_page[i], QUEUE_SMALL);
	for (uint32_t i = 0; i < space->again_count; i++)
		if ((*table_page(&space->table, space->again_page[i]) & PAGE_STATE_MASK) == PAGE_LOCAL)
			table_enqueue(&space->table, space->again_page[i], QUEUE_SMALL);
	space->unshare_count = space->again_count = 0;
	if (staging->tail < staging->head) {
		staging_flush(space);
		uint64_t ready = staging_droppable(space, staging->capacity);
		if (ready)
			drop_out(space, ready);
		return false;
	}
	return retire(space);
}
