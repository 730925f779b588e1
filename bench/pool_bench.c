/* pool-bench: what a pool and a client do together: throughput of PUT and GET, latency of single pages.
 * Usage: pool-bench URI [PAGES]. Makes a snapshot bench:tmp in the pool, reads it back, removes it. For dir: and file: pools
 * DISTRI_PROC names the program that is to serve them.
 * With a third argument, FAR, the same pool by another way (through a proxy, say): writes by URI and reads by FAR, with
 * 1, 4, 16, ... pages asked for and not answered yet, a second each; one JSON object a line. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/base.h"
#include "client/captive.h"
#include "client/client.h"

#define LATENCY_ROUNDS 20000
#define IN_FLIGHT 8
#define WINDOW_NS 1000000000u
#define WINDOW_MOST_PAGES 4096

static struct client *client;
static unsigned answers;

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	answers += last;
}

static void on_done(void *context, uint64_t cookie, int result)
{
	if (result < 0) {
		fprintf(stderr, "pool-bench: %s\n", strerror(-result));
		exit(1);
	}
	answers++;
}

static const struct client_handler handler = { .on_pages = on_pages, .on_done = on_done };

static void check(int result, const char *text)
{
	if (result >= 0)
		return;
	fprintf(stderr, "pool-bench: %s\n", text);
	exit(1);
}

/* Until so many answers have come; polls as a pager would, or spins for the latency figures. */
static void wait_for(unsigned wanted, bool spin)
{
	while (answers < wanted) {
		int result = client_receive(client, &handler);

		check(result, "connection lost");
		if (result == 0 && !spin)
			poll(&(struct pollfd){ .fd = client_fd(client),
					       .events = (short)(POLLIN | (client_wants_write(client) ? POLLOUT : 0)) },
			     1, 1000);
	}
}

static void report(const char *what, uint64_t pages, uint64_t ns)
{
	printf("%-28s %8.2f GB/s\n", what, (double)pages * PAGE_BYTES / (double)ns);
}

static void bench_put(uint64_t space, uint64_t pages, uint64_t part, uint8_t *memory, bool quiet)
{
	uint64_t start = clock_now_ns();
	unsigned sent = 0;

	answers = 0;
	for (uint64_t at = 0; at < pages; at += part) {
		struct page_range range = { at, part };
		struct iovec data = { memory, part * PAGE_BYTES };
		int result;

		/* Different pages every time, or the cache would flatter us. */
		for (uint64_t i = 0; i < part; i++)
			memcpy(memory + i * PAGE_BYTES, &(uint64_t){ at + i + 1 }, 8);
		while ((result = client_put(client, space, 0, &range, 1, &data, 1, 0)) == -EAGAIN)
			wait_for(answers + 1, false);
		check(result, "put");
		sent++;
	}
	wait_for(sent, false);
	char what[64];

	snprintf(what, sizeof(what), "put, %" PRIu64 " pages each", part);
	if (!quiet)
		report(what, pages, clock_now_ns() - start);
}

static void bench_get(uint64_t space, uint64_t pages, uint64_t part)
{
	uint64_t start = clock_now_ns();
	unsigned sent = 0;

	answers = 0;
	for (uint64_t at = 0; at < pages; at += part) {
		if (sent >= IN_FLIGHT)
			wait_for(sent - IN_FLIGHT + 1, false);
		check(client_get(client, CLASS_DEMAND, space, &(struct page_range){ at, part }, 1, 0), "get");
		sent++;
	}
	wait_for(sent, false);
	char what[64];

	snprintf(what, sizeof(what), "get, %" PRIu64 " pages each", part);
	report(what, pages, clock_now_ns() - start);
}

static int compare(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

static void bench_latency(uint64_t space, uint64_t pages, bool spin)
{
	static uint64_t times[LATENCY_ROUNDS];

	for (unsigned i = 0; i < LATENCY_ROUNDS; i++) {
		uint64_t start = clock_now_ns();

		answers = 0;
		struct page_range page = { (i * UINT64_C(7919)) % pages, 1 };

		check(client_get(client, CLASS_DEMAND, space, &page, 1, 0), "get");
		wait_for(1, spin);
		times[i] = clock_now_ns() - start;
	}
	qsort(times, LATENCY_ROUNDS, sizeof(times[0]), compare);
	printf("get, 1 page, %-15s  p50 %5.1f us  p99 %5.1f us  p99.9 %6.1f us\n", spin ? "client spinning" : "client polling",
	       (double)times[LATENCY_ROUNDS / 2] / 1000, (double)times[LATENCY_ROUNDS * 99 / 100] / 1000,
	       (double)times[LATENCY_ROUNDS / 1000 * 999] / 1000);
}

/* Requests of `part` pages, `in_flight` of them outstanding, for a second at most. */
static void bench_window(uint64_t space, uint64_t pages, uint64_t part, unsigned in_flight)
{
	uint64_t start = clock_now_ns(), at = 0;
	unsigned sent = 0;

	answers = 0;
	while (at + part <= pages && clock_now_ns() - start < WINDOW_NS) {
		if (sent >= in_flight)
			wait_for(sent - in_flight + 1, false);
		check(client_get(client, CLASS_DEMAND, space, &(struct page_range){ at, part }, 1, 0), "get");
		sent++;
		at += part;
	}
	wait_for(sent, false);
	double seconds = (double)(clock_now_ns() - start) / 1e9;

	printf("{\"in_flight_bytes\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"seconds\": %.4f, \"bytes_per_second\": %.0f}\n",
	       part * in_flight * PAGE_BYTES, at * PAGE_BYTES, seconds, (double)(at * PAGE_BYTES) / seconds);
}

/* The pages are in the snapshot bench:tmp; reads them by another way. */
static void bench_far(const char *uri, uint64_t pages)
{
	struct endpoint endpoint;
	struct snapshot_info info;
	struct dp_err err = { "" };
	struct client *near = client;

	check(endpoint_parse(&endpoint, uri, &err), err.text);
	check(client_open(&client, &endpoint, 0, &err), err.text);
	check(client_snapshot_open(client, "bench:tmp", &info, &err), err.text);
	for (uint64_t window = 1; window <= WINDOW_MOST_PAGES; window *= 4) {
		uint64_t part = window < 64 ? 1 : 16;

		bench_window(info.spaces[0].space, pages, part, (unsigned)(window / part));
	}
	client_snapshot_info_done(&info);
	client_close(client);
	client = near;
}

int main(int argc, char **argv)
{
	uint64_t pages = argc > 2 ? strtoull(argv[2], NULL, 10) / 1024 * 1024 : 131072, draft, space;
	uint8_t *memory = malloc(1024 * PAGE_BYTES);
	struct endpoint endpoint;
	struct dp_err err = { "usage: pool-bench URI [PAGES [FAR]]" };
	const char *far = argc > 3 ? argv[3] : NULL;

	if (argc < 2 || !memory || pages == 0 || endpoint_parse(&endpoint, argv[1], &err) < 0) {
		fprintf(stderr, "pool-bench: %s\n", err.text);
		return 2;
	}
	if (getenv("DISTRI_PROC"))
		captive_set_program(getenv("DISTRI_PROC"));
	if (getrandom(memory, 256, 0) != 256)
		check(-1, "no random bytes");
	for (size_t i = 256; i < 1024 * PAGE_BYTES; i += 8) { /* nothing that could be packed on the way */
		uint64_t word = *(uint64_t *)(memory + i - 256) * UINT64_C(6364136223846793005) + i;
		*(uint64_t *)(memory + i) = word ^ word >> 29;
	}
	check(client_open_for_writing(&client, &endpoint, 0, &err), err.text);
	check(client_snapshot_begin(client, "bench:tmp", true, &draft, &err), err.text);
	check(client_snapshot_space(client, draft, 1, &space, &err), err.text);
	bench_put(space, pages, 256, memory, far);
	if (!far) {
		bench_put(space, pages, 256, memory, false);
		bench_put(space, pages, 1024, memory, false);
		bench_get(space, pages, 64);
		bench_get(space, pages, 1024);
		bench_latency(space, pages, false);
		bench_latency(space, pages, true);
	}
	uint64_t start = clock_now_ns();

	check(client_snapshot_commit(client, draft, "{}", &err), err.text);
	if (far)
		bench_far(far, pages);
	else
		printf("%-28s %8.2f ms\n", "commit", (double)(clock_now_ns() - start) / 1e6);
	check(client_remove(client, "bench:tmp", true, &err), err.text);
	client_close(client);
	free(memory);
	return 0;
}
