/* A page that was damaged, wherever that was: on a disk, in memory, on the way. It never arrives as if it were right. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <cmocka.h>

#include "base/base.h"
#include "client/connection.h"
#include "client/scrub.h"
#include "pool_fixture.h"
#include "wire/bytes.h"
#include "wire/message.h"

#define PAGES 300u

static struct pool_fixture fixture;

struct seen {
	uint64_t good, damaged, wrong, lasts;
	int result;
	uint64_t damaged_pgno[16];
};

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct seen *seen = context;
	uint8_t expected[PAGE_BYTES];

	for (uint64_t i = 0; i < range.pages; i++) {
		fill_page(expected, range.pgno + i, 1);
		if (data && memcmp((const uint8_t *)data + i * PAGE_BYTES, expected, PAGE_BYTES) == 0)
			seen->good++;
		else
			seen->wrong++;
	}
	assert_int_equal(seen->lasts, 0);
	seen->lasts += last;
}

static void on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	struct seen *seen = context;

	for (uint64_t i = 0; i < range.pages; i++)
		seen->damaged_pgno[seen->damaged++ % 16] = range.pgno + i;
	assert_int_equal(seen->lasts, 0);
	seen->lasts += last;
}

static void on_done(void *context, uint64_t cookie, int result)
{
	struct seen *seen = context;

	seen->result = result;
	seen->lasts++;
}

static struct client_handler handler_of(struct seen *seen)
{
	return (struct client_handler){ seen, on_pages, on_done, on_damaged };
}

static int read_range(struct client *client, uint64_t space, struct page_range range, struct seen *seen)
{
	struct client_handler handler = handler_of(seen);

	*seen = (struct seen){ 0 };
	int result = client_get_near(client, &handler, space, &range, 1, 7);

	if (result == 0)
		result = client_get(client, CLASS_DEMAND, space, &range, 1, 7);
	while (result >= 0 && !seen->lasts) {
		result = client_receive(client, &handler);
		if (result == 0)
			assert_int_equal(poll(&(struct pollfd){ .fd = client_fd(client), .events = POLLIN }, 1, 20000), 1);
	}
	return result < 0 ? result : 0;
}

static uint64_t first_space(struct client *client, const char *name)
{
	struct snapshot_info info;
	struct dp_err err;

	assert_int_equal(client_snapshot_open(client, name, &info, &err), 0);
	uint64_t space = info.spaces[0].space;

	client_snapshot_info_done(&info);
	return space;
}

/* Flips a bit of a page of make_snapshot in a store's file. */
static void flip(const char *file, uint64_t pgno)
{
	char path[200];
	uint8_t wanted[PAGE_BYTES];
	struct stat status;

	snprintf(path, sizeof(path), "%s/%s", fixture.directory, file);
	int fd = open(path, O_RDWR);

	assert_true(fd >= 0 && fstat(fd, &status) == 0);
	uint8_t *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_ptr_not_equal(bytes, MAP_FAILED);
	fill_page(wanted, pgno, 1);
	for (off_t at = 0;; at += PAGE_BYTES) {
		assert_true(at < status.st_size);
		if (memcmp(bytes + at, wanted, PAGE_BYTES) == 0) {
			bytes[at + 999] ^= 4;
			break;
		}
	}
	munmap(bytes, (size_t)status.st_size);
	close(fd);
}

static void store__page_flipped_on_disk__is_told_by_both_ways(void **state)
{
	for (unsigned near = 0; near < 2; near++) {
		struct seen seen;

		memset(&fixture, 0, sizeof(fixture));
		fixture_start(&fixture, near ? "file:%s/store" : "dir:%s/store");
		struct client *client = fixture_connect(&fixture);

		make_snapshot(client, "s", PAGES);
		flip(near ? "store" : "store/pages.heap", 0);
		flip(near ? "store" : "store/pages.heap", 70);
		flip(near ? "store" : "store/pages.heap", 71);
		uint64_t space = first_space(client, "s");

		assert_int_equal(near && !client_read_near(client), 0);
		assert_int_equal(read_range(client, space, (struct page_range){ 0, PAGES }, &seen), 0);
		assert_int_equal(seen.wrong, 0);
		assert_int_equal(seen.damaged, 3);
		assert_int_equal(seen.good, PAGES - 3);
		assert_int_equal(client_damaged_pages(client), 3);
		/* The last page of a request, and all of it. */
		assert_int_equal(read_range(client, space, (struct page_range){ 60, 11 }, &seen), 0);
		assert_int_equal(seen.good, 10);
		assert_int_equal(seen.damaged_pgno[0], 70);
		assert_int_equal(read_range(client, space, (struct page_range){ 70, 2 }, &seen), 0);
		assert_int_equal(seen.damaged, 2);
		client_close(client);
		fixture_end(&fixture);
		remove_tree(fixture.directory);
	}
}

static void store__read_wrong_now_and_then__arrives_right_all_the_same(void **state)
{
	struct seen seen;
	uint64_t good = 0;

	memset(&fixture, 0, sizeof(fixture));
	fixture_start(&fixture, "memory:?chaos=op:read,corrupt:0.05,seed:5");
	struct client *client = fixture_connect(&fixture);

	make_snapshot(client, "s", PAGES);
	uint64_t space = first_space(client, "s");

	for (unsigned round = 0; round < 20; round++) {
		assert_int_equal(read_range(client, space, (struct page_range){ 0, PAGES }, &seen), 0);
		assert_int_equal(seen.wrong, 0);
		assert_int_equal(seen.good + seen.damaged, PAGES);
		good += seen.good;
	}
	/* One in twenty comes wrong, one in four hundred twice. */
	assert_true(client_damaged_pages(client) > 150);
	assert_true(good > 20 * PAGES * 98 / 100);
	client_close(client);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

static void handler__that_takes_no_damage__ends_with_EIO(void **state)
{
	struct results results = { 0 };

	memset(&fixture, 0, sizeof(fixture));
	fixture_start(&fixture, "dir:%s/store");
	struct client *client = fixture_connect(&fixture);

	make_snapshot(client, "s", PAGES);
	flip("store/pages.heap", 5);
	assert_int_equal(client_get(client, CLASS_DEMAND, first_space(client, "s"), &(struct page_range){ 5, 1 }, 1, 1), 0);
	assert_int_equal(results_wait_error(client, &results, 1), -EIO);
	assert_int_equal(results.data_pages, 0);
	client_close(client);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

/* A PUT whose page is not what its digest says: by hand, since the client never sends one. */
static void put__page_damaged_on_its_way__is_refused_and_changes_nothing(void **state)
{
	static uint8_t message[MESSAGE_HEADER_BYTES + 24 + DIGEST_BYTES + PAGE_BYTES], page[PAGE_BYTES];
	const struct page_range range = { 3, 1 };
	struct instance_info instance;
	struct seen seen = { 0 };
	struct dp_err err;

	memset(&fixture, 0, sizeof(fixture));
	fixture_start(&fixture, "memory:");
	struct client *client = fixture_connect(&fixture);

	make_snapshot(client, "s", PAGES);
	assert_int_equal(client_instance_create(client, "s", "i", false, &instance, &err), 0);
	uint64_t request;
	struct flight *flight = connection_take_flight(client, FLIGHT_CHANGE, 1, &request);

	assert_non_null(flight);
	fill_page(page, 3, 2);
	struct page_digest digest = page_digest(page);
	struct message_header header = { .type = MESSAGE_PUT,
					 .version = MESSAGE_VERSION,
					 .class = CLASS_WRITE_BACK,
					 .request = request,
					 .object = instance.spaces[0].space,
					 .epoch = 1,
					 .length = sizeof(message) - MESSAGE_HEADER_BYTES,
					 .plain = PAGE_BYTES };

	message_header_encode(message, &header);
	message_ranges_encode(message + MESSAGE_HEADER_BYTES, 24, &range, 1);
	message_digests_encode(message + MESSAGE_HEADER_BYTES + 24, DIGEST_BYTES, &digest, 1);
	page[100] ^= 1;
	memcpy(message + sizeof(message) - PAGE_BYTES, page, PAGE_BYTES);
	message_seal(message);
	assert_int_equal(write(client_fd(client), message, sizeof(message)), (ssize_t)sizeof(message));
	struct client_handler handler = handler_of(&seen);

	while (!seen.lasts) {
		poll(&(struct pollfd){ .fd = client_fd(client), .events = POLLIN }, 1, 20000);
		assert_true(client_receive(client, &handler) >= 0);
	}
	assert_int_equal(seen.result, -EBADMSG);
	assert_int_equal(read_range(client, instance.spaces[0].space, range, &seen), 0);
	assert_int_equal(seen.good, 1);
	/* Damage outside the page: the pool takes nothing of it and ends the connection. */
	message[MESSAGE_HEADER_BYTES + 8] ^= 1;
	assert_int_equal(write(client_fd(client), message, sizeof(message)), (ssize_t)sizeof(message));
	while (client_receive(client, &handler) >= 0)
		poll(&(struct pollfd){ .fd = client_fd(client), .events = POLLIN }, 1, 20000);
	client_close(client);
	free(instance.spaces);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

static void scrub_all(struct client *client, uint32_t flags, struct message_scrubbed *total)
{
	struct message_scrub ask = { .pages = 64, .flags = flags };
	static struct message_scrubbed part;
	struct dp_err err;

	*total = (struct message_scrubbed){ 0 };
	do {
		assert_int_equal(client_scrub(client, &ask, &part, &err), 0);
		total->checked += part.checked;
		total->unverified += part.unverified;
		total->added += part.added;
		for (uint32_t i = 0; i < part.count; i++)
			total->damaged[total->count++] = part.damaged[i];
		ask.from = part.next;
	} while (part.next);
}

static void scrub__damage_and_repair__in_stores_of_each_kind(void **state)
{
	static const char *const stores[] = { "dir:%s/store", "file:%s/store" };
	static struct message_scrubbed total;
	static uint8_t page[PAGE_BYTES];
	struct dp_err err;
	uint64_t found;

	for (size_t i = 0; i < ARRAY_LENGTH(stores); i++) {
		memset(&fixture, 0, sizeof(fixture));
		fixture_start(&fixture, stores[i]);
		struct client *client = fixture_connect(&fixture);

		make_snapshot(client, "s", PAGES);
		scrub_all(client, 0, &total);
		assert_int_equal(total.checked, PAGES);
		assert_int_equal(total.count, 0);
		flip(i ? "store" : "store/pages.heap", 123);
		scrub_all(client, 0, &total);
		assert_int_equal(total.count, 1);
		assert_string_equal(total.damaged[0].name, "s:latest");
		assert_int_equal(total.damaged[0].pgno, 123);
		/* Not to be had from the same pool; nothing else is taken for it. */
		assert_int_equal(client_find_pages(client, &total.damaged[0].digest, 1, &found, page, &err), 0);
		assert_int_equal(found, 0);
		fill_page(page, 124, 1);
		assert_int_equal(client_repair(client, total.damaged[0].slot, total.damaged[0].digest, page, &err), -EBADMSG);
		fill_page(page, 123, 1);
		assert_int_equal(client_repair(client, total.damaged[0].slot + 1, total.damaged[0].digest, page, &err), -ENOENT);
		assert_int_equal(client_repair(client, total.damaged[0].slot, total.damaged[0].digest, page, &err), 0);
		scrub_all(client, 0, &total);
		assert_int_equal(total.count, 0);
		client_close(client);
		fixture_end(&fixture);
		remove_tree(fixture.directory);
	}
}

/* Rewrites a manifest as version 1 had it. */
static void make_old(const char *path)
{
	char *bytes;
	ssize_t length = io_read_file(path, &bytes, 1 << 20);

	assert_true(length > 0);
	uint8_t *out = malloc((size_t)length);
	/* One space, one run, at the end: label, then the run with its digests, then the empty run. */
	size_t tail = 8 + 20 + (size_t)PAGES * DIGEST_BYTES + 20, head = (size_t)length - tail;

	memcpy(out, bytes, head + 28);
	memset(out + head + 28, 0, 20);
	memcpy(out + 16, &(uint32_t){ htole32(1) }, 4);
	size_t old_length = head + 48;
	uint64_t hash = htole64(XXH3_64bits(out + 16, old_length - 16));

	memcpy(out + 8, &hash, 8);
	assert_int_equal(io_write_file(path, out, old_length, 0600), 0);
	free(out);
	free(bytes);
}

static void store__of_version_1__is_read_and_gets_digests(void **state)
{
	static struct message_scrubbed total;
	char path[200], *text;

	memset(&fixture, 0, sizeof(fixture));
	fixture_start(&fixture, "dir:%s/store");
	struct client *client = fixture_connect(&fixture);

	make_snapshot(client, "s", PAGES);
	client_close(client);
	fixture_end(&fixture);
	snprintf(path, sizeof(path), "%s/store/blobs/s:latest.manifest", fixture.directory);
	make_old(path);
	snprintf(path, sizeof(path), "%s/store/format", fixture.directory);
	assert_int_equal(io_write_file(path, "distri-proc store 1\n", 20, 0600), 0);
	fixture_start(&fixture, "dir:%s/store");
	client = fixture_connect(&fixture);
	expect_pages(client, first_space(client, "s"), 0, PAGES, 1);
	/* Read only, it stays what it is. */
	assert_int_equal(io_read_file(path, &text, 100), 20);
	assert_string_equal(text, "distri-proc store 1\n");
	free(text);
	scrub_all(client, 0, &total);
	assert_int_equal(total.unverified, PAGES);
	scrub_all(client, SCRUB_FLAG_ADD, &total);
	assert_int_equal(total.added, PAGES);
	client_close(client);
	fixture_end(&fixture);
	assert_int_equal(io_read_file(path, &text, 100), 20);
	assert_string_equal(text, "distri-proc store 2\n");
	free(text);
	fixture_start(&fixture, "dir:%s/store");
	client = fixture_connect(&fixture);
	scrub_all(client, 0, &total);
	assert_int_equal(total.unverified, 0);
	assert_int_equal(total.count, 0);
	expect_pages(client, first_space(client, "s"), 0, PAGES, 1);
	client_close(client);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

static void store__file_size_limit__is_a_full_store(void **state)
{
	struct rlimit before, small;
	uint64_t draft, space;
	struct dp_err err;

	signal(SIGXFSZ, SIG_IGN);
	memset(&fixture, 0, sizeof(fixture));
	fixture_start(&fixture, "dir:%s/store");
	struct client *client = fixture_connect(&fixture);

	make_snapshot(client, "s", PAGES);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	small = (struct rlimit){ (PAGES + 500) * PAGE_BYTES, before.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	assert_int_equal(client_snapshot_begin(client, "large", false, &draft, &err), 0);
	assert_int_equal(client_snapshot_space(client, draft, 1, &space, &err), 0);
	assert_int_equal(put_pages(client, space, 0, 0, 3000, 1), -ENOSPC);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), -ENOSPC);
	assert_int_equal(client_snapshot_abort(client, draft, &err), 0);
	expect_pages(client, first_space(client, "s"), 0, PAGES, 1);
	make_snapshot(client, "fits", 400);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	expect_pages(client, first_space(client, "fits"), 0, 400, 1);
	client_close(client);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(store__page_flipped_on_disk__is_told_by_both_ways),
		cmocka_unit_test(store__read_wrong_now_and_then__arrives_right_all_the_same),
		cmocka_unit_test(handler__that_takes_no_damage__ends_with_EIO),
		cmocka_unit_test(put__page_damaged_on_its_way__is_refused_and_changes_nothing),
		cmocka_unit_test(scrub__damage_and_repair__in_stores_of_each_kind),
		cmocka_unit_test(store__of_version_1__is_read_and_gets_digests),
		cmocka_unit_test(store__file_size_limit__is_a_full_store),
	};

	return cmocka_run_group_tests_name("integrity", tests, NULL, NULL);
}
