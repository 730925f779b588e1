#include "migrate/frozen_store.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "base/base.h"
#include "store/over.h"

#define READ_PAGES 64
/* A frozen slot's place in `moved`, where it has none of ours: */
#define SLOT_FROZEN 0u
#define SLOT_FREE UINT64_MAX

struct frozen_run {
	uint64_t first, pgno, pages; /* slots first.. are pages pgno.. */
	uint32_t memory;
};

struct frozen_store {
	struct store_over over; /* what is written */
	int life_fd;
	bool ended, sealed; /* sealed: Z1 */
	int *mem_fds;
	size_t mem_count;
	struct frozen_run *runs; /* ascending by slot */
	size_t run_count, run_room;
	uint64_t end;    /* first slot behind the frozen ones */
	uint64_t *moved; /* of each frozen slot: SLOT_FROZEN, SLOT_FREE, or its slot in `own`; made with the first of these */
	uint64_t moved_count, read_count, left_count;
	uint8_t *was_read; /* a bit for each frozen slot */
};

static struct frozen_store *frozen_of(const struct store *store)
{
	return (struct frozen_store *)(uintptr_t)store;
}

/* ---- the frozen part ---- */

static bool is_frozen(const struct frozen_store *frozen, uint64_t slot)
{
	return slot < frozen->end && (!frozen->moved || frozen->moved[slot] == SLOT_FROZEN);
}

/* The slot of `own` behind one of ours that is not frozen. */
static uint64_t own_slot(const struct frozen_store *frozen, uint64_t slot)
{
	if (slot >= frozen->end)
		return slot - frozen->end + 1;
	assert(frozen->moved && frozen->moved[slot] != SLOT_FREE);
	return frozen->moved[slot];
}

static const struct frozen_run *find_run(const struct frozen_store *frozen, uint64_t slot)
{
	size_t low = 0, high = frozen->run_count;

	while (high - low > 1) {
		size_t middle = (low + high) / 2;

		if (frozen->runs[middle].first <= slot)
			low = middle;
		else
			high = middle;
	}
	return &frozen->runs[low];
}

static bool stands_still(const struct frozen_store *frozen)
{
	struct pollfd life = { .fd = frozen->life_fd, .events = POLLIN };

	return !frozen->ended && (frozen->life_fd < 0 || poll(&life, 1, 0) == 0);
}

/* How many of the slots lie one behind the other in one process. */
static size_t neighbours(const struct frozen_store *frozen, const struct frozen_run *run, const uint64_t *slots, size_t count)
{
	size_t length = 1;

	while (length < DP_MIN(count, (size_t)READ_PAGES) && slots[length] == slots[0] + length &&
	       slots[length] < run->first + run->pages && is_frozen(frozen, slots[length]))
		length++;
	return length;
}

static int read_run(const struct frozen_store *frozen, const struct frozen_run *run, uint64_t slot, void *const *pages,
		    size_t count)
{
	struct iovec vectors[READ_PAGES];
	uint64_t address = (run->pgno + (slot - run->first)) << PAGE_SHIFT;

	for (size_t i = 0; i < count; i++)
		vectors[i] = (struct iovec){ .iov_base = pages[i], .iov_len = PAGE_BYTES };
	ssize_t got = preadv(frozen->mem_fds[run->memory], vectors, (int)count, (off_t)address);

	return got == (ssize_t)(count * PAGE_BYTES) ? 0 : -EIO;
}

static void note_read(struct frozen_store *frozen, uint64_t slot)
{
	uint8_t bit = (uint8_t)(1u << slot % 8);

	if (frozen->was_read[slot / 8] & bit)
		return;
	frozen->was_read[slot / 8] |= bit;
	frozen->read_count++;
	frozen->left_count--;
}

/* What is neither read nor moved is left. */
static void note_moved(struct frozen_store *frozen, uint64_t slot, uint64_t place)
{
	if (frozen->moved[slot] == SLOT_FROZEN && !(frozen->was_read[slot / 8] & 1u << slot % 8))
		frozen->left_count--;
	frozen->moved[slot] = place;
}

static void *map_zeros(uint64_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

/* From here on no slot is added. */
static int seal(struct frozen_store *frozen)
{
	if (frozen->sealed)
		return 0;
	if (!frozen->was_read)
		frozen->was_read = map_zeros(frozen->end / 8 + 1);
	if (!frozen->was_read)
		return -ENOMEM;
	frozen->left_count = frozen->end - 1;
	frozen->sealed = true;
	return 0;
}

static int make_moved(struct frozen_store *frozen)
{
	if (!frozen->moved) {
		frozen->moved = map_zeros(frozen->end * sizeof(*frozen->moved));
		frozen->moved_count = frozen->end;
	}
	return frozen->moved ? 0 : -ENOMEM;
}

/* ---- the store's calls ---- */

static int frozen_alloc(struct store *store, uint64_t *slots, size_t count)
{
	struct frozen_store *frozen = frozen_of(store);
	int result = seal(frozen);

	if (result == 0)
		result = frozen->over.own->ops->alloc(frozen->over.own, slots, count);
	for (size_t i = 0; i < count && result == 0; i++)
		slots[i] += frozen->end - 1; /* own slots begin with 1 */
	return result;
}

static void frozen_free(struct store *store, const uint64_t *slots, size_t count)
{
	struct frozen_store *frozen = frozen_of(store);

	for (size_t i = 0; i < count; i++) {
		bool own = !is_frozen(frozen, slots[i]);
		uint64_t place = own ? own_slot(frozen, slots[i]) : 0;

		if (own)
			frozen->over.own->ops->free(frozen->over.own, &place, 1);
		/* One that cannot be noted as free is only counted as left. */
		if (slots[i] < frozen->end && seal(frozen) == 0 && make_moved(frozen) == 0)
			note_moved(frozen, slots[i], SLOT_FREE);
	}
}

static int frozen_read(struct store *store, const uint64_t *slots, void *const *pages, size_t count)
{
	struct frozen_store *frozen = frozen_of(store);
	bool any_frozen = false;
	int result = seal(frozen);

	for (size_t i = 0, length = 1; i < count && result == 0; i += length) {
		if (is_frozen(frozen, slots[i])) {
			const struct frozen_run *run = find_run(frozen, slots[i]);

			length = neighbours(frozen, run, slots + i, count - i);
			result = frozen->ended ? -EIO : read_run(frozen, run, slots[i], pages + i, length);
			any_frozen = true;
		} else {
			uint64_t place = own_slot(frozen, slots[i]);

			length = 1;
			result = frozen->over.own->ops->read(frozen->over.own, &place, pages + i, 1);
		}
	}
	if (result == 0 && any_frozen && !stands_still(frozen))
		result = -EIO; /* F1 */
	for (size_t i = 0; i < count && result == 0; i++)
		if (is_frozen(frozen, slots[i]))
			note_read(frozen, slots[i]);
	return result;
}

/* Gives a frozen slot room of our own. */
static int move_slot(struct frozen_store *frozen, uint64_t slot, const void *page)
{
	uint64_t place;
	int result = seal(frozen);

	if (result == 0)
		result = make_moved(frozen);
	if (result == 0)
		result = frozen->over.own->ops->alloc(frozen->over.own, &place, 1);
	if (result < 0)
		return result;
	result = frozen->over.own->ops->write(frozen->over.own, &place, &page, 1);
	if (result < 0)
		frozen->over.own->ops->free(frozen->over.own, &place, 1);
	else
		note_moved(frozen, slot, place);
	return result;
}

static int frozen_write(struct store *store, const uint64_t *slots, const void *const *pages, size_t count)
{
	struct frozen_store *frozen = frozen_of(store);
	int result = 0;

	for (size_t i = 0; i < count && result == 0; i++) {
		if (is_frozen(frozen, slots[i])) {
			result = move_slot(frozen, slots[i], pages[i]);
			continue;
		}
		uint64_t place = own_slot(frozen, slots[i]);

		result = frozen->over.own->ops->write(frozen->over.own, &place, pages + i, 1);
	}
	return result;
}

/* Also where the page lies in memory of ours: whoever asks for one's place takes it for that of all. */
static const void *frozen_page(struct store *store, uint64_t slot)
{
	return NULL;
}

static int frozen_sync(struct store *store)
{
	return 0;
}

static int frozen_adopt(struct store *store, bool (*used)(void *context, uint64_t slot), void *context)
{
	return 0; /* it is new, and no blob names a slot */
}

static void frozen_capacity(struct store *store, struct store_capacity *capacity)
{
	struct frozen_store *frozen = frozen_of(store);

	frozen->over.own->ops->capacity(frozen->over.own, capacity);
	capacity->used_pages += frozen->end - 1;
	capacity->stored_bytes += (frozen->end - 1) * PAGE_BYTES;
	capacity->end_slot += frozen->end - 1;
}

static void frozen_close(struct store *store)
{
	struct frozen_store *frozen = frozen_of(store);

	for (size_t i = 0; i < frozen->mem_count; i++)
		dp_close_fd(&frozen->mem_fds[i]);
	if (frozen->was_read)
		munmap(frozen->was_read, frozen->end / 8 + 1);
	if (frozen->moved)
		munmap(frozen->moved, frozen->moved_count * sizeof(*frozen->moved));
	store_close(frozen->over.own);
	free(frozen->mem_fds);
	free(frozen->runs);
	free(frozen);
}

static const struct store_ops frozen_ops = {
	.name = "frozen",
	.alloc = frozen_alloc,
	.free = frozen_free,
	.write = frozen_write,
	.read = frozen_read,
	.page = frozen_page,
	.sync = frozen_sync,
	.blob_put = store_over_blob_put,
	.blob_get = store_over_blob_get,
	.blob_list = store_over_blob_list,
	.blob_delete = store_over_blob_delete,
	.adopt = frozen_adopt,
	.capacity = frozen_capacity,
	.close = frozen_close,
};

/* ---- making it ---- */

int frozen_store_open(struct store **store, int life_fd, struct dp_err *err)
{
	struct frozen_store *frozen = calloc(1, sizeof(*frozen));

	if (!frozen)
		return dp_fail_errno(err, ENOMEM, "open the store of frozen pages");
	int result = store_open(&frozen->over.own, "memory:", true, err);

	if (result < 0) {
		free(frozen);
		return result;
	}
	frozen->over.store = (struct store){ .ops = &frozen_ops, .digests_late = true };
	frozen->life_fd = life_fd;
	frozen->end = 1;
	*store = &frozen->over.store;
	return 0;
}

int frozen_store_add_memory(struct store *store, int mem_fd)
{
	struct frozen_store *frozen = frozen_of(store);
	int *wider = reallocarray(frozen->mem_fds, frozen->mem_count + 1, sizeof(*wider));

	if (!wider) {
		dp_close_fd(&mem_fd);
		return -ENOMEM;
	}
	frozen->mem_fds = wider;
	frozen->mem_fds[frozen->mem_count] = mem_fd;
	return (int)frozen->mem_count++;
}

int frozen_store_add_pages(struct store *store, int memory, uint64_t pgno, uint64_t pages, uint64_t *first)
{
	struct frozen_store *frozen = frozen_of(store);

	assert(!frozen->sealed && memory >= 0 && (size_t)memory < frozen->mem_count && pages > 0); /* Z1 */
	if (frozen->run_count == frozen->run_room) {
		size_t room = frozen->run_room ? frozen->run_room * 2 : 256;
		struct frozen_run *wider = reallocarray(frozen->runs, room, sizeof(*wider));

		if (!wider)
			return -ENOMEM;
		frozen->runs = wider;
		frozen->run_room = room;
	}
	*first = frozen->end;
	frozen->runs[frozen->run_count++] =
		(struct frozen_run){ .first = frozen->end, .pgno = pgno, .pages = pages, .memory = (uint32_t)memory };
	frozen->end += pages;
	return 0;
}

uint64_t frozen_store_pages(const struct store *store)
{
	return frozen_of(store)->end - 1;
}

uint64_t frozen_store_read_pages(const struct store *store)
{
	return frozen_of(store)->read_count;
}

uint64_t frozen_store_left_pages(const struct store *store)
{
	const struct frozen_store *frozen = frozen_of(store);

	return frozen->sealed ? frozen->left_count : frozen->end - 1;
}

bool frozen_store_is_left(const struct store *store, uint64_t slot)
{
	const struct frozen_store *frozen = frozen_of(store);

	return is_frozen(frozen, slot) && !(frozen->was_read && frozen->was_read[slot / 8] & 1u << slot % 8);
}

void frozen_store_end(struct store *store)
{
	frozen_of(store)->ended = true;
}

int frozen_store_keep(struct store *store)
{
	struct frozen_store *frozen = frozen_of(store);
	static uint8_t buffer[READ_PAGES][PAGE_BYTES] __attribute__((aligned(PAGE_BYTES)));
	uint64_t slots[READ_PAGES];
	void *pages[READ_PAGES];
	int result = 0;

	for (uint64_t slot = 1; slot < frozen->end && result == 0;) {
		size_t count = 0;

		for (; slot < frozen->end && count < READ_PAGES; slot++) {
			if (!is_frozen(frozen, slot))
				continue;
			pages[count] = buffer[count];
			slots[count++] = slot;
		}
		result = frozen_read(store, slots, pages, count);
		for (size_t i = 0; i < count && result == 0; i++)
			result = move_slot(frozen, slots[i], pages[i]);
	}
	return result;
}
