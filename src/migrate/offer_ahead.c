#include "migrate/offer_ahead.h"

#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "base/log.h"

int offer_ahead_start(struct offer_ahead *ahead, const struct offer_options *options, const struct precopy_limits *limits,
		      const volatile bool *stop, struct dp_err *err)
{
	ahead->rest_stays = options->rest_stays;
	int rc = endpoint_parse(&ahead->endpoint, options->ahead_pool, err);
	if (rc == 0 && ahead->endpoint.name[0])
		rc = dp_fail(err, EINVAL, "%s: a pool without the name of a snapshot is wanted here", options->ahead_pool);
	if (rc == 0)
		rc = client_open_for_writing(&ahead->client, &ahead->endpoint, 0, err);
	if (rc == 0)
		rc = client_snapshot_begin(ahead->client, options->name, false, &ahead->draft, err);
	if (rc == 0)
		rc = precopy_open(&ahead->precopy, options->pid, err);
	if (rc == 0)
		rc = precopy_begin(ahead->precopy, ahead->client, ahead->draft, err);
	ahead->begun = rc == 0;
	snprintf(ahead->endpoint.name, sizeof(ahead->endpoint.name), "%s", options->name);
	if (rc == 0)
		rc = precopy_rounds(ahead->precopy, limits, stop, err);
	return rc == 0 && *stop ? dp_fail(err, EINTR, "nobody waits for it any more") : rc;
}

int offer_ahead_pages(void *context, struct frozen_task *task, struct dp_err *err)
{
	struct offer_ahead *ahead = context;
	const struct page_list none = { 0 };
	return precopy_finish(ahead->precopy, (uint32_t)task->vpid, &task->hidden, &none, &task->pages,
			      ahead->rest_stays ? &task->left : NULL, err);
}

/* Tasks of which nothing was hidden have spaces too, as every restore expects. */
static int make_spaces(struct offer_ahead *ahead, const struct frozen_tree *tree, struct dp_err *err)
{
	uint64_t space;
	int rc = precopy_finish_all(ahead->precopy, err);
	for (size_t i = 0; i < tree->map_count && rc == 0; i++)
		if (!tree->maps[i].shared_memory)
			rc = precopy_space(ahead->precopy, tree->maps[i].id, &space, err);
	return rc;
}

int offer_ahead_publish(struct offer_ahead *ahead, const struct frozen_tree *tree, struct skeleton_facts *facts,
			struct offer_facts *offer, struct dp_err *err)
{
	int rc = make_spaces(ahead, tree, err);
	if (rc == 0)
		rc = skeleton_read_tasks(tree->images_fd, facts, err);
	if (rc == 0)
		rc = skeleton_send(ahead->client, ahead->draft, tree->images_fd, &offer->skeleton_bytes, err);
	cleanup_free char *meta = rc == 0 ? skeleton_meta(facts) : NULL;
	if (rc == 0 && !meta)
		rc = dp_fail_errno(err, ENOMEM, "describe the snapshot");
	if (rc == 0)
		rc = client_snapshot_commit(ahead->client, ahead->draft, meta, err);
	if (rc < 0)
		return rc;
	ahead->published = true;
	offer->ahead = *precopy_totals(ahead->precopy);
	endpoint_pool_text(&ahead->endpoint, offer->uri, sizeof(offer->uri));
	size_t used = strlen(offer->uri);
	snprintf(offer->uri + used, sizeof(offer->uri) - used, "%s%s", ahead->endpoint.kind == ENDPOINT_TCP ? "/" : "#",
		 ahead->endpoint.name);
	return 0;
}

int offer_ahead_leave(struct offer_ahead *ahead, const struct frozen_tree *tree, struct offer_facts *offer, struct dp_err *err)
{
	int rc = precopy_finish_all(ahead->precopy, err);
	for (size_t i = 0; i < tree->task_count; i++)
		offer->left_pages += tree->tasks[i].left.pages;
	offer->ahead = *precopy_totals(ahead->precopy);
	return rc;
}

void offer_ahead_remove(struct offer_ahead *ahead)
{
	struct dp_err err;
	int rc = ahead->published ? client_remove(ahead->client, ahead->endpoint.name, true, &err) : 0;
	if (rc == -ECONNRESET || rc == -EPIPE) /* a landing goes with the migration, and its snapshot with it */
		log_info("%s is left to its pool: %s", ahead->endpoint.name, err.text);
	else if (rc < 0)
		log_warn("%s stays in the pool: %s", ahead->endpoint.name, err.text);
	ahead->published = false;
}

void offer_ahead_done(struct offer_ahead *ahead)
{
	if (ahead->begun)
		precopy_end(ahead->precopy, NULL);
	precopy_close(ahead->precopy);
	client_close(ahead->client);
	*ahead = (struct offer_ahead){ 0 };
}
