/* file:/path: a store in one file.
 *
 *   slots 0 and 1: superblocks; the valid one with the higher generation counts
 *   other slots:   pages; blobs and the catalog of blobs, each in a run of slots
 *
 * A change of blobs writes the blob and a new catalog into free slots, syncs, then writes the superblock that is not current
 * and syncs again: one 4 KiB write flips from the old state to the new. The old catalog's slots are free only after that.
 * A store of version 1 (the same, but for what the pool writes into its manifests) is read; before anything is put into it both
 * its superblocks become those of version 2, so that programs that know only version 1 refuse it from then on.
 * flock on the file itself keeps a second pool out. */
#include "store/store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/base.h"
#include "store/heap_store.h"
#include "wire/bytes.h"

#define SUPERBLOCKS 2
#define SUPERBLOCK_MAGIC UINT64_C(0x314552545350444c)
#define FILE_VERSION 2u
#define SUPERBLOCK_BYTES 52 /* the fields; the rest of the page is zero */
#define CATALOG_LIMIT (UINT64_C(1) << 30)

struct file_blob {
	char name[BLOB_NAME_LIMIT + 1];
	uint64_t first, length, hash; /* first slot, bytes, xxh3 of the bytes */
};

struct file_store {
	struct heap_store base;
	int fd;
	bool broken; /* a superblock was written, but perhaps not: both states must stay on disk, so nothing is freed any more */
	uint64_t generation;
	uint64_t catalog_first, catalog_length, catalog_hash; /* 0, 0: no blobs yet */
	bool old_format;
	struct file_blob *blobs;
	size_t blob_count;
};

static struct file_store *file_of(struct store *store)
{
	return (struct file_store *)store;
}

static uint64_t slots_of(uint64_t bytes)
{
	return bytes / PAGE_BYTES + (bytes % PAGE_BYTES != 0);
}

static void file_free(struct store *store, const uint64_t *slots, size_t count)
{
	if (!file_of(store)->broken)
		heap_store_free(store, slots, count);
}

static int file_sync(struct store *store)
{
	return fdatasync(file_of(store)->fd) < 0 ? -errno : 0;
}

/* ---- superblock and catalog as bytes ---- */

static void superblock_encode(uint8_t page[static PAGE_BYTES], uint64_t generation, uint64_t first, uint64_t length,
			      uint64_t hash)
{
	struct bytes_writer out = bytes_writer(page, PAGE_BYTES);

	memset(page, 0, PAGE_BYTES);
	bytes_put_u64(&out, SUPERBLOCK_MAGIC);
	bytes_put_u32(&out, FILE_VERSION);
	bytes_put_u64(&out, generation);
	bytes_put_u64(&out, first);
	bytes_put_u64(&out, length);
	bytes_put_u64(&out, hash);
	bytes_put_u64(&out, XXH3_64bits(page, SUPERBLOCK_BYTES - 8));
}

struct superblock {
	bool good;
	uint32_t version;
	uint64_t generation, first, length, hash;
};

static struct superblock superblock_decode(const uint8_t page[static PAGE_BYTES])
{
	struct bytes_reader in = { .at = page, .end = page + SUPERBLOCK_BYTES };
	struct superblock block = { .good = bytes_get_u64(&in) == SUPERBLOCK_MAGIC, .version = bytes_get_u32(&in) };

	block.generation = bytes_get_u64(&in);
	block.first = bytes_get_u64(&in);
	block.length = bytes_get_u64(&in);
	block.hash = bytes_get_u64(&in);
	block.good &= bytes_get_u64(&in) == XXH3_64bits(page, SUPERBLOCK_BYTES - 8);
	return block;
}

/* Fresh bytes. */
static uint8_t *catalog_encode(const struct file_store *file, uint64_t *length)
{
	size_t size = 4 + file->blob_count * (2 + BLOB_NAME_LIMIT + 24);
	uint8_t *bytes = malloc(size);

	if (!bytes)
		return NULL;
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u32(&out, (uint32_t)file->blob_count);
	for (size_t i = 0; i < file->blob_count; i++) {
		const struct file_blob *blob = &file->blobs[i];

		bytes_put_u16(&out, (uint16_t)strlen(blob->name));
		bytes_put(&out, blob->name, strlen(blob->name));
		bytes_put_u64(&out, blob->first);
		bytes_put_u64(&out, blob->length);
		bytes_put_u64(&out, blob->hash);
	}
	assert(!out.bad);
	*length = (uint64_t)(out.at - out.start);
	return bytes;
}

static bool run_good(const struct file_store *file, uint64_t first, uint64_t length)
{
	uint64_t end = file->base.heap.found_end;

	return first >= SUPERBLOCKS && first < end && length <= (end - first) * PAGE_BYTES;
}

static int catalog_decode(struct file_store *file, const uint8_t *bytes, uint64_t length)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };
	uint32_t count = bytes_get_u32(&in);

	if (count > length / 27)
		return -EBADMSG;
	file->blobs = calloc(count + 1, sizeof(*file->blobs));
	if (!file->blobs)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++) {
		struct file_blob *blob = &file->blobs[i];
		uint16_t name_length = bytes_get_u16(&in);
		const uint8_t *name = bytes_take(&in, name_length);

		if (!name || name_length > BLOB_NAME_LIMIT)
			return -EBADMSG;
		memcpy(blob->name, name, name_length);
		blob->first = bytes_get_u64(&in);
		blob->length = bytes_get_u64(&in);
		blob->hash = bytes_get_u64(&in);
		if (in.bad || !store_blob_name_good(blob->name) || !run_good(file, blob->first, blob->length))
			return -EBADMSG;
	}
	file->blob_count = count;
	return bytes_complete(&in) ? 0 : -EBADMSG;
}

/* ---- changing blobs ---- */

static int write_run(struct file_store *file, const void *bytes, uint64_t length, uint64_t *first)
{
	int result = heap_alloc_run(&file->base.heap, DP_MAX(slots_of(length), 1u), first);

	if (result < 0)
		return result;
	result = io_pwrite_full(file->fd, bytes, length, *first * PAGE_BYTES);
	if (result < 0) {
		heap_free_run(&file->base.heap, *first, DP_MAX(slots_of(length), 1u));
		return result == -EDQUOT || result == -EFBIG ? -ENOSPC : result;
	}
	return 0;
}

static void free_run(struct file_store *file, uint64_t first, uint64_t length)
{
	if (file->broken)
		return;
	heap_free_run(&file->base.heap, first, DP_MAX(slots_of(length), 1u));
}

/* The superblock that is not current becomes so, naming a catalog that is on the disk. */
static int write_superblock(struct file_store *file, uint64_t first, uint64_t length, uint64_t hash)
{
	uint8_t page[PAGE_BYTES];

	superblock_encode(page, file->generation + 1, first, length, hash);
	int result = io_pwrite_full(file->fd, page, PAGE_BYTES, (file->generation + 1) % SUPERBLOCKS * PAGE_BYTES);

	if (result == 0 && fdatasync(file->fd) < 0)
		result = -errno;
	if (result < 0) {
		file->broken = true;
		return result;
	}
	file->catalog_first = first;
	file->catalog_length = length;
	file->catalog_hash = hash;
	file->generation++;
	return 0;
}

/* Both superblocks, or an older program would take the one of its version for the truth. */
static int upgrade(struct file_store *file)
{
	int result = 0;

	for (unsigned i = 0; i < SUPERBLOCKS && result == 0; i++)
		result = write_superblock(file, file->catalog_first, file->catalog_length, file->catalog_hash);
	file->old_format = result < 0;
	return result;
}

/* Makes file->blobs the truth on disk. On failure the superblock still names the old catalog. */
static int flip(struct file_store *file)
{
	uint64_t length = 0, first = 0, old_first = file->catalog_first, old_length = file->catalog_length;
	cleanup_free uint8_t *catalog = catalog_encode(file, &length);

	if (file->broken)
		return -EIO;
	if (!catalog)
		return -ENOMEM;
	int result = file->old_format ? upgrade(file) : 0;

	if (result == 0)
		result = write_run(file, catalog, length, &first);
	if (result < 0)
		return result;
	if (fdatasync(file->fd) < 0) {
		result = -errno;
		free_run(file, first, length);
		return result;
	}
	result = write_superblock(file, first, length, XXH3_64bits(catalog, length));
	if (result < 0)
		return result;
	if (old_first)
		free_run(file, old_first, old_length);
	return 0;
}

static struct file_blob *find_blob(struct store *store, const char *name)
{
	struct file_store *file = file_of(store);

	for (size_t i = 0; i < file->blob_count; i++)
		if (strcmp(file->blobs[i].name, name) == 0)
			return &file->blobs[i];
	return NULL;
}

static int file_blob_put(struct store *store, const char *name, const void *bytes, uint64_t length)
{
	struct file_store *file = file_of(store);
	struct file_blob *old = find_blob(store, name), previous = { 0 };
	struct file_blob blob = { .length = length, .hash = XXH3_64bits(bytes, length) };

	if (!store_blob_name_good(name))
		return -EINVAL;
	strcpy(blob.name, name);
	if (!old) {
		struct file_blob *blobs = reallocarray(file->blobs, file->blob_count + 1, sizeof(*blobs));

		if (!blobs)
			return -ENOMEM;
		file->blobs = blobs;
	} else {
		previous = *old;
	}
	int result = write_run(file, bytes, length, &blob.first);

	if (result < 0)
		return result;
	if (old)
		*old = blob;
	else
		file->blobs[file->blob_count++] = blob;
	result = flip(file);
	if (result < 0) {
		free_run(file, blob.first, blob.length);
		if (old)
			*old = previous;
		else
			file->blob_count--;
	} else if (old) {
		free_run(file, previous.first, previous.length);
	}
	return result;
}

static int file_blob_get(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit)
{
	const struct file_blob *blob = find_blob(store, name);

	if (!blob)
		return -ENOENT;
	if (blob->length > limit)
		return -EFBIG;
	uint8_t *content = malloc(blob->length + 1);

	if (!content)
		return -ENOMEM;
	/* Through the mapping: a run is contiguous in the file, but slabs are mapped one by one. */
	for (uint64_t done = 0; done < blob->length; done += PAGE_BYTES)
		memcpy(content + done, heap_page(&file_of(store)->base.heap, blob->first + done / PAGE_BYTES),
		       DP_MIN(blob->length - done, (uint64_t)PAGE_BYTES));
	if (XXH3_64bits(content, blob->length) != blob->hash) {
		free(content);
		return -EBADMSG;
	}
	*bytes = content;
	*length = blob->length;
	return 0;
}

static int file_blob_list(struct store *store, store_blob_visit visit, void *context)
{
	const struct file_store *file = file_of(store);
	int result = 0;

	for (size_t i = 0; i < file->blob_count && result >= 0; i++)
		result = visit(context, file->blobs[i].name, file->blobs[i].length);
	return result < 0 ? result : 0;
}

static int file_blob_delete(struct store *store, const char *name)
{
	struct file_store *file = file_of(store);
	struct file_blob *blob = find_blob(store, name);

	if (!blob)
		return -ENOENT;
	struct file_blob gone = *blob, *last = &file->blobs[file->blob_count - 1];
	struct file_blob moved = *last;

	*blob = moved;
	file->blob_count--;
	int result = flip(file);

	if (result < 0) {
		file->blobs[file->blob_count++] = moved;
		*blob = gone;
		return result;
	}
	free_run(file, gone.first, gone.length);
	return 0;
}

static void file_close(struct store *store)
{
	struct file_store *file = file_of(store);

	heap_done(&file->base.heap);
	dp_close_fd(&file->fd);
	free(file->blobs);
	free(store->beside);
	free(file);
}

static const struct store_ops file_ops = {
	.name = "file",
	.alloc = heap_store_alloc,
	.free = file_free,
	.write = heap_store_write,
	.read = heap_store_read,
	.page = heap_store_page,
	.sync = file_sync,
	.blob_put = file_blob_put,
	.blob_get = file_blob_get,
	.blob_list = file_blob_list,
	.blob_delete = file_blob_delete,
	.adopt = heap_store_adopt,
	.capacity = heap_store_capacity,
	.close = file_close,
};

/* ---- opening ---- */

static int mark_run(struct file_store *file, uint64_t first, uint64_t length)
{
	for (uint64_t i = 0; i < DP_MAX(slots_of(length), 1u); i++)
		if (!heap_mark(&file->base.heap, first + i))
			return -EBADMSG;
	return 0;
}

static int load_catalog(struct file_store *file, uint64_t hash)
{
	uint64_t length = file->catalog_length;

	if (file->catalog_first == 0 && length == 0)
		return 0; /* as created */
	if (!run_good(file, file->catalog_first, length) || length > CATALOG_LIMIT)
		return -EBADMSG;
	cleanup_free uint8_t *bytes = malloc(length + 1);

	if (!bytes)
		return -ENOMEM;
	for (uint64_t done = 0; done < length; done += PAGE_BYTES)
		memcpy(bytes + done, heap_page(&file->base.heap, file->catalog_first + done / PAGE_BYTES),
		       DP_MIN(length - done, (uint64_t)PAGE_BYTES));
	if (XXH3_64bits(bytes, length) != hash)
		return -EBADMSG;
	int result = catalog_decode(file, bytes, length);

	if (result == 0)
		result = mark_run(file, file->catalog_first, length);
	for (size_t i = 0; result == 0 && i < file->blob_count; i++)
		result = mark_run(file, file->blobs[i].first, file->blobs[i].length);
	return result;
}

/* Takes the newer superblock whose catalog can be read. */
static int load(struct file_store *file, const char *path, struct dp_err *err)
{
	struct superblock found[SUPERBLOCKS], *newest;

	for (size_t i = 0; i < SUPERBLOCKS; i++) {
		found[i] = superblock_decode(heap_page(&file->base.heap, i));
		if (found[i].good && (found[i].version < 1 || found[i].version > FILE_VERSION))
			return dp_fail(err, EBADMSG,
				       "store file:%s is of another version than this program's; use the program that made it",
				       path);
		file->old_format |= found[i].good && found[i].version < FILE_VERSION;
	}
	if (!found[0].good && !found[1].good)
		return dp_fail(err, EBADMSG, "file %s is not a pool's store; name another or a new file", path);
	newest = !found[1].good || (found[0].good && found[0].generation > found[1].generation) ? &found[0] : &found[1];
	file->generation = newest->generation;
	file->catalog_first = newest->first;
	file->catalog_length = newest->length;
	file->catalog_hash = newest->hash;
	int result = load_catalog(file, newest->hash);

	return result < 0 ? dp_fail_errno(err, -result, "store file:%s: its catalog is damaged", path) : 0;
}

/* The first thing that a new file gets is a superblock without a catalog: killed at any moment of its making, the store is
 * an empty file or an empty store. */
static int create(struct file_store *file, const char *path, struct dp_err *err)
{
	uint8_t page[PAGE_BYTES];
	int result;

	superblock_encode(page, 0, 0, 0, 0);
	result = io_pwrite_full(file->fd, page, PAGE_BYTES, 0);
	if (result == 0 && fdatasync(file->fd) < 0)
		result = -errno;
	if (result == 0)
		result = store_sync_parent(path);
	return result < 0 ? dp_fail_errno(err, -result, "create store file:%s", path) : 0;
}

/* Something else's file is left as it is: this looks before the heap makes it longer. */
static bool is_store(const struct file_store *file)
{
	for (unsigned i = 0; i < SUPERBLOCKS; i++) {
		uint64_t magic;

		if (pread(file->fd, &magic, sizeof(magic), (off_t)i * PAGE_BYTES) == (ssize_t)sizeof(magic) &&
		    le64toh(magic) == SUPERBLOCK_MAGIC)
			return true;
	}
	return false;
}

static int open_parts(struct file_store *file, const char *path, bool may_create, struct dp_err *err)
{
	struct stat status;
	int result;

	file->fd = open(path, O_RDWR | O_CLOEXEC | (may_create ? O_CREAT : 0), 0600);
	if (file->fd < 0)
		return errno == ENOENT && !may_create ? dp_fail(err, ENOENT, "there is no pool at file:%s", path) :
						    dp_fail_errno(err, errno, "open %s", path);
	if (flock(file->fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? dp_fail(err, EBUSY, "store file:%s is in use by another pool", path) :
					      dp_fail_errno(err, errno, "lock %s", path);
	if (fstat(file->fd, &status) < 0)
		return dp_fail_errno(err, errno, "open %s", path);
	if (!S_ISREG(status.st_mode))
		return dp_fail(err, EINVAL, "store file:%s: not a regular file", path);
	if (status.st_size == 0 && !may_create)
		return dp_fail(err, ENOENT, "there is no pool at file:%s (the file is empty)", path);
	if (status.st_size == 0) {
		result = create(file, path, err);
		if (result < 0)
			return result;
	} else if (!is_store(file)) {
		return dp_fail(err, EBADMSG, "file %s is not a pool's store; name another or a new file", path);
	}
	result = heap_init(&file->base.heap, file->fd, SUPERBLOCKS, UINT64_MAX);
	if (result < 0)
		return dp_fail_errno(err, -result, "open store file:%s", path);
	return load(file, path, err);
}

int store_file_open(struct store **store, const char *path, bool create, struct dp_err *err)
{
	struct file_store *file = calloc(1, sizeof(*file));

	if (!file)
		return dp_fail_errno(err, ENOMEM, "open store file:%s", path);
	file->base.store = (struct store){ .ops = &file_ops, .persistent = true };
	file->fd = -1;
	int result = open_parts(file, path, create, err);

	if (result < 0) {
		file_close(&file->base.store);
		return result;
	}
	file->base.store.beside = format_text("%s.instances", path);
	*store = &file->base.store;
	return 0;
}
