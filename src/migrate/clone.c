#include "migrate/clone.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/base.h"
#include "migrate/lines.h"
#include "restore/restore.h"
#include "transport/endpoint.h"

#define ARGUMENTS_LIMIT 56
#define CONNECT_MS 10000
#define ANSWER_MS 60000

/* A container's mounts from outside are found by their paths again; its control group is the original's, so the clone stays where
 * we are. */
static const char *const container_arguments[] = { "--external", "mnt[]:sm", "--manage-cgroups=ignore" };

struct arguments {
	char *list[ARGUMENTS_LIMIT + 8];
	size_t count;
};

static void add(struct arguments *arguments, const char *argument)
{
	arguments->list[arguments->count++] = (char *)(uintptr_t)argument;
}

static void add_common(struct arguments *arguments, const struct clone_source *source, char *const *further, size_t count)
{
	for (size_t i = 0; source->contained && i < ARRAY_LENGTH(container_arguments); i++)
		add(arguments, container_arguments[i]);
	if (source->own_network) {
		add(arguments, "--empty-ns");
		add(arguments, "net");
	}
	for (size_t i = 0; i < count; i++)
		add(arguments, further[i]);
}

/* ---- the original's side ---- */

int clone_offer(const struct clone_source *source, const struct offer_options *common, struct offer **offer,
		struct offer_facts *facts, struct dp_err *err)
{
	struct arguments arguments = { .count = 0 };
	struct offer_options options = *common;
	if (common->criu_argument_count >= ARGUMENTS_LIMIT)
		return dp_fail(err, E2BIG, "too many options for CRIU");
	add_common(&arguments, source, common->criu_arguments, common->criu_argument_count);
	options.pid = source->pid;
	options.copy = options.tcp_close = true;
	options.criu_arguments = arguments.list;
	options.criu_argument_count = arguments.count;
	return offer_make(offer, &options, facts, err);
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

/* CRIU leaves it down in a namespace that it makes empty; without it a clone cannot even be asked from inside. */
static void raise_loopback(pid_t pid)
{
	pid_t child = fork();
	if (child == 0) {
		char path[64];
		struct ifreq request = { .ifr_name = "lo" };
		snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
		cleanup_fd int namespace_fd = open(path, O_RDONLY | O_CLOEXEC);
		if (namespace_fd < 0 || setns(namespace_fd, CLONE_NEWNET))
			_exit(1);
		cleanup_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
			_exit(1);
		request.ifr_flags |= IFF_UP;
		_exit(ioctl(fd, SIOCSIFFLAGS, &request) ? 1 : 0);
	}
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		continue;
}

static int restore_clone(const struct clone_options *options, const char *uri, const struct clone_source *source,
			 struct clone_result *result, struct dp_err *err)
{
	struct endpoint endpoint;
	struct restore_session session;
	struct arguments arguments = { .count = 0 };
	add(&arguments, "--tcp-close");
	if (source->contained) {
		add(&arguments, "--root");
		add(&arguments, source->root);
	}
	add_common(&arguments, source, options->criu_arguments, options->criu_argument_count);
	const struct restore_options restore = { .root = instance_root(options->registry),
						 .endpoint = &endpoint,
						 .name = options->name,
						 .network = options->host_network ? NULL : RESTORE_NETWORK_OWN,
						 .private_files = !options->share_files,
						 .migrate = options->full,
						 .record = RECORD_NEVER,
						 .verbose = options->verbose,
						 .criu_arguments = arguments.list,
						 .criu_argument_count = arguments.count };
	int rc = endpoint_parse(&endpoint, uri, err);
	if (rc == 0)
		rc = restore_start(&restore, &session, err);
	if (rc == 0) {
		result->instance = session.instance;
		restore_session_done(&session);
		if (source->own_network)
			raise_loopback(result->instance.root.pid);
	}
	return rc;
}

static int clone_here(const struct clone_options *options, struct clone_result *result, struct dp_err *err)
{
	char listen[1100], name[64];
	struct offer *offer = NULL;
	struct clone_source source;
	int rc = clone_source_look(options->pid, options->share_files, &source, err);
	if (rc == 0)
		rc = choose_place(options->registry, listen, sizeof(listen), err);
	if (rc < 0)
		return rc;
	snprintf(name, sizeof(name), "clone:%d", options->pid);
	const struct offer_options offered = { .listen = listen,
					       .name = name,
					       .registry = options->registry,
					       .verbose = options->verbose,
					       .criu_arguments = options->criu_arguments,
					       .criu_argument_count = options->criu_argument_count };
	rc = clone_offer(&source, &offered, &offer, &result->offer, err);
	if (rc == 0)
		rc = restore_clone(options, result->offer.uri, &source, result, err);
	if (rc == 0)
		rc = offer_detach(offer, err);
	offer_free(offer); /* where anything failed, the shadows go here */
	return rc;
}

/* ---- of another host ---- */

/* One answer of its agent. */
static int hear(struct lines *agent, const char *expected, json_object **answer, struct dp_err *err)
{
	int rc = lines_receive(agent, answer, ANSWER_MS);
	const char *why = stream_why(agent->stream);
	if (rc)
		return dp_fail(err, rc == -EAGAIN ? ETIMEDOUT : -rc, "its agent does not answer: %s",
			       *why ? why : strerror(rc == -EAGAIN ? ETIMEDOUT : -rc));
	const char *event = line_text(*answer, "event"), *text = line_text(*answer, "text");
	if (event && !strcmp(event, expected))
		return 0;
	return dp_fail(err, (int)DP_MIN(DP_MAX(line_number(*answer, "code"), 1), 4095), "%s", text ? text : "its agent refuses");
}

static int take_offer(json_object *answer, struct clone_source *source, struct clone_result *result, struct dp_err *err)
{
	const char *uri = line_text(answer, "uri"), *root = line_text(answer, "root");
	*source = (struct clone_source){ .pid = (pid_t)line_number(answer, "pid"), .contained = root,
					 .own_network = root && line_flag(answer, "own_network") };
	if (!uri || strlen(uri) >= sizeof(result->offer.uri) || (root && (*root != '/' || strlen(root) >= sizeof(source->root))))
		return dp_fail(err, EBADMSG, "its agent offers nothing that could be restored");
	strcpy(result->offer.uri, uri);
	if (root)
		strcpy(source->root, root);
	result->source_pid = source->pid;
	result->offer.pages = (uint64_t)line_number(answer, "pages");
	result->offer.stopped_ns = (uint64_t)line_number(answer, "stopped_ns");
	struct stat info;
	return root && stat(root, &info) ? dp_fail(err, ENOENT, "this host has no %s, the container's root file system: bring it here",
						   root) : 0;
}

static json_object *request_of(const struct clone_options *options)
{
	json_object *request = line_op("clone"), *criu = json_object_new_array();
	for (size_t i = 0; i < options->criu_argument_count; i++)
		json_object_array_add(criu, json_object_new_string(options->criu_arguments[i]));
	line_add_text(request, "source", options->source);
	line_add_flag(request, "share_files", options->share_files);
	line_add_flag(request, "verbose", options->verbose);
	json_object_object_add(request, "criu", criu);
	return request;
}

static int clone_from(const struct clone_options *options, struct clone_result *result, struct dp_err *err)
{
	struct lines agent;
	struct stream *stream;
	struct clone_source source;
	json_object *answer = NULL, *last = NULL;
	int rc = stream_connect(&stream, options->from, CONNECT_MS, err);
	if (rc < 0)
		return rc;
	lines_init(&agent, stream);
	rc = lines_send(&agent, request_of(options), ANSWER_MS);
	rc = rc ? dp_fail_errno(err, -rc, "ask its agent") : hear(&agent, "offered", &answer, err);
	if (rc == 0)
		rc = take_offer(answer, &source, result, err);
	if (rc == 0)
		rc = restore_clone(options, result->offer.uri, &source, result, err);
	if (rc == 0 && (lines_send(&agent, line_op("detach"), ANSWER_MS) || hear(&agent, "detached", &last, err)))
		rc = dp_fail(err, ECONNRESET, "its agent was lost when the clone ran already: `distri-proc stop %s`", result->instance.id);
	json_object_put(answer);
	json_object_put(last);
	lines_done(&agent); /* where anything failed, the shadows there go with the connection */
	return rc;
}

int clone_make(const struct clone_options *options, struct clone_result *result, struct dp_err *err)
{
	uint64_t started_ns = clock_now_ns();
	if (options->criu_argument_count >= ARGUMENTS_LIMIT)
		return dp_fail(err, E2BIG, "too many options for CRIU");
	result->source_pid = options->pid;
	int rc = (options->from ? clone_from : clone_here)(options, result, err);
	result->total_ns = clock_now_ns() - started_ns;
	if (rc < 0 && options->from)
		dp_err_doing(err, "clone of %s on %s", options->source, options->from->host);
	else if (rc < 0)
		dp_err_doing(err, "clone of process %d", options->pid);
	return rc;
}
