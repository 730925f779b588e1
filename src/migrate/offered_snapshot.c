#include "migrate/offered_snapshot.h"

#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "image/images.h"
#include "migrate/frozen_store.h"
#include "migrate/landing.h"

#define FILE_LIMIT (UINT64_C(4) << 30)

static const char owner; /* of the draft: its address is nobody else's */

struct adding {
	struct pool *pool;
	uint64_t draft, *bytes;
};

static int add_file(void *context, int images_fd, const char *name, struct dp_err *err)
{
	const struct adding *adding = context;
	cleanup_free char *content = NULL;
	ssize_t length = io_read_file_at(images_fd, name, &content, FILE_LIMIT);
	if (length < 0)
		return dp_fail_errno(err, (int)-length, "read image %s", name);
	*adding->bytes += (uint64_t)length;
	return pool_snapshot_file(adding->pool, &owner, adding->draft, name, (uint64_t)length, 0, content, (uint64_t)length, err);
}

static int add_pages(struct pool *pool, struct frozen_task *task, bool only_left, struct space *space)
{
	const struct page_list *pages = only_left ? &task->left : &task->pages;
	int memory = frozen_store_add_memory(pool->store, task->mem_fd);
	int rc = memory < 0 ? memory : 0;
	task->mem_fd = -1;
	for (size_t i = 0; i < pages->count && rc == 0; i++) {
		const struct page_range *range = &pages->ranges[i];
		uint64_t first;
		rc = frozen_store_add_pages(pool->store, memory, range->pgno, range->pages, &first);
		if (rc == 0)
			rc = slots_adopt(&pool->slots, first, range->pages);
		if (rc == 0)
			rc = pagemap_fill(&space->map, range->pgno, first, range->pages);
	}
	return rc;
}

static int add_spaces(struct pool *pool, uint64_t draft, const struct frozen_tree *tree, bool only_left, struct dp_err *err)
{
	int rc = 0;
	for (size_t i = 0; i < tree->map_count && rc == 0; i++) {
		uint64_t id;
		if (tree->maps[i].shared_memory)
			continue;
		rc = pool_snapshot_space(pool, &owner, draft, tree->maps[i].id, &id, err);
		struct frozen_task *task = frozen_tree_task(tree, (int)tree->maps[i].id);
		if (rc == 0 && task && task->mem_fd >= 0 && (rc = add_pages(pool, task, only_left, pool_space(pool, id))) < 0)
			dp_fail_errno(err, -rc, "page map");
	}
	return rc;
}

/* Which pages stay, for who has the others. */
static int add_left(struct pool *pool, uint64_t draft, const struct frozen_tree *tree, struct dp_err *err)
{
	size_t count = 0, at = 0;
	for (size_t i = 0; i < tree->task_count; i++)
		count += tree->tasks[i].left.count;
	cleanup_free struct landing_run *runs = calloc(count ? count : 1, sizeof(*runs));
	if (!runs)
		return dp_fail_errno(err, ENOMEM, "page map");
	for (size_t i = 0; i < tree->task_count; i++)
		for (size_t j = 0; j < tree->tasks[i].left.count; j++)
			runs[at++] = (struct landing_run){ (uint64_t)tree->tasks[i].vpid, tree->tasks[i].left.ranges[j].pgno,
							   tree->tasks[i].left.ranges[j].pages };
	uint64_t bytes = count * sizeof(*runs);
	return pool_snapshot_file(pool, &owner, draft, LANDING_LEFT_FILE, bytes, 0, runs, bytes, err);
}

int offered_snapshot_make(struct pool *pool, struct frozen_tree *tree, const char *name, bool only_left,
			  struct skeleton_facts *facts, uint64_t *skeleton_bytes, struct dp_err *err)
{
	uint64_t draft;
	*skeleton_bytes = 0;
	int rc = pool_snapshot_begin(pool, &owner, name, false, &draft, err);
	if (rc == 0)
		rc = skeleton_read_tasks(tree->images_fd, facts, err);
	if (rc == 0)
		rc = images_each(tree->images_fd, add_file, &(struct adding){ pool, draft, skeleton_bytes }, err);
	if (rc == 0)
		rc = add_spaces(pool, draft, tree, only_left, err);
	if (rc == 0 && only_left)
		rc = add_left(pool, draft, tree, err);
	cleanup_free char *meta = rc == 0 ? skeleton_meta(facts) : NULL;
	if (rc == 0 && !meta)
		rc = dp_fail_errno(err, ENOMEM, "describe the snapshot");
	if (rc == 0)
		rc = pool_snapshot_commit_begin(pool, &owner, draft, meta, (uint32_t)strlen(meta), err);
	return rc == 0 ? pool_snapshot_commit_finish(pool, &owner, draft, 0, err) : rc;
}
