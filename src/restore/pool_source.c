#include "restore/pool_source.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"
#include "client/client.h"
#include "client/link.h"
#include "instance/process.h"
#include "pager/source_mirror.h"
#include "pager/source_pool.h"
#include "pager/source_spread.h"
#include "prefetch/order.h"
#include "restore/processes.h"

#define LEASE_FILE "lease"
#define LEASE_MAGIC 0x324553414c504444ull /* "DDPLASE2" */
#define END_TIMEOUT_MS 1000u
#define TAKE_OVER_TIMEOUT_MS 5000u
#define TAKE_OVER_PAUSE_NS 200000000

#define LEASES MIRROR_MEMBERS

/* As it lies in the file. */
struct lease {
	uint64_t magic;
	struct client_lease lease;
};

static int lease_save(const struct instance *instance, const struct client_lease *leases, size_t count, struct dp_err *err)
{
	struct lease lease[LEASES] = { { 0 } };
	char path[PATH_MAX], fresh[PATH_MAX];
	for (size_t i = 0; i < count; i++)
		lease[i] = (struct lease){ LEASE_MAGIC, leases[i] };
	instance_path(instance, LEASE_FILE, path, sizeof(path));
	instance_path(instance, LEASE_FILE ".new", fresh, sizeof(fresh));
	int ret = io_write_file(fresh, lease, count * sizeof(*lease), 0600);
	if (!ret && rename(fresh, path))
		ret = -errno;
	return ret ? dp_fail_errno(err, -ret, "write %s", path) : 0;
}

/* How many there are, one a pool; or -errno. */
static int lease_load(const struct instance *instance, struct client_lease *leases, struct dp_err *err)
{
	struct lease lease[LEASES];
	char path[PATH_MAX];
	cleanup_free char *content = NULL;
	ssize_t length = io_read_file(instance_path(instance, LEASE_FILE, path, sizeof(path)), &content, 4096);
	size_t count = (size_t)DP_MAX(length, 0) / sizeof(*lease);
	if (length < 0)
		return dp_fail_errno(err, (int)-length, "read %s", path);
	if (!count || count > LEASES || (size_t)length % sizeof(*lease))
		return dp_fail(err, EBADMSG, "%s is damaged", path);
	memcpy(lease, content, count * sizeof(*lease));
	for (size_t i = 0; i < count; i++) {
		if (lease[i].magic != LEASE_MAGIC)
			return dp_fail(err, EBADMSG, "%s is damaged", path);
		leases[i] = lease[i].lease;
	}
	return (int)count;
}

static void lease_forget(const struct instance *instance)
{
	char path[PATH_MAX];
	unlink(instance_path(instance, LEASE_FILE, path, sizeof(path)));
}

/* What an earlier run recorded, and whether this one is to record. That there is none is no failure, nor that it does not come:
 * it is speed that is lost. */
static void get_order(const struct restore_options *options, struct client *client, uint64_t instance,
		      struct pager_config *config)
{
	struct dp_err err;
	int ret = client_order_get(client, instance, &config->order, &config->order_runs, &err);
	if (ret && ret != -ENOENT)
		log_warn("recorded order: %s", err.text);
	config->record = options->record == RECORD_ALWAYS ||
			 (options->record == RECORD_WHERE_NONE_IS && ret == -ENOENT && !options->migrate);
	if (!prefetch_policy_replays(options->prefetch_policy) && !options->working_set)
		config->order_runs = 0;
	config->order_runs = order_arrange(config->order, config->order_runs);
}

static size_t pool_count(const struct restore_options *options)
{
	return options->pool_count ? options->pool_count : 1;
}

static const struct endpoint *pool_at(const struct restore_options *options, size_t i)
{
	return options->pool_count ? &options->pools[i] : options->endpoint;
}

static struct link_config link_config_of(const struct restore_options *options, size_t i)
{
	return (struct link_config){ .endpoint = pool_at(options, i), .compress = options->compress, .near = true };
}

static int open_client(const struct restore_options *options, size_t i, struct client **client, struct dp_err *err)
{
	int ret = client_open(client, pool_at(options, i), 0, err);
	if (ret)
		return ret;
	ret = client_set_compress(*client, options->compress);
	if (!ret)
		return 0;
	client_close(*client);
	return dp_fail_errno(err, -ret, "room to unpack pages");
}

/* Notes the leases, and makes the source of attached clients, which it takes. `fresh`: no tree has the instances yet, and where
 * this fails they end: what is not noted nobody could end later. */
static int make_source(const struct restore_plan *plan, struct client **client, struct client_attached *attached, size_t count,
		       bool fresh, struct source **source, struct dp_err *err)
{
	const struct restore_options *options = plan->options;
	struct mirror_member members[MIRROR_MEMBERS];
	struct client_lease leases[LEASES] = { { 0 } };
	for (size_t i = 0; i < count; i++) {
		leases[i] = (struct client_lease){ .instance = attached[i].instance, .epoch = attached[i].epoch };
		memcpy(leases[i].identity, attached[i].identity, sizeof(leases[i].identity));
	}
	int ret = lease_save(&plan->instance, leases, count, err);
	for (size_t i = 0; i < count; i++)
		members[i] = (struct mirror_member){ link_config_of(options, i), client[i], attached[i] };
	if (!ret && count == 1)
		ret = source_pool_new(source, &members[0].config, client[0], &attached[0], err);
	else if (!ret && options->spread)
		ret = source_spread_new(source, members, count, err);
	else if (!ret)
		ret = source_mirror_new(source, members, count, options->ack_one, err);
	for (size_t i = 0; i < count; i++) {
		client_attached_done(&attached[i]);
		if (ret && fresh)
			client_instance_end(client[i], leases[i].instance, leases[i].epoch, NULL);
		if (ret)
			client_close(client[i]);
	}
	return ret;
}

int pool_source_create(const struct restore_plan *plan, struct pager_config *config, struct source **source, struct dp_err *err)
{
	const struct instance *instance = &plan->instance;
	struct client_attached attached[MIRROR_MEMBERS];
	struct client *client[MIRROR_MEMBERS];
	size_t count = pool_count(plan->options), made = 0;
	int ret = 0;
	while (made < count && !ret) {
		ret = open_client(plan->options, made, &client[made], err);
		if (ret)
			break;
		ret = client_instance_create_resumable(client[made], instance->snapshot, instance->name, &attached[made], err);
		if (ret)
			client_close(client[made]);
		made += !ret;
	}
	if (ret) {
		while (made--) {
			client_instance_end(client[made], attached[made].instance, attached[made].epoch, NULL);
			client_attached_done(&attached[made]);
			client_close(client[made]);
		}
		return ret;
	}
	get_order(plan->options, client[0], attached[0].instance, config);
	return make_source(plan, client, attached, count, true, source, err);
}

static int note_lease(void *context, const struct client_lease *lease)
{
	const struct restore_plan *plan = context;
	return lease_save(&plan->instance, lease, 1, NULL);
}

/* One try. *asked: a pool was, and the error is its word. */
static int attach_again(const struct restore_plan *plan, struct client_lease *lease, struct client **client,
			struct client_attached *attached, bool *asked, struct dp_err *err)
{
	int ret = open_client(plan->options, 0, client, err);
	*asked = !ret || ret == -EACCES || ret == -EPERM || ret == -EPROTONOSUPPORT;
	if (ret)
		return ret;
	ret = client_take_over(*client, lease, note_lease, (void *)(uintptr_t)plan, TAKE_OVER_TIMEOUT_MS, attached, err);
	if (ret)
		client_close(*client);
	return ret;
}

/* Is it the pool's last word, or only a connection that did not come about? */
static bool is_final(int error)
{
	return error == -ESTALE || error == -ENOENT || error == -ENXIO || error == -EACCES || error == -EPERM ||
	       error == -EPROTONOSUPPORT;
}

/* Each pool is attached to by the source itself, when it knows from what the dead pager left which of them count
 * (source_ops.resume). */
static int several_again(const struct restore_plan *plan, const struct client_lease *leases, size_t count, struct source **source,
			 struct dp_err *err)
{
	const struct restore_options *options = plan->options;
	struct mirror_member members[MIRROR_MEMBERS] = { { .client = NULL } };
	if (count != pool_count(options))
		return dp_fail(err, EBADMSG, "%zu pools were given, and leases of %zu are known", pool_count(options), count);
	for (size_t i = 0; i < count; i++) {
		struct client_attached *attached = &members[i].attached;
		members[i].config = link_config_of(options, i);
		*attached = (struct client_attached){ .instance = leases[i].instance,
						      .epoch = leases[i].epoch,
						      .applied = LINK_UNSETTLED };
		memcpy(attached->identity, leases[i].identity, sizeof(attached->identity));
	}
	return options->spread ? source_spread_new(source, members, count, err)
			       : source_mirror_new(source, members, count, options->ack_one, err);
}

/* Then nobody waits for the pool, nor for us; a supervisor would see it, if there is one. */
static bool tree_ended(const struct restore_plan *plan)
{
	const struct instance_process *init = &plan->instance.init;
	cleanup_fd int pidfd = process_open(init->pid, init->start_time);
	return pidfd == -ESRCH || (pidfd >= 0 && poll(&(struct pollfd){ .fd = pidfd, .events = POLLIN }, 1, 0) > 0);
}

int pool_source_take_over(const struct restore_plan *plan, struct source **source, struct dp_err *err)
{
	const struct restore_options *options = plan->options;
	uint64_t wait_ns = options->stall_timeout_ns ? options->stall_timeout_ns : STALL_TIMEOUT_NS;
	uint64_t began_ns = clock_now_ns();
	struct client_attached attached;
	struct client *client;
	struct client_lease leases[LEASES];
	int ret = lease_load(&plan->instance, leases, err);
	if (ret > 1)
		return several_again(plan, leases, (size_t)ret, source, err);
	if (ret < 0)
		return ret;
	/* The pool, too, may have died just now. The tree's faults wait meanwhile, as they would have done with the pager that
	 * died, and longer than the stall timeout too: until it is back, unless the tree is to be killed then. */
	bool asked;
	while ((ret = attach_again(plan, &leases[0], &client, &attached, &asked, err)) < 0) {
		bool late = clock_now_ns() - began_ns > wait_ns;
		/* The socket of a pool that starts again is not there for a moment: -ENOENT, before any pool was asked. */
		if ((asked && is_final(ret)) || (late && options->on_lost == ON_LOST_KILL) || tree_ended(plan))
			return ret;
		log_warn("%s; trying again", err->text);
		nanosleep(&(const struct timespec){ .tv_nsec = TAKE_OVER_PAUSE_NS }, NULL);
	}
	return make_source(plan, &client, &attached, 1, false, source, err);
}

static void end_by_lease(const struct restore_plan *plan, size_t i, const struct client_lease *lease)
{
	struct client *client;
	struct dp_err err = { "" };
	int ret = client_open(&client, pool_at(plan->options, i), END_TIMEOUT_MS, &err);
	if (!ret) {
		ret = client_instance_end(client, lease->instance, lease->epoch, &err);
		if (ret == -ESTALE && lease->next)
			ret = client_instance_end(client, lease->instance, lease->next, &err);
		client_close(client);
	}
	if (ret && ret != -ENOENT && ret != -ESTALE)
		log_info("the pool ends the instance by itself after a while: %s", err.text);
}

void pool_source_end_left(const struct restore_plan *plan)
{
	struct client_lease lease[LEASES];
	int count = lease_load(&plan->instance, lease, NULL);
	for (int i = 0; i < count && (size_t)i < pool_count(plan->options); i++)
		end_by_lease(plan, (size_t)i, &lease[i]);
	if (count > 0)
		lease_forget(&plan->instance);
}

void pool_source_end(const struct restore_plan *plan, struct source *source)
{
	if (!source)
		return;
	source->ops->free(source); /* its connections first: what is under way over them is of no interest any more */
	pool_source_end_left(plan);
}
