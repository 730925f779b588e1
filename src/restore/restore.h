/* restore: brings a snapshot of a pool back to life as a process tree whose pages stay in the pool.
 *
 * How it works: the caller makes a fresh instance directory and forks the *supervisor*, which outlives the caller. While the
 * caller fetches the skeleton and checks that this host has the files it needs, the supervisor forks *init* (init.c: the tree's
 * reaper; runs `criu restore --lazy-pages` as its child) by a guess of what namespaces the skeleton will ask for, and CRIU starts
 * as far as it gets without images (gate.c). The caller's verdict lets CRIU go on and starts the *pager* (serves faults); where
 * the guess was wrong, init and CRIU are started again. The lazy-pages socket listens before CRIU is let go on.
 *
 *   caller ── report socket ── supervisor ─┬─ pager ····· userfaultfds, pool
 *                                 keeper   └─ init ─┬─ criu (until the tree runs)
 *                                                   └─ root of the tree ── ...
 *
 * Invariants:
 *  R1 a duplicate of every userfaultfd is kept by the supervisor until the tree is dead (keeper.h, design invariant 1);
 *  R2 nothing of the tree is made before everything that can be checked beforehand is checked;
 *  R3 when a restore fails, nothing of it remains but its logs;
 *  R4 a supervisor that is killed takes nothing with it: init and pager go on, init ends the tree should the pager die too.
 * Thread rule: single-threaded processes only (this forks without exec). */
#ifndef DP_RESTORE_RESTORE_H
#define DP_RESTORE_RESTORE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "client/client.h"
#include "instance/instance.h"
#include "pager/pager.h"
#include "prefetch/prefetch.h"
#include "restore/terminal.h"
#include "transport/endpoint.h"

struct restore_lease;

#define RESTORE_POOLS 4u /* at most, of a mirror or a spread */

#define RESTORE_NETWORK_OWN "none" /* a fresh namespace, with nothing but a loopback that is up */

enum restore_record { RECORD_WHERE_NONE_IS, RECORD_ALWAYS, RECORD_NEVER };

struct restore_container;

struct restore_options {
	const char *root;               /* registry, see instance_root */
	const struct endpoint *endpoint; /* pool and snapshot name */
	const struct endpoint *pools;   /* all of them, endpoint among them, where there are several; else NULL */
	size_t pool_count;
	bool spread;                    /* pages are spread over the pools, rather than kept in each */
	bool ack_one;                   /* of a mirror: a change is safe when one pool has it */
	const char *name;               /* --name, or NULL */
	const char *group;              /* that it belongs to, or NULL */
	bool name_is_free;              /* the caller has looked */
	const char *network;            /* namespace of the tree: NULL: the caller's; RESTORE_NETWORK_OWN; or that of a file */
	bool private_files;             /* what the tree writes to files stays its own (private_files.h) */
	bool hold;                      /* restore_prepare: everything but the first instruction */
	const char *local_memory;       /* "50%", "512M", or NULL: no budget */
	const char *remote_memory;      /* instead: what is to be remote, "50%" or "512M" */
	struct restore_container *container; /* its runtime restores it (container.h); NULL: CRIU, started by us */
	bool host_pid_namespace;        /* the same pids on this host instead of a namespace of its own */
	bool foreground;                /* the tree ends when the caller does */
	enum client_compress compress;  /* of pages on the wire */
	uint64_t stall_timeout_ns;      /* how long a fault waits for a pool that does not answer; 0: 30 s */
	enum pager_on_lost on_lost;     /* what becomes of the tree then */
	bool migrate;                   /* fetch everything in the background, */
	uint64_t migrate_rate_bytes;    /* at most so much a second; 0: no limit */
	bool may_sleep; /* the host's processors may, also while pages are wanted at once (awake.h) */
	enum prefetch_policy prefetch_policy;
	bool working_set;               /* what an earlier run recorded is there before the tree is resumed */
	enum restore_record record;     /* the order in which this run wants its pages, stored with the snapshot */
	uint64_t commit_interval_ns;    /* from one commit to the next; 0: pages go to the pool only when they leave */
	bool through;                   /* each write is in the pool before the process goes on (pager/through.h) */
	bool shell_job;                 /* --shell-job is among criu_arguments */
	/* NULL, or where `endpoint` points to, and of it only the name is known yet: the supervisor and CRIU are started all the
	 * same, and `await` is called, once, to fill in the rest, or to fail. It may block. */
	struct endpoint *late;
	int (*await)(void *context, struct endpoint *late, struct dp_err *err);
	void *await_context;
	/* mapped shared by the caller: until when the tree may run (lease.h); NULL: for ever */
	const struct restore_lease *lease;
	unsigned verbose;
	char *const *criu_arguments;    /* passed on to `criu restore` */
	size_t criu_argument_count;
};

/* CLOCK_MONOTONIC; where the time went. */
struct restore_times {
	uint64_t start_ns, opened_ns, fetched_ns, checked_ns, criu_started_ns, criu_done_ns, done_ns;
};

struct restore_session {
	struct instance instance;
	struct restore_times times;
	int report_fd;    /* to the supervisor */
	pid_t supervisor; /* our child */
	struct terminal terminal; /* the tree's, where it has one of its own */
};

/* Restores and returns once the tree runs. On failure nothing is left but logs, which err names. Blocks. -ENOENT no such
 * snapshot, -ENOEXEC another architecture, -ENOTUNIQ files differ, -EEXIST name or pid taken, -EINVAL budget, and others. */
int restore_start(const struct restore_options *options, struct restore_session *session, struct dp_err *err);
/* The same, but stops before the tree runs its first instruction: CRIU, with all of the tree in its place, waits in its
 * pre-resume action (working_set.c). Where the session is closed then, or its holder dies, nothing is left. A session that was
 * prepared may be handed to another process: its report_fd and instance are all of it. options->hold has to be set. */
int restore_prepare(const struct restore_options *options, struct restore_session *session, struct dp_err *err);
/* Lets a prepared tree run, under this name and in this group ("" : as it was prepared), and returns when it does. What fails
 * leaves nothing. -EOWNERDEAD: it was not there any more. */
int restore_go(struct restore_session *session, const char *name, const char *group, bool foreground, struct dp_err *err);
/* Waits until the tree has ended and its instance is removed; signals of `forward` (blocked by the caller; may be NULL) are
 * passed on to the tree's root meanwhile. *exit_code is the root's, or 128 + signal. -ECHILD with a text where it was ended by
 * a failure of ours (pager or pool). */
int restore_wait(struct restore_session *session, const sigset_t *forward, int *exit_code, struct dp_err *err);
void restore_session_done(struct restore_session *session);

/* Is this the name by which CRIU calls us before it resumes a tree (--prefetch working-set)? Then this is what to do: waits for
 * the pager. Changes name. Returns an exit code. */
bool working_set_is_action(const char *name);
int working_set_action(char *name);

/* "cgroup": the budget is what the tree's control group may have, and follows it. */
bool restore_follows_cgroup(const char *local_memory);
/* The budget in bytes for "50%" of snapshot_pages, or "512M"; NULL: 0, none. -EINVAL where it is no such thing, or less than a
 * tree of `tasks` processes can work in; err names the least then. */
int restore_budget(const char *local_memory, uint64_t snapshot_pages, size_t tasks, uint64_t *budget_bytes, struct dp_err *err);

#endif
