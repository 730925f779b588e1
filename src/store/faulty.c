/* fault:OPTIONS:STORE: a layer over any store that fails on demand, for tests.
 *
 * OPTIONS, comma-separated: `op=write|read|alloc|sync|put|delete` (default: any), `after=N` (the first N such calls go well,
 * default 0), `times=M` (then M of them fail, default: all), `errno=ENOSPC|EIO|ENOMEM` (default EIO), `delay=10ms` (each such
 * call waits first), `corrupt` (instead of failing, a read page has one byte changed).
 * Example: fault:op=write,after=3,errno=ENOSPC:memory: */
#include "store/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"

enum fault_op { FAULT_ALLOC = 1, FAULT_WRITE = 2, FAULT_READ = 4, FAULT_SYNC = 8, FAULT_PUT = 16, FAULT_DELETE = 32, FAULT_ANY = 63 };

struct faulty_store {
	struct store store;
	struct store *lower;
	unsigned ops;
	uint64_t after, times, delay_ns;
	_Atomic uint64_t calls; /* sync may come from another thread */
	int error;
	bool corrupt;
};

static struct faulty_store *faulty_of(struct store *store)
{
	return (struct faulty_store *)store;
}

/* Counts a call; 0 or the error that it shall fail with. */
static int strike(struct store *store, enum fault_op op)
{
	struct faulty_store *faulty = faulty_of(store);

	if (!(faulty->ops & op))
		return 0;
	if (faulty->delay_ns) {
		struct timespec delay = { (time_t)(faulty->delay_ns / 1000000000), (long)(faulty->delay_ns % 1000000000) };

		nanosleep(&delay, NULL);
	}
	uint64_t call = faulty->calls++;

	return call >= faulty->after && call - faulty->after < faulty->times ? -faulty->error : 0;
}

static int faulty_alloc(struct store *store, uint64_t *slots, size_t count)
{
	struct store *lower = faulty_of(store)->lower;
	int result = strike(store, FAULT_ALLOC);

	return result < 0 ? result : lower->ops->alloc(lower, slots, count);
}

static void faulty_free(struct store *store, const uint64_t *slots, size_t count)
{
	struct store *lower = faulty_of(store)->lower;

	lower->ops->free(lower, slots, count);
}

static int faulty_write(struct store *store, const uint64_t *slots, const void *const *pages, size_t count)
{
	struct store *lower = faulty_of(store)->lower;
	int result = strike(store, FAULT_WRITE);

	return result < 0 ? result : lower->ops->write(lower, slots, pages, count);
}

static int faulty_read(struct store *store, const uint64_t *slots, void *const *pages, size_t count)
{
	struct faulty_store *faulty = faulty_of(store);
	int struck = strike(store, FAULT_READ);

	if (struck < 0 && !faulty->corrupt)
		return struck;
	int result = faulty->lower->ops->read(faulty->lower, slots, pages, count);

	if (result == 0 && struck < 0)
		((uint8_t *)pages[0])[123] ^= 0x5a;
	return result;
}

static const void *faulty_page(struct store *store, uint64_t slot)
{
	struct faulty_store *faulty = faulty_of(store);

	/* Where reads are to fail, they must be made. */
	return faulty->ops & FAULT_READ ? NULL : faulty->lower->ops->page(faulty->lower, slot);
}

static int faulty_sync(struct store *store)
{
	struct store *lower = faulty_of(store)->lower;
	int result = strike(store, FAULT_SYNC);

	return result < 0 ? result : lower->ops->sync(lower);
}

static int faulty_blob_put(struct store *store, const char *name, const void *bytes, uint64_t length)
{
	struct store *lower = faulty_of(store)->lower;
	int result = strike(store, FAULT_PUT);

	return result < 0 ? result : lower->ops->blob_put(lower, name, bytes, length);
}

static int faulty_blob_get(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit)
{
	struct store *lower = faulty_of(store)->lower;

	return lower->ops->blob_get(lower, name, bytes, length, limit);
}

static int faulty_blob_list(struct store *store, store_blob_visit visit, void *context)
{
	struct store *lower = faulty_of(store)->lower;

	return lower->ops->blob_list(lower, visit, context);
}

static int faulty_blob_delete(struct store *store, const char *name)
{
	struct store *lower = faulty_of(store)->lower;
	int result = strike(store, FAULT_DELETE);

	return result < 0 ? result : lower->ops->blob_delete(lower, name);
}

static int faulty_adopt(struct store *store, bool (*used)(void *context, uint64_t slot), void *context)
{
	struct store *lower = faulty_of(store)->lower;

	return lower->ops->adopt(lower, used, context);
}

static void faulty_capacity(struct store *store, struct store_capacity *capacity)
{
	struct store *lower = faulty_of(store)->lower;

	lower->ops->capacity(lower, capacity);
}

static void faulty_close(struct store *store)
{
	store_close(faulty_of(store)->lower);
	free(store);
}

static const struct store_ops faulty_ops = {
	.name = "fault",
	.alloc = faulty_alloc,
	.free = faulty_free,
	.write = faulty_write,
	.read = faulty_read,
	.page = faulty_page,
	.sync = faulty_sync,
	.blob_put = faulty_blob_put,
	.blob_get = faulty_blob_get,
	.blob_list = faulty_blob_list,
	.blob_delete = faulty_blob_delete,
	.adopt = faulty_adopt,
	.capacity = faulty_capacity,
	.close = faulty_close,
};

static int take_op(const char *name)
{
	static const struct {
		const char *name;
		int op;
	} ops[] = { { "alloc", FAULT_ALLOC }, { "write", FAULT_WRITE }, { "read", FAULT_READ },
		    { "sync", FAULT_SYNC },   { "put", FAULT_PUT },     { "delete", FAULT_DELETE } };

	for (size_t i = 0; i < ARRAY_LENGTH(ops); i++)
		if (strcmp(ops[i].name, name) == 0)
			return ops[i].op;
	return -EINVAL;
}

static int take_errno(const char *name)
{
	static const struct {
		const char *name;
		int error;
	} known[] = { { "ENOSPC", ENOSPC }, { "EIO", EIO }, { "ENOMEM", ENOMEM } };

	for (size_t i = 0; i < ARRAY_LENGTH(known); i++)
		if (strcmp(known[i].name, name) == 0)
			return known[i].error;
	return -EINVAL;
}

static int take_option(struct faulty_store *faulty, const char *option)
{
	const char *equals = strchr(option, '=');
	const char *value = equals ? equals + 1 : "";
	int number;

	if (strcmp(option, "corrupt") == 0) {
		faulty->corrupt = true;
		faulty->ops = FAULT_READ;
		return 0;
	}
	if (!equals || !*value)
		return -EINVAL;
	if (strncmp(option, "op=", 3) == 0) {
		number = take_op(value);
		faulty->ops = (unsigned)number;
		return number < 0 ? number : 0;
	}
	if (strncmp(option, "errno=", 6) == 0) {
		number = take_errno(value);
		faulty->error = number;
		return number < 0 ? number : 0;
	}
	if (strncmp(option, "after=", 6) == 0)
		return parse_size(value, &faulty->after);
	if (strncmp(option, "times=", 6) == 0)
		return parse_size(value, &faulty->times);
	if (strncmp(option, "delay=", 6) == 0)
		return parse_duration(value, &faulty->delay_ns);
	return -EINVAL;
}

int store_faulty_open(struct store **store, const char *rest, bool create, struct dp_err *err)
{
	const char *colon = strchr(rest, ':');
	struct faulty_store *faulty = colon ? calloc(1, sizeof(*faulty)) : NULL;
	cleanup_free char *options = colon ? strndup(rest, (size_t)(colon - rest)) : NULL;
	int result = 0;

	if (!colon)
		return dp_fail(err, EINVAL, "bad store fault:%.100s; write fault:after=3,errno=EIO:memory:", rest);
	if (!faulty || !options) {
		free(faulty);
		return dp_fail_errno(err, ENOMEM, "open store");
	}
	*faulty = (struct faulty_store){ .store.ops = &faulty_ops, .ops = FAULT_ANY, .times = UINT64_MAX, .error = EIO };
	char *save = NULL;

	for (char *option = strtok_r(options, ",", &save); option && result == 0; option = strtok_r(NULL, ",", &save))
		if (take_option(faulty, option) < 0)
			result = dp_fail(err, EINVAL, "bad option '%s' in store fault:%.100s", option, rest);
	if (result == 0)
		result = store_open_plain(&faulty->lower, colon + 1, create, err);
	if (result < 0) {
		free(faulty);
		return result;
	}
	faulty->store.persistent = faulty->lower->persistent;
	*store = &faulty->store;
	return 0;
}
