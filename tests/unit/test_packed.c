/* Packed stores: pages of every kind written, rewritten, freed and read at random; damage; a full store; opening. The crash tests
 * of test_store.c run over packed stores as well. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/base.h"
#include "store/packed.h"
#include "store/store.h"

static char directory[64];
static uint64_t seed = 1;

static int setup(void **state)
{
	strcpy(directory, "/tmp/dp-test-XXXXXX");
	return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
	return remove_tree(directory);
}

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* A page that packs to about `share` of 256; the same for the same number. */
static void make_page(uint8_t *page, uint64_t number, unsigned share)
{
	uint64_t value = number * 0x9e3779b97f4a7c15 + 1;

	memset(page, (int)(number % 251), PAGE_BYTES);
	for (size_t i = 0; i < (size_t)share * 16; i += 8) {
		value ^= value << 13;
		value ^= value >> 7;
		value ^= value << 17;
		memcpy(page + i, &value, 8);
	}
	memcpy(page, &number, 8);
}

/* A %s stands for the test's directory. */
static struct store *open_store(const char *format)
{
	char uri[256];
	struct store *store = NULL;
	struct dp_err err = { "" };
	const char *place = strstr(format, "%s");

	snprintf(uri, sizeof(uri), "%.*s%s%s", place ? (int)(place - format) : 200, format, place ? directory : "",
		 place ? place + 2 : "");
	if (store_open(&store, uri, true, &err) < 0)
		fail_msg("%s", err.text);
	return store;
}

static const char *const engines[] = { "memory:?compress=zstd", "memory:64M?compress=lz4", "dir:%s/d?compress=zstd",
				       "file:%s/f?compress=lz4" };

#define SLOTS 4000

struct model {
	uint64_t slot; /* 0: free */
	uint64_t number;
	unsigned share;
};

static void expect_page(struct store *store, const struct model *model)
{
	uint8_t page[PAGE_BYTES], expected[PAGE_BYTES];

	assert_int_equal(store->ops->read(store, &model->slot, &(void *){ page }, 1), 0);
	make_page(expected, model->number, model->share);
	assert_memory_equal(page, expected, PAGE_BYTES);
}

static void write_some(struct store *store, struct model *models, bool fresh)
{
	static uint8_t pages[300][PAGE_BYTES];
	uint64_t slots[300];
	const void *list[300];
	struct model *chosen[300];
	size_t count = 0, wanted = 1 + next_random() % 300;

	for (size_t tries = 0; tries < 2000 && count < wanted; tries++) {
		struct model *model = &models[next_random() % SLOTS];
		bool twice = false;

		for (size_t i = 0; i < count; i++)
			twice |= chosen[i] == model;
		if (!twice && (model->slot == 0) == fresh)
			chosen[count++] = model;
	}
	if (fresh) {
		assert_int_equal(store->ops->alloc(store, slots, count), 0);
		for (size_t i = 0; i < count; i++)
			chosen[i]->slot = slots[i];
	}
	for (size_t i = 0; i < count; i++) {
		chosen[i]->number = next_random();
		chosen[i]->share = (unsigned)(next_random() % 257);
		make_page(pages[i], chosen[i]->number, chosen[i]->share);
		list[i] = pages[i];
		slots[i] = chosen[i]->slot;
		assert_true(slots[i] > 0);
	}
	assert_int_equal(store->ops->write(store, slots, list, count), 0);
}

static void free_some(struct store *store, struct model *models)
{
	for (unsigned i = 0; i < 200; i++) {
		struct model *model = &models[next_random() % SLOTS];

		if (model->slot)
			store->ops->free(store, &model->slot, 1);
		model->slot = 0;
	}
}

static bool model_uses(void *context, uint64_t slot)
{
	const struct model *models = context;

	for (unsigned i = 0; i < SLOTS; i++)
		if (models[i].slot == slot)
			return true;
	return false;
}

static void expect_all(struct store *store, const struct model *models)
{
	struct store_capacity capacity;
	uint64_t used = 0;

	for (unsigned i = 0; i < SLOTS; i++) {
		if (models[i].slot) {
			expect_page(store, &models[i]);
			used++;
		}
	}
	store->ops->capacity(store, &capacity);
	assert_int_equal(capacity.used_pages, used);
}

static void packed__written_rewritten_freed_at_random__reads_what_was_written(void **state)
{
	for (size_t engine = 0; engine < ARRAY_LENGTH(engines); engine++) {
		struct store *store = open_store(engines[engine]);
		struct model *models = calloc(SLOTS, sizeof(*models));

		for (unsigned round = 0; round < 60; round++) {
			write_some(store, models, true);
			write_some(store, models, false);
			free_some(store, models);
			if (round % 20 == 19)
				expect_all(store, models);
			if (round % 20 == 10 && store->persistent) {
				/* As a pool does it: sync, blob, and once more open. */
				assert_int_equal(store->ops->sync(store), 0);
				assert_int_equal(store->ops->blob_put(store, "blob", "x", 1), 0);
				store_close(store);
				store = open_store(engines[engine]);
				assert_int_equal(store->ops->adopt(store, model_uses, models), 0);
				expect_all(store, models);
			}
		}
		for (unsigned i = 0; i < SLOTS; i++)
			if (models[i].slot)
				store->ops->free(store, &models[i].slot, 1);
		free(models);
		/* Nothing is left but blobs, which a file: store keeps in slots too. */
		struct packed_store *packed = (struct packed_store *)store;

		for (uint64_t slot = 0; slot < packed->frame_count; slot++)
			assert_false(packed_slot_used(packed, slot));
		store_close(store);
	}
}

static void packed__pages_that_shrink__take_less(void **state)
{
	static const struct {
		unsigned share, most;
	} cases[] = { { 0, 256 }, { 30, 682 }, { 60, 1365 }, { 100, 2048 }, { 150, 2730 }, { 180, 3072 }, { 256, 4096 } };
	struct store *store = open_store(engines[0]);

	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		uint8_t page[PAGE_BYTES];
		uint64_t slot;

		make_page(page, i + 1, cases[i].share);
		assert_int_equal(store->ops->alloc(store, &slot, 1), 0);
		assert_int_equal(store->ops->write(store, &slot, &(const void *){ page }, 1), 0);
		assert_in_range(store->ops->stored_bytes(store, slot), 1, cases[i].most);
		assert_null(store->ops->page(store, slot));
	}
	store_close(store);
}

static void packed__bit_flipped_on_disk__is_EIO_never_another_page(void **state)
{
	struct store *store = open_store("dir:%s/d?compress=zstd");
	struct model models[40] = { 0 };
	uint64_t slots[40];
	uint8_t pages[40][PAGE_BYTES], read[PAGE_BYTES];
	const void *list[40];
	char path[128];
	unsigned refused = 0;

	for (unsigned i = 0; i < 40; i++) {
		make_page(pages[i], i + 1, i * 6);
		list[i] = pages[i];
	}
	assert_int_equal(store->ops->alloc(store, slots, 40), 0);
	assert_int_equal(store->ops->write(store, slots, list, 40), 0);
	for (unsigned i = 0; i < 40; i++)
		models[i] = (struct model){ slots[i], i + 1, i * 6 };
	snprintf(path, sizeof(path), "%s/d/pages.heap", directory);
	cleanup_fd int fd = open(path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	for (unsigned round = 0; round < 3000; round++) {
		off_t at = (off_t)(PAGE_BYTES + next_random() % (40 * PAGE_BYTES));
		uint8_t byte, flipped;

		assert_int_equal(pread(fd, &byte, 1, at), 1);
		flipped = byte ^ (uint8_t)(1u << next_random() % 8);
		assert_int_equal(pwrite(fd, &flipped, 1, at), 1);
		for (unsigned i = 0; i < 40; i++) {
			int result = store->ops->read(store, &slots[i], &(void *){ read }, 1);

			assert_true(result == 0 || result == -EIO);
			if (result == 0)
				assert_memory_equal(read, pages[i], PAGE_BYTES);
			refused += result == -EIO;
		}
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	}
	assert_true(refused > 300);
	for (unsigned i = 0; i < 40; i++)
		expect_page(store, &models[i]);
	store_close(store);
}

static void packed__store_full__is_ENOSPC_and_nothing_has_changed(void **state)
{
	struct store *store = open_store("memory:1M?compress=lz4");
	struct model models[64];
	uint64_t slots[400];
	static uint8_t pages[400][PAGE_BYTES];
	const void *list[400];

	assert_int_equal(store->ops->alloc(store, slots, 400), 0);
	for (unsigned i = 0; i < 400; i++) {
		make_page(pages[i], i + 1, i < 64 ? i * 4 : 256);
		list[i] = pages[i];
	}
	assert_int_equal(store->ops->write(store, slots, list, 64), 0);
	for (unsigned i = 0; i < 64; i++)
		models[i] = (struct model){ slots[i], i + 1, i * 4 };
	for (unsigned round = 0; round < 5; round++) {
		/* The first are rewritten, the others new: none of it happens. */
		for (unsigned i = 0; i < 400; i++)
			make_page(pages[i], i + 1000, 256);
		assert_int_equal(store->ops->write(store, slots, list, 400), -ENOSPC);
		for (unsigned i = 0; i < 64; i++)
			expect_page(store, &models[i]);
	}
	assert_int_equal(store->ops->write(store, slots + 64, list + 64, 100), 0);
	store_close(store);
}

static void packed__lower_store_fails__old_pages_stay(void **state)
{
	struct store *store = open_store("dir:%s/d?compress=zstd&chaos=op:write,after:8");
	uint64_t slots[100];
	static uint8_t pages[100][PAGE_BYTES];
	const void *list[100];
	unsigned written = 0;

	assert_int_equal(store->ops->alloc(store, slots, 100), 0);
	for (unsigned i = 0; i < 100; i++) {
		make_page(pages[i], i + 1, 20);
		list[i] = pages[i];
	}
	while (written < 100 && store->ops->write(store, slots + written, list + written, 5) == 0)
		written += 5;
	assert_in_range(written, 5, 95);
	for (unsigned round = 0; round < 3; round++)
		assert_int_equal(store->ops->write(store, slots, list + 10, 20), -EIO);
	for (unsigned i = 0; i < written; i++)
		expect_page(store, &(struct model){ slots[i], i + 1, 20 });
	store_close(store);
}

static void packed__index_damaged__is_refused_by_name(void **state)
{
	struct store *store = open_store("dir:%s/d?compress=zstd");
	char path[128], uri[128];
	struct dp_err err;
	uint8_t page[PAGE_BYTES], byte;
	uint64_t slot;

	make_page(page, 1, 10);
	assert_int_equal(store->ops->alloc(store, &slot, 1), 0);
	assert_int_equal(store->ops->write(store, &slot, &(const void *){ page }, 1), 0);
	assert_int_equal(store->ops->blob_put(store, "blob", "x", 1), 0);
	store_close(store);
	snprintf(path, sizeof(path), "%s/d/blobs/packed-index.00000000", directory);
	snprintf(uri, sizeof(uri), "dir:%s/d", directory);
	cleanup_fd int fd = open(path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	for (off_t at = 0; at < 64; at++) {
		assert_int_equal(pread(fd, &byte, 1, at), 1);
		byte ^= 4;
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
		assert_int_equal(store_open(&store, uri, false, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "packed-index.00000000"));
		byte ^= 4;
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	}
	assert_int_equal(store_open(&store, uri, false, &err), 0);
	store_close(store);
}

static void store_open__compress__is_for_new_stores_and_known_again(void **state)
{
	struct store *store = open_store("dir:%s/plain");
	char uri[128];
	struct dp_err err;

	assert_string_equal(store->ops->name, "dir");
	assert_int_equal(store->ops->blob_put(store, "a:b.manifest", "x", 1), 0);
	store_close(store);
	snprintf(uri, sizeof(uri), "dir:%s/plain?compress=zstd", directory);
	assert_int_equal(store_open(&store, uri, true, &err), -EEXIST);
	snprintf(uri, sizeof(uri), "dir:%s/new?compress=gzip", directory);
	assert_int_equal(store_open(&store, uri, true, &err), -EINVAL);
	store_close(open_store("dir:%s/new?compress=lz4"));
	store = open_store("dir:%s/new");
	assert_string_equal(store->ops->name, "packed");
	assert_int_equal(((struct packed_store *)store)->codec, CODEC_LZ4);
	store_close(store);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(packed__written_rewritten_freed_at_random__reads_what_was_written),
		TEST(packed__pages_that_shrink__take_less),
		TEST(packed__bit_flipped_on_disk__is_EIO_never_another_page),
		TEST(packed__store_full__is_ENOSPC_and_nothing_has_changed),
		TEST(packed__lower_store_fails__old_pages_stay),
		TEST(packed__index_damaged__is_refused_by_name),
		TEST(store_open__compress__is_for_new_stores_and_known_again),
	};

	return cmocka_run_group_tests_name("packed", tests, NULL, NULL);
}
