/* tree_copy: the side that makes the tree the same. Everything here comes from another host (TC1). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "base/base.h"
#include "migrate/tree_copy.h"

#define ANSWER_MS 60000
#define CHUNK_BYTES (256u << 10)
#define FRESH_NAME ".distri-proc-fresh"
#define ATTRIBUTE_BYTES 4096u

int tree_receiver_open(struct tree_receiver *receiver, const char *root, struct dp_err *err)
{
	*receiver = (struct tree_receiver){ .root_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC) };
	return receiver->root_fd < 0 ? dp_fail_errno(err, errno, "open %s", root) : 0;
}

void tree_receiver_close(struct tree_receiver *receiver)
{
	dp_close_fd(&receiver->root_fd);
	receiver->root_fd = -1;
	json_object_put(receiver->seen);
	json_object_put(receiver->needed);
	receiver->seen = receiver->needed = NULL;
}

bool tree_receive_is(json_object *line)
{
	const char *op = line_text(line, "op");
	return op && (!strcmp(op, "dir") || !strcmp(op, "file") || !strcmp(op, "same"));
}

/* ---- names ---- */

static const char *name_of(json_object *entry)
{
	const char *name = line_text(entry, "name");
	bool proper = name && *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..") && strlen(name) < 256;
	return proper ? name : NULL;
}

/* TC1. -errno. */
static int open_directory(const struct tree_receiver *receiver, const char *path)
{
	struct open_how how = { .flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC,
				.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV };
	if (!path || *path == '/')
		return -EBADMSG;
	int fd = (int)syscall(SYS_openat2, receiver->root_fd, *path ? path : ".", &how, sizeof(how));
	return fd < 0 ? -errno : fd;
}

/* A name and all below it. What another file system is mounted on stays, and is an error. */
static int remove_name(int directory, const char *name, unsigned depth)
{
	if (!unlinkat(directory, name, 0) || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	struct open_how how = { .flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
				.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV };
	int fd = depth > 200 ? -1 : (int)syscall(SYS_openat2, directory, name, &how, sizeof(how));
	DIR *list = fd < 0 ? NULL : fdopendir(fd);
	int ret = list ? 0 : -EBUSY;
	for (struct dirent *entry = list ? readdir(list) : NULL; entry && !ret; entry = readdir(list))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			ret = remove_name(dirfd(list), entry->d_name, depth + 1);
	if (list)
		closedir(list);
	return ret ? ret : unlinkat(directory, name, AT_REMOVEDIR) ? -errno : 0;
}

/* ---- what a name is ---- */

static mode_t kind_of(json_object *entry)
{
	static const struct { char letter; mode_t kind; } kinds[] = { { 'f', S_IFREG }, { 'd', S_IFDIR }, { 'l', S_IFLNK },
								      { 'p', S_IFIFO }, { 'c', S_IFCHR }, { 'b', S_IFBLK } };
	const char *type = line_text(entry, "type");
	for (size_t i = 0; type && i < ARRAY_LENGTH(kinds); i++)
		if (type[0] == kinds[i].letter && !type[1])
			return kinds[i].kind;
	return 0;
}

static mode_t mode_of(json_object *entry)
{
	return (mode_t)(line_number(entry, "mode") & 07777);
}

static int set_attribute(int fd, const char *name, const char *hex)
{
	unsigned char value[ATTRIBUTE_BYTES], before[ATTRIBUTE_BYTES];
	size_t length = hex ? strlen(hex) / 2 : 0;
	if (!hex || length > sizeof(value))
		return -EBADMSG;
	for (size_t i = 0; i < length; i++)
		if (sscanf(hex + 2 * i, "%2hhx", &value[i]) != 1)
			return -EBADMSG;
	if (fgetxattr(fd, name, before, sizeof(before)) == (ssize_t)length && !memcmp(before, value, length))
		return 0;
	return fsetxattr(fd, name, value, length, 0) ? -errno : 0;
}

/* Owner before rights, which a change of the owner takes away. */
static int set_owner_and_rights(int fd, json_object *entry)
{
	json_object *attributes;
	struct stat info;
	uid_t uid = (uid_t)line_number(entry, "uid");
	gid_t gid = (gid_t)line_number(entry, "gid");
	if (fstat(fd, &info))
		return -errno;
	if ((info.st_uid != uid || info.st_gid != gid) && fchown(fd, uid, gid))
		return -errno;
	if ((info.st_uid != uid || info.st_gid != gid || (info.st_mode & 07777) != mode_of(entry)) && fchmod(fd, mode_of(entry)))
		return -errno;
	int ret = 0;
	if (json_object_object_get_ex(entry, "attributes", &attributes) && json_object_is_type(attributes, json_type_object)) {
		json_object_object_foreach(attributes, name, value)
			if (!ret)
				ret = set_attribute(fd, name, json_object_get_string(value));
	}
	return ret;
}

static int correct(int directory, const char *name, json_object *entry)
{
	cleanup_fd int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	return fd < 0 ? -errno : set_owner_and_rights(fd, entry);
}

static bool has_content(const struct stat *info, json_object *entry)
{
	int64_t mtime_ns = (int64_t)info->st_mtim.tv_sec * 1000000000 + info->st_mtim.tv_nsec;
	return info->st_size == line_number(entry, "size") && mtime_ns == line_number(entry, "mtime_ns");
}

static int make_link(int directory, const char *name, json_object *entry, bool there)
{
	char target[PATH_MAX];
	const char *wanted = line_text(entry, "target");
	ssize_t length = there ? readlinkat(directory, name, target, sizeof(target) - 1) : -1;
	target[DP_MAX(length, 0)] = 0;
	if (!wanted)
		return -EBADMSG;
	if (length < 0 || strcmp(target, wanted)) {
		int ret = there ? remove_name(directory, name, 0) : 0;
		if (ret || symlinkat(wanted, directory, name))
			return ret ? ret : -errno;
	}
	return fchownat(directory, name, (uid_t)line_number(entry, "uid"), (gid_t)line_number(entry, "gid"), AT_SYMLINK_NOFOLLOW)
		       ? -errno
		       : 0;
}

static int make_node(int directory, const char *name, json_object *entry, mode_t kind, const struct stat *there)
{
	dev_t device = kind == S_IFIFO ? 0 : makedev((unsigned)line_number(entry, "major"), (unsigned)line_number(entry, "minor"));
	if (there && (kind == S_IFIFO || there->st_rdev == device))
		return 0;
	int ret = there ? remove_name(directory, name, 0) : 0;
	if (ret || mknodat(directory, name, kind | mode_of(entry), device) ||
	    fchownat(directory, name, (uid_t)line_number(entry, "uid"), (gid_t)line_number(entry, "gid"), AT_SYMLINK_NOFOLLOW) ||
	    fchmodat(directory, name, mode_of(entry), 0))
		return ret ? ret : -errno;
	return 0;
}

/* Makes it what the entry says, a regular file's content excepted: 1: that is needed. */
static int make_name(int directory, const char *name, json_object *entry)
{
	struct stat info;
	mode_t kind = kind_of(entry);
	bool there = !fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW);
	if (there && (info.st_mode & S_IFMT) != kind) {
		int ret = remove_name(directory, name, 0);
		if (ret)
			return ret;
		there = false;
	}
	switch (kind) {
	case S_IFREG:
		if (!there || !has_content(&info, entry))
			return 1;
		return correct(directory, name, entry);
	case S_IFDIR:
		if (!there && mkdirat(directory, name, 0700))
			return -errno;
		return correct(directory, name, entry);
	case S_IFLNK:
		return make_link(directory, name, entry, there);
	case S_IFIFO:
	case S_IFCHR:
	case S_IFBLK:
		return make_node(directory, name, entry, kind, there ? &info : NULL);
	default:
		return -EBADMSG;
	}
}

/* ---- a directory ---- */

static int remove_others(const struct tree_receiver *receiver, int directory)
{
	int again = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), ret = 0;
	DIR *list = again < 0 ? NULL : fdopendir(again);
	if (!list) {
		dp_close_fd(&again);
		return -EIO;
	}
	struct dirent *entry;
	int more = 0;
	while (!ret && (more = io_next_entry(list, &entry)) > 0)
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") &&
		    !json_object_object_get_ex(receiver->seen, entry->d_name, NULL))
			ret = remove_name(directory, entry->d_name, 0);
	closedir(list);
	return ret ? ret : more;
}

static int take_entries(struct tree_receiver *receiver, int directory, json_object *entries, const char *path, struct dp_err *err)
{
	for (size_t i = 0; json_object_is_type(entries, json_type_array) && i < json_object_array_length(entries); i++) {
		json_object *entry = json_object_array_get_idx(entries, i);
		const char *name = name_of(entry);
		int ret = name ? make_name(directory, name, entry) : -EBADMSG;
		if (ret < 0)
			return dp_fail_errno(err, -ret, "make %s/%s as it is on the other host", path, name ? name : "?");
		json_object_object_add(receiver->seen, name, NULL);
		if (ret > 0)
			json_object_array_add(receiver->needed, json_object_new_string(name));
	}
	return 0;
}

static int take_directory(struct tree_receiver *receiver, json_object *line, struct lines *peer, struct dp_err *err)
{
	const char *path = line_text(line, "dir");
	json_object *entries = NULL;
	cleanup_fd int directory = open_directory(receiver, path);
	if (directory < 0)
		return dp_fail_errno(err, -directory, "open the directory `%s` of the other host's", path ? path : "?");
	if (!receiver->seen)
		receiver->seen = json_object_new_object();
	if (!receiver->needed)
		receiver->needed = json_object_new_array();
	json_object_object_get_ex(line, "entries", &entries);
	int ret = take_entries(receiver, directory, entries, path, err);
	if (ret || line_flag(line, "more"))
		return ret;
	ret = remove_others(receiver, directory);
	if (ret)
		return dp_fail_errno(err, -ret, "remove what the other host does not have from `%s`", path);
	json_object_put(receiver->seen);
	receiver->seen = NULL;
	json_object *answer = line_event("need");
	json_object_object_add(answer, "names", receiver->needed);
	receiver->needed = NULL;
	if (!line_flag(line, "push"))
		return lines_send(peer, answer, ANSWER_MS);
	json_object_put(answer);
	return 0;
}

/* ---- a file ---- */

static int write_bytes(int fd, struct lines *peer, uint64_t bytes)
{
	cleanup_free char *chunk = malloc(CHUNK_BYTES);
	int ret = chunk ? 0 : -ENOMEM;
	while (bytes && !ret) {
		size_t part = (size_t)DP_MIN(bytes, CHUNK_BYTES);
		ret = lines_receive_bytes(peer, chunk, part, ANSWER_MS);
		if (!ret)
			ret = io_write_full(fd, chunk, part);
		bytes -= part;
	}
	return ret;
}

static int take_file(const struct tree_receiver *receiver, json_object *line, struct lines *peer, struct dp_err *err)
{
	json_object *entry = NULL;
	const char *path = line_text(line, "dir"), *name;
	cleanup_fd int directory = open_directory(receiver, path);
	json_object_object_get_ex(line, "entry", &entry);
	name = name_of(entry);
	if (directory < 0 || !name || kind_of(entry) != S_IFREG || line_number(entry, "size") < 0)
		return dp_fail(err, EBADMSG, "the other host sends a file that cannot be one");
	int64_t mtime_ns = line_number(entry, "mtime_ns");
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT },
					   { (time_t)(mtime_ns / 1000000000), (long)(mtime_ns % 1000000000) } };
	unlinkat(directory, FRESH_NAME, 0);
	cleanup_fd int fd = openat(directory, FRESH_NAME, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	int ret = fd < 0 ? -errno : write_bytes(fd, peer, (uint64_t)line_number(entry, "size"));
	if (!ret)
		ret = set_owner_and_rights(fd, entry);
	if (!ret && futimens(fd, times))
		ret = -errno;
	struct stat before;
	if (!ret && !fstatat(directory, name, &before, AT_SYMLINK_NOFOLLOW) && S_ISDIR(before.st_mode))
		ret = remove_name(directory, name, 0);
	if (!ret && renameat(directory, FRESH_NAME, directory, name))
		ret = -errno;
	if (ret)
		unlinkat(directory, FRESH_NAME, 0);
	return ret ? dp_fail_errno(err, -ret, "write %s/%s of the other host's", path, name) : 0;
}

int tree_receive(struct tree_receiver *receiver, json_object *line, struct lines *peer, struct dp_err *err)
{
	const char *op = line_text(line, "op");
	if (receiver->root_fd < 0)
		return dp_fail(err, EBADMSG, "files came that nobody had announced");
	if (!strcmp(op, "dir"))
		return take_directory(receiver, line, peer, err);
	if (!strcmp(op, "file"))
		return take_file(receiver, line, peer, err);
	int ret = lines_send(peer, line_event("same"), ANSWER_MS);
	return ret ? dp_fail_errno(err, -ret, "answer the other host") : 0;
}
