/* One address space: its descriptors, its table, its end. */
#include "pager/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/log.h"
#include "instance/keeper.h"
#include "sys/proc.h"
#include "sys/uffd.h"

static void tell_keeper(struct space *space, enum keeper_kind kind, int fd)
{
	int keeper_fd = space->tree->keeper_fd;
	int ret = keeper_fd < 0 ? 0 : keeper_send(keeper_fd, kind, space->number, fd);
	if (ret && ret != -EPIPE) /* gone: the loop sees it too, and finds another */
		tree_fail(space->tree, ret, "the supervisor does not take a descriptor");
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

int space_set_pid(struct space *space, pid_t pid, int pidfd)
{
	char path[64];
	space->pid = pid;
	space->pidfd = pidfd;
	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	space->statm_fd = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	space->pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
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

void space_forget_pid(struct space *space)
{
	unwatch(space->tree, space->pidfd);
	dp_close_fd(&space->pidfd);
	dp_close_fd(&space->statm_fd);
	dp_close_fd(&space->pagemap_fd);
	space->pidfd = space->statm_fd = space->pagemap_fd = -1;
	space->pid = 0;
	recover_save_space(space);
	discard_warden(space);
	space->tree->next_watch_ns = 0;
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
	dp_close_fd(&space->pidfd);
	dp_close_fd(&space->statm_fd);
	dp_close_fd(&space->pagemap_fd);
	table_done(&space->table);
	staging_done(&space->staging);
	rangeset_done(&space->registered);
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

static bool has_ended(const struct space *space)
{
	int state = space->pid > 0 ? proc_state(space->pid) : 0;
	return state == -ESRCH || state == 'Z' || state == 'X';
}

/* execve gives the process a new mm, and the warden keeps the old one alive. A warden that ends has none, which is another than the process's
 * too: so it must still have one after they were compared. */
bool space_was_replaced(const struct space *space)
{
	return space->warden.state == WARDEN_READY && space->pid > 0 && proc_same_memory(space->pid, space->warden.pid) == 0 &&
	       !warden_is_dead(&space->warden);
}

void space_lost(struct space *space)
{
	bool gone = space_memory_is_gone(space) || has_ended(space);
	if (!gone && space->warden.state == WARDEN_READY && warden_is_dead(&space->warden)) {
		evict_warden_lost(space);
		return;
	}
	if (!gone && !space_was_replaced(space)) {
		tree_fail(space->tree, -EFAULT, "the memory of process %d cannot be reached", space->pid);
		return;
	}
	log_info("space %u of process %d has ended", space->number, space->pid);
	space_close(space);
}
