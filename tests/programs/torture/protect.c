/* mprotect to PROT_READ and PROT_NONE and back; forbidden accesses must fault, and the content must survive. */
#include "torture.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static bool protect_start(struct worker *worker)
{
	worker->region = region_new("protect", worker_pages(worker), worker_pages(worker), 0);
	if (!worker->region)
		return false;
	region_write_all(worker->region);
	return true;
}

static void read_word(void *context)
{
	(void)*(volatile uint64_t *)context;
}

static void write_word(void *context)
{
	*(volatile uint64_t *)context = 1;
}

static bool protect(struct region *region, uint64_t first, uint64_t pages, int protection)
{
	if (mprotect(region_page(region, first), pages * PAGE_BYTES, protection))
		return torture_fail("protect: mprotect: %s", strerror(errno));
	return true;
}

static bool protect_slice(struct worker *worker, uint64_t first, uint64_t pages)
{
	struct region *region = worker->region;
	uint8_t *page = region_page(region, first + random_below(&worker->random, pages));

	if (!protect(region, first, pages, PROT_READ) || !region_check_some(region, first, pages, 16, &worker->random) ||
	    !fault_expected(write_word, page, page, page + PAGE_BYTES) || !protect(region, first, pages, PROT_NONE) ||
	    !fault_expected(read_word, page, page, page + PAGE_BYTES) ||
	    !fault_expected(write_word, page, page, page + PAGE_BYTES))
		return false;
	/* half of the time by way of PROT_READ, so that pages are seen right after PROT_NONE */
	if (worker->round & 1 &&
	    (!protect(region, first, pages, PROT_READ) || !region_check_some(region, first, pages, 16, &worker->random)))
		return false;
	return protect(region, first, pages, PROT_READ | PROT_WRITE) &&
	       region_check_some(region, first, pages, 16, &worker->random);
}

static bool protect_round(struct worker *worker)
{
	struct region *region = worker->region;
	uint64_t pages = 1 + random_below(&worker->random, region->pages / 8);
	uint64_t first = random_below(&worker->random, region->pages - pages + 1);

	pthread_rwlock_rdlock(&world);
	bool good = protect_slice(worker, first, pages);
	for (unsigned i = 0; i < 16 && good; i++)
		region_write(region, random_below(&worker->random, region->pages));
	pthread_rwlock_unlock(&world);
	return good;
}

const struct kind kind_protect = { .name = "protect",
				   .what = "mprotect to READ, NONE and back, with the SIGSEGVs that belong to it",
				   .share_percent = 4,
				   .start = protect_start,
				   .round = protect_round };
