#include "touch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "value.h"
#include "zipf.h"

#define CHUNK 1024 /* page numbers are made ahead, so that making them is not measured */
#define GAP_NS 100000

static uint64_t mark_of(const struct area *area, uint64_t page)
{
	return (page + 1) * 0x9e3779b97f4a7c15ull ^ area->seed;
}

static uint64_t *page_at(const struct area *area, uint64_t page)
{
	return (uint64_t *)(area->memory + page * TOUCH_PAGE_BYTES);
}

bool area_make(struct area *area, uint64_t pages, uint64_t seed)
{
	*area = (struct area){.pages = pages, .seed = seed};
	area->memory = mmap(NULL, pages * TOUCH_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area->memory == MAP_FAILED)
		return false;
	/* all peers page by 4 KiB; large pages in one of them would compare the TLB */
	madvise(area->memory, pages * TOUCH_PAGE_BYTES, MADV_NOHUGEPAGE);
	for (uint64_t page = 0; page < pages; page++) {
		value_fill(page, (uint32_t)seed, page_at(area, page), TOUCH_PAGE_BYTES / 2);
		page_at(area, page)[0] = mark_of(area, page);
	}
	return true;
}

bool touch_one(const struct area *area, uint64_t page)
{
	return *(volatile uint64_t *)page_at(area, page) == mark_of(area, page);
}

bool touch_job_parse(struct touch_job *job, char *text)
{
	static const char *const names[PATTERNS] = {"seq", "stride", "uniform", "zipf", "two"};
	char *place;

	*job = (struct touch_job){.pattern = PATTERNS, .seed = 1};
	for (char *word = strtok_r(text, " \n", &place); word; word = strtok_r(NULL, " \n", &place)) {
		char *value = strchr(word, '=');
		if (!value)
			return false;
		*value++ = 0;
		if (!strcmp(word, "pattern")) {
			char *stride = strchr(value, ':');
			if (stride)
				*stride++ = 0;
			job->stride = stride ? strtoll(stride, NULL, 10) : 1;
			for (int i = 0; i < PATTERNS; i++)
				if (!strcmp(value, names[i]))
					job->pattern = (enum pattern)i;
		} else if (!strcmp(word, "writes"))
			job->writes = strtod(value, NULL);
		else if (!strcmp(word, "seconds"))
			job->seconds = strtod(value, NULL);
		else if (!strcmp(word, "touches"))
			job->touches = strtoull(value, NULL, 10);
		else if (!strcmp(word, "seed"))
			job->seed = strtoull(value, NULL, 10);
		else if (!strcmp(word, "beat"))
			job->beat = *value == '1';
		else
			return false;
	}
	return job->pattern != PATTERNS && (job->touches || job->seconds > 0);
}

struct walk {
	const struct touch_job *job;
	const struct area *area;
	struct zipf zipf;
	uint64_t random, step;
};

static uint64_t next_page(struct walk *walk)
{
	uint64_t pages = walk->area->pages, step = walk->step++;
	int64_t at;

	switch (walk->job->pattern) {
	case PATTERN_UNIFORM:
		return random_next(&walk->random) % pages;
	case PATTERN_ZIPF:
		return zipf_scattered(&walk->zipf, &walk->random);
	case PATTERN_TWO_STREAMS:
		return (step / 2 + (step % 2) * (pages / 2)) % pages;
	default:
		at = (int64_t)(step % pages) * walk->job->stride % (int64_t)pages;
		return (uint64_t)(at < 0 ? at + (int64_t)pages : at);
	}
}

static void run_chunk(struct walk *walk, uint64_t count, struct touch_result *result)
{
	uint64_t pages[CHUNK];
	bool writes[CHUNK];

	for (uint64_t i = 0; i < count; i++) {
		pages[i] = next_page(walk);
		writes[i] = (double)(random_next(&walk->random) >> 11) / (double)(1ull << 53) < walk->job->writes;
	}
	uint64_t start = clock_ns(), before = start;
	for (uint64_t i = 0; i < count; i++) {
		volatile uint64_t *page = page_at(walk->area, pages[i]);
		result->wrong += page[0] != mark_of(walk->area, pages[i]);
		if (writes[i]) {
			page[1]++;
			result->writes++;
		}
		uint64_t now = clock_ns();
		result->slow += now - before > TOUCH_SLOW_NS;
		latency_add(&result->latency, now - before, 1);
		before = now;
	}
	result->time_ns += before - start;
	result->touches += count;
}

struct beat {
	struct touch_result *result;
	_Atomic int stop;
};

static void *beat_run(void *argument)
{
	struct beat *beat = argument;
	struct touch_result *result = beat->result;
	uint64_t start = clock_ns(), before = start;

	while (!atomic_load_explicit(&beat->stop, memory_order_relaxed)) {
		uint64_t now = clock_ns(), gap = now - before;
		if (gap > GAP_NS) {
			result->beat_gaps++;
			result->beat_gap_ns += gap;
		}
		if (gap > result->beat_longest_ns)
			result->beat_longest_ns = gap;
		before = now;
	}
	result->beat_ns = before - start;
	return NULL;
}

void touch_run(const struct area *area, const struct touch_job *job, struct touch_result *result)
{
	static uint64_t steps[PATTERNS]; /* a walk goes on where the last one of its kind ended, as a program's would */
	struct walk walk = {.job = job, .area = area, .random = job->seed * 1000003 + 17, .step = steps[job->pattern]};
	struct beat beat = {.result = result};
	pthread_t thread;
	struct rusage before, after;

	memset(result, 0, sizeof(*result));
	if (job->pattern == PATTERN_ZIPF)
		zipf_init(&walk.zipf, area->pages);
	bool beats = job->beat && pthread_create(&thread, NULL, beat_run, &beat) == 0;
	getrusage(RUSAGE_THREAD, &before);
	uint64_t end_ns = job->seconds > 0 ? clock_ns() + (uint64_t)(job->seconds * 1e9) : UINT64_MAX;
	while (clock_ns() < end_ns && (!job->touches || result->touches < job->touches)) {
		uint64_t left = job->touches ? job->touches - result->touches : CHUNK;
		run_chunk(&walk, left < CHUNK ? left : CHUNK, result);
	}
	getrusage(RUSAGE_THREAD, &after);
	steps[job->pattern] = walk.step;
	result->major_faults = (uint64_t)(after.ru_majflt - before.ru_majflt);
	result->minor_faults = (uint64_t)(after.ru_minflt - before.ru_minflt);
	if (beats) {
		atomic_store(&beat.stop, 1);
		pthread_join(thread, NULL);
	}
}
