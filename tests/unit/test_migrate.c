/* The pace of a background transfer, on simulated links with a simulated clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "pager/pace.h"

#define LEAST (32u * 4096u)
#define MOST (64u * 4096u)
#define US 1000ull
#define MS 1000000ull
#define S 1000000000ull

/* A link with one queue: a chunk waits for those before it, takes its bytes / bandwidth, and comes a round trip later. */
struct link {
	uint64_t bandwidth, delay_ns; /* bytes a second; there and back without a queue */
	uint64_t free_ns;             /* when the queue is empty */
	struct { uint64_t due_ns; struct pace_chunk chunk; } under_way[256];
	unsigned first, count;
	unsigned short_chunks;            /* so many to come are of ten pages: there is nothing else in that place */
	uint64_t bytes, delivered;        /* under way; come */
};

static uint64_t link_queue_ns(const struct link *link, uint64_t now)
{
	return link->free_ns > now ? link->free_ns - now : 0;
}

/* One step of `step` ns: what has come is delivered, what may go is sent. */
static void run(struct link *link, struct pace *pace, uint64_t *now, uint64_t for_ns, uint64_t step,
		void (*each)(struct link *, struct pace *, uint64_t))
{
	for (uint64_t end = *now + for_ns; *now < end; *now += step) {
		while (link->count && link->under_way[link->first].due_ns <= *now) {
			pace_delivered(pace, link->under_way[link->first].chunk, *now);
			link->delivered += link->under_way[link->first].chunk.bytes;
			link->bytes -= link->under_way[link->first].chunk.bytes;
			link->first = (link->first + 1) % 256;
			link->count--;
		}
		if (each)
			each(link, pace, *now);
		while (link->count < 256 && !pace_wait_ns(pace, *now) &&
		       (!link->count || link->bytes + pace_chunk_bytes(pace) <= pace_window_bytes(pace, *now))) {
			unsigned at = (link->first + link->count++) % 256;
			uint64_t bytes = link->short_chunks ? 10 * 4096 : pace_chunk_bytes(pace);
			link->short_chunks -= link->short_chunks > 0;
			link->free_ns = DP_MAX(link->free_ns, *now) + bytes * S / link->bandwidth;
			link->under_way[at].due_ns = link->free_ns + link->delay_ns;
			link->under_way[at].chunk = pace_sent(pace, bytes, *now);
			link->bytes += bytes;
		}
		if (link->bytes + pace_chunk_bytes(pace) > pace_window_bytes(pace, *now))
			pace_full(pace);
	}
}

static double used_of(const struct link *link, uint64_t before, uint64_t ns)
{
	return (double)(link->delivered - before) / ((double)link->bandwidth * (double)ns / 1e9);
}

static void check_link(uint64_t bandwidth, uint64_t delay_ns, uint64_t step, unsigned short_chunks)
{
	struct link link = { .bandwidth = bandwidth, .delay_ns = delay_ns, .short_chunks = short_chunks };
	struct pace pace;
	uint64_t now = 5 * S, worst_queue = 0;
	pace_init(&pace, LEAST, MOST, 0, now);
	run(&link, &pace, &now, 3 * S, step, NULL);
	uint64_t before = link.delivered, chunk_ns = pace_chunk_bytes(&pace) * S / bandwidth;
	for (int i = 0; i < 200; i++) {
		run(&link, &pace, &now, 10 * MS, step, NULL);
		worst_queue = DP_MAX(worst_queue, link_queue_ns(&link, now));
	}
	double used = used_of(&link, before, 2 * S);
	double window = (double)pace_window_bytes(&pace, now) / (double)pace_chunk_bytes(&pace);
	print_message("%5.0f MB/s, %3.0f ms: %.0f %% used, window %.1f chunks of %lu pages, queue at most %.1f chunks\n",
		      (double)bandwidth / 1e6, (double)delay_ns / 1e6, 100 * used, window, pace_chunk_bytes(&pace) / 4096,
		      (double)worst_queue / (double)chunk_ns);
	assert_true(used > 0.9);
	/* The one that is being sent, one more, two of rounding, and the quarter by which the window is tried wider now and
	 * then. */
	assert_true(worst_queue <= 4 * chunk_ns + delay_ns / 4);
}

static void window__links_from_loopback_to_wan__full_use_and_a_short_queue(void **state)
{
	(void)state;
	check_link(2500000000u, 60 * US, 2 * US, 0);
	check_link(1250000000u, 1 * MS, 5 * US, 0);
	check_link(125000000u, 10 * MS, 50 * US, 0);
	check_link(125000000u, 50 * MS, 50 * US, 0);
	check_link(12500000u, 10 * MS, 100 * US, 0);
	check_link(12500000u, 50 * MS, 100 * US, 0);
	check_link(125000000u, 50 * MS, 50 * US, 300);
	check_link(125000000u, 10 * MS, 50 * US, 300);
}

/* A fault every millisecond. */
static uint64_t gentle_worst;
static void faulting(struct link *link, struct pace *pace, uint64_t now)
{
	static uint64_t next_ns;
	if (now < next_ns && next_ns - now <= MS)
		return;
	next_ns = now + MS;
	gentle_worst = DP_MAX(gentle_worst, link_queue_ns(link, now));
	pace_fault(pace, now);
}

static void window__faults_come_all_the_time__one_waits_for_one_chunk(void **state)
{
	static const struct { uint64_t bandwidth, delay_ns, step; } links[] = {
		{ 2500000000u, 60 * US, 2 * US }, { 125000000u, 10 * MS, 50 * US }, { 12500000u, 50 * MS, 100 * US },
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(links); i++) {
		struct link link = { .bandwidth = links[i].bandwidth, .delay_ns = links[i].delay_ns };
		struct pace pace;
		uint64_t now = 5 * S;
		pace_init(&pace, LEAST, MOST, 0, now);
		run(&link, &pace, &now, 3 * S, links[i].step, faulting);
		uint64_t before = link.delivered, chunk_ns = pace_chunk_bytes(&pace) * S / link.bandwidth;
		gentle_worst = 0;
		run(&link, &pace, &now, 2 * S, links[i].step, faulting);
		double used = used_of(&link, before, 2 * S);
		print_message("%5.0f MB/s, %3.0f ms, with faults: %.0f %% used, queue at most %.1f chunks\n",
			      (double)link.bandwidth / 1e6, (double)link.delay_ns / 1e6, 100 * used,
			      (double)gentle_worst / (double)chunk_ns);
		assert_true(gentle_worst <= chunk_ns + links[i].step);
		assert_true(used > 0.25);
	}
}

static void rate__faster_link__is_kept_within_a_percent(void **state)
{
	(void)state;
	struct link link = { .bandwidth = 2000000000u, .delay_ns = 100 * US };
	struct pace pace;
	uint64_t now = S;
	pace_init(&pace, LEAST, MOST, 80000000u, now);
	run(&link, &pace, &now, S / 2, 10 * US, NULL);
	uint64_t before = link.delivered;
	run(&link, &pace, &now, 5 * S, 10 * US, NULL);
	double rate = (double)(link.delivered - before) / 5;
	assert_true(rate > 0.99 * 80e6 && rate < 1.01 * 80e6);
	/* A change counts at once, with no debt or credit of the old rate. */
	pace_set_rate(&pace, 8000000u, now);
	before = link.delivered;
	run(&link, &pace, &now, 5 * S, 100 * US, NULL);
	rate = (double)(link.delivered - before) / 5;
	assert_true(rate > 0.95 * 8e6 && rate < 1.1 * 8e6);
}

static void rate__idle_for_long__bucket_holds_no_more_than_its_depth(void **state)
{
	(void)state;
	struct pace pace;
	pace_init(&pace, LEAST, MOST, 100000000u, S);
	assert_int_equal(pace_wait_ns(&pace, S), 0);
	uint64_t now = 3600 * S, burst = 0;
	while (!pace_wait_ns(&pace, now)) {
		pace_sent(&pace, LEAST, now);
		burst += LEAST;
	}
	assert_true(burst <= 100000000u / 50 + 2 * LEAST);
}

/* Demand faults that suffer tenfold while the transfer takes more than a quarter of the link. */
static uint64_t fault_count, fault_sum;
static void suffering(struct link *link, struct pace *pace, uint64_t now)
{
	static uint64_t last_ns, last_delivered, next_ns;
	static double load;
	if (now < last_ns)
		last_ns = now, last_delivered = link->delivered, next_ns = 0;
	if (now - last_ns >= 20 * MS) {
		load = (double)(link->delivered - last_delivered) / ((double)link->bandwidth * (double)(now - last_ns) / 1e9);
		last_ns = now;
		last_delivered = link->delivered;
	}
	if (now >= next_ns) { /* 2000 faults a second */
		next_ns = now + S / 2000;
		fault_count++;
		fault_sum += load > 0.25 ? 1000 * US : 100 * US;
	}
	pace_faults(pace, fault_count, fault_sum, now);
}

static void share__faults_suffer__transfer_backs_off_and_comes_back(void **state)
{
	(void)state;
	struct link link = { .bandwidth = 1000000000u, .delay_ns = 100 * US };
	struct pace pace;
	uint64_t now = S;
	pace_init(&pace, LEAST, MOST, 0, now);
	for (int i = 0; i < 200; i++) { /* faults before the transfer set the baseline */
		fault_count++;
		fault_sum += 100 * US;
		pace_faults(&pace, fault_count, fault_sum, now += MS);
	}
	assert_int_equal(pace.share, PACE_SHARE_FULL);
	run(&link, &pace, &now, 2 * S, 10 * US, suffering);
	assert_true(pace.backed_off > 0);
	uint64_t before = link.delivered;
	run(&link, &pace, &now, 5 * S, 10 * US, suffering);
	double used = used_of(&link, before, 5 * S);
	print_message("suffering above a quarter of the link: %.0f %% used, backed off %lu times\n", 100 * used, pace.backed_off);
	assert_true(used > 0.1 && used < 0.45);
	/* No more faults: all of it again within a second. */
	for (int i = 0; i < 20; i++)
		pace_faults(&pace, fault_count, fault_sum, now += 50 * MS);
	assert_int_equal(pace.share, PACE_SHARE_FULL);
}

static void share__few_or_steady_faults__nothing_is_given_up(void **state)
{
	(void)state;
	struct pace pace;
	uint64_t now = S, count = 0, sum = 0;
	pace_init(&pace, LEAST, MOST, 0, now);
	for (int i = 0; i < 1000; i++) {
		count += 3; /* too few to say anything, however slow */
		sum += 3 * (i % 2 ? MS : 10 * US);
		pace_faults(&pace, count, sum, now += 51 * MS);
	}
	assert_int_equal(pace.share, PACE_SHARE_FULL);
	for (int i = 0; i < 1000; i++) {
		count += 100;
		sum += 100 * (80 + (uint64_t)i % 40) * US; /* noise of a half */
		pace_faults(&pace, count, sum, now += 51 * MS);
	}
	assert_int_equal(pace.backed_off, 0);
}

static void share__link_became_slower_for_good__baseline_follows(void **state)
{
	(void)state;
	struct pace pace;
	uint64_t now = S, count = 0, sum = 0;
	pace_init(&pace, LEAST, MOST, 0, now);
	for (int i = 0; i < 2000; i++) { /* 100 s; the latency is four times as long from the first second on */
		count += 10;
		sum += 10 * (i < 20 ? 100 * US : 400 * US);
		pace_faults(&pace, count, sum, now += 50 * MS);
	}
	assert_int_equal(pace.share, PACE_SHARE_FULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(window__links_from_loopback_to_wan__full_use_and_a_short_queue),
		cmocka_unit_test(window__faults_come_all_the_time__one_waits_for_one_chunk),
		cmocka_unit_test(rate__faster_link__is_kept_within_a_percent),
		cmocka_unit_test(rate__idle_for_long__bucket_holds_no_more_than_its_depth),
		cmocka_unit_test(share__faults_suffer__transfer_backs_off_and_comes_back),
		cmocka_unit_test(share__few_or_steady_faults__nothing_is_given_up),
		cmocka_unit_test(share__link_became_slower_for_good__baseline_follows),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
