/* A client and a pool, end to end over a Unix socket. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "client/connection.h"
#include "pool_fixture.h"
#include "transport/stream.h"
#include "wire/message.h"

static struct pool_fixture fixture;
static struct client *client;

static int setup(void **state)
{
	memset(&fixture, 0, sizeof(fixture));
	fixture_start(&fixture, "memory:");
	client = fixture_connect(&fixture);
	return 0;
}

static int teardown(void **state)
{
	client_close(client);
	client = NULL;
	fixture_end(&fixture);
	remove_tree(fixture.directory);
	return 0;
}

static struct pool_status status_now(void)
{
	struct pool_status status;
	struct dp_err err;

	assert_int_equal(client_status(client, &status, &err), 0);
	return status;
}

static struct instance_info new_instance(struct client *of, const char *snapshot, bool keep)
{
	struct instance_info info;
	struct dp_err err;

	if (client_instance_create(of, snapshot, "test", keep, &info, &err) < 0)
		fail_msg("%s", err.text);
	return info;
}

/* One answer of the requests made before. */
static int wait_one(struct client *of)
{
	struct results results = { 0 };

	return results_wait(of, &results, 1);
}

static void snapshot__written_and_opened__has_what_was_put(void **state)
{
	struct snapshot_info info;
	struct dp_err err;
	void *content;

	make_snapshot(client, "redis:prod", 5000);
	assert_int_equal(client_snapshot_open(client, "redis:prod", &info, &err), 0);
	assert_string_equal(info.name, "redis:prod");
	assert_string_equal(info.meta_json, "{\"arch\":\"x86_64\"}");
	assert_int_equal(info.space_count, 1);
	assert_int_equal(info.spaces[0].label, 1);
	assert_int_equal(info.spaces[0].pages, 5000);
	assert_int_equal(info.stored_pages, 5000);
	assert_int_equal(info.file_count, 1);
	assert_string_equal(info.files[0].name, "pstree.img");
	assert_int_equal(client_file_get(client, info.id, "pstree.img", info.files[0].bytes, &content, &err), 0);
	assert_memory_equal(content, "tree", 4);
	free(content);
	expect_pages(client, info.spaces[0].space, 0, 5000, 1);
	expect_pages(client, info.spaces[0].space, 5000, 10, 0);
	assert_int_equal(put_pages(client, info.spaces[0].space, 0, 0, 1, 2), -EROFS);
	client_snapshot_info_done(&info);
}

static void snapshot_file__of_many_parts__arrives_whole(void **state)
{
	size_t bytes = 9 << 20;
	uint8_t *content = malloc(bytes);
	struct snapshot_info info;
	struct dp_err err;
	uint64_t draft;
	void *back;

	for (size_t i = 0; i < bytes; i++)
		content[i] = (uint8_t)(i * 7 + i / 4096);
	assert_int_equal(client_snapshot_begin(client, "big", false, &draft, &err), 0);
	assert_int_equal(client_snapshot_file(client, draft, "large.img", content, bytes, &err), 0);
	assert_int_equal(client_snapshot_file(client, draft, "empty.img", NULL, 0, &err), 0);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), 0);
	assert_int_equal(client_snapshot_open(client, "big", &info, &err), 0);
	assert_string_equal(info.name, "big:latest");
	assert_int_equal(info.file_count, 2);
	assert_int_equal(client_file_get(client, info.id, "large.img", bytes, &back, &err), 0);
	assert_memory_equal(back, content, bytes);
	free(back);
	assert_int_equal(client_file_get(client, info.id, "empty.img", 0, &back, &err), 0);
	free(back);
	assert_int_equal(client_file_get(client, info.id, "none.img", 1, &back, &err), -ENOENT);
	client_snapshot_info_done(&info);
	free(content);
}

static void snapshot_begin__name_taken__is_EEXIST_unless_replacing(void **state)
{
	struct snapshot_info info;
	uint64_t draft, space;
	struct dp_err err;

	make_snapshot(client, "a:b", 10);
	assert_int_equal(client_snapshot_begin(client, "a:b", false, &draft, &err), -EEXIST);
	assert_int_equal(client_snapshot_begin(client, "a:b", true, &draft, &err), 0);
	assert_int_equal(client_snapshot_space(client, draft, 5, &space, &err), 0);
	assert_int_equal(put_pages(client, space, 0, 100, 3, 9), 0);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), 0);
	assert_int_equal(client_snapshot_open(client, "a:b", &info, &err), 0);
	assert_int_equal(info.stored_pages, 3);
	client_snapshot_info_done(&info);
	assert_int_equal(status_now().page_slots_used, 3);
	assert_int_equal(client_snapshot_begin(client, "UPPER", false, &draft, &err), -EINVAL);
}

static void draft__connection_lost__vanishes_with_its_pages(void **state)
{
	struct client *other = fixture_connect(&fixture);
	struct snapshot_info info;
	uint64_t draft, space;
	struct dp_err err;

	assert_int_equal(client_snapshot_begin(other, "gone", false, &draft, &err), 0);
	assert_int_equal(client_snapshot_space(other, draft, 1, &space, &err), 0);
	assert_int_equal(put_pages(other, space, 0, 0, 700, 1), 0);
	assert_int_equal(status_now().page_slots_used, 700);
	/* Another connection may neither write nor commit it. */
	assert_int_equal(put_pages(client, space, 0, 0, 1, 2), -EPERM);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), -EPERM);
	client_close(other);
	/* The server notices the end of a connection before it handles what comes later on another, or soon after. */
	for (unsigned tries = 0; status_now().page_slots_used && tries < 1000; tries++)
		poll(NULL, 0, 1);
	assert_int_equal(status_now().page_slots_used, 0);
	assert_int_equal(client_snapshot_open(client, "gone", &info, &err), -ENOENT);
}

static void put__page_of_zeros__is_not_stored(void **state)
{
	struct instance_info instance;

	make_snapshot(client, "z", 100);
	instance = new_instance(client, "z", false);
	assert_int_equal(put_pages(client, instance.spaces[0].space, 1, 0, 40, 0), 0);
	expect_pages(client, instance.spaces[0].space, 0, 40, 0);
	expect_pages(client, instance.spaces[0].space, 40, 60, 1);
	assert_int_equal(put_pages(client, instance.spaces[0].space, 1, 1000, 300, 0), 0);
	assert_int_equal(status_now().page_slots_used, 100);
	free(instance.spaces);
}

static void instances__many_of_one_snapshot__share_its_pages(void **state)
{
	struct instance_info instances[40];
	struct snapshot_info info;
	struct dp_err err;

	make_snapshot(client, "base", 2000);
	for (unsigned i = 0; i < 40; i++)
		instances[i] = new_instance(client, "base", false);
	assert_int_equal(status_now().page_slots_used, 2000);
	assert_int_equal(status_now().instances, 40);
	for (unsigned i = 0; i < 40; i++)
		assert_int_equal(put_pages(client, instances[i].spaces[0].space, 1, i * 10, 10, 100 + i), 0);
	assert_int_equal(status_now().page_slots_used, 2400);
	for (unsigned i = 0; i < 40; i++) {
		uint64_t space = instances[i].spaces[0].space;

		expect_pages(client, space, i * 10, 10, 100 + i);
		expect_pages(client, space, i * 10 + 10, 30, 1);
	}
	assert_int_equal(client_snapshot_inspect(client, "base", &info, &err), 0);
	assert_int_equal(info.instances, 40);
	assert_int_equal(info.own_pages, 0);
	assert_int_equal(info.instance_list_count, 40);
	for (unsigned i = 0; i < 40; i++) {
		assert_string_equal(info.instance_list[i].name, "test");
		assert_int_equal(info.instance_list[i].epoch, 1);
		assert_int_equal(info.instance_list[i].own_pages, 10);
	}
	expect_pages(client, info.spaces[0].space, 0, 2000, 1);
	client_snapshot_info_done(&info);
	assert_int_equal(client_remove(client, "base", false, &err), -EBUSY);
	assert_int_equal(client_remove(client, "base", true, &err), 0);
	expect_pages(client, instances[39].spaces[0].space, 1000, 1000, 1);
	for (unsigned i = 0; i < 40; i++) {
		assert_int_equal(client_instance_end(client, instances[i].id, 1, &err), 0);
		free(instances[i].spaces);
	}
	assert_int_equal(status_now().page_slots_used, 0);
	assert_int_equal(status_now().spaces, 0);
}

static void snapshot_inspect__no_instances__owns_its_pages(void **state)
{
	struct snapshot_info info;
	struct dp_err err;

	make_snapshot(client, "own", 600);
	assert_int_equal(client_snapshot_inspect(client, "own", &info, &err), 0);
	assert_int_equal(info.own_pages, 600);
	client_snapshot_info_done(&info);
}

static void instance__connection_lost__ends_unless_kept(void **state)
{
	struct client *other = fixture_connect(&fixture);
	struct instance_info kept, lost;
	struct dp_err err;

	make_snapshot(client, "base", 10);
	kept = new_instance(other, "base", true);
	lost = new_instance(other, "base", false);
	client_close(other);
	for (unsigned tries = 0; status_now().instances > 1 && tries < 1000; tries++)
		poll(NULL, 0, 1);
	assert_int_equal(client_instance_end(client, lost.id, 1, &err), -ENOENT);
	assert_int_equal(put_pages(client, kept.spaces[0].space, 1, 0, 1, 5), 0);
	assert_int_equal(client_instance_end(client, kept.id, 1, &err), 0);
	free(kept.spaces);
	free(lost.spaces);
}

/* Its maker may not have heard of it: nobody would ever come back for it. */
static void instance__maker_gone_before_it_attached__ends(void **state)
{
	struct client *other = fixture_connect(&fixture);
	struct message_header request = { .type = MESSAGE_INSTANCE_CREATE }, answer;
	const uint8_t *answer_payload;
	uint8_t payload[100];
	struct dp_err err;

	make_snapshot(client, "base", 10);
	int bytes = message_instance_create_encode(
		payload, sizeof(payload), &(struct message_instance_create){ INSTANCE_FLAG_RESUME, { "base", 4 }, { "a", 1 } });
	assert_int_equal(control_call(other, &request, payload, (size_t)bytes, NULL, 0, MESSAGE_INSTANCE_INFO, 10000, &answer,
				      &answer_payload, &err),
			 0);
	assert_int_equal(status_now().instances, 1);
	client_close(other);
	for (unsigned i = 0; i < 1000 && status_now().instances; i++)
		usleep(10000);
	assert_int_equal(status_now().instances, 0);
}

static void lease__taken_by_another__fences_the_old_writer(void **state)
{
	struct client *other = fixture_connect(&fixture);
	struct instance_info instance;
	uint64_t epoch, space;
	struct dp_err err;

	make_snapshot(client, "base", 10);
	instance = new_instance(client, "base", false);
	space = instance.spaces[0].space;
	assert_int_equal(put_pages(client, space, 1, 0, 1, 5), 0);
	assert_int_equal(put_pages(client, space, 2, 0, 1, 6), -ESTALE);
	assert_int_equal(client_lease_take(other, instance.id, &epoch, &err), 0);
	assert_int_equal(epoch, 2);
	/* Its connection is cut, so that one that asks for nothing hears of it as well; another one of its does not help it. */
	assert_true(client_drop(client, space, 1, &(struct page_range){ 0, 1 }, 1, 0) < 0 || wait_one(client) < 0);
	client_close(client);
	client = fixture_connect(&fixture);
	assert_int_equal(put_pages(client, space, 1, 0, 1, 7), -ESTALE);
	assert_int_equal(client_drop(client, space, 1, &(struct page_range){ 0, 1 }, 1, 0), 0);
	assert_int_equal(wait_one(client), -ESTALE);
	assert_int_equal(client_fork(client, space, 1, space + 1, 0), 0);
	assert_int_equal(wait_one(client), -ESTALE);
	assert_int_equal(client_move(client, space, 1, 0, 5, 1, 0), 0);
	assert_int_equal(wait_one(client), -ESTALE);
	assert_int_equal(client_space_free(client, space, 1, 0), 0);
	assert_int_equal(wait_one(client), -ESTALE);
	assert_int_equal(client_instance_end(client, instance.id, 1, &err), -ESTALE);
	expect_pages(other, space, 0, 1, 5);
	assert_int_equal(put_pages(other, space, 2, 0, 1, 8), 0);
	/* It belongs to the taker now: the first owner's end does not end it. */
	client_close(client);
	client = other;
	expect_pages(client, space, 0, 1, 8);
	free(instance.spaces);
}

static void fork__then_writes_to_the_parent__child_keeps_its_instant(void **state)
{
	struct instance_info instance;
	struct results results = { 0 };
	struct page_range range = { 50, 1 };
	uint8_t page[PAGE_BYTES];
	struct iovec data = { page, PAGE_BYTES };

	make_snapshot(client, "base", 1000);
	instance = new_instance(client, "base", false);
	uint64_t parent = instance.spaces[0].space, child = parent + 7;

	/* All in one go, nothing is waited for: the pool handles them in order. */
	fill_page(page, 50, 2);
	assert_int_equal(client_put(client, parent, 1, &range, 1, &data, 1, 1), 0);
	assert_int_equal(client_fork(client, parent, 1, child, 2), 0);
	fill_page(page, 50, 3);
	assert_int_equal(client_put(client, parent, 1, &range, 1, &data, 1, 3), 0);
	assert_int_equal(client_drop(client, parent, 1, &(struct page_range){ 100, UINT64_C(1) << 30 }, 1, 4), 0);
	assert_int_equal(client_move(client, child, 1, 0, 2000, 10, 5), 0);
	assert_int_equal(results_wait(client, &results, 5), 0);
	expect_pages(client, child, 50, 1, 2);
	expect_pages(client, parent, 50, 1, 3);
	expect_pages(client, child, 100, 900, 1);
	expect_pages(client, parent, 100, 900, 0);
	expect_pages(client, child, 0, 10, 0);
	expect_pages(client, parent, 0, 10, 1);
	/* A grandchild, then its parent goes. */
	assert_int_equal(client_fork(client, child, 1, child + 1, 0), 0);
	assert_int_equal(client_space_free(client, child, 1, 0), 0);
	assert_int_equal(client_fork(client, parent, 1, child + 1, 0), 0);
	results = (struct results){ 0 };
	assert_int_equal(results_wait(client, &results, 3), -EEXIST);
	expect_pages(client, child + 1, 50, 1, 2);
	assert_int_equal(client_get(client, CLASS_DEMAND, child, &range, 1, 0), 0);
	assert_int_equal(wait_one(client), -ENOENT);
	assert_int_equal(client_fork(client, parent, 1, parent + (UINT64_C(1) << 20), 0), 0);
	assert_int_equal(wait_one(client), -EINVAL);
	free(instance.spaces);
}

static void inherit__from_a_changed_instance__shares_its_pages(void **state)
{
	const struct page_range ranges[] = { { 0, 512 }, { 600, 100 }, { 5000, 1000 } };
	struct instance_info instance;
	struct snapshot_info info;
	uint64_t draft, space;
	struct dp_err err;

	make_snapshot(client, "base", 1000);
	instance = new_instance(client, "base", false);
	assert_int_equal(put_pages(client, instance.spaces[0].space, 1, 10, 20, 4), 0);
	assert_int_equal(client_snapshot_begin(client, "next", false, &draft, &err), 0);
	assert_int_equal(client_snapshot_space(client, draft, 1, &space, &err), 0);
	assert_int_equal(client_snapshot_inherit(client, space, instance.spaces[0].space, ranges, 3, &err), 0);
	assert_int_equal(put_pages(client, space, 0, 5, 1, 6), 0);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), 0);
	assert_int_equal(status_now().page_slots_used, 1000 + 20 + 1);
	assert_int_equal(client_snapshot_inspect(client, "next", &info, &err), 0);
	assert_int_equal(info.stored_pages, 612);
	assert_int_equal(info.own_pages, 1);
	uint64_t next = info.spaces[0].space;

	expect_pages(client, next, 0, 5, 1);
	expect_pages(client, next, 5, 1, 6);
	expect_pages(client, next, 10, 20, 4);
	expect_pages(client, next, 512, 88, 0);
	expect_pages(client, next, 600, 100, 1);
	/* Later writes of the instance do not reach the snapshot. */
	assert_int_equal(put_pages(client, instance.spaces[0].space, 1, 10, 20, 9), 0);
	expect_pages(client, next, 10, 20, 4);
	client_snapshot_info_done(&info);
	free(instance.spaces);
}

static void get__many_requests_of_both_classes__all_are_answered_once(void **state)
{
	struct page_range ranges[GET_RANGES_LIMIT];
	struct results results = { 0 };
	struct client_handler handler = results_handler(&results);
	struct snapshot_info info;
	unsigned requests = 0;
	struct dp_err err;

	make_snapshot(client, "base", 8192);
	assert_int_equal(client_snapshot_open(client, "base", &info, &err), 0);
	uint64_t space = info.spaces[0].space, asked = 0;

	for (unsigned round = 0; round < 400; round++) {
		enum request_class class = round % 3 ? CLASS_PREFETCH : CLASS_DEMAND;
		size_t count = 1 + round % GET_RANGES_LIMIT;
		int result;

		for (size_t i = 0; i < count; i++) {
			ranges[i] = (struct page_range){ (round * 131 + i * 97) % 9000, 1 + (round + i) % 15 };
			asked += ranges[i].pages;
		}
		while ((result = client_get(client, class, space, ranges, count, round)) == -EAGAIN)
			assert_true(client_receive(client, &handler) >= 0);
		assert_int_equal(result, 0);
		requests++;
	}
	assert_int_equal(results_wait(client, &results, requests), 0);
	assert_int_equal(results.data_pages + results.zero_pages, asked);
	client_snapshot_info_done(&info);
}

static void get__limits_exceeded__is_refused_by_the_client(void **state)
{
	struct page_range ranges[GET_RANGES_LIMIT + 1];

	for (size_t i = 0; i <= GET_RANGES_LIMIT; i++)
		ranges[i] = (struct page_range){ i * 2, 1 };
	assert_int_equal(client_get(client, CLASS_DEMAND, 1, ranges, GET_RANGES_LIMIT + 1, 0), -EINVAL);
	ranges[0].pages = 1025;
	assert_int_equal(client_get(client, CLASS_DEMAND, 1, ranges, 1, 0), -EINVAL);
	ranges[0] = (struct page_range){ PGNO_END, 1 };
	assert_int_equal(client_get(client, CLASS_DEMAND, 1, ranges, 1, 0), -EINVAL);
	ranges[0] = (struct page_range){ 5, 0 };
	assert_int_equal(client_get(client, CLASS_DEMAND, 1, ranges, 1, 0), -EINVAL);
}

static void control_call__with_page_requests_in_flight__loses_none(void **state)
{
	struct results results = { 0 };
	struct snapshot_info info;
	struct dp_err err;

	make_snapshot(client, "base", 1000);
	assert_int_equal(client_snapshot_open(client, "base", &info, &err), 0);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(
			client_get(client, CLASS_DEMAND, info.spaces[0].space, &(struct page_range){ i * 100, 100 }, 1, i), 0);
	assert_int_equal(status_now().snapshots, 1);
	assert_int_equal(results_wait(client, &results, 10), 0);
	assert_int_equal(results.data_pages, 1000);
	client_snapshot_info_done(&info);
}

static void put__store_full__is_ENOSPC_and_the_draft_cannot_be_committed(void **state)
{
	struct snapshot_info info;
	uint64_t draft, space;
	struct dp_err err;

	teardown(NULL);
	memset(&fixture, 0, sizeof(fixture));
	fixture_start(&fixture, "memory:4M");
	client = fixture_connect(&fixture);
	make_snapshot(client, "first", 500);
	assert_int_equal(client_snapshot_begin(client, "second", false, &draft, &err), 0);
	assert_int_equal(client_snapshot_space(client, draft, 1, &space, &err), 0);
	assert_int_equal(put_pages(client, space, 0, 0, 2000, 1), -ENOSPC);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), -ENOSPC);
	assert_int_equal(client_snapshot_abort(client, draft, &err), 0);
	assert_int_equal(client_snapshot_open(client, "second", &info, &err), -ENOENT);
	assert_int_equal(client_snapshot_open(client, "first", &info, &err), 0);
	expect_pages(client, info.spaces[0].space, 0, 500, 1);
	client_snapshot_info_done(&info);
	/* A full pool can still be rewritten in place. */
	struct instance_info instance = new_instance(client, "first", false);

	assert_int_equal(put_pages(client, instance.spaces[0].space, 1, 1000, 524, 2), 0);
	assert_int_equal(put_pages(client, instance.spaces[0].space, 1, 2000, 1, 2), -ENOSPC);
	assert_int_equal(put_pages(client, instance.spaces[0].space, 1, 1000, 524, 3), 0);
	expect_pages(client, instance.spaces[0].space, 1000, 524, 3);
	free(instance.spaces);
}

static void get__store_that_fails_to_read_once__is_read_again(void **state)
{
	struct snapshot_info info;
	struct dp_err err;

	teardown(NULL);
	memset(&fixture, 0, sizeof(fixture));
	fixture_start(&fixture, "memory:?chaos=op:read,nth:2");
	client = fixture_connect(&fixture);
	make_snapshot(client, "s", 200);
	assert_int_equal(client_snapshot_open(client, "s", &info, &err), 0);
	/* The second part of 64 pages fails as a whole, and is read page by page. */
	assert_int_equal(client_get(client, CLASS_DEMAND, info.spaces[0].space, &(struct page_range){ 0, 200 }, 1, 1), 0);
	assert_int_equal(wait_one(client), 0);
	expect_pages(client, info.spaces[0].space, 0, 200, 1);
	client_snapshot_info_done(&info);
}

static void list__more_than_one_answer_holds__is_complete_and_sorted(void **state)
{
	struct snapshot_info *list;
	char name[64], *meta = malloc(65537);
	size_t count;
	struct dp_err err;

	memset(meta, ' ', 65536);
	meta[65536] = 0;
	for (unsigned i = 0; i < 60; i++) {
		uint64_t draft;

		snprintf(name, sizeof(name), "s%03u:x", (i * 37) % 60);
		assert_int_equal(client_snapshot_begin(client, name, false, &draft, &err), 0);
		assert_int_equal(client_snapshot_commit(client, draft, meta, &err), 0);
	}
	assert_int_equal(client_list(client, &list, &count, &err), 0);
	assert_int_equal(count, 60);
	for (unsigned i = 0; i < 60; i++) {
		snprintf(name, sizeof(name), "s%03u:x", i);
		assert_string_equal(list[i].name, name);
		client_snapshot_info_done(&list[i]);
	}
	free(list);
	free(meta);
}

/* Sends bytes as they are and returns the pool's answer's type, or 0 where it just closed. */
static unsigned raw_exchange(const void *bytes, size_t length)
{
	struct stream *stream;
	struct message_header header = { 0 };
	uint8_t answer[2048];
	size_t got = 0;

	assert_int_equal(stream_connect(&stream, &fixture.endpoint, 1000, NULL), 0);
	assert_int_equal(stream_sendv(stream, &(struct iovec){ (void *)bytes, length }, 1), (ssize_t)length);
	while (got < MESSAGE_HEADER_BYTES) {
		assert_int_equal(poll(&(struct pollfd){ .fd = stream->fd, .events = POLLIN }, 1, 20000), 1);
		ssize_t part = stream_receive(stream, answer + got, sizeof(answer) - got);

		if (part <= 0)
			break;
		got += (size_t)part;
	}
	stream_close(stream);
	if (got < MESSAGE_HEADER_BYTES)
		return 0;
	assert_int_equal(message_header_decode(answer, &header), 0);
	return header.type;
}

static void server__nonsense_from_a_client__is_answered_by_an_error_and_harms_nobody(void **state)
{
	uint8_t bytes[MESSAGE_HEADER_BYTES + 64];
	struct message_header header = { .type = MESSAGE_GET, .version = MESSAGE_VERSION, .length = 16 };

	memset(bytes, 'x', sizeof(bytes));
	assert_int_equal(raw_exchange(bytes, sizeof(bytes)), MESSAGE_ERROR);
	/* Not hello first. */
	message_header_encode(bytes, &header);
	message_seal(bytes);
	assert_int_equal(raw_exchange(bytes, MESSAGE_HEADER_BYTES + 16), MESSAGE_ERROR);
	/* An answer instead of a request. */
	header.type = MESSAGE_DATA;
	message_header_encode(bytes, &header);
	message_seal(bytes);
	assert_int_equal(raw_exchange(bytes, MESSAGE_HEADER_BYTES + 16), MESSAGE_ERROR);
	header.type = MESSAGE_GET;
	header.length = MESSAGE_PAYLOAD_LIMIT + 1;
	message_header_encode(bytes, &header);
	assert_int_equal(raw_exchange(bytes, MESSAGE_HEADER_BYTES), MESSAGE_ERROR);
	make_snapshot(client, "fine", 100);
}

static void client__answer_that_was_not_asked_for__ends_the_connection(void **state)
{
	/* A false pool: a listener of ours that answers hello rightly and the first GET wrongly. */
	for (unsigned wrong = 0; wrong < 5; wrong++) {
		struct endpoint endpoint = fixture.endpoint;
		struct listener listener;
		struct client *victim = NULL;
		struct stream *stream = NULL;
		uint8_t answer[8192] = { 0 };
		int error = 0, pid;

		strcat(endpoint.path, "-false");
		assert_int_equal(listener_open(&listener, &endpoint, false, NULL), 0);
		pid = fork();
		if (pid == 0) {
			alarm(20);
			poll(&(struct pollfd){ .fd = listener.fd, .events = POLLIN }, 1, -1);
			stream = listener_accept(&listener, &error);
			for (unsigned round = 0; round < 2; round++) {
				poll(&(struct pollfd){ .fd = stream->fd, .events = POLLIN }, 1, -1);
				uint8_t request[4096];
				struct message_header header;
				struct message_run run = { .pgno = 5, .pages = 1, .zero = true };

				stream_receive(stream, request, sizeof(request));
				message_header_decode(request, &header);
				if (round == 0) {
					header.length = (uint32_t)message_hello_encode(
						answer + MESSAGE_HEADER_BYTES, 64,
						&(struct message_hello){ MESSAGE_VERSION, MESSAGE_VERSION });
				} else {
					header.type = MESSAGE_DATA;
					header.request += wrong == 0;
					run.pgno += wrong == 1;
					run.pages += wrong == 2;
					header.class |= wrong == 3 ? MESSAGE_MORE : 0;
					header.length = (uint32_t)message_data_encode(answer + MESSAGE_HEADER_BYTES, 4096, &run,
										      1);
					header.length += wrong == 4;
				}
				message_header_encode(answer, &header);
				message_seal(answer);
				stream_sendv(stream, &(struct iovec){ answer, MESSAGE_HEADER_BYTES + header.length }, 1);
			}
			pause();
		}
		assert_int_equal(client_open(&victim, &endpoint, 0, NULL), 0);
		struct results results = { 0 };

		assert_int_equal(client_get(victim, CLASS_DEMAND, 1, &(struct page_range){ 5, 1 }, 1, 1), 0);
		assert_int_equal(results_wait_error(victim, &results, 1), -EPROTO);
		assert_int_equal(results.answers, 0);
		assert_int_equal(client_get(victim, CLASS_DEMAND, 1, &(struct page_range){ 5, 1 }, 1, 1), -EPROTO);
		client_close(victim);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		listener_close(&listener);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(snapshot__written_and_opened__has_what_was_put),
		TEST(snapshot_file__of_many_parts__arrives_whole),
		TEST(snapshot_begin__name_taken__is_EEXIST_unless_replacing),
		TEST(draft__connection_lost__vanishes_with_its_pages),
		TEST(put__page_of_zeros__is_not_stored),
		TEST(instances__many_of_one_snapshot__share_its_pages),
		TEST(snapshot_inspect__no_instances__owns_its_pages),
		TEST(instance__connection_lost__ends_unless_kept),
		TEST(instance__maker_gone_before_it_attached__ends),
		TEST(lease__taken_by_another__fences_the_old_writer),
		TEST(fork__then_writes_to_the_parent__child_keeps_its_instant),
		TEST(inherit__from_a_changed_instance__shares_its_pages),
		TEST(get__many_requests_of_both_classes__all_are_answered_once),
		TEST(get__limits_exceeded__is_refused_by_the_client),
		TEST(control_call__with_page_requests_in_flight__loses_none),
		TEST(put__store_full__is_ENOSPC_and_the_draft_cannot_be_committed),
		TEST(get__store_that_fails_to_read_once__is_read_again),
		TEST(list__more_than_one_answer_holds__is_complete_and_sorted),
		TEST(server__nonsense_from_a_client__is_answered_by_an_error_and_harms_nobody),
		TEST(client__answer_that_was_not_asked_for__ends_the_connection),
	};

	return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
