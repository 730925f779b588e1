/* tree: the pager's own state, shared by the files of this room: one tree of processes, its spaces, its requests, its budget.
 *
 *   pager.c     set-up, the event loop, the end          fault.c    a fault's way (start reading there)
 *   handover.c  takes the userfaultfds over from CRIU    install.c  puts pages into a space, answers of the source
 *   events.c    fork, remap, remove, unmap               evict.c    victims, the warden's moves and drops: the way out
 *                                                        staging.c  the ring between local and away, write-back
 *   space.c     one address space                        watch.c    new mappings, children, exits, samples of memory
 *   control.c   freeze, export, thaw for a checkpoint    ahead.c    what is fetched besides what faulted
 *   migrate.c   background transfer                      heat.c     which pages are hot, which are cold
 *   record.c    the order of an earlier run                propagate.c  changed pages ahead of a commit
 *   lost.c      a source that does not answer
 *   table.c warden.c  see their headers
 *
 * Invariants (architecture.md section 6 has 1..9; these are the pager's own):
 *   P1 No userfaultfd is read between posting a MOVE and its end: every event read later happened after that move.
 *   P2 What MOVE took is on its way to the source before a fork or a remap is followed (staging_flush), so the source sees them
 *      in order.
 *   P3 A request's page is installed only if nothing happened to it since it was asked for (`wanted` bit).
 *   P4 Only slots that MOVE filled are read from staging (a missing page would block the reader on itself).
 *   P5 A page becomes LOCAL in the table only after the kernel installed it.
 *   P6 A fault that was read is answered, deferred, or its thread woken: none is lost.
 *   P7 Events that were read are followed before any page is installed or moved (answers that come meanwhile are parked).
 *   P8 Only pages of areas that this very descriptor is known to watch are moved out: with no event unread, the kernel took a
 *      page there.
 *   P9 What a look at the process shows counts only if no event is unread after it (space_is_changing): mremap may just have
 *      taken pages away.
 *   P10 Of a range that is being given up nothing is moved out until it is gone (doubt_covers).
 *   P11 Only pages that the source has are asked of it: where it answers with zeros, the page is lost, and never filled with
 *       them.
 * Thread rule: one thread runs all of it. */
#ifndef DP_PAGER_TREE_H
#define DP_PAGER_TREE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/base.h"
#include "base/rangeset.h"
#include "instance/stats.h"
#include "pager/heat.h"
#include "pager/limit.h"
#include "pager/migrate.h"
#include "pager/propagate.h"
#include "pager/pager.h"
#include "pager/record.h"
#include "pager/recover.h"
#include "pager/source.h"
#include "pager/table.h"
#include "pager/through.h"
#include "pager/warden.h"
#include "prefetch/prefetch.h"
#include "residency/residency.h"
#include "sys/awake.h"

#define REQUEST_PAGES 64u   /* pages of one GET */
#define REQUESTS 128u       /* under way at once */
#define DEFERRED_FAULTS 8192u
#define MOVE_PAGES 256u     /* pages of one MOVE command */
#define WRITE_BATCHES 64u
#define CONTROL_PEERS 8u
#define STALL_LIMIT_NS (10u * 1000 * 1000) /* a fault waits no longer for room */
#define READ_WITHIN_NS 5000000000u /* staged pages that cannot be read: by then it is known what became of their process */
#define PAGER_NICE (-15)
#define ZERO_RUN_PAGES 16u  /* zero pages given at once to a process that grows */

enum handle_kind {
	HANDLE_UFFD = 1,
	HANDLE_WARDEN,
	HANDLE_PIDFD,
	HANDLE_SOURCE,
	HANDLE_LISTEN,
	HANDLE_CRIU,
	HANDLE_CONTROL_LISTEN,
	HANDLE_CONTROL,
	HANDLE_KINDS
};

/* epoll carries a pointer to one of these. */
struct handle {
	enum handle_kind kind;
	struct space *space;
};

/* A connection to the control socket. */
struct control_peer {
	int fd; /* -1: free */
	struct handle handle;
};

enum slot_state {
	SLOT_EMPTY,   /* MOVE did not fill it: not present, never read */
	SLOT_FRESH,   /* not yet compared with the source's copy */
	SLOT_PENDING, /* its content is on the way to the source */
	SLOT_CLEAN,   /* the source has the content: may be dropped */
	SLOT_ZEROS,   /* holds only zeros: may be dropped, the page is zero then */
	SLOT_STUCK,   /* the source refused the content: the page must go back to the process */
	SLOT_GARBAGE, /* the page went back or was given up; the copy is still there */
};

/* The staging area of one space as a ring of slots: filled at head, compared up to `written`, dropped at tail, all counted
 * without end. */
struct staging {
	uint64_t capacity, head, written, tail, dropping; /* dropping: slots in the DROP under way */
	uint64_t present;                        /* slots that hold memory */
	uint64_t held;                           /* slots whose page is still staged */
	uint32_t *page;                          /* [capacity] */
	uint8_t *state;                          /* enum slot_state */
};

#define SUSPECTS 64u
struct suspect {
	pid_t thread;
	uint64_t run_ns; /* that it had run when it was noted */
};

struct space {
	struct tree *tree;
	struct space *next;
	uint32_t number; /* never used again */
	bool closed;     /* freed at the end of this turn of the loop */
	bool shared;     /* forked, or forked from: memory may be shared with relatives */
	int vpid;        /* as CRIU named it, 0 for a forked child */
	/* in the pager's namespace; 0 while a forked child's is unknown, or its process has left the memory */
	pid_t pid, parent_pid;
	/* of the process: the one through which its memory is looked at; the first, unless that has ended */
	pid_t thread;
	int uffd, pidfd, statm_fd, pagemap_fd;
	uint64_t source_space;
	struct table table;
	struct rangeset registered; /* bytes: areas that this userfaultfd is known to watch (P8) */
	uint32_t looks_again;       /* at areas that could not be watched, running */
	uint64_t areas_after_ns;    /* no look for new areas before */
	uint64_t left_ns;           /* since when the memory has no process */
	bool warden_killed;         /* then: its warden was killed, so that the memory can go */
	struct rangeset wipe;       /* bytes: areas that a child finds empty (MADV_WIPEONFORK) */
	struct prefetcher prefetcher;
	struct prefetch_run owed;   /* what is left of a run for which there was no room; pages 0: nothing */
	struct prefetch_advice owed_advice;
	struct warden warden;
	struct staging staging;
	uint32_t evictions;         /* counts up, wraps: the clock of "was evicted not long ago" */
	uint64_t evict_after_ns;    /* no eviction before */
	uint64_t stage_after_ns;    /* none ahead of need before */
	struct residency_ahead ahead; /* how many pages are worth staging ahead of need */
	uint64_t known_size_pages;  /* statm size at the last look at the areas */
	uint64_t anonymous_pages;   /* statm, last sample */
	uint64_t born_ns;
	struct space_saved *saved; /* recover.h */
	struct doubt *doubt;       /* [DOUBTS], of saved */
	uint32_t doubts;
	bool doubt_all;
	struct suspect suspect[SUSPECTS]; /* threads that may be about to give a range up, as seen at suspected_ns */
	uint32_t suspects;
	uint64_t suspected_ns;
	uint32_t unshare_count, again_count; /* pages to be made exclusive; pages that were, to be moved next */
	uint32_t unshare_page[MOVE_PAGES], again_page[MOVE_PAGES];
	bool second_try;            /* the batch under way is of again_page */
	struct rangeset left_open;  /* bytes: pages that stay writable all the same */
	bool protects, unprotected; /* its areas are, or some still have to be, protected from writing (through.h) */
	bool stuck;                 /* slots of staging are, and wait for staging_take_back */
	uint64_t zero_next, zero_window; /* where a growing process is expected next, and how many pages it gets there */
	uint64_t fill_at;           /* background transfer: goes on at this page, */
	uint32_t fill_leaf;         /* and in the leaves below this one */
	bool fill_begun;
	uint64_t installed_since_freeze;
	struct handle uffd_handle, warden_handle, pidfd_handle;
};

struct request {
	struct space *space; /* NULL: free */
	uint64_t pgno[REQUEST_PAGES]; /* what was asked for, in this order */
	uint64_t lowest, highest;
	uint32_t pages;
	uint32_t generation;
	uint64_t wanted;     /* bit i: page i may still be installed (P3) */
	uint64_t parked;     /* bit i: page i has come and waits in tree->parked_data until the kernel takes it */
	bool answered;       /* nothing more will come */
	uint64_t asked_ns;   /* when the fault was read; 0 for a prefetch */
	uint32_t demanded;   /* index of the page that a thread waits for */
};

struct write_batch {
	struct space *space; /* NULL: free */
	uint64_t first_slot; /* absolute */
	uint32_t slots;
};

struct deferred_fault {
	struct space *space;
	uint64_t address, read_ns;
	bool write;
};

/* A source that does not answer (lost.c). */
struct lost {
	bool given_up;         /* the stall timeout has passed, and what was to be done was done */
	bool inherited;        /* it was done by a pager that died since */
	bool changed;          /* the source may have another descriptor under the same number */
	int watched_fd;        /* the source's, in the epoll set; -1: none */
	uint64_t next_look_ns, next_tell_ns, reconnects;
	pid_t *stopped;        /* processes that got SIGSTOP */
	size_t stopped_count;
};

struct tree {
	const struct pager_config *config;
	struct tree_saved *saved; /* recover.h */
	pid_t holder;
	struct held *held; /* shared with the holder */
	int keeper_fd;
	bool repeats;   /* an event is followed for the second time */
	struct source *source;
	struct pager_stats *stats;
	struct residency_budget budget;
	struct limit limit;
	struct space *spaces;
	uint32_t space_numbers;
	int epoll_fd, criu_fd;
	struct handle source_handle, listen_handle, criu_handle, control_listen_handle;
	struct control_peer control[CONTROL_PEERS];
	int freezer; /* the peer that wants the tree frozen, -1: none */
	size_t announced, expected; /* tasks CRIU has handed over, of how many */
	int pending_vpid;
	bool finished;  /* CRIU said that every task is past the point of no return */
	bool running;   /* CRIU has gone: the tree runs */
	bool failed_handover;
	bool frozen;    /* a checkpoint is under way: nothing is evicted */
	uint64_t damaged_until_ns; /* of a freeze: pages that were damaged are waited for; 0: there are none */
	bool freezing;  /* its answer is owed when the wardens have left; or: */
	uint64_t export_owed_ns; /* an export is owed, since then, when the source has acknowledged all changes; 0: not */
	int failure;    /* the tree must end: -errno */
	struct dp_err *err;
	bool serving_deferred;
	bool reading_events; /* events that were read are still to be followed */
	uint64_t in_flight; /* pages asked for */
	/* guess of pages copied after fork since the last sample, and from what */
	uint64_t copied_pages, sampled_faults, sampled_installs;
	uint64_t drift_pages; /* real minus tracked pages at the last sample; signed, modulo 2^64 */
	struct request request[REQUESTS];
	uint32_t request_free[REQUESTS], request_free_count;
	uint8_t *parked_data; /* [REQUESTS][REQUEST_PAGES] pages, touched only as needed */
	uint32_t parked_requests;
	struct migration migration;
	struct lost lost;
	struct propagation propagation;
	struct through through;
	struct record record;
	struct heat_sweep heat;
	struct awake awake;
	struct write_batch batch[WRITE_BATCHES];
	struct deferred_fault *deferred; /* ring of DEFERRED_FAULTS */
	uint32_t deferred_head, deferred_count;
	uint64_t next_watch_ns, next_sample_ns, last_active_ns, sample_cost_ns;
	uint8_t *buffer; /* MOVE_PAGES pages, for what is read from staging */
	uint8_t *zero_page;
};

/* ---- pager.c ---- */
/* Ends the tree: it is killed, never fed zeros. The first reason stays. */
void tree_fail(struct tree *tree, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Pages that count against the budget now. */
uint64_t tree_used_pages(const struct tree *tree);
int tree_watch_fd(struct tree *tree, int fd, struct handle *handle);

/* ---- space.c ---- */
struct space *space_new(struct tree *tree, int uffd);
/* NULL: there is none of this number, or it is closed. */
struct space *space_find(const struct tree *tree, uint32_t number);
/* The same for one of a dead pager's, without its saved state yet. */
struct space *space_again(struct tree *tree, int uffd, uint32_t number);
/* Takes a pidfd (-1: unknown yet). */
int space_set_pid(struct space *space, pid_t pid, int pidfd);
/* Sees to it that space->thread is one that has the memory. false: none has any more, or none is known. */
bool space_find_thread(struct space *space);
/* Its process has ended, or has other memory: goes over to another that shares the memory, or is closed when the memory has gone
 * (space.c, E1). */
void space_leave(struct space *space);
void space_close(struct space *space);
void space_free(struct space *space);
/* Something that cannot fail while process and warden live has failed. Closes the space if its memory has gone; follows its
 * process's or its warden's end; while these are under way it does nothing, and the caller tries again. If none of them explains
 * it, the tree is stopped: closing the descriptor of live memory would feed it zeros (invariant 1). */
void space_lost(struct space *space);
/* Does its process have another mm now (execve)? Never true because of a warden or a thread that ends. */
bool space_was_replaced(struct space *space);
/* Has nobody the mm any more? */
bool space_memory_is_gone(const struct space *space);
/* Is an event unread, or one that was read not yet over (P9)? */
bool space_is_changing(const struct space *space);

/* ---- fault.c ---- */
/* Reads what the userfaultfd has and serves it. */
void fault_read(struct space *space);
void fault_serve(struct space *space, uint64_t address, bool write, uint64_t read_ns);
void fault_defer(struct space *space, uint64_t address, bool write, uint64_t read_ns);
/* Serves faults that were put off. */
void fault_serve_deferred(struct tree *tree);

/* ---- ahead.c ---- */
/* Asks for a remote page that a thread waits for, and for what the prefetcher expects next. -EAGAIN: no request free; or an
 * error. */
int ahead_fault(struct space *space, uint64_t pgno, uint64_t read_ns);
/* Asks for what there was no room for, as far as there is some now. */
void ahead_work(struct tree *tree);
/* Evidence about a page that may have been fetched ahead: it was touched; it left untouched. */
void ahead_used(struct space *space, uint32_t page);
/* The page was touched while it was on its way. */
void ahead_late(struct space *space, uint64_t pgno, uint32_t page);
void ahead_wasted(struct space *space, uint32_t page);

/* ---- install.c ---- */
enum install_result { INSTALL_DONE, INSTALL_AGAIN, INSTALL_GONE };
/* Puts pages into the space and marks them local; stops at the first that must be tried again. *installed counts. */
enum install_result install_pages(struct space *space, uint64_t pgno, const void *data, uint64_t pages, uint8_t flags,
				  uint64_t *installed);
enum install_result install_zeros(struct space *space, uint64_t pgno, uint64_t pages, bool write);
/* Asks for a run of remote pages. -EAGAIN: no request or room free. */
int install_request(struct space *space, uint64_t pgno, uint64_t pages, enum request_class class, uint64_t read_ns);
/* The same for guesses: runs that need not be neighbours, at most REQUEST_PAGES pages in all, each once and each remote. */
int install_ahead(struct space *space, const struct page_range *ranges, size_t count);
/* The same for what is no guess: a background transfer, a recorded order. */
int install_fill(struct space *space, const struct page_range *ranges, size_t count);
/* Nothing of [pgno, pgno + pages) that is under way may be installed any more; waiting threads are woken to fault again. */
void install_cancel(struct space *space, uint64_t pgno, uint64_t pages, enum page_state state);
/* Tries again with the pages that came while the kernel could not take them. */
void install_parked(struct tree *tree);
void install_on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last);
/* Nobody has these pages any more as they were: whoever waits for one gets a bus error (UFFDIO_POISON). */
void install_on_damaged(void *context, uint64_t cookie, struct page_range range, bool last);

/* ---- damaged.c ---- */
/* Pages in whose place there is a mark that gives bus errors. ask: they are asked for once more. */
uint64_t damaged_marked(struct tree *tree, bool ask);

/* ---- events.c ---- */
struct uffd_msg;
void events_handle(struct space *space, const struct uffd_msg *message);

/* ---- staging.c ---- */
int staging_init(struct staging *staging, uint64_t capacity);
/* The process through which staging can be read. */
pid_t staging_reader(const struct space *space);
/* Reads staged pages as process_vm_readv does. false: the space is closed, or it is not yet known what became of its process: to
 * be tried again. */
bool staging_read(struct space *space, const struct iovec *to, const struct iovec *from, size_t pieces);
void staging_done(struct staging *staging);
/* A page of the space is staged in this slot; it goes back or away, the slot becomes garbage. */
void staging_release(struct space *space, uint32_t page, enum page_state state);
/* Address of a staged page's copy in the target. */
uint64_t staging_address(const struct space *space, uint32_t page);
/* Compares the next slots with what the source has and sends what differs. false: nothing could be done. */
bool staging_write_back(struct space *space, uint64_t limit);
/* Pages that the source refused go back to the process. */
void staging_take_back(struct space *space);
/* Everything staged is on its way to the source (P2). */
void staging_flush(struct space *space);
/* Slots at the tail that hold nothing which is still needed here; neighbours only, so that one DROP takes them. */
uint64_t staging_droppable(const struct space *space, uint64_t limit);
/* The slot's memory is given back; its page is away. */
void staging_drop_slot(struct space *space, uint64_t slot);

/* ---- evict.c ---- */
/* One step of eviction for each space that needs it. true: there is more to do at once. */
bool evict_work(struct tree *tree);
/* A step towards an empty staging area without a warden (for a checkpoint). true: reached. */
bool evict_drain(struct space *space);
/* What the warden has finished is booked: true. Every turn, so it costs no system call while there is nothing. */
bool evict_warden_done(struct space *space);
/* Its event: it has finished, or it has died. */
void evict_warden_event(struct space *space);
/* The warden does not answer: it was killed, or its memory has gone. */
void evict_warden_lost(struct space *space);
/* Watches a warden that is ready. */
int evict_watch_warden(struct space *space);
/* Books a MOVE by what lies in its slots; a DROP under way is taken as one that was not. */
void evict_settle(struct space *space);
void evict_on_done(struct tree *tree, uint64_t cookie, int result);
#define COOKIE_WRITE (1ull << 63)
#define COOKIE_IGNORED (1ull << 62)
#define COOKIE_ORDER (COOKIE_IGNORED | 1)
#define COOKIE_PUSH (COOKIE_IGNORED | 2)

/* ---- watch.c ---- */
/* Housekeeping that is due. Returns ns until the next. */
uint64_t watch_work(struct tree *tree, uint64_t now_ns);
/* Looks at which pages of a byte range are present and sets the table right. false: not now (P9). stopped: all its threads stand
 * still, and every event of theirs was read. */
bool watch_reconcile(struct space *space, uint64_t start, uint64_t end, bool stopped);

/* ---- doubt.c ---- */

/* The range may change at any moment: it is looked at until it has settled. removed: it is being given up. */
void doubt_note(struct space *space, uint64_t start, uint64_t end, bool removed);
/* May it be given up at any moment (P10)? */
bool doubt_covers(const struct space *space, uint64_t pgno);
void doubt_settle(struct space *space, uint64_t now_ns);

/* ---- lost.c ---- */
/* What the source has to do by the clock, and what is to be done where it does not answer. Returns ns until the next time. */
uint64_t lost_work(struct tree *tree, uint64_t now_ns);
/* Receives from the source on behalf of one who cannot go on without; waits a moment where nothing comes. As
 * source_ops.receive. */
int lost_receive(struct tree *tree);
/* The source has ended with this error: so does the tree, and says why. */
void lost_fail(struct tree *tree, int error);
/* Takes over from a pager that died: what it has stopped is to go on when the source is back. */
void lost_inherit(struct tree *tree);
void lost_done(struct tree *tree);

/* ---- handover.c ---- */
int handover_accept(struct tree *tree);
void handover_read(struct tree *tree);

/* ---- control.c ---- */
void control_accept(struct tree *tree);
void control_serve(struct tree *tree, const struct handle *handle);
void control_init(struct tree *tree);
void control_done(struct tree *tree);
/* Answers a peer; a descriptor (-1: none) is borrowed. */
void control_send(const struct control_peer *peer, const void *bytes, size_t count, int descriptor);
void control_answer(const struct control_peer *peer, const char *text);
/* Goes on with a freeze under way. */
void control_work(struct tree *tree);
/* A freeze under way cannot be had: its caller hears why, and the tree goes on. */
void control_refuse(struct tree *tree, const char *why);

#endif
