/* Directory and file stores survive the end of their process, and of the machine, at any instant.
 *
 * Every call by which a store changes its files is recorded while a pool commits, replaces and removes snapshots. Then, for every
 * prefix of that record, the files are made again as they may be found after a crash: all of it (kill -9: the kernel has
 * everything), the last write cut in half, only what was synced (power was lost), and what was synced with any of the rest: each
 * block of 4 KiB there or not or torn between sectors, names in a directory up to any point. The real store and pool open each of
 * these and must find every acknowledged snapshot whole, every page what its digest says, nothing that was removed, and nothing
 * by halves.
 * DP_DURABILITY_SEEDS=N (default 1) is how many random states each prefix gets; set, nothing is left out. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "pool/pool.h"
#include "wire/message.h"

#define OPS 20000
#define FILES 512
#define SECTOR 512u

enum kind { MAKE_FILE, MAKE_DIRECTORY, WRITE, TRUNCATE, PUNCH, RENAME, UNLINK, SYNC, ACKNOWLEDGE };

struct op {
	enum kind kind;
	uint32_t file;      /* the file, or the directory in which a name changes; SYNC: either */
	uint32_t other;     /* MAKE_*: what is made */
	uint64_t offset, length;
	uint8_t *bytes;
	char name[80], to[80];
};

static struct op *record;
static uint32_t op_count;
static bool recording;
static ino_t inode_of[FILES];
static bool is_directory[FILES];
static uint32_t file_count;

/* ---- recording ---- */

static struct op *add(enum kind kind, uint32_t file)
{
	assert_true(op_count < OPS);
	record[op_count] = (struct op){ .kind = kind, .file = file };
	return &record[op_count++];
}

static uint32_t known(ino_t inode)
{
	for (uint32_t i = 0; i < file_count; i++)
		if (inode_of[i] == inode)
			return i;
	return UINT32_MAX;
}

static uint32_t learn(ino_t inode, bool directory)
{
	assert_true(file_count < FILES);
	inode_of[file_count] = inode;
	is_directory[file_count] = directory;
	return file_count++;
}

static uint32_t file_of_fd(int fd)
{
	struct stat status;

	return recording && fstat(fd, &status) == 0 ? known(status.st_ino) : UINT32_MAX;
}

/* The directory of a path below one that is known, and the name in it. */
static uint32_t directory_of(int at, const char *path, char name[static 80])
{
	struct stat status;
	char parent[512];
	const char *slash = strrchr(path, '/');

	if (!recording)
		return UINT32_MAX;
	snprintf(name, 80, "%s", slash ? slash + 1 : path);
	if (slash)
		snprintf(parent, sizeof(parent), "%.*s", (int)(slash - path), path);
	if (slash ? stat(parent, &status) < 0 : fstat(at, &status) < 0)
		return UINT32_MAX;
	return known(status.st_ino);
}

int __real_open64(const char *path, int flags, ...);
int __real_openat64(int at, const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_openat64(int at, const char *path, int flags, ...);
ssize_t __real_write(int fd, const void *bytes, size_t length);
ssize_t __wrap_write(int fd, const void *bytes, size_t length);
ssize_t __real_pwrite64(int fd, const void *bytes, size_t length, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t length, off_t offset);
ssize_t __real_pwritev64(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int count, off_t offset);
int __real_ftruncate64(int fd, off_t length);
int __wrap_ftruncate64(int fd, off_t length);
int __real_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length);
int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_renameat(int from_at, const char *from, int to_at, const char *to);
int __wrap_renameat(int from_at, const char *from, int to_at, const char *to);
int __real_unlinkat(int at, const char *path, int flags);
int __wrap_unlinkat(int at, const char *path, int flags);
int __real_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode);
int __real_mkdirat(int at, const char *path, mode_t mode);
int __wrap_mkdirat(int at, const char *path, mode_t mode);

static int opened(int at, const char *path, int flags, int fd, bool was_there)
{
	char name[80];
	uint32_t directory = fd < 0 ? UINT32_MAX : directory_of(at, path, name);
	struct stat status;

	if (directory == UINT32_MAX || fstat(fd, &status) < 0)
		return fd;
	if (!was_there) {
		struct op *op = add(MAKE_FILE, directory);

		op->other = learn(status.st_ino, false);
		snprintf(op->name, sizeof(op->name), "%s", name);
	} else if (flags & O_TRUNC && known(status.st_ino) != UINT32_MAX) {
		add(TRUNCATE, known(status.st_ino));
	}
	return fd;
}

int __wrap_open64(const char *path, int flags, ...)
{
	va_list arguments;
	va_start(arguments, flags);
	mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	bool was_there = recording && access(path, F_OK) == 0;

	return opened(AT_FDCWD, path, flags, __real_open64(path, flags, mode), was_there);
}

int __wrap_openat64(int at, const char *path, int flags, ...)
{
	va_list arguments;
	va_start(arguments, flags);
	mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	bool was_there = recording && faccessat(at, path, F_OK, 0) == 0;

	return opened(at, path, flags, __real_openat64(at, path, flags, mode), was_there);
}

static void wrote(int fd, const void *bytes, size_t length, uint64_t offset)
{
	uint32_t file = file_of_fd(fd);

	if (file == UINT32_MAX || length == 0)
		return;
	struct op *op = add(WRITE, file);

	op->offset = offset;
	op->length = length;
	op->bytes = malloc(length);
	memcpy(op->bytes, bytes, length);
}

ssize_t __wrap_write(int fd, const void *bytes, size_t length)
{
	uint64_t offset = recording ? (uint64_t)lseek(fd, 0, SEEK_CUR) : 0;
	ssize_t done = __real_write(fd, bytes, length);

	if (recording && done > 0)
		wrote(fd, bytes, (size_t)done, offset);
	return done;
}

ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t length, off_t offset)
{
	ssize_t done = __real_pwrite64(fd, bytes, length, offset);

	if (done > 0)
		wrote(fd, bytes, (size_t)done, (uint64_t)offset);
	return done;
}

ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int count, off_t offset)
{
	ssize_t done = __real_pwritev64(fd, iov, count, offset);
	size_t length = 0;

	if (!recording || done <= 0)
		return done;
	uint8_t *bytes = malloc((size_t)done);

	for (int i = 0; i < count && length < (size_t)done; i++) {
		size_t part = DP_MIN((size_t)done - length, iov[i].iov_len);

		memcpy(bytes + length, iov[i].iov_base, part);
		length += part;
	}
	wrote(fd, bytes, (size_t)done, (uint64_t)offset);
	free(bytes);
	return done;
}

int __wrap_ftruncate64(int fd, off_t length)
{
	int result = __real_ftruncate64(fd, length);
	uint32_t file = file_of_fd(fd);

	if (result == 0 && file != UINT32_MAX)
		add(TRUNCATE, file)->length = (uint64_t)length;
	return result;
}

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length)
{
	int result = __real_fallocate64(fd, mode, offset, length);
	uint32_t file = file_of_fd(fd);

	if (result == 0 && file != UINT32_MAX) {
		struct op *op = add(PUNCH, file);

		op->offset = (uint64_t)offset;
		op->length = (uint64_t)length;
	}
	return result;
}

static int synced(int fd, int result)
{
	uint32_t file = file_of_fd(fd);

	if (result == 0 && file != UINT32_MAX)
		add(SYNC, file);
	return result;
}

int __wrap_fsync(int fd)
{
	return synced(fd, __real_fsync(fd));
}

int __wrap_fdatasync(int fd)
{
	return synced(fd, __real_fdatasync(fd));
}

int __wrap_renameat(int from_at, const char *from, int to_at, const char *to)
{
	char name[80], unused[80];
	uint32_t directory = directory_of(from_at, from, name);
	int result = __real_renameat(from_at, from, to_at, to);

	if (result == 0 && directory != UINT32_MAX) {
		struct op *op = add(RENAME, directory);

		snprintf(op->name, sizeof(op->name), "%s", name);
		assert_int_equal(directory_of(to_at, to, unused), directory);
		snprintf(op->to, sizeof(op->to), "%s", unused);
	}
	return result;
}

int __wrap_unlinkat(int at, const char *path, int flags)
{
	char name[80];
	uint32_t directory = directory_of(at, path, name);
	int result = __real_unlinkat(at, path, flags);

	if (result == 0 && directory != UINT32_MAX)
		snprintf(add(UNLINK, directory)->name, sizeof(record->name), "%s", name);
	return result;
}

static int made(int at, const char *path, int result)
{
	char name[80];
	uint32_t directory = result < 0 ? UINT32_MAX : directory_of(at, path, name);
	struct stat status;

	if (directory != UINT32_MAX && fstatat(at, path, &status, 0) == 0) {
		struct op *op = add(MAKE_DIRECTORY, directory);

		op->other = learn(status.st_ino, true);
		snprintf(op->name, sizeof(op->name), "%s", name);
	}
	return result;
}

int __wrap_mkdir(const char *path, mode_t mode)
{
	return made(AT_FDCWD, path, __real_mkdir(path, mode));
}

int __wrap_mkdirat(int at, const char *path, mode_t mode)
{
	return made(at, path, __real_mkdirat(at, path, mode));
}

/* ---- what the pool is made to do ---- */

#define NAMES 3
static const char *const names[NAMES] = { "a:latest", "b:latest", "c:latest" };
#define PAGES 64

/* version[p]: what page p of the snapshot holds; 0: nothing. */
struct snapshot_state {
	bool there;
	uint8_t version[PAGES];
};
struct step {
	unsigned name;
	bool remove;
	unsigned first, count, version;   /* pages put */
	unsigned inherit_first, inherit_count; /* from the snapshot of that name which is there */
};
static const struct step steps[] = {
	{ .name = 0, .first = 0, .count = 40, .version = 1 },
	{ .name = 1, .first = 5, .count = 33, .version = 1 },
	{ .name = 0, .first = 20, .count = 30, .version = 2, .inherit_first = 0, .inherit_count = 20 },
	{ .name = 1, .remove = true },
	{ .name = 2, .first = 0, .count = 60, .version = 1 }, /* where b was */
	{ .name = 0, .first = 1, .count = 17, .version = 3, .inherit_first = 30, .inherit_count = 20 },
	{ .name = 2, .remove = true },
	{ .name = 1, .first = 0, .count = 50, .version = 2 },
};
static struct snapshot_state states[ARRAY_LENGTH(steps) + 1][NAMES];

static void compute_states(void)
{
	for (size_t i = 0; i < ARRAY_LENGTH(steps); i++) {
		const struct step *step = &steps[i];
		struct snapshot_state next = { .there = !step->remove };

		memcpy(states[i + 1], states[i], sizeof(states[i]));
		for (unsigned page = 0; page < PAGES && !step->remove; page++) {
			if (page >= step->inherit_first && page < step->inherit_first + step->inherit_count)
				next.version[page] = states[i][step->name].version[page];
			if (page >= step->first && page < step->first + step->count)
				next.version[page] = (uint8_t)step->version;
		}
		states[i + 1][step->name] = next;
	}
}

/* Some shrink, some do not. */
static void fill(uint8_t *page, unsigned name, unsigned number, unsigned version)
{
	uint64_t *words = (uint64_t *)page, seed = name * 1000003 + number * 1009 + version + 1;

	for (unsigned i = 0; i < PAGE_BYTES / 8; i++)
		words[i] = number % 3 && i > 40 * (number % 7) ? seed : (seed + i) * 0x9e3779b97f4a7c15u;
}

static int do_step(struct pool *pool, const struct step *step)
{
	static uint8_t pages[PAGES * PAGE_BYTES];
	const char *name = names[step->name];
	uint64_t draft, space;
	struct dp_err err = { "" };

	if (step->remove)
		return pool_snapshot_remove(pool, name, false, &err);
	int result = pool_snapshot_begin(pool, pages, name, true, &draft, &err);

	if (result == 0)
		result = pool_snapshot_space(pool, pages, draft, 1, &space, &err);
	if (result == 0 && step->inherit_count)
		result = pool_snapshot_inherit(pool, pages, space, pool_snapshot(pool, name)->spaces->id,
					       (struct page_range){ step->inherit_first, step->inherit_count }, &err);
	for (unsigned i = 0; i < step->count; i++)
		fill(pages + i * PAGE_BYTES, step->name, step->first + i, step->version);
	if (result == 0)
		result = pool_put(pool, pages, space, 0, &(struct page_range){ step->first, step->count }, 1, pages, NULL);
	if (result == 0)
		result = pool_snapshot_commit_begin(pool, pages, draft, "{}", 2, &err);
	if (result == 0)
		result = pool_snapshot_commit_finish(pool, pages, draft, pool->store->ops->sync(pool->store), &err);
	pool_flush(pool);
	return result;
}

static struct pool *open_pool(const char *uri)
{
	struct store *store;
	struct pool *pool;
	struct dp_err err = { "" };

	if (store_open(&store, uri, true, &err) < 0 || pool_open(&pool, store, &err) < 0) {
		print_error("%s\n", err.text);
		return NULL;
	}
	return pool;
}

static void record_all(const char *directory, const char *uri)
{
	struct stat status;

	op_count = file_count = 0;
	assert_int_equal(stat(directory, &status), 0);
	learn(status.st_ino, true);
	recording = true;
	struct pool *pool = open_pool(uri);

	assert_non_null(pool);
	for (size_t i = 0; i < ARRAY_LENGTH(steps); i++) {
		assert_int_equal(do_step(pool, &steps[i]), 0);
		add(ACKNOWLEDGE, 0);
	}
	pool_close(pool);
	recording = false;
}

/* ---- what is found after a crash ---- */

static uint64_t random_state;
static uint64_t next_random(uint64_t limit)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (random_state >> 33) % limit;
}

enum crash { CRASH_KILL, CRASH_KILL_MID_WRITE, CRASH_POWER_NOTHING, CRASH_POWER_ANY };

/* Is op i, which is not synced, there? Names of a directory are there up to a point. */
static uint32_t names_until[FILES];

static bool is_name(const struct op *op)
{
	return op->kind == MAKE_FILE || op->kind == MAKE_DIRECTORY || op->kind == RENAME || op->kind == UNLINK;
}

static void write_blocks(int fd, const struct op *op, bool any)
{
	for (uint64_t at = 0, part; at < op->length; at += part) {
		part = DP_MIN(op->length - at, PAGE_BYTES - (op->offset + at) % PAGE_BYTES);
		if (any && next_random(2))
			continue;
		bool torn = any && next_random(8) == 0;

		for (uint64_t sector = 0; sector < part; sector += SECTOR)
			if (!torn || next_random(2))
				assert_true(__real_pwrite64(fd, op->bytes + at + sector, DP_MIN(part - sector, (uint64_t)SECTOR),
							    (off_t)(op->offset + at + sector)) > 0);
	}
}

struct place {
	char path[600]; /* "": has no name now */
};
static struct place place[FILES];
static int content[FILES]; /* descriptors: a file without a name has content too */

static uint32_t find_named(uint32_t directory, const char *name)
{
	char path[800];

	snprintf(path, sizeof(path), "%s/%s", place[directory].path, name);
	for (uint32_t i = 0; i < file_count; i++)
		if (strcmp(place[i].path, path) == 0)
			return i;
	return UINT32_MAX;
}

static void put_at(uint32_t file, uint32_t directory, const char *name)
{
	char path[600];

	snprintf(path, sizeof(path), "%.400s/%s", place[directory].path, name);
	memcpy(place[file].path, path, sizeof(path));
}

static void apply_name(const struct op *op)
{
	uint32_t file;

	/* A directory that has no name itself: nothing in it is ever found. */
	if (!place[op->file].path[0])
		return;
	switch (op->kind) {
	case MAKE_FILE:
	case MAKE_DIRECTORY:
		put_at(op->other, op->file, op->name);
		break;
	case RENAME:
		file = find_named(op->file, op->to);
		if (file != UINT32_MAX)
			place[file].path[0] = 0;
		file = find_named(op->file, op->name);
		if (file != UINT32_MAX)
			put_at(file, op->file, op->to);
		break;
	default:
		file = find_named(op->file, op->name);
		if (file != UINT32_MAX)
			place[file].path[0] = 0;
	}
}

static void apply_content(const struct op *op, bool any)
{
	switch (op->kind) {
	case WRITE:
		write_blocks(content[op->file], op, any);
		break;
	case TRUNCATE:
		if (!any || next_random(2))
			assert_int_equal(__real_ftruncate64(content[op->file], (off_t)op->length), 0);
		break;
	case PUNCH:
		if (!any || next_random(2))
			__real_fallocate64(content[op->file], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)op->offset,
					   (off_t)op->length);
		break;
	default:
		break;
	}
}

/* Makes the files below `root` as they may be after a crash behind the first `count` ops. */
static void materialise(const char *root, const char *scratch, uint32_t count, enum crash crash)
{
	static uint32_t synced_until[FILES];
	char path[700];

	memset(synced_until, 0, sizeof(synced_until));
	memset(place, 0, sizeof(place));
	for (uint32_t i = 0; i < count; i++)
		if (record[i].kind == SYNC)
			synced_until[record[i].file] = i;
	for (uint32_t i = 0; i < file_count; i++) {
		names_until[i] = crash <= CRASH_KILL_MID_WRITE ? count : crash == CRASH_POWER_NOTHING ? synced_until[i] :
				 synced_until[i] + (uint32_t)next_random(count - DP_MIN(synced_until[i], count) + 1);
		content[i] = -1;
		if (is_directory[i])
			continue;
		snprintf(path, sizeof(path), "%s/%u", scratch, i);
		content[i] = __real_open64(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
		assert_true(content[i] >= 0);
	}
	snprintf(place[0].path, sizeof(place[0].path), "%s", root);
	for (uint32_t i = 0; i < count; i++) {
		struct op op = record[i];
		bool synced_op = crash <= CRASH_KILL_MID_WRITE || i < synced_until[op.file];

		if (is_name(&op)) {
			if (i < names_until[op.file])
				apply_name(&op);
			continue;
		}
		if (crash == CRASH_KILL_MID_WRITE && i + 1 == count && op.kind == WRITE)
			op.length /= 2;
		if (synced_op || crash == CRASH_POWER_ANY)
			apply_content(&op, !synced_op);
	}
	/* Directories first: they come before what is in them. */
	for (uint32_t i = 0; i < file_count; i++) {
		if (content[i] >= 0)
			close(content[i]);
		if (i && is_directory[i] && place[i].path[0])
			__real_mkdir(place[i].path, 0700);
	}
	for (uint32_t i = 0; i < file_count; i++) {
		snprintf(path, sizeof(path), "%s/%u", scratch, i);
		if (!is_directory[i] && place[i].path[0])
			assert_int_equal(rename(path, place[i].path), 0);
		else if (!is_directory[i])
			unlink(path);
	}
}

static bool same_page(struct pool *pool, const struct space *space, unsigned name, unsigned number, unsigned version)
{
	uint8_t page[PAGE_BYTES], expected[PAGE_BYTES];
	void *pages[] = { page };
	uint64_t slot;

	pagemap_read(&space->map, number, &slot, 1);
	if (!slot || !version)
		return !slot && !version;
	fill(expected, name, number, version);
	return pool->store->ops->read(pool->store, &slot, pages, 1) == 0 && memcmp(page, expected, PAGE_BYTES) == 0 &&
	       page_digest_same(pool->slots.digests[slot], page_digest(page));
}

static bool same_snapshot(struct pool *pool, unsigned name, const struct snapshot_state *state)
{
	const struct object *snapshot = pool_snapshot(pool, names[name]);

	if (!snapshot || !state->there)
		return !snapshot && !state->there;
	for (unsigned page = 0; page < PAGES; page++)
		if (!same_page(pool, snapshot->spaces, name, page, state->version[page]))
			return false;
	return true;
}

/* All that was acknowledged is there; what was under way is there as a whole, or not at all. */
static const char *look(struct pool *pool, size_t acknowledged)
{
	for (unsigned name = 0; name < NAMES; name++) {
		bool good = same_snapshot(pool, name, &states[acknowledged][name]);

		if (!good && acknowledged < ARRAY_LENGTH(steps) && steps[acknowledged].name == name)
			good = same_snapshot(pool, name, &states[acknowledged + 1][name]);
		if (!good)
			return names[name];
	}
	return NULL;
}

/* The store can be used on: a new snapshot, and all of it again. */
static const char *go_on(struct pool **pool, const char *uri, size_t acknowledged)
{
	const struct step more = { .name = 0, .first = 0, .count = PAGES, .version = 9 };

	if (do_step(*pool, &more) < 0)
		return "a new commit";
	pool_close(*pool);
	*pool = open_pool(uri);
	if (!*pool)
		return "the store after a new commit";
	for (unsigned page = 0; page < PAGES; page++)
		if (!same_page(*pool, pool_snapshot(*pool, names[0])->spaces, 0, page, 9))
			return "the new snapshot";
	for (unsigned name = 1; name < NAMES; name++)
		if (!same_snapshot(*pool, name, &states[acknowledged][name]) &&
		    !(acknowledged < ARRAY_LENGTH(steps) && same_snapshot(*pool, name, &states[acknowledged + 1][name])))
			return names[name];
	return NULL;
}

struct tried {
	unsigned states, went_on;
};

struct engine {
	const char *scheme, *codec;
};

static void crash_once(const char *base, const struct engine *engine, uint32_t count, size_t acknowledged, enum crash crash,
		       struct tried *tried)
{
	char root[300], scratch[300], uri[400];

	snprintf(root, sizeof(root), "%s/crashed", base);
	snprintf(scratch, sizeof(scratch), "%s/scratch", base);
	assert_int_equal(__real_mkdir(root, 0700), 0);
	assert_int_equal(__real_mkdir(scratch, 0700), 0);
	materialise(root, scratch, count, crash);
	snprintf(uri, sizeof(uri), "%s:%s/store%s", engine->scheme, root, engine->codec);
	struct pool *pool = open_pool(uri);
	const char *wrong = pool ? look(pool, acknowledged) : "the store";

	tried->states++;
	if (!wrong && (tried->states % 8 == 0)) {
		wrong = go_on(&pool, uri, acknowledged);
		tried->went_on++;
	}
	if (wrong)
		fail_msg(
			"%s%s: crash %d behind call %u of %u (kind %d), %zu steps acknowledged, seed state %llu: %s is not as it was",
			engine->scheme, engine->codec, crash, count, op_count, count ? (int)record[count - 1].kind : -1,
			acknowledged, (unsigned long long)random_state, wrong);
	pool_close(pool);
	assert_int_equal(remove_tree(root), 0);
	assert_int_equal(remove_tree(scratch), 0);
}

static void crash_everywhere(const struct engine *engine)
{
	char base[] = "/dev/shm/dp-durability-XXXXXX", root[100], uri[200];
	const char *wanted = getenv("DP_DURABILITY_SEEDS");
	unsigned seeds = wanted ? (unsigned)atoi(wanted) : 1;
	struct tried tried = { 0 };
	size_t acknowledged = 0;

	assert_non_null(mkdtemp(base));
	snprintf(root, sizeof(root), "%s/original", base);
	assert_int_equal(__real_mkdir(root, 0700), 0);
	snprintf(uri, sizeof(uri), "%s:%s/store%s", engine->scheme, root, engine->codec);
	record = calloc(OPS, sizeof(*record));
	compute_states();
	record_all(root, uri);
	random_state = 1;
	for (uint32_t count = 0; count <= op_count; count++) {
		if (count && record[count - 1].kind == ACKNOWLEDGE)
			acknowledged++;
		enum kind last = count ? record[count - 1].kind : SYNC;

		/* A packed store writes frame by frame: every third of these will do, but for the long run. */
		if (!wanted && op_count > 150 && last == WRITE && count % 3)
			continue;

		/* Where the last call changed nothing of it, the state is that of the prefix before. */
		crash_once(base, engine, count, acknowledged,
			   last == SYNC || last == ACKNOWLEDGE ? CRASH_POWER_NOTHING : CRASH_KILL, &tried);
		if (last == WRITE)
			crash_once(base, engine, count, acknowledged, CRASH_KILL_MID_WRITE, &tried);
		for (unsigned seed = 0; seed < seeds; seed++)
			crash_once(base, engine, count, acknowledged, CRASH_POWER_ANY, &tried);
	}
	print_message("%s%s: %u calls, %u states after a crash, %u of them gone on with\n", engine->scheme, engine->codec,
		      op_count, tried.states, tried.went_on);
	for (uint32_t i = 0; i < op_count; i++)
		free(record[i].bytes);
	free(record);
	assert_int_equal(remove_tree(base), 0);
}

static void directory__crash_anywhere__keeps_what_was_acknowledged(void **state)
{
	crash_everywhere(&(struct engine){ "dir", "" });
}

static void file__crash_anywhere__keeps_what_was_acknowledged(void **state)
{
	crash_everywhere(&(struct engine){ "file", "" });
}

static void packed_directory__crash_anywhere__keeps_what_was_acknowledged(void **state)
{
	crash_everywhere(&(struct engine){ "dir", "?compress=lz4" });
}

static void packed_file__crash_anywhere__keeps_what_was_acknowledged(void **state)
{
	crash_everywhere(&(struct engine){ "file", "?compress=lz4" });
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(directory__crash_anywhere__keeps_what_was_acknowledged),
		cmocka_unit_test(file__crash_anywhere__keeps_what_was_acknowledged),
		cmocka_unit_test(packed_directory__crash_anywhere__keeps_what_was_acknowledged),
		cmocka_unit_test(packed_file__crash_anywhere__keeps_what_was_acknowledged),
	};

	return cmocka_run_group_tests_name("durability", tests, NULL, NULL);
}
