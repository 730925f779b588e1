#include "latency.h"

static unsigned bucket_of(uint64_t ns)
{
	if (ns < 16)
		return (unsigned)ns;
	unsigned power = 63 - (unsigned)__builtin_clzll(ns);
	return (power - 3) * 16 + (unsigned)(ns >> (power - 4) & 15);
}

static uint64_t bucket_end(unsigned bucket)
{
	return bucket < 16 ? bucket : (16ull + bucket % 16 + 1) << (bucket / 16 - 1);
}

void latency_add(struct latency *latency, uint64_t ns, uint64_t times)
{
	latency->count += times;
	latency->bucket[bucket_of(ns)] += times;
	if (ns > latency->max_ns)
		latency->max_ns = ns;
}

void latency_merge(struct latency *into, const struct latency *from)
{
	into->count += from->count;
	if (from->max_ns > into->max_ns)
		into->max_ns = from->max_ns;
	for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
		into->bucket[i] += from->bucket[i];
}

double latency_quantile_ns(const struct latency *latency, double share)
{
	uint64_t rank = (uint64_t)((double)latency->count * share), seen = 0;

	for (unsigned i = 0; i < LATENCY_BUCKETS && latency->count; i++) {
		seen += latency->bucket[i];
		if (seen > rank)
			return bucket_end(i) < latency->max_ns ? (double)bucket_end(i) : (double)latency->max_ns;
	}
	return (double)latency->max_ns;
}
