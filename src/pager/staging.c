/* The staging area of a space: a ring of slots between local and away. Pages come in at the head; from the head towards the tail
 * each is compared with the copy that the source has, sent if it differs, and given back at the tail once the source has it.
 * The comparison comes late on purpose: most pages that were wrongly taken for cold are back by then, and cost no read, no hash,
 * no message. */
#include "pager/tree.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"

#define MOVED_ON (NO_PAGE - 1) /* in the place of a slot's page: it is remote already, by the content that is on its way */

int staging_init(struct staging *staging, uint64_t capacity)
{
	memset(staging, 0, sizeof(*staging));
	staging->page = calloc(capacity, sizeof(*staging->page));
	staging->state = calloc(capacity, sizeof(*staging->state));
	staging->capacity = capacity;
	return staging->page && staging->state ? 0 : -ENOMEM;
}

void staging_done(struct staging *staging)
{
	free(staging->page);
	free(staging->state);
	memset(staging, 0, sizeof(*staging));
}

pid_t staging_reader(const struct space *space)
{
	/* the warden's memory stays the same also when the process execs */
	return space->warden.pid > 0 ? space->warden.pid : space->thread;
}

bool staging_read(struct space *space, const struct iovec *to, const struct iovec *from, size_t pieces)
{
	for (int turn = 0; turn < 2; turn++) {
		if (process_vm_readv(staging_reader(space), to, 1, from, pieces, 0) == (ssize_t)to->iov_len)
			return true;
		if (space->warden.pid > 0 || !space_find_thread(space))
			break; /* else the thread has ended, and another will do */
	}
	space_lost(space); /* staged pages are present (P4): only the end of thread, warden or memory explains it */
	return false;
}

uint64_t staging_address(const struct space *space, uint32_t page)
{
	return space->warden.staging + (uint64_t)*table_link(&space->table, page) * PAGE_BYTES;
}

void staging_release(struct space *space, uint32_t page, enum page_state state)
{
	struct staging *staging = &space->staging;
	uint32_t at = *table_link(&space->table, page);
	assert(at < staging->capacity && staging->page[at] == page && staging->state[at] != SLOT_EMPTY);
	assert(staging->state[at] != SLOT_FRESH || state != PAGE_REMOTE || space->tree->failure); /* P2 */
	bool zeros = staging->state[at] == SLOT_ZEROS, pending = staging->state[at] == SLOT_PENDING;
	if (!pending)
		staging->state[at] = SLOT_GARBAGE;
	staging->page[at] = pending && state == PAGE_REMOTE ? MOVED_ON : NO_PAGE;
	staging->held--;
	if (zeros && state == PAGE_REMOTE)
		state = PAGE_ZERO;
	/* A copy that the source has not acknowledged is none. */
	table_change(&space->table, page, state, 0, zeros || pending ? PAGE_HAS_COPY : 0);
}

/* ---- towards the source ---- */

static struct write_batch *batch_new(struct tree *tree)
{
	for (unsigned i = 0; i < WRITE_BATCHES; i++)
		if (!tree->batch[i].space)
			return &tree->batch[i];
	return NULL;
}

/* Sends a message to the source and must succeed before anything else happens (P2): a full queue is waited for. */
static int insist(struct tree *tree, struct space *space, const struct page_range *ranges, size_t count, const struct iovec *data,
		  size_t data_count, uint64_t cookie)
{
	struct source *source = tree->source;
	for (;;) {
		int ret = data ? source->ops->put(source, space->source_space, ranges, count, data, data_count, cookie)
			       : source->ops->drop(source, space->source_space, ranges, count, cookie);
		if (ret != -EAGAIN)
			return ret;
		ret = lost_receive(tree);
		if (ret < 0)
			return ret;
	}
}

struct gathering {
	struct page_range put[MOVE_PAGES], zero[MOVE_PAGES];
	struct iovec data[MOVE_PAGES];
	struct op_page where[MOVE_PAGES]; /* of the puts */
	size_t puts, zeros, data_count;
};

/* Clean, changed or all zero: decided by content, since MOVE loses the kernel's written bit. */
static void judge(struct space *space, uint32_t slot, const uint8_t *content, struct gathering *gathering)
{
	struct staging *staging = &space->staging;
	struct tree *tree = space->tree;
	uint32_t page = staging->page[slot];
	uint8_t *now = table_page(&space->table, page);
	uint64_t pgno = table_pgno(&space->table, page);
	if (page_is_zero(content)) {
		staging->state[slot] = SLOT_ZEROS;
		if (*now & PAGE_HAS_COPY)
			gathering->zero[gathering->zeros++] = (struct page_range){ pgno, 1 };
		table_change(&space->table, page, PAGE_STAGED, 0, PAGE_HAS_COPY);
		return;
	}
	uint64_t hash = page_hash(content);
	staging->state[slot] = SLOT_CLEAN;
	if ((*now & PAGE_HAS_COPY) && *table_hash(&space->table, page) == hash)
		return;
	if (*now & PAGE_PREFETCHED) { /* it was written: so it was used */
		tree->stats->prefetch_used_pages++;
		*now &= (uint8_t)~PAGE_PREFETCHED;
	}
	staging->state[slot] = SLOT_PENDING;
	*table_hash(&space->table, page) = hash;
	table_change(&space->table, page, PAGE_STAGED, PAGE_HAS_COPY, 0);
	gathering->where[gathering->puts] = (struct op_page){ pgno, slot };
	gathering->put[gathering->puts++] = (struct page_range){ pgno, 1 };
	gathering->data[gathering->data_count++] = (struct iovec){ (void *)content, PAGE_BYTES };
}

/* Neighbours are joined, in pages and in memory. */
static size_t join_ranges(struct page_range *ranges, size_t count)
{
	size_t out = 0;
	for (size_t i = 0; i < count; i++) {
		if (out && ranges[out - 1].pgno + ranges[out - 1].pages == ranges[i].pgno)
			ranges[out - 1].pages += ranges[i].pages;
		else
			ranges[out++] = ranges[i];
	}
	return out;
}

static size_t join_data(struct iovec *data, size_t count)
{
	size_t out = 0;
	for (size_t i = 0; i < count; i++) {
		if (out && (char *)data[out - 1].iov_base + data[out - 1].iov_len == (char *)data[i].iov_base)
			data[out - 1].iov_len += data[i].iov_len;
		else
			data[out++] = data[i];
	}
	return out;
}

static int send_gathered(struct space *space, struct gathering *gathering, struct write_batch *batch, uint64_t slots)
{
	struct tree *tree = space->tree;
	int ret = 0;
	if (gathering->puts) {
		*batch = (struct write_batch){ .space = space, .first_slot = space->staging.written, .slots = (uint32_t)slots };
		tree->stats->written_back_pages += gathering->puts;
		oplog_next_put(tree->source, space->number, gathering->where, gathering->puts);
		size_t ranges = join_ranges(gathering->put, gathering->puts),
		       data = join_data(gathering->data, gathering->data_count);
		ret = insist(tree, space, gathering->put, ranges, gathering->data, data,
			     COOKIE_WRITE | (uint64_t)(batch - tree->batch));
	}
	if (!ret && gathering->zeros) {
		size_t ranges = join_ranges(gathering->zero, gathering->zeros);
		ret = insist(tree, space, gathering->zero, ranges, NULL, 0, COOKIE_IGNORED);
	}
	return ret;
}

bool staging_write_back(struct space *space, uint64_t limit)
{
	struct staging *staging = &space->staging;
	struct tree *tree = space->tree;
	struct write_batch *batch = batch_new(tree);
	if (!batch || staging->written == staging->head)
		return false;
	uint64_t slots = DP_MIN(DP_MIN(limit, MOVE_PAGES), staging->head - staging->written);
	struct iovec remote[MOVE_PAGES], local = { tree->buffer, 0 };
	uint32_t fresh[MOVE_PAGES], count = 0;
	for (uint64_t i = 0; i < slots; i++) {
		uint32_t slot = (uint32_t)((staging->written + i) % staging->capacity);
		if (staging->state[slot] != SLOT_FRESH)
			continue;
		remote[count] = (struct iovec){ (void *)(space->warden.staging + (uint64_t)slot * PAGE_BYTES), PAGE_BYTES };
		fresh[count++] = slot;
		local.iov_len += PAGE_BYTES;
	}
	size_t pieces = join_data(remote, count);
	if (count && !staging_read(space, &local, remote, pieces))
		return false;
	struct gathering gathering = { .puts = 0, .zeros = 0, .data_count = 0 };
	for (uint32_t i = 0; i < count; i++)
		judge(space, fresh[i], tree->buffer + (uint64_t)i * PAGE_BYTES, &gathering);
	int ret = send_gathered(space, &gathering, batch, slots);
	staging->written += slots;
	if (ret)
		tree_fail(tree, ret, "write pages back");
	return !ret;
}

void staging_flush(struct space *space)
{
	struct tree *tree = space->tree;
	uint64_t until_ns = 0; /* what became of its process is known by then */
	while (!space->closed && !tree->failure && space->staging.written < space->staging.head) {
		if (staging_write_back(space, MOVE_PAGES) || space->closed || tree->failure)
			continue;
		if (!batch_new(tree)) { /* an answer frees one */
			int ret = lost_receive(tree);
			if (ret < 0)
				tree_fail(tree, ret, "write pages back");
			continue;
		}
		until_ns = until_ns ? until_ns : clock_now_ns() + READ_WITHIN_NS;
		if (clock_now_ns() > until_ns)
			tree_fail(tree, -EFAULT, "the memory of process %d cannot be reached", space->pid);
		usleep(1000);
	}
}

/* ---- the source's answers ---- */

void staging_take_back(struct space *space)
{
	struct staging *staging = &space->staging;
	space->stuck = false;
	for (uint64_t at = staging->tail; at < staging->head && !space->closed; at++) {
		uint64_t slot = at % staging->capacity;
		if (staging->state[slot] != SLOT_STUCK)
			continue;
		space->stuck = true; /* until it is seen that none is */
		fault_serve(space, table_pgno(&space->table, staging->page[slot]) << PAGE_SHIFT, true, clock_now_ns());
	}
}

/* The source could not take pages: they are to be the process's again, and nothing is evicted for a while. Not from here: an
 * answer may come in the midst of anything, also while what lies in tree->buffer is being sent. */
static void write_failed(struct space *space, struct write_batch *batch, int error)
{
	struct staging *staging = &space->staging;
	if (space->shared || (error != -ENOSPC && error != -EDQUOT)) {
		tree_fail(space->tree, error, "write pages back");
		return;
	}
	log_error("%s: nothing of process %d is evicted for a second",
		  error == -EDQUOT ? "the pool's quota is used up" : "the pool is full", space->pid);
	for (uint64_t at = DP_MAX(batch->first_slot, staging->tail); at < batch->first_slot + batch->slots; at++) {
		uint64_t slot = at % staging->capacity;
		uint32_t page = staging->page[slot];
		if (staging->state[slot] != SLOT_PENDING)
			continue;
		if (page == MOVED_ON) {
			tree_fail(space->tree, error, "write moved pages back");
			return;
		}
		staging->state[slot] = page == NO_PAGE ? SLOT_GARBAGE : SLOT_STUCK;
		if (page != NO_PAGE) {
			table_change(&space->table, page, PAGE_STAGED, 0, PAGE_HAS_COPY);
			space->stuck = true;
		}
	}
	space->evict_after_ns = clock_now_ns() + 1000000000u;
}

void evict_on_done(struct tree *tree, uint64_t cookie, int result)
{
	if (cookie == COOKIE_IGNORED) {
		if (result < 0 && result != -ENOENT)
			tree_fail(tree, result, "the pool refused a change");
		return;
	}
	uint64_t number = cookie & ~COOKIE_WRITE;
	if (!(cookie & COOKIE_WRITE) || number >= WRITE_BATCHES || !tree->batch[number].space) {
		tree_fail(tree, result < 0 ? result : -EPROTO, "the pool's answer");
		return;
	}
	struct write_batch *batch = &tree->batch[number];
	struct space *space = batch->space;
	struct staging *staging = &space->staging;
	batch->space = NULL;
	if (space->closed)
		return;
	if (result < 0)
		write_failed(space, batch, result);
	/* What is below the tail was no part of the message, and its slot may be another's by now. */
	for (uint64_t at = DP_MAX(batch->first_slot, staging->tail); at < batch->first_slot + batch->slots; at++) {
		uint64_t slot = at % staging->capacity;
		if (staging->state[slot] == SLOT_PENDING)
			staging->state[slot] = staging->page[slot] >= MOVED_ON ? SLOT_GARBAGE : SLOT_CLEAN;
	}
}

/* ---- away ---- */

uint64_t staging_droppable(const struct space *space, uint64_t limit)
{
	const struct staging *staging = &space->staging;
	uint64_t count = 0;
	while (count < limit && staging->tail + count < staging->written) {
		uint64_t slot = (staging->tail + count) % staging->capacity;
		if (staging->state[slot] == SLOT_PENDING || staging->state[slot] == SLOT_STUCK || (count && slot == 0))
			break;
		count++;
	}
	return count;
}

void staging_drop_slot(struct space *space, uint64_t slot)
{
	struct staging *staging = &space->staging;
	struct pager_stats *stats = space->tree->stats;
	uint32_t page = staging->page[slot];
	if (staging->state[slot] != SLOT_EMPTY)
		staging->present--;
	if (page < MOVED_ON) {
		bool zeros = staging->state[slot] == SLOT_ZEROS, main = *table_page(&space->table, page) & PAGE_MAIN;
		ahead_wasted(space, page);
		heat_left(&space->table, page);
		stats->clean_dropped_pages += !zeros && !main;
		stats->zero_pages += zeros;
		stats->evicted_pages++;
		residency_ahead_note(&space->ahead, &space->tree->budget, 0, 1);
		staging_release(space, page, zeros ? PAGE_ZERO : PAGE_REMOTE);
		*table_page(&space->table, page) &= (uint8_t)~(PAGE_PREFETCHED | PAGE_HAS_COPY);
		if (!zeros) { /* remembered: if it comes back soon, it goes to the main queue */
			*table_link(&space->table, page) = space->evictions++;
			*table_page(&space->table, page) |= PAGE_MAIN;
		}
	}
	staging->state[slot] = SLOT_EMPTY;
}
