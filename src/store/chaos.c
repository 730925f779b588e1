/* A layer over any store that fails on demand: for tests, of this program and of what is built on it.
 *
 * `STORE?chaos=OPTIONS`, such as memory:?chaos=delay:5ms,fail:0.01,seed:7, lies below a packed layer. OPTIONS, by commas:
 *     op:write|read|alloc|sync|put|get|delete  which calls (default: all but get, so that the store can be opened); may be
 *     repeated
 *     fail:P        each such call fails with probability P
 *     nth:N         the Nth such call fails, and no other
 *     after:N, times:M  the first N calls go well, then M fail (default: all); without after, the first M
 *     errno:EIO|ENOSPC|ENOMEM  how (default EIO)
 *     delay:5ms     each such call waits first
 *     corrupt:P     each page is read with one byte changed with probability P; the next read may be right
 *     rot:P         each page is written so: it stays wrong
 *     seed:N        of the probabilities (default 1): the same calls in the same order meet the same */
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "base/log.h"
#include "store/over.h"

enum chaos_op {
	CHAOS_ALLOC = 1, CHAOS_WRITE = 2, CHAOS_READ = 4, CHAOS_SYNC = 8, CHAOS_PUT = 16, CHAOS_DELETE = 32, CHAOS_GET = 64,
	CHAOS_DEFAULT = 63
};

struct chaos_store {
	struct store_over over;
	unsigned ops;
	uint64_t after, times, delay_ns;
	/* probabilities, as thresholds of a 64-bit number */
	uint64_t fail, corrupt, rot;
	int error;
	_Atomic uint64_t calls, random; /* sync may come from another thread */
	uint64_t failed, corrupted, rotted;
};

static struct chaos_store *chaos_of(struct store *store)
{
	return (struct chaos_store *)store;
}

/* splitmix64: one atomic addition, so that threads need no lock. */
static uint64_t next_random(struct chaos_store *chaos)
{
	uint64_t x = atomic_fetch_add(&chaos->random, UINT64_C(0x9e3779b97f4a7c15)) + UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static bool happens(struct chaos_store *chaos, uint64_t threshold)
{
	return threshold && next_random(chaos) < threshold;
}

static void damage(struct chaos_store *chaos, void *page)
{
	uint64_t x = next_random(chaos);

	((uint8_t *)page)[x % PAGE_BYTES] ^= (uint8_t)(1 + (x >> 32) % 255);
}

/* Counts a call; 0 or the error that it shall fail with. */
static int strike(struct store *store, enum chaos_op op)
{
	struct chaos_store *chaos = chaos_of(store);

	if (!(chaos->ops & op))
		return 0;
	if (chaos->delay_ns) {
		struct timespec delay = { (time_t)(chaos->delay_ns / 1000000000), (long)(chaos->delay_ns % 1000000000) };

		nanosleep(&delay, NULL);
	}
	uint64_t call = atomic_fetch_add(&chaos->calls, 1);
	bool fails = (call >= chaos->after && call - chaos->after < chaos->times) || happens(chaos, chaos->fail);

	chaos->failed += fails;
	return fails ? -chaos->error : 0;
}

static int chaos_alloc(struct store *store, uint64_t *slots, size_t count)
{
	struct store *lower = store_below(store);
	int result = strike(store, CHAOS_ALLOC);

	return result < 0 ? result : lower->ops->alloc(lower, slots, count);
}

static void chaos_free(struct store *store, const uint64_t *slots, size_t count)
{
	struct store *lower = store_below(store);

	lower->ops->free(lower, slots, count);
}

/* Writes a page damaged now and then; the caller's bytes stay as they are. */
static int write_rotten(struct chaos_store *chaos, const uint64_t *slots, const void *const *pages, size_t count)
{
	uint8_t copy[PAGE_BYTES];

	for (size_t i = 0; i < count; i++) {
		const void *page = pages[i];

		if (happens(chaos, chaos->rot)) {
			page = memcpy(copy, page, PAGE_BYTES);
			damage(chaos, copy);
			chaos->rotted++;
		}
		int result = chaos->over.own->ops->write(chaos->over.own, &slots[i], &page, 1);

		if (result < 0)
			return result;
	}
	return 0;
}

static int chaos_write(struct store *store, const uint64_t *slots, const void *const *pages, size_t count)
{
	struct chaos_store *chaos = chaos_of(store);
	int result = strike(store, CHAOS_WRITE);

	if (result < 0)
		return result;
	return chaos->rot ? write_rotten(chaos, slots, pages, count)
			  : chaos->over.own->ops->write(chaos->over.own, slots, pages, count);
}

static int chaos_read(struct store *store, const uint64_t *slots, void *const *pages, size_t count)
{
	struct chaos_store *chaos = chaos_of(store);
	int struck = strike(store, CHAOS_READ);

	if (struck < 0)
		return struck;
	int result = chaos->over.own->ops->read(chaos->over.own, slots, pages, count);

	for (size_t i = 0; i < count && result == 0; i++) {
		if (!happens(chaos, chaos->corrupt))
			continue;
		damage(chaos, pages[i]);
		chaos->corrupted++;
	}
	return result;
}

static const void *chaos_page(struct store *store, uint64_t slot)
{
	struct chaos_store *chaos = chaos_of(store);

	/* What is to happen to reads can only happen where they are made. */
	return chaos->ops & CHAOS_READ || chaos->corrupt ? NULL : chaos->over.own->ops->page(chaos->over.own, slot);
}

static int chaos_sync(struct store *store)
{
	struct store *lower = store_below(store);
	int result = strike(store, CHAOS_SYNC);

	return result < 0 ? result : lower->ops->sync(lower);
}

static int chaos_blob_put(struct store *store, const char *name, const void *bytes, uint64_t length)
{
	int result = strike(store, CHAOS_PUT);

	return result < 0 ? result : store_over_blob_put(store, name, bytes, length);
}

static int chaos_blob_get(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit)
{
	int result = strike(store, CHAOS_GET);

	return result < 0 ? result : store_over_blob_get(store, name, bytes, length, limit);
}

static int chaos_blob_delete(struct store *store, const char *name)
{
	int result = strike(store, CHAOS_DELETE);

	return result < 0 ? result : store_over_blob_delete(store, name);
}

static void chaos_close(struct store *store)
{
	struct chaos_store *chaos = chaos_of(store);

	log_warn("chaos store: %" PRIu64 " calls failed, %" PRIu64 " pages read and %" PRIu64 " written damaged", chaos->failed,
		 chaos->corrupted, chaos->rotted);
	store_close(chaos->over.own);
	free(store);
}

static const struct store_ops chaos_ops = {
	.name = "chaos",
	.alloc = chaos_alloc,
	.free = chaos_free,
	.write = chaos_write,
	.read = chaos_read,
	.page = chaos_page,
	.sync = chaos_sync,
	.blob_put = chaos_blob_put,
	.blob_get = chaos_blob_get,
	.blob_list = store_over_blob_list,
	.blob_delete = chaos_blob_delete,
	.adopt = store_over_adopt,
	.capacity = store_over_capacity,
	.close = chaos_close,
};

struct chaos_word {
	const char *name;
	int value;
};

static int take_word(const char *name, const struct chaos_word *words, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(words[i].name, name) == 0)
			return words[i].value;
	return -EINVAL;
}

static int take_op(struct chaos_store *chaos, const char *name)
{
	static const struct chaos_word ops[] = { { "alloc", CHAOS_ALLOC }, { "write", CHAOS_WRITE }, { "read", CHAOS_READ },
						 { "sync", CHAOS_SYNC },   { "put", CHAOS_PUT },     { "delete", CHAOS_DELETE },
						 { "get", CHAOS_GET } };
	int op = take_word(name, ops, ARRAY_LENGTH(ops));

	if (op > 0)
		chaos->ops |= (unsigned)op;
	return op;
}

static int take_errno(struct chaos_store *chaos, const char *name)
{
	static const struct chaos_word known[] = { { "ENOSPC", ENOSPC }, { "EIO", EIO }, { "ENOMEM", ENOMEM } };

	chaos->error = take_word(name, known, ARRAY_LENGTH(known));
	return chaos->error;
}

/* A probability as the share of all 64-bit numbers. */
static int take_probability(const char *text, uint64_t *threshold)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= 0) || !(value <= 1))
		return -EINVAL;
	*threshold = value >= 1 ? UINT64_MAX : (uint64_t)(value * 18446744073709551616.0);
	return 0;
}

static int take_number(struct chaos_store *chaos, const char *key, const char *value)
{
	uint64_t number;

	if (strcmp(key, "delay") == 0)
		return parse_duration(value, &chaos->delay_ns);
	if (parse_size(value, &number) < 0)
		return -EINVAL;
	if (strcmp(key, "seed") == 0) {
		chaos->random = number;
	} else if (strcmp(key, "times") == 0) {
		chaos->times = number;
	} else if (strcmp(key, "nth") == 0 && number > 0) {
		chaos->after = number - 1;
		chaos->times = 1;
	} else if (strcmp(key, "after") == 0) {
		chaos->after = number;
		if (chaos->times == 0)
			chaos->times = UINT64_MAX;
	} else {
		return -EINVAL;
	}
	return 0;
}

static int take_option(struct chaos_store *chaos, char *option)
{
	size_t length = strcspn(option, ":");
	const char *value = option[length] ? option + length + 1 : "";

	option[length] = 0;
	if (strcmp(option, "op") == 0)
		return take_op(chaos, value);
	if (strcmp(option, "errno") == 0)
		return take_errno(chaos, value);
	if (strcmp(option, "fail") == 0)
		return take_probability(value, &chaos->fail);
	if (strcmp(option, "corrupt") == 0)
		return take_probability(value, &chaos->corrupt);
	if (strcmp(option, "rot") == 0)
		return take_probability(value, &chaos->rot);
	return take_number(chaos, option, value);
}

int store_chaos_open(struct store **store, struct store *lower, const char *options, struct dp_err *err)
{
	struct chaos_store *chaos = calloc(1, sizeof(*chaos));
	cleanup_free char *list = strdup(options);
	char *save = NULL;
	int result = 0;

	*store = lower;
	if (!chaos || !list) {
		free(chaos);
		return dp_fail_errno(err, ENOMEM, "open store");
	}
	*chaos = (struct chaos_store){ .over.own = lower, .error = EIO, .random = 1 };
	for (char *option = strtok_r(list, ",", &save); option && result >= 0; option = strtok_r(NULL, ",", &save))
		if ((result = take_option(chaos, option)) < 0)
			dp_fail(err, EINVAL, "bad option '%s' in chaos=%.100s; see distri-proc-pool-serve(1)", option, options);
	if (result < 0) {
		free(chaos);
		return -EINVAL;
	}
	if (!chaos->ops)
		chaos->ops = CHAOS_DEFAULT;
	chaos->over.store = (struct store){ .ops = &chaos_ops, .persistent = lower->persistent, .beside = lower->beside };
	log_warn("the store fails on purpose: chaos=%s", options);
	*store = &chaos->over.store;
	return 0;
}
