#include "sys/unseen.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/base.h"

#define MOUNTS_LIMIT 256
#define MOUNTINFO_LIMIT ((size_t)16 << 20)

struct mounts {
	int ids[MOUNTS_LIMIT]; /* of file systems that read into a program's memory */
	size_t count;
};

/* proc_pid_mountinfo(5): the id comes first, the type behind " - ". More than fit are as good as none that is harmless. */
static int find_mounts(pid_t pid, struct mounts *mounts)
{
	char path[64];
	cleanup_free char *text = NULL;
	mounts->count = 0;
	snprintf(path, sizeof(path), "/proc/%d/mountinfo", pid);
	ssize_t got = io_read_file(path, &text, MOUNTINFO_LIMIT);
	if (got < 0)
		return (int)got;
	char *rest = text, *line;
	while ((line = strsep(&rest, "\n"))) {
		const char *type = strstr(line, " - ");
		if (!type || (strncmp(type + 3, "fuse", 4) && strncmp(type + 3, "9p", 2) && strncmp(type + 3, "virtiofs", 8)))
			continue;
		if (mounts->count == MOUNTS_LIMIT)
			return -E2BIG;
		mounts->ids[mounts->count++] = atoi(line);
	}
	return 0;
}

static long field(const char *text, const char *name, int base)
{
	const char *line = strstr(text, name);
	return line ? strtol(line + strlen(name), NULL, base) : -1;
}

/* A file: by how it is open, and where it lies. */
static const char *look_at_file(pid_t pid, const char *number, const struct mounts *mounts)
{
	char path[300];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%s", pid, number);
	if (io_read_file(path, &text, 65536) < 0)
		return NULL; /* closed meanwhile */
	long flags = field(text, "flags:", 8), mount = field(text, "mnt_id:", 10);
	if (flags >= 0 && flags & O_DIRECT)
		return "has a file open for direct I/O";
	for (size_t i = 0; i < mounts->count; i++)
		if (mounts->ids[i] == mount)
			return "has a file of a FUSE, 9P or virtio file system open";
	return NULL;
}

static const char *look_at(pid_t pid, const char *number, const char *target, const struct mounts *mounts)
{
	static const char *const prefixes[][2] = { { "anon_inode:[io_uring]", "uses io_uring" },
						   { "anon_inode:[userfaultfd]", "has a userfaultfd of its own" },
						   { "/dev/infiniband/", "uses RDMA" },
						   { "/dev/vfio/", "uses VFIO" } };
	for (size_t i = 0; i < ARRAY_LENGTH(prefixes); i++)
		if (!strncmp(target, prefixes[i][0], strlen(prefixes[i][0])))
			return prefixes[i][1];
	return target[0] == '/' ? look_at_file(pid, number, mounts) : NULL;
}

int unseen_writes(pid_t pid, char *why, size_t size)
{
	char path[64], target[64];
	struct mounts mounts;
	int ret = find_mounts(pid, &mounts);
	if (ret)
		return ret;
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	DIR *directory = opendir(path);
	if (!directory)
		return errno == ENOENT ? -ESRCH : -errno;
	const char *found = NULL;
	int more = 0;
	for (struct dirent *entry; !found && (more = io_next_entry(directory, &entry)) > 0;) {
		ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof(target) - 1);
		if (length <= 0)
			continue;
		target[length] = 0;
		found = look_at(pid, entry->d_name, target, &mounts);
	}
	closedir(directory);
	if (found)
		snprintf(why, size, "%s", found);
	return found ? 1 : more == -ENOENT ? -ESRCH : more;
}
