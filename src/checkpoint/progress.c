#include "checkpoint/progress.h"

#include "base/base.h"

#define INTERVAL_NS 100000000u

void progress_start(struct progress *progress, bool enabled, uint64_t expected_pages)
{
	*progress = (struct progress){.enabled = enabled, .expected_pages = expected_pages, .started_ns = clock_now_ns()};
}

void progress_update(struct progress *progress, uint64_t pages)
{
	if (!progress->enabled)
		return;
	uint64_t now = clock_now_ns();
	if (now - progress->last_ns < INTERVAL_NS)
		return;
	progress->last_ns = now;
	char bytes[32], rate[32], share[32] = "";
	uint64_t elapsed_ns = DP_MAX(now - progress->started_ns, (uint64_t)1);
	if (progress->expected_pages)
		snprintf(share, sizeof(share), ", %d %%", (int)DP_MIN(pages * 100 / progress->expected_pages, (uint64_t)100));
	format_size(pages * PAGE_BYTES, bytes, sizeof(bytes));
	format_size((uint64_t)((double)pages * PAGE_BYTES * 1e9 / (double)elapsed_ns), rate, sizeof(rate));
	dprintf(2, "\r\033[K%llu pages (%s), %s/s%s", (unsigned long long)pages, bytes, rate, share);
	progress->shown = true;
}

void progress_end(struct progress *progress)
{
	if (progress->shown)
		dprintf(2, "\r\033[K");
	progress->shown = false;
}
