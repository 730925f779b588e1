/* recover: a pager that dies (kill -9, out of memory, a bug of ours) is followed by another that goes on where it was. Nothing is
 * lost, nothing is served wrongly meanwhile: who touches a missing page waits.
 *
 * What outlives a pager, and who has it:
 *   - the userfaultfds, pidfds, and of each warden its ring and eventfd: the keeper (instance/keeper.h) has a duplicate of each;
 *   - the saved state, a memfd for the tree (struct tree_saved) and one for each space (struct space_saved), in which the pager
 *   works: the
 *     leaves of the page tables lie there, so saving costs nothing on a fault's way. The keeper has them too;
 *   - staging and the wardens, which live in the targets' memory;
 *   - the descriptor table itself: the holder, a process that shares it (CLONE_FILES) and sleeps. Reading a fork's event makes a
 *   userfaultfd
 *     in the reader's table, before anybody can have been told of it: this alone would be lost.
 *
 * What is saved, and what is found by looking (decided by what a crash between any two instructions leaves):
 *   - Of each page: its state, its slot if it is staged, the hash of the source's copy. Whether it is present the kernel knows
 *   better: a page that
 *     is there is the process's, whatever the table says, and installing answers EEXIST. So what was installed and not booked
 *     needs no record.
 *     That a page is *not* there says nothing (given up, never there, moved out, at the source); that is why the table is saved.
 *   - Staging: which slots hold memory is looked at (PAGEMAP_SCAN), so what a MOVE did is known, however far its booking got.
 *   - Events: they are read into saved memory; a copy that was read and not followed to its end is followed again. Each step may
 *   be repeated.
 *   - Changes at the source: the oplog (oplog.h).
 *   - Ranges being given up (P10): saved. Queues, guesses, requests, heat of the moment: not; they cost speed only.
 *
 * Invariants. Each names the window in which a crash would lose something, and what closes it; test_recover kills a pager in
 * each.
 *   R1  A userfaultfd just made by a fork's event, not yet kept: the holder has it, its number is in the saved message. Both stay
 *       until it was followed, also where the next pager dies over it.
 *   R2  Events read, not followed: they are in saved memory before read() returns (which cannot end between: a killed process
 *       finishes its call), and `reading` and `followed` say which are still to be followed. Before that nothing is installed or
 *       moved.
 *   R3  A remap half followed: its table half is a copy first, repeatable until `copied` names the event, then a clearing,
 *       repeatable.
 *       The MOVE that the source is told is in the oplog with the event's number: it is told once.
 *   R4  A fork half followed: the child's space counts once it is `complete`, which names the event; one that is not is made
 *       anew.
 *   R5  A MOVE done or under way, not booked: it is announced in `move_posted` before it is posted; who takes over waits for its
 *       end, before any event is read (P1), and books what lies in its slots.
 *   R6  A DROP done or under way, not booked: announced in `drop_posted`, `drop_tail`; its pages are away from the moment it was
 *       posted.
 *   R7  A page put back from staging, not booked: it is present, so the copy in staging is never taken for it. If it is staged in
 *       the table, that is harmless: it leaves as any old copy at the source does.
 *   R8  A page being compared: its hash is set before the source has the content. So the hashes of all staged pages are doubted
 *       after a crash: they are sent again.
 *   R9  Changes sent, not acknowledged: the oplog.
 *   R10 A page that is present and remote in the table (installed, not booked): harmless, see above; looked at and booked within
 *       a tick.
 *   R11 Ranges that are being given up, whose pages must not be moved out: saved with their time.
 *   R12 Threads that wait for an answer to a fault that the dead pager had read: all are woken, and fault again.
 *   R13 `initial` and leaves are two stores: whichever is shrunk, the other is saved first (T4).
 *   R14 A thread stopped by ptrace with registers of ours: the stopping is done by a process of its own (warden.c), which ends
 *       what it has begun; if it is killed at that very moment the kernel kills the target (PTRACE_O_EXITKILL), and the tree
 *       ends.
 *   R15 A warden taken out for a checkpoint: its staging, empty by then, is forgotten before it is unmapped.
 *   R16 Pages pushed while they stay local (propagate.h), not acknowledged: the source may have another copy than the hash says:
 *       doubted.
 *   R17 A space closed: the source is told, then the keeper; done again if only the first was.
 *   R18 Whoever could end the tree is gone (the guard of pager_config hangs up), and the pager too: the holder kills the tree,
 *       with every userfaultfd still open.
 * What cannot be taken over (a source without `resume`, a handover from CRIU not finished, saved state that does not fit) ends
 * the tree.
 * Thread rule: the pager's fault thread. */
#ifndef DP_PAGER_RECOVER_H
#define DP_PAGER_RECOVER_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/base.h"
#include "base/rangeset.h"
#include "instance/keeper.h"
#include "pager/oplog.h"
#include "pager/table.h"
#include "pager/warden.h"

struct tree;
struct space;

#define DOUBTS 256u
#define HELD_PIDFDS 4096u        /* processes that a holder can kill */
#define HELD_DEAD_WITHIN_MS 5000 /* then it does not wait for them any more */
#define READ_MESSAGES 32u
#ifdef DP_FUZZ /* making it is nearly all that a fuzzer would do */
#define SAVED_RANGES 8u
#else
#define SAVED_RANGES (1u << 17) /* of each kind and space; a space with more cannot be taken over */
#endif

/* A range, in bytes, of which the kernel's view is to be looked at. `removed`: the process is giving it up: its thread has been
 * let go and will do so any moment, and until then nothing of it may be moved out, or it would come back from staging. */
struct doubt {
	struct range range;
	bool removed;
	uint64_t noted_ns, next_ns;
};

enum saved_kind { SAVED_INITIAL, SAVED_REGISTERED, SAVED_WIPE, SAVED_KINDS };

/* Two copies, of which one counts. */
struct saved_ranges {
	uint32_t current, lost;
	uint64_t count[2];
};

struct space_saved {
	uint64_t magic;
	uint32_t number, complete;
	uint64_t born;           /* the event it comes from, 0: CRIU's handover */
	int32_t vpid, pid, parent_pid;
	uint32_t shared;
	uint64_t source_space;
	uint32_t leaf_top;
	struct saved_ranges ranges[SAVED_KINDS];
	struct warden_job job;   /* warden.h */
	struct warden_place place; /* all zero while there is no warden, nor staging of one that died */
	uint64_t head, tail;     /* of staging's ring */
	uint64_t drop_tail;      /* tail after the DROP */
	uint32_t move_posted, move_booked, drop_posted; /* numbers of the warden's ring */
	uint32_t doubts, doubt_all;
	struct doubt doubt[DOUBTS];
};

struct tree_saved {
	uint64_t magic;
	uint32_t finished;       /* CRIU's handover */
	uint32_t space_numbers, restarts;
	uint32_t whole_spaces;   /* closed, or about to be, because nothing of them was missing */
	uint32_t reading;        /* number of the space whose messages these are, 0: none */
	uint32_t followed;       /* of them */
	uint64_t event_base;     /* event i of these has the number event_base + i */
	uint64_t copied;         /* the remap whose first half is done */
	struct uffd_msg message[READ_MESSAGES];
	struct oplog_area oplog;
	_Alignas(PAGE_BYTES) uint8_t source[SOURCE_SAVED_BYTES]; /* what the source keeps; touched as needed */
};

/* What a pager takes over from the one before it. */
struct pager_inheritance {
	const struct kept *kept; /* borrowed */
	size_t count;
};

/* Makes what is to outlive this pager; or, with tree->config->inherited, takes over. -errno with the tree's err set. */
int recover_begin(struct tree *tree);
/* A process of the tree, for the holder: a descriptor as long as it is open. */
void recover_hold_pidfd(struct tree *tree, int pidfd);
void recover_drop_pidfd(struct tree *tree, int pidfd);
/* Everything is ended well: nobody needs the holder. */
void recover_end(struct tree *tree);

/* A space's saved state: made new, the keeper told. Maps the leaves for its table. */
int recover_space_new(struct space *space);
void recover_space_done(struct space *space);
/* Saves what is cheap to save: pids, flags, source's space, areas. */
void recover_save_space(struct space *space);
void recover_save_ranges(struct space *space, enum saved_kind kind);
/* The child is all there. */
void recover_space_complete(struct space *space, uint64_t event);
/* A warden is about to be placed: its ring and eventfd are kept from now on. */
void recover_placing(struct space *space);
/* What is known of the warden, when it has come or gone. */
void recover_save_warden(struct space *space);
/* Its staging, which is empty, is about to go. */
void recover_retiring(struct space *space);

/* Where messages are read to; nothing in it counts yet. */
struct uffd_msg *recover_read_begin(struct space *space);
/* Message i is going to be followed; was followed; all were. */
void recover_follow(struct tree *tree, uint32_t i);
void recover_followed(struct tree *tree, uint32_t i);
void recover_read_end(struct tree *tree);
/* The event being followed; 0: none. */
uint64_t recover_event(const struct tree *tree);
/* Is it followed for the second time? Then the source is told again whatever it may not have been told. */
bool recover_repeats(const struct tree *tree);
/* The remap being followed: was its first half done, or is it now? */
bool recover_is_copied(const struct tree *tree);
void recover_copied(struct tree *tree);

/* MOVE and DROP: announced, booked. */
void recover_announce_move(struct space *space, uint64_t pages);
void recover_booked_move(struct space *space);
void recover_announce_drop(struct space *space, uint64_t slots);
void recover_booked_drop(struct space *space);

#endif
