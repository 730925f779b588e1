#include "checkpoint/hidden.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/base.h"
#include "checkpoint/hide_record.h"
#include "image/images.h"

#define RECORDS_LIMIT (UINT64_C(1) << 30)
#define SOCKET_BUFFER_BYTES (4 << 20)

int hidden_library(char *path, size_t size, struct dp_err *err)
{
	static const char *const places[] = { "src/migrate", "../libexec/distri-proc" };
	char program[1024];
	ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	program[length > 0 ? length : 0] = 0;
	char *slash = strrchr(program, '/');
	if (slash)
		*slash = 0;
	if (strpbrk(program, " :")) /* what LD_PRELOAD takes for the end of a name */
		return dp_fail(err, EINVAL, "this program's directory (%s) has a space or a colon in its name: install it elsewhere",
			       program);
	for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
		snprintf(path, size, "%s/%s/libdistri-proc-hide.so", program, places[i]);
		if (access(path, R_OK) == 0)
			return 0;
	}
	return dp_fail(err, ENOPKG,
		       "libdistri-proc-hide.so is neither beside this program nor in libexec/distri-proc: install it anew");
}

int hidden_open(struct hidden *hidden, struct dp_err *err)
{
	int size = SOCKET_BUFFER_BYTES;
	*hidden = (struct hidden){ .records_fd = -1, .fds = { -1, -1 } };
	int ret = hidden_library(hidden->library, sizeof(hidden->library), err);
	if (ret)
		return ret;
	hidden->records_fd = memfd_create("distri-proc-hidden", MFD_CLOEXEC);
	if (hidden->records_fd < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, hidden->fds)) {
		ret = dp_fail_errno(err, errno, "make what criu's library tells us by");
		hidden_close(hidden);
		return ret;
	}
	/* it also sends descriptors, which nobody here needs: they wait there until the end */
	if (setsockopt(hidden->fds[1], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
		setsockopt(hidden->fds[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	snprintf(hidden->environment, sizeof(hidden->environment), "%d,%d,-1,0", hidden->records_fd, hidden->fds[1]);
	return 0;
}

void hidden_close(struct hidden *hidden)
{
	dp_close_fd(&hidden->records_fd);
	dp_close_fd(&hidden->fds[0]);
	dp_close_fd(&hidden->fds[1]);
	hidden->records_fd = hidden->fds[0] = hidden->fds[1] = -1;
}

int hidden_environment(const struct hidden *hidden)
{
	const char *others = getenv("LD_PRELOAD");
	cleanup_free char *preload = others ? format_text("%s:%s", hidden->library, others) : strdup(hidden->library);
	if (!preload || setenv("LD_PRELOAD", preload, 1) || setenv(HIDE_ENVIRONMENT, hidden->environment, 1))
		return -ENOMEM;
	fcntl(hidden->records_fd, F_SETFD, 0);
	fcntl(hidden->fds[1], F_SETFD, 0);
	return 0;
}

/* ---- what was hidden ---- */

static int compare_ranges(const void *left, const void *right)
{
	const struct page_range *a = left, *b = right;
	return a->pgno < b->pgno ? -1 : a->pgno > b->pgno;
}

/* CRIU may ask twice for the same. */
static int add_sorted(struct page_list *pages, struct page_range *ranges, size_t count)
{
	uint64_t end = 0;
	int ret = 0;
	qsort(ranges, count, sizeof(*ranges), compare_ranges);
	for (size_t i = 0; i < count && !ret; i++) {
		uint64_t from = DP_MAX(ranges[i].pgno, end), to = ranges[i].pgno + ranges[i].pages;
		if (to > from)
			ret = page_list_add(pages, from, to - from);
		end = DP_MAX(end, to);
	}
	return ret;
}

static int take_records(const struct hide_record *records, size_t count, uint32_t vpid, struct page_list *pages)
{
	cleanup_free struct page_range *ranges = calloc(count, sizeof(*ranges));
	size_t used = 0;
	bool stopped = false;
	if (!ranges)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++) {
		const struct hide_record *record = &records[i];
		stopped |= record->kind == HIDE_STOPPED;
		if (record->kind != HIDE_RANGE || record->vpid != (int32_t)vpid)
			continue;
		if (record->start % PAGE_BYTES || record->end % PAGE_BYTES || record->start >= record->end)
			return -EIO;
		ranges[used++] = (struct page_range){ record->start >> PAGE_SHIFT, (record->end - record->start) >> PAGE_SHIFT };
	}
	return stopped ? add_sorted(pages, ranges, used) : -EIO;
}

static int read_records(const struct hidden *hidden, uint32_t vpid, struct page_list *pages)
{
	struct stat info;
	if (fstat(hidden->records_fd, &info))
		return -errno;
	size_t length = (size_t)info.st_size;
	if (!length || length > RECORDS_LIMIT || length % sizeof(struct hide_record))
		return -EIO;
	void *records = mmap(NULL, length, PROT_READ, MAP_SHARED, hidden->records_fd, 0);
	if (records == MAP_FAILED)
		return -errno;
	int ret = take_records(records, length / sizeof(struct hide_record), vpid, pages);
	munmap(records, length);
	return ret;
}

int hidden_pages(const struct hidden *hidden, uint32_t vpid, int images_fd, struct page_list *pages, struct dp_err *err)
{
	struct image_vma *vmas;
	struct page_list lazy = { 0 };
	size_t count;
	uint64_t at = 0;
	int ret = read_records(hidden, vpid, pages);
	if (ret)
		return dp_fail_errno(err, -ret, "take over what was hidden from criu (is it statically linked?)");
	ret = images_read_mm(images_fd, (int)vpid, &vmas, &count, err);
	if (ret < 0)
		return ret;
	ret = inherit_within_areas(pages, vmas, count, &lazy, &at);
	free(vmas);
	page_list_done(pages);
	*pages = lazy;
	if (ret == -ENOTSUP)
		return dp_fail(err, ENOTSUP, "task %u has memory at 0x%llx that changed its kind while it was frozen: try again",
			       vpid, (unsigned long long)at << PAGE_SHIFT);
	return ret < 0 ? dp_fail_errno(err, -ret, "page map") : 0;
}
