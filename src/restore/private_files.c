#include "restore/private_files.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>

#include "base/base.h"
#include "sys/proc.h"

#define MOUNTS_LIMIT (8u << 20)

struct mounted {
	char place[PATH_MAX], type[64];
	bool read_only;
};

struct stage {
	const char *path; /* a tmpfs is mounted there */
	char root[PATH_MAX]; /* where the new root is put together */
	char lower[PATH_MAX]; /* a name for what is mounted, without characters that mean something in options */
	unsigned count;
	struct dp_err *err;
};

bool private_files_holds(const char *type)
{
	static const char *const made_up[] = { "proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "mqueue", "debugfs", "tracefs",
					       "securityfs", "bpf", "pstore", "efivarfs", "configfs", "hugetlbfs", "binfmt_misc",
					       "fusectl", "rpc_pipefs", "nsfs", "autofs", "selinuxfs", "ramfs", "resctrl" };
	for (size_t i = 0; i < ARRAY_LENGTH(made_up); i++)
		if (!strcmp(type, made_up[i]))
			return false;
	return true;
}

/* ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS [FIELDS] - TYPE SOURCE OPTIONS */
static bool read_line(char *line, struct mounted *mounted)
{
	char *dash = strstr(line, " - ");
	char *word[6], *rest = line;
	for (size_t i = 0; i < ARRAY_LENGTH(word); i++)
		if (!(word[i] = strsep(&rest, " ")))
			return false;
	if (!dash || sscanf(dash + 3, "%63s", mounted->type) != 1)
		return false;
	proc_unescape(word[4]);
	if (strlen(word[4]) >= sizeof(mounted->place))
		return false;
	strcpy(mounted->place, word[4]);
	mounted->read_only = !strncmp(word[5], "ro", 2);
	return true;
}

/* ---- one mount ---- */

static int make_directory(struct stage *stage, const char *kind, char path[static PATH_MAX])
{
	snprintf(path, PATH_MAX, "%s/%s%u", stage->path, kind, stage->count);
	return mkdir(path, 0755) ? -errno : 0;
}

/* The new root of a file system has the rights of the old one. */
static int put_overlay(struct stage *stage, const char *place, const char *target)
{
	char upper[PATH_MAX], work[PATH_MAX];
	struct stat info;
	stage->count++;
	if (stat(place, &info) || make_directory(stage, "upper", upper) || make_directory(stage, "work", work) ||
	    chown(upper, info.st_uid, info.st_gid) || chmod(upper, info.st_mode & 07777))
		return -errno;
	/* its own name may have a comma or a colon in it */
	if (mount(place, stage->lower, NULL, MS_BIND, NULL))
		return -errno;
	cleanup_free char *options = format_text("lowerdir=%s,upperdir=%s,workdir=%s", stage->lower, upper, work);
	int ret = options && !mount("overlay", target, "overlay", 0, options) ? 0 : -errno;
	umount2(stage->lower, MNT_DETACH);
	return ret;
}

/* A remount may only add to what the host forbids there. */
static int put_bind(const char *place, const char *target, bool read_only)
{
	struct statvfs info;
	if (mount(place, target, NULL, MS_BIND, NULL) || (read_only && statvfs(target, &info)))
		return -errno;
	unsigned long flags = 0;
	if (read_only)
		flags = (info.f_flag & ST_NOSUID ? MS_NOSUID : 0) | (info.f_flag & ST_NODEV ? MS_NODEV : 0) |
			(info.f_flag & ST_NOEXEC ? MS_NOEXEC : 0);
	return read_only && mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL) ? -errno : 0;
}

static int put(struct stage *stage, const struct mounted *mounted)
{
	char target[PATH_MAX];
	struct stat info;
	size_t length = strlen(stage->path);
	bool own = !strncmp(mounted->place, stage->path, length) && (!mounted->place[length] || mounted->place[length] == '/');
	if (own || (size_t)snprintf(target, sizeof(target), "%s%s", stage->root, mounted->place) >= sizeof(target))
		return own ? 0 : dp_fail(stage->err, ENAMETOOLONG, "%s: shorter, please", mounted->place);
	if (stat(mounted->place, &info) || stat(target, &info))
		return 0; /* another is mounted over it */
	bool holds = private_files_holds(mounted->type);
	int ret = holds && !mounted->read_only && S_ISDIR(info.st_mode) ? put_overlay(stage, mounted->place, target) : -EINVAL;
	if (ret)
		ret = put_bind(mounted->place, target, holds);
	return ret ? dp_fail_errno(stage->err, -ret, "mount what is at %s", mounted->place) : 0;
}

/* ---- all of them ---- */

static int put_all(struct stage *stage, char *mounts)
{
	char *rest = mounts;
	int ret = 0;
	for (char *line = strsep(&rest, "\n"); line && !ret; line = strsep(&rest, "\n")) {
		struct mounted mounted;
		if (read_line(line, &mounted) && strcmp(mounted.place, "/") != 0)
			ret = put(stage, &mounted);
	}
	return ret;
}

static int put_kept(const struct stage *stage, const char *keep)
{
	char real[PATH_MAX], target[PATH_MAX];
	if (!realpath(keep, real) || (size_t)snprintf(target, sizeof(target), "%s%s", stage->root, real) >= sizeof(target) ||
	    mount(real, target, NULL, MS_BIND, NULL))
		return dp_fail_errno(stage->err, errno, "mount %s", keep);
	return 0;
}

/* pivot_root(2): "." twice; the old root is left, and with it what nobody uses any more. */
static int go_there(const struct stage *stage)
{
	if (chdir(stage->root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		return dp_fail_errno(stage->err, errno, "change to a root of its own");
	return 0;
}

int private_files_enter(const char *path, const char *keep, struct dp_err *err)
{
	struct stage stage = { .path = path, .err = err };
	cleanup_free char *mounts = NULL;
	if (io_read_file("/proc/self/mountinfo", &mounts, MOUNTS_LIMIT) < 0)
		return dp_fail(err, EIO, "read what is mounted");
	snprintf(stage.root, sizeof(stage.root), "%s/root", path);
	snprintf(stage.lower, sizeof(stage.lower), "%s/lower", path);
	if (strpbrk(path, ",:\\") || strlen(stage.root) > PATH_MAX - 32)
		return dp_fail(err, EINVAL, "%s has a character in its name that an overlay cannot have", path);
	if (mount("distri-proc", path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700") || mkdir(stage.root, 0755) || mkdir(stage.lower, 0700))
		return dp_fail_errno(err, errno, "make room for private files at %s", path);
	int ret = put_overlay(&stage, "/", stage.root);
	if (ret)
		return dp_fail_errno(err, -ret, "put an overlay over the root file system");
	ret = put_all(&stage, mounts);
	if (!ret)
		ret = put_kept(&stage, keep);
	return ret ? ret : go_there(&stage);
}
