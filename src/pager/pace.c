#include "pager/pace.h"

#include <string.h>

#include "base/base.h"

#define SECOND_NS 1000000000ull
#define BURST_NS (20u * 1000 * 1000)
#define PERIOD_NS (2 * SECOND_NS)
#define INTERVAL_NS (50u * 1000 * 1000)
#define FAULTS_LEAST 4u
#define PLATEAUS 3u
#define PROBE_LOOKS 8u
#define GENTLE_NS (2u * 1000 * 1000)

/* bytes * ns beyond 2^64 are common: 128-bit products. */
static uint64_t bytes_in(uint64_t bytes_a_second, uint64_t ns)
{
	return (uint64_t)((unsigned __int128)bytes_a_second * ns / SECOND_NS);
}

static uint64_t time_of(uint64_t bytes, uint64_t bytes_a_second)
{
	return (uint64_t)((unsigned __int128)bytes * SECOND_NS / DP_MAX(bytes_a_second, 1u));
}

static uint64_t bandwidth(const struct pace *pace)
{
	return DP_MAX(pace->bandwidth[0], pace->bandwidth[1]);
}

static uint64_t round_trip(const struct pace *pace)
{
	const uint64_t *seen = pace->round_trip_ns;
	return seen[0] && seen[1] ? DP_MIN(seen[0], seen[1]) : DP_MAX(seen[0], seen[1]);
}

void pace_init(struct pace *pace, uint64_t least_bytes, uint64_t most_bytes, uint64_t rate_bytes, uint64_t now_ns)
{
	memset(pace, 0, sizeof(*pace));
	pace->least_bytes = least_bytes;
	pace->most_bytes = most_bytes;
	pace->share = PACE_SHARE_FULL;
	pace->period_ns = pace->looked_ns = pace->interval_ns = now_ns;
	pace_set_rate(pace, rate_bytes, now_ns);
}

void pace_set_rate(struct pace *pace, uint64_t rate_bytes, uint64_t now_ns)
{
	pace->rate_bytes = rate_bytes;
	pace->tokens_bytes = 0;
	pace->filled_ns = now_ns;
}

/* ---- window ---- */

/* What the link holds, a chunk on its way included; while it starts up, twice that. */
static uint64_t held_bytes(const struct pace *pace)
{
	return bytes_in(bandwidth(pace), round_trip(pace)) * (pace->plateaus < PLATEAUS ? 2 : 1);
}

uint64_t pace_chunk_bytes(const struct pace *pace)
{
	return DP_MIN(DP_MAX(held_bytes(pace) / 8, pace->least_bytes), pace->most_bytes);
}

static bool is_gentle(const struct pace *pace, uint64_t now_ns)
{
	return pace->plateaus == PLATEAUS && pace->fault_ns && now_ns - pace->fault_ns < GENTLE_NS;
}

uint64_t pace_window_bytes(const struct pace *pace, uint64_t now_ns)
{
	uint64_t held = held_bytes(pace), chunk = pace_chunk_bytes(pace);
	if (is_gentle(pace, now_ns))
		return held > 2 * chunk ? held - chunk : chunk;
	bool probes = pace->plateaus == PLATEAUS && pace->looks % PROBE_LOOKS == 0;
	return held + chunk * (held ? 1 : 2) + (probes ? DP_MAX(held / 4, chunk) : 0);
}

void pace_full(struct pace *pace)
{
	pace->full = true;
}

void pace_fault(struct pace *pace, uint64_t now_ns)
{
	pace->fault_ns = now_ns;
}

/* Old estimates are forgotten after one to two periods: the link may have changed. */
static void turn_period(struct pace *pace, uint64_t now_ns)
{
	uint64_t length = DP_MAX(PERIOD_NS, 8 * round_trip(pace));
	if (is_gentle(pace, now_ns)) /* what is delivered now says less than the link can */
		pace->period_ns = now_ns;
	if (now_ns - pace->period_ns < length)
		return;
	pace->period_ns = now_ns;
	if (pace->bandwidth[0])
		pace->bandwidth[1] = pace->bandwidth[0];
	if (pace->round_trip_ns[0])
		pace->round_trip_ns[1] = pace->round_trip_ns[0];
	pace->bandwidth[0] = pace->round_trip_ns[0] = 0;
}

/* The start-up ends when three round trips did not bring a quarter more each; an eighth more later begins another one. */
static void look_for_plateau(struct pace *pace, uint64_t now_ns)
{
	bool started = pace->plateaus < PLATEAUS;
	if (!pace->full || !pace->measured || now_ns - pace->looked_ns < round_trip(pace))
		return;
	uint64_t now = bandwidth(pace);
	pace->looked_ns = now_ns;
	pace->full = pace->measured = false;
	pace->looks++;
	if (now > pace->grew_to + pace->grew_to / (started ? 4 : 8)) {
		pace->grew_to = now;
		pace->plateaus = 0;
	} else if (started && ++pace->plateaus == PLATEAUS) {
		pace->looks = 1; /* the first try comes some round trips later */
	}
}

struct pace_chunk pace_sent(struct pace *pace, uint64_t bytes, uint64_t now_ns)
{
	pace->tokens_bytes -= (int64_t)bytes;
	return (struct pace_chunk){ bytes, now_ns, pace->delivered_bytes };
}

void pace_delivered(struct pace *pace, struct pace_chunk chunk, uint64_t now_ns)
{
	uint64_t took = DP_MAX(now_ns - chunk.sent_ns, 1u);
	pace->delivered_bytes += chunk.bytes;
	turn_period(pace, now_ns);
	uint64_t came = pace->delivered_bytes - chunk.delivered_bytes;
	if (came >= pace->least_bytes / 2) { /* little says little about the link */
		pace->bandwidth[0] = DP_MAX(pace->bandwidth[0], came * SECOND_NS / took);
		pace->measured = true;
	}
	if ((chunk.bytes >= pace->least_bytes / 2 && took < pace->round_trip_ns[0]) || !pace->round_trip_ns[0])
		pace->round_trip_ns[0] = took;
	look_for_plateau(pace, now_ns);
}

/* ---- rate and share ---- */

static uint64_t allowed_bytes(const struct pace *pace)
{
	uint64_t left = pace->share < PACE_SHARE_FULL ? bandwidth(pace) / PACE_SHARE_FULL * pace->share : 0; /* 0: no limit */
	if (left && pace->rate_bytes)
		return DP_MIN(left, pace->rate_bytes);
	return left ? left : pace->rate_bytes;
}

uint64_t pace_wait_ns(struct pace *pace, uint64_t now_ns)
{
	uint64_t rate = allowed_bytes(pace);
	if (!rate) {
		pace->tokens_bytes = 0;
		pace->filled_ns = now_ns;
		return 0;
	}
	uint64_t depth = DP_MAX(bytes_in(rate, BURST_NS), pace_chunk_bytes(pace));
	uint64_t since = DP_MIN(now_ns - pace->filled_ns, SECOND_NS); /* a second fills any bucket, and nothing overflows */
	pace->tokens_bytes = DP_MIN(pace->tokens_bytes + (int64_t)bytes_in(rate, since), (int64_t)depth);
	pace->filled_ns = now_ns;
	return pace->tokens_bytes >= 0 ? 0 : time_of((uint64_t)-pace->tokens_bytes, rate);
}

void pace_faults(struct pace *pace, uint64_t count, uint64_t sum_ns, uint64_t now_ns)
{
	if (now_ns - pace->interval_ns < INTERVAL_NS)
		return;
	uint64_t faults = count - pace->fault_count;
	uint64_t mean = faults >= FAULTS_LEAST ? (sum_ns - pace->fault_sum_ns) / faults : 0;
	pace->interval_ns = now_ns;
	pace->fault_count = count;
	pace->fault_sum_ns = sum_ns;
	if (pace->baseline_ns)
		pace->baseline_ns += pace->baseline_ns / 256;
	if (mean && (!pace->baseline_ns || mean < pace->baseline_ns))
		pace->baseline_ns = mean;
	uint64_t chunk_ns = bandwidth(pace) ? time_of(pace_chunk_bytes(pace), bandwidth(pace)) : 0;
	if (mean > 2 * pace->baseline_ns + chunk_ns) {
		pace->backed_off++;
		pace->share = DP_MAX(pace->share / 2, PACE_SHARE_LEAST);
	} else {
		pace->share = DP_MIN(pace->share + PACE_SHARE_FULL / 16, PACE_SHARE_FULL);
	}
}
