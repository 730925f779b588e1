/* propagate: changed pages go to the pool before they have to: what `commit`, `protect` and `restore --propagate back` live on.
 *
 * The kernel does not tell which pages of a restored process were written: CRIU makes the userfaultfds without WP_ASYNC, and
 * soft-dirty bits are not built into many kernels. So content decides, as it does for eviction. A committer, another process than
 * the pager, asks over the control socket for the local pages of a space with the hash of the pool's copy (`list`), reads them by
 * process_vm_readv (it may block on a page that was just given up; the pager answers that fault, so it must not be the pager who
 * reads), and hands those that differ back in a window of shared memory (`push`). Only the pager writes to the pool, on its one
 * connection, so nothing overtakes.
 *
 * Invariants: G1 a page that is pushed is local, and stays the only authority: what the pool has of it matters only if its hash
 * is the page's when it leaves (or, in a checkpoint, that of what CRIU sends of it), so content that was already stale when it
 * was pushed does no harm; G2 a pushed page counts as a copy only after the pool's acknowledgement, and not if the range was
 * given up or moved meanwhile; G3 nothing is pushed while a checkpoint has the tree frozen, and the freeze waits for the push
 * under way (and for a session of through.h): what a snapshot inherits does not change under it; G4 one push is under way at a
 * time.
 * Client side: calls block; one thread per connection. Server side: the fault thread; a piece costs some ten microseconds. */
#ifndef DP_PAGER_PROPAGATE_H
#define DP_PAGER_PROPAGATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#ifdef DP_FUZZ /* so that a small tree has several pieces, and little is to be cleared for the next */
#define LIST_PAGES 64u
#define PUSH_PAGES 16u
#else
#define LIST_PAGES 1024u /* of one piece */
#define PUSH_PAGES 256u  /* of one push, at most */
#endif

struct list_page {
	uint64_t pgno, hash;
	uint64_t has_copy; /* the pool has a page of this hash there */
};

struct list_piece {
	uint64_t space;      /* number of the space that the pages are of; 0: there is none any more */
	int64_t pid;         /* its process, as the pager sees it; 0: not known yet */
	uint64_t next_space; /* ask for these next; next_space 0: that was all */
	uint64_t next_at;
	uint64_t count;
	struct list_page page[LIST_PAGES];
};

/* Shared with the pager: its one page of header, then the content. */
struct push_window {
	uint64_t space, count;
	uint64_t pgno[PUSH_PAGES];
	uint8_t fill[4096 - (2 + PUSH_PAGES) * 8];
	uint8_t content[PUSH_PAGES][4096];
};

/* ---- the committer's end ---- */

/* Maps the window; propagate_close ends it. NULL with err: the instance's source cannot be written, or the pager is gone. */
struct push_window *propagate_open(int connection, struct dp_err *err);
void propagate_close(struct push_window *window);
/* The next piece of the list; begin with (UINT64_MAX, 0), go on with what the piece says. */
int propagate_list(int connection, uint64_t space, uint64_t at, struct list_piece *piece, struct dp_err *err);
/* Pushes what is in the window and waits for the pool. -EAGAIN: not now (a checkpoint is under way, a queue is full). -ENOSPC,
 * -EIO. */
int propagate_push(int connection, struct dp_err *err);

/* ---- the pager's end ---- */

struct tree;
struct space;
struct control_peer;

struct propagation {
	struct push_window *window; /* NULL: not asked for yet */
	int window_fd;
	bool under_way;
	int peer;            /* who waits for the answer; -1: it has gone */
	uint32_t space;      /* number */
	uint32_t count;
	uint64_t pgno[PUSH_PAGES], hash[PUSH_PAGES];
	bool wanted[PUSH_PAGES]; /* G2 */
};

/* A request of the control socket. false: not one of these. */
bool propagate_serve(struct tree *tree, struct control_peer *peer, const char *request);
/* The pool's answer to a push. */
void propagate_on_done(struct tree *tree, int result);
/* Something happens to the range: a push under way of it is no copy. Returns whether the source has, or will have, anything of
 * it. */
bool propagate_forget(struct space *space, uint64_t pgno, uint64_t pages);
void propagate_peer_gone(struct tree *tree, const struct control_peer *peer);
void propagate_done(struct tree *tree);

#endif
