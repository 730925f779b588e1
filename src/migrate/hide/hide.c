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
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint/hide_record.h"
#include "migrate/hide/known.h"
#include "migrate/hide/shadow.h"
#include "sys/uffd_abi.h"

struct area {
	uint64_t start, end;
};

static int records_fd = -1, fds_fd = -1, before_fd = -1, mode;
static bool stopped; /* a thread of the tree has been */
static int smaps_pid; /* whose areas are here, as CRIU sees it */
static int task_pid;  /* whose memory's descriptors were sent */
static int task_vpid;
static struct area *areas;
static size_t area_count, area_room;

typedef int openat_function(int directory, const char *path, int flags, ...);
typedef int ioctl_function(int fd, unsigned long request, ...);
int ioctl(int fd, unsigned long request, ...); /* as <sys/ioctl.h> says */
#define SHOWN __attribute__((visibility("default"))) /* what CRIU is to find here */
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
	if (!orders || sscanf(orders, "%d,%d,%d,%d,%d", &records_fd, &fds_fd, &life_fd, &mode, &before_fd) < 4)
		records_fd = -1;
	unsetenv(HIDE_ENVIRONMENT);
	fcntl(records_fd, F_SETFD, FD_CLOEXEC);
	fcntl(fds_fd, F_SETFD, FD_CLOEXEC);
	fcntl(life_fd, F_SETFD, FD_CLOEXEC);
	fcntl(before_fd, F_SETFD, FD_CLOEXEC);
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

/* From the text of smaps: private anonymous areas, by each one's first line and its flags, which come last. */
static int parse_areas(char *text)
{
	struct area area = { 0, 0 };
	bool wanted = false;
	int failed = 0;
	area_count = 0;
	for (char *line = text, *end; *line && !failed; line = end + 1) {
		struct area next;
		end = strchr(line, '\n');
		if (!end)
			return -1;
		*end = 0;
		int kind = parse_area(line, &next);
		if (kind >= 0) {
			area = next;
			wanted = kind;
		} else if (wanted && !strncmp(line, "VmFlags:", 8) && !flags_forbid(line)) {
			failed = add_area(area.start, area.end);
		}
		*end = '\n';
	}
	return failed;
}

static int read_vpid(int pid)
{
	char path[64], line[256];
	int vpid = -1;
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	FILE *file = fopen(path, "re");
	while (file && vpid < 0 && fgets(line, sizeof(line), file))
		if (!strncmp(line, "NSpid:", 6))
			vpid = atoi(strrchr(line, '\t') + 1);
	if (file)
		fclose(file);
	return vpid;
}

/* ---- descriptors for the offerer ---- */

static int send_message(const struct hide_fds *body, const int *fds, size_t count)
{
	char control[CMSG_SPACE(HIDE_FDS * sizeof(int))] = { 0 };
	struct iovec data = { (void *)(uintptr_t)body, sizeof(*body) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), fds, count * sizeof(int));
	/* Nobody reads while CRIU is at work: were the socket full, waiting would be for ever. */
	return sendmsg(fds_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(*body) ? 0 : -1;
}

static int open_of(int pid, const char *name)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* Of process `pid`, which is task `vpid` or its shadow. */
static int send_fds(int pid, int vpid)
{
	struct hide_fds body = { .vpid = vpid };
	int fds[HIDE_FDS] = { open_of(pid, "mem"), open_of(pid, "pagemap"), open_of(pid, "smaps") };
	bool sent = fds[0] >= 0 && fds[1] >= 0 && fds[2] >= 0 && send_message(&body, fds, HIDE_FDS) == 0;
	for (int i = 0; i < HIDE_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return sent ? 0 : -1;
}

/* ---- smaps, of which the kernel looks at every page: not read, or read once ---- */

static char *read_all(int fd, size_t *length)
{
	size_t room = 1 << 18, used = 0;
	char *text = malloc(room);
	for (ssize_t got = 1; text && got > 0; used += (size_t)got) {
		if (room - used < 1 << 16) {
			char *wider = realloc(text, room *= 2);
			if (!wider)
				free(text);
			text = wider;
		}
		got = text ? read(fd, text + used, room - used - 1) : -1;
		if (got < 0) {
			free(text);
			return NULL;
		}
	}
	if (text)
		text[used] = 0;
	*length = used;
	return text;
}

/* smaps of the task whose directory this is, as far as it is known without a look at every page; NULL. */
static char *make_smaps(int directory, openat_function *real)
{
	static char *before;
	size_t length;
	int fd = before_fd >= 0 && !before ? before_fd : -1;
	if (fd >= 0 && lseek(fd, 0, SEEK_SET) == 0)
		before = read_all(fd, &length);
	int maps_fd = before ? real(directory, "maps", O_RDONLY | O_CLOEXEC) : -1;
	char *maps = maps_fd >= 0 ? read_all(maps_fd, &length) : NULL;
	char *text = maps ? known_smaps(before, task_vpid, maps) : NULL;
	if (maps_fd >= 0)
		close(maps_fd);
	free(maps);
	return text;
}

/* What CRIU reads of a task's smaps it gets from a copy, in `fd`'s place. */
static int copy_smaps(int fd, int directory, int pid, openat_function *real)
{
	size_t length = 0;
	smaps_pid = 0;
	task_vpid = read_vpid(pid);
	struct hide_fds body = { .vpid = task_vpid, .known_areas = 1 };
	char *known = task_vpid > 0 ? make_smaps(directory, real) : NULL, *text = known ? known : read_all(fd, &length);
	length = known ? strlen(known) : length;
	int copy = text && task_vpid > 0 ? memfd_create("smaps", MFD_CLOEXEC) : -1;
	bool good = copy >= 0 && write(copy, text, length) == (ssize_t)length && lseek(copy, 0, SEEK_SET) == 0 &&
		    (!known || send_message(&body, &copy, 1) == 0) && !parse_areas(text);
	free(text);
	close(fd);
	if (good) {
		smaps_pid = pid;
		return copy;
	}
	if (copy >= 0)
		close(copy);
	errno = EIO;
	return -1;
}

/* N of /proc/N, by a descriptor of the directory; 0. */
static int pid_of_directory(int fd)
{
	char link[64], name[256];
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, name, sizeof(name) - 1);
	name[length > 0 ? length : 0] = 0;
	const char *slash = strrchr(name, '/');
	return slash ? atoi(slash + 1) : 0;
}

SHOWN int openat64(int directory, const char *path, int flags, ...)
{
	static openat_function *real;
	va_list list;
	va_start(list, flags);
	mode_t rights = va_arg(list, mode_t);
	va_end(list);
	if (!real)
		*(void **)&real = next_function("openat64");
	int fd = real(directory, path, flags, rights);
	int pid = fd >= 0 && records_fd >= 0 && stopped && !strcmp(path, "smaps") ? pid_of_directory(directory) : 0;
	return pid > 0 && pid != getpid() ? copy_smaps(fd, directory, pid, real) : fd;
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
	if (pid != smaps_pid) {
		errno = EIO; /* CRIU reads smaps first */
		return -1;
	}
	if (pid != task_pid && mode != HIDE_COPY && send_fds(pid, task_vpid)) {
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

SHOWN int ioctl(int fd, unsigned long request, ...)
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

static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int note_stop(void)
{
	stopped = true;
	return tell(HIDE_STOPPED, now_ns(), 0);
}

/* ---- shadows ---- */

static struct {
	int *done; /* processes that have one, or could not */
	size_t count;
	bool wanted;
} shadows;

static int process_of(int thread)
{
	char path[64], line[256];
	int process = 0;
	snprintf(path, sizeof(path), "/proc/%d/status", thread);
	FILE *file = fopen(path, "re");
	while (file && !process && fgets(line, sizeof(line), file))
		sscanf(line, "Tgid: %d", &process);
	if (file)
		fclose(file);
	return process;
}

static bool is_done(int process)
{
	for (size_t i = 0; i < shadows.count; i++)
		if (shadows.done[i] == process)
			return true;
	return false;
}

/* Was the offerer's word that all is well? Before that CRIU lets go of nothing but what it failed with. */
static bool shadows_wanted(void)
{
	char word = 0;
	if (!shadows.wanted && recv(fds_fd, &word, 1, MSG_DONTWAIT) == 1)
		shadows.wanted = word == HIDE_GO[0];
	return shadows.wanted;
}

/* A thread is let go of, its process's first one by a shadow's way. 1: it was; 0: CRIU is to do it. */
static int let_go(int thread)
{
	int process = process_of(thread);
	if (process <= 0 || is_done(process))
		return 0;
	int *wider = realloc(shadows.done, (shadows.count + 1) * sizeof(*wider));
	struct hide_fds failure = { .vpid = read_vpid(process), .error = -ENOMEM };
	if (wider) {
		shadows.done = wider;
		shadows.done[shadows.count++] = process;
		failure.error = shadow_make(thread);
		if (failure.error > 0)
			failure.error = send_fds(failure.error, failure.vpid) ? -EIO : 0;
	}
	if (failure.error < 0)
		send(fds_fd, &failure, sizeof(failure), MSG_DONTWAIT | MSG_NOSIGNAL);
	return wider ? 1 : 0;
}

/* CRIU ends. With it the shadows do: not before they are not needed any more, or nobody is left who needs them. */
static void __attribute__((destructor)) keep_shadows(void)
{
	char ignored;
	const struct hide_fds all = { .vpid = HIDE_ALL_LET_GO };
	if (mode != HIDE_COPY || !shadows.count)
		return;
	if (send(fds_fd, &all, sizeof(all), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		while (recv(fds_fd, &ignored, 1, 0) > 0 || errno == EINTR)
			;
}

SHOWN long ptrace(enum __ptrace_request request, ...)
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
	bool last = mode == HIDE_COPY && records_fd >= 0 && stopped && request == PTRACE_DETACH && shadows_wanted();
	long result = last && let_go(pid) ? 0 : real(request, pid, address, data);
	if (last)
		tell(HIDE_LET_GO, now_ns(), 0);
	return result;
}
