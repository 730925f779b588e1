#include "residency/residency.h"

#include <string.h>

#include "base/base.h"

void residency_plan(struct residency_budget *plan, uint64_t budget_bytes)
{
	memset(plan, 0, sizeof(*plan));
	plan->budget_pages = budget_bytes / PAGE_BYTES;
	if (!plan->budget_pages)
		return;
	plan->headroom_pages = DP_MIN(DP_MAX(plan->budget_pages / 64, 64u), 2048u);
	plan->reserve_pages = DP_MAX(plan->budget_pages / 16, 4096u);
	plan->ahead_pages = DP_MIN(DP_MAX(plan->budget_pages / 16, 128u), 8192u) / 64 * 64;
	plan->staging_pages = DP_MAX(plan->ahead_pages, 1024u);
}

uint64_t residency_minimum_bytes(uint64_t tasks)
{
	/* Text, stacks, staging and headroom of each task. */
	return (4 + tasks) << 20;
}

uint64_t residency_excess(const struct residency_budget *plan, uint64_t used_pages)
{
	uint64_t target = plan->budget_pages - DP_MIN(plan->headroom_pages, plan->budget_pages);
	return plan->budget_pages && used_pages > target ? used_pages - target : 0;
}

bool residency_should_stage(const struct residency_budget *plan, uint64_t used_pages)
{
	uint64_t ahead = plan->headroom_pages + plan->ahead_pages;
	return plan->budget_pages && used_pages + ahead > plan->budget_pages;
}

bool residency_has_room(const struct residency_budget *plan, uint64_t used_pages, uint64_t pages)
{
	return !plan->budget_pages || used_pages + pages <= plan->budget_pages;
}

bool residency_take_small(uint64_t small_length, uint64_t main_length)
{
	return small_length > (small_length + main_length) / 20 || !main_length;
}

bool residency_remembered(uint32_t then, uint32_t now, uint64_t local_pages)
{
	return (uint32_t)(now - then) < local_pages / 2;
}
