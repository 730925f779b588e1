#include "pager/table.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/base.h"

/* 47-bit addresses have 35-bit page numbers and 29-bit leaf numbers: 14 bits for the top, 15 for the low level. */
#ifdef DP_FUZZ /* fewer, so that a fuzzer has more to do than looking at places that are empty */
#define INDEX_TOP_BITS 4
#define INDEX_LOW_BITS 4
#else
#define INDEX_TOP_BITS 14
#define INDEX_LOW_BITS 15
#endif
#define INDEX_TOP (1u << INDEX_TOP_BITS)
#define INDEX_LOW (1u << INDEX_LOW_BITS)
#define PGNO_LIMIT ((uint64_t)LEAF_PAGES << (INDEX_TOP_BITS + INDEX_LOW_BITS))

static void *reserve(uint64_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return memory == MAP_FAILED ? NULL : memory;
}

/* Killed between two stores, a process has done the first: only the compiler must be kept from changing their order. */
static void in_order(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

int table_init(struct table *table)
{
	return table_init_at(table, NULL, NULL, NULL, NULL);
}

int table_init_at(struct table *table, void *leaves, uint32_t *saved_top, void (*initial_changed)(void *context), void *context)
{
	memset(table, 0, sizeof(*table));
	for (int kind = 0; kind < QUEUES; kind++)
		table->queue[kind] = (struct page_queue){ NO_PAGE, NO_PAGE, 0 };
	table->leaf_free = NO_PAGE;
	table->borrowed = leaves;
	table->saved_top = saved_top;
	table->initial_changed = initial_changed;
	table->context = context;
	table->leaves = leaves ? leaves : reserve(TABLE_LEAVES_BYTES);
	table->index = reserve(INDEX_TOP * sizeof(*table->index));
	if (!table->leaves || !table->index) {
		table_done(table);
		return -ENOMEM;
	}
	return 0;
}

void table_done(struct table *table)
{
	if (table->index) {
		for (uint32_t i = 0; i < INDEX_TOP; i++)
			if (table->index[i])
				munmap(table->index[i], INDEX_LOW * sizeof(uint32_t));
		munmap(table->index, INDEX_TOP * sizeof(*table->index));
	}
	if (table->leaves && !table->borrowed)
		munmap(table->leaves, TABLE_LEAVES_BYTES);
	rangeset_done(&table->initial);
	memset(table, 0, sizeof(*table));
}

static uint32_t find_leaf(const struct table *table, uint64_t pgno)
{
	if (pgno >= PGNO_LIMIT)
		return NO_PAGE;
	uint64_t number = pgno / LEAF_PAGES;
	const uint32_t *low = table->index[number >> INDEX_LOW_BITS];
	return low ? low[number & (INDEX_LOW - 1)] - 1 : NO_PAGE;
}

uint32_t table_find(const struct table *table, uint64_t pgno)
{
	uint32_t leaf = find_leaf(table, pgno);
	return leaf == NO_PAGE ? NO_PAGE : leaf * LEAF_PAGES + (uint32_t)(pgno % LEAF_PAGES);
}

static void tell_initial_changed(struct table *table)
{
	in_order();
	if (table->initial_changed)
		table->initial_changed(table->context);
	in_order();
}

/* A fresh leaf, from pgno on, holds what `initial` says of its pages; counts do not change by that. */
static void fill_leaf(const struct table *table, struct leaf *leaf, uint64_t pgno)
{
	const struct rangeset *initial = &table->initial;
	uint64_t end = pgno + LEAF_PAGES;
	for (size_t i = rangeset_find(initial, pgno); i < initial->count && initial->ranges[i].start < end; i++) {
		uint64_t from = DP_MAX(initial->ranges[i].start, pgno), to = DP_MIN(initial->ranges[i].end, end);
		memset(&leaf->page[from - pgno], PAGE_REMOTE, to - from);
		leaf->nonzero += (uint32_t)(to - from);
	}
}

static uint32_t *index_slot(struct table *table, uint64_t pgno)
{
	uint64_t number = pgno / LEAF_PAGES;
	uint32_t **low = &table->index[number >> INDEX_LOW_BITS];
	if (!*low) {
		*low = reserve(INDEX_LOW * sizeof(uint32_t));
		if (!*low)
			return NULL;
		table->index_bytes += PAGE_BYTES;
	}
	return &(*low)[number & (INDEX_LOW - 1)];
}

uint32_t table_make(struct table *table, uint64_t pgno)
{
	uint32_t page = table_find(table, pgno);
	if (page != NO_PAGE || pgno >= PGNO_LIMIT)
		return page;
	uint32_t *slot = index_slot(table, pgno);
	if (!slot)
		return NO_PAGE;
	uint32_t number = table->leaf_free;
	if (number != NO_PAGE)
		table->leaf_free = table->leaves[number].link[0];
	else if (table->leaf_top < TABLE_LEAVES)
		number = table->leaf_top++;
	else
		return NO_PAGE;
	struct leaf *leaf = &table->leaves[number];
	leaf->pgno = UINT64_MAX;
	in_order();
	if (table->saved_top)
		*table->saved_top = table->leaf_top;
	memset((char *)leaf + sizeof(leaf->pgno), 0, sizeof(*leaf) - sizeof(leaf->pgno));
	fill_leaf(table, leaf, pgno / LEAF_PAGES * LEAF_PAGES);
	in_order();
	leaf->pgno = pgno / LEAF_PAGES * LEAF_PAGES; /* it counts from here on (T4) */
	table->leaf_count++;
	*slot = number + 1;
	return number * LEAF_PAGES + (uint32_t)(pgno % LEAF_PAGES);
}

/* The leaf's pages are all zero from now on also without it. */
static void free_leaf(struct table *table, uint32_t number)
{
	struct leaf *leaf = &table->leaves[number];
	assert(!leaf->nonzero && !leaf->queued); /* T3 */
	uint64_t leaf_number = leaf->pgno / LEAF_PAGES;
	if (rangeset_overlap(&table->initial, leaf->pgno, leaf->pgno + LEAF_PAGES)) {
		if (rangeset_remove(&table->initial, leaf->pgno, leaf->pgno + LEAF_PAGES))
			return; /* no memory: the leaf stays */
		tell_initial_changed(table);
	}
	table->index[leaf_number >> INDEX_LOW_BITS][leaf_number & (INDEX_LOW - 1)] = 0;
	leaf->pgno = UINT64_MAX;
	leaf->link[0] = table->leaf_free;
	table->leaf_free = number;
	table->leaf_count--;
}

enum page_state table_state(const struct table *table, uint64_t pgno)
{
	uint32_t page = table_find(table, pgno);
	if (page != NO_PAGE)
		return *table_page(table, page) & PAGE_STATE_MASK;
	return rangeset_contains(&table->initial, pgno) ? PAGE_REMOTE : PAGE_ZERO;
}

static bool is_dirty(uint8_t page)
{
	unsigned state = page & PAGE_STATE_MASK;
	return (state == PAGE_LOCAL || state == PAGE_STAGED) && !(page & PAGE_HAS_COPY);
}

void table_change(struct table *table, uint32_t page, enum page_state state, uint8_t set, uint8_t clear)
{
	struct leaf *leaf = table_leaf(table, page);
	uint8_t *at = &leaf->page[page % LEAF_PAGES];
	enum page_state old = *at & PAGE_STATE_MASK;
	uint8_t now = (uint8_t)(((*at & ~PAGE_STATE_MASK & ~clear) | set | state));
	assert(!(state == PAGE_STAGED && (now & PAGE_QUEUED))); /* T2 */
	table->dirty += (uint64_t)is_dirty(now) - (uint64_t)is_dirty(*at);
	*at = now;
	if (old == state)
		return;
	if (old != PAGE_ZERO) {
		assert(table->counts[old] > 0); /* T1 */
		table->counts[old]--;
		leaf->nonzero--;
	}
	if (state != PAGE_ZERO) {
		table->counts[state]++;
		leaf->nonzero++;
	}
}

void table_enqueue(struct table *table, uint32_t page, enum queue_kind kind)
{
	struct leaf *leaf = table_leaf(table, page);
	uint8_t *at = &leaf->page[page % LEAF_PAGES];
	if (*at & PAGE_QUEUED)
		return;
	assert((*at & PAGE_STATE_MASK) != PAGE_STAGED);
	*at |= PAGE_QUEUED;
	leaf->queued++;
	struct page_queue *queue = &table->queue[kind];
	*table_link(table, page) = NO_PAGE;
	if (queue->tail == NO_PAGE)
		queue->head = page;
	else
		*table_link(table, queue->tail) = page;
	queue->tail = page;
	queue->length++;
}

uint32_t table_dequeue(struct table *table, enum queue_kind kind)
{
	struct page_queue *queue = &table->queue[kind];
	while (queue->head != NO_PAGE) {
		uint32_t page = queue->head;
		struct leaf *leaf = table_leaf(table, page);
		queue->head = *table_link(table, page);
		if (queue->head == NO_PAGE)
			queue->tail = NO_PAGE;
		queue->length--;
		leaf->queued--;
		leaf->page[page % LEAF_PAGES] &= (uint8_t)~PAGE_QUEUED;
		if (leaf->nonzero)
			return page;
		if (!leaf->queued)
			free_leaf(table, page / LEAF_PAGES);
	}
	return NO_PAGE;
}

/* Calls `each` for every leaf of the range, with the part of it that is in the range; skips 8 GiB at once where nothing is. */
static void each_leaf(struct table *table, uint64_t pgno, uint64_t pages,
		      void (*each)(struct table *table, uint32_t leaf, uint32_t from, uint32_t to, void *context), void *context)
{
	uint64_t end = DP_MIN(pgno + pages, PGNO_LIMIT);
	while (pgno < end) {
		uint64_t number = pgno / LEAF_PAGES;
		const uint32_t *low = table->index[number >> INDEX_LOW_BITS];
		if (!low) {
			pgno = ((number >> INDEX_LOW_BITS) + 1) * INDEX_LOW * LEAF_PAGES;
			continue;
		}
		uint32_t leaf = low[number & (INDEX_LOW - 1)] - 1;
		uint64_t next = (number + 1) * LEAF_PAGES;
		if (leaf != NO_PAGE)
			each(table, leaf, (uint32_t)(pgno % LEAF_PAGES), (uint32_t)(DP_MIN(end, next) - number * LEAF_PAGES),
			     context);
		pgno = next;
	}
}

struct each_page {
	void (*each)(void *context, uint32_t page, uint64_t pgno);
	void *context;
};

static void pages_of_leaf(struct table *table, uint32_t leaf, uint32_t from, uint32_t to, void *context)
{
	struct each_page *call = context;
	for (uint32_t i = from; i < to; i++)
		if (table->leaves[leaf].page[i] & PAGE_STATE_MASK)
			call->each(call->context, leaf * LEAF_PAGES + i, table->leaves[leaf].pgno + i);
}

void table_each(struct table *table, uint64_t pgno, uint64_t pages, void (*each)(void *context, uint32_t page, uint64_t pgno),
		void *context)
{
	each_leaf(table, pgno, pages, pages_of_leaf, &(struct each_page){ each, context });
}

/* Pages of `initial` that a leaf describes. */
static void count_covered(struct table *table, uint32_t leaf, uint32_t from, uint32_t to, void *context)
{
	uint64_t *covered = context;
	uint64_t pgno = table->leaves[leaf].pgno;
	*covered += rangeset_overlap(&table->initial, pgno + from, pgno + to);
}

static void clear_leaf(struct table *table, uint32_t number, uint32_t from, uint32_t to, void *context)
{
	bool keep_local = *(bool *)context;
	struct leaf *leaf = &table->leaves[number];
	for (uint32_t i = from; i < to; i++) {
		if (keep_local && (leaf->page[i] & PAGE_STATE_MASK) == PAGE_LOCAL)
			table_change(table, number * LEAF_PAGES + i, PAGE_LOCAL, 0, PAGE_HAS_COPY);
		else if (leaf->page[i] & ~PAGE_QUEUED)
			table_change(table, number * LEAF_PAGES + i, PAGE_ZERO, 0, (uint8_t)~(PAGE_STATE_MASK | PAGE_QUEUED));
	}
	if (!leaf->nonzero && !leaf->queued)
		free_leaf(table, number);
}

int table_clear(struct table *table, uint64_t pgno, uint64_t pages, bool keep_local)
{
	uint64_t bare = rangeset_overlap(&table->initial, pgno, pgno + pages);
	if (bare) {
		uint64_t covered = 0;
		each_leaf(table, pgno, pages, count_covered, &covered);
		int ret = rangeset_remove(&table->initial, pgno, pgno + pages);
		if (ret)
			return ret;
		tell_initial_changed(table);
		table->counts[PAGE_REMOTE] -= bare - covered;
	}
	each_leaf(table, pgno, pages, clear_leaf, &keep_local);
	return 0;
}

struct relocation {
	uint64_t distance;    /* to - from, modulo 2^64 */
	struct rangeset bare; /* pages of the old range that only `initial` knows */
	int ret;
};

/* Copies the pages of a leaf to their new place. The old ones are cleared afterwards, all at once. */
static void relocate_leaf(struct table *table, uint32_t number, uint32_t from, uint32_t to, void *context)
{
	struct relocation *relocation = context;
	for (uint32_t i = from; i < to; i++) {
		uint8_t old = table->leaves[number].page[i];
		if (!(old & PAGE_STATE_MASK))
			continue;
		uint32_t page = table_make(table, table->leaves[number].pgno + i + relocation->distance);
		if (page == NO_PAGE) {
			relocation->ret = -ENOMEM;
			return;
		}
		*table_hash(table, page) = table->leaves[number].hash[i];
		*table_heat(table, page) = table->leaves[number].heat[i];
		table_change(table, page, old & PAGE_STATE_MASK, old & (PAGE_HAS_COPY | PAGE_MAIN | PAGE_PREFETCHED), 0);
		if ((old & PAGE_STATE_MASK) == PAGE_LOCAL)
			table_enqueue(table, page, old & PAGE_MAIN ? QUEUE_MAIN : QUEUE_SMALL);
	}
}

/* Pages [pgno, next) of one leaf's span, known only to `initial`, become known at their new place. */
static int relocate_bare(struct table *table, uint64_t pgno, uint64_t next, uint64_t distance)
{
	if (find_leaf(table, pgno + distance) == NO_PAGE && find_leaf(table, next - 1 + distance) == NO_PAGE) {
		table->counts[PAGE_REMOTE] += next - pgno;
		return rangeset_add(&table->initial, pgno + distance, next + distance);
	}
	for (; pgno < next; pgno++) {
		uint32_t page = table_make(table, pgno + distance);
		if (page == NO_PAGE)
			return -ENOMEM;
		table_change(table, page, PAGE_REMOTE, 0, 0);
	}
	return 0;
}

static void leave_out_leaf(struct table *table, uint32_t leaf, uint32_t from, uint32_t to, void *context)
{
	struct relocation *relocation = context;
	if (rangeset_remove(&relocation->bare, table->leaves[leaf].pgno + from, table->leaves[leaf].pgno + to))
		relocation->ret = -ENOMEM;
}

int table_relocate_copy(struct table *table, uint64_t from, uint64_t to, uint64_t pages)
{
	struct relocation relocation = { .distance = to - from };
	struct rangeset *bare = &relocation.bare;
	int ret = table_clear(table, to, pages, false);
	for (size_t i = rangeset_find(&table->initial, from);
	     !ret && i < table->initial.count && table->initial.ranges[i].start < from + pages; i++)
		ret = rangeset_add(bare, DP_MAX(table->initial.ranges[i].start, from),
				   DP_MIN(table->initial.ranges[i].end, from + pages));
	/* Before the first new leaf is made: it may hold pages of the old range too. */
	each_leaf(table, from, pages, leave_out_leaf, &relocation);
	if (!ret && !relocation.ret)
		each_leaf(table, from, pages, relocate_leaf, &relocation);
	for (size_t i = 0; !ret && !relocation.ret && i < bare->count; i++) {
		for (uint64_t pgno = bare->ranges[i].start, next; !ret && pgno < bare->ranges[i].end; pgno = next) {
			next = DP_MIN((pgno / LEAF_PAGES + 1) * LEAF_PAGES, bare->ranges[i].end);
			ret = relocate_bare(table, pgno, next, relocation.distance);
		}
	}
	bool changed = bare->total > 0;
	rangeset_done(bare);
	if (changed)
		tell_initial_changed(table);
	return ret ? ret : relocation.ret;
}

/* States that were only on their way are what they were before; the queues are gone. false: it cannot be a leaf. */
static bool recover_leaf(struct table *table, struct leaf *leaf)
{
	leaf->nonzero = leaf->queued = 0;
	for (uint32_t i = 0; i < LEAF_PAGES; i++) {
		uint8_t now = leaf->page[i] & (uint8_t)~(PAGE_QUEUED | PAGE_DEMANDED | PAGE_PREFETCHED);
		if ((now & PAGE_STATE_MASK) == PAGE_IN_FLIGHT)
			now = (uint8_t)((now & ~PAGE_STATE_MASK) | PAGE_REMOTE);
		if ((now & PAGE_STATE_MASK) >= PAGE_STATES)
			return false;
		leaf->page[i] = now;
		leaf->nonzero += (now & PAGE_STATE_MASK) != PAGE_ZERO;
		if ((now & PAGE_STATE_MASK) != PAGE_ZERO)
			table->counts[now & PAGE_STATE_MASK]++;
		table->dirty += is_dirty(now);
	}
	return leaf->pgno % LEAF_PAGES == 0;
}

int table_recover(struct table *table)
{
	table->leaf_top = table->saved_top ? DP_MIN(*table->saved_top, TABLE_LEAVES) : 0;
	table->counts[PAGE_REMOTE] = table->initial.total;
	for (uint32_t number = 0; number < table->leaf_top; number++) {
		struct leaf *leaf = &table->leaves[number];
		uint32_t *slot = leaf->pgno < PGNO_LIMIT ? index_slot(table, leaf->pgno) : NULL;
		if (leaf->pgno == UINT64_MAX) {
			leaf->link[0] = table->leaf_free;
			table->leaf_free = number;
			continue;
		}
		if (!slot || *slot)
			return slot ? -EBADMSG : -ENOMEM;
		*slot = number + 1;
		table->leaf_count++;
		table->counts[PAGE_REMOTE] -= rangeset_overlap(&table->initial, leaf->pgno, leaf->pgno + LEAF_PAGES);
		if (!recover_leaf(table, leaf))
			return -EBADMSG;
	}
	return 0;
}

void table_doubt_hash(struct table *table, uint32_t page)
{
	*table_hash(table, page) += 1; /* not undone by doubting it again */
}

int table_fork(struct table *child, const struct table *parent)
{
	struct table empty = *child;
	uint32_t **index = child->index;
	*child = *parent;
	child->leaves = empty.leaves;
	child->index = index;
	child->borrowed = empty.borrowed;
	child->saved_top = empty.saved_top;
	child->initial_changed = empty.initial_changed;
	child->context = empty.context;
	child->initial = (struct rangeset){ 0 };
	int ret = rangeset_copy(&child->initial, &parent->initial);
	if (!ret)
		tell_initial_changed(child);
	for (uint32_t i = 0; !ret && i < INDEX_TOP; i++) {
		if (!parent->index[i])
			continue;
		index[i] = reserve(INDEX_LOW * sizeof(uint32_t));
		if (index[i])
			memcpy(index[i], parent->index[i], INDEX_LOW * sizeof(uint32_t));
		else
			ret = -ENOMEM;
	}
	if (ret)
		return ret;
	struct leaf *leaves = child->leaves;
	if (child->saved_top)
		*child->saved_top = child->leaf_top;
	memcpy(leaves, parent->leaves, (uint64_t)parent->leaf_top * sizeof(struct leaf));
	for (uint32_t number = 0; number < child->leaf_top; number++) {
		if (leaves[number].pgno == UINT64_MAX)
			continue;
		for (uint32_t i = 0; i < LEAF_PAGES; i++) {
			unsigned state = leaves[number].page[i] & PAGE_STATE_MASK;
			if (state == PAGE_IN_FLIGHT || state == PAGE_STAGED)
				table_change(child, number * LEAF_PAGES + i, PAGE_REMOTE, 0, PAGE_DEMANDED | PAGE_PREFETCHED);
		}
	}
	return 0;
}

uint64_t table_bytes(const struct table *table)
{
	return (uint64_t)table->leaf_count * sizeof(struct leaf) + table->index_bytes +
	       table->initial.count * sizeof(struct range);
}

/* The stretch from `at` on in which all pages are in one state: one page where there is a leaf, else as far as `initial` says the
 * same and no leaf begins (looked at 64 pages, or 8 GiB where the index is empty, at a time). */
static uint64_t stretch(const struct table *table, uint64_t at, enum page_state *state)
{
	uint64_t number = at / LEAF_PAGES;
	const uint32_t *low = table->index[number >> INDEX_LOW_BITS];
	uint32_t leaf = low ? low[number & (INDEX_LOW - 1)] - 1 : NO_PAGE;
	if (leaf != NO_PAGE) {
		*state = table->leaves[leaf].page[at % LEAF_PAGES] & PAGE_STATE_MASK;
		return 1;
	}
	uint64_t end = low ? (number + 1) * LEAF_PAGES : ((number >> INDEX_LOW_BITS) + 1) * INDEX_LOW * LEAF_PAGES;
	size_t range = rangeset_find(&table->initial, at);
	const struct range *next = range < table->initial.count ? &table->initial.ranges[range] : NULL;
	*state = next && next->start <= at ? PAGE_REMOTE : PAGE_ZERO;
	if (next)
		end = DP_MIN(end, *state == PAGE_REMOTE ? next->end : next->start);
	return end - at;
}

uint64_t table_next_run(const struct table *table, enum page_state state, uint64_t *pgno, uint64_t end, uint64_t limit)
{
	uint64_t run = 0;
	end = DP_MIN(end, PGNO_LIMIT);
	for (uint64_t at = *pgno; at < end && run < limit;) {
		enum page_state now;
		uint64_t pages = DP_MIN(stretch(table, at, &now), end - at);
		if (now == state) {
			if (!run)
				*pgno = at;
			run += pages;
		} else if (run) {
			break;
		}
		at += pages;
	}
	return DP_MIN(run, limit);
}
