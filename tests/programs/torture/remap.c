/* mremap: grow, shrink, move, move a slice away and back, move and leave the old area empty; munmap and map again. */
#include "torture.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define READ_WRITE (PROT_READ | PROT_WRITE)
#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)

static bool remap_start(struct worker *worker)
{
	uint64_t pages = worker_pages(worker) / 2;

	worker->region = region_new(worker->kind->name, pages, pages * 2, 0);
	if (!worker->region)
		return false;
	region_write_all(worker->region);
	return true;
}

static void *somewhere(uint64_t bytes)
{
	void *place = mmap(NULL, bytes, PROT_NONE, PRIVATE, -1, 0);

	if (place == MAP_FAILED)
		torture_fail("remap: find room for %llu bytes: %s", (unsigned long long)bytes, strerror(errno));
	return place;
}

/* The kernel answers EFAULT where the range has become several areas, and they do not merge while some of it is registered with a
 * userfaultfd and some is not yet. Legal, so the region starts anew; both ranges are ours alone, whatever part of them moved. */
static bool remap_failed(struct region *region, void *other)
{
	uint64_t bytes = region->max_pages * PAGE_BYTES;

	if (errno != EFAULT)
		return torture_fail("remap: mremap: %s", strerror(errno));
	munmap(region->base, region->pages * PAGE_BYTES);
	if (other)
		munmap(other, region->pages * PAGE_BYTES);
	region->pages = region->max_pages / 2;
	region->base = mmap(NULL, bytes / 2, READ_WRITE, PRIVATE, -1, 0);
	region_set_zero(region, 0, region->max_pages);
	return region->base != MAP_FAILED || torture_fail("remap: mmap: %s", strerror(errno));
}

static bool resize(struct region *region, uint64_t pages)
{
	void *base = mremap(region->base, region->pages * PAGE_BYTES, pages * PAGE_BYTES, MREMAP_MAYMOVE);

	if (base == MAP_FAILED)
		return remap_failed(region, NULL);
	if (pages > region->pages)
		region_set_zero(region, region->pages, pages - region->pages);
	region->base = base;
	region->pages = pages;
	return true;
}

static bool move_whole(struct region *region, int flags)
{
	uint64_t bytes = region->pages * PAGE_BYTES;
	uint8_t *old = region->base, *place = somewhere(bytes);

	if (place == MAP_FAILED)
		return false;
	if (mremap(old, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | flags, place) == MAP_FAILED)
		return remap_failed(region, place);
	region->base = place;
	if (!(flags & MREMAP_DONTUNMAP))
		return true;
	for (uint64_t index = 0; index < region->pages; index += 17)
		if (!page_is_zero(old + index * PAGE_BYTES))
			return torture_fail("WRONG remap: page %p, moved away from, does not read as zeros",
					    (void *)(old + index * PAGE_BYTES));
	return munmap(old, bytes) == 0 || torture_fail("remap: munmap: %s", strerror(errno));
}

/* The hole left behind is filled by the slice itself coming back, so areas split and merge. */
static bool move_slice(struct worker *worker)
{
	struct region *region = worker->region;
	uint64_t pages = 1 + random_below(&worker->random, region->pages / 2);
	uint64_t first = random_below(&worker->random, region->pages - pages);
	uint8_t *home = region_page(region, first), *place = somewhere(region->pages * PAGE_BYTES);

	if (place == MAP_FAILED)
		return false;
	if (mremap(home, pages * PAGE_BYTES, pages * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED)
		return remap_failed(region, place);
	for (uint64_t i = 0; i < pages; i += 5) {
		uint32_t version = region->versions[first + i];
		int wrong = pattern_find_wrong(place + i * PAGE_BYTES, region->id, first + i, version);
		char text[160];

		if (wrong < 0)
			continue;
		pattern_describe(place + i * PAGE_BYTES, text, sizeof(text));
		return torture_fail("WRONG remap page %llu, moved to %p, byte %d: expected version %u, found %s",
				    (unsigned long long)(first + i), (void *)(place + i * PAGE_BYTES), wrong, version, text);
	}
	if (mremap(place, pages * PAGE_BYTES, pages * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, home) == MAP_FAILED)
		return remap_failed(region, place);
	munmap(place, region->pages * PAGE_BYTES);
	return true;
}

static bool remap_once(struct worker *worker)
{
	struct region *region = worker->region;
	uint64_t least = region->max_pages / 2;

	switch (random_below(&worker->random, 5)) {
	case 0:
		return resize(region, least + random_below(&worker->random, least));
	case 1:
		return resize(region, least - random_below(&worker->random, least / 2));
	case 2:
		return move_whole(region, 0);
	case 3:
		return move_whole(region, MREMAP_DONTUNMAP);
	default:
		return move_slice(worker);
	}
}

static bool remap_round(struct worker *worker)
{
	struct region *region = worker->region;

	pthread_rwlock_rdlock(&world);
	pthread_mutex_lock(&places);
	bool good = remap_once(worker);
	pthread_mutex_unlock(&places);
	good = good && region_check_some(region, 0, region->pages, 64, &worker->random);
	for (unsigned i = 0; i < 64 && good; i++)
		region_write(region, random_below(&worker->random, region->pages));
	pthread_rwlock_unlock(&world);
	return good;
}

static bool unmap_and_map(struct region *region, uint64_t first, uint64_t pages)
{
	void *start = region_page(region, first);

	if (munmap(start, pages * PAGE_BYTES))
		return torture_fail("unmap: munmap: %s", strerror(errno));
	if (mmap(start, pages * PAGE_BYTES, READ_WRITE, PRIVATE | MAP_FIXED_NOREPLACE, -1, 0) != start)
		return torture_fail("unmap: mmap: %s", strerror(errno));
	region_set_zero(region, first, pages);
	return true;
}

static bool unmap_round(struct worker *worker)
{
	struct region *region = worker->region;
	uint64_t pages = 1 + random_below(&worker->random, worker->round % 16 ? region->pages / 4 : region->pages);
	uint64_t first = random_below(&worker->random, region->pages - pages + 1);

	pthread_rwlock_rdlock(&world);
	pthread_mutex_lock(&places);
	bool good = unmap_and_map(region, first, pages);
	pthread_mutex_unlock(&places);
	good = good && region_check_some(region, first, pages, 32, &worker->random) &&
	       region_check_some(region, 0, region->pages, 32, &worker->random);
	for (uint64_t i = 0; i < pages && good; i++)
		if (random_next(&worker->random) & 1)
			region_write(region, first + i);
	pthread_rwlock_unlock(&world);
	return good;
}

const struct kind kind_remap = { .name = "remap",
				 .what = "mremap: grow, shrink, move, slices, MREMAP_DONTUNMAP",
				 .share_percent = 6,
				 .start = remap_start,
				 .round = remap_round };
const struct kind kind_unmap = { .name = "unmap",
				 .what = "munmap, then mmap at the same place: must read as zeros",
				 .share_percent = 4,
				 .start = remap_start,
				 .round = unmap_round };
