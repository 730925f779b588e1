/* warden: the pager's hand inside one target's memory (the code that runs there is warden_code.c).
 *
 * How it works: injected once into one thread of the target by ptrace, which a process forked for it does (the injector), so that
 * a pager that dies leaves no thread with registers of ours: the injector ends what it has begun, and says in shared memory
 * (struct warden_job) what came of it.
 * Should it be killed itself in the middle, the kernel kills the target. It maps a page of code, a small stack and the staging
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

enum job_kind { JOB_PLACE = 1, JOB_RETIRE };
enum job_state { JOB_NONE, JOB_ASKED, JOB_RUNNING, JOB_DONE, JOB_FAILED, JOB_UNWANTED };

/* Where a warden is: what is told and kept of one; the fields are those of struct warden. */
struct warden_place {
	int32_t pid, own_pid, traced;
	uint64_t area, area_bytes, staging, staging_bytes;
};

/* What injector and pager tell each other; outlives both. */
struct warden_job {
	uint32_t state, kind;
	int32_t injector;
	uint64_t needs_page;       /* address of a page without which the stopped thread cannot run calls; 0: none */
	struct warden_place place; /* the result */
	char text[256];            /* of a failure */
};

struct warden {
	enum warden_state state;
	struct warden_job *job; /* borrowed */
	int injector_fd;        /* pidfd, -1 while there is none */
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

void warden_init(struct warden *warden, struct warden_job *job);
struct warden_place warden_place(const struct warden *warden);
void warden_set_place(struct warden *warden, const struct warden_place *place);
/* Makes ring and eventfd for a warden that is about to be placed. */
int warden_prepare(struct warden *warden);
/* Forks the injector: it places a warden by way of a thread of the target, or takes the one that is there out of it. */
int warden_begin(struct warden *warden, enum job_kind kind, pid_t thread, int uffd, uint64_t staging_bytes, struct dp_err *err);
/* Takes over a job that a pager left which died: ring and eventfd (taken) are those of warden_prepare. false: there is none. */
bool warden_adopt_job(struct warden *warden, int ring_fd, int event_fd);
/* Takes one over from a pager that died: its ring, eventfd and pidfd (all taken, also where this fails), what else is set
 * already. READY, or
 * LOST where it is dead. -errno. */
int warden_adopt(struct warden *warden, int ring_fd, int event_fd, int pidfd);
/* Waits for the end of a MOVE that another pager posted, or for the warden's. */
void warden_wait_move(struct warden *warden);
bool warden_is_dead(const struct warden *warden);
/* It is dead: becomes LOST. */
void warden_lose(struct warden *warden);
/* Kills it, or the one that a job is about to place: LOST, or ABSENT where there is no staging. */
void warden_kill(struct warden *warden);
/* While STOPPING_TARGET or LEAVING: 1 when the warden is READY, or gone (ABSENT); 0 not yet; or an error: things are as they were
 * before. Does not wait. */
int warden_poll(struct warden *warden, struct dp_err *err);
/* What the job said was noted: the next may come. */
void warden_job_over(struct warden *warden);
/* Runs the ring's MOVE runs (ring->run[0..run_count)) and waits. -EBUSY: a command is under way. */
int warden_move(struct warden *warden);
/* Starts UNSHARE of the ring's runs, or the DROP of part of staging. -EBUSY. */
int warden_unshare(struct warden *warden);
int warden_drop(struct warden *warden, uint64_t start, uint64_t bytes);
/* true: the command is done (results are in the ring). No system call while it is not. */
bool warden_finished(struct warden *warden);
/* Takes what made event_fd readable. */
void warden_hear(struct warden *warden);
/* Forgets a warden whose target has ended or changed its memory by execve: it is killed. A job under way ends by itself: there is
 * no memory any more in which it could place one. */
void warden_discard(struct warden *warden);
/* Is this address range the warden's, not the target's? */
bool warden_owns(const struct warden *warden, uint64_t start, uint64_t end);

#endif
