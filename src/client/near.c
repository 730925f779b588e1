#include "client/near.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/base.h"

#define BLOCKS 4096u /* of 64 pages: 1 GiB is known at a time */
#define READ_PIECES 64u
#define UNKNOWN UINT64_MAX

struct block {
	uint64_t space, first; /* space 0: free */
};

struct near {
	pid_t pid;
	int pidfd;
	uint64_t changes;
	struct block *block;                       /* [BLOCKS] */
	struct page_place (*place)[NEAR_BLOCK_PAGES]; /* [BLOCKS], touched as needed */
};

#define PLACES_BYTES (sizeof(struct page_place) * NEAR_BLOCK_PAGES * BLOCKS)

static bool alive(const struct near *near)
{
	struct pollfd ended = { .fd = near->pidfd, .events = POLLIN };

	return poll(&ended, 1, 0) == 0;
}

/* The pool shows a number that nobody else can know at the place it names. */
static bool proven(const struct near *near, const struct message_near *pool)
{
	uint8_t seen[sizeof(pool->proof)];
	struct iovec local = { seen, sizeof(seen) }, remote = { (void *)(uintptr_t)pool->proof_place, sizeof(seen) };

	return process_vm_readv(near->pid, &local, 1, &remote, 1, 0) == (ssize_t)sizeof(seen) &&
	       memcmp(seen, pool->proof, sizeof(seen)) == 0 && alive(near);
}

struct near *near_open(const struct message_near *pool)
{
	struct near *near = calloc(1, sizeof(*near));

	if (!near)
		return NULL;
	near->pid = (pid_t)pool->pid;
	near->pidfd = (int)syscall(SYS_pidfd_open, near->pid, 0);
	near->block = calloc(BLOCKS, sizeof(*near->block));
	near->place = mmap(NULL, PLACES_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (near->place == MAP_FAILED)
		near->place = NULL;
	if (near->pidfd < 0 || !near->block || !near->place || !proven(near, pool)) {
		near_close(near);
		return NULL;
	}
	return near;
}

void near_close(struct near *near)
{
	if (!near)
		return;
	if (near->pidfd >= 0)
		close(near->pidfd);
	if (near->place)
		munmap(near->place, PLACES_BYTES);
	free(near->block);
	free(near);
}

/* One place for each block, taken by whoever came last. */
static uint32_t index_of(uint64_t space, uint64_t first)
{
	uint64_t key = (first / NEAR_BLOCK_PAGES + space * 0x632be59bd9b4e019u) * 0x9e3779b97f4a7c15u;

	return (uint32_t)(key >> 52) % BLOCKS;
}

static bool holds(const struct near *near, uint32_t index, uint64_t space, uint64_t first)
{
	return near->block[index].space == space && near->block[index].first == first;
}

bool near_find(const struct near *near, uint64_t space, struct page_range range, struct page_place *places)
{
	for (uint64_t i = 0; i < range.pages; i++) {
		uint64_t pgno = range.pgno + i, first = pgno / NEAR_BLOCK_PAGES * NEAR_BLOCK_PAGES;
		uint32_t index = index_of(space, first);

		if (!holds(near, index, space, first) || near->place[index][pgno - first].address == UNKNOWN)
			return false;
		places[i] = near->place[index][pgno - first];
	}
	return true;
}

uint64_t near_changes(const struct near *near)
{
	return near->changes;
}

void near_keep(struct near *near, uint64_t space, uint64_t first_pgno, const struct page_place *places, uint64_t pages)
{
	for (uint64_t at = 0; at + NEAR_BLOCK_PAGES <= pages; at += NEAR_BLOCK_PAGES) {
		uint32_t index = index_of(space, first_pgno + at);

		near->block[index] = (struct block){ space, first_pgno + at };
		memcpy(near->place[index], places + at, sizeof(near->place[index]));
	}
}

static void forget_in_block(struct near *near, uint32_t index, uint64_t pgno, uint64_t end)
{
	uint64_t first = near->block[index].first, from = DP_MAX(pgno, first), to = DP_MIN(end, first + NEAR_BLOCK_PAGES);

	for (; from < to; from++)
		near->place[index][from - first].address = UNKNOWN;
}

void near_forget(struct near *near, uint64_t space, uint64_t pgno, uint64_t pages)
{
	uint64_t end = pages > UINT64_MAX - pgno ? UINT64_MAX : pgno + pages;

	near->changes++;
	if (pages > (uint64_t)BLOCKS * NEAR_BLOCK_PAGES / 4) {
		for (uint32_t index = 0; index < BLOCKS; index++)
			if (near->block[index].space == space)
				forget_in_block(near, index, pgno, end);
		return;
	}
	for (uint64_t first = pgno / NEAR_BLOCK_PAGES * NEAR_BLOCK_PAGES; first < end; first += NEAR_BLOCK_PAGES) {
		uint32_t index = index_of(space, first);

		if (holds(near, index, space, first))
			forget_in_block(near, index, pgno, end);
	}
}

int near_read(struct near *near, const uint64_t *places, uint64_t pages, bool proven, void *to)
{
	struct iovec remote[READ_PIECES], local = { to, 0 };
	uint64_t at = 0;

	while (at < pages) {
		unsigned pieces = 0;

		local.iov_base = (uint8_t *)to + at * PAGE_BYTES;
		local.iov_len = 0;
		for (; at < pages; at++) {
			struct iovec *last = pieces ? &remote[pieces - 1] : NULL;

			if (last && (uintptr_t)last->iov_base + last->iov_len == places[at])
				last->iov_len += PAGE_BYTES;
			else if (pieces < READ_PIECES)
				remote[pieces++] = (struct iovec){ (void *)(uintptr_t)places[at], PAGE_BYTES };
			else
				break;
			local.iov_len += PAGE_BYTES;
		}
		if (process_vm_readv(near->pid, &local, 1, remote, pieces, 0) != (ssize_t)local.iov_len)
			return -ECONNRESET;
	}
	return proven || alive(near) ? 0 : -ECONNRESET; /* N3 */
}
