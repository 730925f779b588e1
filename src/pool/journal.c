#include "pool/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/base.h"
#include "base/log.h"
#include "wire/bytes.h"

#define FRAME_MAGIC 0x474a5044u /* "DPJG": pages with digests */
#define PAGE_RECORD_BYTES 32u      /* page number, slot, digest */
#define FRAME_HEAD_BYTES 40u
#define FRAME_LIMIT (1u << 30)
#define REWRITE_BYTES (UINT64_C(16) << 20) /* a journal is not written anew before it has this size, */
#define REWRITE_FACTOR 4                   /* or this many times what it began with */
#define BOOT_BYTES 36
#define SUFFIX ".journal"

enum record {
	RECORD_BEGIN = 1,
	RECORD_SPACE,
	RECORD_PAGES,
	RECORD_DROP,
	RECORD_MOVE,
	RECORD_FORK,
	RECORD_FREE,
	RECORD_NOTE,
	RECORD_LEASE
};

struct journal {
	int fd;
	char path[1200];
	uint64_t file_bytes, first_bytes;
	uint8_t *buffer; /* a frame in the making; its head is filled in at the end */
	size_t used, room;
	bool broken; /* memory ran out: the frame in the making is not whole */
};

/* ---- writing ---- */

static uint8_t *reserve(struct journal *journal, size_t bytes)
{
	if (journal->used == 0)
		bytes += FRAME_HEAD_BYTES;
	if (journal->used + bytes > journal->room) {
		size_t room = (journal->used + bytes) * 2;
		uint8_t *grown = realloc(journal->buffer, room);

		if (!grown) {
			journal->broken = true;
			return NULL;
		}
		journal->buffer = grown;
		journal->room = room;
	}
	if (journal->used == 0) {
		journal->used = FRAME_HEAD_BYTES;
		bytes -= FRAME_HEAD_BYTES;
	}
	uint8_t *at = journal->buffer + journal->used;

	journal->used += bytes;
	return at;
}

/* A record of numbers: its kind, how many, and they. */
static void add(struct journal *journal, enum record kind, const uint64_t *numbers, size_t count)
{
	uint8_t *at = journal ? reserve(journal, 8 + count * 8) : NULL;

	if (!at)
		return;
	struct bytes_writer out = bytes_writer(at, 8 + count * 8);

	bytes_put_u32(&out, kind);
	bytes_put_u32(&out, (uint32_t)(count * 8));
	for (size_t i = 0; i < count; i++)
		bytes_put_u64(&out, numbers[i]);
}

static void add_bytes(struct journal *journal, enum record kind, const void *bytes, uint32_t length)
{
	uint8_t *at = journal ? reserve(journal, 8u + length) : NULL;

	if (!at)
		return;
	struct bytes_writer out = bytes_writer(at, 8u + length);

	bytes_put_u32(&out, kind);
	bytes_put_u32(&out, length);
	bytes_put(&out, bytes, length);
}

void journal_put(struct object *instance, const struct space *space, const uint64_t *pgnos, const uint64_t *slots, size_t count)
{
	size_t bytes = 8 + PAGE_RECORD_BYTES * count;
	uint8_t *at = instance->journal && count ? reserve(instance->journal, 8 + bytes) : NULL;

	if (!at)
		return;
	struct bytes_writer out = bytes_writer(at, 8 + bytes);

	bytes_put_u32(&out, RECORD_PAGES);
	bytes_put_u32(&out, (uint32_t)bytes);
	bytes_put_u64(&out, space->id);
	for (size_t i = 0; i < count; i++) {
		bytes_put_u64(&out, pgnos[i]);
		bytes_put_u64(&out, slots[i]);
		bytes_put_u64(&out, space->map.slots->digests[slots[i]].low);
		bytes_put_u64(&out, space->map.slots->digests[slots[i]].high);
	}
}

void journal_drop(struct object *instance, const struct space *space, struct page_range range)
{
	add(instance->journal, RECORD_DROP, (const uint64_t[]){ space->id, range.pgno, range.pages }, 3);
}

void journal_move(struct object *instance, const struct space *space, uint64_t from, uint64_t to, uint64_t pages)
{
	add(instance->journal, RECORD_MOVE, (const uint64_t[]){ space->id, from, to, pages }, 4);
}

void journal_fork(struct object *instance, const struct space *parent, uint64_t child)
{
	add(instance->journal, RECORD_FORK, (const uint64_t[]){ parent->id, child }, 2);
}

void journal_free(struct object *instance, uint64_t space)
{
	add(instance->journal, RECORD_FREE, &space, 1);
}

void journal_note(struct object *instance, const void *note, uint32_t bytes)
{
	add_bytes(instance->journal, RECORD_NOTE, note, bytes);
}

static void give_up(struct object *instance, const char *why)
{
	log_warn("instance %s would not survive a restart of the pool: its journal cannot be written: %s", instance->name, why);
	journal_end(instance->journal);
	instance->journal = NULL;
}

/* Fills in the head and writes the frame in one call: what is cut off by a crash is told by its hash. */
static int write_frame(struct journal *journal, const struct object *instance, uint64_t sequence, int result)
{
	if (journal->broken)
		return -ENOMEM;
	if (journal->used == 0 && !reserve(journal, 0))
		return -ENOMEM;
	struct bytes_writer out = bytes_writer(journal->buffer, FRAME_HEAD_BYTES);

	bytes_put_u32(&out, FRAME_MAGIC);
	bytes_put_u32(&out, (uint32_t)journal->used);
	bytes_put_u64(&out, 0); /* the hash */
	bytes_put_u64(&out, instance->epoch);
	bytes_put_u64(&out, sequence);
	bytes_put_u32(&out, (uint32_t)-result);
	bytes_put_u32(&out, 0);
	uint64_t hash = htole64(XXH3_64bits_withSeed(journal->buffer + 16, journal->used - 16, journal->used));

	memcpy(journal->buffer + 8, &hash, sizeof(hash));
	ssize_t written = write(journal->fd, journal->buffer, journal->used);
	size_t wanted = journal->used;

	journal->used = 0;
	if (written != (ssize_t)wanted)
		return written < 0 ? -errno : -ENOSPC;
	journal->file_bytes += wanted;
	return 0;
}

static bool boot_id(char text[static BOOT_BYTES + 1])
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, BOOT_BYTES);

	dp_close_fd(&fd);
	text[BOOT_BYTES] = 0;
	return got == BOOT_BYTES;
}

/* What the journal is about: boot id, id, flags, base by name and time, name. Texts have fixed room. */
struct begin {
	char boot[BOOT_BYTES + 4];
	uint64_t id, base_created_ns, applied, next_number;
	uint32_t resume, by_base;
	char base_name[256], name[256];
};

static int add_begin(struct journal *journal, const struct object *instance, const struct object *base)
{
	struct begin begin;

	memset(&begin, 0, sizeof(begin));
	if (!boot_id(begin.boot))
		return -EIO;
	begin.id = instance->id;
	begin.applied = instance->applied;
	begin.next_number = instance->next_number;
	begin.resume = instance->resume | instance->keep << 1;
	begin.by_base = base != NULL;
	if (base) {
		begin.base_created_ns = base->created_unix_ns;
		memcpy(begin.base_name, base->name, sizeof(begin.base_name));
	}
	memcpy(begin.name, instance->name, sizeof(begin.name));
	add_bytes(journal, RECORD_BEGIN, &begin, sizeof(begin));
	return 0;
}

struct whole_space {
	struct object *instance;
	const struct space *space;
	uint64_t pgnos[256], slots[256];
	size_t count;
};

static int add_page(void *context, uint64_t pgno, uint64_t slot)
{
	struct whole_space *whole = context;

	whole->pgnos[whole->count] = pgno;
	whole->slots[whole->count++] = slot;
	if (whole->count == ARRAY_LENGTH(whole->pgnos)) {
		journal_put(whole->instance, whole->space, whole->pgnos, whole->slots, whole->count);
		whole->count = 0;
	}
	return 0;
}

/* The first frame: by reference to the base, or with all pages. */
static int write_first(struct journal *journal, struct object *instance, const struct object *base)
{
	int result = add_begin(journal, instance, base);

	for (const struct space *space = instance->spaces; space && result == 0; space = space->next) {
		struct whole_space whole = { .instance = instance, .space = space };

		add(journal, RECORD_SPACE, (const uint64_t[]){ space->id, space->label }, 2);
		if (base)
			continue;
		pagemap_walk(&space->map, add_page, &whole);
		journal_put(instance, space, whole.pgnos, whole.slots, whole.count);
	}
	journal_note(instance, instance->note, instance->note_bytes);
	if (journal->used > FRAME_LIMIT)
		return -EFBIG;
	if (result == 0)
		result = write_frame(journal, instance, 0, 0);
	for (uint32_t i = 0; i < instance->failure_count && result == 0; i++)
		result = write_frame(journal, instance, instance->failures[i].sequence, -instance->failures[i].error);
	/* Frames of failures have moved the count on the way of a reader: this one sets it right. */
	if (result == 0 && instance->failure_count)
		result = write_frame(journal, instance, instance->applied, 0);
	journal->first_bytes = journal->file_bytes;
	return result;
}

static struct journal *open_journal(const struct pool *pool, uint64_t id, const char *suffix)
{
	struct journal *journal = calloc(1, sizeof(*journal));

	if (!journal)
		return NULL;
	mkdir(pool->store->beside, 0700);
	snprintf(journal->path, sizeof(journal->path), "%s/%" PRIx64 "%s", pool->store->beside, id, suffix);
	journal->fd = open(journal->path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (journal->fd >= 0)
		return journal;
	free(journal);
	return NULL;
}

void journal_begin(struct pool *pool, struct object *instance)
{
	const struct object *base = pool_object(pool, instance->base, OBJECT_SNAPSHOT);

	int result = pool->store->beside && base ? pool_keep_identity(pool) : -EOPNOTSUPP;

	if (result == -EOPNOTSUPP)
		return;
	if (result < 0) {
		log_warn("instance %s would not survive a restart of the pool: %s", instance->name, strerror(-result));
		return;
	}
	instance->journal = open_journal(pool, instance->id, SUFFIX);
	if (!instance->journal) {
		log_warn("instance %s would not survive a restart of the pool: make a journal in %s: %s", instance->name,
			 pool->store->beside, strerror(errno));
		return;
	}
	result = write_first(instance->journal, instance, base);
	if (result < 0)
		give_up(instance, strerror(-result));
}

int journal_rewrite(struct pool *pool, struct object *instance)
{
	struct journal *old = instance->journal, *fresh = open_journal(pool, instance->id, ".new");

	if (!fresh)
		return -EIO;
	instance->journal = fresh;
	int result = write_first(fresh, instance, NULL);

	if (result == 0 && rename(fresh->path, old->path) < 0)
		result = -errno;
	if (result < 0) {
		instance->journal = old;
		journal_end(fresh);
		return result;
	}
	memcpy(fresh->path, old->path, sizeof(fresh->path));
	journal_close(old);
	return 0;
}

void journal_lease(struct pool *pool, struct object *instance)
{
	add(instance->journal, RECORD_LEASE, NULL, 0);
	journal_commit(pool, instance, 0, 0);
}

void journal_commit(struct pool *pool, struct object *instance, uint64_t sequence, int result)
{
	struct journal *journal = instance->journal;

	if (!journal || (!sequence && !journal->used))
		return;
	int written = write_frame(journal, instance, sequence, result);

	if (written < 0) {
		give_up(instance, strerror(-written));
		return;
	}
	/* That it cannot be written anew is no reason to worry: it is whole as it is. */
	if (journal->file_bytes > REWRITE_BYTES && journal->file_bytes > journal->first_bytes * REWRITE_FACTOR &&
	    journal_rewrite(pool, instance) < 0)
		journal->first_bytes = journal->file_bytes;
}

void journal_close(struct journal *journal)
{
	if (!journal)
		return;
	dp_close_fd(&journal->fd);
	free(journal->buffer);
	free(journal);
}

void journal_end(struct journal *journal)
{
	if (journal)
		unlink(journal->path);
	journal_close(journal);
}

/* ---- reading ---- */

static const struct object *find_base(const struct pool *pool, const struct begin *begin)
{
	const struct object *base = pool_snapshot(pool, begin->base_name);

	return base && base->created_unix_ns == begin->base_created_ns ? base : NULL;
}

static int read_begin(struct pool *pool, const uint8_t *bytes, uint32_t length, struct object **instance)
{
	struct begin begin;
	char boot[BOOT_BYTES + 1];

	if (length != sizeof(begin) || *instance)
		return -EBADMSG;
	memcpy(&begin, bytes, sizeof(begin));
	if (!memchr(begin.base_name, 0, sizeof(begin.base_name)) || !memchr(begin.name, 0, sizeof(begin.name)) ||
	    begin.next_number >> SPACE_NUMBER_BITS > 1 || begin.id >> (64 - SPACE_NUMBER_BITS) ||
	    idmap_find(&pool->objects, begin.id))
		return -EBADMSG;
	if (!boot_id(boot) || memcmp(boot, begin.boot, BOOT_BYTES))
		return -ESTALE; /* the machine has been down: what was answered may not be on the disk */
	const struct object *base = begin.by_base ? find_base(pool, &begin) : NULL;

	if (begin.by_base && !base)
		return -ENOENT;
	uint64_t next_id = pool->next_id;

	pool->next_id = begin.id;
	*instance = object_new(pool, OBJECT_INSTANCE, begin.name, NULL);
	pool->next_id = DP_MAX(next_id, (begin.id + 1) & ID_MASK);
	if (!*instance)
		return -ENOMEM;
	(*instance)->next_number = (uint32_t)begin.next_number;
	(*instance)->applied = begin.applied;
	(*instance)->resume = begin.resume & 1;
	(*instance)->keep = begin.resume & 2;
	(*instance)->failures = calloc(SEQUENCE_WINDOW + 1, sizeof(*(*instance)->failures));
	if (!(*instance)->failures)
		return -ENOMEM;
	if (base) {
		(*instance)->base = base->id;
		((struct object *)base)->instances++;
	}
	return 0;
}

static int read_space(struct pool *pool, struct object *instance, const uint64_t *numbers)
{
	struct space *space = numbers[0] >> SPACE_NUMBER_BITS == instance->id
				      ? object_add_space(pool, instance, numbers[0] & ((1u << SPACE_NUMBER_BITS) - 1), numbers[1])
				      : NULL;
	const struct object *base = instance->base ? pool_object(pool, instance->base, OBJECT_SNAPSHOT) : NULL;

	if (!space)
		return -EBADMSG;
	for (const struct space *of = base ? base->spaces : NULL; of; of = of->next) {
		if (of->label != space->label)
			continue;
		pagemap_clone(&space->map, &of->map);
		return 0;
	}
	return base ? -EBADMSG : 0;
}

static int read_pages(struct pool *pool, struct space *space, const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++, bytes += PAGE_RECORD_BYTES) {
		uint64_t pgno = bytes_load_u64(bytes), slot = bytes_load_u64(bytes + 8);

		if (pgno >= PGNO_END || slot == 0 || slot >= pool->slots.count)
			return -EBADMSG;
		/* What another has in this slot came there later: this frame's page was given up since. */
		if (pool->slots.references[slot] == 0 || pagemap_own_slot(&space->map, pgno) == slot)
			pool->slots.digests[slot] = message_digest_at(bytes + 16, 0);
		slots_take(&pool->slots, slot);
		int result = pagemap_set(&space->map, pgno, slot);

		if (result < 0) {
			slots_release(&pool->slots, slot);
			return result;
		}
	}
	return 0;
}

/* Makes the change of one record again. */
static int read_record(struct pool *pool, struct object **instance, uint32_t kind, const uint8_t *bytes, uint32_t length)
{
	uint64_t numbers[4] = { 0 };

	if (kind == RECORD_BEGIN)
		return read_begin(pool, bytes, length, instance);
	if (!*instance)
		return -EBADMSG;
	if (kind == RECORD_NOTE) {
		return length > NOTE_LIMIT ? -EBADMSG : pool_note(pool, (*instance)->id, (*instance)->epoch, bytes, length);
	}
	for (size_t i = 0; i < DP_MIN(length / 8u, ARRAY_LENGTH(numbers)); i++)
		numbers[i] = bytes_load_u64(bytes + 8 * i);
	if (kind == RECORD_LEASE)
		return 0;
	if (kind == RECORD_SPACE)
		return length == 16 ? read_space(pool, *instance, numbers) : -EBADMSG;
	struct space *space = numbers[0] >> SPACE_NUMBER_BITS == (*instance)->id ? pool_space(pool, numbers[0]) : NULL;
	const void *owner = (*instance)->owner;
	uint64_t epoch = (*instance)->epoch;

	if (!space || length % 8)
		return -EBADMSG;
	if (kind == RECORD_PAGES)
		return length % PAGE_RECORD_BYTES == 8 ? read_pages(pool, space, bytes + 8, length / PAGE_RECORD_BYTES)
						       : -EBADMSG;
	if (kind == RECORD_DROP && length == 24)
		return pagemap_drop(&space->map, numbers[1], numbers[2]);
	if (kind == RECORD_MOVE && length == 32)
		return pagemap_move(&space->map, numbers[1], numbers[2], numbers[3]);
	if (kind == RECORD_FORK && length == 16)
		return pool_fork(pool, owner, numbers[0], epoch, numbers[1]);
	if (kind == RECORD_FREE && length == 8)
		return pool_space_free(pool, owner, numbers[0], epoch);
	return -EBADMSG;
}

static int read_records(struct pool *pool, struct object **instance, const uint8_t *at, const uint8_t *end)
{
	while (at < end) {
		if (end - at < 8 || bytes_load_u32(at + 4) > (uint64_t)(end - at) - 8)
			return -EBADMSG;
		int result = read_record(pool, instance, bytes_load_u32(at), at + 8, bytes_load_u32(at + 4));

		if (result < 0)
			return result;
		at += 8 + bytes_load_u32(at + 4);
	}
	return 0;
}

/* Bytes of the frame at `at`, 0 where none is whole. */
static size_t whole_frame(const uint8_t *at, size_t left)
{
	if (left < FRAME_HEAD_BYTES || bytes_load_u32(at) != FRAME_MAGIC)
		return 0;
	size_t length = bytes_load_u32(at + 4);

	if (length < FRAME_HEAD_BYTES || length > left ||
	    XXH3_64bits_withSeed(at + 16, length - 16, length) != bytes_load_u64(at + 8))
		return 0;
	return length;
}

/* *whole: bytes that were read; what is behind was cut off. */
static int read_journal(struct pool *pool, const uint8_t *bytes, size_t length, struct object **instance, size_t *whole)
{
	int result = 0;
	size_t frame;

	for (*whole = 0; result == 0 && (frame = whole_frame(bytes + *whole, length - *whole)); *whole += frame) {
		const uint8_t *at = bytes + *whole;
		uint64_t sequence = bytes_load_u64(at + 24);

		result = read_records(pool, instance, at + FRAME_HEAD_BYTES, at + frame);
		if (!*instance)
			return result < 0 ? result : -EBADMSG;
		(*instance)->epoch = bytes_load_u64(at + 16);
		if (sequence)
			pool_applied(*instance, sequence, -(int)bytes_load_u32(at + 32));
	}
	return result < 0 ? result : *instance ? 0 : -EBADMSG;
}

static int load_one(struct pool *pool, int directory_fd, const char *file)
{
	cleanup_free char *path = format_text("%s/%s", pool->store->beside, file);
	cleanup_free char *bytes = NULL;
	struct object *instance = NULL;
	size_t whole = 0;
	ssize_t length = path ? io_read_file(path, &bytes, (size_t)4 << 30) : -ENOMEM;
	int result = length < 0 ? (int)length : read_journal(pool, (const uint8_t *)bytes, (size_t)length, &instance, &whole);
	struct journal *journal = result == 0 ? calloc(1, sizeof(*journal)) : NULL;

	if (result == 0 && !journal)
		result = -ENOMEM;
	if (result == 0) {
		snprintf(journal->path, sizeof(journal->path), "%s", path);
		journal->fd = openat(directory_fd, file, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
		journal->file_bytes = journal->first_bytes = whole;
		if (journal->fd < 0 || ftruncate(journal->fd, (off_t)whole) < 0)
			result = -errno;
	}
	if (result == 0) {
		instance->journal = journal;
		instance->lost_ns = clock_now_ns();
		pool->lost_count++;
		log_info("instance %s is here again, after operation %" PRIu64, instance->name, instance->applied);
		return 0;
	}
	if (result != -ESTALE)
		log_warn("journal %s: %s: its instance is gone", file, strerror(-result));
	if (journal)
		journal_close(journal);
	if (instance)
		object_free(pool, instance);
	unlinkat(directory_fd, file, 0);
	return 0;
}

/* One that waited longer than it may, while nobody was here. */
static bool expired(const struct pool *pool, const struct stat *info)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return pool->keep_lost_ns && now.tv_sec > info->st_mtim.tv_sec &&
	       (uint64_t)(now.tv_sec - info->st_mtim.tv_sec) > pool->keep_lost_ns / 1000000000u;
}

int journal_load(struct pool *pool, struct dp_err *err)
{
	DIR *directory = pool->store->beside ? opendir(pool->store->beside) : NULL;

	if (!directory)
		return pool->store->beside && errno != ENOENT ? dp_fail_errno(err, errno, "read %s", pool->store->beside) : 0;
	/* What the changes on the way let go of is free already as far as the store knows: it is not given back. */
	pool->slots.store = NULL;
	struct dirent *entry;
	int more;

	while ((more = io_next_entry(directory, &entry)) > 0) {
		struct stat info;
		size_t length = strlen(entry->d_name);

		if (fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(info.st_mode))
			continue;
		bool ours = length > strlen(SUFFIX) && !strcmp(entry->d_name + length - strlen(SUFFIX), SUFFIX);

		if (!ours || expired(pool, &info))
			unlinkat(dirfd(directory), entry->d_name, 0);
		else
			load_one(pool, dirfd(directory), entry->d_name);
	}
	closedir(directory);
	slots_flush(&pool->slots);
	pool->slots.store = pool->store;
	return more < 0 ? dp_fail_errno(err, -more, "read %s", pool->store->beside) : 0;
}
