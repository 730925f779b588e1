#include "sys/written.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/base.h"
#include "sys/uffd_abi.h"

#define REGIONS 256

int written_begin(int uffd)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED };
	return ioctl(uffd, UFFDIO_API, &api) ? -errno : 0;
}

int written_watch(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_register area = { .range = { .start = start, .len = bytes }, .mode = UFFDIO_REGISTER_MODE_WP };
	return ioctl(uffd, UFFDIO_REGISTER, &area) ? -errno : 0;
}

ssize_t written_scan(int pagemap_fd, uint64_t *start, uint64_t end, bool protect, uint64_t max_pages, struct written_run *runs,
		     size_t room)
{
	/* Guards (MADV_GUARD_INSTALL, Linux 6.13) look as if they were swapped out; they hold nothing and cannot be read. */
	static uint64_t guards = PAGE_IS_GUARD;
	struct page_region regions[REGIONS];
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.flags = protect ? PM_SCAN_WP_MATCHING : 0,
		.start = *start,
		.end = end,
		.vec = (uint64_t)(uintptr_t)regions,
		.vec_len = DP_MIN(room, (size_t)REGIONS),
		.max_pages = max_pages,
		.category_inverted = guards,
		.category_mask = guards,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN | PAGE_IS_PFNZERO,
	};
	long found;
	while ((found = ioctl(pagemap_fd, PAGEMAP_SCAN, &scan)) < 0) {
		if (errno == EINVAL && guards) /* a kernel before 6.15 has no word for them */
			guards = scan.category_inverted = scan.category_mask = 0;
		else if (errno != EINTR)
			return -errno;
	}
	for (long i = 0; i < found; i++) {
		bool watched = regions[i].categories & PAGE_IS_WPALLOWED;
		runs[i] = (struct written_run){ .start = regions[i].start,
						.end = regions[i].end,
						.watched = watched,
						.written = !watched || regions[i].categories & PAGE_IS_WRITTEN,
						.zero = regions[i].categories & PAGE_IS_PFNZERO };
	}
	*start = scan.walk_end > *start ? scan.walk_end : end;
	return found;
}

/* ---- can it be done here? ---- */

struct tried {
	uint64_t watched, written;
};

static int look(int pagemap, uint64_t at, bool protect, struct tried *tried)
{
	struct written_run runs[4];
	ssize_t found = written_scan(pagemap, &at, at + 2 * PAGE_BYTES, protect, 0, runs, ARRAY_LENGTH(runs));
	*tried = (struct tried){ 0 };
	for (ssize_t i = 0; i < found; i++) {
		tried->watched += (runs[i].end - runs[i].start) / PAGE_BYTES * runs[i].watched;
		tried->written += (runs[i].end - runs[i].start) / PAGE_BYTES * runs[i].written;
	}
	return found < 0 ? (int)found : 0;
}

/* Linux before 6.14 (and stable kernels without the fix) leaves the mark of a protected page on it when mremap takes it
 * elsewhere: there it would look as if it had not been written since it was sent, though it never was sent from there. */
static int try_it(char *memory, int uffd, int pagemap, struct dp_err *err)
{
	struct tried before, after, moved;
	uint64_t at = (uint64_t)(uintptr_t)memory;
	memory[0] = memory[PAGE_BYTES] = 1;
	int ret = written_begin(uffd);
	if (!ret)
		ret = written_watch(uffd, at, 2 * PAGE_BYTES);
	if (!ret)
		ret = look(pagemap, at, true, &before);
	memory[0] = 2;
	if (!ret)
		ret = look(pagemap, at, false, &after);
	if (ret || before.watched != 2 || before.written != 2 || after.written != 1)
		return dp_fail(err, EOPNOTSUPP, "this kernel cannot tell which pages were written (Linux 6.7 or later can)");
	char *place = memory + 4 * PAGE_BYTES;
	if (mremap(memory, 2 * PAGE_BYTES, 2 * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place)
		return dp_fail_errno(err, errno, "try which pages were written");
	at = (uint64_t)(uintptr_t)place;
	ret = written_watch(uffd, at, 2 * PAGE_BYTES);
	if (!ret)
		ret = look(pagemap, at, false, &moved);
	if (ret || moved.written != 2)
		return dp_fail(
			err, EOPNOTSUPP,
			"this kernel forgets which pages were written when a program moves them (fixed in Linux 6.14)");
	return 0;
}

int written_supported(struct dp_err *err)
{
	const size_t bytes = 8 * PAGE_BYTES;
	cleanup_fd int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	cleanup_fd int uffd = (int)syscall(SYS_userfaultfd, WRITTEN_UFFD_FLAGS);
	if (pagemap < 0 || uffd < 0)
		return dp_fail_errno(err, EOPNOTSUPP, "make a userfaultfd of this process");
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return dp_fail_errno(err, errno, "try which pages were written");
	madvise(memory, bytes, MADV_NOHUGEPAGE);
	int ret = try_it(memory, uffd, pagemap, err);
	munmap(memory, bytes);
	return ret;
}
