#include "migrate/clone.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/base.h"
#include "restore/restore.h"
#include "sys/proc.h"
#include "transport/endpoint.h"

#define ARGUMENTS_LIMIT 60

/* ---- what both would write to ---- */

/* Memory that is shared by number (System V) is neither a file nor the tree's own. */
static int check_area(void *context, const struct proc_area *area)
{
	(void)context;
	return area->shared && area->write && !strncmp(area->name, "/SYSV", 5);
}

static int check_process(pid_t pid, struct dp_err *err)
{
	return proc_each_area(pid, check_area, NULL) > 0 ?
		       dp_fail(err, EOPNOTSUPP, "process %d shares memory by number (shmget), and the clone would write to it too: --files "
			       "shared, if that does no harm", pid) :
		       0;
}

static int check_files(pid_t root, struct dp_err *err)
{
	cleanup_free pid_t *pids = NULL;
	ssize_t count = proc_tree(root, &pids);
	int rc = count < 0 ? dp_fail_errno(err, (int)-count, "look at process %d", root) : 0;
	for (ssize_t i = 0; i < count && rc == 0; i++)
		rc = check_process(pids[i], err);
	return rc;
}

/* ---- the clone ---- */

/* A place for the offer's socket that only we can reach; it is removed by whoever listens there. */
static int choose_place(const char *registry, char *listen, size_t size, struct dp_err *err)
{
	uint64_t number;
	const char *root = instance_root(registry);
	if (mkdir(root, 0700) < 0 && errno != EEXIST)
		return dp_fail_errno(err, errno, "make %s", root);
	if (getrandom(&number, sizeof(number), 0) != (ssize_t)sizeof(number))
		return dp_fail_errno(err, errno, "choose a name");
	snprintf(listen, size, "unix://%s/.clone-%llx.sock", root, (unsigned long long)number);
	return 0;
}

static int restore_clone(const struct clone_options *options, const char *uri, struct clone_result *result, struct dp_err *err)
{
	struct endpoint endpoint;
	struct restore_session session;
	char *arguments[ARGUMENTS_LIMIT] = { (char *)(uintptr_t)"--tcp-close" };
	for (size_t i = 0; i < options->criu_argument_count; i++)
		arguments[i + 1] = options->criu_arguments[i];
	const struct restore_options restore = { .root = instance_root(options->registry),
						 .endpoint = &endpoint,
						 .name = options->name,
						 .network = options->host_network ? NULL : RESTORE_NETWORK_OWN,
						 .private_files = !options->share_files,
						 .migrate = options->full,
						 .record = RECORD_NEVER,
						 .verbose = options->verbose,
						 .criu_arguments = arguments,
						 .criu_argument_count = options->criu_argument_count + 1 };
	int rc = endpoint_parse(&endpoint, uri, err);
	if (rc == 0)
		rc = restore_start(&restore, &session, err);
	if (rc == 0) {
		result->instance = session.instance;
		restore_session_done(&session);
	}
	return rc;
}

int clone_make(const struct clone_options *options, struct clone_result *result, struct dp_err *err)
{
	uint64_t started_ns = clock_now_ns();
	char listen[1100], name[64];
	struct offer *offer = NULL;
	if (options->criu_argument_count >= ARGUMENTS_LIMIT)
		return dp_fail(err, E2BIG, "too many options for CRIU");
	int rc = options->share_files ? 0 : check_files(options->pid, err);
	if (rc == 0)
		rc = choose_place(options->registry, listen, sizeof(listen), err);
	if (rc < 0)
		return rc;
	snprintf(name, sizeof(name), "clone:%d", options->pid);
	const struct offer_options offered = { .pid = options->pid,
					       .copy = true,
					       .tcp_close = true,
					       .listen = listen,
					       .name = name,
					       .registry = options->registry,
					       .verbose = options->verbose,
					       .criu_arguments = options->criu_arguments,
					       .criu_argument_count = options->criu_argument_count };
	rc = offer_make(&offer, &offered, &result->offer, err);
	if (rc == 0)
		rc = restore_clone(options, result->offer.uri, result, err);
	if (rc == 0)
		rc = offer_detach(offer, err);
	offer_free(offer); /* where anything failed, the shadows go here */
	result->total_ns = clock_now_ns() - started_ns;
	if (rc < 0)
		dp_err_doing(err, "clone of process %d", options->pid);
	return rc;
}
