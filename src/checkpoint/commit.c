#include "checkpoint/commit.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "base/base.h"
#include "base/log.h"
#include "checkpoint/hidden.h"
#include "checkpoint/precopy.h"
#include "checkpoint/push.h"
#include "checkpoint/recall.h"
#include "instance/process.h"
#include "instance/stats.h"
#include "pager/control.h"
#include "sys/proc.h"

#define ROUNDS 4u        /* of pushing: each has less to do than the one before */
/* At most for a commit on request, for others half an interval: a tree may change pages faster than they go. */
#define PUSH_NS 30000000000u
#define FEW_PAGES 256    /* so many may be left for the freeze */
#define MIRROR_LOOKS 100u /* at what is there of a mirror, */
#define MIRROR_LOOK_MS 50 /* so far apart: for the pager to notice that a pool has gone, or come */
#define CRIU_ARGUMENTS_LIMIT 64

struct committer {
	struct commit_options options;
	struct instance instance; /* id "" where it is a plain process */
	struct endpoint pool;
	char series[256];
	bool own_series; /* the user gave its name */
	char lineage[256];
	pid_t pid;
	int pidfd, lock_fd;
	char *arguments[CRIU_ARGUMENTS_LIMIT]; /* owned */
	size_t argument_count;
	struct commit_note note;
	uint64_t pushed_before; /* pages, since the last commit */
	struct recall *recall; /* what the state before has; NULL: none yet */
	struct precopy *precopy; /* of a plain process, where the kernel can tell what was written; then recall is not used */
	char also[3][1400];    /* further pools of a mirror that have the last state */
	size_t also_count;
};

static uint64_t wall_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- what it is a commit of ---- */

static bool has_argument(const struct committer *committer, const char *argument)
{
	size_t length = strcspn(argument, "=");
	for (size_t i = 0; i < committer->argument_count; i++)
		if (!strncmp(committer->arguments[i], argument, length) && strchr("=", committer->arguments[i][length]))
			return true;
	return false;
}

static int add_argument(struct committer *committer, const char *argument, struct dp_err *err)
{
	bool repeatable = !strncmp(argument, "--external", 10) || !strncmp(argument, "--skip-mnt", 10) ||
			  !strncmp(argument, "--ext-mount", 11);
	if (!repeatable && has_argument(committer, argument))
		return 0;
	if (committer->argument_count == CRIU_ARGUMENTS_LIMIT)
		return dp_fail(err, E2BIG, "too many options for CRIU");
	char *copy = strdup(argument);
	if (!copy)
		return dp_fail(err, ENOMEM, "out of memory");
	committer->arguments[committer->argument_count++] = copy;
	return 0;
}

/* The options with which the snapshot was made are those that its process needs; and its lineage, where it is a commit itself. */
static int read_base(struct committer *committer, struct dp_err *err)
{
	struct client *client;
	struct snapshot_info info = { 0 };
	struct commit_state state;
	int ret = client_open(&client, &committer->pool, 0, err);
	if (ret)
		return ret;
	commit_lineage(committer->instance.snapshot, committer->lineage, sizeof(committer->lineage));
	ret = client_snapshot_open(client, committer->instance.snapshot, &info, err);
	client_close(client);
	if (ret)
		return ret == -ENOENT ? 0 : ret; /* removed meanwhile: the instance lives on without */
	if (commit_read_meta(info.meta_json, &state))
		snprintf(committer->lineage, sizeof(committer->lineage), "%s", state.lineage);
	json_object *meta = json_tokener_parse(info.meta_json), *list;
	if (meta && json_object_object_get_ex(meta, "criu_options", &list) && json_object_is_type(list, json_type_array))
		for (size_t i = 0; i < json_object_array_length(list) && !ret; i++) {
			const char *argument = json_object_get_string(json_object_array_get_idx(list, i));
			if (argument && !checkpoint_check_option(argument, NULL))
				ret = add_argument(committer, argument, err);
		}
	json_object_put(meta);
	client_snapshot_info_done(&info);
	return ret;
}

static int parse_pool(struct endpoint *endpoint, const char *pool, const char *name, struct dp_err *err)
{
	bool path = strncmp(pool, "dp://", 5) && strncmp(pool, "dps://", 6);
	cleanup_free char *uri = name ? format_text("%s%c%s", pool, path ? '#' : '/', name) : strdup(pool);
	return uri ? endpoint_parse(endpoint, uri, err) : dp_fail(err, ENOMEM, "out of memory");
}

/* Of a mirror the pool that was used last, or else another that lives: 1 where it knows one, 0 where there is none to choose. */
static int look_for_pool(struct committer *committer, int connection, struct dp_err *err)
{
	struct control_pools found;
	char text[sizeof(found.pools[0].uri)];
	size_t chosen = CONTROL_POOLS;
	int ret = control_pools(connection, &found, err);
	if (ret)
		return ret;
	if (found.count < 2 || found.spread)
		return 1;
	endpoint_pool_text(&committer->pool, text, sizeof(text));
	for (size_t i = found.count; i-- > 0;)
		if (found.pools[i].there && (chosen == CONTROL_POOLS || strcmp(text, found.pools[chosen].uri)))
			chosen = i;
	if (chosen == CONTROL_POOLS)
		return 0;
	struct client *client;
	ret = parse_pool(&committer->pool, found.pools[chosen].uri, NULL, err);
	if (!ret && client_open(&client, &committer->pool, 0, NULL) < 0)
		return 0; /* the pager has not noticed yet */
	if (!ret)
		client_close(client);
	return ret ? ret : 1;
}

/* Without a pager there is nobody to ask; what is wrong then is told by whoever needs the pool. */
static void choose_pool(struct committer *committer)
{
	char path[PATH_MAX];
	struct dp_err err;
	if (!committer->instance.id[0] || stats_pager_left(instance_path(&committer->instance, "stats", path, sizeof(path))))
		return;
	cleanup_fd int connection = control_connect(instance_path(&committer->instance, "control.sock", path, sizeof(path)), &err);
	if (connection < 0)
		return;
	for (unsigned look = 0; look < MIRROR_LOOKS && !look_for_pool(committer, connection, &err); look++)
		poll(NULL, 0, MIRROR_LOOK_MS);
	endpoint_pool_text(&committer->pool, committer->note.pool, sizeof(committer->note.pool));
}

static int open_instance(struct committer *committer, struct dp_err *err)
{
	const struct commit_options *options = &committer->options;
	struct instance *instance = &committer->instance;
	char path[PATH_MAX], normal[256];
	int ret = instance_find(options->registry, options->instance, instance, err);
	if (!ret && (!instance->running || instance->root.pid <= 0))
		ret = dp_fail(err, EAGAIN, "instance %s is still being restored", instance->id);
	if (!ret)
		ret = parse_pool(&committer->pool, instance->pool, NULL, err);
	if (!ret && options->to)
		ret = strchr(options->to, ':') ? dp_fail(err, EINVAL,
							 "'%s': the states of an instance are kept in its own pool; give a name "
							 "without tag, such as redis-safe",
							 options->to)
					       : endpoint_name_check(options->to, normal, err);
	if (ret)
		return ret;
	committer->pid = instance->root.pid;
	committer->pidfd = process_open(instance->root.pid, instance->root.start_time);
	if (committer->pidfd < 0)
		return dp_fail_errno(err, -committer->pidfd, "instance %s has ended", instance->id);
	committer->own_series = options->to;
	if (options->to)
		snprintf(committer->series, sizeof(committer->series), "%s", options->to);
	else
		commit_default_series(options->protect ? "protect" : "commit", instance->id, committer->series,
				      sizeof(committer->series));
	committer->lock_fd = open(instance_path(instance, "commit.lock", path, sizeof(path)), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (committer->lock_fd < 0)
		return dp_fail_errno(err, errno, "open %s", path);
	choose_pool(committer);
	return read_base(committer, err);
}

/* Where it cannot be had, each state is read and compared by hash while the process stands still. */
static void watch_process(struct committer *committer)
{
	struct hidden hidden;
	struct dp_err err = { "" };
	int ret = hidden_open(&hidden, &err);
	hidden_close(&hidden);
	if (!ret)
		ret = precopy_open(&committer->precopy, committer->pid, &err);
	if (ret)
		log_info("pages do not go ahead: %s", err.text);
}

static int open_process(struct committer *committer, struct dp_err *err)
{
	const struct commit_options *options = &committer->options;
	struct instance found;
	if (!options->to)
		return dp_fail(err, EINVAL, "where to? --to POOL/REPO is missing");
	int ret = endpoint_parse(&committer->pool, options->to, err);
	if (!ret && !committer->pool.name[0])
		ret = dp_fail(err, EINVAL, "%s names a pool but no name: write POOL/REPO", options->to);
	if (!ret && !instance_find_by_pid(options->registry, options->pid, &found, NULL))
		ret = dp_fail(err, EINVAL, "process %d belongs to instance %s: protect that", (int)options->pid, found.id);
	if (ret)
		return ret;
	snprintf(committer->series, sizeof(committer->series), "%.*s", (int)strcspn(committer->pool.name, ":"),
		 committer->pool.name);
	snprintf(committer->lineage, sizeof(committer->lineage), "%s", committer->pool.name);
	committer->own_series = true;
	committer->pid = options->pid;
	committer->pidfd = proc_pidfd_open(options->pid);
	if (committer->pidfd < 0)
		return dp_fail_errno(err, -committer->pidfd, "open process %d", (int)options->pid);
	watch_process(committer);
	return 0;
}

static void start_note(struct committer *committer)
{
	struct commit_note *note = &committer->note;
	*note = (struct commit_note){ .interval_ns = committer->options.interval_ns };
	if (committer->instance.id[0])
		snprintf(note->id, sizeof(note->id), "%s", committer->instance.id);
	else
		snprintf(note->id, sizeof(note->id), "pid-%d", (int)committer->pid);
	snprintf(note->name, sizeof(note->name), "%s", committer->instance.id[0] ? committer->instance.name : note->id);
	endpoint_pool_text(&committer->pool, note->pool, sizeof(note->pool));
	snprintf(note->lineage, sizeof(note->lineage), "%s", committer->lineage);
	snprintf(note->kind, sizeof(note->kind), "%s", committer->options.protect ? "protect" : "commit");
	snprintf(note->series, sizeof(note->series), "%s", committer->series);
	struct commit_note before;
	/* a failure to come must not hide the state that is there */
	if (!commits_load(committer->options.registry, note->id, &before)) {
		memcpy(note->snapshot, before.snapshot, sizeof(note->snapshot));
		note->unix_ns = before.unix_ns;
		note->bytes = before.bytes;
		note->frozen_ns = before.frozen_ns;
		note->total_ns = before.total_ns;
	}
}

int commit_open(struct committer **committer, const struct commit_options *options, struct dp_err *err)
{
	struct committer *new = calloc(1, sizeof(*new));
	if (!new)
		return dp_fail(err, ENOMEM, "out of memory");
	new->options = *options;
	new->pidfd = new->lock_fd = -1;
	int ret = options->instance ? open_instance(new, err) : open_process(new, err);
	for (size_t i = 0; i < options->criu_argument_count && !ret; i++)
		ret = add_argument(new, options->criu_arguments[i], err);
	/* A server has clients; where it has none this changes nothing. Their connections go on here, and in a restored state
	 * they are closed, so nothing of them need be held back meanwhile. */
	if (!ret)
		ret = add_argument(new, "--tcp-established", err);
	if (!ret)
		ret = add_argument(new, "--network-lock=skip", err);
	if (ret) {
		commit_close(new);
		return ret;
	}
	start_note(new);
	*committer = new;
	return 0;
}

void commit_close(struct committer *committer)
{
	if (!committer)
		return;
	for (size_t i = 0; i < committer->argument_count; i++)
		free(committer->arguments[i]);
	recall_free(committer->recall);
	precopy_close(committer->precopy);
	if (committer->pidfd >= 0)
		close(committer->pidfd);
	if (committer->lock_fd >= 0)
		close(committer->lock_fd);
	free(committer);
}

int commit_target_fd(const struct committer *committer)
{
	return committer->pidfd;
}

const struct commit_note *commit_last(const struct committer *committer)
{
	return &committer->note;
}

/* ---- a commit ---- */

/* Rounds until little is left. What cannot be pushed travels with the checkpoint, which also has the last word on what is
 * wrong. */
static uint64_t push_ahead(struct committer *committer, const volatile bool *stop)
{
	struct push push;
	struct dp_err err = { "" };
	char path[PATH_MAX];
	if (!committer->instance.id[0] || stats_pager_left(instance_path(&committer->instance, "stats", path, sizeof(path))))
		return 0;
	int connection = control_connect(instance_path(&committer->instance, "control.sock", path, sizeof(path)), &err);
	if (connection < 0 || push_open(&push, connection, &err) < 0) {
		log_warn("push ahead: %s", err.text);
		return 0;
	}
	push.rate_bytes = committer->options.rate_bytes;
	int64_t pushed = FEW_PAGES + 1;
	uint64_t interval_ns = committer->options.interval_ns,
		 until_ns = clock_now_ns() + (interval_ns ? interval_ns / 2 : PUSH_NS);
	for (unsigned round = 0; round < ROUNDS && pushed > FEW_PAGES; round++)
		pushed = push_round(&push, until_ns, stop, &err);
	if (pushed < 0 && pushed != -EINTR)
		log_info("push ahead: %s", err.text);
	uint64_t pages = push.pushed_pages;
	push_close(&push);
	return pages;
}

void commit_push_ahead(struct committer *committer, const volatile bool *stop)
{
	committer->pushed_before += push_ahead(committer, stop);
}

static int by_age(const void *first, const void *second)
{
	const struct commit_state *a = first, *b = second;
	return a->created_unix_ns < b->created_unix_ns ? 1 : a->created_unix_ns > b->created_unix_ns ? -1 : 0;
}

/* All commits of a pool, newest first; fresh array. */
static int list_states(struct client *client, struct commit_state **states, size_t *count, struct dp_err *err)
{
	struct snapshot_info *list;
	size_t listed;
	int ret = client_list(client, &list, &listed, err);
	if (ret)
		return ret;
	*count = 0;
	*states = calloc(listed ? listed : 1, sizeof(**states));
	for (size_t i = 0; i < listed; i++) {
		struct commit_state state;
		if (*states && commit_read_meta(list[i].meta_json, &state)) {
			snprintf(state.snapshot, sizeof(state.snapshot), "%s", list[i].name);
			state.created_unix_ns = list[i].created_unix_ns;
			(*states)[(*count)++] = state;
		}
		client_snapshot_info_done(&list[i]);
	}
	free(list);
	if (!*states)
		return dp_fail(err, ENOMEM, "out of memory");
	qsort(*states, *count, sizeof(**states), by_age);
	return 0;
}

/* M2. What somebody runs from stays until that has ended. */
static uint64_t prune(struct committer *committer, const struct endpoint *pool)
{
	struct client *client;
	struct dp_err err;
	cleanup_free struct commit_state *states = NULL;
	size_t count = 0;
	uint64_t removed = 0, kept = 0;
	if (client_open(&client, pool, 0, &err))
		return 0;
	if (list_states(client, &states, &count, &err))
		log_warn("older states of %s stay: %s", committer->series, err.text);
	for (size_t i = 0; i < count; i++) {
		if (strcmp(states[i].series, committer->series) || strcmp(states[i].kind, committer->note.kind))
			continue;
		if (kept++ < DP_MAX(committer->options.keep, 1u))
			continue;
		int ret = client_remove(client, states[i].snapshot, false, &err);
		removed += !ret;
		if (ret && ret != -EBUSY && ret != -ENOENT)
			log_warn("%s stays: %s", states[i].snapshot, err.text);
	}
	client_close(client);
	return removed;
}

/* The same in the other pools of a mirror. */
static void prune_others(struct committer *committer)
{
	for (size_t i = 0; i < committer->also_count; i++) {
		struct endpoint pool;
		if (!endpoint_parse(&pool, committer->also[i], NULL))
			prune(committer, &pool);
	}
}

static int take(struct committer *committer, struct commit_result *result, struct dp_err *err)
{
	const struct commit_options *options = &committer->options;
	struct checkpoint_result stored;
	choose_pool(committer);
	struct endpoint endpoint = committer->pool;
	const struct checkpoint_origin origin = { .kind = committer->note.kind,
						  .series = committer->series,
						  .instance = committer->note.id,
						  .name = committer->note.name,
						  .lineage = committer->lineage };
	result->pushed_pages = committer->pushed_before + push_ahead(committer, NULL);
	committer->pushed_before = 0;
	result->unix_ns = wall_ns();
	commit_name(committer->series, committer->lineage, committer->own_series, result->unix_ns / 1000000u, endpoint.name);
	const struct checkpoint_options checkpoint = { .pid = committer->pid,
						       .endpoint = &endpoint,
						       .registry = options->registry,
						       .leave_running = true,
						       .verbose = options->verbose,
						       .criu_arguments = committer->arguments,
						       .criu_argument_count = committer->argument_count,
						       .origin = &origin,
						       .recall = &committer->recall,
						       .precopy = committer->precopy };
	int ret = checkpoint_run(&checkpoint, &stored, err);
	if (ret)
		return ret;
	memcpy(committer->also, stored.also, sizeof(committer->also));
	committer->also_count = stored.also_count;
	snprintf(result->snapshot, sizeof(result->snapshot), "%s", endpoint.name);
	result->pages = stored.pages;
	result->sent_pages = stored.stored_pages + stored.eager_pages;
	result->bytes = stored.sent_bytes + result->pushed_pages * PAGE_BYTES;
	if (stored.ahead.rounds) {
		result->pushed_pages = stored.ahead.ahead_pages;
		result->sent_pages = stored.ahead.frozen_pages + stored.eager_pages;
		result->bytes = stored.sent_bytes; /* all over one connection */
	}
	result->frozen_ns = stored.frozen_ns;
	return 0;
}

int commit_take(struct committer *committer, struct commit_result *result, struct dp_err *err)
{
	uint64_t started_ns = clock_now_ns();
	struct commit_note *note = &committer->note;
	struct dp_err local;
	err = err ? err : &local;
	*result = (struct commit_result){ 0 };
	while (committer->lock_fd >= 0 && flock(committer->lock_fd, LOCK_EX))
		if (errno != EINTR)
			return dp_fail_errno(err, errno, "wait for another commit of %s", note->id);
	int ret = take(committer, result, err);
	if (committer->lock_fd >= 0)
		flock(committer->lock_fd, LOCK_UN);
	result->total_ns = clock_now_ns() - started_ns;
	note->failures += ret < 0;
	snprintf(note->error, sizeof(note->error), "%.255s", ret ? err->text : "");
	if (!ret) {
		note->count++;
		snprintf(note->snapshot, sizeof(note->snapshot), "%s", result->snapshot);
		note->unix_ns = result->unix_ns;
		note->bytes = result->bytes;
		note->frozen_ns = result->frozen_ns;
		note->total_ns = result->total_ns;
		result->removed = prune(committer, &committer->pool);
		prune_others(committer);
	}
	struct dp_err noted;
	if (commits_save(committer->options.registry, note, &noted))
		log_warn("%s", noted.text);
	return ret;
}

/* ---- finding one again ---- */

int commit_find(const struct endpoint *pool, const char *key, bool protect_only, char snapshot[static 256], struct dp_err *err)
{
	struct client *client;
	cleanup_free struct commit_state *states = NULL;
	size_t count = 0;
	int ret = client_open(&client, pool, 0, err);
	if (ret)
		return ret;
	ret = list_states(client, &states, &count, err);
	client_close(client);
	if (ret)
		return ret;
	for (size_t i = 0; i < count; i++)
		if (commit_fits(&states[i], key, protect_only)) {
			snprintf(snapshot, 256, "%s", states[i].snapshot);
			return 0;
		}
	char text[1400];
	return dp_fail(err, ENOENT, "no complete state of `%s` is in %s (`distri-proc pool ls` lists what is there)", key,
		       endpoint_pool_text(pool, text, sizeof(text)));
}

int commit_fence(const struct endpoint *pool, struct dp_err *err)
{
	struct client *client;
	struct snapshot_info info = { 0 };
	struct commit_state state = { .pool_instance = 0 };
	uint64_t epoch;
	int ret = client_open_for_writing(&client, pool, 0, err);
	if (ret)
		return ret;
	ret = client_snapshot_open(client, pool->name, &info, err);
	if (!ret && (!commit_read_meta(info.meta_json, &state) || !state.pool_instance))
		ret = dp_fail(
			err, EINVAL,
			"%s is the state of a process that is no instance in this pool: nobody can take it over; end it where it runs, and "
			"leave --take-over out",
			pool->name);
	if (!ret)
		ret = client_lease_take(client, state.pool_instance, &epoch, err);
	client_snapshot_info_done(&info);
	client_close(client);
	if (ret == -ENOENT)
		return 0;
	return ret ? dp_err_doing(err, "take %s over", state.name), ret : 0;
}
