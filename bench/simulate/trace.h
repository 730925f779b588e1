/* trace: which pages a program touches, in order; made up, or recorded from a running instance.
 *
 * A recorded trace is text: a line `# words` names it; every other line is `PAGE [COUNT [STRIDE]]`, COUNT touches from page
 * number PAGE
 * (hexadecimal, no prefix) on, STRIDE apart; COUNT and STRIDE are decimal and 1 where they are missing. */
#ifndef DP_BENCH_TRACE_H
#define DP_BENCH_TRACE_H

#include <stdbool.h>
#include <stdint.h>

struct trace {
	char name[64];
	uint64_t *pgno; /* [touches] */
	uint32_t *id;   /* [touches]: pages numbered from 0 in ascending order of their page numbers */
	uint64_t *page; /* [pages]: the page number of each id */
	uint32_t touches, pages;
};

/* Made-up traces by number, from 0; false: there are no more. Equal seeds make equal traces. */
bool trace_make(struct trace *trace, unsigned number, uint64_t seed);
/* false with a message where the file is no trace. */
bool trace_read(struct trace *trace, const char *path);
void trace_done(struct trace *trace);

#endif
