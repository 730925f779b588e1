#include "torture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_REGIONS 64

pthread_rwlock_t world;
pthread_mutex_t places = PTHREAD_MUTEX_INITIALIZER;
static struct region regions[MAX_REGIONS];
static bool registered[MAX_REGIONS];
static unsigned region_count;

static struct region *region_add(const char *name, void *base, uint64_t pages, uint64_t max_pages, bool watch)
{
	struct region *region = &regions[region_count];

	if (region_count == MAX_REGIONS) {
		torture_fail("set up %s: more than %d regions", name, MAX_REGIONS);
		return NULL;
	}
	*region = (struct region){.name = name, .id = region_count + 1, .base = base, .pages = pages, .max_pages = max_pages};
	region->versions = calloc(max_pages, sizeof(*region->versions));
	if (!region->versions) {
		torture_fail("set up %s: no memory for %llu versions", name, (unsigned long long)max_pages);
		return NULL;
	}
	registered[region_count++] = watch;
	return region;
}

struct region *region_new(const char *name, uint64_t pages, uint64_t max_pages, int mmap_flags)
{
	void *base = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | mmap_flags, -1, 0);

	if (base == MAP_FAILED) {
		torture_fail("set up %s: mmap %llu pages: %s", name, (unsigned long long)pages, strerror(errno));
		return NULL;
	}
	return region_add(name, base, pages, max_pages, true);
}

struct region *region_wrap(const char *name, void *base, uint64_t pages)
{
	return region_add(name, base, pages, pages, false);
}

static bool region_report(struct region *region, uint64_t index, uint32_t version, int wrong)
{
	char first[160], again[160];
	const uint8_t *page = region_page(region, index);

	pattern_describe(page, first, sizeof(first));
	usleep(20000);
	pattern_describe(page, again, sizeof(again));
	bool heals = pattern_find_wrong(page, region->id, index, version & ~VERSION_FREED) == -1;
	return torture_fail(
		"WRONG %s (region %u) page %llu at %p byte %d: expected version %u%s, found %s; 20 ms later %s (pid %d)",
		region->name, region->id, (unsigned long long)index, (const void *)page, wrong, version & ~VERSION_FREED,
		version & VERSION_FREED ? " or zeros" : "", first, heals ? "right" : again, getpid());
}

bool region_check(struct region *region, uint64_t index)
{
	uint32_t version = region->versions[index];
	const uint8_t *page = region_page(region, index);
	int wrong = pattern_find_wrong(page, region->id, index, version & ~VERSION_FREED);

	if (wrong == -1)
		return true;
	if (version & VERSION_FREED && page_is_zero(page)) {
		region->versions[index] = 0; /* once it was seen as zeros, the old content may not come back */
		return true;
	}
	return region_report(region, index, version, wrong);
}

void region_write(struct region *region, uint64_t index)
{
	uint32_t old = region->versions[index];
	uint32_t version = (old & ~VERSION_FREED) + 1;

	if (old & VERSION_FREED)
		old = 0; /* the body may be gone: write it whole */
	/* a page that must be zeros, written after zeros of unknown origin, is still written: version groups see to it */
	pattern_write(region_page(region, index), region->id, index, old, version);
	region->versions[index] = version;
}

void region_write_all(struct region *region)
{
	for (uint64_t index = 0; index < region->pages; index++)
		region_write(region, index);
}

bool region_check_all(struct region *region)
{
	for (uint64_t index = 0; index < region->pages; index++)
		if (!region_check(region, index))
			return false;
	return true;
}

void region_set_zero(struct region *region, uint64_t first, uint64_t pages)
{
	memset(region->versions + first, 0, pages * sizeof(*region->versions));
}

bool region_check_some(struct region *region, uint64_t first, uint64_t pages, unsigned samples, uint64_t *random)
{
	for (unsigned sample = 0; sample < samples; sample++)
		if (!region_check(region, first + random_below(random, pages)))
			return false;
	return true;
}

bool regions_check_everything(void)
{
	for (unsigned i = 0; i < region_count; i++)
		if (registered[i] && !region_check_all(&regions[i]))
			return false;
	return true;
}
