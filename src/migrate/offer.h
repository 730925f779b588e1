/* offer: a process tree is frozen where it is, and becomes a snapshot whose pages stay in its own memory.
 *
 * How it works: `criu dump` freezes the tree and writes the skeleton, but a preloaded library (hide/hide.c) keeps it from seeing
 * the pages that may be lazy, so this takes as long for a gigabyte as for nothing. A process of ours, the *offerer*, is CRIU's
 * parent; when CRIU has finished its images and waits in its post-dump action, the offerer makes a pool of its own in which the
 * images are a snapshot, and whose store (frozen_store.h) reads a page from the frozen process when it is asked for. It serves
 * that pool at the endpoint given; `restore` from there needs nothing new. An offer that is a copy lets the tree go on at once:
 * each of its processes was forked once while it was frozen (shadow.h), and the pages are read from the forks.
 *
 *   caller ── control ── offerer (serves the pool) ── hook ── criu ══ holds stopped ══ the tree, or its shadows
 *
 * Invariants:
 *  F1 pages are read from a frozen process only while CRIU lives and holds it (its end of a pipe tells: the kernel closes it
 *     before it lets the tree go), so what was served is what the tree had when it was frozen;
 *  F2 the tree runs on or is killed, never both, and one of the two: it is killed only after offer_release was called, and CRIU
 *     lets it go on whenever its hook, the offerer or the caller is gone without that (with a record: as the record says);
 *  F3 before the tree goes on, the offerer has stopped serving;
 *  F4 a page that cannot be read is an error (-EIO), never zeros;
 *  F5 the tree is not killed before it was proven that what CRIU was told of its memory areas is so (area_flags.h).
 * Thread rule: an offer is used by one thread. The offerer is forked without exec: the caller has one thread at offer_make. */
#ifndef DP_MIGRATE_OFFER_H
#define DP_MIGRATE_OFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "checkpoint/precopy.h"
#include "migrate/criu_locks.h"

struct offer;

#define OFFER_NOT_KNOWN UINT64_MAX
struct offer_round {
	unsigned round;
	uint64_t pages, pages_left; /* sent in it; and written meanwhile, roughly, or OFFER_NOT_KNOWN */
};

/* A container, frozen by its runtime (offer_runtime.h). */
struct offer_container {
	char *const *runtime; /* its command line up to the command, such as runc --root DIR; NULL-terminated */
	const char *id;
};

struct offer_options {
	pid_t pid;                   /* the tree's root, as this process sees it */
	const struct offer_container *container; /* NULL: the tree is no container's; pid is its first process; borrowed */
	bool copy;                   /* the tree goes on at once */
	bool tcp_established;        /* open connections go along; else a tree that has some is refused */
	bool tcp_close;              /* they are closed in what is restored, and are left alone here; goes well with copy */
	const char *listen;          /* tcp://HOST:PORT, dps://HOST:PORT (port 0 picks one) or unix:///PATH; borrowed */
	const char *access_file;     /* who may do what, as for `pool serve --access`; or NULL */
	bool allow_plaintext;
	const char *name;            /* repo:tag of the snapshot; borrowed */
	const char *registry;        /* of instances; NULL: the default */
	/* NULL, or where the caller records what it decided (record.h). When the caller is gone, whoever is left and holds the
	 * tree (the offerer; without it the hook) does what switch_heir(record) says, instead of letting the tree go on at
	 * once. Serving goes on meanwhile where it can. Absolute path; borrowed. */
	const char *record;
	/* NULL, or a pool near the destination, without a name: all pages go there, most of them while the tree runs, and it is
	 * restored from there (offer_ahead.h). Not with copy. */
	const char *ahead_pool;
	/* Those that were written since stay here all the same, as of an offer without a pool; what went ahead is a draft there,
	 * of the name above, until whoever restores takes it (landing.h). */
	bool rest_stays;
	/* NULL, or the tree is an instance with pages in a pool: it is stored in this one, which has them, and restored from
	 * there
	 * (offer_kept.h). Then listen and ahead_pool are not used. */
	const char *kept_pool;
	struct precopy_limits ahead_limits; /* with ahead_pool; its on_round is not used, */
	/* but this, in the caller's process, while offer_make blocks; or NULL */
	void (*on_round)(void *context, const struct offer_round *round);
	void *context;
	bool confirm_later; /* offer_confirm is going to be called; else offer_make returns only after the same proof */
	bool verbose;
	char *const *criu_arguments; /* further ones for `criu dump`; borrowed */
	size_t criu_argument_count;
};

struct offer_facts {
	char uri[1400];          /* what to restore from: pool and name */
	char criu[32];           /* its version */
	char command_line[256];  /* of the root */
	char locks[CRIU_LOCKS_BYTES]; /* CRIU's table of nftables, which stays after a release; "": none */
	uint64_t tasks, threads;
	uint64_t known_tasks;    /* of which no look at every page was needed while they stood still */
	uint64_t pages;          /* that stay in the tree's memory until they are asked for */
	uint64_t eager_pages;    /* that went with the skeleton */
	struct precopy_totals ahead; /* with ahead_pool */
	uint64_t pool_instance;  /* with kept_pool: what it is there; 0: it is in another pool */
	uint64_t left_pages;     /* with rest_stays: those of `pages` that stay */
	uint64_t skeleton_bytes;
	uint64_t frozen_at_ns;   /* CLOCK_MONOTONIC: no thread of the tree runs from here on */
	uint64_t dumped_ns;      /* from then until CRIU had written its images, */
	uint64_t ready_ns;       /* until the snapshot could be restored from, */
	uint64_t stopped_ns;     /* copy: until the tree went on; else 0 */
};

struct offer_progress {
	bool complete;         /* an instance was ended by its restorer, having read every page that it still had */
	uint64_t pages_left;   /* never asked for, or not since */
	uint64_t pages_served; /* answered, each once */
	uint32_t connections, instances;
	uint32_t lost; /* instances whose connection is gone without a word */
};

/* Freezes the tree and serves it. Blocks until the snapshot can be restored from (a few tens of milliseconds for CRIU's start,
 * then as long as the tree has to be frozen). After an error the tree runs on as if nothing had been. Errors: as
 * checkpoint_run, and -EOPNOTSUPP (the tree is an instance with remote pages, or has something that cannot be offered),
 * -EADDRINUSE and others of listening, -EAGAIN (copy: it may have no further process; a memory area
 * changed its kind in the moment before: again, please). */
int offer_make(struct offer **offer, const struct offer_options *options, struct offer_facts *facts, struct dp_err *err);
/* With confirm_later, before anything of the tree may run elsewhere: was all as it was told? 0, -EAGAIN where it was not, in
 * which case the tree can only be resumed; -ECANCELED. Blocks for 20 ms a gigabyte from offer_make's return on, at most. */
int offer_confirm(struct offer *offer, struct dp_err *err);
/* For poll: readable when the offer has ended by itself. Then offer_wait tells how. Borrowed. */
int offer_fd(const struct offer *offer);
int offer_progress(struct offer *offer, struct offer_progress *progress, struct dp_err *err);
/* The source is not needed any more: it is killed without a word to its peers, and what CRIU did to the network goes with it.
 * Pages that were not asked for yet are gone with it (-EIO), unless keep_pages: then they are copied to the offerer's memory
 * first. The pool is served until nobody has been connected for two seconds. Returns when the tree is dead. -ECANCELED: CRIU
 * had ended before, so the tree runs on (or was killed by somebody else): there is none to release.
 * Of a copy: its shadows are dropped. */
int offer_release(struct offer *offer, bool keep_pages, struct dp_err *err);
/* The source runs on as if nothing had been, and nothing is served any more: whoever has pages from here must be gone or go.
 * Returns when it runs. -ECANCELED: it ran on before (CRIU had ended), or is dead. */
int offer_resume(struct offer *offer, struct dp_err *err);
/* Of a copy: the offerer serves on without the caller, and ends, the shadows with it, when nobody has been connected for two
 * seconds. */
int offer_detach(struct offer *offer, struct dp_err *err);
/* Blocks until the offerer has ended: 0 after release or resume; else what went wrong. */
int offer_wait(struct offer *offer, struct dp_err *err);
/* CRIU's action script, of an offer or of a checkpoint: what it exits with. Where nobody is left who says that the tree may be
 * killed, the record decides (switch_heir), and CRIU waits for that. */
int offer_hook(void);
/* Takes NULL. An offer neither released nor resumed is resumed. */
void offer_free(struct offer *offer);

#endif
