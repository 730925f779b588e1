/* warden: the pager's hand inside one target's memory (the code that runs there is warden_code.c).
 *
 * How it works: injected once by ptrace into one thread of the target: maps a page of code, a small stack and the staging
 * area there (none of them inherited by fork), clones the warden (CLONE_VM, exit signal 0, own session, all signals
 * blocked, no descriptor of the target's left open) and hands it a duplicate of the userfaultfd over a socket pair. From then
 * on the two speak through a ring in shared memory, one command at a time.
 *   MOVE is waited for (warden_move): it never waits for an event, and the caller must not read the userfaultfd meanwhile,
 *   so every event that is read later happened after the move (invariant P1 in ARCHITECTURE.md).
 *   UNSHARE and DROP are not waited for: they may themselves wait for the caller to read an event or to answer a fault.
 *
 * Invariants: W1 the warden holds a reference of the userfaultfd as long as it lives; W2 staging is registered with the
 * same descriptor and has the protection of the pages that move there (else MOVE answers EINVAL).
 * Thread rule: the fault thread only (it is the tracer). Errors: -errno; -ESRCH: the target or the warden has gone. */
#ifndef DP_PAGER_WARDEN_H
#define DP_PAGER_WARDEN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "pager/warden_code.h"
#include "sys/inject.h"

/* LOST: it was killed; its areas in the target are there, staging with all it holds among them, for the next one. */
enum warden_state { WARDEN_ABSENT, WARDEN_LOST, WARDEN_STOPPING_TARGET, WARDEN_READY, WARDEN_LEAVING };

struct warden {
	enum warden_state state;
	pid_t pid, own_pid; /* own_pid: in the target's PID namespace */
	int pidfd, ring_fd, event_fd; /* event_fd becomes readable when UNSHARE, DROP or QUIT is done; -1 while absent */
	struct warden_ring *ring;
	bool busy;           /* a command that is not waited for is under way */
	uint64_t area;       /* code, stack and ring in the target: not part of its own memory */
	uint64_t area_bytes;
	uint64_t staging;    /* address in the target; 0: none */
	uint64_t staging_bytes;
	bool traced;
	uint64_t asked_ns;
	struct injection injection;
};

void warden_init(struct warden *warden);
/* Begins the injection into a thread; warden_poll goes on with it. */
int warden_begin(struct warden *warden, pid_t thread, struct dp_err *err);
/* Takes one over from a pager that died: its ring, eventfd and pidfd (all taken, also where this fails), what else is set already. READY, or
 * LOST where it is dead. -errno. */
int warden_adopt(struct warden *warden, int ring_fd, int event_fd, int pidfd);
/* Waits for the end of a MOVE that another pager posted, or for the warden's. */
void warden_wait_move(struct warden *warden);
bool warden_is_dead(const struct warden *warden);
/* It is dead: becomes LOST. */
void warden_lose(struct warden *warden);
/* While STOPPING_TARGET: 1 when the warden is READY, 0 not yet, or an error (then ABSENT again). Does not wait for the target. */
int warden_poll(struct warden *warden, pid_t target, int uffd, uint64_t staging_bytes, struct dp_err *err);
/* Runs the ring's MOVE runs (ring->run[0..run_count)) and waits. -EBUSY: a command is under way. */
int warden_move(struct warden *warden);
/* Starts UNSHARE of the ring's runs, or the DROP of part of staging. -EBUSY. */
int warden_unshare(struct warden *warden);
int warden_drop(struct warden *warden, uint64_t start, uint64_t bytes);
/* After event_fd became readable: true when the command is done (results are in the ring). */
bool warden_finished(struct warden *warden);
/* Takes the warden out of a live target: it leaves, its areas are unmapped, its zombie is reaped. The target must be stopped by
 * the caller's injection (begun and stopped). Staging must be empty. */
int warden_retire(struct warden *warden, int uffd, struct injection *stopped_target);
/* Forgets a warden whose target has ended or changed its memory by execve: it is killed. true: an injection was under way;
 * *unfinished is then the caller's to abandon (inject_abandon). */
bool warden_discard(struct warden *warden, struct injection *unfinished);
/* Is this address range the warden's, not the target's? */
bool warden_owns(const struct warden *warden, uint64_t start, uint64_t end);

#endif
