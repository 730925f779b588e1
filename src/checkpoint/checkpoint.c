#include "checkpoint/checkpoint.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "checkpoint/capture.h"
#include "checkpoint/criu_dump.h"
#include "checkpoint/hidden.h"
#include "checkpoint/localize.h"
#include "checkpoint/progress.h"
#include "checkpoint/recall.h"
#include "checkpoint/runtime_dump.h"
#include "checkpoint/skeleton.h"
#include "checkpoint/target.h"
#include "checkpoint/workspace.h"
#include "image/decode.h"
#include "instance/instance.h"
#include "instance/stats.h"
#include "pager/control.h"
#include "sys/criu.h"
#include "sys/proc.h"

#define SOURCE_ENDS_MS 3000

/* All that one checkpoint holds; released in order by release(). */
struct checkpoint {
	const struct checkpoint_options *options;
	struct checkpoint_result *result;
	char criu[256];
	struct criu_version version;
	struct client *client; /* of the pool that is named, which is targets[0] */
	uint64_t draft;
	struct capture_target targets[CAPTURE_TARGETS]; /* clients but the first are owned */
	size_t target_count, committed_count;
	struct workspace workspace;
	struct instance instance; /* that the tree is, where control >= 0 */
	int control;              /* connection to the instance's pager, or -1 */
	struct control_export export;
	struct capture *capture;
	struct criu_dump dump;
	struct progress progress;
	struct recall *recall; /* being filled, or NULL */
	struct precopy *precopy; /* at work, or NULL */
	struct hidden hidden;
	char *command_line;
	uint64_t frozen_at_ns;
	bool committed;
	int source_pidfd; /* the tree's root */
};

/* ---- the instance that the tree may be ---- */

static int freeze_instance(struct checkpoint *checkpoint, struct dp_err *err)
{
	struct instance *instance = &checkpoint->instance;
	char path[1024];
	int rc = instance_find_by_pid(instance_root(checkpoint->options->registry), checkpoint->options->pid, instance, err);
	if (rc == -ENOENT)
		return 0;
	if (rc < 0)
		return rc;
	if (stats_pager_left(instance_path(instance, "stats", path, sizeof(path))))
		return 0; /* everything is local: a process like any other */
	/* Without the pager's word CRIU would lose pages: no socket, no checkpoint. */
	instance_path(instance, "control.sock", path, sizeof(path));
	checkpoint->control = control_connect(path, err);
	rc = checkpoint->control < 0 ? checkpoint->control : control_freeze(checkpoint->control, err);
	if (rc == 0)
		rc = localize_tree(checkpoint->options->pid, err);
	if (rc < 0)
		dp_err_doing(err, "ask the pager of instance %s, which holds pages of process %d", instance->id,
			     checkpoint->options->pid);
	snprintf(checkpoint->result->instance, sizeof(checkpoint->result->instance), "%s", instance->id);
	return rc;
}

/* Which of the instance's pools this is, or -1. */
static int pool_index(const struct control_export *export, const struct endpoint *endpoint)
{
	char text[sizeof(export->pools[0].uri)];
	endpoint_pool_text(endpoint, text, sizeof(text));
	for (size_t i = 0; i < export->pool_count; i++)
		if (!strcmp(text, export->pools[i].uri))
			return (int)i;
	return -1;
}

/* Another pool of a mirror gets the snapshot too. */
static int add_target(struct checkpoint *checkpoint, size_t pool, struct dp_err *err)
{
	const struct checkpoint_options *options = checkpoint->options;
	const char *uri = checkpoint->export.pools[pool].uri;
	struct capture_target *target = &checkpoint->targets[checkpoint->target_count];
	struct endpoint endpoint;
	int rc = endpoint_parse(&endpoint, uri, err);
	if (rc < 0)
		return rc;
	*target = (struct capture_target){.pool = (int)pool};
	rc = client_open_for_writing(&target->client, &endpoint, 0, err);
	if (rc < 0)
		return rc;
	checkpoint->target_count++;
	rc = client_set_compress(target->client, options->compress);
	if (rc < 0)
		return dp_fail_errno(err, -rc, "room to pack pages");
	rc = client_snapshot_begin(target->client, options->endpoint->name, options->replace, &target->draft, err);
	if (rc == -EEXIST)
		return dp_fail(err, EEXIST, "%s exists in %s: choose another name, or --force to replace it",
			       options->endpoint->name, uri);
	if (rc == 0)
		snprintf(checkpoint->result->also[checkpoint->result->also_count++], sizeof(checkpoint->result->also[0]), "%s",
			 uri);
	return rc;
}

/* What goes to one pool of a mirror goes to all that are whole. */
static int add_targets(struct checkpoint *checkpoint, struct dp_err *err)
{
	const struct control_export *export = &checkpoint->export;
	int named = checkpoint->targets[0].pool = pool_index(export, checkpoint->options->endpoint), rc = 0;
	if (named < 0 || export->spread)
		return 0;
	if (!export->pools[named].whole)
		return dp_fail(err, ENOTCONN,
			       "%s is out of the instance's mirror, or still catching up: name another of its pools",
			       export->pools[named].uri);
	for (size_t i = 0; i < export->pool_count && rc == 0; i++)
		if ((int)i != named && export->pools[i].whole)
			rc = add_target(checkpoint, i, err);
	return rc;
}

static int on_frozen(void *context, const struct control_export **export, struct capture_target targets[CAPTURE_TARGETS],
		     size_t *count, struct dp_err *err)
{
	struct checkpoint *checkpoint = context;
	checkpoint->frozen_at_ns = clock_now_ns();
	if (checkpoint->control < 0)
		return 0;
	int rc = control_export(checkpoint->control, &checkpoint->export, err);
	if (rc < 0)
		return rc;
	*export = &checkpoint->export;
	/* the registry knows by which name the pool was reached when the instance was made */
	if (checkpoint->export.pool_count == 1)
		snprintf(checkpoint->export.pools[0].uri, sizeof(checkpoint->export.pools[0].uri), "%s",
			 checkpoint->instance.pool);
	rc = add_targets(checkpoint, err);
	memcpy(targets, checkpoint->targets, sizeof(checkpoint->targets));
	*count = checkpoint->target_count;
	return rc;
}

static void on_progress(void *context, const struct capture_totals *totals)
{
	struct checkpoint *checkpoint = context;
	progress_update(&checkpoint->progress,
			totals->stored_pages + totals->eager_pages + totals->zero_pages + totals->inherited_pages);
}

/* ---- before ---- */

/* A tree with a pager has the pager's word; any other shares what the state before has. */
static const struct recall *recall_begin(struct checkpoint *checkpoint)
{
	struct recall **before = checkpoint->options->recall;
	if (!before || checkpoint->control >= 0 || checkpoint->precopy)
		return NULL;
	checkpoint->recall = recall_new();
	return *before && recall_find(*before, checkpoint->client) ? *before : NULL;
}

static void recall_end(struct checkpoint *checkpoint, bool good)
{
	if (good && checkpoint->recall) {
		snprintf(checkpoint->recall->snapshot, sizeof(checkpoint->recall->snapshot), "%s",
			 checkpoint->options->endpoint->name);
		recall_free(*checkpoint->options->recall);
		*checkpoint->options->recall = checkpoint->recall;
	} else {
		recall_free(checkpoint->recall);
	}
}

/* A tree with a pager is another matter: that knows which pages the pool has. */
static int precopy_start(struct checkpoint *checkpoint, struct dp_err *err)
{
	const struct checkpoint_options *options = checkpoint->options;
	if (!options->precopy || checkpoint->control >= 0)
		return 0;
	int rc = hidden_open(&checkpoint->hidden, err);
	if (rc == 0)
		rc = precopy_begin(options->precopy, checkpoint->client, checkpoint->draft, err);
	if (rc < 0)
		return rc;
	checkpoint->precopy = options->precopy;
	return precopy_rounds(options->precopy, options->precopy_limits, NULL, err);
}

static int prepare(struct checkpoint *checkpoint, struct dp_err *err)
{
	const struct checkpoint_options *options = checkpoint->options;
	int rc = target_check(options->pid, err);
	if (rc == 0)
		rc = criu_find(checkpoint->criu, err);
	if (rc == 0)
		rc = criu_check_version(checkpoint->criu, &checkpoint->version, err);
	if (rc == 0)
		rc = client_open_for_writing(&checkpoint->client, options->endpoint, 0, err);
	if (rc == 0 && (rc = client_set_compress(checkpoint->client, options->compress)) < 0)
		dp_fail_errno(err, -rc, "room to pack pages");
	if (rc == 0)
		rc = client_snapshot_begin(checkpoint->client, options->endpoint->name, options->replace, &checkpoint->draft,
					   err);
	if (rc == -EEXIST)
		return dp_fail(err, EEXIST, "%s exists in this pool: choose another name, or --force to replace it",
			       options->endpoint->name);
	if (rc == 0)
		rc = options->runtime ? runtime_dump_open(options->runtime, &checkpoint->workspace, err)
				      : workspace_open(&checkpoint->workspace, err);
	if (rc == 0) {
		checkpoint->source_pidfd = proc_pidfd_open(options->pid);
		rc = checkpoint->source_pidfd < 0 ? dp_fail_errno(err, -checkpoint->source_pidfd, "open process %d", options->pid)
						  : 0;
	}
	if (rc == 0)
		rc = freeze_instance(checkpoint, err);
	if (rc == 0)
		rc = precopy_start(checkpoint, err);
	if (rc < 0)
		return rc;
	checkpoint->command_line = target_command_line(options->pid);
	progress_start(&checkpoint->progress, options->progress, options->progress ? target_resident_pages(options->pid) : 0);
	checkpoint->targets[0] = (struct capture_target){.client = checkpoint->client, .draft = checkpoint->draft, .pool = -1};
	checkpoint->target_count = 1;
	const struct capture_config config = {.target = checkpoint->targets[0],
					      .images_fd = checkpoint->workspace.images_fd, .on_frozen = on_frozen,
					      .precopy = checkpoint->precopy, .hidden = &checkpoint->hidden,
					      .on_progress = on_progress, .context = checkpoint,
					      .recall_from = recall_begin(checkpoint), .recall_into = checkpoint->recall};
	return capture_new(&checkpoint->capture, &config, err);
}

/* ---- while the tree is frozen ---- */

static int publish_in(const struct checkpoint *checkpoint, const struct capture_target *target, struct skeleton_facts *facts,
		      struct dp_err *err)
{
	facts->pool_instance = target->pool < 0 ? 0 : checkpoint->export.pools[target->pool].instance;
	if (target == checkpoint->targets)
		checkpoint->result->pool_instance = facts->pool_instance;
	cleanup_free char *meta = skeleton_meta(facts);
	if (!meta)
		return dp_fail_errno(err, ENOMEM, "describe the snapshot");
	int rc = client_snapshot_commit(target->client, target->draft, meta, err);
	if (rc == -ENOSPC)
		return dp_fail(err, ENOSPC, "the pool is full: free some of it (distri-proc pool rm) or give it more room");
	return rc;
}

/* It failed, and is nowhere: not in some pools of a mirror either. */
static void unpublish(struct checkpoint *checkpoint, struct dp_err *err)
{
	for (size_t i = 0; i < checkpoint->committed_count; i++)
		if (client_remove(checkpoint->targets[i].client, checkpoint->options->endpoint->name, true, NULL) < 0)
			dp_err_doing(err, "%s was stored, yet", checkpoint->options->endpoint->name);
	checkpoint->committed_count = 0;
}

/* The images are complete, and so are the pages in the pool: everything else into it, and visible. */
static int publish(struct checkpoint *checkpoint, struct dp_err *err)
{
	struct checkpoint_result *result = checkpoint->result;
	int images_fd = checkpoint->workspace.images_fd;
	const struct capture_totals *totals = capture_totals(checkpoint->capture);
	struct skeleton_facts facts = {.options = checkpoint->options, .totals = totals, .criu_version = checkpoint->version.text,
				       .command_line = checkpoint->command_line ? checkpoint->command_line : ""};
	int rc = skeleton_read_tasks(images_fd, &facts, err);
	for (size_t i = 0; i < checkpoint->target_count && rc == 0; i++)
		rc = skeleton_send(checkpoint->targets[i].client, checkpoint->targets[i].draft, images_fd,
				   &result->skeleton_bytes, err);
	while (rc == 0 && checkpoint->committed_count < checkpoint->target_count) {
		rc = publish_in(checkpoint, &checkpoint->targets[checkpoint->committed_count], &facts, err);
		checkpoint->committed_count += rc == 0;
	}
	if (rc < 0)
		return rc;
	checkpoint->committed = true;
	result->tasks = facts.tasks;
	result->stored_pages = totals->stored_pages;
	result->inherited_pages = totals->inherited_pages;
	result->eager_pages = totals->eager_pages;
	result->zero_pages = totals->zero_pages;
	result->pages = totals->stored_pages + totals->inherited_pages + totals->eager_pages;
	return 0;
}

static int hold(struct checkpoint *checkpoint, struct dp_err *err)
{
	const struct checkpoint_held held = { .images_fd = checkpoint->workspace.images_fd,
					      .criu_pidfd = checkpoint->dump.pidfd,
					      .command_line = checkpoint->command_line ? checkpoint->command_line : "",
					      .frozen_at_ns = checkpoint->frozen_at_ns };
	return checkpoint->options->hold(checkpoint->options->hold_context, &held, err);
}

/* Has the source ended? The root of an instance takes its PID namespace along, and criu, which ran inside, may be killed by that
 * before it can say that all went well. Then the snapshot is the only copy there is. */
static bool source_ended(const struct checkpoint *checkpoint)
{
	struct pollfd wait = {.fd = checkpoint->source_pidfd, .events = POLLIN};
	return poll(&wait, 1, checkpoint->options->leave_running ? 0 : SOURCE_ENDS_MS) == 1;
}

/* From criu's start to its end. 0: criu succeeded, so the snapshot is committed and the tree is as it was asked to be.
 * *ours: the error in err is of the pool or of this process, not criu's. */
static int dump(struct checkpoint *checkpoint, bool *ours, struct dp_err *err)
{
	const struct checkpoint_options *options = checkpoint->options;
	const struct criu_dump_options dump_options = { .criu = checkpoint->criu,
							.pid = options->pid,
							.leave_running = options->leave_running,
							.verbose = options->verbose,
							.arguments = options->criu_arguments,
							.argument_count = options->criu_argument_count,
							.hidden = checkpoint->precopy ? &checkpoint->hidden : NULL };
	/* One of a series need not be there before the tree goes on: the one before it is, and without this one nothing is lost
	 * (C2). */
	bool may_thaw = options->origin && options->leave_running;
	*ours = true;
	int rc = options->runtime ? runtime_dump_start(&checkpoint->dump, options->runtime, checkpoint->criu,
						       &checkpoint->workspace, err)
				  : criu_dump_start(&checkpoint->dump, &dump_options, &checkpoint->workspace, err);
	*ours = rc != -ECANCELED;
	if (rc < 0)
		return rc;
	rc = page_receiver_run(checkpoint->dump.pages_fd, capture_sink(checkpoint->capture), err);
	progress_end(&checkpoint->progress);
	*ours = rc != -ECANCELED; /* criu closed the stream: it knows why */
	if (rc == 0) {
		rc = criu_dump_wait_hook(&checkpoint->dump, err);
		*ours = rc < 0;
		if (rc > 0) {
			rc = capture_finish(checkpoint->capture, err);
			if (rc == 0 && !may_thaw)
				rc = publish(checkpoint, err);
			if (rc == 0 && options->hold)
				rc = hold(checkpoint, err);
			if (rc == 0 && options->runtime && options->runtime->on_published)
				rc = options->runtime->on_published(options->runtime->context, err);
			*ours = rc < 0;
			int answered = criu_dump_answer(&checkpoint->dump, rc == 0, rc == 0 ? err : NULL);
			rc = rc < 0 ? rc : answered;
		}
	}
	int code = criu_dump_wait(&checkpoint->dump);
	if (may_thaw && rc == 0 && code == 0) {
		rc = publish(checkpoint, err);
		*ours = rc < 0;
	}
	if (checkpoint->committed && (code == 0 || source_ended(checkpoint)))
		return 0;
	return *ours && rc < 0 ? rc : dp_fail(err, ECANCELED, "criu exited with code %d", code);
}

/* ---- after ---- */

static uint64_t frozen_ns(const struct checkpoint *checkpoint)
{
	cleanup_free char *stats = NULL;
	uint64_t ns;
	ssize_t length = io_read_file_at(checkpoint->workspace.work_fd, "stats-dump", &stats, 65536);
	if (length > 0 && image_decode_stats(stats, (size_t)length, &ns, NULL) == 0)
		return ns;
	return clock_now_ns() - checkpoint->frozen_at_ns;
}

/* Puts criu's reason and the place of its log into err. */
static void explain(struct checkpoint *checkpoint, struct dp_err *err)
{
	char reason[600] = "", kept[300];
	bool told = criu_dump_reason(&checkpoint->workspace, reason, sizeof(reason));
	workspace_keep_log(&checkpoint->workspace, CRIU_DUMP_LOG, checkpoint->options->pid, kept, sizeof(kept));
	char inner[sizeof(err->text)];
	snprintf(inner, sizeof(inner), "%s", err->text);
	dp_fail(err, ECANCELED, "criu: %s%s%s", told ? reason : inner, kept[0] ? "; its log: " : "", kept);
}

static void release(struct checkpoint *checkpoint)
{
	capture_free(checkpoint->capture);
	client_close(checkpoint->client);
	for (size_t i = 1; i < checkpoint->target_count; i++)
		client_close(checkpoint->targets[i].client);
	if (checkpoint->control >= 0) {
		if (checkpoint->options->leave_running || !checkpoint->committed)
			control_thaw(checkpoint->control, NULL); /* closing thaws too; this waits for it */
		close(checkpoint->control);
	}
	control_export_done(&checkpoint->export);
	workspace_close(&checkpoint->workspace);
	hidden_close(&checkpoint->hidden);
	dp_close_fd(&checkpoint->source_pidfd);
	free(checkpoint->command_line);
}

int checkpoint_run(const struct checkpoint_options *options, struct checkpoint_result *result, struct dp_err *err)
{
	uint64_t started_ns = clock_now_ns();
	bool ours = true;
	struct dp_err local;
	struct checkpoint checkpoint = {.options = options, .result = result, .control = -1, .source_pidfd = -1,
					.workspace = {.root_fd = -1, .images_fd = -1, .work_fd = -1},
					.hidden = {.records_fd = -1, .fds = {-1, -1}}};
	err = err ? err : &local;
	*result = (struct checkpoint_result){0};
	int rc = prepare(&checkpoint, err);
	if (rc == 0)
		rc = dump(&checkpoint, &ours, err);
	if (rc == 0)
		result->frozen_ns = frozen_ns(&checkpoint);
	if (rc < 0 && !ours)
		explain(&checkpoint, err);
	/* perhaps criu failed after the commit and has thawed the tree: a snapshot of a tree that goes on was not asked for */
	if (rc < 0)
		unpublish(&checkpoint, err);
	recall_end(&checkpoint, rc == 0);
	if (checkpoint.precopy) {
		result->ahead = *precopy_totals(checkpoint.precopy);
		precopy_end(checkpoint.precopy, rc == 0 ? options->endpoint->name : NULL);
	}
	if (checkpoint.client)
		result->sent_bytes = client_bytes_sent(checkpoint.client);
	for (size_t i = 1; i < checkpoint.target_count; i++)
		result->sent_bytes += client_bytes_sent(checkpoint.targets[i].client);
	release(&checkpoint);
	result->total_ns = clock_now_ns() - started_ns;
	if (rc < 0)
		dp_err_doing(err, "checkpoint of process %d to %s", options->pid, options->endpoint->name);
	return rc;
}

int checkpoint_check_option(const char *option, struct dp_err *err)
{
	static const char *const own[] = { "-t",
					   "--tree",
					   "-D",
					   "--images-dir",
					   "-W",
					   "--work-dir",
					   "-o",
					   "--log-file",
					   "--page-server",
					   "--ps-socket",
					   "--address",
					   "--port",
					   "--action-script",
					   "--lazy-pages",
					   "--status-fd",
					   "-R",
					   "--leave-running",
					   "-s",
					   "--leave-stopped",
					   "--stream",
					   "--prev-images-dir",
					   "--track-mem",
					   "--auto-dedup",
					   "--config",
					   "--no-default-config",
					   "-d",
					   "--daemon",
					   "--pidfile" };
	if (option[0] != '-')
		return dp_fail(err, EINVAL, "'%s' is no option of CRIU: write --criu-option=--name or --criu-option=--name=value",
			       option);
	size_t length = strcspn(option, "=");
	for (size_t i = 0; i < ARRAY_LENGTH(own); i++)
		if (strlen(own[i]) == length && strncmp(own[i], option, length) == 0)
			return dp_fail(err, EINVAL, "CRIU's %s is used by checkpoint itself", own[i]);
	return 0;
}
