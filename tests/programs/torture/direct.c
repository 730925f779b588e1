/* O_DIRECT: the device reads from and writes into pages of ours, so these are pinned while the evictor wants them. */
#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define IO_PAGES 64ull

static bool direct_path(char *path, size_t size)
{
	return snprintf(path, size, "%s/torture-direct.%d", options.directory, getpid()) < (int)size;
}

/* The file is as large as it will ever be from here on (T1), and stays: a snapshot may need it in any later restore. */
static bool direct_start(struct worker *worker)
{
	char path[512];
	static uint8_t empty[IO_PAGES * PAGE_BYTES];

	worker->region = region_new("direct", IO_PAGES * 4, IO_PAGES * 4, 0);
	if (!worker->region || !direct_path(path, sizeof(path)))
		return false;
	region_write_all(worker->region);
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, empty, sizeof(empty)) != (ssize_t)sizeof(empty))
		return torture_fail("direct: make %s: %s", path, strerror(errno));
	close(fd);
	fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		snprintf(board->skipped, sizeof(board->skipped), "direct (no O_DIRECT in %s)", options.directory);
	else
		close(fd);
	return true;
}

/* The page it came from, what the file has, or what was read: which of them is wrong now. */
static const char *who_is_wrong(const struct region *region, int fd, uint64_t from, uint64_t at, char text[static 400])
{
	static uint8_t block[PAGE_BYTES] __attribute__((aligned(4096)));
	char page[160], file[160];

	pattern_describe(region_page(region, from), page, sizeof(page));
	if (pread(fd, block, sizeof(block), (off_t)(at * PAGE_BYTES)) != (ssize_t)sizeof(block))
		memset(block, 0xee, sizeof(block));
	pattern_describe(block, file, sizeof(file));
	snprintf(text, 400, "where it came from there is %s, in the file %s", page, file);
	return text;
}

/* Writes one quarter of the region to the file and reads it into another; so that quarter holds the first one's pages. */
static bool direct_transfer(struct worker *worker, int fd, uint64_t from, uint64_t to)
{
	struct region *region = worker->region;
	size_t bytes = IO_PAGES * PAGE_BYTES;

	if (worker->round % 4 == 0) /* into pages that do not exist */
		madvise(region_page(region, to), bytes, MADV_DONTNEED);
	ssize_t wrote = pwrite(fd, region_page(region, from), bytes, 0);
	ssize_t got = wrote == (ssize_t)bytes ? pread(fd, region_page(region, to), bytes, 0) : -1;
	if (got != (ssize_t)bytes)
		return torture_fail("direct: transfer: wrote %zd, read %zd: %s", wrote, got, strerror(errno));
	for (uint64_t i = 0; i < IO_PAGES; i++) {
		char text[160], other[400];
		int wrong = pattern_find_wrong(region_page(region, to + i), region->id, from + i, region->versions[from + i]);

		if (wrong >= 0) {
			pattern_describe(region_page(region, to + i), text, sizeof(text));
			return torture_fail(
				"WRONG direct page %llu, read into %p, byte %d: expected page %llu version %u, found %s; %s",
				(unsigned long long)(to + i), (void *)region_page(region, to + i), wrong,
				(unsigned long long)(from + i), region->versions[from + i], text,
				who_is_wrong(region, fd, from + i, i, other));
		}
	}
	for (uint64_t i = 0; i < IO_PAGES; i++) { /* the pages are their own again, written whole */
		region->versions[to + i] |= VERSION_FREED;
		region_write(region, to + i);
	}
	return true;
}

static bool direct_round(struct worker *worker)
{
	char path[512];
	uint64_t from = worker->round % 4 * IO_PAGES, to = (worker->round + 1 + worker->round / 4 % 3) % 4 * IO_PAGES;

	if (board->skipped[0]) {
		usleep(100000);
		return true;
	}
	direct_path(path, sizeof(path));
	pthread_rwlock_rdlock(&world);
	int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	bool good = fd >= 0 ? direct_transfer(worker, fd, from, to) : torture_fail("direct: open %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	pthread_rwlock_unlock(&world);
	return good;
}

const struct kind kind_direct = {.name = "direct", .what = "O_DIRECT from and into evictable pages", .start = direct_start,
				 .round = direct_round};
