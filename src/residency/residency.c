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

#define AHEAD_LEAST 16u
#define AHEAD_OUTCOMES 64u /* are enough to think again */

void residency_ahead_init(struct residency_ahead *ahead, const struct residency_budget *plan)
{
	*ahead = (struct residency_ahead){ .pages = (uint32_t)plan->ahead_pages };
}

void residency_ahead_note(struct residency_ahead *ahead, const struct residency_budget *plan, uint32_t returned, uint32_t left)
{
	ahead->returned += returned;
	ahead->left += left;
	if (ahead->returned + ahead->left < AHEAD_OUTCOMES)
		return;
	if (ahead->returned > 3 * ahead->left)
		ahead->pages = DP_MAX(ahead->pages / 2, AHEAD_LEAST);
	else if (ahead->returned < ahead->left)
		ahead->pages = (uint32_t)DP_MIN(ahead->pages * 2ull, plan->ahead_pages);
	ahead->returned = ahead->left = 0;
}

uint64_t residency_minimum_bytes(uint64_t tasks)
{
	/* Text, stacks, staging and headroom of each task. */
	return (4 + tasks) << 20;
}

uint64_t residency_of_limit(uint64_t limit_bytes, uint64_t tasks)
{
	struct residency_budget whole;
	residency_plan(&whole, limit_bytes);
	uint64_t aside_bytes = whole.reserve_pages * PAGE_BYTES + limit_bytes / 32;
	return DP_MAX(limit_bytes - DP_MIN(limit_bytes, aside_bytes), residency_minimum_bytes(tasks));
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
