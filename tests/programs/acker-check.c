/* acker-check POOL INSTANCE FILE THREADS: takes the instance's lease, reads acker's pages from the pool, and says by how many
 * writes they are behind what FILE acknowledges. Exit code 0: by none. */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "acker.h"
#include "client/client.h"

struct reading {
	uint64_t first;
	uint64_t word[ACKER_THREADS * ACKER_PAGES];
	int left;
};

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct reading *reading = context;
	(void)cookie;
	for (uint64_t i = 0; data && i < range.pages; i++)
		memcpy(&reading->word[range.pgno - reading->first + i], (const uint8_t *)data + i * 4096, 8);
	reading->left -= last;
}

static void on_done(void *context, uint64_t cookie, int result)
{
	(void)context;
	(void)cookie;
	fprintf(stderr, "the pool does not give the pages: %s\n", strerror(-result));
	exit(2);
}

static int read_pages(struct client *client, uint64_t space, struct reading *reading)
{
	const struct client_handler handler = { .context = reading, .on_pages = on_pages, .on_done = on_done };
	const struct page_range range = { reading->first, ACKER_THREADS * ACKER_PAGES };
	int result = client_get(client, CLASS_DEMAND, space, &range, 1, 1);
	for (reading->left = 1; result >= 0 && reading->left;) {
		poll(&(struct pollfd){ .fd = client_fd(client), .events = POLLIN }, 1, 100);
		result = client_receive(client, &handler);
	}
	return result;
}

/* All but the one that is being written now are to be what was acknowledged. */
static uint64_t count_missing(const struct reading *reading, uint64_t thread, uint64_t acked)
{
	uint64_t missing = 0;
	for (uint64_t count = acked; count && count + ACKER_PAGES > acked; count--) {
		uint64_t word = reading->word[acker_page(thread, count)];
		missing += word != count && word != acked + 1;
	}
	return missing;
}

int main(int argc, char **argv)
{
	struct endpoint endpoint;
	struct client *client;
	struct client_attached attached;
	struct dp_err err = { "" };
	uint64_t acked[ACKER_THREADS + 1], epoch, missing = 0, total = 0;
	static struct reading reading;
	int file = argc == 5 ? open_acks(argv[3]) : -1;
	if (file < 0 || read(file, acked, sizeof(acked)) != (ssize_t)sizeof(acked))
		return fprintf(stderr, "usage: acker-check POOL INSTANCE FILE THREADS\n"), 2;
	uint64_t instance = strtoull(argv[2], NULL, 10);
	if (endpoint_parse(&endpoint, argv[1], &err) < 0 || client_open(&client, &endpoint, 0, &err) < 0 ||
	    client_lease_take(client, instance, &epoch, &err) < 0 ||
	    client_attach(client, instance, epoch, 0, NULL, 5000, &attached, &err) < 0 || !attached.space_count)
		return fprintf(stderr, "%s\n", err.text), 2;
	reading.first = acked[ACKER_THREADS] >> 12;
	if (read_pages(client, attached.spaces[0].space, &reading) < 0)
		return fprintf(stderr, "the connection to the pool is lost\n"), 2;
	for (uint64_t thread = 0; thread < strtoull(argv[4], NULL, 10); thread++) {
		missing += count_missing(&reading, thread, acked[thread]);
		total += acked[thread];
	}
	printf("%" PRIu64 " writes acknowledged, %" PRIu64 " of the last missing\n", total, missing);
	client_attached_done(&attached);
	client_close(client);
	return missing > 0;
}
