/* Anonymous shared memory: parent and child write in turn, each must see what the other wrote. */
#include "torture.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SHARED_PAGES 256

struct together {
	struct region region;
	uint32_t versions[SHARED_PAGES];
};

static bool shared_start(struct worker *worker)
{
	uint64_t pages = SHARED_PAGES + (sizeof(struct together) + PAGE_BYTES - 1) / PAGE_BYTES;
	uint8_t *base = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (base == MAP_FAILED)
		return torture_fail("shared: mmap: %s", strerror(errno));
	/* the versions are shared too */
	struct together *together = (struct together *)(base + SHARED_PAGES * PAGE_BYTES);
	together->region = (struct region){.name = "shared", .id = 1000, .base = base, .pages = SHARED_PAGES,
					   .max_pages = SHARED_PAGES, .versions = together->versions};
	worker->region = &together->region;
	region_write_all(worker->region);
	return true;
}

static bool shared_turn(struct worker *worker, uint64_t first)
{
	if (!region_check_all(worker->region))
		return false;
	for (uint64_t index = first; index < SHARED_PAGES; index += 2)
		region_write(worker->region, index);
	return true;
}

static bool shared_round(struct worker *worker)
{
	int pid = fork();

	if (pid == 0)
		_exit(shared_turn(worker, 0) ? 0 : 1);
	if (!child_wait(pid, "shared: child"))
		return false;
	usleep(10000);
	return shared_turn(worker, 1);
}

const struct kind kind_shared = {.name = "shared", .what = "anonymous shared memory, written by parent and child in turn",
				 .start = shared_start, .round = shared_round};
