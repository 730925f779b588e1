/* through: `restore --propagate through`: whatever a process has written is in the pool before anybody outside of it can know.
 * For tests, and for what must not be behind by a single write; the first write to a page after it was sent costs a stop of its
 * process and a round trip to the pool.
 *
 * How it works: pages are write-protected (UFFDIO_REGISTER_MODE_WP, UFFDIO_WRITEPROTECT). The kernel tells of a write before it
 * is made, so somebody has to stand behind the thread that makes it: a tracer, another process than the pager
 * (checkpoint/through.h), over the control socket:
 *   1. `through-next`: the pager answers when a write waits: whose, and of which page; it is the session of this space then;
 *   2. the tracer stops all threads of the process that come to rest. Those within the kernel run no code of their own before
 *      they have stopped, either;
 *   3. `through-open`: the pages that are waited for may be written, and those that are waited for from now on, at once; the
 *      tracer has each thread that waited in user mode go on to its next system call, or for a moment, while the others stand
 *      still. The kernel writes to a thread's rseq area whenever it goes back to user mode, and it could never get there:
 *      `through-leave` has the page of that (of thread-local storage, with glibc) stay writable; it is pushed with every session
 *      of its process;
 *   4. `through-close`: they are protected again, and the answer names them;
 *   5. the tracer reads them, pushes them (propagate.h), which waits for the pool, and lets the threads go.
 * Invariants: H1 while the tree runs a page that may be written without our hearing of it is open, in the session under way, left
 * open for the kernel, or while a checkpoint has the tree frozen; H2 what was open is pushed by its session, or by the next
 * tracer, which begins with all that differs from the pool's copy; H3 a write waits for the tracer, for as long as there is
 * none, and nothing else does; H4 no session begins while a checkpoint has the tree frozen, and the freeze waits for the one
 * under way.
 * What is not covered: pages left open that are written and no other; areas made after the restore until they are found (a
 * second); memory that is not private and anonymous.
 * Source: Documentation/admin-guide/mm/userfaultfd.rst, "Write Protect Notifications".
 * Thread rule: the fault thread. */
#ifndef DP_PAGER_THROUGH_H
#define DP_PAGER_THROUGH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define THROUGH_PAGES 256u /* open at a time; a push takes as many */
#define THROUGH_SPACES 8u  /* whose writes are remembered; those of others ask again and again */

struct tree;
struct space;
struct control_peer;

/* The answers to `through-next` and `through-close`: the space, the process as the pager sees it, pages in ascending order. */
struct through_pages {
	uint64_t space;
	int64_t pid;
	uint64_t count;
	uint64_t pgno[THROUGH_PAGES];
};

/* ---- the tracer's end (blocks) ---- */

/* The answer, with pages, to a request of control_say. */
int through_receive(int connection, struct through_pages *pages, struct dp_err *err);

/* ---- the pager's end ---- */

enum through_phase { THROUGH_NONE, THROUGH_STOPPING, THROUGH_OPEN, THROUGH_CLOSING, THROUGH_PUSHING };
struct through {
	enum through_phase phase;
	int peer;                     /* who asked for the next, or has the session; -1: nobody */
	bool asked;                   /* its answer is owed */
	struct through_pages session; /* pages that wait, then those that are open */
	struct through_pages waiting[THROUGH_SPACES]; /* for a later one; space 0: free */
};

void through_init(struct tree *tree);
/* A space whose pages are to be protected from now on: each area that is registered. */
void through_protect(struct space *space);
/* The same of an area, in bytes, that has just been registered. */
void through_protect_area(struct space *space, uint64_t start, uint64_t end);
/* A write waits. */
void through_fault(struct space *space, uint64_t pgno);
/* A request of the control socket. false: not one of these. */
bool through_serve(struct tree *tree, struct control_peer *peer, const char *request);
void through_peer_gone(struct tree *tree, const struct control_peer *peer);
/* What is due: closing that the kernel put off, a session that somebody waits for. */
void through_work(struct tree *tree);
/* Is a session under way (H4), of this space (NULL: of any)? */
bool through_is_busy(const struct tree *tree, const struct space *space);

#endif
