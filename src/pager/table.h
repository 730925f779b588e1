/* table: what the pager knows about each page of one space.
 *
 * A leaf describes 64 pages in 920 bytes (14.4 a page); leaves come from one reserved range of addresses and are found by a
 * two-level index, so that only what exists costs memory and nothing is allocated on the fault path. Pages without a leaf
 * are remote where `initial` (the snapshot's page map) has them, and zero elsewhere; so a restore costs by areas, not bytes.
 * Two queues (small, main) run through the leaves as linked lists of page indexes; a queued page that is no longer
 * local stays linked until it comes to the head.
 *
 * The leaves of a live pager lie in shared memory that outlives it (pager/recover.h): a new pager makes the rest from them
 * (table_recover).
 * For that, T4: at any instant the leaves' page numbers and states, the slots of staged pages (link) and the saved `initial` say
 * the truth; a leaf counts from the store of its pgno on, and whatever makes `initial` smaller is saved before a leaf that covers
 * it goes.
 *
 * Invariants (asserted): T1 counts[] are the numbers of pages in each state; T2 a staged page is in no queue; T3 a leaf is freed
 * only when all its pages are zero and none is queued. Thread rule: the fault thread. */
#ifndef DP_PAGER_TABLE_H
#define DP_PAGER_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rangeset.h"

enum page_state {
	PAGE_ZERO,      /* never stored, or given up: reads as zero */
	PAGE_REMOTE,    /* the source has it */
	PAGE_IN_FLIGHT, /* asked for */
	PAGE_LOCAL,     /* installed: the process's to change */
	PAGE_STAGED,    /* moved to staging, link is the slot */
	PAGE_DAMAGED,   /* the source's copy is damaged: poisoned if a thread asked for it, else asked for again when one does */
	PAGE_STATES
};
#define PAGE_STATE_MASK 7u
#define PAGE_HAS_COPY 0x08u   /* the source has a copy whose hash is in hash[] */
#define PAGE_QUEUED 0x10u     /* link is the next page of the queue */
#define PAGE_MAIN 0x20u       /* belongs to the main queue (was seen again) */
#define PAGE_PREFETCHED 0x40u /* installed unasked, no evidence of use yet */
#define PAGE_DEMANDED 0x80u   /* in flight and waited for */

/* heat[]: evidence of use, outlives evictions as long as the leaf does */
#define HEAT_TOUCHED                                                                                                             \
	0x01u /* touched when it was last staged: skips a round of the main queue (pager/heat.h has the other bits) */

#define LEAF_PAGES 64u
#define NO_PAGE UINT32_MAX

struct leaf {
	uint64_t pgno; /* of the first page; UINT64_MAX while free */
	uint32_t nonzero, queued;
	uint64_t noted; /* bit i: page i is in the recorded order */
	uint32_t link[LEAF_PAGES];
	uint8_t page[LEAF_PAGES]; /* state and flags */
	uint8_t heat[LEAF_PAGES];
	uint64_t hash[LEAF_PAGES];
};

enum queue_kind { QUEUE_SMALL, QUEUE_MAIN, QUEUES };
struct page_queue {
	uint32_t head, tail;
	uint64_t length; /* entries, stale ones included */
};

struct table {
	struct leaf *leaves; /* reserved for LEAF_LIMIT, touched as needed */
	uint32_t leaf_top, leaf_free; /* first never used; head of the free list (link[0] is the next) */
	uint32_t leaf_count;
	uint32_t **index; /* [INDEX_TOP] of [INDEX_LOW] leaf numbers + 1 */
	uint64_t index_bytes;
	struct rangeset initial; /* page numbers, remote unless a leaf says otherwise */
	uint64_t counts[PAGE_STATES];
	uint64_t dirty; /* local or staged pages of which the source has no copy */
	struct page_queue queue[QUEUES];
	/* Where the leaves are somebody else's memory: */
	bool borrowed;
	uint32_t *saved_top;                      /* leaf_top is kept there too */
	void (*initial_changed)(void *context);   /* called after each change of `initial` */
	void *context;
};

#ifdef DP_FUZZ /* mapping what is never touched would be nearly all that a fuzzer does */
#define TABLE_LEAVES 16u
#else
#define TABLE_LEAVES (1u << 24) /* 4 TiB of pages that were ever touched */
#endif
/* Bytes of address space that the leaves of a table may need. */
#define TABLE_LEAVES_BYTES ((uint64_t)TABLE_LEAVES * sizeof(struct leaf))

int table_init(struct table *table);
/* The same with the caller's memory for the leaves (TABLE_LEAVES_BYTES, zero where it was never written), which outlives the
 * table. */
int table_init_at(struct table *table, void *leaves, uint32_t *saved_top, void (*initial_changed)(void *context), void *context);
/* Makes the index, counts and free list from leaves that another pager left, `initial` being set already. No page is in flight or
 * queued afterwards. 0 or -ENOMEM. */
int table_recover(struct table *table);
/* The copy that the source has of this page may be another than its hash says. */
void table_doubt_hash(struct table *table, uint32_t page);
void table_done(struct table *table);
/* A copy for a forked child, whose table is initialised and empty: in-flight and staged pages become remote there. */
int table_fork(struct table *child, const struct table *parent);

/* Index of a page, or NO_PAGE where it has no leaf. */
uint32_t table_find(const struct table *table, uint64_t pgno);
/* The same, with a leaf made if there is none; NO_PAGE when memory is out. */
uint32_t table_make(struct table *table, uint64_t pgno);
enum page_state table_state(const struct table *table, uint64_t pgno);

static inline struct leaf *table_leaf(const struct table *table, uint32_t page)
{
	return &table->leaves[page / LEAF_PAGES];
}
static inline uint8_t *table_page(const struct table *table, uint32_t page)
{
	return &table_leaf(table, page)->page[page % LEAF_PAGES];
}
static inline uint64_t table_pgno(const struct table *table, uint32_t page)
{
	return table_leaf(table, page)->pgno + page % LEAF_PAGES;
}
static inline uint32_t *table_link(const struct table *table, uint32_t page)
{
	return &table_leaf(table, page)->link[page % LEAF_PAGES];
}
static inline uint8_t *table_heat(const struct table *table, uint32_t page)
{
	return &table_leaf(table, page)->heat[page % LEAF_PAGES];
}
static inline uint64_t *table_hash(const struct table *table, uint32_t page)
{
	return &table_leaf(table, page)->hash[page % LEAF_PAGES];
}

/* Changes the state; `set` and `clear` are flags. Counts follow. */
void table_change(struct table *table, uint32_t page, enum page_state state, uint8_t set, uint8_t clear);

/* Puts a page at the end of a queue unless it is queued already. */
void table_enqueue(struct table *table, uint32_t page, enum queue_kind kind);
/* Takes the oldest entry off; NO_PAGE when empty. The page may be in any state but staged. */
uint32_t table_dequeue(struct table *table, enum queue_kind kind);

/* Calls `each` for every page of the range that has a leaf and is not zero. `each` may change the page. */
void table_each(struct table *table, uint64_t pgno, uint64_t pages, void (*each)(void *context, uint32_t page, uint64_t pgno),
		void *context);
/* Forgets the range: everything in it is zero afterwards, but with keep_local local pages stay so, their copies forgotten.
 * Staged slots, requests and the source are the caller's to tell first. 0 or -ENOMEM (older bytes could come back: end the
 * tree). */
int table_clear(struct table *table, uint64_t pgno, uint64_t pages, bool keep_local);
/* The first half of an mremap: what is known of from.. is known of to.. too, and what was known of that before is forgotten. The
 * old range is still as it was, and is to be cleared next; may be repeated until then. In-flight and staged pages must have been
 * made remote by the caller.
 * 0 or -ENOMEM. */
int table_relocate_copy(struct table *table, uint64_t from, uint64_t to, uint64_t pages);
/* Bytes of metadata in use. */
uint64_t table_bytes(const struct table *table);
/* Next run of pages at or after *pgno, below end, whose state is `state`, at most `limit` pages long; 0 pages: none. */
uint64_t table_next_run(const struct table *table, enum page_state state, uint64_t *pgno, uint64_t end, uint64_t limit);

#endif
