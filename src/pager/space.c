/* One address space: its descriptors, its table, its end.
 *
 * How the end of a process is told from what only looks like it (tests/unit/test_ends.c has it all as tests):
 *   E1 A userfaultfd answers ESRCH as soon as nobody has the memory any more. That is the only proof, and nothing else closes a
 *      descriptor of memory in which anything is missing: whoever runs on there would be fed zeros.
 *   E2 A pidfd is readable when all threads have ended. The memory may live on in others: the warden, a vfork's child, whoever
 *      shares it.
 *   E3 A thread that ends lets go of its memory before it is a zombie. From then on, by its number, the kernel says: no memory,
 *      and another memory than anyone's (kcmp). The first thread's number is the process's, and it may end long before the others
 *      (pthread_exit).
 *   E4 execve gives the process another memory: kcmp says so of a thread and the warden, while both still have one.
 * So what ends for certain (E2) or has gone elsewhere (E4) loses its warden, which may be the last to hold the memory, and then
 * E1 is waited for. */
#include "pager/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/log.h"
#include "instance/keeper.h"
#include "sys/proc.h"
#include "sys/uffd.h"

#define LEFT_NS (1000u * 1000 * 1000) /* for a warden that was killed to be gone */

static void tell_keeper(struct space *space, enum keeper_kind kind, int fd)
{
	int keeper_fd = space->tree->keeper_fd;
	int ret = keeper_fd < 0 ? 0 : keeper_send(keeper_fd, kind, space->number, fd);
	if (ret && ret != -EPIPE) /* gone: the loop sees it too, and finds another */
		tree_fail(space->tree, ret, "the supervisor does not take a descriptor");
}

struct space *space_find(const struct tree *tree, uint32_t number)
{
	for (struct space *space = tree->spaces; space; space = space->next)
		if (space->number == number)
			return space->closed ? NULL : space;
	return NULL;
}

struct space *space_again(struct tree *tree, int uffd, uint32_t number)
{
	struct space *space = calloc(1, sizeof(*space));
	if (!space)
		return NULL;
	space->tree = tree;
	space->number = number;
	space->uffd = uffd;
	residency_ahead_init(&space->ahead, &tree->budget);
	space->pidfd = space->statm_fd = space->pagemap_fd = -1;
	space->born_ns = clock_now_ns();
	space->uffd_handle = (struct handle){ HANDLE_UFFD, space };
	space->warden_handle = (struct handle){ HANDLE_WARDEN, space };
	space->pidfd_handle = (struct handle){ HANDLE_PIDFD, space };
	space->prefetcher.policy = tree->config->prefetch_policy; /* the rest is zero and stays untouched until needed */
	warden_init(&space->warden, NULL);
	return space;
}

struct space *space_new(struct tree *tree, int uffd)
{
	tree->saved->space_numbers = ++tree->space_numbers;
	struct space *space = space_again(tree, uffd, tree->space_numbers);
	if (!space)
		return NULL;
	if (recover_space_new(space)) {
		table_done(&space->table);
		recover_space_done(space);
		free(space);
		return NULL;
	}
	space->next = tree->spaces;
	tree->spaces = space;
	tell_keeper(space, KEEPER_UFFD, uffd);
	int ret = tree_watch_fd(tree, uffd, &space->uffd_handle);
	if (ret)
		tree_fail(tree, ret, "watch a userfaultfd");
	return space;
}

/* pagemap's descriptor stays the memory's, statm's is the thread's. */
static void look_through(struct space *space, pid_t thread)
{
	char path[64];
	dp_close_fd(&space->statm_fd);
	dp_close_fd(&space->pagemap_fd);
	space->thread = thread;
	snprintf(path, sizeof(path), "/proc/%d/statm", thread);
	space->statm_fd = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", thread);
	space->pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
}

bool space_find_thread(struct space *space)
{
	if (space->pid <= 0)
		return false;
	if (proc_has_memory(space->thread))
		return true;
	pid_t thread = proc_live_thread(space->pid);
	if (thread > 0)
		look_through(space, thread);
	return thread > 0;
}

int space_set_pid(struct space *space, pid_t pid, int pidfd)
{
	space->pid = pid;
	space->pidfd = pidfd;
	look_through(space, pid);
	recover_hold_pidfd(space->tree, pidfd);
	tell_keeper(space, KEEPER_PIDFD, pidfd);
	recover_save_space(space);
	return tree_watch_fd(space->tree, pidfd, &space->pidfd_handle);
}

static void unwatch(struct tree *tree, int fd)
{
	if (fd >= 0)
		epoll_ctl(tree->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

static void discard_warden(struct space *space)
{
	struct tree *tree = space->tree;
	if (space->warden.state == WARDEN_ABSENT)
		return;
	unwatch(tree, space->warden.event_fd);
	unwatch(tree, space->warden.pidfd);
	warden_discard(&space->warden);
}

static void forget_pid(struct space *space)
{
	unwatch(space->tree, space->pidfd);
	recover_drop_pidfd(space->tree, space->pidfd);
	dp_close_fd(&space->pidfd);
	dp_close_fd(&space->statm_fd);
	dp_close_fd(&space->pagemap_fd);
	space->pidfd = space->statm_fd = space->pagemap_fd = -1;
	space->pid = space->thread = 0;
}

/* Whoever else has the memory that the warden has: a vfork's child, say, whose parent was killed. 0: nobody in the tree. */
static pid_t find_heir(const struct space *space)
{
	const struct tree *tree = space->tree;
	cleanup_free pid_t *pids = NULL;
	pid_t top = tree->config->init_pid > 0 ? tree->config->init_pid : getpid();
	ssize_t count = proc_tree(top, &pids);
	for (ssize_t i = 1; i < count; i++) {
		pid_t thread = pids[i] == space->warden.pid ? 0 : proc_live_thread(pids[i]);
		if (thread > 0 && proc_same_memory(thread, space->warden.pid) == 1)
			return pids[i];
	}
	return 0;
}

void space_leave(struct space *space)
{
	struct tree *tree = space->tree;
	pid_t left = space->pid, heir = space->warden.state == WARDEN_READY ? find_heir(space) : 0;
	int heir_fd = heir > 0 ? proc_pidfd_open(heir) : -1;
	forget_pid(space);
	space->left_ns = clock_now_ns();
	tree->next_watch_ns = 0;
	if (heir_fd >= 0 && proc_live_thread(heir) > 0) {
		log_info("process %d has left its memory to process %d", left, heir);
		int ret = space_set_pid(space, heir, heir_fd);
		if (ret)
			tree_fail(tree, ret, "watch a process");
		return;
	}
	dp_close_fd(&heir_fd);
	log_info("process %d has left its memory", left);
	if (space->warden.state != WARDEN_ABSENT && space->warden.state != WARDEN_LOST) {
		unwatch(tree, space->warden.event_fd);
		unwatch(tree, space->warden.pidfd);
		warden_kill(&space->warden);
		space->warden_killed = true;
	}
	recover_save_space(space);
}

/* Nothing of the space is used after this; its memory is freed at the end of the turn (messages may still point at it). */
void space_close(struct space *space)
{
	struct tree *tree = space->tree;
	if (space->closed)
		return;
	space->closed = true;
	for (unsigned i = 0; i < REQUESTS; i++)
		if (tree->request[i].space == space)
			tree->request[i].wanted = 0;
	for (uint32_t i = 0; i < tree->deferred_count; i++) {
		struct deferred_fault *fault = &tree->deferred[(tree->deferred_head + i) % DEFERRED_FAULTS];
		if (fault->space == space)
			fault->space = NULL;
	}
	unwatch(tree, space->uffd);
	unwatch(tree, space->pidfd);
	discard_warden(space);
	if (tree->source->ops->space_free)
		tree->source->ops->space_free(tree->source, space->source_space, COOKIE_IGNORED);
	tell_keeper(space, KEEPER_RELEASE, -1);
}

static bool still_answered(const struct space *space)
{
	const struct tree *tree = space->tree;
	for (unsigned i = 0; i < REQUESTS; i++)
		if (tree->request[i].space == space)
			return true;
	for (unsigned i = 0; i < WRITE_BATCHES; i++)
		if (tree->batch[i].space == space)
			return true;
	return false;
}

void space_free(struct space *space)
{
	struct tree *tree = space->tree;
	if (still_answered(space))
		return; /* the source's last answers come first */
	for (struct space **at = &tree->spaces; *at; at = &(*at)->next)
		if (*at == space) {
			*at = space->next;
			break;
		}
	dp_close_fd(&space->uffd);
	recover_drop_pidfd(tree, space->pidfd);
	dp_close_fd(&space->pidfd);
	dp_close_fd(&space->statm_fd);
	dp_close_fd(&space->pagemap_fd);
	table_done(&space->table);
	staging_done(&space->staging);
	rangeset_done(&space->registered);
	rangeset_done(&space->left_open);
	rangeset_done(&space->wipe);
	recover_space_done(space);
	free(space);
}

/* An address that no program has mapped tells: ENOENT or ESRCH. */
bool space_is_changing(const struct space *space)
{
	int error; /* the kernel looks at that before it looks at the address */
	uffd_zero(space->uffd, 0x7fffffffe000ull, PAGE_BYTES, &error);
	return error == -EAGAIN;
}

bool space_memory_is_gone(const struct space *space)
{
	int error;
	uffd_zero(space->uffd, 0x7fffffffe000ull, PAGE_BYTES, &error);
	return error == -ESRCH;
}

bool space_was_replaced(struct space *space)
{
	const struct warden *warden = &space->warden;
	if (warden->state != WARDEN_READY || space->pid <= 0 || proc_same_memory(space->thread, warden->pid) != 0)
		return false;
	/* E3: both must have one still, after they were compared; and be who they were. */
	return space_find_thread(space) && proc_same_memory(space->thread, warden->pid) == 0 && proc_has_memory(space->thread) &&
	       !warden_is_dead(warden) && !proc_pidfd_has_ended(space->pidfd);
}

static void memory_stays(struct space *space)
{
	struct tree *tree = space->tree;
	uint64_t since_ns = clock_now_ns() - space->left_ns;
	if (!space->warden_killed || since_ns < LEFT_NS)
		return;
	/* Somebody has it who shares it and was not found. What the warden had begun is found out as after a crash of ours
	 * (evict_warden_lost). */
	if (tree->keeper_fd >= 0) {
		log_warn("memory that its process has left is still in use: another pager goes on");
		kill(getpid(), SIGKILL);
	}
	tree_fail(tree, -ESRCH, "memory that its process has left is still in use");
}

void space_lost(struct space *space)
{
	if (space_memory_is_gone(space)) {
		log_info("space %u of process %d has ended", space->number, space->pid);
		space_close(space);
	} else if (space->warden.state == WARDEN_READY && warden_is_dead(&space->warden)) {
		evict_warden_lost(space);
	} else if (space->pid <= 0) {
		memory_stays(space);
	} else if (proc_pidfd_has_ended(space->pidfd) || space_was_replaced(space)) {
		space_leave(space);
	} else if (space_find_thread(space)) {
		tree_fail(space->tree, -EFAULT, "the memory of process %d cannot be reached", space->pid);
	}
	/* Else its last thread is ending: the pidfd tells when it has (E2). */
}
