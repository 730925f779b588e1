/* The pager's set-up, its loop, and its end. */
#include "pager/pager.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <poll.h>
#include <unistd.h>

#include "base/log.h"
#include "image/images.h"
#include "instance/keeper.h"
#include "pager/takeover.h"
#include "pager/tree.h"
#include "sys/proc.h"
#include "sys/uffd.h"

#define PAUSE_NS (50u * 1000)
#define DEAD_WITHIN_MS 5000
#define PARKED_BYTES ((uint64_t)REQUESTS * REQUEST_PAGES * PAGE_BYTES)

uint64_t pager_min_budget_bytes(uint64_t tasks)
{
	return residency_minimum_bytes(tasks);
}

uint64_t tree_used_pages(const struct tree *tree)
{
	uint64_t pages = tree->in_flight + tree->drift_pages + tree->copied_pages;
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed)
			pages += space->table.counts[PAGE_LOCAL] + space->staging.present;
	return (int64_t)pages < 0 ? 0 : pages;
}

int tree_watch_fd(struct tree *tree, int fd, struct handle *handle)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = handle };
	return epoll_ctl(tree->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

void tree_fail(struct tree *tree, int error, const char *format, ...)
{
	if (tree->failure)
		return;
	tree->failure = error < 0 ? error : -EIO;
	char text[512];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	dp_fail_errno(tree->err, -tree->failure, "%s", text);
	log_error("%s: %s: the tree is stopped, its memory can no longer be served", text, strerror(-tree->failure));
	if (tree->keeper_fd >= 0)
		keeper_send_text(tree->keeper_fd, tree->err ? tree->err->text : text);
}

static void wait_dead(int pidfd)
{
	struct pollfd wait = { .fd = pidfd, .events = POLLIN };
	poll(&wait, 1, DEAD_WITHIN_MS);
}

/* Forked children whose pids nobody has told yet. */
static void kill_children(const struct space *space)
{
	cleanup_free pid_t *pids = NULL;
	pid_t pid = proc_pidfd_pid(space->pidfd);
	ssize_t count = pid > 0 ? proc_tree(pid, &pids) : 0;
	for (ssize_t i = 1; i < count; i++)
		if (pids[i] != getpid())
			kill(pids[i], SIGKILL);
}

/* Who cannot be found, or does not end, gets SIGBUS, not zeros, where it touches what is missing. */
static void poison(struct space *space)
{
	static const enum page_state missing[] = { PAGE_REMOTE, PAGE_IN_FLIGHT, PAGE_STAGED, PAGE_DAMAGED };
	for (size_t i = 0; i < ARRAY_LENGTH(missing); i++) {
		uint64_t pgno = 0, pages;
		while ((pages = table_next_run(&space->table, missing[i], &pgno, UINT64_MAX, UINT64_MAX))) {
			uffd_poison(space->uffd, pgno << PAGE_SHIFT, pages * PAGE_BYTES);
			pgno += pages;
		}
	}
}

static void wait_gone(const struct space *space, uint64_t until_ns)
{
	while (!space_memory_is_gone(space) && clock_now_ns() < until_ns)
		usleep(1000);
}

/* Kills every task and waits for the memory to be gone, while the userfaultfds are still open (invariant 1). */
static void kill_tree(struct tree *tree)
{
	uint64_t until_ns = clock_now_ns() + DEAD_WITHIN_MS * 1000000ull;
	for (struct space *space = tree->spaces; space; space = space->next) {
		if (space->pidfd >= 0) {
			kill_children(space);
			proc_pidfd_kill(space->pidfd, SIGKILL);
		} else if (!space->closed) {
			poison(space);
		}
		if (space->warden.pidfd >= 0)
			proc_pidfd_kill(space->warden.pidfd, SIGKILL);
	}
	for (struct space *space = tree->spaces; space; space = space->next) {
		if (space->pidfd >= 0)
			wait_dead(space->pidfd);
		if (space->pidfd >= 0 && !space->closed)
			wait_gone(space, until_ns);
		if (!space->closed && !space_memory_is_gone(space))
			poison(space);
	}
}

static void update_stats(struct tree *tree)
{
	struct pager_stats *stats = tree->stats;
	uint64_t counts[PAGE_STATES] = { 0 }, dirty = 0, present = 0, bytes = 0, spaces = 0, described = 0, tasks = 0,
		 wardens = 0;
	for (const struct space *space = tree->spaces; space; space = space->next) {
		uint64_t known = 0;
		if (space->closed)
			continue;
		for (int state = 0; state < PAGE_STATES; state++) {
			counts[state] += space->table.counts[state];
			known += space->table.counts[state];
		}
		/* A leaf describes 64 pages, given-up ones too; what only the snapshot's page map has is told by ranges. */
		described += DP_MAX((uint64_t)space->table.leaf_count * LEAF_PAGES, known);
		dirty += space->table.dirty;
		present += space->staging.present;
		bytes += table_bytes(&space->table);
		spaces++;
		tasks += space->pid > 0;
		wardens += space->warden.state == WARDEN_READY;
	}
	stats->resident_pages = counts[PAGE_LOCAL] + present;
	stats->remote_pages = counts[PAGE_REMOTE] + counts[PAGE_IN_FLIGHT];
	stats->dirty_pages = dirty;
	stats->staged_pages = counts[PAGE_STAGED];
	stats->spaces = spaces;
	stats->tasks = tasks;
	stats->wardens = wardens;
	stats->table_bytes = bytes;
	stats->table_pages = described;
	stats->other_pages = (int64_t)tree->drift_pages > 0 ? tree->drift_pages : 0;
	tree->source->ops->bytes(tree->source, &stats->bytes_in, &stats->bytes_out);
}

static void source_on_done(void *context, uint64_t cookie, int result)
{
	struct tree *tree = context;
	if (cookie == COOKIE_ORDER)
		record_on_stored(tree, result);
	else if (cookie == COOKIE_PUSH)
		propagate_on_done(tree, result);
	else if (cookie & (COOKIE_WRITE | COOKIE_IGNORED))
		evict_on_done(tree, cookie, result);
	else
		tree_fail(tree, result < 0 ? result : -EPROTO, "fetch pages from their source");
}

static void receive_source(struct tree *tree)
{
	int ret = tree->source->ops->receive(tree->source);
	if (ret < 0)
		lost_fail(tree, ret);
}

static void dispatch(struct tree *tree, const struct handle *handle)
{
	struct space *space = handle->space;
	if (space && space->closed)
		return;
	switch (handle->kind) {
	case HANDLE_UFFD:
		fault_read(space);
		break;
	case HANDLE_SOURCE:
		receive_source(tree);
		break;
	case HANDLE_WARDEN:
		evict_warden_event(space);
		break;
	case HANDLE_PIDFD:
		space_leave(space);
		break;
	case HANDLE_LISTEN:
		if (handover_accept(tree) < 0)
			tree_fail(tree, -errno, "accept CRIU's connection");
		break;
	case HANDLE_CRIU:
		handover_read(tree);
		break;
	case HANDLE_CONTROL_LISTEN:
		control_accept(tree);
		break;
	case HANDLE_CONTROL:
		control_serve(tree, handle);
		break;
	case HANDLE_KINDS:
		break;
	}
}

/* Spaces that are closed are freed; those that a transfer has made wholly local are closed. Returns whether any is left. */
static bool sweep(struct tree *tree)
{
	bool left = false;
	for (struct space *space = tree->spaces, *next; space; space = next) {
		next = space->next;
		if (!space->closed && migrate_is_whole(space)) {
			log_info("process %d is wholly local", space->pid);
			tree->saved->whole_spaces++; /* first: whoever follows must not take it for one whose process has ended */
			space_close(space);
		}
		left |= !space->closed;
		if (space->closed)
			space_free(space);
	}
	return left;
}

static bool wardens_come_or_go(const struct tree *tree)
{
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (space->warden.state == WARDEN_STOPPING_TARGET || space->warden.state == WARDEN_LEAVING)
			return true;
	return false;
}

/* The source's socket is watched for writing only while something waits to be sent. */
static void watch_source(struct tree *tree, bool *writing)
{
	int fd = tree->source->ops->fd(tree->source);
	bool wants = fd >= 0 && tree->source->ops->wants_write(tree->source);
	if (fd == tree->lost.watched_fd && (fd < 0 || wants == *writing) && !tree->lost.changed)
		return;
	struct epoll_event event = { .events = EPOLLIN | (wants ? EPOLLOUT : 0), .data.ptr = &tree->source_handle };
	if (fd >= 0 && epoll_ctl(tree->epoll_fd, EPOLL_CTL_MOD, fd, &event) && errno == ENOENT)
		epoll_ctl(tree->epoll_fd, EPOLL_CTL_ADD, fd, &event);
	/* The one before has left by itself: it was closed, and its number may be another's; or it is one that never says
	 * anything. */
	tree->lost.watched_fd = fd;
	tree->lost.changed = false;
	*writing = wants;
}

static void turn(struct tree *tree, uint64_t timeout_ns)
{
	struct epoll_event events[64];
	struct timespec timeout = { (time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u) };
	int count = epoll_pwait2(tree->epoll_fd, events, 64, &timeout, NULL);
	for (int i = 0; i < count && !tree->failure; i++)
		dispatch(tree, events[i].data.ptr);
	if (count > 0)
		tree->last_active_ns = clock_now_ns();
	fault_serve_deferred(tree);
}

static void serve(struct tree *tree)
{
	bool more = false, writing = false;
	uint64_t until_watch = 0;
	while (!tree->failure) {
		uint64_t timeout = more ? 0 : until_watch;
		if (tree->deferred_count || tree->parked_requests || tree->freezing || wardens_come_or_go(tree))
			timeout = DP_MIN(timeout, PAUSE_NS);
		turn(tree, timeout);
		install_parked(tree);
		more = evict_work(tree);
		ahead_work(tree);
		through_work(tree);
		if (tree->freezing)
			control_work(tree);
		uint64_t until_fill = migrate_work(tree);
		uint64_t now = clock_now_ns();
		until_fill = DP_MIN(until_fill, record_work(tree, now));
		bool due = tree->running && now >= tree->next_watch_ns;
		until_watch = DP_MIN(DP_MIN(watch_work(tree, now), heat_work(tree, now)), until_fill);
		until_watch = DP_MIN(until_watch, lost_work(tree, now));
		until_watch = DP_MIN(until_watch, awake_rest(&tree->awake, now));
		if (due)
			update_stats(tree);
		watch_source(tree, &writing);
		if (!sweep(tree) && tree->running)
			break;
	}
}

static int prepare(struct tree *tree)
{
	const struct pager_config *config = tree->config;
	tree->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	/* Without a budget nothing is moved out, and a hundred pagers need not have a megabyte each for it. */
	int there = config->budget_bytes ? MAP_POPULATE : 0;
	tree->buffer = mmap(NULL, MOVE_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | there, -1, 0);
	tree->zero_page = mmap(NULL, ZERO_RUN_PAGES * PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	tree->parked_data = mmap(NULL, PARKED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	tree->deferred = calloc(DEFERRED_FAULTS, sizeof(*tree->deferred));
	if (tree->epoll_fd < 0 || tree->buffer == MAP_FAILED || tree->zero_page == MAP_FAILED ||
	    tree->parked_data == MAP_FAILED || !tree->deferred)
		return dp_fail_errno(tree->err, errno ? errno : ENOMEM, "set up the pager");
	for (uint32_t i = 0; i < REQUESTS; i++)
		tree->request_free[tree->request_free_count++] = REQUESTS - 1 - i;
	int ret = recover_begin(tree);
	if (ret)
		return ret;
	tree->source->handler = (struct source_handler){ tree, install_on_pages, source_on_done, install_on_damaged };
	tree->source_handle.kind = HANDLE_SOURCE;
	tree->lost.watched_fd = tree->source->ops->fd(tree->source);
	tree->listen_handle.kind = HANDLE_LISTEN;
	tree->criu_handle.kind = HANDLE_CRIU;
	tree->control_listen_handle.kind = HANDLE_CONTROL_LISTEN;
	awake_init(&tree->awake, !config->may_sleep);
	awake_hold(&tree->awake, clock_now_ns()); /* the first faults are near */
	control_init(tree);
	record_init(tree);
	residency_plan(&tree->budget, config->budget_bytes);
	if (config->stats_path)
		tree->stats = stats_map(config->stats_path, config->inherited ? STATS_GO_ON : STATS_CREATE, tree->err);
	else
		tree->stats = calloc(1, sizeof(*tree->stats));
	if (!tree->stats)
		return config->stats_path ? -EIO : dp_fail(tree->err, ENOMEM, "out of memory");
	tree->stats->started_ns = config->inherited ? tree->stats->started_ns : clock_now_ns();
	tree->stats->pager_pid = (uint64_t)getpid();
	if (config->inherited)
		migrate_go_on(tree);
	tree->stats->budget_pages = tree->budget.budget_pages;
	tree->stats->reserve_pages = tree->budget.reserve_pages;
	ret = tree_watch_fd(tree, config->listen_fd, &tree->listen_handle);
	if (!ret && config->control_fd >= 0)
		ret = tree_watch_fd(tree, config->control_fd, &tree->control_listen_handle);
	if (!ret && tree->source->ops->fd(tree->source) >= 0)
		ret = tree_watch_fd(tree, tree->source->ops->fd(tree->source), &tree->source_handle);
	return ret ? dp_fail_errno(tree->err, -ret, "watch the pager's sockets") : 0;
}

static void put_away(struct tree *tree)
{
	for (struct space *space = tree->spaces; space; space = space->next)
		space_close(space);
	for (unsigned i = 0; i < REQUESTS; i++)
		tree->request[i].space = NULL;
	for (unsigned i = 0; i < WRITE_BATCHES; i++)
		tree->batch[i].space = NULL;
	sweep(tree);
	dp_close_fd(&tree->criu_fd);
	recover_end(tree);
	control_done(tree);
	propagate_done(tree);
	awake_done(&tree->awake);
	dp_close_fd(&tree->epoll_fd);
	if (tree->config->stats_path)
		stats_unmap(tree->stats);
	else
		free(tree->stats);
	free(tree->deferred);
	lost_done(tree);
	record_done(tree);
	if (tree->buffer && tree->buffer != MAP_FAILED)
		munmap(tree->buffer, MOVE_PAGES * PAGE_BYTES);
	if (tree->parked_data && tree->parked_data != MAP_FAILED)
		munmap(tree->parked_data, PARKED_BYTES);
	if (tree->zero_page && tree->zero_page != MAP_FAILED)
		munmap(tree->zero_page, ZERO_RUN_PAGES * PAGE_BYTES);
}

int pager_run(const struct pager_config *config, struct dp_err *err)
{
	struct dp_err local = { "" };
	struct tree *tree = calloc(1, sizeof(*tree));
	if (!tree)
		return dp_fail(err, ENOMEM, "out of memory");
	signal(SIGPIPE, SIG_IGN);
	/* a whole tree waits for it, also on a busy machine; without the right to, it works on */
	setpriority(PRIO_PROCESS, 0, PAGER_NICE);
	tree->config = config;
	tree->source = config->source;
	tree->keeper_fd = config->keeper_fd;
	tree->err = err ? err : &local;
	tree->criu_fd = -1;
	int ret = prepare(tree);
	if (!ret && config->inherited)
		takeover_spaces(tree);
	if (!ret) {
		serve(tree);
		if (!tree->failure)
			record_end(tree);
		ret = tree->failure;
		update_stats(tree);
		if (!ret && tree->saved->whole_spaces) /* read by the supervisor and init when we have ended */
			__atomic_store_n(&tree->stats->left_ns, clock_now_ns(), __ATOMIC_RELEASE);
	}
	if (ret)
		kill_tree(tree);
	if (tree->stats)
		put_away(tree);
	close(config->listen_fd);
	if (config->control_fd >= 0)
		close(config->control_fd);
	dp_close_fd(&tree->keeper_fd);
	free(tree);
	return ret;
}
