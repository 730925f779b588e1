/* What the tests of several pools live in: the real sources, the real operation log and real pools, a model of what they should
 * have, and places at which a pager dies: by a longjmp out of a call of a link or of what a mirror keeps. */
#ifndef DP_TESTS_SEVERAL_WORLD_H
#define DP_TESTS_SEVERAL_WORLD_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

#include "pager/oplog.h"
#include "pager/source_mirror.h"
#include "pager/source_spread.h"

#define POOLS 3u
#define SPACES 4u
#define WINDOW 128u /* pages about the border of two chunks */
#define PAGES (3 * WINDOW)
#define SNAPSHOT_PAGES 600u
#define NUMBER_BITS 20
#define PATIENCE_NS UINT64_C(3600000000000)
#define MS UINT64_C(1000000)

enum kind { MIRROR, MIRROR_ACK_ONE, SPREAD };

struct world {
	enum kind kind;
	unsigned count;
	uint64_t seed, random, skew_ns, version;
	struct client_attached home[POOLS];
	bool away[POOLS];
	int fd[POOLS];
	struct source *inner, *log;
	struct oplog_area *area;
	uint8_t *saved;
	uint64_t model[SPACES][PAGES]; /* version << 20 | page that it was written as; 0: zeros */
	uint64_t space[SPACES];        /* 0: there is none */
	unsigned pumps, refusals;
	bool armed, dies_leaving; /* dies_leaving: when what a pool misses is noted, and the pool is not out yet */
	unsigned crash_in;
	jmp_buf crash;
	bool reading;
	uint64_t read_at, read_pages;
	uint32_t read_space;
};
extern struct world world;

struct seen {
	uint64_t crashes, calls, reads, absences, breaks;
};
extern struct seen seen;

enum call { CALL_PUT, CALL_DROP, CALL_MOVE, CALL_FORK, CALL_FREE };

struct chosen {
	enum call call;
	uint32_t space, child;
	uint64_t from, to, pages; /* indexes; within one window each */
	uint64_t child_id;
};

uint64_t dice(uint64_t sides);
uint64_t pgno_of(uint64_t index);
/* clients: NULL, for a pager that takes over. */
void open_source(struct client **clients);
void close_source(void);
/* Of oplog_replay. */
int read_put(void *context, const struct op *op, void *data);
int failed(void *context, const struct op *op, int result);
void pump(void);
int call_once(struct chosen *chosen, uint64_t *versions);
/* The model does the same. */
void follow(const struct chosen *chosen, const uint64_t *versions);
void begin_seed(enum kind kind, uint64_t seed);
/* Until all pools are there again, and nothing is under way. */
void come_to_rest(void);
/* Then the pools are looked at: they have what they should. */
void end_seed(void);
int start_pools(void **state);
int stop_pools(void **state);

#endif
