/* A fault's way, from the kernel's message to the woken thread. One thread, no allocation, no lock, no log. */
#include "pager/tree.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "sys/uffd.h"

/* A process that grows touches one fresh page after the other: it gets a few at once. */
static uint64_t zero_run(struct space *space, uint64_t pgno)
{
	struct tree *tree = space->tree;
	bool grows = pgno == space->zero_next && residency_has_room(&tree->budget, tree_used_pages(tree), ZERO_RUN_PAGES);
	space->zero_window = grows ? DP_MIN(space->zero_window * 2, ZERO_RUN_PAGES) : 1;
	uint64_t pages = 1;
	while (pages < space->zero_window && table_state(&space->table, pgno + pages) == PAGE_ZERO &&
	       rangeset_contains(&space->registered, (pgno + pages) << PAGE_SHIFT))
		pages++;
	space->zero_next = pgno + pages;
	return pages;
}

/* Without room the fault waits until pages have left; but not for ever: what cannot leave (pinned, shared, locked memory) may
 * fill the whole budget, and a process that hangs is worse than a budget that is exceeded page by page. */
static bool must_wait(struct space *space, uint64_t pgno, bool write, uint64_t read_ns)
{
	struct tree *tree = space->tree;
	if (residency_has_room(&tree->budget, tree_used_pages(tree), 1) || clock_now_ns() - read_ns > STALL_LIMIT_NS)
		return false;
	if (space->evict_after_ns > read_ns + STALL_LIMIT_NS) /* the pool is full: nothing leaves before the wait would be over */
		return false;
	tree->stats->stalls += !tree->serving_deferred;
	fault_defer(space, pgno << PAGE_SHIFT, write, read_ns);
	return true;
}

static void serve_zero(struct space *space, uint64_t pgno, bool write, uint64_t read_ns)
{
	struct pager_stats *stats = space->tree->stats;
	if (must_wait(space, pgno, write, read_ns))
		return;
	enum install_result result = install_zeros(space, pgno, write ? zero_run(space, pgno) : 1, write);
	if (result == INSTALL_AGAIN) {
		fault_defer(space, pgno << PAGE_SHIFT, write, read_ns);
		return;
	}
	stats->faults[FAULT_ZERO]++;
	histogram_add(&stats->fault_zero, clock_now_ns() - read_ns);
}

/* The second chance: the copy in staging is read and put back, without the network and without the warden. */
static void serve_staged(struct space *space, uint64_t pgno, uint32_t page, bool write, uint64_t read_ns)
{
	struct tree *tree = space->tree;
	struct iovec local = { tree->buffer, PAGE_BYTES }, remote = { (void *)staging_address(space, page), PAGE_BYTES };
	if (!staging_read(space, &local, &remote, 1)) {
		if (!space->closed && clock_now_ns() - read_ns > READ_WITHIN_NS)
			tree_fail(tree, -EFAULT, "the memory of process %d cannot be reached", space->pid);
		else if (!space->closed)
			fault_defer(space, pgno << PAGE_SHIFT, write, read_ns); /* P6 */
		return;
	}
	int error;
	bool copied = uffd_copy(space->uffd, pgno << PAGE_SHIFT, tree->buffer, PAGE_BYTES, space->protects, &error) == PAGE_BYTES;
	if (!copied && error != -EEXIST) {
		if (error == -ESRCH)
			space_lost(space);
		else if (error == -EAGAIN)
			fault_defer(space, pgno << PAGE_SHIFT, write, read_ns);
		return; /* else unmapped: its event follows */
	}
	ahead_used(space, page);
	staging_release(space, page, PAGE_LOCAL);
	table_change(&space->table, page, PAGE_LOCAL, PAGE_MAIN, 0);
	*table_heat(&space->table, page) |= HEAT_TOUCHED;
	residency_ahead_note(&space->ahead, &tree->budget, 1, 0);
	heat_touched(&space->table, page);
	table_enqueue(&space->table, page, QUEUE_MAIN);
	tree->stats->second_chance_pages++;
	tree->stats->faults[FAULT_STAGED]++;
	histogram_add(&tree->stats->fault_staged, clock_now_ns() - read_ns);
}

static void serve_remote(struct space *space, uint64_t pgno, bool write, uint64_t read_ns)
{
	struct tree *tree = space->tree;
	if (must_wait(space, pgno, write, read_ns))
		return;
	int ret = ahead_fault(space, pgno, read_ns);
	if (ret == -EAGAIN)
		fault_defer(space, pgno << PAGE_SHIFT, write, read_ns);
	else if (ret)
		tree_fail(tree, ret, "fetch page %#lx", pgno << PAGE_SHIFT);
}

void fault_serve(struct space *space, uint64_t address, bool write, uint64_t read_ns)
{
	struct tree *tree = space->tree;
	uint64_t pgno = address >> PAGE_SHIFT;
	uint32_t page = table_make(&space->table, pgno);
	if (page == NO_PAGE) {
		tree_fail(tree, -ENOMEM, "page table");
		return;
	}
	if (tree->record.fault)
		record_fault(space, pgno);
	switch (*table_page(&space->table, page) & PAGE_STATE_MASK) {
	case PAGE_DAMAGED: /* when it was guessed; it may have been repaired */
		table_change(&space->table, page, PAGE_REMOTE, 0, 0);
		serve_remote(space, pgno, write, read_ns);
		break;
	case PAGE_REMOTE:
		serve_remote(space, pgno, write, read_ns);
		break;
	case PAGE_STAGED:
		serve_staged(space, pgno, page, write, read_ns);
		break;
	case PAGE_IN_FLIGHT: /* the copy under way wakes it */
		/* Once a page: a thread with a signal that waits within a system call asks again and again. */
		tree->stats->faults[FAULT_IN_FLIGHT] += !(*table_page(&space->table, page) & PAGE_DEMANDED);
		ahead_late(space, pgno, page);
		*table_page(&space->table, page) |= PAGE_DEMANDED;
		break;
	case PAGE_ZERO:  /* never stored */
	case PAGE_LOCAL: /* given up by the process (MADV_FREE, MADV_DONTNEED), or there already: then this changes nothing */
		serve_zero(space, pgno, write, read_ns);
		break;
	}
}

void fault_read(struct space *space)
{
	struct uffd_msg *messages = recover_read_begin(space);
	ssize_t got = read(space->uffd, messages, READ_MESSAGES * sizeof(messages[0]));
	if (got < 0 && errno != EAGAIN && errno != EINTR)
		space_lost(space);
	if (got <= 0)
		return;
	uint64_t now = clock_now_ns();
	/* Events first (P7): once they are read the kernel lets pages be installed again, and what the table says is older than
	 * they are. */
	size_t count = (size_t)got / sizeof(messages[0]);
	space->tree->reading_events = true;
	for (size_t i = 0; i < count && !space->closed; i++)
		if (messages[i].event != UFFD_EVENT_PAGEFAULT) {
			recover_follow(space->tree, (uint32_t)i);
			events_handle(space, &messages[i]);
			recover_followed(space->tree, (uint32_t)i);
		}
	space->tree->reading_events = false;
	recover_read_end(space->tree);
	awake_note(&space->tree->awake, now);
	for (size_t i = 0; i < count && !space->closed; i++)
		if (messages[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		else if (messages[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
			through_fault(space, messages[i].arg.pagefault.address >> PAGE_SHIFT);
		else
			fault_serve(space, messages[i].arg.pagefault.address,
				    messages[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE, now);
}

void fault_defer(struct space *space, uint64_t address, bool write, uint64_t read_ns)
{
	struct tree *tree = space->tree;
	if (tree->deferred_count == DEFERRED_FAULTS) { /* more threads than that wait: they are woken and fault again (P6) */
		uffd_wake(space->uffd, address & ~(uint64_t)(PAGE_BYTES - 1), PAGE_BYTES);
		return;
	}
	uint32_t at = (tree->deferred_head + tree->deferred_count++) % DEFERRED_FAULTS;
	tree->deferred[at] = (struct deferred_fault){ space, address, read_ns, write };
}

void fault_serve_deferred(struct tree *tree)
{
	tree->serving_deferred = true;
	for (uint32_t left = tree->deferred_count; left > 0; left--) {
		struct deferred_fault fault = tree->deferred[tree->deferred_head];
		tree->deferred_head = (tree->deferred_head + 1) % DEFERRED_FAULTS;
		tree->deferred_count--;
		if (fault.space && !fault.space->closed)
			fault_serve(fault.space, fault.address, fault.write, fault.read_ns);
	}
	tree->serving_deferred = false;
}
