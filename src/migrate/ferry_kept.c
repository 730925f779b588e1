/* A tree whose pages are in a pool, or go to one and stay there: which pool, how much of them may be local, and whose lease it
 * is. */
#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "base/log.h"
#include "client/client.h"
#include "instance/instance.h"
#include "instance/stats.h"
#include "migrate/ferry_in.h"
#include "migrate/ferry_out.h"
#include "pager/control.h"

#define CHECK_MS 10000u
#define FENCE_MS 5000u
#define FENCE_NOTE "fence" /* the instance and its pool, for a ferry that follows */

/* ---- the source ---- */

/* The pools of a mirror that are whole, as the pager has them. */
static int find_pools(struct out *out, const struct instance *instance)
{
	struct control_pools found = { 0 };
	char path[PATH_MAX];
	int connection = control_connect(instance_path(instance, "control.sock", path, sizeof(path)), &out->err);
	int ret = connection < 0 ? connection : control_pools(connection, &found, &out->err);
	if (connection >= 0)
		close(connection);
	if (ret)
		return ret;
	if (found.spread)
		return dp_fail(&out->err, EOPNOTSUPP,
			       "instance %s is spread over several pools, which cannot be handed over: bring its pages here first "
			       "(distri-proc migrate-in --lift-budget %s)",
			       instance->id, instance->id);
	out->kept_pools = json_object_new_array();
	for (size_t i = 0; found.count > 1 && i < found.count; i++)
		if (found.pools[i].whole)
			json_object_array_add(out->kept_pools, json_object_new_string(found.pools[i].uri));
	return 0;
}

int out_find_kept(struct out *out)
{
	const char *through = line_text(out->request, "through_pool"), *mode = line_text(out->request, "mode");
	struct instance instance;
	char path[PATH_MAX];
	struct dp_err err;
	if (out->container) /* its pages stay here (ferry_container.c) */
		return through ? dp_fail(&out->err, EOPNOTSUPP, "--container goes with --mode post-copy only") : 0;
	int ret = instance_find_by_pid(out->root, out->pid, &instance, &err);
	if (ret == -ENOENT)
		return 0;
	if (ret)
		return dp_fail(&out->err, -ret, "%s", err.text);
	if (stats_pager_left(instance_path(&instance, "stats", path, sizeof(path))))
		return 0; /* everything is local: a process like any other */
	if (mode)
		return dp_fail(&out->err, EOPNOTSUPP,
			       "instance %s has pages in a pool, and keeps it: leave --mode out, or bring its pages here first "
			       "(distri-proc migrate-in --lift-budget %s)",
			       instance.id, instance.id);
	snprintf(out->kept_pool, sizeof(out->kept_pool), "%s", through ? through : instance.pool);
	out->kept_budget_bytes = instance.budget_bytes;
	return through && strcmp(through, instance.pool) != 0 ? 0 : find_pools(out, &instance);
}

void out_add_kept(const struct out *out, json_object *line)
{
	const char *through = line_text(out->request, "through_pool");
	char bytes[32];
	line_add_flag(line, "through", through || *out->kept_pool);
	line_add_text(line, "through_pool", *out->kept_pool ? out->kept_pool : through);
	if (out->kept_pools)
		json_object_object_add(line, "pools", json_object_get(out->kept_pools));
	snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)out->kept_budget_bytes);
	if (out->kept_budget_bytes && !line_text(line, "local_memory"))
		line_add_text(line, "local_memory", bytes);
}

/* ---- the destination ---- */

static size_t pool_count(const struct in *in, json_object **pools)
{
	bool there = json_object_object_get_ex(in->prepare, "pools", pools) && json_object_is_type(*pools, json_type_array);
	return there ? DP_MIN(json_object_array_length(*pools), (size_t)RESTORE_POOLS) : 0;
}

int in_check_pool(struct in *in)
{
	const char *uri = line_text(in->prepare, "through_pool");
	struct endpoint endpoint;
	struct client *client;
	if (!uri)
		return 0;
	int ret = endpoint_parse(&endpoint, uri, &in->err);
	if (!ret)
		ret = client_open(&client, &endpoint, CHECK_MS, &in->err);
	if (ret)
		return dp_err_doing(&in->err, "the pool through which it is to come"), ret;
	client_close(client);
	return 0;
}

size_t in_pools(const struct in *in, const char *name, struct endpoint pools[RESTORE_POOLS], struct dp_err *err)
{
	json_object *list;
	size_t count = pool_count(in, &list);
	for (size_t i = 0; i < count; i++) {
		const char *uri = json_object_get_string(json_object_array_get_idx(list, i));
		if (!uri || endpoint_parse(&pools[i], uri, err))
			return 0; /* then of the first alone */
		snprintf(pools[i].name, sizeof(pools[i].name), "%s", name);
	}
	return count;
}

/* Whoever has the old epoch writes nothing any more; and nothing is left that would wait for him. */
static int fence_in(const struct endpoint *pool, uint64_t instance, struct dp_err *err)
{
	struct client *client;
	uint64_t epoch;
	int ret = client_open(&client, pool, FENCE_MS, err);
	if (ret)
		return ret;
	ret = client_lease_take(client, instance, &epoch, err);
	if (!ret)
		ret = client_instance_end(client, instance, epoch, err);
	client_close(client);
	return ret == -ENOENT ? 0 : ret; /* the source has ended it */
}

int in_note_fence(struct in *in, json_object *order)
{
	char path[PATH_MAX];
	const char *uri = line_text(order, "uri");
	int64_t instance = line_number(order, "pool_instance");
	if (instance <= 0 || !uri || strlen(uri) >= sizeof(in->fence_pool))
		return 0;
	in->fence_instance = (uint64_t)instance;
	strcpy(in->fence_pool, uri);
	cleanup_free char *text = format_text("%llu %s", (unsigned long long)instance, uri);
	int ret = text ? io_write_file(ferry_path(in->root, "in", in->id, FENCE_NOTE, path), text, strlen(text), 0600) : -ENOMEM;
	return ret ? dp_fail_errno(&in->err, -ret, "note the instance at the source") : 0;
}

void in_find_fence(struct in *in)
{
	char path[PATH_MAX];
	cleanup_free char *text = NULL;
	unsigned long long instance;
	if (io_read_file(ferry_path(in->root, "in", in->id, FENCE_NOTE, path), &text, 2048) > 0 &&
	    sscanf(text, "%llu %1399s", &instance, in->fence_pool) == 2)
		in->fence_instance = instance;
}

void in_fence(struct in *in)
{
	struct endpoint pool;
	struct dp_err err;
	if (!in->fence_instance)
		return;
	int ret = endpoint_parse(&pool, in->fence_pool, &err);
	if (!ret)
		ret = fence_in(&pool, in->fence_instance, &err);
	if (ret)
		log_warn("the lease of the instance at the source was not taken: %s", err.text);
}
