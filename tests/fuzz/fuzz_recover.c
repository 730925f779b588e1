/* What a dead pager left, read by the next: page tables, ranges, the log of changes. Whatever lies there, it is refused, or taken
 * in such a way that counts are right and nothing beyond an array is touched. The state is made as a pager makes it, and then
 * written over. Its file is memory.h's; of its descriptor there is but the number. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

#include "base/base.h"
#include "input.h"
#include "memory.h"
#include "pager/oplog.h"
#include "pager/takeover.h"
#include "pager/tree.h"

#define NO_FILE 0x40000000

int __wrap_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags)
{
	return NO_FILE;
}

int __wrap_ftruncate64(int fd, off_t bytes);
int __wrap_ftruncate64(int fd, off_t bytes)
{
	return 0;
}

/* ---- page tables ---- */

static void write_ranges(struct space *space, struct input *input)
{
	struct rangeset *sets[SAVED_KINDS] = { &space->table.initial, &space->registered, &space->wipe };
	struct range ranges[12];

	for (unsigned kind = 0; kind < SAVED_KINDS; kind++) {
		struct rangeset raw = { .ranges = ranges, .count = next_byte(input) % ARRAY_LENGTH(ranges) };
		struct rangeset kept = *sets[kind];

		next(input, ranges, raw.count * sizeof(*ranges));
		*sets[kind] = raw;
		recover_save_ranges(space, kind);
		*sets[kind] = kept;
		if (next_byte(input) & 0x80)
			next(input, &space->saved->ranges[kind], sizeof(space->saved->ranges[kind]));
	}
}

static void write_leaves(struct space *space, struct input *input)
{
	uint8_t how = next_byte(input), count = how % 6, pattern[8];

	space->saved->leaf_top = how >= 0xfc ? UINT32_MAX >> (how & 3) : count;
	for (unsigned number = 0; number < count; number++) {
		struct leaf *leaf = &space->table.leaves[number];

		next(input, &leaf->pgno, sizeof(leaf->pgno));
		next(input, pattern, sizeof(pattern));
		next(input, &leaf->link, 8);
		for (unsigned i = 0; i < LEAF_PAGES; i++)
			leaf->page[i] = pattern[i % sizeof(pattern)];
	}
}

static void count_page(void *context, uint32_t page, uint64_t pgno)
{
	uint64_t *counts = ((uint64_t **)context)[0];
	const struct table *table = ((const struct table **)context)[1];
	unsigned state = *table_page(table, page) & PAGE_STATE_MASK;

	assert(state != PAGE_ZERO && state < PAGE_STATES && state != PAGE_IN_FLIGHT && table_find(table, pgno) == page);
	counts[state]++;
}

static void check_table(struct table *table)
{
	uint64_t counts[PAGE_STATES] = { 0 };
	void *context[] = { counts, table };

	table_each(table, 0, UINT64_MAX >> PAGE_SHIFT, count_page, context);
	for (unsigned state = PAGE_LOCAL; state < PAGE_STATES; state++)
		assert(counts[state] == table->counts[state]);
	assert(counts[PAGE_REMOTE] <= table->counts[PAGE_REMOTE]);
	assert(table_clear(table, 0, UINT64_MAX >> PAGE_SHIFT, false) == 0);
	for (unsigned state = PAGE_LOCAL; state < PAGE_STATES; state++)
		assert(table->counts[state] == 0);
	assert(table->dirty == 0 && table->leaf_count == 0);
}

static void end_space(struct space *space)
{
	table_done(&space->table);
	rangeset_done(&space->registered);
	rangeset_done(&space->wipe);
	recover_space_done(space);
}

static void check_space(struct input *input)
{
	static struct tree tree = { .keeper_fd = -1 };
	static struct space dead, space;

	memset(&dead, 0, sizeof(dead));
	memset(&space, 0, sizeof(space));
	dead.tree = space.tree = &tree;
	dead.number = space.number = 1;
	if (recover_space_new(&dead) < 0)
		abort();
	write_ranges(&dead, input);
	write_leaves(&dead, input);
	end_space(&dead);
	if (recover_space_take(&space, NO_FILE) == 0) {
		assert(space.saved && space.table.leaf_top <= 16);
		check_table(&space.table);
	}
	if (space.saved)
		end_space(&space);
	memory_forget();
}

/* ---- the log of changes ---- */

struct pool {
	struct source source;
	uint8_t applied;
	unsigned calls;
};

static struct oplog_area area;
static volatile uint8_t read_sum;

static int made(struct source *source, uint64_t cookie)
{
	struct pool *pool = (struct pool *)source;

	assert(pool->calls++ < OPLOG_RECORDS);
	source->handler.on_done(source->handler.context, cookie, 0);
	return 0;
}

static int put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	       size_t data_count, uint64_t cookie)
{
	assert(count <= OPLOG_PAGES && data_count == 1 && data->iov_len == count * PAGE_BYTES);
	return made(source, cookie);
}

static int drop(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < count; i++)
		pages += ranges[i].pages;
	read_sum = (uint8_t)pages;
	return made(source, cookie);
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	return made(source, cookie);
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	return made(source, cookie);
}

static int free_space(struct source *source, uint64_t space, uint64_t cookie)
{
	return made(source, cookie);
}

static int resume(struct source *source, struct source_resume *resume)
{
	resume->applied = resume->answered + ((struct pool *)source)->applied;
	return 0;
}

static int receive(struct source *source)
{
	return -ECONNRESET;
}

static const struct source_ops pool_ops = { .put = put, .drop = drop, .move = move, .fork = fork_space, .space_free = free_space,
					    .resume = resume, .receive = receive };

static int read_put(void *context, const struct op *op, void *data)
{
	memset(data, 1, (size_t)op->count * PAGE_BYTES);
	return op->pages & 1 ? -ENOENT : 0;
}

static int refused(void *context, const struct op *op, int result)
{
	return result;
}

static void check_log(struct input *input)
{
	struct pool pool = { .source = { .ops = &pool_ops, .writable = true }, .applied = next_byte(input) % 4 };
	struct source *source;
	uint64_t replayed;

	memset(&area, 0, sizeof(area));
	next(input, &area.head, sizeof(area.head));
	next(input, &area.tail, sizeof(area.tail));
	for (unsigned number = 0; input->at < input->end && number < 8; number++) {
		struct op *op = &area.op[(area.tail + 1 + number) % OPLOG_RECORDS];

		op->kind = next_byte(input) % 8;
		next(input, &op->count, sizeof(op->count));
		next(input, &op->space, sizeof(op->space));
		next(input, &op->pages, 2);
		next(input, op->page, sizeof(op->page[0]));
	}
	if (!oplog_sound(&area))
		return;
	if (oplog_new(&source, &pool.source, &area) < 0)
		abort();
	if (oplog_replay(source, read_put, refused, &pool, 0, -1, &replayed) == 0)
		assert(area.tail == area.head && pool.calls == replayed);
	source->ops->free(source);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, data + size };

	if (next_byte(&input) & 1)
		check_space(&input);
	else
		check_log(&input);
	return 0;
}
