/* control: what `checkpoint`, `migrate-in` and `stats --heat` ask of the pager of a running instance, over its control socket
 * (AF_UNIX, SEQPACKET). Client side; the server is control.c of the same room. A checkpoint of an instance goes
 *     control_freeze -> CRIU dumps (the pager goes on answering faults) -> control_export -> commit -> control_thaw
 * Calls block (freeze until the wardens have left: milliseconds); if the caller dies, the pager thaws by itself when the
 * connection ends, so the same connection is used for all three. Thread rule: one thread per connection. */
#ifndef DP_PAGER_CONTROL_H
#define DP_PAGER_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "client/client.h"
#include "pager/heat.h"

/* A local page of which the pool has a copy with this content hash (page_hash): if CRIU sent a page of the same hash, the copy
 * is the page; if CRIU sent none, the page came while CRIU dumped, and the copy is the page too. */
struct control_copy {
	uint64_t pgno, hash;
};

struct control_space {
	int vpid;            /* innermost pid: the number in CRIU's image names */
	uint64_t pool_space; /* its lower bits are its number in each pool: control_space_in */
	struct page_range *remote; /* pages that are only in the pool, ascending */
	size_t remote_count;
	struct control_copy *copies; /* ascending */
	size_t copy_count;
	bool hints_only; /* not the pager's word: the copies tell what may be shared, and nothing of what CRIU cannot see */
};

#define CONTROL_POOLS 4u
struct control_pool {
	uint64_t instance, epoch;
	uint64_t there;    /* it can be asked, and is in the mirror */
	uint64_t whole;    /* and has said that it has all that it should have; else it is out, or behind */
	char uri[1400];    /* without a name */
};

/* What the source is: no pool at all (count 0), one, or several. */
struct control_pools {
	uint64_t count;
	uint64_t spread; /* each pool has the pages of which it is the place (spread_place); else each has all */
	struct control_pool pools[CONTROL_POOLS];
};

struct control_export {
	struct control_space *spaces;
	size_t count;
	struct control_pool pools[CONTROL_POOLS];
	size_t pool_count; /* 0 where the source is no pool */
	bool spread;       /* each pool has the pages of which it is the place (spread_place); else each has all */
};

/* The id of a space in one of the pools. */
static inline uint64_t control_space_in(const struct control_export *from, const struct control_space *space, size_t pool)
{
	return from->pools[pool].instance << 20 | (space->pool_space & 0xfffff);
}

/* Connects to an instance's control.sock. Returns the fd (the caller closes it: that thaws) or -errno. */
int control_connect(const char *path, struct dp_err *err);
int control_freeze(int connection, struct dp_err *err);
int control_export(int connection, struct control_export *out, struct dp_err *err);
void control_export_done(struct control_export *out);
/* The pools as they are now, without freezing anything. */
int control_pools(int connection, struct control_pools *pools, struct dp_err *err);
int control_thaw(int connection, struct dp_err *err);
/* Any request whose answer is `ok`, perhaps with a descriptor beside it (taken by the caller). -EIO with the pager's words. */
int control_ask(int connection, const char *request, int *descriptor, struct dp_err *err);
/* The two halves of a request whose answer is something else: `what` begins the error's text; bytes of the answer, at least one,
 * or -errno. */
int control_say(int connection, const char *request, const char *what, struct dp_err *err);
ssize_t control_hear(int connection, void *answer, size_t room, struct dp_err *err);

/* Begins a background transfer, or changes its rate (bytes a second, 0: none). `lift_budget`: the tree may keep everything from
 * now on. */
int control_migrate(int connection, uint64_t rate_bytes, bool lift_budget, struct dp_err *err);
int control_migrate_stop(int connection, struct dp_err *err);
/* One piece of the pages' heat, see heat.h; begin with (UINT64_MAX, 0), go on with what the piece says. */
int control_heat(int connection, uint64_t space, uint64_t at, struct heat_piece *piece, struct dp_err *err);

#endif
