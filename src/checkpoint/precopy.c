#include "checkpoint/precopy.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>

#include "base/base.h"
#include "base/pageset.h"
#include "checkpoint/pipeline.h"
#include "checkpoint/tracker.h"

#define READ_PAGES 256u /* at once; fits a request */
#define RANGES 256u     /* of a request */
#define FEW_PAGES 64u   /* a round more is not worth it */
#define SCAN_RUNS 256

/* A process's share of the draft; tracked.data. */
struct share {
	struct precopy *precopy;
	uint32_t vpid;
	uint64_t space;  /* of the draft, made for it; 0: none yet */
	struct pageset sent; /* pages that the space has, or (until precopy_begin has inherited them) that of the state before */
	struct share *next;  /* of the orphans */
};

struct precopy {
	struct tracker *tracker;
	struct pipeline pipeline;
	uint64_t draft;
	char before[256]; /* the snapshot in which `sent` is; "": none */
	uint64_t before_unix_ns; /* when it was made: another of its name is another */
	bool frozen;
	struct share *orphans; /* of processes that have ended, with spaces in the draft: another may get the same number */
	struct precopy_totals totals;
	uint64_t round_pages; /* sent in this round */
	const struct precopy_limits *limits;
	struct page_list *left; /* while a task is finished: what is not sent any more is listed here; NULL: it is sent */
	uint64_t begun_ns, paced_since_ns, paced_bytes;
	const volatile bool *stop;
	unsigned char buffer[READ_PAGES * PAGE_BYTES];
	struct written_run runs[SCAN_RUNS];
};

static void free_share(struct share *share)
{
	pageset_done(&share->sent);
	free(share);
}

static void release_share(void *data)
{
	struct share *share = data;
	if (!share->space) {
		free_share(share);
		return;
	}
	share->next = share->precopy->orphans;
	share->precopy->orphans = share;
}

static void forget_orphans(struct precopy *precopy)
{
	while (precopy->orphans) {
		struct share *share = precopy->orphans;
		precopy->orphans = share->next;
		free_share(share);
	}
}

int precopy_open(struct precopy **precopy, pid_t root, struct dp_err *err)
{
	struct precopy *new = calloc(1, sizeof(*new));
	if (!new)
		return dp_fail_errno(err, ENOMEM, "send pages ahead");
	int ret = tracker_open(&new->tracker, root, release_share, err);
	if (ret) {
		free(new);
		return ret;
	}
	*precopy = new;
	return 0;
}

void precopy_close(struct precopy *precopy)
{
	if (!precopy)
		return;
	tracker_close(precopy->tracker);
	forget_orphans(precopy);
	free(precopy);
}

const struct precopy_totals *precopy_totals(const struct precopy *precopy)
{
	return &precopy->totals;
}

static int fail_pool(struct dp_err *err, int rc)
{
	if (rc == -ENOSPC)
		return dp_fail(err, ENOSPC, "the pool is full: free some of it (distri-proc pool rm) or give it more room");
	return dp_fail_errno(err, -rc, "store pages in the pool");
}

static int drain(struct precopy *precopy, struct dp_err *err)
{
	int ret = pipeline_drain(&precopy->pipeline);
	return ret < 0 ? fail_pool(err, ret) : 0;
}

/* ---- spaces ---- */

static struct share *share_of(struct precopy *precopy, struct tracked *process)
{
	struct share *share = process->data ? process->data : calloc(1, sizeof(*share));
	if (share && !process->data)
		*share = (struct share){ .precopy = precopy, .vpid = process->vpid };
	return process->data = share;
}

static int drop_all(struct precopy *precopy, struct share *share)
{
	int ret = 0;
	for (uint64_t pgno = 0, pages; !ret && (pages = pageset_next(&share->sent, &pgno)); pgno += pages) {
		const struct page_range range = { pgno, pages };
		ret = pipeline_drop(&precopy->pipeline, share->space, &range, 1);
	}
	return ret;
}

/* The space of a process that had this number before. */
static int take_orphan(struct precopy *precopy, struct share *share)
{
	for (struct share **at = &precopy->orphans; *at; at = &(*at)->next)
		if ((*at)->vpid == share->vpid) {
			struct share *orphan = *at;
			int ret = drop_all(precopy, orphan);
			share->space = orphan->space;
			*at = orphan->next;
			free_share(orphan);
			return ret;
		}
	return 0;
}

static int make_space(struct precopy *precopy, struct share *share, struct dp_err *err)
{
	if (share->space)
		return 0;
	int ret = take_orphan(precopy, share);
	if (ret < 0)
		return fail_pool(err, ret);
	if (share->space)
		return 0;
	ret = drain(precopy, err); /* the client's blocking calls want no answers under way */
	return ret ? ret : client_snapshot_space(precopy->pipeline.client, precopy->draft, share->vpid, &share->space, err);
}

int precopy_space(struct precopy *precopy, uint32_t vpid, uint64_t *space, struct dp_err *err)
{
	struct tracked *process = tracker_find(precopy->tracker, vpid);
	struct share *share = process ? share_of(precopy, process) : NULL;
	if (!process)
		return dp_fail(err, ESRCH, "task %u is not where it was", vpid);
	if (!share)
		return dp_fail_errno(err, ENOMEM, "page map");
	int ret = make_space(precopy, share, err);
	*space = share->space;
	return ret;
}

/* ---- a state after another ---- */

static int inherit_all(struct precopy *precopy, struct share *share, uint64_t source, struct dp_err *err)
{
	struct page_range ranges[RANGES];
	size_t count = 0;
	int ret = 0;
	for (uint64_t pgno = 0, pages; !ret && (pages = pageset_next(&share->sent, &pgno)); pgno += pages) {
		if (count && ranges[count - 1].pgno + ranges[count - 1].pages == pgno) {
			ranges[count - 1].pages += pages;
			continue;
		}
		if (count == RANGES) {
			ret = client_snapshot_inherit(precopy->pipeline.client, share->space, source, ranges, count, err);
			count = 0;
		}
		ranges[count++] = (struct page_range){ pgno, pages };
	}
	if (!ret && count)
		ret = client_snapshot_inherit(precopy->pipeline.client, share->space, source, ranges, count, err);
	precopy->totals.inherited_pages += share->sent.pages;
	return ret;
}

/* The process's space in the state before; 0: it has none. */
static uint64_t space_before(const struct snapshot_info *info, uint32_t vpid)
{
	for (size_t i = 0; i < info->space_count; i++)
		if (info->spaces[i].label == vpid)
			return info->spaces[i].space;
	return 0;
}

int precopy_begin(struct precopy *precopy, struct client *client, uint64_t draft, struct dp_err *err)
{
	struct snapshot_info info = { 0 };
	bool there = precopy->before[0] && !client_snapshot_open(client, precopy->before, &info, NULL) &&
		     info.created_unix_ns == precopy->before_unix_ns;
	int ret = 0;
	precopy->pipeline = (struct pipeline){ .client = client };
	precopy->draft = draft;
	precopy->totals = (struct precopy_totals){ 0 };
	precopy->frozen = false;
	for (struct tracked *process = tracker_next(precopy->tracker, NULL); process && !ret;
	     process = tracker_next(precopy->tracker, process)) {
		struct share *share = process->data;
		uint64_t source = there ? space_before(&info, process->vpid) : 0;
		if (!share)
			continue;
		share->space = 0;
		if (!source || !share->sent.pages)
			pageset_done(&share->sent); /* PC3 */
		else if (!(ret = make_space(precopy, share, err)))
			ret = inherit_all(precopy, share, source, err);
	}
	client_snapshot_info_done(&info);
	if (ret)
		precopy_end(precopy, NULL);
	return ret;
}

/* What the draft has become; a look-up that fails costs no more than that all is sent again. */
static bool note_state(struct precopy *precopy, const char *name)
{
	struct snapshot_info info = { 0 };
	bool there = name && !client_snapshot_open(precopy->pipeline.client, name, &info, NULL) && info.id == precopy->draft;
	snprintf(precopy->before, sizeof(precopy->before), "%s", there ? name : "");
	precopy->before_unix_ns = info.created_unix_ns;
	client_snapshot_info_done(&info);
	return there;
}

void precopy_end(struct precopy *precopy, const char *name)
{
	bool kept = precopy->pipeline.client && note_state(precopy, name);
	for (struct tracked *process = tracker_next(precopy->tracker, NULL); process;
	     process = tracker_next(precopy->tracker, process)) {
		struct share *share = process->data;
		if (share && !kept)
			pageset_done(&share->sent); /* PC3 */
		if (share)
			share->space = 0;
	}
	forget_orphans(precopy);
	precopy->pipeline = (struct pipeline){ 0 };
}

/* ---- reading and sending ---- */

/* Pages that a process keeps from itself (PROT_NONE) are read through /proc/PID/mem. Returns pages read from the start. */
static uint64_t read_pages(pid_t pid, uint64_t address, uint64_t pages, void *to)
{
	struct iovec local = { to, pages * PAGE_BYTES }, remote = { (void *)(uintptr_t)address, pages * PAGE_BYTES };
	ssize_t got = process_vm_readv(pid, &local, 1, &remote, 1, 0);
	if (got >= (ssize_t)PAGE_BYTES)
		return (uint64_t)got / PAGE_BYTES;
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	got = fd < 0 ? -1 : pread(fd, to, pages * PAGE_BYTES, (off_t)address);
	return got > 0 ? (uint64_t)got / PAGE_BYTES : 0;
}

static int drop_pages(struct precopy *precopy, struct share *share, uint64_t pgno, uint64_t pages)
{
	const struct page_range range = { pgno, pages };
	pageset_remove(&share->sent, pgno, pages);
	return pipeline_drop(&precopy->pipeline, share->space, &range, 1);
}

/* Pages that were read, in the buffer: those of zeros are not sent, and are nowhere. */
static int put_pages(struct precopy *precopy, struct share *share, uint64_t pgno, uint64_t pages, struct page_list *lazy)
{
	struct page_range ranges[READ_PAGES];
	struct iovec vectors[READ_PAGES];
	size_t count = 0;
	int ret = 0;
	for (uint64_t i = 0; i < pages && !ret; i++) {
		void *page = precopy->buffer + i * PAGE_BYTES;
		if (page_is_zero(page)) {
			if (pageset_has(&share->sent, pgno + i))
				ret = drop_pages(precopy, share, pgno + i, 1);
			continue;
		}
		if (count && ranges[count - 1].pgno + ranges[count - 1].pages == pgno + i) {
			ranges[count - 1].pages++;
			vectors[count - 1].iov_len += PAGE_BYTES;
		} else {
			ranges[count] = (struct page_range){ pgno + i, 1 };
			vectors[count++] = (struct iovec){ page, PAGE_BYTES };
		}
	}
	if (!ret && count)
		ret = pipeline_put(&precopy->pipeline, share->space, ranges, count, vectors, count);
	for (size_t i = 0; i < count && !ret; i++) {
		ret = pageset_add(&share->sent, ranges[i].pgno, ranges[i].pages);
		if (!ret && lazy)
			ret = page_list_add(lazy, ranges[i].pgno, ranges[i].pages);
		precopy->round_pages += ranges[i].pages;
	}
	return ret;
}

/* What is not there any more while it runs is nothing's page (PC2); while it stands still that cannot be. */
static int send_pages(struct precopy *precopy, struct tracked *process, uint64_t pgno, uint64_t pages, struct page_list *lazy,
		      struct dp_err *err)
{
	struct share *share = process->data;
	int ret = 0;
	if (precopy->left) { /* what the draft has of them is older, and goes with drop_rest (PC4) */
		bool noted = !page_list_add(precopy->left, pgno, pages) && !page_list_add(lazy, pgno, pages);
		return noted ? 0 : dp_fail_errno(err, ENOMEM, "page map");
	}
	while (pages && !ret) {
		uint64_t count = DP_MIN(pages, (uint64_t)READ_PAGES);
		uint64_t got = read_pages(process->pid, pgno << PAGE_SHIFT, count, precopy->buffer);
		if (!got && precopy->frozen)
			return dp_fail(err, EIO, "a page of process %d cannot be read (at 0x%llx)", process->pid,
				       (unsigned long long)pgno << PAGE_SHIFT);
		ret = got ? put_pages(precopy, share, pgno, got, lazy) : drop_pages(precopy, share, pgno, got = 1);
		pgno += got;
		pages -= got;
	}
	return ret < 0 ? fail_pool(err, ret) : 0;
}

/* ---- rounds ---- */

static void keep_pace(struct precopy *precopy, uint64_t pages)
{
	uint64_t rate = precopy->limits->rate_bytes, now = clock_now_ns();
	if (!rate)
		return;
	precopy->paced_bytes += pages * PAGE_BYTES;
	uint64_t due_ns = precopy->paced_since_ns + (uint64_t)((double)precopy->paced_bytes * 1e9 / (double)rate);
	if (due_ns > now)
		usleep((useconds_t)DP_MIN((due_ns - now) / 1000, 999999u));
}

/* Of what was not written only pages that were never sent. */
static int send_unsent(struct precopy *precopy, struct tracked *process, uint64_t pgno, uint64_t end, struct dp_err *err)
{
	const struct share *share = process->data;
	int ret = 0;
	while (pgno < end && !ret) {
		uint64_t sent = pgno, pages = pageset_next(&share->sent, &sent);
		uint64_t stop = pages ? DP_MIN(sent, end) : end;
		if (stop > pgno)
			ret = send_pages(precopy, process, pgno, stop - pgno, NULL, err);
		pgno = pages ? DP_MAX(sent + pages, stop) : end;
	}
	return ret;
}

static int take_runs(void *context, struct tracked *process, const struct written_run *runs, size_t count, struct dp_err *err)
{
	struct precopy *precopy = context;
	struct share *share = share_of(precopy, process);
	int ret = share ? make_space(precopy, share, err) : dp_fail_errno(err, ENOMEM, "page map");
	uint64_t before = precopy->round_pages;
	for (size_t i = 0; i < count && !ret; i++) {
		uint64_t pgno = runs[i].start >> PAGE_SHIFT, end = runs[i].end >> PAGE_SHIFT;
		if (precopy->stop && *precopy->stop)
			return dp_fail(err, EINTR, "interrupted");
		if (runs[i].zero)
			ret = drop_pages(precopy, share, pgno, end - pgno);
		else if (runs[i].written)
			ret = send_pages(precopy, process, pgno, end - pgno, NULL, err);
		else
			ret = send_unsent(precopy, process, pgno, end, err);
	}
	keep_pace(precopy, precopy->round_pages - before);
	return ret;
}

/* Is another round worth it? `rate`: pages a second that went in this one. */
static bool go_on(const struct precopy *precopy, const struct precopy_limits *limits, uint64_t last_pages, double rate)
{
	uint64_t pause_ns = limits->pause_ns ? limits->pause_ns : PRECOPY_PAUSE_NS;
	bool late = limits->limit_ns && clock_now_ns() - precopy->begun_ns > limits->limit_ns;
	unsigned rounds = limits->rounds ? limits->rounds : PRECOPY_ROUNDS;
	uint64_t fits = DP_MAX((uint64_t)(rate * (double)pause_ns / 1e9), (uint64_t)FEW_PAGES);
	const struct precopy_totals *totals = &precopy->totals;
	if (late || totals->rounds >= rounds || precopy->round_pages <= FEW_PAGES)
		return false;
	if (totals->rounds > 1 && precopy->round_pages <= fits)
		return false; /* as much will be left again, or less */
	return totals->rounds < 3 || precopy->round_pages < last_pages - last_pages / 8;
}

static void count_processes(struct precopy *precopy)
{
	struct precopy_totals *totals = &precopy->totals;
	totals->tracked = totals->untracked = 0;
	for (const struct tracked *process = tracker_next(precopy->tracker, NULL); process;
	     process = tracker_next(precopy->tracker, process)) {
		totals->tracked += process->uffd >= 0;
		totals->untracked += process->uffd < 0;
		if (process->uffd < 0)
			snprintf(totals->why, sizeof(totals->why), "process %d: %.150s", process->pid, process->why);
	}
}

int precopy_rounds(struct precopy *precopy, const struct precopy_limits *limits, const volatile bool *stop, struct dp_err *err)
{
	static const struct precopy_limits none;
	const struct tracker_sink sink = { precopy, take_runs };
	struct precopy_totals *totals = &precopy->totals;
	uint64_t last_pages = 0;
	precopy->limits = limits ? limits : &none;
	precopy->stop = stop;
	precopy->begun_ns = precopy->paced_since_ns = clock_now_ns();
	precopy->paced_bytes = 0;
	for (;;) {
		uint64_t since_ns = clock_now_ns();
		precopy->round_pages = 0;
		int ret = tracker_round(precopy->tracker, &sink, err);
		if (!ret)
			ret = drain(precopy, err);
		if (ret)
			return ret;
		totals->round_pages[DP_MIN(totals->rounds, PRECOPY_ROUNDS - 1)] += precopy->round_pages;
		totals->rounds++;
		totals->ahead_pages += precopy->round_pages;
		if (precopy->limits->on_round)
			precopy->limits->on_round(precopy->limits->context, totals->rounds, precopy->round_pages,
						  tracker_written_pages(precopy->tracker));
		double seconds = (double)DP_MAX(clock_now_ns() - since_ns, 1u) / 1e9;
		if (!go_on(precopy, precopy->limits, last_pages, (double)precopy->round_pages / seconds))
			break;
		last_pages = precopy->round_pages;
	}
	count_processes(precopy);
	return 0;
}

/* ---- while the tree stands still ---- */

int precopy_frozen(struct precopy *precopy, struct dp_err *err)
{
	precopy->frozen = true;
	precopy->round_pages = 0;
	return tracker_frozen(precopy->tracker, err);
}

int precopy_finish_all(struct precopy *precopy, struct dp_err *err)
{
	int ret = 0;
	for (struct share *share = precopy->orphans; share && !ret; share = share->next)
		ret = drop_all(precopy, share);
	return ret < 0 ? fail_pool(err, ret) : drain(precopy, err);
}

/* A run of a frozen process: what is in the draft already, and what is not. */
static int finish_run(struct precopy *precopy, struct tracked *process, const struct written_run *run, struct page_list *lazy,
		      struct dp_err *err)
{
	const struct share *share = process->data;
	uint64_t pgno = run->start >> PAGE_SHIFT, end = run->end >> PAGE_SHIFT;
	if (run->zero)
		return 0; /* and dropped with all else that is not in `lazy` */
	if (run->written)
		return send_pages(precopy, process, pgno, end - pgno, lazy, err);
	int ret = 0;
	while (pgno < end && !ret) {
		uint64_t sent = pgno, pages = pageset_next(&share->sent, &sent);
		uint64_t stop = pages ? DP_MIN(sent, end) : end, done = pages ? DP_MIN(sent + pages, end) : end;
		if (stop > pgno)
			ret = send_pages(precopy, process, pgno, stop - pgno, lazy, err);
		if (!ret && done > stop && page_list_add(lazy, stop, done - stop))
			ret = dp_fail_errno(err, ENOMEM, "page map");
		pgno = done;
	}
	return ret;
}

static int finish_range(struct precopy *precopy, struct tracked *process, int pagemap_fd, struct page_range range,
			struct page_list *lazy, struct dp_err *err)
{
	uint64_t at = range.pgno << PAGE_SHIFT, end = (range.pgno + range.pages) << PAGE_SHIFT;
	int ret = 0;
	while (at < end && !ret) {
		ssize_t found = tracker_scan(process, pagemap_fd, &at, end, true, precopy->runs, SCAN_RUNS);
		if (found < 0)
			return dp_fail_errno(err, (int)-found, "look at the pages of process %d", process->pid);
		for (ssize_t i = 0; i < found && !ret; i++)
			ret = finish_run(precopy, process, &precopy->runs[i], lazy, err);
	}
	return ret;
}

static int add_list(struct pageset *set, const struct page_list *list)
{
	int ret = 0;
	for (size_t i = 0; i < list->count && !ret; i++)
		ret = pageset_add(set, list->ranges[i].pgno, list->ranges[i].pages);
	return ret;
}

/* What the space has of earlier rounds, and the process has no more. */
static int drop_rest(struct precopy *precopy, struct share *share, const struct page_list *kept, const struct page_list *lazy,
		     struct dp_err *err)
{
	struct pageset wanted = { 0 }, had = share->sent;
	int ret = add_list(&wanted, lazy);
	for (size_t i = 0; precopy->left && i < precopy->left->count; i++)
		pageset_remove(&wanted, precopy->left->ranges[i].pgno, precopy->left->ranges[i].pages);
	if (!ret)
		ret = add_list(&wanted, kept);
	for (uint64_t pgno = 0, pages; !ret && (pages = pageset_next(&had, &pgno)); pgno += pages)
		for (uint64_t at = pgno, end = pgno + pages; at < end && !ret;) {
			uint64_t next = at, stay = pageset_next(&wanted, &next);
			uint64_t stop = stay ? DP_MIN(next, end) : end;
			const struct page_range range = { at, stop - at };
			if (range.pages)
				ret = pipeline_drop(&precopy->pipeline, share->space, &range, 1);
			at = stay ? DP_MAX(next + stay, stop) : end;
		}
	pageset_done(&had);
	share->sent = wanted;
	return ret < 0 ? fail_pool(err, ret) : 0;
}

int precopy_finish(struct precopy *precopy, uint32_t vpid, const struct page_list *hidden, const struct page_list *kept,
		   struct page_list *lazy, struct page_list *left, struct dp_err *err)
{
	precopy->left = left;
	uint64_t space;
	int ret = precopy_space(precopy, vpid, &space, err);
	struct tracked *process = ret ? NULL : tracker_find(precopy->tracker, vpid);
	cleanup_fd int pagemap_fd = ret ? -1 : tracker_open_pagemap(process);
	if (!ret && pagemap_fd < 0)
		ret = dp_fail_errno(err, -pagemap_fd, "look at the pages of task %u", vpid);
	uint64_t before = precopy->round_pages;
	for (size_t i = 0; i < hidden->count && !ret; i++)
		ret = finish_range(precopy, process, pagemap_fd, hidden->ranges[i], lazy, err);
	precopy->totals.frozen_pages += precopy->round_pages - before;
	return ret ? ret : drop_rest(precopy, process->data, kept, lazy, err);
}
