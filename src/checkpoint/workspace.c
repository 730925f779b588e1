#include "checkpoint/workspace.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/base.h"
#include "instance/instance.h"

#define PRIVATE_PREFIX "distri-proc-runtime-"

static int set_option(int context, const char *key, const char *value)
{
	return (int)syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, key, value, 0);
}

/* A mounted but nowhere attached tmpfs. Linux 5.2. */
static int open_detached_tmpfs(void)
{
	cleanup_fd int context = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
	if (context < 0 || set_option(context, "mode", "0700") < 0 || set_option(context, "source", "distri-proc") < 0 ||
	    syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	int fd = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

static const char *temporary_directory(void)
{
	const char *directory = getenv("TMPDIR");
	return directory && directory[0] == '/' ? directory : "/tmp";
}

static int open_private_directory(struct workspace *workspace, const char *prefix, struct dp_err *err)
{
	snprintf(workspace->directory, sizeof(workspace->directory), "%s/%sXXXXXX", temporary_directory(), prefix);
	if (!mkdtemp(workspace->directory)) {
		int code = errno;
		dp_fail_errno(err, code, "make a directory like %s", workspace->directory);
		workspace->directory[0] = 0;
		return -code;
	}
	int fd = open(workspace->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? dp_fail_errno(err, errno, "open %s", workspace->directory) : fd;
}

/* What a process that was killed has left. Whoever lives holds a lock; the minute is for one that is about to. */
static void sweep_private(void)
{
	DIR *directory = opendir(temporary_directory());
	for (struct dirent *entry = directory ? readdir(directory) : NULL; entry; entry = readdir(directory)) {
		struct stat info;
		if (strncmp(entry->d_name, PRIVATE_PREFIX, strlen(PRIVATE_PREFIX)))
			continue;
		cleanup_fd int fd = openat(dirfd(directory), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &info) || info.st_uid != geteuid() || time(NULL) - info.st_mtime < 60 ||
		    flock(fd, LOCK_EX | LOCK_NB))
			continue;
		cleanup_free char *path = format_text("%s/%s", temporary_directory(), entry->d_name);
		if (path)
			remove_tree(path);
	}
	if (directory)
		closedir(directory);
}

int workspace_open_private(struct workspace *workspace, struct dp_err *err)
{
	*workspace = (struct workspace){.images_fd = -1, .work_fd = -1};
	sweep_private();
	workspace->root_fd = open_private_directory(workspace, PRIVATE_PREFIX, err);
	if (workspace->root_fd >= 0) {
		flock(workspace->root_fd, LOCK_EX | LOCK_NB); /* nobody else knows of it yet */
		return 0;
	}
	int rc = workspace->root_fd;
	workspace_close(workspace);
	return rc;
}

static int make_directory(const struct workspace *workspace, const char *name)
{
	if (mkdirat(workspace->root_fd, name, 0700) < 0)
		return -errno;
	int fd = openat(workspace->root_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int workspace_open(struct workspace *workspace, struct dp_err *err)
{
	*workspace = (struct workspace){.images_fd = -1, .work_fd = -1};
	workspace->root_fd = open_detached_tmpfs();
	if (workspace->root_fd < 0)
		workspace->root_fd = open_private_directory(workspace, "distri-proc-", err);
	if (workspace->root_fd < 0) {
		int rc = workspace->root_fd;
		workspace_close(workspace);
		return rc;
	}
	snprintf(workspace->path, sizeof(workspace->path), "/proc/self/fd/%d", workspace->root_fd);
	workspace->images_fd = make_directory(workspace, "images");
	workspace->work_fd = make_directory(workspace, "work");
	if (workspace->images_fd < 0 || workspace->work_fd < 0) {
		int code = -DP_MIN(workspace->images_fd, workspace->work_fd);
		workspace_close(workspace);
		return dp_fail_errno(err, code, "make the directories for CRIU's images");
	}
	return 0;
}

void workspace_close(struct workspace *workspace)
{
	dp_close_fd(&workspace->work_fd);
	dp_close_fd(&workspace->images_fd);
	dp_close_fd(&workspace->root_fd);
	if (workspace->directory[0])
		remove_tree(workspace->directory);
	*workspace = (struct workspace){.root_fd = -1, .images_fd = -1, .work_fd = -1};
}

void workspace_keep_log(const struct workspace *workspace, const char *file, int pid, char *kept, size_t size)
{
	kept[0] = 0;
	cleanup_free char *log = NULL;
	ssize_t length = io_read_file_at(workspace->work_fd, file, &log, (size_t)256 << 20);
	if (length <= 0)
		return;
	cleanup_free char *logs = format_text("%s/logs", instance_root(NULL));
	if (!logs)
		return;
	mkdir(instance_root(NULL), 0700);
	mkdir(logs, 0700);
	const char *places[] = {logs, temporary_directory()};
	for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
		snprintf(kept, size, "%s/checkpoint-%d-%lld.log", places[i], pid, (long long)time(NULL));
		/* a name in /tmp that somebody laid ready is not followed */
		cleanup_fd int fd = open(kept, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (fd >= 0 && io_write_full(fd, log, (size_t)length) == 0)
			return;
		kept[0] = 0;
	}
}
