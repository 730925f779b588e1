/* The kernel reads and writes our pages for us: pipes, vmsplice, process_vm_readv and process_vm_writev on ourselves. */
#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIPE_PAGES 8ull /* less than a pipe holds */

static bool pipe_start(struct worker *worker)
{
	worker->region = region_new("pipe", 512, 512, 0);
	worker->second = region_new("pipe-copy", 512, 512, 0);
	if (!worker->region || !worker->second)
		return false;
	region_write_all(worker->region);
	return true;
}

static bool transfer_failed(const char *call, ssize_t result)
{
	return torture_fail("pipe: %s moved %zd bytes: %s", call, result, result < 0 ? strerror(errno) : "short");
}

static bool through_pipe(const void *from, void *to, bool splice)
{
	int ends[2];
	struct iovec piece = {.iov_base = (void *)from, .iov_len = PIPE_PAGES * PAGE_BYTES};
	size_t done = 0;

	if (pipe2(ends, O_CLOEXEC))
		return transfer_failed("pipe2", -1);
	ssize_t wrote = splice ? vmsplice(ends[1], &piece, 1, 0) : write(ends[1], from, piece.iov_len);
	while (wrote > 0 && done < (size_t)wrote) {
		ssize_t got = read(ends[0], (uint8_t *)to + done, (size_t)wrote - done);
		if (got <= 0)
			break;
		done += (size_t)got;
	}
	close(ends[0]);
	close(ends[1]);
	return done == piece.iov_len || transfer_failed(splice ? "vmsplice" : "write and read", (ssize_t)done);
}

static bool through_vm(void *from, void *to, bool push)
{
	size_t done = 0, bytes = PIPE_PAGES * PAGE_BYTES;

	while (done < bytes) { /* a signal may cut it short */
		struct iovec source = {(uint8_t *)from + done, bytes - done}, target = {(uint8_t *)to + done, bytes - done};
		ssize_t moved = push ? process_vm_writev(gettid(), &source, 1, &target, 1, 0)
				     : process_vm_readv(gettid(), &target, 1, &source, 1, 0);
		if (moved <= 0 && errno != EINTR)
			return transfer_failed(push ? "process_vm_writev" : "process_vm_readv", moved);
		if (moved > 0)
			done += (size_t)moved;
	}
	return true;
}

static bool pipe_once(struct worker *worker)
{
	struct region *region = worker->region;
	uint64_t from = random_below(&worker->random, region->pages - PIPE_PAGES);
	uint64_t to = random_below(&worker->random, region->pages - PIPE_PAGES);
	void *source = region_page(region, from), *target = region_page(worker->second, to);

	if (!(worker->round & 2 ? through_vm(source, target, worker->round & 1)
				: through_pipe(source, target, worker->round & 1)))
		return false;
	for (uint64_t i = 0; i < PIPE_PAGES; i++) {
		const uint8_t *page = region_page(worker->second, to + i);
		int wrong = pattern_find_wrong(page, region->id, from + i, region->versions[from + i]);
		char text[160];

		if (wrong >= 0) {
			pattern_describe(page, text, sizeof(text));
			return torture_fail("WRONG pipe copy of page %llu (way %u) at %p byte %d: expected version %u, found %s",
					    (unsigned long long)(from + i), (unsigned)worker->round & 3, (const void *)page,
					    wrong, region->versions[from + i], text);
		}
		worker->second->versions[to + i] |= VERSION_FREED; /* written whole next */
		region_write(worker->second, to + i);
		region_write(region, from + i);
	}
	return true;
}

static bool pipe_round(struct worker *worker)
{
	pthread_rwlock_rdlock(&world);
	bool good = pipe_once(worker);
	pthread_rwlock_unlock(&world);
	return good;
}

const struct kind kind_pipe = {.name = "pipe", .what = "pipes, vmsplice, process_vm_readv and _writev", .start = pipe_start,
			       .round = pipe_round};
