/* Who should leave? Each policy on one trace: faults that need the network, faults that staging answers, and what both cost. */
#include <stdio.h>
#include <stdlib.h>

#include "simulate.h"

/* Measured over TCP on loopback and from staging; only their ratio matters. */
#define MISS_US 9.0
#define STAGED_US 3.0

#define S16 (1.0 / 16)
/* Name, kind, sees touches, staging, small queue, ghosts, most rounds skipped, doubling. */
static const struct replacement_options policies[] = {
	{ "FIFO", REPLACE_QUEUES, false, 0, 1, 0, 0, false },
	{ "CLOCK, staged", REPLACE_QUEUES, false, S16, 1, 0, 0, false },
	{ "CLOCK, staged, skips 1-3", REPLACE_QUEUES, false, S16, 1, 0, 3, false },
	{ "SIEVE, staged", REPLACE_SIEVE, false, S16, 1, 0, 0, false },
	{ "SIEVE, staged, skips 1-3", REPLACE_SIEVE, false, S16, 1, 0, 3, false },
	{ "S3 10 %, ghost 1", REPLACE_QUEUES, false, S16, 0.1, 1, 0, false },
	{ "S3 10 %, ghost 1, skips 1", REPLACE_QUEUES, false, S16, 0.1, 1, 1, false },
	{ "S3 10 %, ghost 1, skips 1-3", REPLACE_QUEUES, false, S16, 0.1, 1, 3, false },
	{ "S3 10 %, ghost 1, skips 1-7", REPLACE_QUEUES, false, S16, 0.1, 1, 7, false },
	{ "S3 10 %, ghost 1, skips 1 3 7", REPLACE_QUEUES, false, S16, 0.1, 1, 3, true },
	{ "S3 10 %, no ghost, skips 1-3", REPLACE_QUEUES, false, S16, 0.1, 0, 3, false },
	{ "S3 10 %, ghost 1/8, skips 1-3", REPLACE_QUEUES, false, S16, 0.1, 0.125, 3, false },
	{ "S3 10 %, ghost 1/4, skips 1-3", REPLACE_QUEUES, false, S16, 0.1, 0.25, 3, false },
	{ "S3 10 %, ghost 1/2, skips 1-3", REPLACE_QUEUES, false, S16, 0.1, 0.5, 3, false },
	{ "S3 10 %, ghost 2, skips 1-3", REPLACE_QUEUES, false, S16, 0.1, 2, 3, false },
	{ "S3 2 %, ghost 1/4, skips 1-3", REPLACE_QUEUES, false, S16, 0.02, 0.25, 3, false },
	{ "S3 5 %, ghost 1/2, skips 1-3", REPLACE_QUEUES, false, S16, 0.05, 0.5, 3, false },
	{ "S3 5 %, ghost 1/4, skips 1-3", REPLACE_QUEUES, false, S16, 0.05, 0.25, 3, false },
	{ "S3 20 %, ghost 1/4, skips 1-3", REPLACE_QUEUES, false, S16, 0.2, 0.25, 3, false },
	{ "S3 30 %, ghost 1/4, skips 1-3", REPLACE_QUEUES, false, S16, 0.3, 0.25, 3, false },
	{ "S3 50 %, ghost 1/4, skips 1-3", REPLACE_QUEUES, false, S16, 0.5, 0.25, 3, false },
	{ "S3 5 %, ghost 1/4, skips 1 3 7", REPLACE_QUEUES, false, S16, 0.05, 0.25, 3, true },
	{ "S3 10 %, ghost 1/4, skips 1 3 7", REPLACE_QUEUES, false, S16, 0.1, 0.25, 3, true },
	{ "S3 10 %, ghost 1/4, skips 1 3 7, staging 1/32", REPLACE_QUEUES, false, S16 / 2, 0.1, 0.25, 3, true },
	{ "S3 10 %, ghost 1/4, skips 1 3 7, staging 1/8", REPLACE_QUEUES, false, S16 * 2, 0.1, 0.25, 3, true },
	{ "S3 10 %, ghost 1/4, skips 1 3 7, staging 1/4", REPLACE_QUEUES, false, S16 * 4, 0.1, 0.25, 3, true },
	{ "bound: CLOCK with a bit", REPLACE_QUEUES, true, 0, 1, 0, 0, false },
	{ "bound: S3 10 % with a bit", REPLACE_QUEUES, true, 0, 0.1, 1, 3, false },
	{ "bound: SIEVE with a bit", REPLACE_SIEVE, true, 0, 1, 0, 0, false },
	{ "bound: LRU", REPLACE_LRU, true, 0, 1, 0, 0, false },
	{ "bound: Belady", REPLACE_BELADY, true, 0, 1, 0, 0, false },
};

uint32_t *trace_next_uses(const struct trace *trace)
{
	uint32_t *next = malloc(trace->touches * sizeof(*next)), *last = malloc(trace->pages * sizeof(*last));
	if (!next || !last)
		abort();
	for (uint32_t i = 0; i < trace->pages; i++)
		last[i] = UINT32_MAX;
	for (uint32_t i = trace->touches; i-- > 0;) {
		next[i] = last[trace->id[i]];
		last[trace->id[i]] = i;
	}
	free(last);
	return next;
}

static void run(const struct trace *trace, const uint32_t *next, const struct replacement_options *options, uint32_t budget,
		uint64_t counts[3])
{
	struct memory memory;
	memory_init(&memory, options, trace->pages, budget);
	uint32_t warm = trace->touches / 5; /* the first fifth fills the memory */
	counts[0] = counts[1] = counts[2] = 0;
	for (uint32_t i = 0; i < trace->touches; i++) {
		enum touch_result result = memory_touch(&memory, trace->id[i], next[i]);
		if (result == TOUCH_MISS)
			memory_insert(&memory, trace->id[i], next[i]);
		counts[result] += i >= warm;
	}
	memory_done(&memory);
}

void simulate_replacement(const struct trace *trace, double share, json_object *rows)
{
	uint32_t *next = trace_next_uses(trace), budget = (uint32_t)(trace->pages * share);
	printf("\n### %s: %u touches of %u pages, %u local\n\n| policy | misses %% | from staging %% | us a touch |\n| --- | ---: | ---: | ---: |\n",
	       trace->name, trace->touches, trace->pages, budget);
	for (size_t i = 0; budget >= 64 && i < sizeof(policies) / sizeof(policies[0]); i++) {
		uint64_t counts[3];
		run(trace, next, &policies[i], budget, counts);
		double all = (double)(counts[0] + counts[1] + counts[2]);
		double miss = (double)counts[TOUCH_MISS] / all, staged = (double)counts[TOUCH_STAGED] / all;
		double cost = miss * MISS_US + staged * STAGED_US;
		printf("| %s | %.2f | %.2f | %.3f |\n", policies[i].name, miss * 100, staged * 100, cost);
		json_object *row = json_object_new_object();
		json_object_object_add(row, "trace", json_object_new_string(trace->name));
		json_object_object_add(row, "local_share", json_object_new_double(share));
		json_object_object_add(row, "policy", json_object_new_string(policies[i].name));
		json_object_object_add(row, "miss_share", json_object_new_double(miss));
		json_object_object_add(row, "staged_share", json_object_new_double(staged));
		json_object_object_add(row, "us_per_touch", json_object_new_double(cost));
		json_object_array_add(rows, row);
	}
	free(next);
}
