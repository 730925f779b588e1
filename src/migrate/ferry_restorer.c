/* The restorer: a child of the ferry that restores and then waits for the tree's end, while the ferry goes on with the switch. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/base.h"
#include "migrate/ferry_container.h"
#include "migrate/ferry_in.h"
#include "restore/processes.h"
#include "restore/restore.h"
#include "transport/tls.h"

#define ARGUMENTS_MOST 32u

struct criu_arguments {
	char *list[ARGUMENTS_MOST + 2];
	size_t count;
};

/* CRIU's own options that the request has, ours in front. */
static int make_arguments(const struct in *in, struct criu_arguments *arguments, struct dp_err *err)
{
	char path[PATH_MAX];
	json_object *extra;
	arguments->list[arguments->count++] =
		format_text("--action-script=%s", ferry_path(in->root, "in", in->id, FERRY_GATE_ACTION, path));
	if (line_flag(in->prepare, "tcp_established"))
		arguments->list[arguments->count++] = "--tcp-established";
	if (json_object_object_get_ex(in->prepare, "criu", &extra) && json_object_is_type(extra, json_type_array))
		for (size_t i = 0; i < json_object_array_length(extra) && arguments->count < ARGUMENTS_MOST; i++)
			arguments->list[arguments->count++] =
				(char *)(uintptr_t)json_object_get_string(json_object_array_get_idx(extra, i));
	for (size_t i = 0; i < arguments->count; i++)
		if (!arguments->list[i])
			return dp_fail(err, ENOMEM, "out of memory");
	return 0;
}

static void say(int fd, const struct in_report *report)
{
	io_write_full(fd, report, sizeof(*report)); /* a ferry that is gone is followed by one that finds the tree by its name */
}

/* The ferry's word: a URI with its NUL. */
static int await_uri(void *context, struct endpoint *late, struct dp_err *err)
{
	const int *order_fd = context;
	char uri[1400];
	for (size_t used = 0; used < sizeof(uri); used++) {
		int ret = io_read_full(*order_fd, uri + used, 1);
		if (ret)
			return dp_fail(err, ECANCELED, "the migration ended before there was anything to restore");
		if (!uri[used])
			return endpoint_parse(late, uri, err);
	}
	return dp_fail(err, E2BIG, "the source names a pool of more than %zu characters", sizeof(uri));
}

/* Loaded and read now, for us and for whom we fork, rather than when it is waited for. */
static void warm_up(const struct in *in)
{
	const struct tls_module *module;
	void *unused;
	if (in->back.tls)
		tls_context(&module, &unused, false, NULL);
}

static enum prefetch_policy policy_of(const struct in *in)
{
	const char *name = line_text(in->prepare, "prefetch_policy");
	int policy = name ? prefetch_policy_find(name) : -1;
	return policy < 0 ? PREFETCH_ADAPTIVE : (enum prefetch_policy)policy;
}

struct saying {
	int fd;
	struct in_report *report;
};

static void container_runs(void *context, struct instance *instance)
{
	const struct saying *saying = context;
	saying->report->kind = IN_RUNS;
	saying->report->instance = *instance;
	saying->report->restore_ns = instance->restore_ns;
	say(saying->fd, saying->report);
}

/* Its runtime restores it, and then it is our child. */
static void restore_container(struct in *in, struct restore_options *options, struct in_report *report, int fd)
	__attribute__((noreturn));
static void restore_container(struct in *in, struct restore_options *options, struct in_report *report, int fd)
{
	struct saying saying = { fd, report };
	int ret = container_in_restore(in, options, container_runs, &saying, &report->code, &report->err);
	report->kind = ret ? IN_FAILED : IN_ENDED;
	if (ret)
		report->code = -ret;
	say(fd, report);
	_exit(ret ? 1 : 0);
}

static void restorer_main(struct in *in, int order_fd, int fd) __attribute__((noreturn));
static void restorer_main(struct in *in, int order_fd, int fd)
{
	in->order_fd = order_fd;
	struct in_report report = { .kind = IN_FAILED };
	struct criu_arguments arguments = { 0 };
	struct restore_session session;
	bool through = line_flag(in->prepare, "through"); /* its pages stay in the pool */
	struct endpoint endpoint = { .kind = ENDPOINT_TCP }, pools[RESTORE_POOLS];
	prctl(PR_SET_NAME, "distri-restorer");
	/* as the source calls it; only the instance's id is made of it before the pool is known */
	snprintf(endpoint.name, sizeof(endpoint.name), "migration/%s:offer", in->id);
	warm_up(in);
	int ret = make_arguments(in, &arguments, &report.err);
	struct restore_options options = {
		.root = in->root,
		.endpoint = &endpoint,
		.late = &endpoint,
		.await = await_uri,
		.await_context = &order_fd,
		.name = in->name,
		.migrate = !through,
		/* what waits on this host needs no link */
		.migrate_rate_bytes = in->landing.pid ? 0 : (uint64_t)DP_MAX(line_number(in->prepare, "migrate_rate"), 0),
		.local_memory = through ? line_text(in->prepare, "local_memory") : NULL,
		.prefetch_policy = policy_of(in),
		.on_lost = through ? ON_LOST_STOP : ON_LOST_FREEZE, /* the lease decides */
		.record = RECORD_NEVER,    /* of a snapshot that nobody will restore again */
		.lease = in->lease,
		.verbose = line_flag(in->prepare, "verbose") ? 2 : 0,
		.criu_arguments = arguments.list,
		.criu_argument_count = arguments.count,
	};
	options.pool_count = in_pools(in, endpoint.name, pools, &report.err);
	options.pools = options.pool_count ? pools : NULL;
	if (!ret && in->container)
		restore_container(in, &options, &report, fd);
	if (!ret)
		ret = restore_start(&options, &session, &report.err);
	report.code = -ret;
	if (!ret) {
		report.kind = IN_RUNS;
		report.instance = session.instance;
		report.opened_ns = session.times.opened_ns - session.times.start_ns;
		report.fetched_ns = session.times.fetched_ns - session.times.start_ns;
		report.checked_ns = session.times.checked_ns - session.times.start_ns;
		report.criu_ns = session.times.criu_done_ns - session.times.start_ns;
		report.restore_ns = session.times.done_ns - session.times.start_ns;
	}
	say(fd, &report);
	if (ret)
		_exit(1);
	report.kind = IN_ENDED;
	report.err.text[0] = 0;
	restore_wait(&session, NULL, &report.code, &report.err);
	restore_session_done(&session);
	say(fd, &report);
	_exit(0);
}

int in_start_restorer(struct in *in)
{
	int report[2], order[2];
	if (pipe2(report, O_CLOEXEC))
		return dp_fail_errno(&in->err, errno, "pipe");
	if (pipe2(order, O_CLOEXEC)) {
		close(report[0]);
		close(report[1]);
		return dp_fail_errno(&in->err, errno, "pipe");
	}
	in->restorer = fork();
	if (in->restorer == 0) {
		const int keep[] = { report[1], order[0] };
		close_all_but(keep, ARRAY_LENGTH(keep)); /* whoever is at the other end of the rest must see the ferry's end */
		restorer_main(in, order[0], report[1]);
	}
	close(report[1]);
	close(order[0]);
	in->report_fd = report[0];
	in->order_fd = order[1];
	return in->restorer < 0 ? dp_fail_errno(&in->err, errno, "fork the restorer") : 0;
}

int in_restore(struct in *in, const char *uri)
{
	int ret = io_write_full(in->order_fd, uri, strlen(uri) + 1);
	return ret ? dp_fail(&in->err, ECHILD, "the process that restores is gone") : 0;
}
