#include "pager/through.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include "base/base.h"
#include "pager/control.h"
#include "pager/tree.h"
#include "sys/uffd.h"

/* ---- pages ---- */

/* false: there is no room. */
static bool add_page(struct through_pages *pages, uint64_t pgno)
{
	uint64_t at = pages->count;
	while (at > 0 && pages->pgno[at - 1] >= pgno)
		at--;
	if (at < pages->count && pages->pgno[at] == pgno)
		return true;
	if (pages->count == THROUGH_PAGES)
		return false;
	memmove(&pages->pgno[at + 1], &pages->pgno[at], (pages->count - at) * sizeof(pages->pgno[0]));
	pages->pgno[at] = pgno;
	pages->count++;
	return true;
}

static bool is_left(const struct space *space, uint64_t pgno)
{
	return rangeset_contains(&space->left_open, pgno << PAGE_SHIFT);
}

/* Its writer goes on; or asks again, where an event is still to be read, or the page has gone. */
static void open_page(const struct space *space, uint64_t pgno)
{
	if (uffd_protect(space->uffd, pgno << PAGE_SHIFT, PAGE_BYTES, false))
		uffd_wake(space->uffd, pgno << PAGE_SHIFT, PAGE_BYTES);
}

void through_protect_area(struct space *space, uint64_t start, uint64_t end)
{
	if (!space->tree->config->through)
		return;
	int ret = uffd_register(space->uffd, start, end - start, true);
	if (!ret)
		ret = uffd_protect(space->uffd, start, end - start, true);
	if (ret == -EAGAIN) /* an event comes first: at the next look */
		space->unprotected = true;
	else if (ret && ret != -ENOENT && ret != -EINVAL && ret != -ESRCH) /* else it is gone or has another shape: found again */
		tree_fail(space->tree, ret, "protect the memory of process %d from being written unseen", space->pid);
}

void through_protect(struct space *space)
{
	space->unprotected = false;
	space->protects |= space->tree->config->through;
	for (size_t i = 0; space->tree->config->through && i < space->registered.count && !space->closed; i++)
		through_protect_area(space, space->registered.ranges[i].start, space->registered.ranges[i].end);
}

/* ---- sessions ---- */

static void send_pages(struct tree *tree, const struct through_pages *pages)
{
	size_t bytes = offsetof(struct through_pages, pgno) + pages->count * sizeof(pages->pgno[0]);
	control_send(&tree->control[tree->through.peer], pages, bytes, -1);
}

/* To be written, or pushed, in a later session. */
static void put_off(struct space *space, uint64_t pgno)
{
	struct through_pages *waiting = space->tree->through.waiting, *at = NULL;
	for (size_t i = 0; i < THROUGH_SPACES; i++)
		if (waiting[i].space == space->number || (!at && !waiting[i].space))
			at = &waiting[i];
	if (!at || !add_page(at, pgno))
		uffd_wake(space->uffd, pgno << PAGE_SHIFT, PAGE_BYTES); /* it asks again (P6) */
	else
		at->space = space->number;
}

static void begin(struct tree *tree)
{
	struct through *through = &tree->through;
	for (size_t i = 0; through->asked && tree->freezer < 0 && i < THROUGH_SPACES; i++) {
		struct through_pages *waiting = &through->waiting[i];
		struct space *space = waiting->space ? space_find(tree, (uint32_t)waiting->space) : NULL;
		if (!space)
			*waiting = (struct through_pages){ 0 };
		if (!space || space->pid <= 0) /* a forked child's pid is found soon */
			continue;
		through->session = *waiting;
		through->session.pid = space->pid;
		*waiting = (struct through_pages){ 0 };
		through->phase = THROUGH_STOPPING;
		through->asked = false;
		send_pages(tree, &through->session);
		return;
	}
}

void through_fault(struct space *space, uint64_t pgno)
{
	struct tree *tree = space->tree;
	struct through *through = &tree->through;
	bool ours = through->phase != THROUGH_NONE && through->session.space == space->number;
	if (!tree->running || is_left(space, pgno)) { /* nothing of the tree's own runs yet; or the kernel's own writes */
		open_page(space, pgno);
	} else if (ours && through->phase == THROUGH_OPEN && add_page(&through->session, pgno)) {
		open_page(space, pgno);
	} else if (tree->freezer >= 0 && !ours) { /* CRIU's own writes; what they change is looked at afterwards */
		open_page(space, pgno);
		put_off(space, pgno);
	} else {
		put_off(space, pgno);
		begin(tree);
	}
}

static void open_session(struct tree *tree)
{
	struct through *through = &tree->through;
	struct space *space = space_find(tree, (uint32_t)through->session.space);
	through->phase = THROUGH_OPEN;
	for (size_t w = 0; w < THROUGH_SPACES; w++) { /* what came meanwhile */
		struct through_pages *more = &through->waiting[w];
		while (more->space == through->session.space && more->count &&
		       add_page(&through->session, more->pgno[more->count - 1]))
			more->count--;
		if (!more->count)
			more->space = 0;
	}
	for (uint64_t i = 0; space && i < through->session.count; i++)
		open_page(space, through->session.pgno[i]);
}

/* Protects what is open. false: the kernel puts it off until an event was read. */
static bool close_pages(struct tree *tree)
{
	const struct through_pages *session = &tree->through.session;
	const struct space *space = space_find(tree, (uint32_t)session->space);
	for (uint64_t i = 0; space && i < session->count; i++)
		if (!is_left(space, session->pgno[i]) &&
		    uffd_protect(space->uffd, session->pgno[i] << PAGE_SHIFT, PAGE_BYTES, true) == -EAGAIN)
			return false;
	return true;
}

static void end(struct tree *tree)
{
	tree->through.phase = THROUGH_NONE;
	tree->through.session.space = tree->through.session.count = 0;
}

void through_work(struct tree *tree)
{
	struct through *through = &tree->through;
	if (!tree->config->through)
		return;
	for (struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed && space->unprotected)
			through_protect(space);
	if (through->phase == THROUGH_CLOSING && close_pages(tree)) {
		through->phase = THROUGH_PUSHING;
		if (through->peer >= 0)
			send_pages(tree, &through->session);
		else
			end(tree); /* the next tracer finds what was written (H2) */
	}
	if (through->phase == THROUGH_NONE)
		begin(tree);
}

bool through_is_busy(const struct tree *tree, const struct space *space)
{
	return tree->through.phase != THROUGH_NONE && (!space || tree->through.session.space == space->number);
}

static void leave_open(struct tree *tree, uint64_t pgno)
{
	struct space *space = space_find(tree, (uint32_t)tree->through.session.space);
	if (!space || pgno >= PGNO_END)
		return;
	if (rangeset_add(&space->left_open, pgno << PAGE_SHIFT, (pgno + 1) << PAGE_SHIFT))
		tree_fail(tree, -ENOMEM, "remember a page that stays open");
	open_page(space, pgno);
}

bool through_serve(struct tree *tree, struct control_peer *peer, const char *request)
{
	struct through *through = &tree->through;
	int number = (int)(peer - tree->control);
	uint64_t pgno;
	if (strncmp(request, "through-", 8))
		return false;
	if (!tree->config->through || (through->peer >= 0 && through->peer != number)) {
		control_answer(peer, tree->config->through ? "another traces already" : "not asked for");
	} else if (!strcmp(request, "through-next") && (through->phase == THROUGH_NONE || through->phase == THROUGH_PUSHING)) {
		end(tree);
		through->peer = number;
		through->asked = true;
		begin(tree);
	} else if (!strcmp(request, "through-open") && through->phase == THROUGH_STOPPING) {
		open_session(tree);
		control_answer(peer, "ok");
	} else if (sscanf(request, "through-leave %lu", &pgno) == 1 && through->phase == THROUGH_OPEN) {
		leave_open(tree, pgno);
		control_answer(peer, "ok");
	} else if (!strcmp(request, "through-close") && through->phase == THROUGH_OPEN) {
		through->phase = THROUGH_CLOSING;
		through_work(tree);
	} else {
		control_answer(peer, "not now");
	}
	return true;
}

void through_peer_gone(struct tree *tree, const struct control_peer *peer)
{
	struct through *through = &tree->through;
	if (through->peer != peer - tree->control)
		return;
	through->peer = -1;
	through->asked = false;
	struct space *space = space_find(tree, (uint32_t)through->session.space);
	if (through->phase == THROUGH_STOPPING) /* its writers still wait */
		for (uint64_t i = 0; space && i < through->session.count; i++)
			put_off(space, through->session.pgno[i]);
	if (through->phase == THROUGH_OPEN)
		through->phase = THROUGH_CLOSING;
	if (through->phase != THROUGH_CLOSING)
		end(tree);
	through_work(tree);
}

void through_init(struct tree *tree)
{
	tree->through.peer = -1;
}

/* ---- the tracer's end ---- */

int through_receive(int connection, struct through_pages *pages, struct dp_err *err)
{
	ssize_t got = control_hear(connection, pages, sizeof(*pages), err);
	if (got < 0)
		return (int)got;
	size_t head = offsetof(struct through_pages, pgno);
	if ((size_t)got < head || pages->count > THROUGH_PAGES || (size_t)got != head + pages->count * sizeof(pages->pgno[0]))
		return dp_fail(err, EPROTO, "the pager does not take --propagate through: %.*s", (int)DP_MIN(got, 60), (const char *)pages);
	return 0;
}
