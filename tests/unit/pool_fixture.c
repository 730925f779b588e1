#include "pool_fixture.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "wire/message.h"

static void *serve(void *context)
{
	struct pool_fixture *fixture = context;

	return server_run(fixture->server) < 0 ? fixture : NULL;
}

void fixture_start(struct pool_fixture *fixture, const char *store_uri)
{
	char uri[128];
	struct dp_err err = { "" };

	if (!fixture->directory[0]) {
		strcpy(fixture->directory, "/tmp/dp-test-XXXXXX");
		assert_non_null(mkdtemp(fixture->directory));
	}
	snprintf(uri, sizeof(uri), "unix://%s/socket", fixture->directory);
	assert_int_equal(endpoint_parse(&fixture->endpoint, uri, NULL), 0);
	const char *place = strstr(store_uri, "%s");

	if (place)
		snprintf(uri, sizeof(uri), "%.*s%s%s", (int)(place - store_uri), store_uri, fixture->directory, place + 2);
	else
		snprintf(uri, sizeof(uri), "%s", store_uri);
	if (store_open(&fixture->store, uri, true, &err) < 0 || pool_open(&fixture->pool, fixture->store, &err) < 0 ||
	    server_open(&fixture->server, fixture->pool, &err) < 0 ||
	    server_listen(fixture->server, &fixture->endpoint, false, NULL, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(pthread_create(&fixture->thread, NULL, serve, fixture), 0);
}

void fixture_stop(struct pool_fixture *fixture)
{
	void *failed;

	if (!fixture->server)
		return;
	server_stop(fixture->server);
	assert_int_equal(pthread_join(fixture->thread, &failed), 0);
	assert_null(failed);
	server_close(fixture->server);
	fixture->server = NULL;
}

void fixture_end(struct pool_fixture *fixture)
{
	fixture_stop(fixture);
	pool_close(fixture->pool);
	fixture->pool = NULL;
}

struct client *fixture_connect(const struct pool_fixture *fixture)
{
	struct client *client;
	struct dp_err err;

	if (client_open(&client, &fixture->endpoint, 0, &err) < 0)
		fail_msg("%s", err.text);
	return client;
}

static void note_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct results *results = context;

	results->parts++;
	results->last_cookie = cookie;
	if (data)
		results->data_pages += range.pages;
	else
		results->zero_pages += range.pages;
	if (results->memory) {
		assert_true(range.pgno >= results->base && range.pgno + range.pages <= results->base + results->pages);
		uint8_t *place = results->memory + (range.pgno - results->base) * PAGE_BYTES;

		if (data)
			memcpy(place, data, range.pages * PAGE_BYTES);
		else
			memset(place, 0, range.pages * PAGE_BYTES);
	}
	results->answers += last;
}

static void note_done(void *context, uint64_t cookie, int result)
{
	struct results *results = context;

	results->last_cookie = cookie;
	results->answers++;
	if (result < 0 && !results->result)
		results->result = result;
}

struct client_handler results_handler(struct results *results)
{
	return (struct client_handler){ .context = results, .on_pages = note_pages, .on_done = note_done };
}

int results_wait_error(struct client *client, struct results *results, unsigned answers)
{
	struct client_handler handler = results_handler(results);

	while (results->answers < answers) {
		int result = client_receive(client, &handler);

		if (result < 0)
			return result;
		if (result == 0) {
			struct pollfd poll_fd = { .fd = client_fd(client),
						  .events = (short)(POLLIN | (client_wants_write(client) ? POLLOUT : 0)) };

			assert_int_equal(poll(&poll_fd, 1, 20000), 1);
		}
	}
	return results->result;
}

int results_wait(struct client *client, struct results *results, unsigned answers)
{
	int result = results_wait_error(client, results, answers);

	assert_true(results->answers >= answers);
	return result;
}

void fill_page(uint8_t *page, uint64_t pgno, uint64_t version)
{
	uint64_t *words = (uint64_t *)page;

	for (unsigned i = 0; i < PAGE_BYTES / 8; i++)
		words[i] = version ? (pgno * 512 + i) * 0x9e3779b97f4a7c15u ^ version << 48 : 0;
}

#define PART 256

int put_pages(struct client *client, uint64_t space, uint64_t epoch, uint64_t pgno, uint64_t pages, uint64_t version)
{
	uint8_t *memory = malloc(PART * PAGE_BYTES);
	struct results results = { 0 };
	unsigned requests = 0;

	assert_non_null(memory);
	for (uint64_t at = 0, part; at < pages; at += part) {
		struct page_range range = { pgno + at, part = DP_MIN(pages - at, (uint64_t)PART) };
		struct iovec data = { memory, part * PAGE_BYTES };
		struct client_handler handler = results_handler(&results);
		int result;

		for (uint64_t i = 0; i < part; i++)
			fill_page(memory + i * PAGE_BYTES, range.pgno + i, version);
		while ((result = client_put(client, space, epoch, &range, 1, &data, 1, requests)) == -EAGAIN)
			assert_true(client_receive(client, &handler) >= 0);
		assert_int_equal(result, 0);
		requests++;
	}
	free(memory);
	return results_wait(client, &results, requests);
}

void expect_pages(struct client *client, uint64_t space, uint64_t pgno, uint64_t pages, uint64_t version)
{
	uint8_t *memory = malloc(GET_PAGES_LIMIT * PAGE_BYTES), page[PAGE_BYTES];

	assert_non_null(memory);
	for (uint64_t at = 0, part; at < pages; at += part) {
		struct page_range range = { pgno + at, part = DP_MIN(pages - at, (uint64_t)GET_PAGES_LIMIT) };
		struct results results = { .memory = memory, .base = range.pgno, .pages = part };

		memset(memory, 0xee, part * PAGE_BYTES);
		assert_int_equal(client_get(client, CLASS_DEMAND, space, &range, 1, 77), 0);
		assert_int_equal(results_wait(client, &results, 1), 0);
		assert_int_equal(results.last_cookie, 77);
		assert_int_equal(results.data_pages + results.zero_pages, part);
		assert_int_equal(version ? results.zero_pages : results.data_pages, 0);
		for (uint64_t i = 0; i < part; i++) {
			fill_page(page, range.pgno + i, version);
			assert_memory_equal(memory + i * PAGE_BYTES, page, PAGE_BYTES);
		}
	}
	free(memory);
}

void make_snapshot(struct client *client, const char *name, uint64_t pages)
{
	uint64_t draft, space = 0;
	struct dp_err err;

	if (client_snapshot_begin(client, name, false, &draft, &err) < 0 ||
	    client_snapshot_space(client, draft, 1, &space, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(put_pages(client, space, 0, 0, pages, 1), 0);
	if (client_snapshot_file(client, draft, "pstree.img", "tree", 4, &err) < 0 ||
	    client_snapshot_commit(client, draft, "{\"arch\":\"x86_64\"}", &err) < 0)
		fail_msg("%s", err.text);
}
