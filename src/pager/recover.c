/* The saving half: what a living pager does so that another can go on. takeover.c is the other half. */
#include "pager/recover.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/log.h"
#include "pager/takeover.h"
#include "pager/tree.h"
#include "sys/proc.h"

static void in_order(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* ---- shared memory ---- */

#define SAVED_HEAD_BYTES ((sizeof(struct space_saved) + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1))
#define SAVED_KIND_BYTES ((uint64_t)SAVED_RANGES * 2 * sizeof(struct range))
#define SAVED_LEAVES_AT (SAVED_HEAD_BYTES + SAVED_KINDS * SAVED_KIND_BYTES)

static struct range *saved_ranges_at(const struct space *space, enum saved_kind kind, uint32_t copy)
{
	return (struct range *)((char *)space->saved + SAVED_HEAD_BYTES + (uint64_t)kind * SAVED_KIND_BYTES) +
	       (uint64_t)copy * SAVED_RANGES;
}

static void *map_shared(int fd, uint64_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	return memory == MAP_FAILED ? NULL : memory;
}

/* Tells the keeper; without one, or when it has gone, what we have lives as long as we do. */
static int tell(struct tree *tree, enum keeper_kind kind, uint64_t key, int fd)
{
	if (tree->keeper_fd < 0)
		return 0;
	int ret = keeper_send(tree->keeper_fd, kind, key, fd);
	if (ret == -EPIPE) /* the supervisor is gone: seen by the loop, which finds another */
		return 0;
	return ret;
}

static void *saved_new(struct tree *tree, const char *name, uint64_t key, uint64_t bytes)
{
	cleanup_fd int fd = memfd_create(name, MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		return NULL;
	void *memory = map_shared(fd, bytes);
	if (memory && tell(tree, KEEPER_STATE, key, fd)) {
		munmap(memory, bytes);
		return NULL;
	}
	return memory;
}

struct tree_saved *recover_map_tree(int fd)
{
	struct tree_saved *saved = map_shared(fd, sizeof(*saved));
	if (saved && saved->magic != RECOVER_MAGIC) {
		munmap(saved, sizeof(*saved));
		return NULL;
	}
	return saved;
}

/* ---- the holder ---- */

/* For the holder: who is to be killed should it be the last one. */
struct held {
	int32_t pidfd_plus_one[HELD_PIDFDS]; /* 0: free */
};

void recover_hold_pidfd(struct tree *tree, int pidfd)
{
	for (size_t i = 0; tree->held && i < HELD_PIDFDS; i++) {
		if (tree->held->pidfd_plus_one[i])
			continue;
		tree->held->pidfd_plus_one[i] = pidfd + 1;
		return;
	}
}

void recover_drop_pidfd(struct tree *tree, int pidfd)
{
	for (size_t i = 0; tree->held && pidfd >= 0 && i < HELD_PIDFDS; i++)
		if (tree->held->pidfd_plus_one[i] == pidfd + 1)
			tree->held->pidfd_plus_one[i] = 0;
}

static void wait_for(int fd, short events, int timeout_ms)
{
	struct pollfd wait = { .fd = fd, .events = events };
	uint64_t until_ns = clock_now_ns() + (uint64_t)DP_MAX(timeout_ms, 0) * 1000000u;
	while (poll(&wait, 1, timeout_ms) <= 0 && (timeout_ms < 0 || clock_now_ns() < until_ns))
		;
}

/* Kills what the pager served, with every userfaultfd still open, and waits until it is dead. A child whose pid the pager had not
 * found yet is not among them: of a container the kernel ends it with the first. */
static void end_held(const struct held *held)
{
	uint64_t until_ns = clock_now_ns() + HELD_DEAD_WITHIN_MS * 1000000ull;
	bool any = false;
	for (size_t i = 0; i < HELD_PIDFDS; i++)
		if (held->pidfd_plus_one[i])
			any |= !proc_pidfd_kill(held->pidfd_plus_one[i] - 1, SIGKILL);
	for (size_t i = 0; i < HELD_PIDFDS; i++) {
		uint64_t now_ns = clock_now_ns();
		if (held->pidfd_plus_one[i] && now_ns < until_ns)
			wait_for(held->pidfd_plus_one[i] - 1, POLLIN, (int)((until_ns - now_ns) / 1000000u) + 1);
	}
	if (any) /* last: what libc does here might wait for a lock that a thread of the pager's had */
		log_error("supervisor, init and pager were killed: the tree was stopped rather than fed zeros");
}

/* Sleeps until nobody can need it any more: the tree's reaper has ended, and the tree with it; or (guard) whoever could end the
 * tree has gone. Then the pager ends it, and if that dies too, we do (R18). */
static void hold(const struct tree *tree, int pager_pidfd) __attribute__((noreturn));
static void hold(const struct tree *tree, int pager_pidfd)
{
	const struct pager_config *config = tree->config;
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	prctl(PR_SET_NAME, "dp-holder");
	if (config->guard_fd > 0) {
		wait_for(config->guard_fd, 0, -1);
		wait_for(pager_pidfd, POLLIN, -1);
		if (tree->held)
			end_held(tree->held);
	} else if (config->init_pidfd > 0) {
		wait_for(config->init_pidfd, POLLIN, -1);
	} else {
		wait_for(tree->keeper_fd, 0, -1);
	}
	_exit(0);
}

void recover_start_holder(struct tree *tree)
{
	if (tree->keeper_fd < 0)
		return;
	int pager_pidfd = proc_pidfd_open(getpid()); /* stays open in the table that both have */
	/* As fork, but for the descriptors. Raw: nothing of libc's is used behind it but system calls. */
	long pid = pager_pidfd < 0 ? -1 : syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		hold(tree, pager_pidfd);
	if (pid < 0) {
		log_warn("no holder for descriptors: %s", strerror(errno));
		return;
	}
	tree->holder = (pid_t)pid;
	cleanup_fd int pidfd = proc_pidfd_open((pid_t)pid);
	if (pidfd >= 0)
		tell(tree, KEEPER_HOLDER, 0, pidfd);
}

/* ---- the tree ---- */

static void mark_new(struct tree_saved *saved)
{
	saved->event_base = 1;
	in_order();
	saved->magic = RECOVER_MAGIC;
}

int recover_begin(struct tree *tree)
{
	const struct pager_config *config = tree->config;
	int ret = 0;
	if (config->inherited) {
		ret = takeover_tree(tree);
	} else {
		tree->saved = saved_new(tree, "dp-tree", 0, sizeof(*tree->saved));
		if (!tree->saved)
			return dp_fail_errno(tree->err, errno ? errno : ENOMEM, "memory for the pager's state");
		mark_new(tree->saved);
	}
	if (ret)
		return ret;
	tree->held = mmap(NULL, sizeof(*tree->held), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tree->held == MAP_FAILED) {
		tree->held = NULL;
		return dp_fail_errno(tree->err, errno, "memory for the pager's state");
	}
	/* read() puts messages there also while it is being killed, but only if the page is there. */
	mlock(tree->saved->message, sizeof(tree->saved->message));
	if (config->source->ops->keep)
		config->source->ops->keep(config->source, tree->saved->source);
	if (config->source->writable && config->source->ops->resume)
		ret = oplog_new(&tree->source, config->source, &tree->saved->oplog);
	if (ret)
		return dp_fail_errno(tree->err, -ret, "log of changes");
	if (!config->inherited)
		recover_start_holder(tree);
	return 0;
}

void recover_end(struct tree *tree)
{
	if (tree->holder > 0) {
		kill(tree->holder, SIGKILL);
		waitpid(tree->holder, NULL, 0);
	}
	if (tree->source != tree->config->source)
		tree->source->ops->free(tree->source);
	if (tree->saved)
		munmap(tree->saved, sizeof(*tree->saved));
	tree->saved = NULL;
	if (tree->held)
		munmap(tree->held, sizeof(*tree->held));
	tree->held = NULL;
}

/* ---- a space ---- */

static void initial_changed(void *context)
{
	recover_save_ranges(context, SAVED_INITIAL);
}

static int map_space(struct space *space, void *memory)
{
	space->saved = memory;
	space->doubt = space->saved->doubt;
	space->warden.job = &space->saved->job;
	return table_init_at(&space->table, (char *)memory + SAVED_LEAVES_AT, &space->saved->leaf_top, initial_changed, space);
}

int recover_space_new(struct space *space)
{
	void *memory = saved_new(space->tree, "dp-space", space->number, SAVED_LEAVES_AT + TABLE_LEAVES_BYTES);
	if (!memory)
		return errno ? -errno : -ENOMEM;
	int ret = map_space(space, memory);
	space->saved->number = space->number;
	in_order();
	space->saved->magic = RECOVER_MAGIC;
	return ret;
}

static int take_ranges(struct space *space, enum saved_kind kind, struct rangeset *set)
{
	const struct saved_ranges *saved = &space->saved->ranges[kind];
	uint32_t copy = saved->current & 1;
	const struct range *from = saved_ranges_at(space, kind, copy);
	if (saved->lost || saved->count[copy] > SAVED_RANGES)
		return -E2BIG;
	int ret = 0;
	for (uint64_t i = 0; !ret && i < saved->count[copy]; i++)
		ret = rangeset_add(set, from[i].start, from[i].end);
	return ret;
}

int recover_space_take(struct space *space, int fd)
{
	void *memory = map_shared(fd, SAVED_LEAVES_AT + TABLE_LEAVES_BYTES);
	if (!memory)
		return -errno;
	if (((struct space_saved *)memory)->magic != RECOVER_MAGIC) {
		munmap(memory, SAVED_LEAVES_AT + TABLE_LEAVES_BYTES);
		return -EBADMSG;
	}
	int ret = map_space(space, memory);
	if (!ret)
		ret = take_ranges(space, SAVED_INITIAL, &space->table.initial);
	if (!ret)
		ret = take_ranges(space, SAVED_REGISTERED, &space->registered);
	if (!ret)
		ret = take_ranges(space, SAVED_WIPE, &space->wipe);
	return ret ? ret : table_recover(&space->table);
}

void recover_space_done(struct space *space)
{
	if (space->saved)
		munmap(space->saved, SAVED_LEAVES_AT + TABLE_LEAVES_BYTES);
	space->saved = NULL;
}

void recover_save_ranges(struct space *space, enum saved_kind kind)
{
	const struct rangeset *sets[SAVED_KINDS] = { &space->table.initial, &space->registered, &space->wipe };
	const struct rangeset *set = sets[kind];
	struct saved_ranges *saved = &space->saved->ranges[kind];
	uint32_t copy = ~saved->current & 1;
	if (set->count > SAVED_RANGES) {
		saved->lost = 1;
		return;
	}
	if (set->count)
		memcpy(saved_ranges_at(space, kind, copy), set->ranges, set->count * sizeof(struct range));
	saved->count[copy] = set->count;
	in_order();
	saved->current = copy;
	saved->lost = 0;
}

void recover_save_space(struct space *space)
{
	struct space_saved *saved = space->saved;
	saved->vpid = space->vpid;
	saved->pid = space->pid;
	saved->parent_pid = space->parent_pid;
	saved->shared = space->shared;
	saved->source_space = space->source_space;
}

void recover_space_complete(struct space *space, uint64_t event)
{
	recover_save_space(space);
	recover_save_ranges(space, SAVED_INITIAL);
	recover_save_ranges(space, SAVED_REGISTERED);
	recover_save_ranges(space, SAVED_WIPE);
	space->saved->born = event;
	in_order();
	space->saved->complete = 1;
}

void recover_placing(struct space *space)
{
	const struct warden *warden = &space->warden;
	if (tell(space->tree, KEEPER_RING, space->number, warden->ring_fd) ||
	    tell(space->tree, KEEPER_EVENT, space->number, warden->event_fd))
		log_warn("the supervisor does not take a warden's descriptors");
}

void recover_save_warden(struct space *space)
{
	const struct warden *warden = &space->warden;
	struct space_saved *saved = space->saved;
	struct tree *tree = space->tree;
	bool ready = warden->state == WARDEN_READY;
	if (ready && tell(tree, KEEPER_WARDEN, space->number, warden->pidfd))
		log_warn("the supervisor does not take a warden's pidfd");
	bool first = ready && !saved->place.staging;
	if (first)
		saved->head = saved->tail = 0;
	struct warden_place place = warden_place(warden);
	place.pid = saved->place.pid;
	place.staging = saved->place.staging; /* all the rest is there before it says so */
	saved->place = place;
	saved->move_posted = saved->move_booked = saved->drop_posted = 0;
	in_order();
	saved->place.pid = ready ? warden->pid : 0;
	saved->place.staging = warden->staging;
}

void recover_retiring(struct space *space)
{
	space->saved->place.staging = 0;
	in_order();
}

/* ---- events ---- */

struct uffd_msg *recover_read_begin(struct space *space)
{
	struct tree_saved *saved = space->tree->saved;
	saved->reading = 0;
	in_order();
	for (uint32_t i = 0; i < READ_MESSAGES && saved->message[i].event; i++)
		saved->message[i].event = 0;
	saved->event_base += READ_MESSAGES;
	saved->followed = 0;
	in_order();
	saved->reading = space->number;
	in_order();
	return saved->message;
}

void recover_follow(struct tree *tree, uint32_t i)
{
	tree->saved->oplog.event = tree->saved->event_base + i;
}

void recover_followed(struct tree *tree, uint32_t i)
{
	in_order();
	tree->saved->followed = i + 1;
	tree->saved->oplog.event = 0;
	tree->repeats = false;
}

void recover_read_end(struct tree *tree)
{
	in_order();
	tree->saved->reading = 0;
}

uint64_t recover_event(const struct tree *tree)
{
	return tree->saved->oplog.event;
}

bool recover_repeats(const struct tree *tree)
{
	return tree->repeats;
}

bool recover_is_copied(const struct tree *tree)
{
	uint64_t event = recover_event(tree);
	return tree->repeats && (tree->saved->copied == event || oplog_last(&tree->saved->oplog, OP_MOVE, event));
}

void recover_copied(struct tree *tree)
{
	in_order();
	tree->saved->copied = recover_event(tree);
	in_order();
}

/* ---- the warden's commands ---- */

void recover_announce_move(struct space *space, uint64_t pages)
{
	struct space_saved *saved = space->saved;
	saved->head = space->staging.head + pages;
	saved->move_posted = space->warden.ring->posted + 1;
	in_order();
}

void recover_booked_move(struct space *space)
{
	in_order();
	space->saved->move_booked = space->saved->move_posted;
}

void recover_announce_drop(struct space *space, uint64_t slots)
{
	struct space_saved *saved = space->saved;
	saved->drop_tail = space->staging.tail + slots;
	saved->drop_posted = space->warden.ring->posted + 1;
	in_order();
}

void recover_booked_drop(struct space *space)
{
	in_order();
	space->saved->tail = space->staging.tail;
}
