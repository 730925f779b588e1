/* ferry_in: what the parts of the destination's ferry share. Only for this room. */
#ifndef DP_MIGRATE_FERRY_IN_H
#define DP_MIGRATE_FERRY_IN_H

#include <sys/types.h>

#include "instance/instance.h"
#include "migrate/address.h"
#include "migrate/ferry.h"
#include "migrate/landing.h"
#include "migrate/record.h"
#include "migrate/switch.h"
#include "restore/lease.h"
#include "restore/restore.h"

/* What the restorer, our child, says over a pipe: once that the tree runs or cannot be restored, once how it ended. */
struct in_report {
	enum { IN_RUNS = 1, IN_FAILED, IN_ENDED } kind;
	int code; /* FAILED: errno, ENDED: the root's exit code */
	struct instance instance;
	uint64_t opened_ns, fetched_ns, checked_ns, criu_ns, restore_ns; /* since the restore began */
	struct dp_err err;
};

struct container_in;

struct in {
	const char *root;
	char id[FERRY_ID_BYTES], token[FERRY_ID_BYTES], boot[SWITCH_BOOT_BYTES], name[INSTANCE_ID_BYTES];
	struct endpoint back;      /* the source's agent, for our asks */
	struct lines source;       /* the ferry out; not connected in a ferry that follows another */
	struct lines asks;
	struct switch_destination place;
	struct restore_lease *lease; /* the page that init has too */
	struct address address;
	bool address_moves, address_here, closed;
	int announcer;             /* see address_announcer */
	struct container_in *container; /* NULL: a tree that is none (ferry_container.h) */
	struct listener gate;      /* CRIU's action comes here */
	struct stream *at_gate;
	struct landing landing;    /* where pages go ahead to, if they go here; in a ferry that follows only its pidfd */
	bool landed;               /* and it is restored from there */
	bool in_pool;              /* all its pages are in a pool that is neither the source's nor the landing */
	uint64_t fence_instance;   /* whose lease ends with the switch, in this pool; 0: none */
	char fence_pool[1400];
	pid_t restorer;
	int report_fd, order_fd, init_pidfd, lock_fd;
	struct instance instance;
	bool gate_opened;
	bool runs, ended, whole, by_itself; /* ended: the tree; by_itself: as a process ends, not by a failure of ours */
	uint64_t next_ask_ns;      /* BOOTTIME */
	uint64_t give_up_ns;       /* BOOTTIME: nobody has to hear of a tree that is dead, longer than a lease lasts */
	json_object *prepare;      /* borrowed; NULL in one that follows another */
	struct dp_err err;
};

/* Checks all that can be checked before the source is frozen, and gets ready; `answer` gets what the source has to know.
 * (ferry_ready.c) */
int in_get_ready(struct in *in, json_object *prepare, json_object *answer);
/* What a ferry that follows needs, from the directory. -ENOENT, -EBADMSG. */
int in_read_state(struct in *in, const char *id);
/* Maps the lease's page; made: it is new. */
int in_map_lease(struct in *in, bool made);
/* Our child, who has CRIU ready, restores when it hears from where, and then waits for the tree's end. (ferry_restorer.c) */
int in_start_restorer(struct in *in);
int in_restore(struct in *in, const char *uri);
/* Can the pool be reached in which its pages stay? (ferry_kept.c) */
int in_check_pool(struct in *in);
/* The pools of a mirror, with the snapshot's name; 0: there is one. */
size_t in_pools(const struct in *in, const char *name, struct endpoint pools[RESTORE_POOLS], struct dp_err *err);
/* Whose lease has to be taken when the switch is final, by the line that says what to restore; or, of a ferry that died, as it
 * has noted. */
int in_note_fence(struct in *in, json_object *order);
void in_find_fence(struct in *in);
/* Takes it: the source's instance never writes again. Blocks; a failure is only logged. */
void in_fence(struct in *in);
/* Makes the landing, if one is asked for; finds that of a ferry that died. (ferry_landing.c) */
int in_start_landing(struct in *in);
int in_find_landing(struct in *in);
/* The source says what to restore: *from becomes that, or what the landing has made of it, in `local`. Blocks. */
int in_land(struct in *in, const char *uri, char local[static 1400], const char **from);
/* Pages are gone with it that the tree has not: it cannot go on. */
bool in_lost_landing(const struct in *in);
/* One ask, blocking for at most about two seconds: the answer is in the place then. -errno: there was none. (ferry_ask.c) */
int in_ask(struct in *in, enum switch_ask ask, const char *why);
/* Is there an agent that knows this migration? */
int in_reach(struct in *in);

#endif
