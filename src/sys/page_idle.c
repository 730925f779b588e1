#include "sys/page_idle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"

#define ENTRIES 512u /* of /proc/PID/pagemap at once */
#define ENTRY_PRESENT (1ull << 63)
#define ENTRY_FRAME ((1ull << 55) - 1)

int page_idle_open(void)
{
	int fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int mark_frame(int bitmap_fd, uint64_t frame)
{
	uint64_t word = 1ull << (frame % 64); /* zeros change nothing */
	return pwrite(bitmap_fd, &word, sizeof(word), (off_t)(frame / 64 * 8)) == sizeof(word) ? 0 : -errno;
}

static int frame_is_idle(int bitmap_fd, uint64_t frame)
{
	uint64_t word;
	if (pread(bitmap_fd, &word, sizeof(word), (off_t)(frame / 64 * 8)) != sizeof(word))
		return -errno;
	return word >> (frame % 64) & 1;
}

/* Goes over the present pages; used NULL: marks them. */
static int walk(int bitmap_fd, pid_t pid, uint64_t start, uint64_t end, bool *used)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	cleanup_fd int pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	uint64_t pages = (end - start) / PAGE_BYTES;
	for (uint64_t at = 0; at < pages; at += ENTRIES) {
		uint64_t entry[ENTRIES];
		size_t count = DP_MIN(ENTRIES, pages - at);
		ssize_t got = pread(pagemap_fd, entry, count * 8, (off_t)((start / PAGE_BYTES + at) * 8));
		if (got < 0)
			return -errno;
		for (size_t i = 0; i < (size_t)got / 8; i++) {
			uint64_t frame = entry[i] & ENTRY_FRAME;
			if (!(entry[i] & ENTRY_PRESENT) || !frame) /* frame 0: we may not know it */
				continue;
			int ret = used ? frame_is_idle(bitmap_fd, frame) : mark_frame(bitmap_fd, frame);
			if (ret < 0 && ret != -ENXIO) /* a frame beyond the bitmap is no memory */
				return ret;
			if (used)
				used[at + i] = ret == 0;
		}
	}
	return 0;
}

int page_idle_mark(int bitmap_fd, pid_t pid, uint64_t start, uint64_t end)
{
	return walk(bitmap_fd, pid, start, end, NULL);
}

int page_idle_read(int bitmap_fd, pid_t pid, uint64_t start, uint64_t end, bool *used)
{
	memset(used, 0, (end - start) / PAGE_BYTES * sizeof(*used));
	return walk(bitmap_fd, pid, start, end, used);
}
