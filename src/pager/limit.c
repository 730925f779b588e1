#include "pager/limit.h"

#include <unistd.h>

#include "base/log.h"
#include "pager/tree.h"
#include "sys/cgroup.h"

#define LOOK_EVERY_NS (500u * 1000 * 1000)

static pid_t first_process(const struct tree *tree, uint64_t *tasks)
{
	pid_t first = 0;
	uint32_t lowest = UINT32_MAX;
	*tasks = 0;
	for (const struct space *space = tree->spaces; space; space = space->next) {
		if (space->closed || space->pid <= 0)
			continue;
		(*tasks)++;
		if (space->number < lowest) {
			lowest = space->number;
			first = space->pid;
		}
	}
	return first;
}

static void plan(struct tree *tree, uint64_t limit_bytes, uint64_t tasks)
{
	uint64_t staging_pages = tree->budget.staging_pages;
	residency_plan(&tree->budget, residency_of_limit(limit_bytes, tasks));
	tree->budget.staging_pages = staging_pages; /* areas of that size are there already */
	tree->budget.ahead_pages = DP_MIN(tree->budget.ahead_pages, staging_pages);
	tree->stats->budget_pages = tree->budget.budget_pages;
	tree->stats->reserve_pages = tree->budget.reserve_pages;
	tree->limit.limit_bytes = limit_bytes;
	log_info("the control group's limit is %lu KiB: a budget of %lu pages", limit_bytes / 1024, tree->budget.budget_pages);
}

void limit_work(struct tree *tree, uint64_t now_ns)
{
	struct cgroup cgroup;
	uint64_t limit_bytes, tasks, all_bytes;
	if (!tree->config->follow_cgroup || now_ns < tree->limit.next_ns)
		return;
	tree->limit.next_ns = now_ns + LOOK_EVERY_NS;
	pid_t pid = first_process(tree, &tasks);
	if (pid <= 0 || cgroup_find(pid, &cgroup) || cgroup_limit(&cgroup, &limit_bytes))
		return; /* it ends, or its group does: what was planned holds */
	all_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * PAGE_BYTES;
	limit_bytes = DP_MIN(limit_bytes, all_bytes); /* no limit: this host's memory is one */
	if (limit_bytes != tree->limit.limit_bytes)
		plan(tree, limit_bytes, tasks);
}
