/* checkpoint: a running process tree becomes a snapshot in a pool. And criu-hook, which is no command for people: CRIU calls it
 * to ask whether the snapshot is safe (checkpoint/criu_dump.h). */
#include "checkpoint/checkpoint.h"

#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <string.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/container_line.h"
#include "migrate/offer.h"

static const char usage[] =
	"Usage: distri-proc checkpoint --pid N|--container ID [options] POOL/REPO:TAG\n"
	"\n"
	"Stores a process and all its descendants in a pool, then ends them; or lets them go on, with --leave-running.\n"
	"Whatever fails, the processes run on unharmed, and no half snapshot is seen.\n"
	"\n"
	"  --pid N            the tree's first process\n"
	"  --container ID     a container instead; its runtime does what there is to do besides the pages\n"
	"  --runtime PATH     that runtime (default: as /etc/distri-proc/runtime.conf says, or runc)\n"
	"  --runtime-root DIR where the runtime keeps its containers, if not in its usual place\n"
	"  --leave-running    let the tree go on afterwards\n"
	"  --force            replace a snapshot of this name\n"
	"  --root DIRECTORY   registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n"
	"  --precopy          send the pages while the tree runs, so that it stands still for the last few only\n"
	"  --precopy-pause D  stop sending ahead when the rest takes no longer than this (default 30ms)\n"
	"  --precopy-rate N   send ahead at most so many bytes a second, such as 100M\n"
	"  --compress MODE    pages on the wire: auto (default: packed where that is faster), off, lz4\n"
	"  --json             one object, or the error as one\n"
	"  -v, --verbose      a detailed log of CRIU, if it fails\n"
	"\n"
	"CRIU's options, under CRIU's names:\n"
	"  --tcp-established --tcp-close --shell-job --ext-unix-sk --file-locks --link-remap --evasive-devices --force-irmap\n"
	"  --skip-in-flight --external RES --manage-cgroups[=MODE] --cgroup-root PATH --network-lock METHOD --freeze-cgroup PATH\n"
	"  --ghost-limit SIZE --enable-fs NAMES --ext-mount-map KEY:VALUE --skip-mnt PATH --empty-ns net --file-validation METHOD\n"
	"  --libdir PATH --timeout SECONDS\n"
	"  --criu-option=OPT  any other, such as --criu-option=--cpu-cap=ins\n";

enum {
	OPTION_PID = 256,
	OPTION_LEAVE_RUNNING,
	OPTION_FORCE,
	OPTION_ROOT,
	OPTION_JSON,
	OPTION_COMPRESS,
	OPTION_CONTAINER,
	OPTION_RUNTIME,
	OPTION_RUNTIME_ROOT,
	OPTION_PRECOPY,
	OPTION_PRECOPY_PAUSE,
	OPTION_PRECOPY_RATE,
	OPTION_CRIU_OPTION,
	OPTION_CRIU
};

static const struct option options[] = {
	{"pid", required_argument, NULL, OPTION_PID},
	{"leave-running", no_argument, NULL, OPTION_LEAVE_RUNNING},
	{"force", no_argument, NULL, OPTION_FORCE},
	{"root", required_argument, NULL, OPTION_ROOT},
	{"compress", required_argument, NULL, OPTION_COMPRESS},
	{"container", required_argument, NULL, OPTION_CONTAINER},
	{"runtime", required_argument, NULL, OPTION_RUNTIME},
	{"runtime-root", required_argument, NULL, OPTION_RUNTIME_ROOT},
	{"precopy", no_argument, NULL, OPTION_PRECOPY},
	{"precopy-pause", required_argument, NULL, OPTION_PRECOPY_PAUSE},
	{"precopy-rate", required_argument, NULL, OPTION_PRECOPY_RATE},
	{"json", no_argument, NULL, OPTION_JSON},
	{"verbose", no_argument, NULL, 'v'},
	{"help", no_argument, NULL, 'h'},
	{"criu-option", required_argument, NULL, OPTION_CRIU_OPTION},
	{"tcp-established", no_argument, NULL, OPTION_CRIU},
	{"tcp-close", no_argument, NULL, OPTION_CRIU},
	{"shell-job", no_argument, NULL, OPTION_CRIU},
	{"ext-unix-sk", no_argument, NULL, OPTION_CRIU},
	{"file-locks", no_argument, NULL, OPTION_CRIU},
	{"link-remap", no_argument, NULL, OPTION_CRIU},
	{"evasive-devices", no_argument, NULL, OPTION_CRIU},
	{"force-irmap", no_argument, NULL, OPTION_CRIU},
	{"skip-in-flight", no_argument, NULL, OPTION_CRIU},
	{"external", required_argument, NULL, OPTION_CRIU},
	{"manage-cgroups", optional_argument, NULL, OPTION_CRIU},
	{"cgroup-root", required_argument, NULL, OPTION_CRIU},
	{"network-lock", required_argument, NULL, OPTION_CRIU},
	{"freeze-cgroup", required_argument, NULL, OPTION_CRIU},
	{"ghost-limit", required_argument, NULL, OPTION_CRIU},
	{"enable-fs", required_argument, NULL, OPTION_CRIU},
	{"ext-mount-map", required_argument, NULL, OPTION_CRIU},
	{"skip-mnt", required_argument, NULL, OPTION_CRIU},
	{"empty-ns", required_argument, NULL, OPTION_CRIU},
	{"file-validation", required_argument, NULL, OPTION_CRIU},
	{"libdir", required_argument, NULL, OPTION_CRIU},
	{"timeout", required_argument, NULL, OPTION_CRIU},
	{0},
};

#define CRIU_ARGUMENTS_LIMIT 200

struct settings {
	struct checkpoint_options checkpoint;
	struct endpoint endpoint;
	char *criu_arguments[CRIU_ARGUMENTS_LIMIT]; /* owned */
	struct container_line container;
	struct precopy_limits precopy_limits;
	bool precopy, json, help;
};

static int add_criu_argument(struct settings *settings, const char *name, const char *value)
{
	size_t *count = &settings->checkpoint.criu_argument_count;
	if (*count == CRIU_ARGUMENTS_LIMIT)
		return -E2BIG;
	char *argument = value ? format_text("--%s=%s", name, value) : format_text("--%s", name);
	if (!argument)
		return -ENOMEM;
	settings->criu_arguments[(*count)++] = argument;
	return 0;
}

static int read_pid(const char *text, pid_t *pid)
{
	char *end;
	errno = 0;
	long number = strtol(text, &end, 10);
	if (errno || *end || end == text || number <= 0 || number > 1 << 22)
		return -EINVAL;
	*pid = (pid_t)number;
	return 0;
}

/* 0, or the exit code after a message. */
static int read_precopy_option(struct settings *settings, char **argv, int option)
{
	settings->precopy = true;
	if (option == OPTION_PRECOPY_PAUSE && (parse_duration(optarg, &settings->precopy_limits.pause_ns) < 0 ||
					       !settings->precopy_limits.pause_ns))
		return cli_usage_error(argv[0], "--precopy-pause wants a time, such as 30ms, not '%s'", optarg);
	if (option == OPTION_PRECOPY_RATE && (parse_size(optarg, &settings->precopy_limits.rate_bytes) < 0 ||
					      !settings->precopy_limits.rate_bytes))
		return cli_usage_error(argv[0], "--precopy-rate wants bytes a second, such as 100M, not '%s'", optarg);
	return 0;
}

/* 0, or the exit code after a message. */
static int read_option(struct settings *settings, char **argv, int option, int index)
{
	struct dp_err err;
	int rc = 0;
	switch (option) {
	case OPTION_PID:
		if (read_pid(optarg, &settings->checkpoint.pid) < 0)
			return cli_usage_error(argv[0], "--pid wants the number of a process, not '%s'", optarg);
		break;
	case OPTION_CONTAINER:
		settings->container.container = optarg;
		break;
	case OPTION_RUNTIME:
		settings->container.runtime = optarg;
		break;
	case OPTION_RUNTIME_ROOT:
		settings->container.root = optarg;
		break;
	case OPTION_LEAVE_RUNNING:
		settings->checkpoint.leave_running = true;
		break;
	case OPTION_FORCE:
		settings->checkpoint.replace = true;
		break;
	case OPTION_ROOT:
		settings->checkpoint.registry = optarg;
		break;
	case OPTION_COMPRESS:
		if (client_compress_parse(optarg, &settings->checkpoint.compress) < 0)
			return cli_usage_error(argv[0], "--compress takes auto, off or lz4, not '%s'", optarg);
		break;
	case OPTION_PRECOPY:
	case OPTION_PRECOPY_PAUSE:
	case OPTION_PRECOPY_RATE:
		return read_precopy_option(settings, argv, option);
	case OPTION_JSON:
		settings->json = true;
		break;
	case 'v':
		settings->checkpoint.verbose = true;
		break;
	case 'h':
		settings->help = true;
		break;
	case OPTION_CRIU_OPTION:
		if (checkpoint_check_option(optarg, &err) < 0)
			return cli_usage_error(argv[0], "%s", err.text);
		/* one dash or two: what follows the first two characters is what add_criu_argument puts behind "--" */
		rc = strncmp(optarg, "--", 2) == 0 ? add_criu_argument(settings, optarg + 2, NULL) : -EINVAL;
		if (rc == -EINVAL)
			return cli_usage_error(
				argv[0], "write CRIU's option in its long form: --criu-option=--name[=value], not '%s'", optarg);
		break;
	case OPTION_CRIU:
		rc = add_criu_argument(settings, options[index].name, optarg);
		break;
	default:
		return cli_usage_hint(argv[0]);
	}
	return rc < 0 ? cli_usage_error(argv[0], "too many options for CRIU") : 0;
}

static int read_options(struct settings *settings, int argc, char **argv)
{
	int option, index = 0, code = 0;
	while (code == 0 && (option = getopt_long(argc, argv, "vh", options, &index)) != -1)
		code = read_option(settings, argv, option, index);
	if (code || settings->help)
		return code;
	if (optind == argc)
		return cli_usage_error(argv[0], "where to? name a pool and a snapshot, such as dir:/var/lib/pool#redis:warm");
	if (optind + 1 < argc)
		return cli_usage_error(argv[0], "'%s' is one argument too many", argv[optind + 1]);
	if ((settings->checkpoint.pid == 0) == !settings->container.container)
		return cli_usage_error(argv[0], "which process? Say one of --pid N and --container ID");
	if (!settings->container.container && (settings->container.runtime || settings->container.root))
		return cli_usage_error(argv[0], "--runtime and --runtime-root go with --container");
	return 0;
}

static struct json_object *precopy_json(const struct precopy_totals *ahead)
{
	struct json_object *object = json_object_new_object(), *rounds = json_object_new_array();
	for (unsigned i = 0; i < ahead->rounds && i < PRECOPY_ROUNDS; i++)
		json_object_array_add(rounds, json_object_new_int64((int64_t)ahead->round_pages[i]));
	json_object_object_add(object, "rounds", rounds);
	json_object_object_add(object, "ahead_pages", json_object_new_int64((int64_t)ahead->ahead_pages));
	json_object_object_add(object, "frozen_pages", json_object_new_int64((int64_t)ahead->frozen_pages));
	json_object_object_add(object, "tracked", json_object_new_int64((int64_t)ahead->tracked));
	json_object_object_add(object, "untracked", json_object_new_int64((int64_t)ahead->untracked));
	if (ahead->why[0])
		json_object_object_add(object, "why", json_object_new_string(ahead->why));
	return object;
}

static void print_json(const struct settings *settings, const struct checkpoint_result *result)
{
	struct json_object *object = json_object_new_object();
	const struct {
		const char *name;
		uint64_t number;
	} numbers[] = {
		{"tasks", result->tasks},
		{"pages", result->pages},
		{"stored_pages", result->stored_pages},
		{"inherited_pages", result->inherited_pages},
		{"eager_pages", result->eager_pages},
		{"zero_pages", result->zero_pages},
		{"page_bytes", PAGE_BYTES},
		{"skeleton_bytes", result->skeleton_bytes},
		{"frozen_ns", result->frozen_ns},
		{"total_ns", result->total_ns},
	};
	json_object_object_add(object, "schema", json_object_new_string("distriproc.checkpoint/1"));
	json_object_object_add(object, "snapshot", json_object_new_string(settings->endpoint.name));
	json_object_object_add(object, "pid", json_object_new_int(settings->checkpoint.pid));
	json_object_object_add(object, "left_running", json_object_new_boolean(settings->checkpoint.leave_running));
	for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++)
		json_object_object_add(object, numbers[i].name, json_object_new_int64((int64_t)numbers[i].number));
	if (settings->precopy)
		json_object_object_add(object, "precopy", precopy_json(&result->ahead));
	if (result->instance[0])
		json_object_object_add(object, "instance", json_object_new_string(result->instance));
	cli_print_json(object);
}

static void print_text(const struct settings *settings, const struct checkpoint_result *result)
{
	char bytes[32], zero_bytes[32], shared[64] = "";
	format_size(result->pages * PAGE_BYTES, bytes, sizeof(bytes));
	format_size(result->zero_pages * PAGE_BYTES, zero_bytes, sizeof(zero_bytes));
	if (result->inherited_pages)
		snprintf(shared, sizeof(shared), ", %llu shared with its base", (unsigned long long)result->inherited_pages);
	printf("checkpointed %s: %llu task%s, %llu pages (%s; %s zero elided%s), frozen %.2f s, %.2f s in all\n",
	       settings->endpoint.name, (unsigned long long)result->tasks, result->tasks == 1 ? "" : "s",
	       (unsigned long long)result->pages, bytes, zero_bytes, shared, (double)result->frozen_ns / 1e9,
	       (double)result->total_ns / 1e9);
	if (settings->precopy && result->ahead.rounds)
		printf("  %u rounds sent %llu pages ahead, %llu were left\n", result->ahead.rounds,
		       (unsigned long long)result->ahead.ahead_pages, (unsigned long long)result->ahead.frozen_pages);
	if (settings->precopy && result->ahead.why[0])
		printf("  not sent ahead: %s\n", result->ahead.why);
}

static int run(struct settings *settings, const char *uri)
{
	struct dp_err err = {""};
	struct checkpoint_result result;
	int rc = endpoint_parse(&settings->endpoint, uri, &err);
	if (rc == 0 && settings->endpoint.name[0] == 0)
		rc = dp_fail(&err, EINVAL, "%s names a pool but no snapshot: add #REPO:TAG (or /REPO:TAG behind dp://HOST:PORT)",
			     uri);
	if (rc == 0 && settings->container.container)
		rc = container_line_pid(&settings->container, &settings->checkpoint.pid, &err);
	if (rc == 0 && settings->precopy)
		rc = precopy_open(&settings->checkpoint.precopy, settings->checkpoint.pid, &err);
	if (rc == 0)
		rc = settings->container.container
			     ? container_line_checkpoint(&settings->container, &settings->checkpoint, &result, &err)
			     : checkpoint_run(&settings->checkpoint, &result, &err);
	precopy_close(settings->checkpoint.precopy);
	if (rc < 0)
		return cli_print_error(rc, &err, settings->json);
	if (settings->json)
		print_json(settings, &result);
	else
		print_text(settings, &result);
	return EXIT_OK;
}

int cmd_checkpoint(int argc, char **argv)
{
	struct settings settings = {0};
	settings.checkpoint.endpoint = &settings.endpoint;
	settings.checkpoint.criu_arguments = settings.criu_arguments;
	settings.checkpoint.precopy_limits = &settings.precopy_limits;
	settings.checkpoint.progress = isatty(2);
	int code = read_options(&settings, argc, argv);
	if (code == 0 && settings.help)
		printf("%s", usage);
	else if (code == 0)
		code = run(&settings, argv[optind]);
	for (size_t i = 0; i < settings.checkpoint.criu_argument_count; i++)
		free(settings.criu_arguments[i]);
	return code;
}

int cmd_criu_hook(int argc, char **argv)
{
	return offer_hook();
}
