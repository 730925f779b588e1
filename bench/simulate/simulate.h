/* simulate: what the two halves of the simulator share. */
#ifndef DP_BENCH_SIMULATE_H
#define DP_BENCH_SIMULATE_H

#include <json-c/json.h>

#include "memory.h"
#include "trace.h"

/* Index of each touch's next one of the same page, UINT32_MAX where there is none; fresh. */
uint32_t *trace_next_uses(const struct trace *trace);
/* Tables of one trace to stdout, the same into `rows`. `share`: local memory as a part of the trace's pages. */
void simulate_replacement(const struct trace *trace, double share, json_object *rows);
/* `again`: another run of the same program, NULL where there is none. */
void simulate_prefetch(const struct trace *trace, const struct trace *again, double share, json_object *rows);

#endif
