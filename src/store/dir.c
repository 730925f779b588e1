/* dir:/path: pages in one sparse file, blobs in a file each.
 *
 *   format      "distri-proc store 2": says that this directory is a store. One of version 1 is read, and becomes one of version
 *               2 before anything is put into it, so that programs that know only version 1 refuse it from then on
 *   lock        flock'ed by the one pool that has it open
 *   pages.heap  slot n at n * 4096
 *   blobs/NAME  put by write, fsync, rename, fsync of the directory
 *
 * A crash leaves the old blobs or the new ones, and pages that no blob refers to; those are free at the next open. */
#include "store/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/base.h"
#include "store/heap_store.h"

#define FORMAT_TEXT "distri-proc store 2\n"
#define FORMAT_TEXT_1 "distri-proc store 1\n" /* the same, but for what the pool writes into its manifests */

struct dir_store {
	struct heap_store base;
	int directory_fd, blobs_fd, lock_fd, pages_fd;
	bool old_format;
	/* a name was changed, but perhaps not on the disk: what either state refers to must stay, so nothing is freed any more */
	bool broken;
};

static struct dir_store *dir_of(struct store *store)
{
	return (struct dir_store *)store;
}

static void dir_free(struct store *store, const uint64_t *slots, size_t count)
{
	if (!dir_of(store)->broken)
		heap_store_free(store, slots, count);
}

static int dir_sync(struct store *store)
{
	return fdatasync(dir_of(store)->pages_fd) < 0 ? -errno : 0;
}

static int no_space(int error)
{
	return error == EDQUOT || error == EFBIG ? -ENOSPC : -error;
}

static int write_new(int blobs_fd, const char *name, const void *bytes, uint64_t length)
{
	cleanup_fd int fd = openat(blobs_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0)
		return no_space(errno);
	int result = io_write_full(fd, bytes, length);

	if (result < 0)
		return no_space(-result);
	return fsync(fd) < 0 ? no_space(errno) : 0;
}

static int write_format(struct dir_store *dir)
{
	int result = write_new(dir->directory_fd, "format.new", FORMAT_TEXT, strlen(FORMAT_TEXT));

	if (result == 0 &&
	    (renameat(dir->directory_fd, "format.new", dir->directory_fd, "format") < 0 || fsync(dir->directory_fd) < 0))
		result = -errno;
	dir->old_format = result < 0 && dir->old_format;
	return result;
}

static int sync_names(struct dir_store *dir)
{
	if (dir->broken || fsync(dir->blobs_fd) < 0) {
		dir->broken = true;
		return -EIO;
	}
	return 0;
}

static int dir_blob_put(struct store *store, const char *name, const void *bytes, uint64_t length)
{
	int blobs_fd = dir_of(store)->blobs_fd;
	char temporary[BLOB_NAME_LIMIT + 8];

	if (!store_blob_name_good(name))
		return -EINVAL;
	snprintf(temporary, sizeof(temporary), ".new-%s", name);
	int result = dir_of(store)->old_format ? write_format(dir_of(store)) : 0;

	if (result == 0)
		result = write_new(blobs_fd, temporary, bytes, length);
	if (result == 0 && renameat(blobs_fd, temporary, blobs_fd, name) < 0)
		result = no_space(errno);
	if (result < 0) {
		unlinkat(blobs_fd, temporary, 0);
		return result;
	}
	return sync_names(dir_of(store));
}

static int dir_blob_get(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit)
{
	char *content;

	if (!store_blob_name_good(name))
		return -EINVAL;
	ssize_t got = io_read_file_at(dir_of(store)->blobs_fd, name, &content, limit);

	if (got < 0)
		return (int)got;
	*bytes = content;
	*length = (uint64_t)got;
	return 0;
}

static int dir_blob_list(struct store *store, store_blob_visit visit, void *context)
{
	int fd = openat(dir_of(store)->blobs_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	struct stat status;
	int result = 0, more = 0;

	if (!directory) {
		result = -errno;
		if (fd >= 0)
			close(fd);
		return result;
	}
	while (result >= 0 && (more = io_next_entry(directory, &entry)) > 0)
		if (store_blob_name_good(entry->d_name) && fstatat(fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
		    S_ISREG(status.st_mode))
			result = visit(context, entry->d_name, (uint64_t)status.st_size);
	closedir(directory);
	return result < 0 ? result : more;
}

static int dir_blob_delete(struct store *store, const char *name)
{
	int blobs_fd = dir_of(store)->blobs_fd;

	if (!store_blob_name_good(name))
		return -EINVAL;
	return unlinkat(blobs_fd, name, 0) < 0 ? -errno : sync_names(dir_of(store));
}

static void dir_close(struct store *store)
{
	struct dir_store *dir = dir_of(store);
	const int fds[] = { dir->pages_fd, dir->blobs_fd, dir->directory_fd, dir->lock_fd };

	heap_done(&dir->base.heap);
	/* The lock goes last. */
	for (size_t i = 0; i < ARRAY_LENGTH(fds); i++)
		dp_close_fd(&fds[i]);
	free(store->beside);
	free(dir);
}

static const struct store_ops dir_ops = {
	.name = "dir",
	.alloc = heap_store_alloc,
	.free = dir_free,
	.write = heap_store_write,
	.read = heap_store_read,
	.page = heap_store_page,
	.sync = dir_sync,
	.blob_put = dir_blob_put,
	.blob_get = dir_blob_get,
	.blob_list = dir_blob_list,
	.blob_delete = dir_blob_delete,
	.adopt = heap_store_adopt,
	.capacity = heap_store_capacity,
	.close = dir_close,
};

static bool directory_empty(int directory_fd)
{
	int fd = openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	int more;
	bool empty = true;

	if (!directory) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	while ((more = io_next_entry(directory, &entry)) > 0) {
		/* These may be there already: a creation that was cut off. */
		static const char *const harmless[] = { ".", "..", "lock", "blobs", "format.new", "lost+found" };
		bool known = false;

		for (size_t i = 0; i < ARRAY_LENGTH(harmless); i++)
			known |= strcmp(entry->d_name, harmless[i]) == 0;
		empty &= known;
	}
	closedir(directory);
	return empty && more == 0;
}

/* Reads `format`, or writes it where the directory is new. */
static int check_format(struct dir_store *dir, const char *path, bool create, struct dp_err *err)
{
	cleanup_free char *text = NULL;
	ssize_t got = io_read_file_at(dir->directory_fd, "format", &text, 64);

	dir->old_format = got >= 0 && strcmp(text, FORMAT_TEXT_1) == 0;
	if (got >= 0)
		return dir->old_format || strcmp(text, FORMAT_TEXT) == 0
			       ? 0
			       : dp_fail(err, EBADMSG,
					 "store dir:%s is of another version than this program's; use the program that made it",
					 path);
	if (got != -ENOENT)
		return dp_fail_errno(err, (int)-got, "read %s/format", path);
	if (!directory_empty(dir->directory_fd))
		return dp_fail(err, EBADMSG, "directory %s is not a pool's store and not empty; name an empty or a new one",
			       path);
	if (!create)
		return dp_fail(err, ENOENT, "there is no pool at dir:%s (the directory is empty)", path);
	if (mkdirat(dir->directory_fd, "blobs", 0700) < 0 && errno != EEXIST)
		return dp_fail_errno(err, errno, "create %s/blobs", path);
	int result = write_format(dir);

	if (result == 0)
		result = store_sync_parent(path);
	return result < 0 ? dp_fail_errno(err, -result, "create %s/format", path) : 0;
}

/* What a crash left of blobs that were never put. */
static void remove_temporaries(int blobs_fd)
{
	int fd = openat(blobs_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *entry;

	if (!directory) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while ((entry = readdir(directory)))
		if (strncmp(entry->d_name, ".new-", 5) == 0)
			unlinkat(blobs_fd, entry->d_name, 0);
	closedir(directory);
}

static int open_parts(struct dir_store *dir, const char *path, bool create, struct dp_err *err)
{
	int result;

	if (create && mkdir(path, 0700) < 0 && errno != EEXIST)
		return dp_fail_errno(err, errno, "create directory %s", path);
	dir->directory_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir->directory_fd < 0)
		return errno == ENOENT ? dp_fail(err, ENOENT, "there is no pool at dir:%s", path)
				       : dp_fail_errno(err, errno, "open %s", path);
	dir->lock_fd = openat(dir->directory_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (dir->lock_fd < 0)
		return dp_fail_errno(err, errno, "open %s/lock", path);
	if (flock(dir->lock_fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? dp_fail(err, EBUSY, "store dir:%s is in use by another pool", path) :
					      dp_fail_errno(err, errno, "lock %s", path);
	result = check_format(dir, path, create, err);
	if (result < 0)
		return result;
	dir->blobs_fd = openat(dir->directory_fd, "blobs", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir->blobs_fd < 0)
		return dp_fail_errno(err, errno, "open %s/blobs", path);
	remove_temporaries(dir->blobs_fd);
	dir->pages_fd = openat(dir->directory_fd, "pages.heap", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	/* Its name too must be on the disk before anything refers to what is in it: what syncs the file need not do that. */
	if (dir->pages_fd < 0 || fsync(dir->directory_fd) < 0)
		return dp_fail_errno(err, errno, "open %s/pages.heap", path);
	result = heap_init(&dir->base.heap, dir->pages_fd, 1, UINT64_MAX);
	return result < 0 ? dp_fail_errno(err, -result, "open %s/pages.heap", path) : 0;
}

int store_dir_open(struct store **store, const char *path, bool create, struct dp_err *err)
{
	struct dir_store *dir = calloc(1, sizeof(*dir));

	if (!dir)
		return dp_fail_errno(err, ENOMEM, "open store dir:%s", path);
	dir->base.store = (struct store){ .ops = &dir_ops, .persistent = true };
	dir->directory_fd = dir->blobs_fd = dir->lock_fd = dir->pages_fd = -1;
	int result = open_parts(dir, path, create, err);

	if (result < 0) {
		dir_close(&dir->base.store);
		return result;
	}
	dir->base.store.beside = format_text("%s/instances", path);
	*store = &dir->base.store;
	return 0;
}
