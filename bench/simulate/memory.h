/* memory: a local memory of so many pages, and who leaves it. Use is known as the pager knows it: a page that waits in staging
 * and is touched there comes back (a fault without the network), everything else that is local is touched unseen. The policies
 * with `bit` in their names see every touch, as if the kernel told: what could be had with an accessed bit. */
#ifndef DP_BENCH_MEMORY_H
#define DP_BENCH_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

enum replacement { REPLACE_QUEUES, REPLACE_SIEVE, REPLACE_LRU, REPLACE_BELADY };

struct replacement_options {
	char name[48];
	enum replacement kind;
	bool bit;             /* touches are seen */
	double staging_share; /* of the budget: pages wait there before they leave */
	/* REPLACE_QUEUES: S3-FIFO's shape. small_share 1 is one queue: FIFO with a second chance, CLOCK */
	double small_share;   /* of local pages: the small queue gives first while it is longer */
	double ghost_share;   /* of the budget: so many evictions a page is remembered */
	unsigned counter;     /* a page that was seen touched n times running skips n rounds of the main queue, at most so many */
	bool doubling;        /* or 1, 3, 7 rounds */
};

enum touch_result { TOUCH_LOCAL, TOUCH_STAGED, TOUCH_MISS };

struct memory_page {
	uint32_t next, previous;
	uint8_t state; /* 0 absent, 1 local, 2 staged */
	uint8_t queue;
	uint8_t level, skips; /* times it was seen touched; rounds it may still skip */
	bool seen;
	uint32_t gone_at; /* eviction number + 1; 0: never was here */
	uint32_t use;     /* Belady: index of the next touch */
};

struct memory {
	const struct replacement_options *options;
	struct memory_page *page;
	uint32_t pages, budget;
	uint32_t head[3], tail[3], length[3]; /* small, main, staging; newest at the head */
	uint32_t hand;      /* SIEVE */
	uint32_t evictions;
	uint64_t *heap;     /* Belady: use << 32 | page, largest first */
	uint32_t heap_count, heap_room;
	void (*dropped)(void *context, uint32_t page);
	void *context;
};

void memory_init(struct memory *memory, const struct replacement_options *options, uint32_t pages, uint32_t budget);
void memory_done(struct memory *memory);
/* What a touch meets. A staged page is local afterwards; a missing one is still missing. `next_use`: index of the page's next
 * touch. */
enum touch_result memory_touch(struct memory *memory, uint32_t page, uint32_t next_use);
/* The page comes in; others leave for it. */
void memory_insert(struct memory *memory, uint32_t page, uint32_t next_use);

#endif
