/* instance: the registry of restored trees on this host: one private directory each.
 *
 *   ROOT/ID/state.json  who and what (struct instance)          ROOT/ID/images/       CRIU's images without pages
 *   ROOT/ID/root-pid init-pid pager-pid supervisor-pid          ROOT/ID/work/         CRIU's work directory, lazy-pages.socket
 *   ROOT/ID/stats       struct pager_stats                      ROOT/ID/control.sock  the pager's control socket
 *   ROOT/ID/restore.log pager.log supervisor.log                ROOT/logs/            logs of restores that failed
 *
 * ROOT is --root, else $DISTRI_PROC_ROOT, else /run/distri-proc. Where ROOT is not on tmpfs, ROOT/ID is a symbolic link to a
 * directory below /dev/shm, so that a restore never waits for a disk. The supervisor removes the directory when the tree
 * has ended; what a killed supervisor leaves is swept by whoever lists next.
 * Pids are always kept with start times, so that a pid of somebody else is never taken for ours.
 * Thread rule: none, no state. Errors: -ENOENT, -EEXIST, -EBADMSG, -errno of the file system. */
#ifndef DP_INSTANCE_INSTANCE_H
#define DP_INSTANCE_INSTANCE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

#define INSTANCE_ID_BYTES 64
#define INSTANCE_STOPPED "stopped" /* file of its directory: `stop` kills init, it is no accident */
#define INSTANCE_SEEN_DEAD "seen-dead" /* file of its directory: since when it is known that all of it is dead */
#define INSTANCE_LOG_FILES 60 /* files in ROOT/logs; older ones make room */

struct instance_process {
	pid_t pid;           /* host's numbering; 0: none yet */
	uint64_t start_time; /* see process_start_time */
};

struct instance {
	char id[INSTANCE_ID_BYTES];
	char name[INSTANCE_ID_BYTES]; /* --name, else the id */
	char group[INSTANCE_ID_BYTES]; /* of those that were started together, as NAME-1, NAME-2, ...; "": none */
	char container[256];          /* as its runtime knows it; "": it is none */
	char snapshot[256];           /* repo:tag */
	char pool[1400];              /* pool's URI without the name */
	char directory[512];          /* ROOT/ID */
	bool running;                 /* false: being restored */
	bool spare;                   /* restored but for its first instruction, and waiting to be wanted (restore/spares.h) */
	bool own_pid_namespace;       /* init is pid 1 of a namespace made for the tree */
	struct instance_process root, init, pager, supervisor;
	uint64_t created_unix_ns;
	uint64_t snapshot_pages; /* of all its spaces, eager ones included */
	uint64_t budget_bytes;   /* 0: none */
	uint64_t restore_ns;     /* how long the restore took */
};

/* The registry's directory: `override` where not NULL, else the environment's, else the default. Borrowed. */
const char *instance_root(const char *override);

/* Makes the directory (0700) with images/ and work/ for a new instance, id `<short snapshot name>-<random>`; fills id, name and
 * directory. `name` may be NULL; -EEXIST where a live instance has it, -EINVAL where it is no proper name. */
int instance_create_dir(const char *root, const char *snapshot, const char *name, struct instance *instance, struct dp_err *err);
/* Would that name be accepted? -EEXIST, -EINVAL as above. */
int instance_check_name(const char *root, const char *name, struct dp_err *err);
/* Writes state.json (atomically replaced) and the pid files. */
int instance_save(const struct instance *instance, struct dp_err *err);
/* Reads ROOT/ID. -ENOENT, -EBADMSG. */
int instance_load(const char *root, const char *id, struct instance *instance, struct dp_err *err);
/* Removes the directory and what it links to. */
int instance_remove(const struct instance *instance, struct dp_err *err);
/* Moves restore.log, pager.log and supervisor.log to ROOT/logs/ID.*; `kept` gets the path of the first (restore.log), or "". */
void instance_keep_logs(const struct instance *instance, char *kept, size_t kept_bytes);

/* All live instances, oldest first, fresh array. Sweeps what dead supervisors left behind. A root that is not there is empty. */
int instance_list(const char *root, struct instance **list, size_t *count, struct dp_err *err);
/* Removes what lies below /dev/shm of instances that have been seen dead for a minute, also of registries that are gone. */
void instance_sweep_memory(void);
/* By id, name, a prefix of an id that fits only one, or the pid of any task of the tree. -ENOENT, -EEXIST (several fit). */
int instance_find(const char *root, const char *key, struct instance *instance, struct dp_err *err);
/* The instance whose tree the process belongs to (its root, or any task below its init). -ENOENT. */
int instance_find_by_pid(const char *root, pid_t pid, struct instance *instance, struct dp_err *err);
/* Pids of the tree's processes, without init; fresh array. -ESRCH where it has ended. */
int instance_tasks(const struct instance *instance, pid_t **pids, size_t *count);
/* ROOT/ID/FILE */
const char *instance_path(const struct instance *instance, const char *file, char *buffer, size_t size);

/* state.json's text, fresh; and back. (state.c) */
char *instance_encode(const struct instance *instance);
int instance_decode(struct instance *instance, const char *json, struct dp_err *err);

#endif
