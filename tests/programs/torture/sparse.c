/* Ranges far larger than what is in them: 64 GiB with a few pages, 2.5 GiB and more that go as a whole, thousands of areas. */
#include "torture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define TOUCHED 512

/* A few pages of a huge range. Their right content needs no version table of the range's size: one entry per touched page. */
struct sparse {
	uint8_t *base;
	uint64_t bytes;
	uint32_t id;
	struct {
		uint64_t index;
		uint32_t version;
	} touched[TOUCHED];
};

static bool sparse_check(const char *name, struct sparse *sparse)
{
	for (unsigned i = 0; i < TOUCHED; i++) {
		const uint8_t *page = sparse->base + sparse->touched[i].index * PAGE_BYTES;
		int wrong = pattern_find_wrong(page, sparse->id, sparse->touched[i].index, sparse->touched[i].version);
		char text[160];

		if (wrong < 0)
			continue;
		pattern_describe(page, text, sizeof(text));
		return torture_fail("WRONG %s page %llu at %p byte %d: expected version %u, found %s", name,
				    (unsigned long long)sparse->touched[i].index, (const void *)page, wrong,
				    sparse->touched[i].version, text);
	}
	return true;
}

static void sparse_write(struct sparse *sparse, unsigned i)
{
	uint64_t index = sparse->touched[i].index;
	uint32_t old = sparse->touched[i].version++;

	pattern_write(sparse->base + index * PAGE_BYTES, sparse->id, index, old, old + 1);
}

static void sparse_all_zero(struct sparse *sparse)
{
	for (unsigned i = 0; i < TOUCHED; i++)
		sparse->touched[i].version = 0;
}

static void *sparse_map(uint64_t bytes)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static struct sparse *sparse_new(struct worker *worker, uint64_t bytes, uint32_t id)
{
	struct sparse *sparse = calloc(1, sizeof(*sparse));

	if (!sparse || (sparse->base = sparse_map(bytes)) == MAP_FAILED) {
		torture_fail("%s: mmap %llu bytes: %s", worker->kind->name, (unsigned long long)bytes, strerror(errno));
		return NULL;
	}
	sparse->bytes = bytes;
	sparse->id = id;
	for (unsigned i = 0; i < TOUCHED; i++) { /* one in each part of the range, so none is taken twice */
		uint64_t part = bytes / PAGE_BYTES / TOUCHED;
		sparse->touched[i].index = i * part + random_below(&worker->random, part);
		sparse_write(sparse, i);
	}
	return sparse;
}

static bool sparse_start(struct worker *worker)
{
	worker->state = sparse_new(worker, 64ull << 30, 1001);
	return worker->state;
}

static bool sparse_round(struct worker *worker)
{
	struct sparse *sparse = worker->state;

	if (!sparse_check("sparse", sparse))
		return false;
	if (worker->round % 32 == 31) {
		if (madvise(sparse->base, sparse->bytes, MADV_DONTNEED))
			return torture_fail("sparse: madvise: %s", strerror(errno));
		sparse_all_zero(sparse);
	}
	for (unsigned i = 0; i < TOUCHED / 4; i++)
		sparse_write(sparse, (unsigned)random_below(&worker->random, TOUCHED));
	return true;
}

static bool big_start(struct worker *worker)
{
	worker->state = sparse_new(worker, options.big_bytes, 1002);
	return worker->state;
}

static bool big_move(struct sparse *sparse)
{
	uint8_t *fresh = sparse_map(sparse->bytes);

	if (fresh == MAP_FAILED)
		return torture_fail("big: mmap: %s", strerror(errno));
	if (mremap(sparse->base, sparse->bytes, sparse->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, fresh) == MAP_FAILED) {
		if (errno != EFAULT) /* see remap_failed */
			return torture_fail("big: mremap: %s", strerror(errno));
		munmap(sparse->base, sparse->bytes);
		munmap(fresh, sparse->bytes);
		fresh = sparse_map(sparse->bytes);
		sparse_all_zero(sparse);
	}
	sparse->base = fresh;
	return fresh != MAP_FAILED || torture_fail("big: mmap: %s", strerror(errno));
}

/* The whole range, 2 GiB and more, in one call: given up, unmapped, or moved. */
static bool big_change(struct sparse *sparse, unsigned way)
{
	switch (way) {
	case 0:
		sparse_all_zero(sparse);
		return madvise(sparse->base, sparse->bytes, MADV_DONTNEED) == 0 ||
		       torture_fail("big: madvise: %s", strerror(errno));
	case 2:
		sparse_all_zero(sparse);
		munmap(sparse->base, sparse->bytes);
		sparse->base = sparse_map(sparse->bytes);
		return sparse->base != MAP_FAILED || torture_fail("big: mmap: %s", strerror(errno));
	default:
		return big_move(sparse);
	}
}

static bool big_round(struct worker *worker)
{
	struct sparse *sparse = worker->state;

	if (!sparse_check("big", sparse))
		return false;
	pthread_mutex_lock(&places);
	bool good = big_change(sparse, worker->round % 4);
	pthread_mutex_unlock(&places);
	if (!good || !sparse_check("big", sparse))
		return false;
	for (unsigned i = 0; i < TOUCHED / 2; i++)
		sparse_write(sparse, (unsigned)random_below(&worker->random, TOUCHED));
	return true;
}

/* Areas of two pages: every other one is left out of core dumps or, some, read-only, so the kernel cannot merge them. */
#define AREA_PAGES 2
static bool area_is_read_only(uint64_t area)
{
	return area % 64 == 1;
}

static bool areas_start(struct worker *worker)
{
	worker->region = region_new("areas", (uint64_t)options.areas * AREA_PAGES, (uint64_t)options.areas * AREA_PAGES, 0);
	if (!worker->region)
		return false;
	region_write_all(worker->region);
	for (uint64_t area = 1; area < options.areas; area += 2) {
		void *pages = region_page(worker->region, area * AREA_PAGES);
		if (area_is_read_only(area) ? mprotect(pages, AREA_PAGES * PAGE_BYTES, PROT_READ)
					    : madvise(pages, AREA_PAGES * PAGE_BYTES, MADV_DONTDUMP))
			return torture_fail("areas: split off area %llu: %s (raise vm.max_map_count)", (unsigned long long)area,
					    strerror(errno));
	}
	return true;
}

static bool areas_round(struct worker *worker)
{
	bool good = true;

	for (unsigned i = 0; i < 64 && good; i++) {
		uint64_t area = random_below(&worker->random, options.areas);
		uint64_t index = area * AREA_PAGES + (i & 1);

		pthread_rwlock_rdlock(&world);
		good = region_check(worker->region, index);
		if (good && !area_is_read_only(area))
			region_write(worker->region, index);
		pthread_rwlock_unlock(&world);
	}
	return good;
}

const struct kind kind_sparse = {.name = "sparse", .what = "64 GiB without reserve, a few pages in it", .start = sparse_start,
				 .round = sparse_round};
const struct kind kind_big = {.name = "big", .what = "a range of 2.5 GiB or more, given up, unmapped and moved whole (--big)",
			      .on_demand = true, .start = big_start, .round = big_round};
const struct kind kind_areas = {.name = "areas", .what = "thousands of separate areas (--areas N)", .on_demand = true,
				.start = areas_start, .round = areas_round};
