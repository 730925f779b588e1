#include "pager/propagate.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/base.h"
#include "pager/control.h"
#include "pager/tree.h"

#define YOUNG_NS 2000000000u
#define LIST_LEAVES 256u /* looked at for one piece */

_Static_assert(PUSH_PAGES <= MOVE_PAGES, "a push fits into tree->buffer");
_Static_assert(PUSH_PAGES <= 256, "a push is one request, also where it is of single pages");

/* ---- the list ---- */

static void list_leaf(const struct leaf *leaf, struct list_piece *piece)
{
	for (unsigned i = 0; i < LEAF_PAGES; i++) {
		if ((leaf->page[i] & PAGE_STATE_MASK) != PAGE_LOCAL)
			continue;
		piece->page[piece->count++] = (struct list_page){ .pgno = leaf->pgno + i,
								  .hash = leaf->hash[i],
								  .has_copy = !!(leaf->page[i] & PAGE_HAS_COPY) };
	}
}

/* Spaces are listed newest first, with falling numbers; 0 is none's. */
static void list(const struct tree *tree, uint64_t number, uint64_t at, struct list_piece *piece)
{
	const struct space *space = tree->spaces;
	uint64_t now = clock_now_ns();
	/* A child that was just forked mostly ends soon, and to read it would only hold its memory. */
	while (space && (space->closed || space->number > number || (!space->vpid && now - space->born_ns < YOUNG_NS)))
		space = space->next;
	piece->space = piece->pid = piece->next_space = piece->next_at = piece->count = 0;
	if (!space)
		return;
	const struct table *table = &space->table;
	at = space->number == number ? at : 0;
	piece->space = space->number;
	piece->pid = space->pid;
	for (unsigned looked = 0; at < table->leaf_top && looked < LIST_LEAVES && piece->count + LEAF_PAGES <= LIST_PAGES;
	     at++, looked++)
		if (table->leaves[at].pgno != UINT64_MAX)
			list_leaf(&table->leaves[at], piece);
	bool whole = at >= table->leaf_top;
	piece->next_at = whole ? 0 : at;
	piece->next_space = whole ? space->number - 1 : space->number;
}

static void serve_list(struct tree *tree, const struct control_peer *peer, uint64_t number, uint64_t at)
{
	static struct list_piece piece; /* one thread */
	list(tree, number, at, &piece);
	control_send(peer, &piece, offsetof(struct list_piece, page) + piece.count * sizeof(piece.page[0]), -1);
}

/* ---- the window ---- */

static int make_window(struct propagation *propagation)
{
	cleanup_fd int fd = memfd_create("dp-push", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, sizeof(struct push_window)) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return -errno;
	void *window = mmap(NULL, sizeof(struct push_window), PROT_READ, MAP_SHARED, fd, 0);
	if (window == MAP_FAILED)
		return -errno;
	propagation->window = window;
	propagation->window_fd = fd;
	fd = -1;
	return 0;
}

static void serve_window(struct tree *tree, const struct control_peer *peer)
{
	struct propagation *propagation = &tree->propagation;
	int ret = !tree->source->writable ? -EROFS : propagation->window ? 0 : make_window(propagation);
	const char *text = ret ? strerror(-ret) : "ok";
	control_send(peer, text, strlen(text), ret ? -1 : propagation->window_fd);
}

/* ---- a push ---- */

static bool is_local(const struct table *table, uint32_t page)
{
	return page != NO_PAGE && (*table_page(table, page) & PAGE_STATE_MASK) == PAGE_LOCAL;
}

/* Takes from the window what may be sent: local pages, ascending, that are not all zero. Content is copied: what is sent is what
 * was hashed. */
static uint32_t take_window(struct tree *tree, const struct space *space, struct page_range *ranges)
{
	struct propagation *propagation = &tree->propagation;
	const struct push_window *window = propagation->window;
	uint32_t count = 0;
	uint64_t given = DP_MIN(__atomic_load_n(&window->count, __ATOMIC_ACQUIRE), PUSH_PAGES), last = 0;
	for (uint64_t i = 0; i < given; i++) {
		uint64_t pgno = window->pgno[i];
		if ((count && pgno <= last) || pgno >= UINT64_MAX >> PAGE_SHIFT ||
		    !is_local(&space->table, table_find(&space->table, pgno)))
			continue;
		uint8_t *to = tree->buffer + (uint64_t)count * PAGE_BYTES;
		memcpy(to, window->content[i], PAGE_BYTES);
		propagation->pgno[count] = last = pgno;
		propagation->hash[count] = page_hash(to);
		propagation->wanted[count] = true;
		ranges[count++] = (struct page_range){ pgno, 1 };
	}
	return count;
}

static size_t join(struct page_range *ranges, uint32_t count)
{
	size_t out = 0;
	for (uint32_t i = 0; i < count; i++) {
		if (out && ranges[out - 1].pgno + ranges[out - 1].pages == ranges[i].pgno)
			ranges[out - 1].pages++;
		else
			ranges[out++] = ranges[i];
	}
	return out;
}

/* From here on the pool's old copy is no longer to be relied on, and the new one not yet. */
static void note_sent(struct space *space, const struct propagation *propagation)
{
	for (uint32_t i = 0; i < propagation->count; i++) {
		uint32_t page = table_find(&space->table, propagation->pgno[i]);
		table_change(&space->table, page, PAGE_LOCAL, 0, PAGE_HAS_COPY);
		*table_hash(&space->table, page) = propagation->hash[i];
	}
}

static void serve_push(struct tree *tree, const struct control_peer *peer)
{
	struct propagation *propagation = &tree->propagation;
	struct page_range ranges[PUSH_PAGES];
	if (!propagation->window || propagation->under_way ||
	    (tree->freezer >= 0 && !through_is_busy(tree, NULL))) {
		control_answer(peer, propagation->window ? "again" : "no window");
		return;
	}
	struct space *space = space_find(tree, (uint32_t)propagation->window->space);
	propagation->count = space ? take_window(tree, space, ranges) : 0;
	if (!propagation->count) {
		control_answer(peer, "ok");
		return;
	}
	struct source *source = tree->source;
	struct iovec data = { tree->buffer, propagation->count * PAGE_BYTES };
	propagation->under_way = true;
	propagation->peer = (int)(peer - tree->control);
	propagation->space = space->number;
	note_sent(space, propagation);
	int ret = source->ops->put(source, space->source_space, ranges, join(ranges, propagation->count), &data, 1, COOKIE_PUSH);
	if (ret == -EAGAIN) { /* not sent: as before, but for the old copies, which are not relied on any more */
		propagation->under_way = false;
		propagation->peer = -1;
		control_answer(peer, "again");
	} else if (ret) {
		tree_fail(tree, ret, "push pages");
	} else {
		tree->stats->pushed_pages += propagation->count;
	}
}

void propagate_on_done(struct tree *tree, int result)
{
	struct propagation *propagation = &tree->propagation;
	struct space *space = space_find(tree, propagation->space);
	if (!propagation->under_way)
		return;
	propagation->under_way = false;
	for (uint32_t i = 0; space && result >= 0 && i < propagation->count; i++) {
		uint32_t page = table_find(&space->table, propagation->pgno[i]);
		/* Evicted and come back meanwhile, it has another hash, or a copy already. */
		if (propagation->wanted[i] && is_local(&space->table, page) &&
		    *table_hash(&space->table, page) == propagation->hash[i])
			table_change(&space->table, page, PAGE_LOCAL, PAGE_HAS_COPY, 0);
	}
	if (propagation->peer >= 0)
		control_answer(&tree->control[propagation->peer], result < 0 ? strerror(-result) : "ok");
	propagation->peer = -1;
}

bool propagate_forget(struct space *space, uint64_t pgno, uint64_t pages)
{
	struct propagation *propagation = &space->tree->propagation;
	bool any = false;
	for (uint32_t i = 0; propagation->under_way && propagation->space == space->number && i < propagation->count; i++) {
		bool inside = propagation->pgno[i] >= pgno && propagation->pgno[i] - pgno < pages;
		any |= inside;
		propagation->wanted[i] &= !inside;
	}
	return any;
}

void propagate_peer_gone(struct tree *tree, const struct control_peer *peer)
{
	if (tree->propagation.peer == peer - tree->control)
		tree->propagation.peer = -1;
}

void propagate_done(struct tree *tree)
{
	struct propagation *propagation = &tree->propagation;
	if (!propagation->window)
		return;
	munmap(propagation->window, sizeof(*propagation->window));
	close(propagation->window_fd);
	propagation->window = NULL;
}

bool propagate_serve(struct tree *tree, struct control_peer *peer, const char *request)
{
	uint64_t first, second;
	if (!strcmp(request, "push-window"))
		serve_window(tree, peer);
	else if (!strcmp(request, "push"))
		serve_push(tree, peer);
	else if (sscanf(request, "list %lu %lu", &first, &second) == 2)
		serve_list(tree, peer, first, second);
	else
		return false;
	return true;
}

/* ---- the committer's end ---- */

struct push_window *propagate_open(int connection, struct dp_err *err)
{
	cleanup_fd int fd = -1;
	if (control_ask(connection, "push-window", &fd, err) < 0)
		return NULL;
	void *window = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(struct push_window), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (window == MAP_FAILED) {
		dp_fail(err, EPROTO, "the pager gave no memory to push pages through");
		return NULL;
	}
	return window;
}

void propagate_close(struct push_window *window)
{
	if (window)
		munmap(window, sizeof(*window));
}

int propagate_list(int connection, uint64_t space, uint64_t at, struct list_piece *piece, struct dp_err *err)
{
	char request[64];
	snprintf(request, sizeof(request), "list %lu %lu", space, at);
	int ret = control_say(connection, request, "ask the pager for its pages", err);
	ssize_t got = ret ? ret : control_hear(connection, piece, sizeof(*piece), err);
	if (got < 0)
		return (int)got;
	size_t head = offsetof(struct list_piece, page);
	if ((size_t)got < head || piece->count > LIST_PAGES || (size_t)got != head + piece->count * sizeof(piece->page[0]))
		return dp_fail(err, EPROTO, "the pager is of another version of distri-proc");
	return 0;
}

int propagate_push(int connection, struct dp_err *err)
{
	char text[128];
	int ret = control_say(connection, "push", "push pages", err);
	ssize_t got = ret ? ret : control_hear(connection, text, sizeof(text) - 1, err);
	if (got < 0)
		return (int)got;
	text[got] = 0;
	if (!strcmp(text, "ok"))
		return 0;
	if (!strcmp(text, "again"))
		return -EAGAIN;
	if (!strcmp(text, strerror(ENOSPC)))
		return dp_fail(err, ENOSPC, "the pool is full: free some of it (distri-proc pool rm) or give it more room");
	return dp_fail(err, EIO, "push pages: %s", text);
}
