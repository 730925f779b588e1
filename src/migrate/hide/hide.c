/* hide: preloaded into `criu dump`, keeps it from seeing the pages that a lazy restore can fetch later, so that it does not read
 * them. It tells the offerer (record.h) what it hid, and how the memory can be read.
 *
 * CRIU asks the kernel which pages there are (PAGEMAP_SCAN on /proc/PID/pagemap, once or more for each area). Such a scan is made
 * in pieces here, without the private anonymous areas. What CRIU itself would not restore lazily is never hidden: locked areas
 * and huge pages; the offerer compares with CRIU's own images that it was so. Where anything goes wrong the scan fails, so the
 * dump does, and the tree goes on.
 * Nothing of ours is linked in; the library is built without sanitizers. Thread rule: CRIU has one thread. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "migrate/hide/record.h"
#include "sys/uffd_abi.h"

struct area {
	uint64_t start, end;
};

static int records_fd = -1, fds_fd = -1, mode;
static bool stopped; /* a thread of the tree has been */
static int task_pid; /* whose areas are here, as CRIU sees it */
static int task_vpid;
static struct area *areas;
static size_t area_count, area_room;

typedef int ioctl_function(int fd, unsigned long request, ...);
int ioctl(int fd, unsigned long request, ...); /* as <sys/ioctl.h> says */
typedef long ptrace_function(enum __ptrace_request request, ...);

static void *next_function(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);
	if (!found)
		abort(); /* before anything was stopped */
	return found;
}

/* Programs that CRIU starts get neither the library nor its descriptors. */
static void __attribute__((constructor)) take_orders(void)
{
	const char *orders = getenv(HIDE_ENVIRONMENT);
	int life_fd = -1;
	unsetenv("LD_PRELOAD");
	if (!orders || sscanf(orders, "%d,%d,%d,%d", &records_fd, &fds_fd, &life_fd, &mode) != 4)
		records_fd = -1;
	unsetenv(HIDE_ENVIRONMENT);
	fcntl(records_fd, F_SETFD, FD_CLOEXEC);
	fcntl(fds_fd, F_SETFD, FD_CLOEXEC);
	fcntl(life_fd, F_SETFD, FD_CLOEXEC);
}

static int tell(uint32_t kind, uint64_t start, uint64_t end)
{
	const struct hide_record record = { .kind = kind, .vpid = task_vpid, .start = start, .end = end };
	if (write(records_fd, &record, sizeof(record)) == sizeof(record))
		return 0;
	errno = EIO;
	return -1;
}

/* ---- what may be hidden ---- */

static int add_area(uint64_t start, uint64_t end)
{
	if (area_count && areas[area_count - 1].end == start) {
		areas[area_count - 1].end = end;
		return 0;
	}
	if (area_count == area_room) {
		size_t room = area_room ? area_room * 2 : 256;
		struct area *wider = realloc(areas, room * sizeof(*areas));
		if (!wider)
			return -1;
		areas = wider;
		area_room = room;
	}
	areas[area_count++] = (struct area){ start, end };
	return 0;
}

/* A line of maps (or the first of smaps' for an area): 1 private anonymous, 0 not, -1 no such line. */
static int parse_area(const char *line, struct area *area)
{
	char rights[8];
	unsigned long long start, end, inode;
	int name = 0;
	if (sscanf(line, "%llx-%llx %7s %*x %*s %llu %n", &start, &end, rights, &inode, &name) != 4)
		return -1;
	*area = (struct area){ start, end };
	return rights[3] == 'p' && inode == 0 && strncmp(line + name, "[v", 2) != 0 && line[name] != '/';
}

/* Flags that forbid it: locked, huge pages; and where the pages are read from a fork, what that has not got: what is not copied
 * (dc) or wiped on fork (wf). */
static bool flags_forbid(const char *flags)
{
	bool fork_has_not = strstr(flags, " dc") || strstr(flags, " wf");
	return strstr(flags, " lo") || strstr(flags, " ht") || (mode == HIDE_COPY && fork_has_not);
}

/* smaps looks at every page, maps at none: it is read only where it must be. */
static bool has_locked(int pid)
{
	char path[64], line[256];
	unsigned long locked = 1;
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	FILE *file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		sscanf(line, "VmLck: %lu", &locked);
		if (!strncmp(line, "NSpid:", 6))
			task_vpid = atoi(strrchr(line, '\t') + 1);
	}
	if (file)
		fclose(file);
	return locked > 0;
}

static int read_areas(int pid)
{
	char path[64], line[4600];
	struct area area = { 0, 0 };
	bool detailed, wanted = false;
	area_count = 0;
	task_vpid = 0;
	detailed = has_locked(pid) || mode == HIDE_COPY;
	snprintf(path, sizeof(path), "/proc/%d/%s", pid, detailed ? "smaps" : "maps");
	FILE *file = fopen(path, "re");
	int failed = !file || task_vpid <= 0;
	while (!failed && fgets(line, sizeof(line), file)) {
		struct area next;
		int kind = parse_area(line, &next);
		if (kind >= 0) {
			area = next;
			wanted = kind;
		}
		if (wanted && (detailed ? !strncmp(line, "VmFlags:", 8) && !flags_forbid(line) : kind >= 0))
			failed = add_area(area.start, area.end);
	}
	failed = failed || ferror(file);
	if (file)
		fclose(file);
	return failed ? -1 : 0;
}

/* ---- the memory's descriptors ---- */

static int send_fds(int pid, int pagemap_fd)
{
	char path[64], control[CMSG_SPACE(2 * sizeof(int))] = { 0 };
	struct hide_fds body = { .vpid = task_vpid };
	struct iovec data = { &body, sizeof(body) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	int fds[2] = { open(path, O_RDONLY | O_CLOEXEC), pagemap_fd };
	if (fds[0] < 0)
		return -1;
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(header), fds, sizeof(fds));
	/* Nobody reads while CRIU is at work: were the socket full, waiting would be for ever. */
	ssize_t sent = sendmsg(fds_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	close(fds[0]);
	return sent == sizeof(body) ? 0 : -1;
}

/* Whose pages are these? 1: one of the tree, whose areas are read; 0: not; -1. */
static int know_task(int fd)
{
	char link[64], name[256];
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, name, sizeof(name) - 1);
	name[length > 0 ? length : 0] = 0;
	char *end = strstr(name, "/pagemap"), *number = end;
	while (number && number > name && number[-1] >= '0' && number[-1] <= '9')
		number--;
	int pid = number && number < end ? atoi(number) : 0;
	if (pid <= 0 || pid == getpid())
		return 0;
	if (pid == task_pid)
		return 1;
	task_pid = 0;
	if (read_areas(pid) || send_fds(pid, fd)) {
		errno = EIO;
		return -1;
	}
	task_pid = pid;
	return 1;
}

/* ---- CRIU's calls ---- */

static int scan_without(ioctl_function *real, int fd, struct pm_scan_arg *scan)
{
	uint64_t at = scan->start;
	long found = 0;
	size_t next = 0;
	while (at < scan->end) {
		while (next < area_count && areas[next].end <= at)
			next++;
		const struct area *hidden = next < area_count ? &areas[next] : NULL;
		if (hidden && hidden->start <= at) {
			uint64_t stop = hidden->end < scan->end ? hidden->end : scan->end;
			if (tell(HIDE_RANGE, at, stop))
				return -1;
			at = stop;
			continue;
		}
		struct pm_scan_arg part = *scan;
		part.start = at;
		part.end = hidden && hidden->start < scan->end ? hidden->start : scan->end;
		part.vec += (uint64_t)found * sizeof(struct page_region);
		part.vec_len -= (uint64_t)found;
		if (part.vec_len == 0)
			break;
		int got = real(fd, PAGEMAP_SCAN, &part);
		if (got < 0)
			return -1;
		found += got;
		at = part.walk_end;
		if (at < part.end)
			break; /* no more room: CRIU goes on from here */
	}
	scan->walk_end = at;
	return (int)found;
}

int ioctl(int fd, unsigned long request, ...)
{
	static ioctl_function *real;
	va_list list;
	va_start(list, request);
	void *argument = va_arg(list, void *);
	va_end(list);
	if (!real)
		*(void **)&real = next_function("ioctl");
	struct pm_scan_arg *scan = argument;
	/* Those that look for pages; CRIU looks for guards, too. A limit it does not set. */
	bool for_pages = records_fd >= 0 && stopped && request == PAGEMAP_SCAN &&
			 (scan->category_anyof_mask & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED)) && !scan->max_pages && scan->vec_len;
	int ours = for_pages ? know_task(fd) : 0;
	if (ours < 0)
		return -1;
	return ours ? scan_without(real, fd, scan) : real(fd, request, argument);
}

static int note_stop(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	stopped = true;
	return tell(HIDE_STOPPED, (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec, 0);
}

long ptrace(enum __ptrace_request request, ...)
{
	static ptrace_function *real;
	va_list list;
	va_start(list, request);
	pid_t pid = va_arg(list, pid_t);
	void *address = va_arg(list, void *), *data = va_arg(list, void *);
	va_end(list);
	if (!real)
		*(void **)&real = next_function("ptrace");
	if (records_fd >= 0 && !stopped && request == PTRACE_INTERRUPT && note_stop())
		return -1;
	return real(request, pid, address, data);
}
