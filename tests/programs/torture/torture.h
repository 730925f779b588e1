/* torture: a program that does to its memory everything that is hard for a pager, and knows every byte it owns.
 *
 * How it works: memory is made of regions. A page's right content follows from (region id, page index, version), and the version
 * lives in a table apart, so a stale page, a foreign page, a page of zeros and a torn page are told from each other. Each kind of
 * trouble is a worker thread of its own that does round after round (one file a kind); a first wrong byte ends the program with
 * one line. A fork is consistent because whoever changes a registered region holds `world` for reading and a fork of everything
 * holds it for writing.
 *
 * Invariants: T1 no file stays open beyond a round, none changes its size (CRIU compares sizes); T2 a child uses nothing but its
 * copy of the memory and the board (shared memory, where errors and counts are); T3 everything is restartable: a checkpoint may
 * come at any instruction. */
#ifndef DP_TESTS_TORTURE_H
#define DP_TESTS_TORTURE_H

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096ull
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))

/* ---- pattern.c: what a page holds ---- */
/* Four versions in a row differ in the last word only (a small write); every eighth such group is all zeros. Version 0: zeros. */
void pattern_write(void *page, uint32_t region, uint64_t index, uint32_t old_version, uint32_t version);
/* The byte offset of the first wrong word, or -1. */
int pattern_find_wrong(const void *page, uint32_t region, uint64_t index, uint32_t version);
/* Says in words what the page holds instead. */
void pattern_describe(const void *page, char *text, size_t size);
bool page_is_zero(const void *page);
uint64_t random_next(uint64_t *state);
uint64_t random_below(uint64_t *state, uint64_t limit);

/* ---- region.c: memory and its versions ---- */
#define VERSION_FREED 0x80000000u /* MADV_FREE was called: the old content or zeros, until written */

struct region {
	const char *name;
	uint32_t id;
	uint8_t *base;
	uint64_t pages, max_pages;
	uint32_t *versions; /* max_pages of them */
};
/* Maps and registers a region; NULL after a reported failure. mmap_flags are added to MAP_PRIVATE|MAP_ANONYMOUS. */
struct region *region_new(const char *name, uint64_t pages, uint64_t max_pages, int mmap_flags);
/* Wraps memory mapped by the caller; not registered, so a fork of everything does not look at it. */
struct region *region_wrap(const char *name, void *base, uint64_t pages);
bool region_check(struct region *region, uint64_t index);
void region_write(struct region *region, uint64_t index);
void region_write_all(struct region *region);
bool region_check_all(struct region *region);
/* Versions of a range become 0: its pages must read as zeros. */
void region_set_zero(struct region *region, uint64_t first, uint64_t pages);
/* Checks `samples` random pages of a range. */
bool region_check_some(struct region *region, uint64_t first, uint64_t pages, unsigned samples, uint64_t *random);
/* Every registered region, every page. The caller holds `world` for writing, or is a child that was forked under it. */
bool regions_check_everything(void);
static inline uint8_t *region_page(const struct region *region, uint64_t index) { return region->base + index * PAGE_BYTES; }
extern pthread_rwlock_t world;
/* Held (inside `world`) by whoever maps or unmaps: so a hole that one thread leaves for a moment is not taken by another. */
extern pthread_mutex_t places;

/* ---- workers ---- */
struct worker {
	const struct kind *kind;
	unsigned kind_index, number; /* number: among the workers of this kind */
	pthread_t thread;
	uint64_t random;
	uint64_t round;
	struct region *region, *second;
	void *state;
};
struct kind {
	const char *name, *what;
	unsigned share_percent; /* of --memory, given as worker_pages() */
	bool on_demand;         /* only where --kinds names it */
	bool (*start)(struct worker *worker);
	bool (*round)(struct worker *worker); /* false after torture_fail */
};
extern const struct kind kind_threads, kind_fork, kind_exec, kind_spawn, kind_remap, kind_unmap, kind_advise, kind_protect,
	kind_stack, kind_signals, kind_direct, kind_brk, kind_pipe, kind_huge, kind_shared, kind_lock, kind_sparse, kind_big,
	kind_areas;

struct options {
	uint64_t memory_bytes;
	unsigned threads, seconds, pace_us, areas;
	uint64_t big_bytes, seed;
	const char *status_path, *directory, *kinds;
	bool big;
};
extern struct options options;
uint64_t worker_pages(const struct worker *worker);

/* ---- board.c: shared with the children ---- */
#define MAX_KINDS 24
struct board {
	_Atomic int stop;
	_Atomic int failed;
	_Atomic int spawn_allowed; /* set by SIGUSR2 */
	_Atomic uint64_t rounds[MAX_KINDS];
	_Atomic uint64_t signals;
	char error[512];
	char skipped[256];
};
extern struct board *board;
bool board_open(void);
/* Reports (the first one wins) and asks all workers to stop. Always returns false. */
bool torture_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Waits for a child and turns a bad end into a reported failure. */
bool child_wait(int pid, const char *what);

/* ---- faults.c, signals.c ---- */
bool thread_signals_set_up(void);
bool signals_set_up(void);
/* Runs access(context) and says whether it raised SIGSEGV at an address in [low, high). */
bool fault_expected(void (*access)(void *context), void *context, const void *low, const void *high);
extern struct worker *workers;
extern unsigned worker_count;

#endif
