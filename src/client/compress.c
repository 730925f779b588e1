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
	if (meter->on != on)
		meter->turn++;
	meter->on = on;
	meter->phase = phase;
	meter->windows = phase == COMPRESS_SETTLED ? COMPRESS_VERDICT_WINDOWS : 0;
	if (phase == COMPRESS_PLAIN)
		meter->plain_bytes_per_second = 0;
}

static void judge(struct compress_meter *meter, uint64_t bytes_per_second)
{
	switch (meter->phase) {
	case COMPRESS_PLAIN:
		meter->plain_bytes_per_second = DP_MAX(meter->plain_bytes_per_second, bytes_per_second);
		if (bytes_per_second >= COMPRESS_FAST_BYTES_PER_SECOND)
			turn(meter, false, COMPRESS_PLAIN);
		else if (++meter->windows == COMPRESS_PLAIN_WINDOWS)
			turn(meter, true, COMPRESS_TRIAL);
		break;
	case COMPRESS_TRIAL:
		turn(meter, bytes_per_second > meter->plain_bytes_per_second + meter->plain_bytes_per_second / 5, COMPRESS_SETTLED);
		break;
	case COMPRESS_SETTLED:
		if (--meter->windows == 0 || (meter->on && bytes_per_second < meter->plain_bytes_per_second))
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
	if (meter->pages < COMPRESS_WINDOW_PAGES)
		return;
	uint64_t ns = DP_MAX(now_ns - meter->start_ns, UINT64_C(1));

	meter->start_ns = 0;
	judge(meter, (uint64_t)((double)(meter->pages * PAGE_BYTES) * 1e9 / (double)ns));
}
