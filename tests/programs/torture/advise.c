/* MADV_DONTNEED (zeros afterwards), MADV_FREE (the old content or zeros, until written), huge pages, locked pages. */
#include "torture.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static bool plain_start(struct worker *worker)
{
	worker->region = region_new(worker->kind->name, worker_pages(worker), worker_pages(worker), 0);
	if (!worker->region)
		return false;
	region_write_all(worker->region);
	return true;
}

static void give_up(struct region *region, uint64_t first, uint64_t pages)
{
	for (uint64_t i = first; i < first + pages; i++)
		region->versions[i] |= VERSION_FREED;
}

/* A word written to a freed page keeps it: from then on it is one of the two whole pages with that word in it, for good. */
static bool touch_freed(struct worker *worker, uint64_t index)
{
	struct region *region = worker->region;
	uint64_t *page = (uint64_t *)region_page(region, index);
	uint64_t word = random_next(&worker->random) | 1;

	((volatile uint64_t *)page)[256] = word;
	bool zeros = page[255] == 0 && page[0] == 0;
	for (unsigned look = 0; look < 2; look++) {
		if (((volatile uint64_t *)page)[256] != word)
			return torture_fail("WRONG advise page %llu at %p: a word written after MADV_FREE is lost",
					    (unsigned long long)index, (void *)page);
		for (unsigned i = 3; i < PAGE_WORDS; i++)
			if (i != 256 && zeros && ((volatile uint64_t *)page)[i])
				return torture_fail(
					"WRONG advise page %llu at %p: after MADV_FREE and a write it is half zeros, half old",
					(unsigned long long)index, (void *)page);
	}
	region_write(region, index);
	return true;
}

static bool advise_round(struct worker *worker)
{
	struct region *region = worker->region;
	uint64_t pages = 1 + random_below(&worker->random, worker->round % 16 ? region->pages / 8 : region->pages);
	uint64_t first = random_below(&worker->random, region->pages - pages + 1);
	bool lazily = worker->round & 1;
	bool good;

	pthread_rwlock_rdlock(&world);
	if (madvise(region_page(region, first), pages * PAGE_BYTES, lazily ? MADV_FREE : MADV_DONTNEED))
		good = torture_fail("advise: madvise: %s", strerror(errno));
	else {
		if (lazily)
			give_up(region, first, pages);
		else
			region_set_zero(region, first, pages);
		good = region_check_some(region, first, pages, 32, &worker->random) &&
		       region_check_some(region, 0, region->pages, 32, &worker->random);
	}
	for (unsigned i = 0; lazily && i < 4 && good; i++) {
		uint64_t index = first + random_below(&worker->random, pages);
		if (region->versions[index] & VERSION_FREED)
			good = touch_freed(worker, index);
	}
	for (uint64_t i = 0; i < pages && good; i++)
		if (random_next(&worker->random) & 1)
			region_write(region, first + i);
	good = good && region_check_some(region, first, pages, 32, &worker->random);
	pthread_rwlock_unlock(&world);
	return good;
}

/* Fresh memory may get huge pages before anybody registers it; slices are given back so that they split. */
static bool huge_round(struct worker *worker)
{
	struct region *region = worker->region;
	uint64_t bytes = region->pages * PAGE_BYTES;
	bool good = true;

	pthread_rwlock_rdlock(&world);
	if (worker->round % 64 == 0) {
		pthread_mutex_lock(&places);
		void *fresh = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (fresh == MAP_FAILED)
			good = torture_fail("huge: mmap: %s", strerror(errno));
		else {
			munmap(region->base, bytes);
			region->base = fresh;
			region_set_zero(region, 0, region->pages);
			madvise(fresh, bytes, MADV_HUGEPAGE); /* a kernel without huge pages refuses; the rest holds there too */
		}
		pthread_mutex_unlock(&places);
	}
	for (unsigned i = 0; i < 64 && good; i++) {
		uint64_t index = random_below(&worker->random, region->pages);
		good = region_check(region, index);
		if (good && i & 1)
			region_write(region, index);
	}
	if (good && worker->round % 8 == 7) {
		uint64_t first = random_below(&worker->random, region->pages - 16);
		madvise(region_page(region, first), 16 * PAGE_BYTES, MADV_DONTNEED);
		region_set_zero(region, first, 16);
		good = region_check_some(region, first, 16, 16, &worker->random);
	}
	pthread_rwlock_unlock(&world);
	return good;
}

#define LOCKED_PAGES 8
static bool lock_start(struct worker *worker)
{
	worker->region = region_new("lock", 32, 32, 0);
	if (!worker->region)
		return false;
	region_write_all(worker->region);
	return true;
}

static bool lock_round(struct worker *worker)
{
	struct region *region = worker->region;
	bool good = true;

	pthread_rwlock_rdlock(&world);
	int result = worker->round % 64 < 32 ? mlock(region_page(region, LOCKED_PAGES), LOCKED_PAGES * PAGE_BYTES)
					     : munlock(region_page(region, LOCKED_PAGES), LOCKED_PAGES * PAGE_BYTES);
	if (result)
		good = torture_fail("lock: mlock: %s", strerror(errno));
	good = good && region_check_all(region);
	for (unsigned i = 0; i < 8 && good; i++)
		region_write(region, random_below(&worker->random, region->pages));
	pthread_rwlock_unlock(&world);
	return good;
}

const struct kind kind_advise = {
	.name = "advise", .what = "MADV_DONTNEED and MADV_FREE", .share_percent = 6, .start = plain_start, .round = advise_round
};
const struct kind kind_huge = { .name = "huge",
				.what = "a region with MADV_HUGEPAGE, mapped afresh now and then",
				.share_percent = 8,
				.start = plain_start,
				.round = huge_round };
const struct kind kind_lock = {
	.name = "lock", .what = "mlock and munlock of a few pages", .start = lock_start, .round = lock_round
};
