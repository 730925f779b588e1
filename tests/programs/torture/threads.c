/* Many threads read and write the pages of one region at random, each page under its lock. */
#include "torture.h"

#define STRIPES 1024
#define PAGES_PER_ROUND 64

static pthread_mutex_t page_locks[STRIPES];
static struct region *common;

static bool threads_start(struct worker *worker)
{
	if (!common) {
		common = region_new("threads", worker_pages(worker), worker_pages(worker), 0);
		if (!common)
			return false;
		for (unsigned i = 0; i < STRIPES; i++)
			pthread_mutex_init(&page_locks[i], NULL);
		region_write_all(common);
	}
	worker->region = common;
	return true;
}

static bool threads_round(struct worker *worker)
{
	bool good = true;

	for (unsigned i = 0; i < PAGES_PER_ROUND && good; i++) {
		uint64_t choice = random_next(&worker->random);
		uint64_t index = (choice >> 8) % common->pages;

		/* half of the accesses go to an eighth of the pages, so that there is a hot set to keep */
		if (choice & 1)
			index /= 8;
		pthread_rwlock_rdlock(&world);
		pthread_mutex_lock(&page_locks[index % STRIPES]);
		good = region_check(common, index);
		if (good && choice & 2)
			region_write(common, index);
		pthread_mutex_unlock(&page_locks[index % STRIPES]);
		pthread_rwlock_unlock(&world);
	}
	return good;
}

const struct kind kind_threads = {.name = "threads", .what = "threads that read and write patterned pages at random",
				  .share_percent = 50, .start = threads_start, .round = threads_round};
