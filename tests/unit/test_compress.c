/* Packed pages: the codec (property test, damage), the meter that decides (simulated links), and both ends over a real pool, also
 * behind a link that is really slow. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include <cmocka.h>

#include "base/base.h"
#include "client/compress.h"
#include "pool_fixture.h"
#include "transport/stream.h"
#include "wire/message.h"
#include "wire/pack.h"

static uint64_t seed = 1;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

enum content { CONTENT_ZERO, CONTENT_RANDOM, CONTENT_TEXT, CONTENT_HALF, CONTENT_POINTERS, CONTENT_COUNT };

static void make_page(uint8_t *page, enum content content, uint64_t number)
{
	static const char words[] =
		"the quick brown fox jumps over the lazy dog and reads GET key:000000000000 from a pool of pages ";

	memset(page, 0, PAGE_BYTES);
	for (size_t i = 0; i < PAGE_BYTES; i += 8) {
		uint64_t value = next_random();

		if (content == CONTENT_RANDOM || (content == CONTENT_HALF && i < PAGE_BYTES / 2))
			memcpy(page + i, &value, 8);
		else if (content == CONTENT_POINTERS)
			memcpy(page + i, &(uint64_t){ 0x7f0000000000 + value % 4096 * 16 }, 8);
		else if (content == CONTENT_TEXT)
			memcpy(page + i, words + (value + number) % (sizeof(words) - 9), 8);
	}
}

static void pack__any_pages__come_back_the_same(void **state)
{
	static uint8_t pages[64][PAGE_BYTES], packed[PACK_ROOM(64)], again[64][PAGE_BYTES];
	const void *list[64];

	for (unsigned round = 0; round < 200; round++) {
		size_t count = next_random() % 65;
		struct packed_pages found;

		for (size_t i = 0; i < count; i++) {
			make_page(pages[i], (enum content)(next_random() % CONTENT_COUNT), i);
			list[i] = pages[i];
		}
		size_t length = pack_pages(packed, list, count);

		assert_true(length <= PACK_ROOM(count));
		assert_int_equal(pack_decode(packed, length, (uint32_t)count, &found), 0);
		memset(again, 0xaa, sizeof(again));
		assert_int_equal(pack_unpack(&found, again[0], NULL), 0);
		assert_memory_equal(again, pages, count * PAGE_BYTES);
		for (size_t i = count; i < 64; i++)
			assert_int_equal(again[i][0], 0xaa);
	}
}

static void pack__pages_of_each_kind__shrink_or_stay_as_they_are(void **state)
{
	uint8_t page[PAGE_BYTES], packed[PACK_ROOM(1)];
	const void *list[] = { page };

	make_page(page, CONTENT_RANDOM, 0);
	assert_int_equal(pack_pages(packed, list, 1), PACK_ROOM(1));
	make_page(page, CONTENT_HALF, 0);
	assert_in_range(pack_pages(packed, list, 1), PAGE_BYTES / 2, PAGE_BYTES * 6 / 10);
	make_page(page, CONTENT_ZERO, 0);
	assert_in_range(pack_pages(packed, list, 1), PACK_ENTRY_BYTES + 1, 64);
}

static void unpack__damaged_or_cut__is_refused_never_wrong(void **state)
{
	static uint8_t pages[4][PAGE_BYTES], packed[PACK_ROOM(4)], again[4][PAGE_BYTES];
	const void *list[] = { pages[0], pages[1], pages[2], pages[3] };
	struct packed_pages found;

	make_page(pages[0], CONTENT_TEXT, 0);
	make_page(pages[1], CONTENT_RANDOM, 0);
	make_page(pages[2], CONTENT_HALF, 0);
	make_page(pages[3], CONTENT_ZERO, 0);
	size_t length = pack_pages(packed, list, 4);

	for (size_t cut = 0; cut < length; cut++) {
		/* A buffer of just its size, so that a sanitizer sees a read beyond it. */
		uint8_t *copy = malloc(cut + 1);

		memcpy(copy, packed, cut);
		assert_int_equal(pack_decode(copy, cut, 4, &found), -EBADMSG);
		free(copy);
	}
	for (size_t bit = 0; bit < length * 8; bit++) {
		packed[bit / 8] ^= (uint8_t)(1u << bit % 8);
		/* Another way of saying the same (a match further back in a page of zeros) is no damage. */
		if (pack_decode(packed, length, 4, &found) == 0 && pack_unpack(&found, again[0], NULL) == 0)
			assert_memory_equal(again, pages, sizeof(pages));
		packed[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_int_equal(pack_decode(packed, length, 4, &found), 0);
	assert_int_equal(pack_decode(packed, length, 3, &found), -EBADMSG);
	assert_int_equal(pack_decode(packed, length, UINT32_MAX, &found), -EBADMSG);
}

/* ---- the meter ---- */

struct link {
	double bytes_per_second;
	double ratio;               /* of packed pages */
	double pack_bytes_per_second;
	uint64_t now_ns;
	uint64_t packed_pages, pages;
};

/* Requests of 32 pages, always eight of them under way. */
static void run_link(struct link *link, struct compress_meter *meter, unsigned requests)
{
	struct {
		uint8_t turn;
		bool packed;
	} way[8];

	for (unsigned i = 0; i < requests + 8; i++) {
		unsigned at = i % 8;

		if (i >= 8) {
			double bytes = 32.0 * PAGE_BYTES, seconds = bytes / link->bytes_per_second;

			if (way[at].packed)
				seconds = DP_MAX(seconds * link->ratio, bytes / link->pack_bytes_per_second);
			link->now_ns += (uint64_t)(seconds * 1e9) + 1;
			compress_answered(meter, way[at].turn, 32, compress_measures(meter) ? link->now_ns : 0);
			link->pages += 32;
			link->packed_pages += way[at].packed ? 32 : 0;
		}
		if (i < requests) {
			way[at].packed = meter->on;
			way[at].turn = compress_sent(meter, 32);
			if (meter->on)
				compress_packed(meter, 32, (uint64_t)(32 * PAGE_BYTES * link->ratio));
		}
	}
	assert_int_equal(meter->pages_under_way, 0);
}

static double packed_share(double megabytes_per_second, double ratio, double pack_megabytes_per_second)
{
	struct link link = { megabytes_per_second * 1e6, ratio, pack_megabytes_per_second * 1e6, 1, 0, 0 };
	struct compress_meter meter;

	compress_init(&meter, CLIENT_COMPRESS_AUTO, true);
	run_link(&link, &meter, 10000);
	return (double)link.packed_pages / (double)link.pages;
}

static void meter__link_is_the_bottleneck__packs(void **state)
{
	assert_true(packed_share(12, 0.5, 500) > 0.9);
	assert_true(packed_share(120, 0.5, 500) > 0.9);
}

static void meter__link_is_fast_or_pages_do_not_shrink__does_not_pack(void **state)
{
	assert_true(packed_share(2000, 0.5, 500) == 0);
	assert_true(packed_share(12, 1.0, 500) < 0.05);
	/* Slow for want of CPU: packing makes it slower still. */
	assert_true(packed_share(100, 0.5, 60) < 0.05);
}

static void meter__link_changes__the_verdict_follows(void **state)
{
	struct link link = { 2e9, 0.4, 5e8, 1, 0, 0 };
	struct compress_meter meter;

	compress_init(&meter, CLIENT_COMPRESS_AUTO, true);
	run_link(&link, &meter, 1000);
	assert_false(meter.on);
	link.bytes_per_second = 1e7;
	run_link(&link, &meter, 1000);
	assert_true(meter.on);
	link.bytes_per_second = 2e9;
	run_link(&link, &meter, 3000);
	assert_false(meter.on);
}

static void meter__idle_link__is_not_judged(void **state)
{
	struct compress_meter meter;

	compress_init(&meter, CLIENT_COMPRESS_AUTO, true);
	for (unsigned i = 0; i < 100000; i++) {
		uint8_t turn = compress_sent(&meter, 1);

		compress_answered(&meter, turn, 1, compress_measures(&meter) ? i * UINT64_C(10000000) : 0);
	}
	assert_int_equal(meter.phase, COMPRESS_PLAIN);
	compress_init(&meter, CLIENT_COMPRESS_LZ4, true);
	assert_true(meter.on);
	compress_init(&meter, CLIENT_COMPRESS_LZ4, false);
	assert_false(meter.on);
}

/* ---- over a pool ---- */

static struct pool_fixture fixture;

static int setup(void **state)
{
	memset(&fixture, 0, sizeof(fixture));
	fixture_start(&fixture, "memory:256M");
	return 0;
}

static int teardown(void **state)
{
	fixture_end(&fixture);
	return remove_tree(fixture.directory);
}

static void put_content(struct client *client, uint64_t space, const uint8_t *memory, uint64_t pages)
{
	struct results results = { 0 };
	struct client_handler handler = results_handler(&results);
	unsigned sent = 0;

	for (uint64_t at = 0; at < pages; at += 128) {
		struct page_range range = { at, DP_MIN(pages - at, UINT64_C(128)) };
		struct iovec data = { (void *)(memory + at * PAGE_BYTES), range.pages * PAGE_BYTES };
		int result;

		while ((result = client_put(client, space, 0, &range, 1, &data, 1, 0)) == -EAGAIN) {
			poll(&(struct pollfd){ .fd = client_fd(client), .events = POLLIN | POLLOUT }, 1, -1);
			assert_true(client_receive(client, &handler) >= 0);
		}
		assert_int_equal(result, 0);
		sent++;
	}
	assert_int_equal(results_wait(client, &results, sent), 0);
}

static void expect_content(struct client *client, uint64_t space, const uint8_t *memory, uint64_t pages)
{
	struct results results = { .memory = malloc(pages * PAGE_BYTES), .base = 0, .pages = pages };
	unsigned sent = 0;

	memset(results.memory, 0, pages * PAGE_BYTES);
	for (uint64_t at = 0; at < pages; at += 64) {
		if (sent >= 8)
			results_wait(client, &results, sent - 7);
		assert_int_equal(client_get(client, CLASS_PREFETCH, space,
					    &(struct page_range){ at, DP_MIN(pages - at, UINT64_C(64)) }, 1, 0),
				 0);
		sent++;
	}
	assert_int_equal(results_wait(client, &results, sent), 0);
	assert_memory_equal(results.memory, memory, pages * PAGE_BYTES);
	free(results.memory);
}

static uint64_t draft_space(struct client *client)
{
	uint64_t draft, space;

	assert_int_equal(client_snapshot_begin(client, "packed:test", true, &draft, NULL), 0);
	assert_int_equal(client_snapshot_space(client, draft, 1, &space, NULL), 0);
	return space;
}

static uint8_t *make_pages(uint64_t pages, int content)
{
	uint8_t *memory = malloc(pages * PAGE_BYTES);

	for (uint64_t i = 0; i < pages; i++)
		make_page(memory + i * PAGE_BYTES,
			  content < 0 ? (enum content)(next_random() % CONTENT_COUNT) : (enum content)content, i);
	return memory;
}

static void client__lz4__pages_travel_packed_and_arrive_whole(void **state)
{
	struct client *client = fixture_connect(&fixture);
	uint8_t *mixed = make_pages(3000, -1), *text = make_pages(1000, CONTENT_TEXT);
	bool get, put;

	client_packs(client, &get, &put);
	assert_false(get || put); /* a Unix socket */
	assert_int_equal(client_set_compress(client, CLIENT_COMPRESS_LZ4), 0);
	client_packs(client, &get, &put);
	assert_true(get && put);
	uint64_t space = draft_space(client);

	put_content(client, space, mixed, 3000);
	expect_content(client, space, mixed, 3000);
	uint64_t sent = client_bytes_sent(client), received = client_bytes_received(client);

	put_content(client, space, text, 1000);
	expect_content(client, space, text, 1000);
	assert_true(client_bytes_sent(client) - sent < 1000 * PAGE_BYTES * 6 / 10);
	assert_true(client_bytes_received(client) - received < 1000 * PAGE_BYTES * 6 / 10);
	/* What was packed is there for those that do not pack. */
	struct client *other = fixture_connect(&fixture);

	expect_content(other, space, text, 1000);
	client_close(other);
	client_close(client);
	free(mixed);
	free(text);
}

static void put__packed_page_damaged__is_refused_and_changes_nothing(void **state)
{
	struct client *client = fixture_connect(&fixture);
	uint64_t space = draft_space(client);
	struct stream *stream;
	static uint8_t bytes[16384], answer[4096];
	uint8_t *text = make_pages(1, CONTENT_TEXT);
	const struct page_range range = { 7, 1 };
	struct message_header header = { .type = MESSAGE_HELLO, .version = MESSAGE_VERSION };

	/* A hello without features, then a packed PUT; then with them, but damaged. The draft is another's, so ERROR 1 would be
	 * right. */
	for (unsigned damaged = 0; damaged < 2; damaged++) {
		size_t at = MESSAGE_HEADER_BYTES, length;

		header.length = (uint32_t)message_hello_encode(
			bytes + at, 64, &(struct message_hello){ MESSAGE_VERSION, MESSAGE_VERSION, damaged });
		header.type = MESSAGE_HELLO;
		header.class = 0;
		message_header_encode(bytes, &header);
		message_seal(bytes);
		at += header.length + MESSAGE_HEADER_BYTES;
		length = (size_t)message_ranges_encode(bytes + at, 64, &range, 1);
		length += (size_t)message_digests_encode(bytes + at + length, 64, &(struct page_digest){ 1, 2 }, 1);
		length += pack_pages(bytes + at + length, (const void *const[]){ text }, 1);
		bytes[at + length - 1] ^= damaged ? 1 : 0;
		header.type = MESSAGE_PUT;
		header.class = CLASS_WRITE_BACK | MESSAGE_PACKED;
		header.object = space;
		header.length = (uint32_t)length;
		message_header_encode(bytes + at - MESSAGE_HEADER_BYTES, &header);
		message_seal(bytes + at - MESSAGE_HEADER_BYTES);
		assert_int_equal(stream_connect_unix(&stream, fixture.endpoint.path, NULL), 0);
		assert_int_equal(stream_sendv(stream, &(struct iovec){ bytes, at + length }, 1), at + length);
		size_t got = 0;

		while (got < 2 * MESSAGE_HEADER_BYTES + 12 + 6) {
			poll(&(struct pollfd){ .fd = stream->fd, .events = POLLIN }, 1, -1);
			ssize_t part = stream_receive(stream, answer + got, sizeof(answer) - got);

			assert_true(part > 0);
			got += (size_t)part;
		}
		struct message_error error;

		assert_int_equal(message_header_decode(answer + MESSAGE_HEADER_BYTES + 12, &header), 0);
		assert_int_equal(header.type, MESSAGE_ERROR);
		assert_int_equal(message_error_decode(answer + 2 * MESSAGE_HEADER_BYTES + 12, header.length, &error), 0);
		assert_int_equal(error.error, EBADMSG);
		stream_close(stream);
	}
	expect_pages(client, space, 7, 1, 0);
	client_close(client);
	free(text);
}

/* ---- behind a slow link ---- */

#ifdef __SANITIZE_THREAD__ /* packing is slower, and is to be worth it all the same */
#define SLOW_BYTES_PER_SECOND 5000000u
#else
#define SLOW_BYTES_PER_SECOND 20000000u
#endif

struct slow_link {
	struct listener listener;
	pthread_t thread;
	atomic_bool stop;
};

/* Moves at most 16 KiB; sleeps as long as they take on the link. false: the end. */
static bool relay(struct stream *from, struct stream *to)
{
	uint8_t bytes[16384];
	ssize_t got = stream_receive(from, bytes, sizeof(bytes));

	if (got == -EAGAIN)
		return true;
	for (ssize_t sent = 0; sent < got;) {
		ssize_t part = stream_sendv(to, &(struct iovec){ bytes + sent, (size_t)(got - sent) }, 1);

		if (part < 0 && part != -EAGAIN)
			return false;
		if (part == -EAGAIN)
			poll(&(struct pollfd){ .fd = to->fd, .events = POLLOUT }, 1, 100);
		else
			sent += part;
	}
	if (got > 0)
		nanosleep(&(struct timespec){ .tv_nsec = (long)((uint64_t)got * 1000000000 / SLOW_BYTES_PER_SECOND) }, NULL);
	return got > 0;
}

static void *serve_slowly(void *context)
{
	struct slow_link *link = context;
	struct stream *near = NULL, *far = NULL;
	int error;

	while (!near && !link->stop) {
		poll(&(struct pollfd){ .fd = link->listener.fd, .events = POLLIN }, 1, 100);
		near = listener_accept(&link->listener, &error);
	}
	if (near && stream_connect_unix(&far, fixture.endpoint.path, NULL) == 0) {
		for (bool going = true; going && !link->stop;) {
			struct pollfd fds[] = { { .fd = near->fd, .events = POLLIN }, { .fd = far->fd, .events = POLLIN } };

			poll(fds, 2, 100);
			going = (!fds[0].revents || relay(near, far)) && (!fds[1].revents || relay(far, near));
		}
	}
	stream_close(near);
	stream_close(far);
	return NULL;
}

static void over_slow_link(int content, bool expected)
{
	struct slow_link link = { .stop = false };
	struct endpoint endpoint;
	struct client *client;
	const uint64_t pages = 6144;
	uint8_t *memory = make_pages(pages, content);
	bool get, put;

	assert_int_equal(endpoint_parse(&endpoint, "tcp://127.0.0.1:1", NULL), 0);
	endpoint.port = 0;
	assert_int_equal(listener_open(&link.listener, &endpoint, false, NULL), 0);
	assert_int_equal(pthread_create(&link.thread, NULL, serve_slowly, &link), 0);
	assert_int_equal(client_open(&client, &link.listener.endpoint, 0, NULL), 0);
	uint64_t space = draft_space(client);

	put_content(client, space, memory, pages);
	expect_content(client, space, memory, pages);
	client_packs(client, &get, &put);
	assert_int_equal(get, expected);
	assert_int_equal(put, expected);
	client_close(client);
	link.stop = true;
	pthread_join(link.thread, NULL);
	listener_close(&link.listener);
	free(memory);
}

static void auto__slow_link_and_text__packs(void **state)
{
	over_slow_link(CONTENT_TEXT, true);
}

static void auto__slow_link_and_random_pages__does_not_pack(void **state)
{
	over_slow_link(CONTENT_RANDOM, false);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pack__any_pages__come_back_the_same),
		cmocka_unit_test(pack__pages_of_each_kind__shrink_or_stay_as_they_are),
		cmocka_unit_test(unpack__damaged_or_cut__is_refused_never_wrong),
		cmocka_unit_test(meter__link_is_the_bottleneck__packs),
		cmocka_unit_test(meter__link_is_fast_or_pages_do_not_shrink__does_not_pack),
		cmocka_unit_test(meter__link_changes__the_verdict_follows),
		cmocka_unit_test(meter__idle_link__is_not_judged),
		TEST(client__lz4__pages_travel_packed_and_arrive_whole),
		TEST(put__packed_page_damaged__is_refused_and_changes_nothing),
		TEST(auto__slow_link_and_text__packs),
		TEST(auto__slow_link_and_random_pages__does_not_pack),
	};

	return cmocka_run_group_tests_name("compress", tests, NULL, NULL);
}
