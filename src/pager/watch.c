/* Housekeeping: what no event tells. New mappings, the pids of forked children, ended and replaced memory, how much memory
 * the tree really has. */
#include "pager/tree.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "sys/proc.h"
#include "sys/uffd.h"

#define TICK_SHARED_NS (2u * 1000 * 1000) /* copies are made fast */
#define TICK_ACTIVE_NS (4u * 1000 * 1000)
#define TICK_IDLE_NS (20u * 1000 * 1000)
#define ACTIVE_FOR_NS (200u * 1000 * 1000)
#define SAMPLE_SHARED_NS (15u * 1000 * 1000)
#define SAMPLE_MUCH_NS (100u * 1000 * 1000)
#define SAMPLE_NS (1000u * 1000 * 1000)
#define LOOKS_AGAIN 3u /* for areas that cannot be watched, before it is believed */
#define LOOK_SHARE 8u  /* of the time, one part at most goes to the list of areas */
#define PROBES 16u
#define PROOFS 3u

/* ---- presence ---- */

static void absent_page(void *context, uint32_t page, uint64_t pgno)
{
	(void)pgno;
	struct space *space = context;
	if ((*table_page(&space->table, page) & PAGE_STATE_MASK) == PAGE_LOCAL)
		table_change(&space->table, page, PAGE_ZERO, 0, (uint8_t)~(PAGE_STATE_MASK | PAGE_QUEUED));
}

static void present_page(struct space *space, uint64_t pgno)
{
	uint32_t page = table_make(&space->table, pgno);
	if (page == NO_PAGE) {
		tree_fail(space->tree, -ENOMEM, "page table");
		return;
	}
	unsigned state = *table_page(&space->table, page) & PAGE_STATE_MASK;
	if (state == PAGE_ZERO || state == PAGE_REMOTE) {
		/* What the process has there is what counts, whatever else was known. */
		table_change(&space->table, page, PAGE_LOCAL, 0, (uint8_t)~(PAGE_STATE_MASK | PAGE_QUEUED));
		table_enqueue(&space->table, page, QUEUE_SMALL);
	}
}

struct look {
	struct rangeset present; /* bytes */
	int ret;
};

static void note_present(void *context, uint64_t start, uint64_t end)
{
	struct look *look = context;
	if (!look->ret)
		look->ret = rangeset_add(&look->present, start, end);
}

bool watch_reconcile(struct space *space, uint64_t start, uint64_t end, bool stopped)
{
	struct look look = { .ret = 0 };
	int ret = proc_scan_present(space->pagemap_fd, start, end, note_present, &look);
	bool changing = !ret && !stopped && space_is_changing(space); /* after the look: what was unread then still is (P9) */
	uint64_t at = start >> PAGE_SHIFT, last = end >> PAGE_SHIFT;
	if (look.ret)
		tree_fail(space->tree, look.ret, "list of pages");
	else if (ret && ret != -ESRCH)
		log_warn("scan the pages of process %d: %s", space->pid, strerror(-ret));
	for (size_t i = 0; !ret && !changing && !look.ret && i < look.present.count; i++) {
		uint64_t from = look.present.ranges[i].start >> PAGE_SHIFT, to = look.present.ranges[i].end >> PAGE_SHIFT;
		if (from > at)
			table_each(&space->table, at, from - at, absent_page, space);
		for (at = from; at < to; at++)
			present_page(space, at);
	}
	if (!ret && !changing && !look.ret && last > at)
		table_each(&space->table, at, last - at, absent_page, space);
	rangeset_done(&look.present);
	return !changing;
}

/* ---- new mappings ---- */

struct area_search {
	struct space *space;
	struct rangeset fresh;   /* bytes: in no area that is known to be watched */
	struct rangeset watched; /* bytes: of those, what is now */
	bool changing;           /* an event is unread: of some it could not be told */
	bool refused;            /* some are not watched: gone and come again meanwhile, or of a kind that cannot be */
};

static int note_area(void *context, const struct proc_area *area)
{
	struct area_search *search = context;
	struct space *space = search->space;
	if (!area->anonymous || warden_owns(&space->warden, area->start, area->end))
		return 0;
	uint64_t at = area->start;
	for (size_t i = rangeset_find(&space->registered, at); at < area->end; i++) {
		const struct range *known = i < space->registered.count ? &space->registered.ranges[i] : NULL;
		uint64_t until = known && known->start < area->end ? known->start : area->end;
		if (at < until && rangeset_add(&search->fresh, at, until))
			return -ENOMEM;
		if (!known || known->start >= area->end)
			break;
		at = known->end;
	}
	return 0;
}

/* The kernel passes over holes without a word when it registers a range, and a hole may have been filled by a new, unwatched area
 * since, of which nobody will tell. So each area is asked for afterwards: a page of zeros where none is yet changes nothing, and
 * is refused where the descriptor does not watch, or while an event is unread. If it is taken, the whole area was watched when it
 * was listed, and has not been changed since; every later change will come as an event. */
static int prove_area(void *context, const struct proc_area *area)
{
	struct area_search *search = context;
	for (size_t i = rangeset_find(&search->fresh, area->start);
	     i < search->fresh.count && search->fresh.ranges[i].start < area->end; i++) {
		uint64_t start = DP_MAX(area->start, search->fresh.ranges[i].start),
			 end = DP_MIN(area->end, search->fresh.ranges[i].end);
		int error = -ENOENT;
		if (area->anonymous)
			uffd_zero(search->space->uffd, start, PAGE_BYTES, &error);
		if (error && error != -EEXIST) {
			search->changing |= error == -EAGAIN;
			search->refused |= error != -EAGAIN;
		} else if (rangeset_add(&search->watched, start, end)) {
			return -ENOMEM;
		}
	}
	return 0;
}

static void assert_not_away(void *context, uint32_t page, uint64_t pgno)
{
	(void)pgno;
	struct space *space = context;
	unsigned state = *table_page(&space->table, page) & PAGE_STATE_MASK;
	assert(state != PAGE_REMOTE && state != PAGE_STAGED);
	(void)state;
}

/* What is present in it already is the process's own. Nothing of it can have left, for it was in no area that was watched. */
static int take_area(struct space *space, struct range area)
{
	uint64_t pgno = area.start >> PAGE_SHIFT, pages = (area.end - area.start) >> PAGE_SHIFT;
	table_each(&space->table, pgno, pages, assert_not_away, space);
	int ret = table_clear(&space->table, pgno, pages, true);
	if (!ret)
		ret = rangeset_add(&space->registered, area.start, area.end);
	recover_save_ranges(space, SAVED_REGISTERED);
	through_protect_area(space, area.start, area.end);
	if (!watch_reconcile(space, area.start, area.end, false))
		doubt_note(space, area.start, area.end, false);
	space->tree->stats->areas_found++;
	return ret;
}

/* Areas that are not watched yet are registered, and those that prove to be watched count as such from now on (P8). */
static void find_areas(struct space *space, uint64_t now)
{
	struct area_search search = { .space = space };
	int ret = proc_each_area(space->thread, note_area, &search);
	for (size_t i = 0; !ret && i < search.fresh.count; i++) /* refused: gone again, or of a kind that cannot be watched */
		uffd_register(space->uffd, search.fresh.ranges[i].start,
			      search.fresh.ranges[i].end - search.fresh.ranges[i].start, space->tree->config->through);
	if (!ret && search.fresh.count)
		ret = proc_each_area(space->thread, prove_area, &search);
	for (size_t i = 0; !ret && i < search.watched.count; i++)
		ret = take_area(space, search.watched.ranges[i]);
	space->looks_again = search.refused ? space->looks_again + 1 : 0;
	if (search.changing || (search.refused && space->looks_again <= LOOKS_AGAIN))
		space->known_size_pages = 0; /* at the next look, whatever its size is then */
	space->areas_after_ns = now + LOOK_SHARE * (clock_now_ns() - now);
	if (ret == -ENOMEM)
		tree_fail(space->tree, ret, "list of areas");
	rangeset_done(&search.fresh);
	rangeset_done(&search.watched);
}

/* ---- whose memory is it ---- */

static bool is_known(const struct tree *tree, pid_t pid)
{
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed && (space->pid == pid || space->warden.pid == pid))
			return true;
	return false;
}

static void count_present(void *context, uint64_t start, uint64_t end)
{
	*(uint64_t *)context += (end - start) >> PAGE_SHIFT;
}

static bool page_present(int pagemap_fd, uint64_t pgno)
{
	uint64_t present = 0;
	proc_scan_present(pagemap_fd, pgno << PAGE_SHIFT, (pgno + 1) << PAGE_SHIFT, count_present, &present);
	return present > 0;
}

/* A page that reads as zero anyway is filled with zeros through the descriptor: if it appears in the process, the descriptor is
 * the process's. Several, since another process may touch the same page at that very moment by itself. */
static bool owns(struct space *space, pid_t thread)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/pagemap", thread);
	cleanup_fd int pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
	unsigned proofs = 0, probes = 0;
	for (size_t i = space->registered.count; pagemap_fd >= 0 && i-- > 0 && probes < PROBES;) {
		uint64_t pgno = space->registered.ranges[i].start >> PAGE_SHIFT,
			 end = space->registered.ranges[i].end >> PAGE_SHIFT;
		for (; table_next_run(&space->table, PAGE_ZERO, &pgno, DP_MIN(end, pgno + 4096), 1) && probes < PROBES; pgno++) {
			if (page_present(pagemap_fd, pgno))
				continue;
			probes++;
			enum install_result result = install_zeros(space, pgno, 1, false);
			if (space->closed)
				return false;
			if (result != INSTALL_DONE)
				continue;
			if (!page_present(pagemap_fd, pgno))
				return false;
			if (++proofs == PROOFS)
				return true;
		}
	}
	return false;
}

/* A child of vfork, say, has no memory of its own. */
static bool shares_memory(const struct tree *tree, pid_t thread)
{
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed && space->pid > 0 && proc_same_memory(space->thread, thread) != 0)
			return true;
	return false;
}

static void find_child(struct space *space)
{
	struct tree *tree = space->tree;
	cleanup_free pid_t *pids = NULL;
	pid_t top = tree->config->init_pid > 0 ? tree->config->init_pid : space->parent_pid;
	ssize_t count = proc_tree(top, &pids);
	for (ssize_t i = 1; i < count && !space->closed; i++) {
		pid_t thread = is_known(tree, pids[i]) ? 0 : proc_live_thread(pids[i]);
		if (thread <= 0 || shares_memory(tree, thread) || !owns(space, thread))
			continue;
		int pidfd = proc_pidfd_open(pids[i]);
		if (pidfd >= 0 && proc_has_memory(thread)) { /* else it may be another's by now */
			log_info("space %u is forked process %d", space->number, pids[i]);
			int ret = space_set_pid(space, pids[i], pidfd);
			if (ret)
				tree_fail(tree, ret, "watch a forked process");
			return;
		}
	}
}

/* ---- how much is there ---- */

static uint64_t tracked_pages(const struct tree *tree)
{
	uint64_t pages = 0;
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed)
			pages += space->table.counts[PAGE_LOCAL] + space->staging.present;
	return pages;
}

static bool read_pss(pid_t pid, struct proc_pss *pss)
{
	if (!proc_read_pss(pid, pss))
		return true;
	pid_t thread = proc_live_thread(pid); /* its first may have ended */
	return thread > 0 && thread != pid && !proc_read_pss(thread, pss);
}

/* The proportional set size of every process of the tree, each mm once. */
static uint64_t sample_pss(const struct tree *tree)
{
	uint64_t bytes = 0;
	struct proc_pss pss;
	cleanup_free pid_t *pids = NULL;
	ssize_t count = tree->config->init_pid > 0 ? proc_tree(tree->config->init_pid, &pids) : 0;
	for (ssize_t i = 1; i < count; i++) {
		bool warden = false;
		for (const struct space *space = tree->spaces; space && !warden; space = space->next)
			warden = space->warden.pid == pids[i];
		if (!warden && read_pss(pids[i], &pss))
			bytes += pss.pss_bytes;
	}
	for (const struct space *space = tree->spaces; space && count <= 0; space = space->next)
		if (!space->closed && space->pid > 0 && read_pss(space->pid, &pss))
			bytes += pss.pss_bytes;
	return bytes / PAGE_BYTES;
}

static uint64_t install_count(const struct tree *tree)
{
	const struct pager_stats *stats = tree->stats;
	return stats->installed_pages + stats->zero_filled_pages + stats->second_chance_pages;
}

/* Minor faults of the processes that share memory. */
static uint64_t fault_count(const struct tree *tree)
{
	uint64_t total = 0, faults;
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed && space->shared && space->pid > 0 && !proc_read_minor_faults(space->pid, &faults))
			total += faults;
	return total;
}

/* Between samples: every fault of relatives that we did not resolve may have copied a page that fork had shared. false: there are
 * none. */
static bool estimate_copies(struct tree *tree)
{
	bool shared = false;
	for (const struct space *space = tree->spaces; space; space = space->next)
		shared |= !space->closed && space->shared;
	tree->copied_pages = 0;
	if (!shared)
		return false;
	uint64_t faults = fault_count(tree), ours = install_count(tree) - tree->sampled_installs;
	if (faults > tree->sampled_faults + ours)
		tree->copied_pages = faults - tree->sampled_faults - ours;
	if (tree->copied_pages > tree->budget.reserve_pages / 4)
		tree->next_sample_ns = 0;
	return true;
}

static void take_sample(struct tree *tree, uint64_t now)
{
	bool shared = false;
	unsigned alive = 0;
	for (const struct space *space = tree->spaces; space; space = space->next) {
		alive += !space->closed;
		shared |= !space->closed && space->shared;
	}
	if (alive <= 1)
		for (struct space *space = tree->spaces; space; space = space->next)
			space->shared = shared = false;
	uint64_t pss = sample_pss(tree);
	tree->sample_cost_ns = clock_now_ns() - now;
	tree->drift_pages = pss - tracked_pages(tree); /* signed, modulo 2^64 */
	tree->copied_pages = 0;
	tree->sampled_faults = fault_count(tree);
	tree->sampled_installs = install_count(tree);
	tree->stats->pss_pages = pss;
	/* Much memory that is not the tables': it may be gone as suddenly as it came. */
	bool much = tree->budget.budget_pages && (int64_t)tree->drift_pages > (int64_t)(tree->budget.budget_pages / 8);
	uint64_t interval = shared ? SAMPLE_SHARED_NS : much ? SAMPLE_MUCH_NS : SAMPLE_NS;
	tree->next_sample_ns = now + DP_MAX(interval, 8 * tree->sample_cost_ns);
}

/* Between samples: anonymous memory that grew without us shows in a cheap counter. */
static bool watch_space(struct space *space, uint64_t now)
{
	struct proc_statm statm;
	if (space->statm_fd < 0 || proc_read_statm(space->statm_fd, &statm))
		return false;
	if (!statm.size_pages) { /* the thread has ended */
		space_find_thread(space);
		return false;
	}
	uint64_t anonymous = statm.resident_pages - DP_MIN(statm.shared_pages, statm.resident_pages);
	/* An injector may be making areas, and which are its own is known when it has ended. */
	bool injecting = space->warden.state == WARDEN_STOPPING_TARGET || space->warden.state == WARDEN_LEAVING;
	bool changed = statm.size_pages != space->known_size_pages && now >= space->areas_after_ns && !injecting;
	bool grew = anonymous > space->anonymous_pages + 256;
	if (changed) {
		space->known_size_pages = statm.size_pages;
		if (space->tree->source->writable) /* else nothing is ever evicted: new memory is none of ours */
			find_areas(space, now);
	}
	if (!space->shared && !space->closed) {
		uint64_t ours = space->table.counts[PAGE_LOCAL] + space->staging.present;
		if (anonymous > ours + 2048 && anonymous > space->anonymous_pages + 1024)
			space->tree->next_sample_ns = 0;
	}
	space->anonymous_pages = anonymous;
	return changed || grew;
}

/* Where init is pid 1 of the tree's namespace, its end is the tree's. Else it, or the watcher in its place, is only who ends the
 * tree: with that and the supervisor gone nobody but we and the holder could (R18). */
static bool is_alone(const struct tree *tree)
{
	struct pollfd guards = { .fd = tree->config->guard_fd };
	return guards.fd > 0 && poll(&guards, 1, 0) == 1;
}

uint64_t watch_work(struct tree *tree, uint64_t now)
{
	if (!tree->running)
		return 1000000000u;
	if (now < tree->next_watch_ns)
		return tree->next_watch_ns - now;
	if (is_alone(tree)) {
		tree_fail(tree, -EOWNERDEAD,
			  "supervisor and init were killed: the tree was stopped while its memory could still be served");
		return 0;
	}
	bool active = now - tree->last_active_ns < ACTIVE_FOR_NS;
	for (struct space *space = tree->spaces; space && !tree->failure; space = space->next) {
		if (space->closed)
			continue;
		if (space_memory_is_gone(space) || space->warden_killed) {
			space_lost(space);
			continue;
		}
		if (space_was_replaced(space)) {
			space_leave(space);
			continue;
		}
		if (space->pid == 0)
			find_child(space);
		if (space->closed || space->pid <= 0)
			continue;
		if (space->doubts || space->doubt_all)
			doubt_settle(space, now);
		if (watch_space(space, now))
			tree->last_active_ns = now;
	}
	limit_work(tree, now);
	bool shared = tree->budget.budget_pages && estimate_copies(tree);
	if (now >= tree->next_sample_ns && (tree->budget.budget_pages || tree->config->stats_path))
		take_sample(tree, now);
	tree->next_watch_ns = now + (shared ? TICK_SHARED_NS : active ? TICK_ACTIVE_NS : TICK_IDLE_NS);
	return tree->next_watch_ns - now;
}
