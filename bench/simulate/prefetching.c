/* What should be fetched ahead? Each policy on one trace, as src/pager/ahead.c would drive it, with our replacement behind it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "prefetch/prefetch.h"
#include "simulate.h"

enum { NOT_AHEAD, AHEAD, AHEAD_TOUCHED }; /* fetched ahead and, as far as the simulator knows, used */

static const struct replacement_options ours = { "ours", REPLACE_QUEUES, false, 1.0 / 16, 0.1, 1, 1, false };

struct run {
	const struct trace *trace;
	struct memory memory;
	struct prefetcher *prefetcher;
	uint8_t *ahead;   /* by page: what is true */
	bool *unproven;   /* by page: what the pager knows */
	uint64_t faults, hits_ahead, fetched, fetched_ahead, used_ahead;
};

static uint32_t id_of(const struct trace *trace, uint64_t pgno)
{
	uint32_t low = 0, high = trace->pages;
	while (low < high) {
		uint32_t middle = (low + high) / 2;
		if (trace->page[middle] < pgno)
			low = middle + 1;
		else
			high = middle;
	}
	return low < trace->pages && trace->page[low] == pgno ? low : UINT32_MAX;
}

static void dropped(void *context, uint32_t page)
{
	struct run *run = context;
	if (run->unproven[page])
		prefetch_outcome(run->prefetcher, 0, 1);
	run->unproven[page] = false;
	run->ahead[page] = NOT_AHEAD;
}

static void prove(struct run *run, uint32_t id)
{
	if (id != UINT32_MAX && run->unproven[id]) {
		run->unproven[id] = false;
		prefetch_outcome(run->prefetcher, 1, 0);
	}
}

static bool fetch_ahead(struct run *run, uint64_t pgno, uint64_t *trigger, bool leave)
{
	uint32_t id = id_of(run->trace, pgno);
	if (id == UINT32_MAX || run->memory.page[id].state)
		return false;
	if (leave && *trigger == UINT64_MAX) {
		*trigger = pgno;
		return false;
	}
	memory_insert(&run->memory, id, UINT32_MAX);
	run->ahead[id] = AHEAD;
	run->unproven[id] = true;
	run->fetched_ahead++;
	return true;
}

static void fault(struct run *run, uint64_t pgno)
{
	struct prefetch_advice advice;
	prefetch_fault(run->prefetcher, run->trace->page[0], pgno, &advice);
	for (uint32_t i = 0; i < advice.proven.pages; i++)
		prove(run, id_of(run->trace, advice.proven.pgno + (uint64_t)(advice.proven.stride * i)));
	for (uint32_t r = 0; r < advice.runs; r++) {
		const struct prefetch_run *wish = &advice.run[r];
		uint64_t trigger = UINT64_MAX;
		uint32_t asked = 0;
		for (uint32_t i = 0; i < wish->pages; i++)
			asked += fetch_ahead(run, wish->pgno + (uint64_t)(wish->stride * i), &trigger, wish->trigger);
		prefetch_asked(run->prefetcher, &advice, wish, &(struct prefetch_asked){ asked, trigger, UINT64_MAX });
	}
}

/* The first touches of another run, each page once: what the pager would have recorded, loaded before the run begins. */
static void replay(struct run *run, const struct trace *again)
{
	uint64_t trigger = UINT64_MAX;
	for (uint32_t i = 0; i < again->touches && run->fetched_ahead < run->memory.budget / 2; i++)
		fetch_ahead(run, again->pgno[i], &trigger, false);
}

static void touch_all(struct run *run)
{
	const struct trace *trace = run->trace;
	for (uint32_t i = 0; i < trace->touches; i++) {
		uint32_t id = trace->id[i];
		enum touch_result result = memory_touch(&run->memory, id, UINT32_MAX);
		if (result != TOUCH_MISS && run->ahead[id] == AHEAD) {
			run->ahead[id] = AHEAD_TOUCHED;
			run->used_ahead++;
			run->hits_ahead++;
		}
		if (result == TOUCH_STAGED)
			prove(run, id);
		if (result != TOUCH_MISS)
			continue;
		run->faults++;
		run->fetched++;
		memory_insert(&run->memory, id, UINT32_MAX);
		fault(run, trace->pgno[i]);
	}
}

static void run_policy(const struct trace *trace, const struct trace *again, enum prefetch_policy policy, uint32_t budget,
		       struct run *run)
{
	*run = (struct run){ .trace = trace };
	run->prefetcher = calloc(1, sizeof(*run->prefetcher));
	run->ahead = calloc(trace->pages, 1);
	run->unproven = calloc(trace->pages, sizeof(bool));
	if (!run->prefetcher || !run->ahead || !run->unproven)
		abort();
	prefetch_init(run->prefetcher, policy);
	memory_init(&run->memory, &ours, trace->pages, budget);
	run->memory.dropped = dropped;
	run->memory.context = run;
	if (policy == PREFETCH_RECORDED && again)
		replay(run, again);
	touch_all(run);
	memory_done(&run->memory);
	free(run->prefetcher);
	free(run->ahead);
	free(run->unproven);
}

void simulate_prefetch(const struct trace *trace, const struct trace *again, double share, json_object *rows)
{
	uint32_t budget = (uint32_t)(trace->pages * share);
	struct run none;
	if (budget < 64)
		return;
	run_policy(trace, NULL, PREFETCH_NONE, budget, &none);
	printf("\n### %s: %u touches of %u pages, %u local; %llu faults without prefetching\n\n"
	       "| policy | faults | coverage %% | accuracy %% | extra traffic %% |\n| --- | ---: | ---: | ---: | ---: |\n",
	       trace->name, trace->touches, trace->pages, budget, (unsigned long long)none.faults);
	for (int policy = 0; policy < PREFETCH_POLICIES; policy++) {
		struct run run;
		if (policy == PREFETCH_NONE || (policy == PREFETCH_RECORDED && !again))
			continue;
		run_policy(trace, again, (enum prefetch_policy)policy, budget, &run);
		double coverage = 1 - (double)run.faults / (double)none.faults;
		double accuracy = run.fetched_ahead ? (double)run.used_ahead / (double)run.fetched_ahead : 0;
		double extra = (double)(run.fetched + run.fetched_ahead) / (double)none.faults - 1;
		printf("| %s | %llu | %.1f | %.1f | %.1f |\n", prefetch_policy_name((enum prefetch_policy)policy),
		       (unsigned long long)run.faults, coverage * 100, accuracy * 100, extra * 100);
		json_object *row = json_object_new_object();
		json_object_object_add(row, "trace", json_object_new_string(trace->name));
		json_object_object_add(row, "local_share", json_object_new_double(share));
		json_object_object_add(row, "policy", json_object_new_string(prefetch_policy_name((enum prefetch_policy)policy)));
		json_object_object_add(row, "faults_without", json_object_new_uint64(none.faults));
		json_object_object_add(row, "faults", json_object_new_uint64(run.faults));
		json_object_object_add(row, "coverage", json_object_new_double(coverage));
		json_object_object_add(row, "accuracy", json_object_new_double(accuracy));
		json_object_object_add(row, "extra_traffic", json_object_new_double(extra));
		json_object_array_add(rows, row);
	}
}
