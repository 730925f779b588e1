/* clone: a second copy of a running process tree, to look at. */
#include "migrate/clone.h"

#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/container_line.h"
#include "instance/process.h"
#include "instance/stats.h"
#include "migrate/ferry.h"

static const char usage[] =
	"Usage: distri-proc clone --pid N|--container ID|--source [HOST:]NAME [options]\n"
	"\n"
	"Makes a second copy of a running process and all its descendants, to look at. The original stands still for some tens of\n"
	"milliseconds (the line says how long) and goes on. The copy has its memory of that instant: it comes when it is touched, from\n"
	"forks of the original that never run and end with the copy. It runs in namespaces of its own, without a network, its open TCP\n"
	"connections closed; nothing that it does reaches the original, its pool or its instance. `distri-proc stop` ends it.\n"
	"\n"
	"  --pid N             the original's first process\n"
	"  --container ID      the same as a container of runc's\n"
	"  --runtime PROGRAM, --runtime-root DIR   its runtime, and where that keeps its containers\n"
	"  --source NAME       the same as an instance's id or name, a container's id or a pid\n"
	"  --source HOST[:PORT]:NAME   one of another host, whose agent (default port 7410) gives you the right `clone`; the pages\n"
	"                      come from there\n"
	"  --dest localhost    where the clone is made: here\n"
	"  --name NAME         name of the clone (default: its id)\n"
	"  --memory lazy|full  pages come when touched (default), or all in the background from the start on\n"
	"  --network none|host a network namespace with nothing but a loopback (default), or the host's\n"
	"  --files own|shared  own: what the clone writes to files stays its own, in memory (default); shared: it writes to the\n"
	"                      original's, and takes the names of its sockets\n"
	"  --gdb               start gdb on the clone's first process; all memory is fetched before, unless --memory lazy is given\n"
	"  --shell-job         the original belongs to a terminal's session\n"
	"  --criu-option=OPT   any other option of CRIU, such as --criu-option=--ext-unix-sk\n"
	"  --root DIRECTORY    registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n"
	"  --json              one object, or the error as one\n"
	"  -v, --verbose       detailed logs of CRIU, if it fails\n";

#define ARGUMENTS 58
#define LOOK_MS 20

struct cloning {
	struct clone_options options;
	char *arguments[ARGUMENTS];
	const char *source;
	char from_uri[400];
	struct endpoint from;
	struct container_line container;
	bool gdb, lazy, json;
};

static int take_memory(struct cloning *cloning, const char *command)
{
	cloning->options.full = !strcmp(optarg, "full");
	cloning->lazy = !strcmp(optarg, "lazy");
	return cloning->options.full || cloning->lazy ? 0 : cli_usage_error(command, "--memory takes lazy or full");
}

static int take_criu_option(struct cloning *cloning, const char *command, char *option)
{
	return cli_criu_option(command, option, cloning->arguments, &cloning->options.criu_argument_count, ARGUMENTS);
}

/* Of two words the second one is the default. */
static int take_choice(const char *command, const char *option, const char *yes, const char *no, bool *result)
{
	*result = !strcmp(optarg, yes);
	return *result || !strcmp(optarg, no) ? 0 : cli_usage_error(command, "--%s takes %s or %s", option, no, yes);
}

static int take_option(struct cloning *cloning, char **argv, int option)
{
	struct clone_options *options = &cloning->options;
	char *end;
	switch (option) {
	case 'p':
		options->pid = (pid_t)strtol(optarg, &end, 10);
		return *end || options->pid <= 0 ? cli_usage_error(argv[0], "'%s' is no process id", optarg) : 0;
	case 'S':
		cloning->source = optarg;
		return 0;
	case 'C':
		cloning->container.container = optarg;
		return 0;
	case 'R':
		cloning->container.runtime = optarg;
		return 0;
	case 'O':
		cloning->container.root = optarg;
		return 0;
	case 'd':
		if (strcmp(optarg, "localhost"))
			return cli_usage_error(argv[0], "a clone is made where this command runs: --dest localhost");
		return 0;
	case 'n':
		options->name = optarg;
		return 0;
	case 'm':
		return take_memory(cloning, argv[0]);
	case 'w':
		return take_choice(argv[0], "network", "host", "none", &options->host_network);
	case 'f':
		return take_choice(argv[0], "files", "shared", "own", &options->share_files);
	case 'g':
		cloning->gdb = true;
		return 0;
	case 's':
		return take_criu_option(cloning, argv[0], (char *)(uintptr_t)"--shell-job");
	case 'o':
		return take_criu_option(cloning, argv[0], optarg);
	case 'r':
		options->registry = optarg;
		return 0;
	case 'j':
		cloning->json = true;
		return 0;
	case 'v':
		options->verbose = true;
		return 0;
	case 'h':
		fputs(usage, stdout);
		return -1;
	default:
		return cli_usage_hint(argv[0]);
	}
}

static int parse_options(struct cloning *cloning, int argc, char **argv)
{
	static const struct option list[] = {
		{ "pid", required_argument, NULL, 'p' },     { "source", required_argument, NULL, 'S' },
		{ "container", required_argument, NULL, 'C' }, { "runtime", required_argument, NULL, 'R' },
		{ "runtime-root", required_argument, NULL, 'O' },
		{ "dest", required_argument, NULL, 'd' },    { "name", required_argument, NULL, 'n' },
		{ "memory", required_argument, NULL, 'm' },  { "network", required_argument, NULL, 'w' },
		{ "files", required_argument, NULL, 'f' },   { "gdb", no_argument, NULL, 'g' },
		{ "shell-job", no_argument, NULL, 's' },     { "criu-option", required_argument, NULL, 'o' },
		{ "root", required_argument, NULL, 'r' },    { "json", no_argument, NULL, 'j' },
		{ "verbose", no_argument, NULL, 'v' },	     { "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	cloning->options.criu_arguments = cloning->arguments;
	for (int option; (option = getopt_long(argc, argv, "hv", list, NULL)) != -1;) {
		int code = take_option(cloning, argv, option);
		if (code)
			return code;
	}
	if (optind != argc)
		return cli_usage_error(argv[0], "unexpected argument '%s'", argv[optind]);
	if (!!cloning->options.pid + !!cloning->source + !!cloning->container.container != 1)
		return cli_usage_error(argv[0], "what is to be cloned? --pid N, --container ID or --source NAME, one of them");
	if (cloning->gdb && cloning->json)
		return cli_usage_error(argv[0], "--gdb does not go with --json");
	cloning->options.full = cloning->options.full || (cloning->gdb && !cloning->lazy);
	return 0;
}

/* HOST[:PORT]:NAME; a host may be [ADDRESS], or a URI of the transport. */
static int find_host(struct cloning *cloning, const char *colon, struct dp_err *err)
{
	int length = (int)(colon - cloning->source);
	bool uri = strstr(cloning->source, "://") && strstr(cloning->source, "://") < colon;
	if ((size_t)snprintf(cloning->from_uri, sizeof(cloning->from_uri), "%s%.*s", uri ? "" : "dps://", length, cloning->source) >=
	    sizeof(cloning->from_uri))
		return dp_fail(err, EINVAL, "--source is too long");
	const char *host = strstr(cloning->from_uri, "://") + 3, *bracket = strchr(host, ']');
	int rc = endpoint_parse(&cloning->from, cloning->from_uri, err);
	if (rc == 0 && cloning->from.kind != ENDPOINT_TCP)
		rc = dp_fail(err, EINVAL, "another host's agent is reached by HOST[:PORT] or dps://HOST:PORT");
	if (rc == 0 && !strchr(bracket ? bracket : host, ':'))
		cloning->from.port = AGENT_PORT;
	cloning->options.from = &cloning->from;
	cloning->options.source = colon + 1;
	return rc;
}

static int find_source(struct cloning *cloning, struct dp_err *err)
{
	const char *source = cloning->source, *colon = source ? strrchr(source, ':') : NULL;
	if (cloning->container.container)
		return container_line_pid(&cloning->container, &cloning->options.pid, err);
	if (!source)
		return 0;
	if (colon && colon[1] && strncmp(source, "localhost:", 10))
		return find_host(cloning, colon, err);
	return clone_source_find(instance_root(cloning->options.registry), colon ? colon + 1 : source, &cloning->options.pid,
				 err);
}

/* What gdb looks at must be there: it cannot read a page that is still to come. */
static int wait_until_local(const struct instance *instance, struct dp_err *err)
{
	char path[PATH_MAX];
	cleanup_fd int init = process_open(instance->init.pid, instance->init.start_time);
	struct pollfd ended = { .fd = init, .events = POLLIN };
	instance_path(instance, "stats", path, sizeof(path));
	while (!stats_pager_left(path))
		if (init < 0 || poll(&ended, 1, LOOK_MS) > 0)
			return dp_fail(err, ESRCH, "the clone ended before all of its memory was here");
	return 0;
}

static int start_gdb(const struct instance *instance, struct dp_err *err)
{
	char pid[32];
	snprintf(pid, sizeof(pid), "%d", instance->root.pid);
	fflush(stdout);
	execlp("gdb", "gdb", "-q", "-p", pid, (char *)NULL);
	return dp_fail(err, errno == ENOENT ? ENOPKG : errno, "gdb: %s; the clone runs: gdb -p %s", strerror(errno), pid);
}

static void print_json(const struct cloning *cloning, const struct clone_result *result)
{
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.clone/1"));
	json_object_object_add(object, "id", json_object_new_string(result->instance.id));
	json_object_object_add(object, "name", json_object_new_string(result->instance.name));
	json_object_object_add(object, "pid", json_object_new_int(result->instance.root.pid));
	json_object_object_add(object, "source_pid", json_object_new_int(result->source_pid));
	json_object_object_add(object, "pages", json_object_new_uint64(result->offer.pages));
	json_object_object_add(object, "stopped_ns", json_object_new_uint64(result->offer.stopped_ns));
	json_object_object_add(object, "known_tasks", json_object_new_uint64(result->offer.known_tasks));
	json_object_object_add(object, "total_ns", json_object_new_uint64(result->total_ns));
	cli_print_json(object);
}

static int clone_and_tell(struct cloning *cloning, struct dp_err *err)
{
	struct clone_result result;
	int rc = find_source(cloning, err);
	if (rc == 0)
		rc = clone_make(&cloning->options, &result, err);
	if (rc < 0)
		return rc;
	if (cloning->json)
		print_json(cloning, &result);
	else
		printf("cloned process %d as %s: pid %d, the original stood still for %.1f ms, %.0f ms in all\n", result.source_pid,
		       result.instance.name, result.instance.root.pid, (double)result.offer.stopped_ns / 1e6,
		       (double)result.total_ns / 1e6);
	if (cloning->gdb && cloning->options.full)
		rc = wait_until_local(&result.instance, err);
	return rc < 0 || !cloning->gdb ? rc : start_gdb(&result.instance, err);
}

int cmd_clone(int argc, char **argv)
{
	struct cloning cloning = { 0 };
	struct dp_err err;
	int code = parse_options(&cloning, argc, argv);
	if (code)
		return code < 0 ? EXIT_OK : code;
	log_setup(2, LOG_LEVEL_WARN, "clone");
	int rc = clone_and_tell(&cloning, &err);
	return rc < 0 ? cli_print_error(rc, &err, cloning.json) : EXIT_OK;
}
