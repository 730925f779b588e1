#include "sys/proc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "base/base.h"
#include "sys/uffd_abi.h"

static FILE *open_proc(pid_t pid, const char *name)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return fopen(path, "re");
}

static int gone(void)
{
	return errno == ENOENT || errno == ESRCH ? -ESRCH : -errno;
}

static bool parse_area(const char *line, struct proc_area *area)
{
	char permissions[8];
	unsigned long inode;
	int name_at = 0;
	memset(area, 0, sizeof(*area));
	if (sscanf(line, "%lx-%lx %7s %*s %*s %lu %n", &area->start, &area->end, permissions, &inode, &name_at) < 4)
		return false;
	area->read = permissions[0] == 'r';
	area->write = permissions[1] == 'w';
	area->execute = permissions[2] == 'x';
	area->shared = permissions[3] == 's';
	const char *name = name_at ? line + name_at : "";
	size_t length = strcspn(name, "\n");
	memcpy(area->name, name, DP_MIN(length, sizeof(area->name) - 1));
	bool plain = !length || !strncmp(name, "[heap]", 6) || !strncmp(name, "[stack]", 7) || !strncmp(name, "[anon:", 6);
	area->anonymous = !area->shared && inode == 0 && plain;
	return true;
}

int proc_each_area(pid_t pid, int (*each)(void *context, const struct proc_area *area), void *context)
{
	cleanup_file FILE *file = open_proc(pid, "maps");
	if (!file)
		return gone();
	char buffer[65536]; /* one read per many lines: the list is a snapshot only within a read */
	setvbuf(file, buffer, _IOFBF, sizeof(buffer));
	cleanup_free char *line = NULL;
	size_t room = 0;
	int ret = 0;
	while (!ret && getline(&line, &room, file) > 0) {
		struct proc_area area;
		if (parse_area(line, &area))
			ret = each(context, &area);
	}
	return ret;
}

int proc_read_statm(int statm_fd, struct proc_statm *statm)
{
	char text[128];
	ssize_t got = pread(statm_fd, text, sizeof(text) - 1, 0);
	if (got <= 0)
		return got < 0 ? gone() : -ESRCH;
	text[got] = 0;
	if (sscanf(text, "%lu %lu %lu", &statm->size_pages, &statm->resident_pages, &statm->shared_pages) != 3)
		return -ESRCH;
	return 0;
}

int proc_read_pss(pid_t pid, struct proc_pss *pss)
{
	cleanup_file FILE *file = open_proc(pid, "smaps_rollup");
	if (!file)
		return gone();
	memset(pss, 0, sizeof(*pss));
	char line[256];
	bool seen = false;
	while (fgets(line, sizeof(line), file)) {
		unsigned long kib;
		if (sscanf(line, "Pss: %lu kB", &kib) == 1) {
			pss->pss_bytes = (uint64_t)kib * 1024;
			seen = true;
		} else if (sscanf(line, "Anonymous: %lu kB", &kib) == 1) {
			pss->anonymous_bytes = (uint64_t)kib * 1024;
		}
	}
	return seen ? 0 : -ESRCH;
}

int proc_scan_present(int pagemap_fd, uint64_t start, uint64_t end,
		      void (*each)(void *context, uint64_t start, uint64_t end), void *context)
{
	struct page_region regions[256];
	while (start < end) {
		struct pm_scan_arg scan = {
			.size = sizeof(scan),
			.start = start,
			.end = end,
			.vec = (uint64_t)(uintptr_t)regions,
			.vec_len = ARRAY_LENGTH(regions),
			.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
			.return_mask = PAGE_IS_PRESENT,
		};
		long found = ioctl(pagemap_fd, PAGEMAP_SCAN, &scan);
		if (found < 0)
			return -errno;
		for (long i = 0; i < found; i++)
			each(context, regions[i].start, regions[i].end);
		if (scan.walk_end <= start)
			break;
		start = scan.walk_end;
	}
	return 0;
}

struct pid_list {
	pid_t *pids;
	size_t count, room;
};

static int pid_list_add(struct pid_list *list, pid_t pid)
{
	if (list->count == list->room) {
		size_t room = list->room ? list->room * 2 : 64;
		pid_t *larger = realloc(list->pids, room * sizeof(pid_t));
		if (!larger)
			return -ENOMEM;
		list->pids = larger;
		list->room = room;
	}
	list->pids[list->count++] = pid;
	return 0;
}

/* Children hang on threads, so every thread's list is read. */
static int add_children(struct pid_list *list, pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return gone();
	char entries[4096];
	long got = 0;
	int ret = 0;
	while (!ret && (got = syscall(SYS_getdents64, fd, entries, sizeof(entries))) > 0) {
		for (long at = 0; at < got && !ret;) {
			struct {
				uint64_t inode;
				int64_t offset;
				unsigned short length;
				unsigned char type;
				char name[];
			} *entry = (void *)(entries + at);
			at += entry->length;
			if (entry->name[0] == '.')
				continue;
			char name[300];
			snprintf(name, sizeof(name), "%s/children", entry->name);
			cleanup_free char *text = NULL;
			ssize_t length = io_read_file_at(fd, name, &text, 1 << 22);
			if (length == -ENOENT || length == -ESRCH)
				continue; /* the thread has ended */
			ret = length < 0 ? (int)length : 0;
			for (char *next = text, *end; !ret && next; next = end) {
				long child = strtol(next, &end, 10);
				if (end == next)
					break;
				ret = pid_list_add(list, (pid_t)child);
			}
		}
	}
	if (!ret && got < 0)
		ret = gone();
	close(fd);
	return ret;
}

ssize_t proc_tree(pid_t pid, pid_t **pids)
{
	struct pid_list list = { 0 };
	int ret = pid_list_add(&list, pid);
	for (size_t i = 0; i < list.count && !ret; i++) {
		ret = add_children(&list, list.pids[i]);
		if (ret == -ESRCH && i > 0)
			ret = 0; /* ended meanwhile */
	}
	if (ret) {
		free(list.pids);
		return ret;
	}
	*pids = list.pids;
	return (ssize_t)list.count;
}

int proc_pidfd_open(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	return fd < 0 ? -errno : fd;
}

int proc_pidfd_getfd(int pidfd, int number)
{
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
	return fd < 0 ? -errno : fd;
}

int proc_pidfd_kill(int pidfd, int signal_number)
{
	return syscall(SYS_pidfd_send_signal, pidfd, signal_number, NULL, 0) ? -errno : 0;
}

pid_t proc_pidfd_pid(int pidfd)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	cleanup_free char *text = NULL;
	ssize_t got = io_read_file(path, &text, 65536);
	if (got < 0)
		return (pid_t)got;
	const char *line = strstr(text, "\nPid:");
	if (!line)
		return -EBADF;
	int pid = 0;
	sscanf(line, "\nPid: %d", &pid);
	return pid < 0 ? -ESRCH : pid;
}

int proc_same_memory(pid_t first, pid_t second)
{
	long order = syscall(SYS_kcmp, first, second, KCMP_VM, 0, 0);
	return order < 0 ? -errno : order == 0;
}

bool proc_has_memory(pid_t thread)
{
	char path[64];
	struct proc_statm statm;
	snprintf(path, sizeof(path), "/proc/%d/statm", thread);
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 && !proc_read_statm(fd, &statm) && statm.size_pages > 0;
}

void proc_unescape(char *text)
{
	char *to = text;
	for (const char *at = text; *at; at++) {
		if (at[0] == '\\' && at[1] >= '0' && at[1] <= '3' && at[2] && at[3]) {
			*to++ = (char)((at[1] - '0') * 64 + (at[2] - '0') * 8 + (at[3] - '0'));
			at += 3;
		} else {
			*to++ = *at;
		}
	}
	*to = 0;
}

int proc_each_thread(pid_t pid, int (*each)(void *context, pid_t thread), void *context)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	DIR *tasks = opendir(path);
	if (!tasks)
		return gone();
	struct dirent *entry;
	int ret = 0, more = 0;
	while (!ret && (more = io_next_entry(tasks, &entry)) > 0) {
		pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);
		if (thread > 0)
			ret = each(context, thread);
	}
	closedir(tasks);
	return ret || more >= 0 ? ret : more == -ENOENT ? -ESRCH : more;
}

static int with_memory(void *context, pid_t thread)
{
	(void)context;
	return proc_has_memory(thread) ? thread : 0;
}

pid_t proc_live_thread(pid_t pid)
{
	return proc_has_memory(pid) ? pid : DP_MAX(proc_each_thread(pid, with_memory, NULL), 0);
}

bool proc_pidfd_has_ended(int pidfd)
{
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };
	return poll(&ended, 1, 0) > 0;
}

static ssize_t read_stat(pid_t pid, char **text)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	ssize_t got = io_read_file(path, text, 65536);
	return got == -ENOENT ? -ESRCH : got;
}

int proc_read_minor_faults(pid_t pid, uint64_t *faults)
{
	cleanup_free char *text = NULL;
	ssize_t got = read_stat(pid, &text);
	const char *end = got > 0 ? strrchr(text, ')') : NULL;
	if (!end || sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %*u %lu", faults) != 1)
		return got < 0 ? (int)got : -ESRCH;
	return 0;
}

int proc_state(pid_t pid)
{
	cleanup_free char *text = NULL;
	ssize_t got = read_stat(pid, &text);
	if (got < 0)
		return (int)got;
	const char *end = strrchr(text, ')');
	return end && end[1] == ' ' ? end[2] : -ESRCH;
}

static ssize_t read_of_thread(pid_t pid, pid_t thread, const char *name, char *text, size_t room)
{
	char path[80];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", pid, thread, name);
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, room - 1);

	text[DP_MAX(got, 0)] = 0;
	return got > 0 ? got : got == 0 ? -ESRCH : gone();
}

int proc_thread_call(pid_t pid, pid_t thread, long *call, uint64_t *run_ns)
{
	char text[256];

	ssize_t got = read_of_thread(pid, thread, "syscall", text, sizeof(text));
	if (got < 0)
		return (int)got;
	*call = strncmp(text, "running", 7) ? strtol(text, NULL, 10) : PROC_RUNNING;
	got = read_of_thread(pid, thread, "schedstat", text, sizeof(text));
	if (got < 0)
		return (int)got;
	*run_ns = strtoull(text, NULL, 10);
	return 0;
}
