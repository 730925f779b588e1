#include "restore/pool_source.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"
#include "client/client.h"
#include "client/link.h"
#include "pager/source_pool.h"
#include "prefetch/order.h"
#include "restore/processes.h"

#define LEASE_FILE "lease"
#define LEASE_MAGIC 0x314553414c504444ull /* "DDPLASE1" */
#define END_TIMEOUT_MS 1000u
#define TAKE_OVER_TIMEOUT_MS 5000u

struct lease {
	uint64_t magic, instance, epoch;
	uint8_t identity[16];
};

static int lease_save(const struct instance *instance, const struct client_attached *attached, struct dp_err *err)
{
	struct lease lease = { .magic = LEASE_MAGIC, .instance = attached->instance, .epoch = attached->epoch };
	char path[PATH_MAX], fresh[PATH_MAX];
	memcpy(lease.identity, attached->identity, sizeof(lease.identity));
	instance_path(instance, LEASE_FILE, path, sizeof(path));
	instance_path(instance, LEASE_FILE ".new", fresh, sizeof(fresh));
	int ret = io_write_file(fresh, &lease, sizeof(lease), 0600);
	if (!ret && rename(fresh, path))
		ret = -errno;
	return ret ? dp_fail_errno(err, -ret, "write %s", path) : 0;
}

static int lease_load(const struct instance *instance, struct lease *lease, struct dp_err *err)
{
	char path[PATH_MAX];
	cleanup_free char *content = NULL;
	ssize_t length = io_read_file(instance_path(instance, LEASE_FILE, path, sizeof(path)), &content, 4096);
	if (length < 0)
		return dp_fail_errno(err, (int)-length, "read %s", path);
	if (length != sizeof(*lease))
		return dp_fail(err, EBADMSG, "%s is damaged", path);
	memcpy(lease, content, sizeof(*lease));
	return lease->magic == LEASE_MAGIC ? 0 : dp_fail(err, EBADMSG, "%s is damaged", path);
}

static void lease_forget(const struct instance *instance)
{
	char path[PATH_MAX];
	unlink(instance_path(instance, LEASE_FILE, path, sizeof(path)));
}

/* What an earlier run recorded, and whether this one is to record. That there is none is no failure, nor that it does not come: it is
 * speed that is lost. */
static void get_order(const struct restore_options *options, struct client *client, uint64_t instance, struct pager_config *config)
{
	struct dp_err err;
	int ret = client_order_get(client, instance, &config->order, &config->order_runs, &err);
	if (ret && ret != -ENOENT)
		log_warn("recorded order: %s", err.text);
	config->record = options->record == RECORD_ALWAYS || (options->record == RECORD_WHERE_NONE_IS && ret == -ENOENT && !options->migrate);
	if (!prefetch_policy_replays(options->prefetch_policy) && !options->working_set)
		config->order_runs = 0;
	config->order_runs = order_arrange(config->order, config->order_runs);
}

static struct link_config link_config_of(const struct restore_options *options)
{
	return (struct link_config){ .endpoint = options->endpoint, .compress = options->compress, .near = true };
}

static int open_client(const struct restore_options *options, struct client **client, struct dp_err *err)
{
	int ret = client_open(client, options->endpoint, 0, err);
	if (ret)
		return ret;
	ret = client_set_compress(*client, options->compress);
	if (!ret)
		return 0;
	client_close(*client);
	return dp_fail_errno(err, -ret, "room to unpack pages");
}

/* Notes the lease, and makes the source of an attached client, which it takes. */
static int make_source(const struct restore_plan *plan, struct client *client, struct client_attached *attached, struct source **source,
		       struct dp_err *err)
{
	struct link_config link = link_config_of(plan->options);
	int ret = lease_save(&plan->instance, attached, err);
	if (!ret)
		ret = source_pool_new(source, &link, client, attached, err);
	client_attached_done(attached);
	if (ret)
		client_close(client);
	return ret;
}

int pool_source_create(const struct restore_plan *plan, struct pager_config *config, struct source **source, struct dp_err *err)
{
	const struct instance *instance = &plan->instance;
	struct client_attached attached;
	struct client *client;
	int ret = open_client(plan->options, &client, err);
	if (ret)
		return ret;
	ret = client_instance_create_resumable(client, instance->snapshot, instance->name, &attached, err);
	if (ret) {
		client_close(client);
		return ret;
	}
	get_order(plan->options, client, attached.instance, config);
	return make_source(plan, client, &attached, source, err);
}

int pool_source_take_over(const struct restore_plan *plan, struct source **source, struct dp_err *err)
{
	struct client_attached attached;
	struct client *client;
	struct lease lease;
	int ret = lease_load(&plan->instance, &lease, err);
	if (!ret)
		ret = open_client(plan->options, &client, err);
	if (ret)
		return ret;
	/* First under the lease as it was: who finds it taken must not take it back. */
	ret = client_attach(client, lease.instance, lease.epoch, false, lease.identity, TAKE_OVER_TIMEOUT_MS, &attached, err);
	if (!ret) {
		client_attached_done(&attached);
		ret = client_attach(client, lease.instance, lease.epoch, true, lease.identity, TAKE_OVER_TIMEOUT_MS, &attached, err);
	}
	if (ret) {
		client_close(client);
		return ret;
	}
	return make_source(plan, client, &attached, source, err);
}

static void end_by_lease(const struct restore_plan *plan, const struct lease *lease)
{
	struct client *client;
	struct dp_err err = { "" };
	int ret = client_open(&client, plan->options->endpoint, END_TIMEOUT_MS, &err);
	if (!ret) {
		ret = client_instance_end(client, lease->instance, lease->epoch, &err);
		client_close(client);
	}
	if (ret && ret != -ENOENT && ret != -ESTALE)
		log_info("the pool ends the instance by itself after a while: %s", err.text);
	lease_forget(&plan->instance);
}

void pool_source_end_left(const struct restore_plan *plan)
{
	struct lease lease;
	if (!lease_load(&plan->instance, &lease, NULL))
		end_by_lease(plan, &lease);
}

void pool_source_end(const struct restore_plan *plan, struct source *source)
{
	if (!source)
		return;
	source->ops->free(source); /* its connection first: what is under way over it is of no interest any more */
	pool_source_end_left(plan);
}
