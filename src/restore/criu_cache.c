#include "restore/criu_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "base/base.h"
#include "base/log.h"
#include "sys/criu.h"

#define CRIU_RUN_DIRECTORY "/run"
#define CRIU_CACHE "/run/criu.kdat"
#define KEPT_DIRECTORY "/dev/shm/distri-proc"

static bool is_tmpfs(const char *path)
{
	struct statfs info;
	return !statfs(path, &info) && info.f_type == TMPFS_MAGIC;
}

/* In a child: `criu check` with a /run in memory is enough for CRIU to write its cache there. */
static int make_in_child(const char *criu_path, const char *path)
{
	cleanup_free char *content = NULL;
	cleanup_free char *fresh = format_text("%s.%d", path, (int)getpid());
	if (!fresh || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) ||
	    mount("tmpfs", CRIU_RUN_DIRECTORY, "tmpfs", 0, NULL))
		return 1;
	criu_run_quietly(criu_path, NULL, (const char *const[]){ criu_path, "check", "--feature", "uffd", NULL });
	ssize_t length = io_read_file(CRIU_CACHE, &content, 1u << 20);
	if (length <= 0 || io_write_file(fresh, content, (size_t)length, 0600))
		return 1;
	return rename(fresh, path) ? 1 : 0;
}

const char *criu_cache_directory(void)
{
	bool usable = is_tmpfs("/dev/shm") && (!mkdir(KEPT_DIRECTORY, 0700) || errno == EEXIST);
	return usable ? KEPT_DIRECTORY : NULL;
}

void criu_cache_prepare(const char *criu_path, char *path, size_t size)
{
	struct stat info, kept;
	*path = 0;
	if (is_tmpfs(CRIU_RUN_DIRECTORY) || !criu_cache_directory() || stat(criu_path, &info))
		return;
	/* /dev/shm does not outlive a boot, and CRIU itself refuses the cache of another build. */
	snprintf(path, size, KEPT_DIRECTORY "/.criu-%llx-%llx.kdat", (unsigned long long)info.st_mtim.tv_sec,
		 (unsigned long long)info.st_size);
	if (!lstat(path, &kept) && S_ISREG(kept.st_mode) && kept.st_uid == geteuid() && kept.st_size > 0)
		return;
	int status = -1;
	pid_t child = fork();
	if (child == 0)
		_exit(make_in_child(criu_path, path));
	if (child < 0 || waitpid(child, &status, 0) != child || status) {
		log_debug("criu's cache of kernel features could not be made; criu will probe at every start");
		*path = 0;
	}
}

int criu_cache_lend(const char *path)
{
	if (!path || !*path)
		return -1;
	int lock_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (lock_fd < 0)
		return -1;
	cleanup_fd int below = flock(lock_fd, LOCK_SH) ? -1 : open(CRIU_CACHE, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (below < 0 || mount(path, CRIU_CACHE, NULL, MS_BIND, NULL)) {
		close(lock_fd);
		return -1;
	}
	return lock_fd;
}

void criu_cache_take_back(const char *path, int lock_fd)
{
	struct stat below;
	if (lock_fd < 0)
		return;
	umount2(CRIU_CACHE, MNT_DETACH);
	/* The last one out removes the empty file; anything else there is somebody's own. */
	if (!flock(lock_fd, LOCK_EX | LOCK_NB) && !lstat(CRIU_CACHE, &below) && S_ISREG(below.st_mode) && below.st_size == 0)
		unlink(CRIU_CACHE);
	close(lock_fd);
}
