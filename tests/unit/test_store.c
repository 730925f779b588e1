/* Stores and what a pool keeps in them: reopening, crashes, full disks, locks, damage. */
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
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/base.h"
#include "client/captive.h"
#include "pool_fixture.h"
#include "store/heap.h"
#include "wire/message.h"

static char directory[64];

static int setup(void **state)
{
	strcpy(directory, "/tmp/dp-test-XXXXXX");
	return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
	char mount_point[128];

	/* A test that failed half-way may have left it. */
	snprintf(mount_point, sizeof(mount_point), "%s/small", directory);
	umount2(mount_point, MNT_DETACH);
	remove_tree(directory);
	return 0;
}

static const char *uri_of(const char *format)
{
	static char uri[256];
	const char *place = strstr(format, "%s");

	if (!place)
		return format;
	snprintf(uri, sizeof(uri), "%.*s%s%s", (int)(place - format), format, directory, place + 2);
	return uri;
}

static struct store *open_store(const char *format)
{
	struct store *store = NULL;
	struct dp_err err = { "" };

	if (store_open(&store, uri_of(format), true, &err) < 0)
		fail_msg("%s", err.text);
	return store;
}

static const char *const engines[] = { "memory:", "dir:%s/d", "file:%s/f" };
static const char *const persistent[] = { "dir:%s/d", "file:%s/f", "dir:%s/dz?compress=zstd", "file:%s/fz?compress=lz4" };
static const char *const places[] = { "d", "f", "dz", "fz" };

/* ---- the table of functions, engine by engine ---- */

static void store__pages_written__read_back_and_are_given_back(void **state)
{
	for (size_t engine = 0; engine < ARRAY_LENGTH(engines); engine++) {
		struct store *store = open_store(engines[engine]);
		struct store_capacity capacity;
		uint64_t slots[1000];
		uint8_t *pages = malloc(1000 * PAGE_BYTES), read[PAGE_BYTES];
		const void *list[1000];

		for (unsigned i = 0; i < 1000; i++) {
			fill_page(pages + i * PAGE_BYTES, i, 3);
			list[i] = pages + i * PAGE_BYTES;
		}
		assert_int_equal(store->ops->alloc(store, slots, 1000), 0);
		assert_int_equal(store->ops->write(store, slots, list, 1000), 0);
		for (unsigned i = 0; i < 1000; i++) {
			assert_true(slots[i] > 0);
			assert_memory_equal(store->ops->page(store, slots[i]), list[i], PAGE_BYTES);
			assert_int_equal(store->ops->read(store, &slots[i], &(void *){ read }, 1), 0);
			assert_memory_equal(read, list[i], PAGE_BYTES);
		}
		store->ops->capacity(store, &capacity);
		uint64_t used = capacity.used_pages;

		assert_true(used >= 1000);
		store->ops->free(store, slots + 500, 500);
		store->ops->capacity(store, &capacity);
		assert_int_equal(capacity.used_pages, used - 500);
		for (unsigned i = 0; i < 500; i++)
			assert_memory_equal(store->ops->page(store, slots[i]), list[i], PAGE_BYTES);
		free(pages);
		store_close(store);
	}
}

static int count_blob(void *context, const char *name, uint64_t bytes)
{
	*(unsigned *)context += 1;
	return 0;
}

static void store__blobs__are_replaced_listed_and_deleted(void **state)
{
	for (size_t engine = 0; engine < ARRAY_LENGTH(engines); engine++) {
		struct store *store = open_store(engines[engine]);
		char name[32], big[10000];
		void *bytes;
		uint64_t length;
		unsigned count = 0;

		memset(big, 'b', sizeof(big));
		for (unsigned i = 0; i < 50; i++) {
			snprintf(name, sizeof(name), "blob%u", i);
			assert_int_equal(store->ops->blob_put(store, name, big, i * 200), 0);
		}
		assert_int_equal(store->ops->blob_put(store, "blob7", "new", 3), 0);
		assert_int_equal(store->ops->blob_get(store, "blob7", &bytes, &length, 100), 0);
		assert_int_equal(length, 3);
		assert_memory_equal(bytes, "new", 3);
		free(bytes);
		assert_int_equal(store->ops->blob_get(store, "blob49", &bytes, &length, 100), -EFBIG);
		assert_int_equal(store->ops->blob_get(store, "none", &bytes, &length, 100), -ENOENT);
		assert_int_equal(store->ops->blob_delete(store, "blob8"), 0);
		assert_int_equal(store->ops->blob_delete(store, "blob8"), -ENOENT);
		assert_int_equal(store->ops->blob_list(store, count_blob, &count), 0);
		assert_int_equal(count, 49);
		assert_int_equal(store->ops->blob_put(store, "a/b", "x", 1), -EINVAL);
		assert_int_equal(store->ops->blob_put(store, "..", "x", 1), -EINVAL);
		store_close(store);
	}
}

static void store_open__locked_by_another__is_EBUSY(void **state)
{
	for (size_t engine = 0; engine < ARRAY_LENGTH(persistent); engine++) {
		struct store *store = open_store(persistent[engine]), *second;
		struct dp_err err;

		assert_int_equal(store_open(&second, uri_of(persistent[engine]), true, &err), -EBUSY);
		assert_non_null(strstr(err.text, "in use"));
		store_close(store);
		store_close(open_store(persistent[engine]));
	}
}

static void store_open__not_a_store__is_refused_and_left_alone(void **state)
{
	struct store *store;
	struct dp_err err;
	struct stat status;
	char path[128];

	assert_int_equal(store_open(&store, uri_of("dir:%s/none"), false, &err), -ENOENT);
	assert_int_equal(store_open(&store, uri_of("file:%s/none"), false, &err), -ENOENT);
	assert_int_equal(stat(uri_of("%s/none"), &status), -1);
	snprintf(path, sizeof(path), "%s/note", directory);
	assert_int_equal(io_write_file(path, "something else", 14, 0600), 0);
	assert_int_equal(store_open(&store, uri_of("dir:%s"), true, &err), -EBADMSG);
	assert_int_equal(store_open(&store, uri_of("file:%s/note"), true, &err), -EBADMSG);
	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_size, 14);
	assert_int_equal(store_open(&store, "what:ever", true, &err), -EINVAL);
	assert_int_equal(store_open(&store, "memory:lots", true, &err), -EINVAL);
	assert_int_equal(store_open(&store, "memory:?chaos=op:laugh", true, &err), -EINVAL);
}

static void store_open__killed_while_creating__can_be_opened_again(void **state)
{
	for (size_t engine = 0; engine < ARRAY_LENGTH(persistent); engine++) {
		for (unsigned round = 0; round < 60; round++) {
			char path[128];
			pid_t child = fork();

			snprintf(path, sizeof(path), "%s/%s", directory, engine == 0 ? "d" : "f");
			if (child == 0) {
				store_close(open_store(persistent[engine]));
				_exit(0);
			}
			for (volatile unsigned spin = 0; spin < round * 20000; spin++)
				;
			kill(child, SIGKILL);
			assert_int_equal(waitpid(child, NULL, 0), child);
			store_close(open_store(persistent[engine]));
			remove_tree(path);
		}
	}
	/* The states between, made by hand. */
	assert_int_equal(mkdir(uri_of("%s/d"), 0700), 0);
	assert_int_equal(io_write_file(uri_of("%s/d/lock"), "", 0, 0600), 0);
	assert_int_equal(io_write_file(uri_of("%s/d/format.new"), "dist", 4, 0600), 0);
	store_close(open_store("dir:%s/d"));
	assert_int_equal(io_write_file(uri_of("%s/f"), "", 0, 0600), 0);
	store_close(open_store("file:%s/f"));
	assert_int_equal(truncate(uri_of("%s/f"), PAGE_BYTES), 0);
	store_close(open_store("file:%s/f"));
}

/* Pages that stay lie in each slab: what is freed beside them is used again, however much memory is kept ready. */
static void heap__ready_and_pages_that_stay__does_not_grow(void **state)
{
	uint64_t old[300], fresh[300];
	struct heap heap;

	assert_int_equal(heap_init(&heap, -1, 1, UINT64_MAX), 0);
	assert_int_equal(heap_keep_ready(&heap, HEAP_SLAB_SLOTS * PAGE_BYTES), 0);
	assert_int_equal(heap_alloc(&heap, old, 300), 0);
	for (unsigned cycle = 0; cycle < 500; cycle++) {
		uint64_t stays;

		assert_int_equal(heap_alloc(&heap, fresh, 300), 0);
		if (cycle % 10 == 0)
			assert_int_equal(heap_alloc(&heap, &stays, 1), 0);
		heap_free(&heap, old, 300);
		memcpy(old, fresh, sizeof(old));
	}
	assert_true(heap.slab_count <= 2);
	heap_done(&heap);
}

static void heap__pages_freed_and_allocated_at_random__never_overlap(void **state)
{
	struct heap heap;
	uint64_t *slots = calloc(40000, sizeof(*slots)), run, random = 42;
	size_t count = 0;
	bool *used = calloc(1 << 20, 1);

	assert_int_equal(heap_init(&heap, -1, 1, 40000), 0);
	for (unsigned round = 0; round < 2000; round++) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		unsigned amount = (unsigned)(random >> 33) % 64;

		if (random >> 63 && count >= amount) {
			for (unsigned i = 0; i < amount; i++) {
				size_t at = (size_t)(random >> 20) % count;

				used[slots[at]] = false;
				heap_free(&heap, &slots[at], 1);
				slots[at] = slots[--count];
			}
		} else if (count + amount <= 40000) {
			if (round % 5 == 0 && amount) {
				assert_int_equal(heap_alloc_run(&heap, amount, &run), 0);
				for (unsigned i = 0; i < amount; i++)
					slots[count + i] = run + i;
			} else {
				assert_int_equal(heap_alloc(&heap, slots + count, amount), 0);
			}
			for (unsigned i = 0; i < amount; i++) {
				assert_false(used[slots[count + i]]);
				used[slots[count + i]] = true;
			}
			count += amount;
		}
		assert_int_equal(heap.used_slots, count);
	}
	uint64_t more[40001];

	assert_int_equal(heap_alloc(&heap, more, 40001 - count), -ENOSPC);
	assert_int_equal(heap_alloc(&heap, more, 40000 - count), 0);
	heap_done(&heap);
	free(slots);
	free(used);
}

/* ---- a pool on a persistent store ---- */

static void expect_snapshot(const struct pool_fixture *fixture, const char *name, uint64_t pages)
{
	struct client *client = fixture_connect(fixture);
	struct snapshot_info info;
	struct dp_err err;

	if (client_snapshot_open(client, name, &info, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(info.stored_pages, pages);
	assert_string_equal(info.meta_json, "{\"arch\":\"x86_64\"}");
	assert_int_equal(info.file_count, 1);
	expect_pages(client, info.spaces[0].space, 0, pages, 1);
	client_snapshot_info_done(&info);
	client_close(client);
}

static void pool__store_reopened__has_its_snapshots_and_nothing_else(void **state)
{
	for (size_t engine = 0; engine < ARRAY_LENGTH(persistent); engine++) {
		struct pool_fixture fixture = { 0 };
		struct client *client;
		struct instance_info instance;
		struct pool_status status;
		uint64_t draft, space;
		struct dp_err err;

		fixture_start(&fixture, uri_of(persistent[engine]));
		client = fixture_connect(&fixture);
		make_snapshot(client, "one:x", 3000);
		make_snapshot(client, "deep/two", 100);
		make_snapshot(client, "gone", 50);
		assert_int_equal(client_remove(client, "gone", false, &err), 0);
		/* What was not committed is gone afterwards: an instance's pages, a draft. */
		assert_int_equal(client_instance_create(client, "one:x", "i", true, &instance, &err), 0);
		assert_int_equal(put_pages(client, instance.spaces[0].space, 1, 0, 100, 2), 0);
		assert_int_equal(client_snapshot_begin(client, "draft", false, &draft, &err), 0);
		assert_int_equal(client_snapshot_space(client, draft, 1, &space, &err), 0);
		assert_int_equal(put_pages(client, space, 0, 0, 100, 2), 0);
		free(instance.spaces);
		client_close(client);
		fixture_end(&fixture);
		for (unsigned again = 0; again < 2; again++) {
			fixture_start(&fixture, uri_of(persistent[engine]));
			expect_snapshot(&fixture, "one:x", 3000);
			expect_snapshot(&fixture, "deep/two:latest", 100);
			client = fixture_connect(&fixture);
			assert_int_equal(client_status(client, &status, &err), 0);
			assert_int_equal(status.snapshots, 2);
			/* The single-file store keeps its blobs, with 16 bytes a page, among the pages. */
			assert_in_range(status.page_slots_used, 3100, 3130);
			client_close(client);
			fixture_end(&fixture);
		}
		remove_tree(fixture.directory);
	}
}

static void expect_order(const struct pool_fixture *fixture, const char *name, uint64_t pgno)
{
	struct client *client = fixture_connect(fixture);
	struct snapshot_info info;
	struct order_run *runs;
	size_t count;
	struct dp_err err;

	assert_int_equal(client_snapshot_open(client, name, &info, &err), 0);
	int result = client_order_get(client, info.id, &runs, &count, &err);

	assert_int_equal(result, pgno ? 0 : -ENOENT);
	if (pgno) {
		assert_int_equal(count, 2);
		assert_int_equal(runs[0].pgno, pgno);
		assert_int_equal(runs[1].pages, 7);
		free(runs);
	}
	client_snapshot_info_done(&info);
	client_close(client);
}

/* An order comes back with its snapshot, and not with another one of that name. */
static void pool__store_reopened__orders_are_their_snapshots(void **state)
{
	for (size_t engine = 0; engine < ARRAY_LENGTH(persistent); engine++) {
		struct pool_fixture fixture = { 0 };
		struct instance_info instance;
		struct dp_err err;

		fixture_start(&fixture, uri_of(persistent[engine]));
		struct client *client = fixture_connect(&fixture);
		struct order_run *none;
		size_t count;

		make_snapshot(client, "deep/one:x", 30);
		make_snapshot(client, "two", 30);
		for (uint64_t pgno = 1; pgno < 3; pgno++) {
			struct order_run runs[] = { { 1, pgno, 1 }, { 1, 9, 7 } };
			struct results results = { 0 };

			assert_int_equal(
				client_instance_create(client, pgno == 1 ? "deep/one:x" : "two", "i", false, &instance, &err), 0);
			assert_int_equal(client_order_get(client, instance.id, &none, &count, &err), -ENOENT);
			assert_int_equal(client_order_put(client, instance.id, 2, runs, 2, 1), 0);
			assert_int_equal(results_wait(client, &results, 1), -ESTALE);
			results = (struct results){ 0 };
			assert_int_equal(client_order_put(client, instance.id, 1, runs, 2, 1), 0);
			assert_int_equal(results_wait(client, &results, 1), 0);
			free(instance.spaces);
		}
		expect_order(&fixture, "deep/one:x", 1);
		client_close(client);
		fixture_end(&fixture);
		fixture_start(&fixture, uri_of(persistent[engine]));
		expect_order(&fixture, "deep/one:x", 1);
		expect_order(&fixture, "two", 2);
		client = fixture_connect(&fixture);
		assert_int_equal(client_remove(client, "two", false, &err), 0);
		make_snapshot(client, "two", 20);
		expect_order(&fixture, "two", 0);
		client_close(client);
		fixture_end(&fixture);
		fixture_start(&fixture, uri_of(persistent[engine]));
		expect_order(&fixture, "two", 0);
		expect_order(&fixture, "deep/one:x", 1);
		fixture_end(&fixture);
		remove_tree(fixture.directory);
	}
}

/* Copies what is at rest, as a crash would leave it. */
static void copy_store(const char *from, const char *to)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		execlp("cp", "cp", "-a", "--sparse=always", from, to, (char *)NULL);
		_exit(127);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

/* What a copy taken at any moment must hold: `certain` snapshots of 200 pages, maybe one more; and it can be written to. */
static void check_crashed(const char *store, unsigned certain)
{
	struct pool_fixture fixture = { 0 };
	struct client *client;
	struct snapshot_info *list;
	size_t count;
	struct dp_err err;

	fixture_start(&fixture, store);
	client = fixture_connect(&fixture);
	assert_int_equal(client_list(client, &list, &count, &err), 0);
	assert_in_range(count, certain, certain + 1);
	for (size_t i = 0; i < count; i++) {
		expect_snapshot(&fixture, list[i].name, 200);
		client_snapshot_info_done(&list[i]);
	}
	free(list);
	make_snapshot(client, "after:crash", 300);
	client_close(client);
	fixture_end(&fixture);
	fixture_start(&fixture, store);
	expect_snapshot(&fixture, "after:crash", 300);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

static void pool__copied_at_any_moment__opens_with_what_was_committed(void **state)
{
	for (size_t engine = 0; engine < ARRAY_LENGTH(persistent); engine++) {
		struct pool_fixture fixture = { 0 };
		char path[128], copy[128], uri[160], name[32];
		struct client *client;
		const char *scheme = engine % 2 == 0 ? "dir" : "file";

		snprintf(path, sizeof(path), "%s/%s", directory, places[engine]);
		snprintf(copy, sizeof(copy), "%s/copy-%s", directory, scheme);
		snprintf(uri, sizeof(uri), "%s:%s", scheme, copy);
		fixture_start(&fixture, uri_of(persistent[engine]));
		client = fixture_connect(&fixture);
		for (unsigned i = 0; i < 6; i++) {
			uint64_t draft, space;
			struct dp_err err;

			/* In the middle of a draft. */
			assert_int_equal(client_snapshot_begin(client, "half", false, &draft, &err), 0);
			assert_int_equal(client_snapshot_space(client, draft, 1, &space, &err), 0);
			assert_int_equal(put_pages(client, space, 0, 0, 150, 7), 0);
			copy_store(path, copy);
			check_crashed(uri, i);
			remove_tree(copy);
			assert_int_equal(client_snapshot_abort(client, draft, &err), 0);
			snprintf(name, sizeof(name), "s%u:x", i);
			make_snapshot(client, name, 200);
			copy_store(path, copy);
			check_crashed(uri, i + 1);
			remove_tree(copy);
		}
		client_close(client);
		fixture_end(&fixture);
		remove_tree(fixture.directory);
	}
}

static void pool__killed_while_committing__keeps_each_snapshot_whole_or_not_at_all(void **state)
{
	for (size_t engine = 0; engine < ARRAY_LENGTH(persistent); engine++) {
		for (unsigned delay_ms = 5; delay_ms <= 45; delay_ms += 10) {
			pid_t child = fork();

			if (child == 0) {
				struct pool_fixture fixture = { 0 };
				char name[32];

				strcpy(fixture.directory, directory); /* nobody will be there to remove one of its own */
				fixture_start(&fixture, uri_of(persistent[engine]));
				struct client *client = fixture_connect(&fixture);

				for (unsigned i = 0;; i++) {
					uint64_t draft, space;

					snprintf(name, sizeof(name), "s%u:x", i % 5);
					client_snapshot_begin(client, name, true, &draft, NULL);
					client_snapshot_space(client, draft, 1, &space, NULL);
					put_pages(client, space, 0, 0, 200, 1);
					client_snapshot_file(client, draft, "pstree.img", "tree", 4, NULL);
					client_snapshot_commit(client, draft, "{\"arch\":\"x86_64\"}", NULL);
				}
			}
			poll(NULL, 0, (int)delay_ms);
			kill(child, SIGKILL);
			assert_int_equal(waitpid(child, NULL, 0), child);
			struct pool_fixture fixture = { 0 };
			struct snapshot_info *list;
			size_t count;
			struct dp_err err;

			fixture_start(&fixture, uri_of(persistent[engine]));
			struct client *client = fixture_connect(&fixture);

			assert_int_equal(client_list(client, &list, &count, &err), 0);
			for (size_t i = 0; i < count; i++) {
				expect_snapshot(&fixture, list[i].name, 200);
				client_snapshot_info_done(&list[i]);
			}
			free(list);
			client_close(client);
			fixture_end(&fixture);
			remove_tree(fixture.directory);
		}
	}
}

static void pool__any_store_call_fails__commit_is_refused_and_the_pool_lives(void **state)
{
	static const char *const faults[] = { "op:write", "op:alloc", "op:sync", "op:put" };

	for (size_t i = 0; i < ARRAY_LENGTH(faults); i++) {
		for (unsigned after = 0; after < 3; after++) {
			struct pool_fixture fixture = { 0 };
			struct client *client;
			struct snapshot_info info;
			uint64_t draft, space;
			char uri[200];
			struct dp_err err;
			unsigned committed = 0;

			snprintf(uri, sizeof(uri), "%s?chaos=%s,nth:%u,errno:ENOSPC", uri_of("dir:%s/d"), faults[i], after + 1);
			fixture_start(&fixture, uri);
			client = fixture_connect(&fixture);
			for (unsigned round = 0; round < 4; round++) {
				assert_int_equal(client_snapshot_begin(client, "r", true, &draft, &err), 0);
				assert_int_equal(client_snapshot_space(client, draft, 1, &space, &err), 0);
				int put = put_pages(client, space, 0, 0, 200, 1);

				client_snapshot_file(client, draft, "pstree.img", "tree", 4, &err);
				int commit = client_snapshot_commit(client, draft, "{\"arch\":\"x86_64\"}", &err);

				if (put < 0 || commit < 0)
					assert_int_equal(commit, -ENOSPC);
				else
					committed++;
				client_snapshot_abort(client, draft, NULL);
				if (committed)
					expect_snapshot(&fixture, "r", 200);
				else
					assert_int_equal(client_snapshot_open(client, "r", &info, &err), -ENOENT);
			}
			assert_int_equal(committed, 3);
			client_close(client);
			fixture_end(&fixture);
			remove_tree(fixture.directory);
			remove_tree(uri_of("%s/d"));
		}
	}
}

static void pool__disk_full__is_ENOSPC_and_nothing_is_visible(void **state)
{
	char mount_point[128];
	struct dp_err err;

	snprintf(mount_point, sizeof(mount_point), "%s/small", directory);
	assert_int_equal(mkdir(mount_point, 0700), 0);
	if (mount("tmpfs", mount_point, "tmpfs", 0, "size=6m") < 0)
		skip(); /* needs the right to mount */
	for (size_t engine = 0; engine < 2 /* packed, the pages would fit */; engine++) {
		struct pool_fixture fixture = { 0 };
		struct client *client;
		struct snapshot_info info;
		uint64_t draft, space;

		fixture_start(&fixture, uri_of(engine == 0 ? "dir:%s/small/d" : "file:%s/small/f"));
		client = fixture_connect(&fixture);
		make_snapshot(client, "fits:x", 200);
		assert_int_equal(client_snapshot_begin(client, "large", false, &draft, &err), 0);
		assert_int_equal(client_snapshot_space(client, draft, 1, &space, &err), 0);
		assert_int_equal(put_pages(client, space, 0, 0, 3000, 1), -ENOSPC);
		assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), -ENOSPC);
		assert_int_equal(client_snapshot_abort(client, draft, &err), 0);
		assert_int_equal(client_snapshot_open(client, "large", &info, &err), -ENOENT);
		expect_snapshot(&fixture, "fits:x", 200);
		/* There is room again. */
		make_snapshot(client, "fits:too", 200);
		client_close(client);
		fixture_end(&fixture);
		fixture_start(&fixture, uri_of(engine == 0 ? "dir:%s/small/d" : "file:%s/small/f"));
		expect_snapshot(&fixture, "fits:too", 200);
		fixture_end(&fixture);
		remove_tree(fixture.directory);
		remove_tree(uri_of("%s/small/d"));
	}
	assert_int_equal(umount(mount_point), 0);
}

static void pool_open__damaged_manifest__is_refused_by_name(void **state)
{
	struct pool_fixture fixture = { 0 };
	struct store *store;
	struct pool *pool;
	struct dp_err err;
	char path[160], byte;

	fixture_start(&fixture, uri_of("dir:%s/d"));
	struct client *client = fixture_connect(&fixture);

	make_snapshot(client, "team/app:v1", 100);
	client_close(client);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
	snprintf(path, sizeof(path), "%s/d/blobs/team%%app:v1.manifest", directory);
	int fd = open(path, O_RDWR);

	assert_true(fd >= 0);
	for (off_t at = 0; at < 200; at += 7) {
		if (pread(fd, &byte, 1, at) != 1)
			break;
		byte ^= 0x10;
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
		assert_int_equal(store_open(&store, uri_of("dir:%s/d"), false, &err), 0);
		assert_int_equal(pool_open(&pool, store, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "team%app:v1.manifest"));
		byte ^= 0x10;
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	}
	close(fd);
	/* A heap that was cut short. */
	assert_int_equal(truncate(uri_of("%s/d/pages.heap"), 0), 0);
	assert_int_equal(store_open(&store, uri_of("dir:%s/d"), false, &err), 0);
	assert_int_equal(pool_open(&pool, store, &err), -EBADMSG);
}

struct slow_commit {
	struct client *client;
	uint64_t draft;
	int result;
	_Atomic bool done;
};

static void *commit_slowly(void *context)
{
	struct slow_commit *commit = context;

	commit->result = client_snapshot_commit(commit->client, commit->draft, "{}", NULL);
	commit->done = true;
	return NULL;
}

static void commit__disk_is_slow__others_are_served_meanwhile(void **state)
{
	struct pool_fixture fixture = { 0 };
	struct slow_commit commit = { 0 };
	struct client *client;
	struct snapshot_info info;
	struct dp_err err;
	pthread_t thread;
	uint64_t space;

	fixture_start(&fixture, uri_of("dir:%s/d?chaos=op:sync,delay:1s"));
	client = fixture_connect(&fixture);
	make_snapshot(client, "first", 500);
	assert_int_equal(client_snapshot_open(client, "first", &info, &err), 0);
	commit.client = fixture_connect(&fixture);
	assert_int_equal(client_snapshot_begin(commit.client, "second", false, &commit.draft, &err), 0);
	assert_int_equal(client_snapshot_space(commit.client, commit.draft, 1, &space, &err), 0);
	assert_int_equal(pthread_create(&thread, NULL, commit_slowly, &commit), 0);
	for (unsigned i = 0; i < 20; i++)
		expect_pages(client, info.spaces[0].space, 0, 500, 1);
	assert_false(commit.done);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(commit.result, 0);
	client_snapshot_info_done(&info);
	/* One that goes away while its commit is under way takes its draft along. */
	assert_int_equal(client_snapshot_begin(commit.client, "third", false, &commit.draft, &err), 0);
	uint8_t header[MESSAGE_HEADER_BYTES];

	message_header_encode(header, &(struct message_header){ .type = MESSAGE_SNAPSHOT_COMMIT,
								.version = MESSAGE_VERSION,
								.request = UINT64_C(1) << 63 | 99,
								.object = commit.draft });
	message_seal(header);
	assert_int_equal(write(client_fd(commit.client), header, sizeof(header)), (ssize_t)sizeof(header));
	client_close(commit.client);
	make_snapshot(client, "fourth", 5);
	assert_int_equal(client_snapshot_open(client, "third", &info, &err), -ENOENT);
	expect_pages(client, space, 0, 1, 0);
	client_close(client);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

/* ---- captive pools, with the real program ---- */

/* So many snapshots are there. */
static void assert_snapshots(const struct endpoint *endpoint, size_t expected)
{
	struct client *client;
	struct snapshot_info *list;
	struct dp_err err = { "" };
	size_t count;

	assert_int_equal(client_open(&client, endpoint, 0, &err), 0);
	assert_int_equal(client_list(client, &list, &count, &err), 0);
	assert_int_equal(count, expected);
	for (size_t i = 0; i < count; i++)
		client_snapshot_info_done(&list[i]);
	free(list);
	client_close(client);
}

/* A captive pool leaves by itself when nobody uses it any more. */
static void wait_until_it_left(const struct endpoint *endpoint)
{
	char path[1200];

	assert_int_equal(captive_socket_path(endpoint, path, sizeof(path)), 0);
	for (unsigned tries = 0; access(path, F_OK) == 0 && tries < 1000; tries++)
		poll(NULL, 0, 10);
	assert_int_equal(access(path, F_OK), -1);
}

static void open_and_store_at_once(const struct endpoint *endpoint, unsigned count)
{
	pid_t children[8];
	int status;

	assert_true(count <= ARRAY_LENGTH(children));
	for (unsigned i = 0; i < count; i++) {
		children[i] = fork();
		if (children[i] == 0) {
			char name[32];
			struct client *client;
			struct snapshot_info info;
			struct dp_err err = { "" };

			if (client_open_for_writing(&client, endpoint, 0, &err) < 0) {
				fprintf(stderr, "%s\n", err.text);
				_exit(1);
			}
			snprintf(name, sizeof(name), "from:%u", i);
			make_snapshot(client, name, 50);
			_exit(client_snapshot_open(client, name, &info, &err) < 0);
		}
	}
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(waitpid(children[i], &status, 0), children[i]);
		assert_int_equal(status, 0);
	}
}

static void captive__opened_by_several_at_once__one_server_serves_all_and_leaves(void **state)
{
	struct endpoint endpoints[ARRAY_LENGTH(persistent)];
	struct client *client;
	struct dp_err err = { "" };

	captive_set_program(DP_PROGRAM);
	for (size_t i = 0; i < ARRAY_LENGTH(persistent); i++) {
		assert_int_equal(endpoint_parse(&endpoints[i], uri_of(persistent[i]), NULL), 0);
		assert_int_equal(client_open(&client, &endpoints[i], 0, &err), -ENOENT);
		open_and_store_at_once(&endpoints[i], 6);
		assert_snapshots(&endpoints[i], 6);
	}
	for (size_t i = 0; i < ARRAY_LENGTH(persistent); i++)
		wait_until_it_left(&endpoints[i]);
	for (size_t i = 0; i < ARRAY_LENGTH(persistent); i++)
		assert_snapshots(&endpoints[i], 6); /* and the next one finds everything */
	for (size_t i = 0; i < ARRAY_LENGTH(persistent); i++)
		wait_until_it_left(&endpoints[i]);
}

static void captive__path_too_long_for_a_socket__is_served_all_the_same(void **state)
{
	struct endpoint endpoint = { .kind = ENDPOINT_DIR };
	struct client *client;
	struct dp_err err = { "" };
	char path[1200], name[120];

	memset(name, 'n', sizeof(name));
	name[100] = 0;
	snprintf(endpoint.path, sizeof(endpoint.path), "%s/%s", directory, name);
	captive_set_program(DP_PROGRAM);
	if (client_open_for_writing(&client, &endpoint, 0, &err) < 0)
		fail_msg("%s", err.text);
	make_snapshot(client, "x", 10);
	client_close(client);
	assert_int_equal(captive_socket_path(&endpoint, path, sizeof(path)), 0);
	assert_memory_equal(path, "/run/distri-proc/pools/", 23);
	for (unsigned tries = 0; access(path, F_OK) == 0 && tries < 1000; tries++)
		poll(NULL, 0, 10);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(store__pages_written__read_back_and_are_given_back),
		TEST(store__blobs__are_replaced_listed_and_deleted),
		TEST(store_open__locked_by_another__is_EBUSY),
		TEST(store_open__not_a_store__is_refused_and_left_alone),
		TEST(store_open__killed_while_creating__can_be_opened_again),
		TEST(heap__ready_and_pages_that_stay__does_not_grow),
		TEST(heap__pages_freed_and_allocated_at_random__never_overlap),
		TEST(pool__store_reopened__has_its_snapshots_and_nothing_else),
		TEST(pool__store_reopened__orders_are_their_snapshots),
		TEST(pool__copied_at_any_moment__opens_with_what_was_committed),
		TEST(pool__killed_while_committing__keeps_each_snapshot_whole_or_not_at_all),
		TEST(pool__any_store_call_fails__commit_is_refused_and_the_pool_lives),
		TEST(pool__disk_full__is_ENOSPC_and_nothing_is_visible),
		TEST(pool_open__damaged_manifest__is_refused_by_name),
		TEST(commit__disk_is_slow__others_are_served_meanwhile),
		TEST(captive__opened_by_several_at_once__one_server_serves_all_and_leaves),
		TEST(captive__path_too_long_for_a_socket__is_served_all_the_same),
	};

	return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
