/* pager: one process per restored tree. Takes the userfaultfds over from CRIU at its lazy-pages socket, answers the tree's
 * faults, and keeps the tree inside its budget. See ARCHITECTURE.md, "A fault's way".
 * (Interface for the room `restore` and the drop-in `lazy-pages`; the inside is in pager_*.c.) */
#ifndef DP_PAGER_PAGER_H
#define DP_PAGER_PAGER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "pager/source.h"
#include "prefetch/prefetch.h"

struct pager_inheritance;

/* What becomes of the tree when the pages' source does not answer for longer than its stall timeout. */
enum pager_on_lost {
	ON_LOST_STOP,   /* SIGSTOP to every process of it; SIGCONT when the source is back */
	ON_LOST_KILL,
	ON_LOST_FREEZE, /* nothing is sent: a thread that needs what is missing waits, the others go on with what is local */
};
#define STALL_TIMEOUT_NS UINT64_C(30000000000)

struct pager_config {
	const char *images_dir;   /* the skeleton: pstree, mm-*, pagemap-* images. Borrowed */
	struct source *source;    /* where remote pages are; borrowed, outlives pager_run */
	int listen_fd;            /* listening AF_UNIX socket `lazy-pages.socket`, with SO_PASSPIDFD and SO_PASSCRED; taken */
	int control_fd;           /* listening AF_UNIX SEQPACKET control socket, or -1; taken */
	/* AF_UNIX SEQPACKET: every userfaultfd and pidfd is sent here too (see keeper.h), or -1; taken */
	int keeper_fd;
	/* Where the instance's pages live, told to a checkpoint; 0 where it is no pool. Borrowed */
	const char *pool_uris[4];
	size_t pool_uri_count;
	const char *stats_path;   /* file of struct pager_stats, or NULL */
	uint64_t budget_bytes;    /* 0: no budget, nothing is ever evicted */
	bool through;             /* writes are in the source before the process goes on, with a tracer's help (through.h) */
	bool follow_cgroup;       /* the budget is what the tree's control group may have (limit.h) */
	bool fill;                /* fetch everything in the background; without a budget the pager ends when all is local */
	uint64_t fill_rate_bytes; /* a second, at most; 0: no limit */
	enum prefetch_policy prefetch_policy; /* 0: adaptive */
	struct order_run *order;  /* an earlier run's, arranged (order.h), to be replayed; NULL: none. Borrowed */
	size_t order_runs;
	bool record;              /* note the order of this run and store it with the snapshot */
	int gate_fd;              /* written to when what is replayed before the tree is resumed is there; 0 or -1: none; taken */
	bool may_sleep;           /* the host's processors may, also while faults follow closely on each other (awake.h) */
	const char *trace_path;   /* faults are written there, for simulations; NULL: not. Borrowed */
	const struct pager_inheritance *inherited; /* of a pager that died (recover.h); NULL: none. Borrowed */
	int init_pidfd;           /* of the tree's reaper: descriptors are held until it ends; 0 or -1: none. Borrowed */
	/* a pipe that hangs up when whoever could end the tree for us is gone; 0 or -1: none. Borrowed */
	int guard_fd;
	uint64_t stall_timeout_ns; /* 0: STALL_TIMEOUT_NS */
	enum pager_on_lost on_lost;
	int init_pid;             /* pid (this namespace) of the tree's reaper, or 0 */
};

/* Serves until every task of the tree has gone (or, with fill, is wholly local). Returns 0, or -errno with a text; the
 * tree has been killed then rather than fed zeros. Runs in the calling thread, which becomes the fault thread. */
int pager_run(const struct pager_config *config, struct dp_err *err);

/* The least budget that can work for a tree of so many tasks. */
uint64_t pager_min_budget_bytes(uint64_t tasks);

#endif
