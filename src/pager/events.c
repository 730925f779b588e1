/* What the process does to its own memory: fork, mremap, munmap, madvise. The thread that did it waits until the event is read,
 * and UFFDIO_COPY and MOVE answer EAGAIN until it has noticed. */
#include "pager/tree.h"

#include <errno.h>
#include <sys/syscall.h>

#include "base/log.h"
#include "sys/proc.h"
#include "sys/uffd.h"

struct forget {
	struct space *space;
	enum page_state staged_state; /* what staged pages of the range become */
	bool had_copy;
};

static void forget_page(void *context, uint32_t page, uint64_t pgno)
{
	(void)pgno;
	struct forget *forget = context;
	uint8_t now = *table_page(&forget->space->table, page);
	unsigned state = now & PAGE_STATE_MASK;
	if (state == PAGE_REMOTE || state == PAGE_DAMAGED || (now & PAGE_HAS_COPY))
		forget->had_copy = true;
	if (state == PAGE_STAGED)
		staging_release(forget->space, page, forget->staged_state);
}

/* Pages of the range lose what was under way for them; tells whether the source has anything of it. */
static bool loosen(struct space *space, uint64_t pgno, uint64_t pages, enum page_state state)
{
	struct forget forget = { space, state, rangeset_overlap(&space->table.initial, pgno, pgno + pages) > 0 };
	install_cancel(space, pgno, pages, state);
	table_each(&space->table, pgno, pages, forget_page, &forget);
	return propagate_forget(space, pgno, pages) || forget.had_copy;
}

static void tell_dropped(struct space *space, uint64_t pgno, uint64_t pages)
{
	struct source *source = space->tree->source;
	if (!source->writable)
		return;
	struct page_range range = { pgno, pages };
	int ret;
	while ((ret = source->ops->drop(source, space->source_space, &range, 1, COOKIE_IGNORED)) == -EAGAIN)
		if ((ret = lost_receive(space->tree)) < 0)
			break;
	if (ret < 0)
		tree_fail(space->tree, ret, "tell the pool of unmapped pages");
}

/* The pages are gone, or (madvise) may be any moment: they read as zero, whatever the source holds. */
static void give_up(struct space *space, uint64_t start, uint64_t end, bool keep_local)
{
	uint64_t pgno = start >> PAGE_SHIFT, pages = (end - start) >> PAGE_SHIFT;
	bool had_copy = loosen(space, pgno, pages, PAGE_ZERO);
	if (table_clear(&space->table, pgno, pages, keep_local))
		tree_fail(space->tree, -ENOMEM, "page table");
	if (had_copy || recover_repeats(space->tree))
		tell_dropped(space, pgno, pages);
}

static void on_remove(struct space *space, uint64_t start, uint64_t end)
{
	const struct warden *warden = &space->warden;
	space->tree->stats->events_remove++;
	if (warden->staging && start >= warden->staging && end <= warden->staging + warden->staging_bytes)
		return; /* the warden gives staging back */
	/* MADV_DONTNEED removes, MADV_FREE only may: local pages are looked at when it has been done. */
	give_up(space, start, end, true);
	doubt_note(space, start, end, true);
}

static void on_unmap(struct space *space, uint64_t start, uint64_t end)
{
	space->tree->stats->events_unmap++;
	give_up(space, start, end, false);
	if (rangeset_remove(&space->registered, start, end) || rangeset_remove(&space->wipe, start, end))
		tree_fail(space->tree, -ENOMEM, "list of areas");
	recover_save_ranges(space, SAVED_REGISTERED);
	recover_save_ranges(space, SAVED_WIPE);
}

/* What is known of the old range is known of the new one too: repeatable until it was done (recover.h R3). */
static int follow_remap(struct space *space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages)
{
	struct tree *tree = space->tree;
	struct source *source = tree->source;
	staging_flush(space);
	give_up(space, to_pgno << PAGE_SHIFT, (to_pgno + pages) << PAGE_SHIFT, false);
	/* Staged pages: the source has their content (P2), and moves it along. */
	bool had_copy = loosen(space, from_pgno, pages, PAGE_REMOTE) || recover_repeats(tree);
	int ret = table_relocate_copy(&space->table, from_pgno, to_pgno, pages);
	while (!ret && had_copy && source->ops->move) {
		ret = source->ops->move(source, space->source_space, from_pgno, to_pgno, pages, COOKIE_IGNORED);
		if (ret != -EAGAIN)
			break;
		ret = DP_MIN(lost_receive(tree), 0);
	}
	if (!ret)
		recover_copied(tree);
	return ret;
}

static void on_remap(struct space *space, uint64_t from, uint64_t to, uint64_t bytes)
{
	struct tree *tree = space->tree;
	uint64_t from_pgno = from >> PAGE_SHIFT, to_pgno = to >> PAGE_SHIFT, pages = bytes >> PAGE_SHIFT;
	int ret = 0;
	tree->stats->events_remap++;
	if (!recover_is_copied(tree))
		ret = follow_remap(space, from_pgno, to_pgno, pages);
	if (!ret)
		ret = table_clear(&space->table, from_pgno, pages, false);
	if (!ret)
		ret = rangeset_remove(&space->registered, from, from + bytes);
	if (!ret)
		ret = rangeset_add(&space->registered, to, to + bytes);
	if (ret)
		tree_fail(tree, ret, "follow a moved area");
	recover_save_ranges(space, SAVED_REGISTERED);
	doubt_note(space, to, to + bytes, false);
}

/* What the parent has staged the child gets from the source (P2), but for pages of zeros, which no source keeps (P11). Leaves
 * have the same numbers in both tables. */
static void fork_staged_zeros(struct space *child, const struct space *parent)
{
	const struct staging *staging = &parent->staging;
	for (uint64_t at = staging->tail; at < staging->head; at++) {
		uint64_t slot = at % staging->capacity;
		if (staging->state[slot] == SLOT_ZEROS && staging->page[slot] != NO_PAGE)
			table_change(&child->table, staging->page[slot], PAGE_ZERO, 0, PAGE_HAS_COPY);
	}
}

/* Areas that the parent marked MADV_WIPEONFORK are empty in the child. */
static void wipe(struct space *child)
{
	for (size_t i = 0; i < child->wipe.count; i++)
		if (table_clear(&child->table, child->wipe.ranges[i].start >> PAGE_SHIFT,
				(child->wipe.ranges[i].end - child->wipe.ranges[i].start) >> PAGE_SHIFT, false))
			tree_fail(child->tree, -ENOMEM, "page table");
}

static void on_fork(struct space *space, int uffd)
{
	struct tree *tree = space->tree;
	struct source *source = tree->source;
	tree->stats->events_fork++;
	staging_flush(space);
	struct space *child = space_new(tree, uffd);
	if (!child) {
		close(uffd);
		tree_fail(tree, -ENOMEM, "space of a forked child");
		return;
	}
	int ret = table_fork(&child->table, &space->table);
	if (!ret)
		ret = rangeset_copy(&child->registered, &space->registered);
	if (!ret)
		ret = rangeset_copy(&child->wipe, &space->wipe);
	while (!ret) {
		ret = source->ops->fork(source, space->source_space, &child->source_space, COOKIE_IGNORED);
		if (ret != -EAGAIN)
			break;
		ret = DP_MIN(lost_receive(tree), 0);
	}
	if (ret) {
		tree_fail(tree, ret, "fork a space");
		return;
	}
	fork_staged_zeros(child, space);
	wipe(child);
	/* The warden's areas stay with the parent (MADV_DONTFORK): the child's own is injected when it is needed. */
	if (space->warden.staging)
		rangeset_remove(&child->registered, space->warden.staging, space->warden.staging + space->warden.staging_bytes);
	child->parent_pid = space->pid;
	child->vpid = 0;
	child->doubt_all = true; /* it may lack areas of its parent (MADV_DONTFORK) */
	child->known_size_pages = 0; /* its areas are looked at as soon as its pid is known */
	child->shared = space->shared = true;
	child->protects = space->protects; /* the kernel passes on what is protected, and what is not */
	child->unprotected = through_is_busy(tree, space);
	child->saved->doubt_all = 1;
	recover_save_space(space);
	recover_space_complete(child, recover_event(tree));
	tree->next_watch_ns = 0;
	tree->next_sample_ns = 0;
}

void events_handle(struct space *space, const struct uffd_msg *message)
{
	switch (message->event) {
	case UFFD_EVENT_FORK:
		on_fork(space, (int)message->arg.fork.ufd);
		break;
	case UFFD_EVENT_REMAP:
		on_remap(space, message->arg.remap.from, message->arg.remap.to, message->arg.remap.len);
		break;
	case UFFD_EVENT_REMOVE:
		on_remove(space, message->arg.remove.start, message->arg.remove.end);
		break;
	case UFFD_EVENT_UNMAP:
		on_unmap(space, message->arg.remove.start, message->arg.remove.end);
		break;
	default:
		log_warn("unknown userfaultfd event %#x", message->event);
	}
}
