#include "trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zipf.h"

#define BASE 0x7f3a00000ull
#define PAGES 32768u
#define TOUCHES 1000000u
#define TOUCHES_LIMIT 20000000u

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void add(struct trace *trace, uint64_t pgno)
{
	if (trace->touches == TOUCHES_LIMIT)
		return;
	if (!(trace->touches & (trace->touches - 1))) {
		trace->pgno = realloc(trace->pgno, (trace->touches ? 2ull * trace->touches : 1) * sizeof(*trace->pgno));
		if (!trace->pgno)
			abort();
	}
	trace->pgno[trace->touches++] = pgno;
}

static int by_number(const void *first, const void *second)
{
	uint64_t a = *(const uint64_t *)first, b = *(const uint64_t *)second;
	return a < b ? -1 : a > b;
}

static void number_pages(struct trace *trace)
{
	trace->page = malloc(trace->touches * sizeof(*trace->page) + 8);
	trace->id = malloc(trace->touches * sizeof(*trace->id) + 8);
	if (!trace->page || !trace->id)
		abort();
	memcpy(trace->page, trace->pgno, trace->touches * sizeof(*trace->page));
	qsort(trace->page, trace->touches, sizeof(*trace->page), by_number);
	for (uint32_t i = 0; i < trace->touches; i++)
		if (!trace->pages || trace->page[i] != trace->page[trace->pages - 1])
			trace->page[trace->pages++] = trace->page[i];
	for (uint32_t i = 0; i < trace->touches; i++) {
		const uint64_t *at = bsearch(&trace->pgno[i], trace->page, trace->pages, sizeof(*at), by_number);
		trace->id[i] = (uint32_t)(at - trace->page);
	}
}

static void cyclic(struct trace *trace, int64_t stride)
{
	int64_t at = stride > 0 ? 0 : PAGES - 1;
	for (uint32_t i = 0; i < TOUCHES / 4; i++, at = (at + stride + PAGES) % PAGES)
		add(trace, BASE + (uint64_t)at);
}

static void interleaved(struct trace *trace)
{
	for (uint32_t i = 0; i < TOUCHES / 8; i++) {
		add(trace, BASE + i % (PAGES / 2));
		add(trace, BASE + PAGES / 2 + i * 3ull % (PAGES / 2));
	}
}

static void uniform(struct trace *trace, uint64_t *seed)
{
	for (uint32_t i = 0; i < TOUCHES / 2; i++)
		add(trace, BASE + next_random(seed) % PAGES);
}

static void zipf(struct trace *trace, uint64_t *seed, uint32_t scan_every, uint32_t scan_pages)
{
	struct zipf zipf;
	zipf_init(&zipf, PAGES);
	for (uint32_t i = 1; trace->touches < TOUCHES; i++) {
		add(trace, BASE + zipf_scattered(&zipf, seed));
		if (scan_every && i % scan_every == 0) {
			uint64_t from = next_random(seed) % (PAGES - scan_pages);
			for (uint32_t n = 0; n < scan_pages; n++)
				add(trace, BASE + from + n);
		}
	}
}

/* Nine of ten touches go to a fifth of the pages; which fifth changes. */
static void shifting(struct trace *trace, uint64_t *seed)
{
	for (uint32_t i = 0; i < TOUCHES; i++) {
		uint64_t hot = i / (TOUCHES / 4) * (PAGES / 5), page = next_random(seed) % PAGES;
		add(trace, BASE + (next_random(seed) % 10 ? hot + page % (PAGES / 5) : page));
	}
}

/* Objects of two pages at random: each looks like the beginning of a run. */
static void pairs(struct trace *trace, uint64_t *seed)
{
	for (uint32_t i = 0; i < TOUCHES / 4; i++) {
		uint64_t page = next_random(seed) % (PAGES / 2) * 2;
		add(trace, BASE + page);
		add(trace, BASE + page + 1);
	}
}

/* Records of five pages, of which the first, second and fourth are touched, in order. */
static void records(struct trace *trace)
{
	static const unsigned touched[] = { 0, 1, 3 };
	for (uint32_t i = 0; i < TOUCHES / 4; i++)
		add(trace, BASE + (i / 3 * 5 + touched[i % 3]) % PAGES);
}

/* Runs of 3 to 40 pages from anywhere. */
static void short_runs(struct trace *trace, uint64_t *seed)
{
	while (trace->touches < TOUCHES / 2) {
		uint64_t pages = 3 + next_random(seed) % 38, from = next_random(seed) % (PAGES - pages);
		for (uint64_t i = 0; i < pages; i++)
			add(trace, BASE + from + i);
	}
}

bool trace_make(struct trace *trace, unsigned number, uint64_t seed)
{
	static const char *const names[] = { "sequential", "stride-7", "backwards-3", "interleaved", "uniform",	  "zipf",
					     "zipf-scans", "shifting", "pairs",	      "records",     "short-runs" };
	*trace = (struct trace){ .touches = 0 };
	if (number >= sizeof(names) / sizeof(names[0]))
		return false;
	snprintf(trace->name, sizeof(trace->name), "%s", names[number]);
	seed = seed * 0x9e3779b97f4a7c15ull | 1;
	switch (number) {
	case 0: cyclic(trace, 1); break;
	case 1: cyclic(trace, 7); break;
	case 2: cyclic(trace, -3); break;
	case 3: interleaved(trace); break;
	case 4: uniform(trace, &seed); break;
	case 5: zipf(trace, &seed, 0, 0); break;
	case 6: zipf(trace, &seed, 20000, 8192); break;
	case 7: shifting(trace, &seed); break;
	case 8: pairs(trace, &seed); break;
	case 9: records(trace); break;
	default: short_runs(trace, &seed); break;
	}
	number_pages(trace);
	return true;
}

bool trace_read(struct trace *trace, const char *path)
{
	char line[128];
	FILE *file = fopen(path, "r");
	*trace = (struct trace){ .touches = 0 };
	if (!file) {
		perror(path);
		return false;
	}
	for (unsigned number = 1; fgets(line, sizeof(line), file); number++) {
		unsigned long long page, count = 1;
		long long stride = 1;
		if (line[0] == '#') {
			sscanf(line, "# %63s", trace->name);
			continue;
		}
		if (sscanf(line, "%llx %llu %lld", &page, &count, &stride) < 1 || count > TOUCHES_LIMIT) {
			fprintf(stderr, "%s: line %u is no touch\n", path, number);
			fclose(file);
			return false;
		}
		for (unsigned long long i = 0; i < count; i++)
			add(trace, page + (uint64_t)(stride * (long long)i));
	}
	fclose(file);
	if (!trace->touches) {
		fprintf(stderr, "%s: an empty trace\n", path);
		return false;
	}
	number_pages(trace);
	return true;
}

void trace_done(struct trace *trace)
{
	free(trace->pgno);
	free(trace->id);
	free(trace->page);
}
