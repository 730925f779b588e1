/* The taking half of recover.h: from what a dead pager left to where it was. Every step may be repeated, should this one die
 * too. */
#include "pager/takeover.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/uio.h>

#include "base/log.h"
#include "pager/tree.h"
#include "sys/proc.h"
#include "sys/uffd.h"

#define LOWEST_ADDRESS 0x10000ull
#define HIGHEST_ADDRESS 0x7ffffffff000ull

static int kept_fd(const struct tree *tree, enum keeper_kind kind, uint64_t key)
{
	const struct pager_inheritance *inherited = tree->config->inherited;
	for (size_t i = 0; i < inherited->count; i++)
		if (inherited->kept[i].kind == kind && inherited->kept[i].key == key)
			return inherited->kept[i].fd;
	return -1;
}

/* Ours to keep and close, while the list stays what it is. */
static int take_fd(const struct tree *tree, enum keeper_kind kind, uint64_t key)
{
	int fd = kept_fd(tree, kind, key);
	return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

int takeover_tree(struct tree *tree)
{
	int fd = kept_fd(tree, KEEPER_STATE, 0);
	tree->saved = fd < 0 ? NULL : recover_map_tree(fd);
	if (!tree->saved)
		return dp_fail(tree->err, ENODATA, "a pager that died left nothing that another could go on with");
	if (!tree->saved->finished)
		return dp_fail(tree->err, ECANCELED, "the pager died before CRIU had handed over the whole tree");
	if (!oplog_sound(&tree->saved->oplog) || tree->saved->followed > READ_MESSAGES)
		return dp_fail(tree->err, EBADMSG, "what a pager that died left cannot be right: nobody goes on with it");
	tree->saved->restarts++;
	tree->space_numbers = tree->saved->space_numbers;
	tree->finished = tree->running = true;
	return 0;
}

/* ---- staging ---- */

static void claim_slot(void *context, uint32_t page, uint64_t pgno)
{
	(void)pgno;
	struct space *space = context;
	struct staging *staging = &space->staging;
	uint8_t now = *table_page(&space->table, page);
	if ((now & PAGE_STATE_MASK) != PAGE_STAGED)
		return;
	uint32_t slot = *table_link(&space->table, page);
	if (slot < staging->capacity && staging->state[slot] == SLOT_GARBAGE) {
		table_doubt_hash(&space->table, page); /* R8 */
		staging->page[slot] = page;
		staging->state[slot] = SLOT_FRESH;
		staging->held++;
	} else if (slot >= staging->capacity || staging->state[slot] != SLOT_FRESH || staging->page[slot] != page) {
		/* Its slot was dropped (R6): zeros are the only content of which the source has no copy then. */
		table_change(&space->table, page, now & PAGE_HAS_COPY ? PAGE_REMOTE : PAGE_ZERO, 0, PAGE_HAS_COPY);
	}
}

/* A DROP that was posted: its slots are empty, or will be any moment (R6). */
static void take_drop(struct space *space)
{
	struct staging *staging = &space->staging;
	const struct space_saved *saved = space->saved;
	const struct warden_ring *ring = space->warden.ring;
	uint64_t slots = saved->drop_tail - saved->tail;
	if (!ring || saved->drop_posted != ring->posted || ring->command != WARDEN_DROP || !slots ||
	    slots > staging->head - staging->tail)
		return;
	for (uint64_t at = staging->tail; at < saved->drop_tail; at++) {
		uint64_t slot = at % staging->capacity;
		staging->present -= staging->state[slot] != SLOT_EMPTY;
		staging->page[slot] = NO_PAGE;
		staging->state[slot] = SLOT_EMPTY;
	}
	if (space->warden.state == WARDEN_READY && __atomic_load_n(&ring->done, __ATOMIC_ACQUIRE) != ring->posted) {
		staging->dropping = slots;
	} else if (space->warden.state == WARDEN_READY) {
		staging->tail = saved->drop_tail;
		recover_booked_drop(space);
	}
}

static void queue_page(void *context, uint32_t page, uint64_t pgno)
{
	(void)pgno;
	struct space *space = context;
	uint8_t now = *table_page(&space->table, page);
	if ((now & PAGE_STATE_MASK) == PAGE_LOCAL)
		table_enqueue(&space->table, page, now & PAGE_MAIN ? QUEUE_MAIN : QUEUE_SMALL);
}

static int take_staging(struct space *space)
{
	const struct space_saved *saved = space->saved;
	struct staging *staging = &space->staging;
	if (saved->place.staging_bytes < PAGE_BYTES || saved->place.staging_bytes > HIGHEST_ADDRESS)
		return -EBADMSG;
	int ret = staging_init(staging, saved->place.staging_bytes / PAGE_BYTES);
	if (ret)
		return ret;
	for (uint64_t slot = 0; slot < staging->capacity; slot++)
		staging->page[slot] = NO_PAGE;
	staging->head = saved->head;
	staging->tail = saved->tail;
	if (staging->head < staging->tail || staging->head - staging->tail > staging->capacity)
		return -EBADMSG;
	evict_settle(space); /* R5 */
	take_drop(space);
	table_each(&space->table, 0, UINT64_MAX >> PAGE_SHIFT, claim_slot, space);
	if (space->warden.state != WARDEN_READY) /* what the dead one did not drop is dropped by the next */
		evict_settle(space);
	staging->written = staging->tail + staging->dropping;
	return 0;
}

/* A warden that was being placed, or taken out: its injector goes on, or has ended meanwhile. */
static void take_job(struct space *space)
{
	struct tree *tree = space->tree;
	const struct warden_job *job = &space->saved->job;
	uint32_t state = __atomic_load_n(&job->state, __ATOMIC_ACQUIRE);
	bool booked = job->kind == JOB_PLACE && state == JOB_DONE && space->warden.state == WARDEN_READY &&
		      space->warden.pid == job->place.pid;
	if (state == JOB_NONE || state == JOB_UNWANTED)
		return;
	if (booked)
		warden_job_over(&space->warden);
	else
		warden_adopt_job(&space->warden, take_fd(tree, KEEPER_RING, space->number),
				 take_fd(tree, KEEPER_EVENT, space->number));
}

static int take_warden(struct space *space)
{
	struct tree *tree = space->tree;
	const struct space_saved *saved = space->saved;
	struct warden *warden = &space->warden;
	int pidfd = take_fd(tree, KEEPER_WARDEN, space->number);
	uint32_t job = __atomic_load_n(&saved->job.state, __ATOMIC_ACQUIRE);
	if (!saved->place.staging) {
		if (pidfd >= 0 && job == JOB_NONE) /* R15 */
			proc_pidfd_kill(pidfd, SIGKILL);
		dp_close_fd(&pidfd);
		return 0;
	}
	warden_set_place(warden, &saved->place);
	int ret = warden_adopt(warden, take_fd(tree, KEEPER_RING, space->number), take_fd(tree, KEEPER_EVENT, space->number),
			       pidfd);
	if (ret)
		return ret;
	if (warden->ring->command == WARDEN_MOVE)
		warden_wait_move(warden);
	bool dead = warden_is_dead(warden);
	if (dead) {
		warden->pid = 0;
		warden->state = WARDEN_LOST;
	}
	ret = take_staging(space);
	if (dead) {
		tree->stats->warden_restarts++;
		warden_lose(warden);
		recover_save_warden(space);
	} else if (!ret) {
		warden->busy = __atomic_load_n(&warden->ring->done, __ATOMIC_ACQUIRE) != warden->ring->posted;
		ret = evict_watch_warden(space);
	}
	return ret;
}

/* ---- a space ---- */

static int take_process(struct space *space)
{
	const struct space_saved *saved = space->saved;
	if (saved->pid <= 0)
		return 0; /* a forked child that is still looked for, or memory that its process has left */
	int pidfd = take_fd(space->tree, KEEPER_PIDFD, space->number);
	if (pidfd < 0)
		return saved->vpid ? -ESRCH : 0;
	int ret = space_set_pid(space, saved->pid, pidfd);
	space_find_thread(space);
	return ret;
}

static void take_space(struct tree *tree, uint32_t number, int state_fd)
{
	int uffd = take_fd(tree, KEEPER_UFFD, number);
	struct space *space = uffd < 0 ? NULL : space_again(tree, uffd, number);
	if (!space) {
		tree_fail(tree, -EBADF, "take over space %u", number);
		return;
	}
	space->next = tree->spaces;
	tree->spaces = space;
	int ret = recover_space_take(space, state_fd);
	if (!ret) {
		const struct space_saved *saved = space->saved;
		space->vpid = saved->vpid;
		space->parent_pid = saved->parent_pid;
		space->source_space = saved->source_space;
		space->shared = saved->shared;
		space->doubts = DP_MIN(saved->doubts, DOUBTS);
		space->doubt_all = true; /* R10 */
		ret = take_process(space);
	}
	if (!ret)
		ret = tree_watch_fd(tree, uffd, &space->uffd_handle);
	bool gone = !ret && space_memory_is_gone(space);
	if (!ret && !gone) {
		ret = take_warden(space);
		take_job(space);
	}
	if (!ret)
		table_each(&space->table, 0, UINT64_MAX >> PAGE_SHIFT, queue_page, space);
	if (ret)
		tree_fail(tree, ret, "take over process %d", space->saved ? space->saved->pid : 0);
	log_info("process %d is taken over: %lu pages local, %lu staged, %lu remote", space->pid, space->table.counts[PAGE_LOCAL],
		 space->table.counts[PAGE_STAGED], space->table.counts[PAGE_REMOTE]);
}

/* ---- changes that the source was told ---- */

static struct space *space_of_number(const struct tree *tree, uint32_t number)
{
	for (struct space *space = tree->spaces; space; space = space->next)
		if (space->number == number)
			return space;
	return NULL;
}

static int read_put(void *context, const struct op *op, void *data)
{
	struct space *space = space_of_number(context, op->space_number);
	if (!space || !space->warden.staging)
		return -ENOENT;
	for (uint32_t i = 0; i < op->count; i++) {
		if (op->page[i].slot >= space->staging.capacity)
			return -EBADMSG;
		struct iovec local = { (uint8_t *)data + (uint64_t)i * PAGE_BYTES, PAGE_BYTES };
		struct iovec remote = { (void *)(space->warden.staging + op->page[i].slot * PAGE_BYTES), PAGE_BYTES };
		if (space->warden.pid <= 0)
			space_find_thread(space);
		if (process_vm_readv(staging_reader(space), &local, 1, &remote, 1, 0) != PAGE_BYTES)
			return space_memory_is_gone(space) ? -ENOENT : -EFAULT;
	}
	return 0;
}

/* The source refused it. Where staging still holds every page of it, they are sent again in time. */
static int put_failed(void *context, const struct op *op, int result)
{
	struct space *space = space_of_number(context, op->space_number);
	for (uint32_t i = 0; space && i < op->count; i++) {
		uint32_t page = table_find(&space->table, op->page[i].pgno);
		if (page == NO_PAGE || (*table_page(&space->table, page) & PAGE_STATE_MASK) == PAGE_REMOTE)
			return result;
	}
	return 0;
}

/* R16 */
static void doubt_pushes(struct tree *tree)
{
	const struct oplog_area *log = &tree->saved->oplog;
	for (uint64_t number = log->tail + 1; number <= log->head; number++) {
		const struct op *op = &log->op[number % OPLOG_RECORDS];
		for (struct space *space = tree->spaces; space && op->kind == OP_PUT; space = space->next)
			for (uint32_t i = 0; space->source_space == op->space && i < op->count; i++) {
				uint32_t page = table_find(&space->table, op->page[i].pgno);
				if (page != NO_PAGE && (*table_page(&space->table, page) & PAGE_HAS_COPY))
					table_doubt_hash(&space->table, page);
			}
	}
}

static void replay(struct tree *tree)
{
	uint64_t replayed = 0;
	if (!tree->config->source->writable)
		return;
	doubt_pushes(tree);
	/* The tree's faults wait meanwhile, as they would have done with the pager that died. */
	const struct pager_config *config = tree->config;
	uint64_t patience_ns = config->on_lost != ON_LOST_KILL ? UINT64_MAX / 2
			       : config->stall_timeout_ns	? config->stall_timeout_ns
								: STALL_TIMEOUT_NS;
	int ended_fd = config->init_pidfd > 0 ? config->init_pidfd : -1;
	int ret = tree->source == config->source ? -ENOSYS
						 : oplog_replay(tree->source, read_put, put_failed, tree, patience_ns, ended_fd,
								&replayed);
	if (ret == -ENOSYS)
		tree_fail(tree, ret, "the source of the pages cannot be taken over by another pager");
	else if (ret)
		tree_fail(tree, ret, "tell the pool again what it may not know");
	log_info("%lu changes were told to the pool again", replayed);
}

/* ---- events ---- */

/* The userfaultfd of a fork's message: in the dead pager's table, which the holder shares (R1); or the keeper has it already, for
 * a child that did not come to be complete. */
static int forked_uffd(struct tree *tree, int number)
{
	const struct pager_inheritance *inherited = tree->config->inherited;
	int holder = kept_fd(tree, KEEPER_HOLDER, 0), best = -1;
	int fd = holder < 0 ? -ESRCH : proc_pidfd_getfd(holder, number);
	if (fd >= 0)
		return fd;
	uint64_t highest = 0;
	for (size_t i = 0; i < inherited->count; i++) {
		const struct kept *kept = &inherited->kept[i];
		if (kept->kind == KEEPER_UFFD && kept->key > highest && !space_of_number(tree, (uint32_t)kept->key)) {
			highest = kept->key;
			best = kept->fd;
		}
	}
	return best < 0 ? -ENOENT : fcntl(best, F_DUPFD_CLOEXEC, 3);
}

static bool child_is_complete(const struct tree *tree, uint64_t event)
{
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (space->saved->born == event)
			return true;
	return false;
}

static void follow_again(struct tree *tree, struct space *space, uint32_t i)
{
	struct uffd_msg message = tree->saved->message[i];
	recover_follow(tree, i);
	tree->repeats = true;
	if (message.event == UFFD_EVENT_FORK) {
		if (child_is_complete(tree, recover_event(tree)))
			return;
		int fd = forked_uffd(tree, (int)message.arg.fork.ufd);
		if (fd < 0) {
			tree_fail(tree, fd, "the userfaultfd of a forked child was lost with the pager");
			return;
		}
		message.arg.fork.ufd = (uint32_t)fd;
	}
	events_handle(space, &message);
}

static void follow_events(struct tree *tree)
{
	struct tree_saved *saved = tree->saved;
	struct space *space = saved->reading ? space_of_number(tree, saved->reading) : NULL;
	tree->reading_events = true;
	for (uint32_t i = saved->followed; space && i < READ_MESSAGES && saved->message[i].event && !tree->failure; i++) {
		if (saved->message[i].event != UFFD_EVENT_PAGEFAULT && !space->closed)
			follow_again(tree, space, i);
		recover_followed(tree, i);
	}
	tree->reading_events = false;
	recover_read_end(tree);
}

/* ---- all of it ---- */

static bool is_complete(int state_fd)
{
	struct space_saved head;
	return pread(state_fd, &head, sizeof(head), 0) == (ssize_t)sizeof(head) && head.magic == RECOVER_MAGIC && head.complete;
}

static void release_rest(struct tree *tree)
{
	const struct pager_inheritance *inherited = tree->config->inherited;
	for (size_t i = 0; i < inherited->count; i++) {
		const struct kept *kept = &inherited->kept[i];
		bool used = kept->key == 0 || space_of_number(tree, (uint32_t)kept->key);
		if (!used && tree->keeper_fd >= 0)
			keeper_send(tree->keeper_fd, KEEPER_RELEASE, kept->key, -1);
		if (kept->kind == KEEPER_HOLDER)
			proc_pidfd_kill(kept->fd, SIGKILL);
		close(kept->fd);
	}
}

void takeover_spaces(struct tree *tree)
{
	const struct pager_inheritance *inherited = tree->config->inherited;
	uint64_t began_ns = clock_now_ns();
	tree->stats->pager_restarts = tree->saved->restarts;
	for (size_t i = 0; i < inherited->count && !tree->failure; i++) {
		const struct kept *kept = &inherited->kept[i];
		if (kept->kind == KEEPER_STATE && kept->key && is_complete(kept->fd))
			take_space(tree, (uint32_t)kept->key, kept->fd);
	}
	if (!tree->failure)
		replay(tree);
	if (!tree->failure)
		follow_events(tree);
	if (tree->failure)
		return; /* kill_tree, with everything still open */
	recover_start_holder(tree);
	release_rest(tree);
	lost_inherit(tree);
	for (struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed)
			through_protect(space); /* what was open then */
	for (struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed)
			uffd_wake(space->uffd, LOWEST_ADDRESS, HIGHEST_ADDRESS - LOWEST_ADDRESS); /* R12 */
	log_warn("a pager died and was followed by this one within %lu us; nothing was lost", (clock_now_ns() - began_ns) / 1000);
}
