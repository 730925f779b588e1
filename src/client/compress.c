#include "client/compress.h"

#include "base/base.h"

void compress_init(struct compress_meter *meter, enum client_compress mode, bool possible)
{
	*meter = (struct compress_meter){ .automatic = possible && mode == CLIENT_COMPRESS_AUTO,
					  .on = possible && mode == CLIENT_COMPRESS_LZ4 };
}

uint8_t compress_sent(struct compress_meter *meter, uint64_t pages)
{
	meter->pages_under_way += pages;
	return meter->turn;
}

static void turn(struct compress_meter *meter, bool on, enum compress_phase phase)
{
	if (meter->on != on) {
		meter->turn++;
		meter->start_ns = 0;
	}
	meter->on = on;
	meter->phase = phase;
	meter->windows = 0;
	meter->phase_ns = 0;
	meter->phase_pages = 0;
	meter->packed_pages = meter->packed_bytes = 0;
}

static uint64_t rate(uint64_t pages, uint64_t ns)
{
	return (uint64_t)((double)(pages * PAGE_BYTES) * 1e9 / (double)DP_MAX(ns, UINT64_C(1)));
}

void compress_packed(struct compress_meter *meter, uint64_t pages, uint64_t bytes)
{
	meter->packed_pages += pages;
	meter->packed_bytes += bytes;
}

static bool shrinks(const struct compress_meter *meter)
{
	return meter->packed_bytes <= meter->packed_pages * (PAGE_BYTES / 8 * 7);
}

/* A window has ended: it took so long. */
static void judge(struct compress_meter *meter, uint64_t ns)
{
	uint64_t now = rate(meter->pages, ns), whole;

	meter->windows++;
	meter->phase_ns += ns;
	meter->phase_pages += meter->pages;
	whole = rate(meter->phase_pages, meter->phase_ns);
	switch (meter->phase) {
	case COMPRESS_PLAIN:
		if (now >= COMPRESS_FAST_BYTES_PER_SECOND) {
			turn(meter, false, COMPRESS_PLAIN);
		} else if (meter->windows == COMPRESS_PLAIN_WINDOWS) {
			meter->plain_bytes_per_second = whole;
			turn(meter, true, COMPRESS_TRIAL);
		}
		break;
	case COMPRESS_TRIAL:
		if (meter->windows == COMPRESS_TRIAL_WINDOWS)
			turn(meter, shrinks(meter) && whole > meter->plain_bytes_per_second + meter->plain_bytes_per_second / 5,
			     COMPRESS_SETTLED);
		break;
	case COMPRESS_SETTLED:
		if (meter->windows == COMPRESS_VERDICT_WINDOWS || (meter->on && now < meter->plain_bytes_per_second / 2))
			turn(meter, false, COMPRESS_PLAIN);
		break;
	}
}

void compress_answered(struct compress_meter *meter, uint8_t sent_turn, uint64_t pages, uint64_t now_ns)
{
	meter->pages_under_way -= DP_MIN(pages, meter->pages_under_way);
	/* Others follow at once: what is timed is the link, not how fast the caller makes its requests. */
	bool busy = meter->pages_under_way >= COMPRESS_BUSY_PAGES;

	if (!meter->automatic || sent_turn != meter->turn)
		return;
	/* An idle link says nothing about its width. */
	if (!busy) {
		meter->start_ns = 0;
		return;
	}
	/* The first answer starts the clock: what came before it belongs to the window before. */
	if (meter->start_ns == 0) {
		meter->start_ns = now_ns;
		meter->pages = 0;
		return;
	}
	meter->pages += pages;
	uint64_t ns = now_ns - meter->start_ns;

	if (meter->pages < COMPRESS_WINDOW_PAGES && (ns < COMPRESS_WINDOW_NS || meter->pages < COMPRESS_BUSY_PAGES))
		return;

	/* The next window begins where this one ends: answers that come in bursts even out over several. */
	meter->start_ns = now_ns;
	judge(meter, ns);
	meter->pages = 0;
}
