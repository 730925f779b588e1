/* restore and run: a snapshot of a pool becomes a process tree again. `run` is restore in the foreground. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <json-c/json.h>
#include <limits.h>
#include <signal.h>
#include <string.h>

#include "base/base.h"
#include "checkpoint/commit.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/container_line.h"
#include "cli/commit_line.h"
#include "cli/run_many.h"
#include "restore/many.h"
#include "restore/restore.h"
#include "restore/spares.h"
#include "transport/endpoint.h"

static const char restore_usage[] =
	"Usage: distri-proc restore [options] POOL/REPO:TAG\n"
	"       distri-proc restore --last-commit|--latest [options] [POOL/]INSTANCE|REPO:TAG|NAME\n"
	"\n"
	"Brings a snapshot back to life; its memory stays in the pool and comes when touched.\n"
	"\n"
	"  --local-memory SHARE|SIZE  local memory the tree may keep, such as 50% or 512M (default: no limit); or `cgroup`: what its\n"
	"                             control group may have, also when that is changed\n"
	"  --container ID             restore it as this container; its runtime does what there is to do besides the pages\n"
	"  --bundle DIRECTORY         of the container (default: the current directory)\n"
	"  --runtime PATH             that runtime (default: as /etc/distri-proc/runtime.conf says, or runc)\n"
	"  --runtime-root DIRECTORY   where the runtime keeps its containers, if not in its usual place\n"
	"  --detach                   return when the tree runs (default)\n"
	"  --wait                     stay until the tree has ended; exit with its code\n";

static const char run_usage[] =
	"Usage: distri-proc run [options] POOL/REPO:TAG\n"
	"\n"
	"Restores a snapshot, stays in the foreground, passes signals on to it and exits with its code; it ends when this ends.\n"
	"\n"
	"  --local-memory SHARE|SIZE  local memory the tree may keep, such as 50% or 512M (default: no limit)\n";

static const char common_usage[] =
	"  --name NAME                name of the instance (default: its id), or of the group with --count\n"
	"  --count N                  N instances side by side, named NAME-1 to NAME-N (default: after the snapshot); returns when they\n"
	"                             run, or with --wait when all have ended\n"
	"  --parallel N               of them, so many are started at a time (default: as many as there are processors)\n"
	"  --all-or-none              if one of them fails, none is left\n"
	"  --network host|none|PATH   host: the network namespace of the caller (default); none: each has its own, with nothing but a\n"
	"                             loopback (default with --count and --pre-created): `distri-proc exec` reaches it; or a file's\n"
	"  --pre-created N            keep N spares ready, restored but for the first instruction: later starts of this snapshot with\n"
	"                             the same options take one; with --count 0 nothing else is done\n"
	"  --spares-for TIME          spares end when none was taken for so long (default 10m)\n"
	"  --compress auto|off|lz4    pages on the wire: packed where that is faster (default), never, always\n"
	"  --prefetch-policy NAME     what is fetched besides the page asked for: adaptive (default), none, sequential, stride,\n"
	"                             trend, learned, recorded\n"
	"  --prefetch WHEN            pages that an earlier run wanted come as a stream from the start on (stream, default), or are all\n"
	"                             there before the first instruction runs (working-set)\n"
	"  --record[=yes|no]          note the order in which pages are wanted and store it with the snapshot (default: where none is)\n"
	"  --propagate MODE           when changed pages go to the pool: evict (default), as they leave local memory; back:INTERVAL, such\n"
	"                             as back:5s: each interval the whole state is committed, as `distri-proc commit` does; through:\n"
	"                             before the process goes on (slow)\n"
	"  --last-commit              go on from the newest commit of an instance (id or name) or of a snapshot's instances; without\n"
	"                             POOL, the one that this host noted. TCP connections in it are closed, unless --tcp-established\n"
	"  --latest                   the same from the newest complete state of `distri-proc protect`, by its NAME too\n"
	"  --take-over                with one of these two: the instance may run still, on a machine that cannot be reached: it writes\n"
	"                             nothing to the pool from now on, and ends when it hears of it\n"
	"  --migrate[=RATE]           fetch all memory in the background, hot first, at most RATE bytes a second (such as 800M);\n"
	"                             without --local-memory the tree needs no pool any more when it is done\n"
	"  --stay-awake auto|never    the host's processors do not sleep while faults follow closely on each other (default)\n"
	"  --pool A,B                 the pools, where the last argument is REPO:TAG alone (default $DISTRI_PROC_POOL): more than one\n"
	"                             are a mirror, each with all pages: any but the last may be lost, and may come back\n"
	"  --spread                   the pools of --pool each have a part of the pages instead, by chunks of 2 MiB\n"
	"  --ack all|1                of a mirror: pages may leave local memory when all pools that are in have them (default), or one\n"
	"  --stall-timeout TIME       how long a page is waited for when the pool does not answer (default 30s)\n"
	"  --on-lost stop|kill|freeze then the tree is stopped until the pool is back (default), killed, or left waiting for it\n"
	"  --pid-namespace own|host   a PID namespace of its own (default), or the same pids on this host\n"
	"  --pidfile FILE             write the host's pid of the tree's first process there\n"
	"  --status-fd N              write one zero byte to this descriptor when the tree runs\n"
	"  --json                     one object, or the error as one\n"
	"  --root DIRECTORY           registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n"
	"  -v, --verbose              where the time goes; twice: detailed logs\n"
	"\n"
	"CRIU's options, under CRIU's names:\n"
	"  --tcp-established --tcp-close --shell-job --ext-unix-sk --file-locks --link-remap --evasive-devices\n"
	"  --skip-file-rwx-check --weak-sysctls --external RES --inherit-fd FD:RES --join-ns NS --manage-cgroups[=MODE]\n"
	"  --cgroup-root PATH --file-validation METHOD --network-lock METHOD --action-script FILE --ghost-limit SIZE\n"
	"  --lsm-profile TYPE:NAME --enable-fs NAMES --ext-mount-map KEY:VALUE --skip-mnt PATH\n"
	"  --empty-ns net --libdir PATH --mntns-compat-mode\n"
	"  --criu-option=OPTION       any other in its long form, such as --criu-option=--root=/srv/root\n";

enum {
	OPTION_LOCAL_MEMORY = 256,
	OPTION_DETACH,
	OPTION_WAIT,
	OPTION_PIDFILE,
	OPTION_STATUS_FD,
	OPTION_PID_NAMESPACE,
	OPTION_NAME,
	OPTION_JSON,
	OPTION_ROOT,
	OPTION_CRIU,
	OPTION_SHELL_JOB,
	OPTION_CRIU_ANY,
	OPTION_CONTAINER,
	OPTION_BUNDLE,
	OPTION_RUNTIME,
	OPTION_RUNTIME_ROOT,
	OPTION_COMPRESS,
	OPTION_PREFETCH_POLICY,
	OPTION_PREFETCH,
	OPTION_RECORD,
	OPTION_MIGRATE,
	OPTION_STAY_AWAKE,
	OPTION_PROPAGATE,
	OPTION_LAST_COMMIT,
	OPTION_LATEST,
	OPTION_TAKE_OVER,
	OPTION_STALL_TIMEOUT,
	OPTION_ON_LOST,
	OPTION_POOL,
	OPTION_ACK,
	OPTION_SPREAD,
	OPTION_COUNT,
	OPTION_PARALLEL,
	OPTION_ALL_OR_NONE,
	OPTION_NETWORK,
	OPTION_PRE_CREATED,
	OPTION_SPARES_FOR,
};

static const struct option options[] = {
	{ "local-memory", required_argument, NULL, OPTION_LOCAL_MEMORY },
	{ "detach", no_argument, NULL, OPTION_DETACH },
	{ "migrate", optional_argument, NULL, OPTION_MIGRATE },
	{ "wait", no_argument, NULL, OPTION_WAIT },
	{ "pidfile", required_argument, NULL, OPTION_PIDFILE },
	{ "status-fd", required_argument, NULL, OPTION_STATUS_FD },
	{ "pid-namespace", required_argument, NULL, OPTION_PID_NAMESPACE },
	{ "name", required_argument, NULL, OPTION_NAME },
	{ "compress", required_argument, NULL, OPTION_COMPRESS },
	{ "prefetch-policy", required_argument, NULL, OPTION_PREFETCH_POLICY },
	{ "prefetch", required_argument, NULL, OPTION_PREFETCH },
	{ "record", optional_argument, NULL, OPTION_RECORD },
	{ "stay-awake", required_argument, NULL, OPTION_STAY_AWAKE },
	{ "propagate", required_argument, NULL, OPTION_PROPAGATE },
	{ "last-commit", no_argument, NULL, OPTION_LAST_COMMIT },
	{ "latest", no_argument, NULL, OPTION_LATEST },
	{ "take-over", no_argument, NULL, OPTION_TAKE_OVER },
	{ "stall-timeout", required_argument, NULL, OPTION_STALL_TIMEOUT },
	{ "on-lost", required_argument, NULL, OPTION_ON_LOST },
	{ "pool", required_argument, NULL, OPTION_POOL },
	{ "ack", required_argument, NULL, OPTION_ACK },
	{ "spread", no_argument, NULL, OPTION_SPREAD },
	{ "count", required_argument, NULL, OPTION_COUNT },
	{ "parallel", required_argument, NULL, OPTION_PARALLEL },
	{ "all-or-none", no_argument, NULL, OPTION_ALL_OR_NONE },
	{ "network", required_argument, NULL, OPTION_NETWORK },
	{ "pre-created", required_argument, NULL, OPTION_PRE_CREATED },
	{ "spares-for", required_argument, NULL, OPTION_SPARES_FOR },
	{ "json", no_argument, NULL, OPTION_JSON },
	{ "root", required_argument, NULL, OPTION_ROOT },
	{ "verbose", no_argument, NULL, 'v' },
	{ "help", no_argument, NULL, 'h' },
	{ "shell-job", no_argument, NULL, OPTION_SHELL_JOB },
	{ "container", required_argument, NULL, OPTION_CONTAINER },
	{ "bundle", required_argument, NULL, OPTION_BUNDLE },
	{ "runtime", required_argument, NULL, OPTION_RUNTIME },
	{ "runtime-root", required_argument, NULL, OPTION_RUNTIME_ROOT },
	{ "tcp-established", no_argument, NULL, OPTION_CRIU },
	{ "tcp-close", no_argument, NULL, OPTION_CRIU },
	{ "ext-unix-sk", no_argument, NULL, OPTION_CRIU },
	{ "file-locks", no_argument, NULL, OPTION_CRIU },
	{ "link-remap", no_argument, NULL, OPTION_CRIU },
	{ "evasive-devices", no_argument, NULL, OPTION_CRIU },
	{ "skip-file-rwx-check", no_argument, NULL, OPTION_CRIU },
	{ "weak-sysctls", no_argument, NULL, OPTION_CRIU },
	{ "external", required_argument, NULL, OPTION_CRIU },
	{ "inherit-fd", required_argument, NULL, OPTION_CRIU },
	{ "join-ns", required_argument, NULL, OPTION_CRIU },
	{ "manage-cgroups", optional_argument, NULL, OPTION_CRIU },
	{ "cgroup-root", required_argument, NULL, OPTION_CRIU },
	{ "file-validation", required_argument, NULL, OPTION_CRIU },
	{ "network-lock", required_argument, NULL, OPTION_CRIU },
	{ "action-script", required_argument, NULL, OPTION_CRIU },
	{ "ghost-limit", required_argument, NULL, OPTION_CRIU },
	{ "lsm-profile", required_argument, NULL, OPTION_CRIU },
	{ "enable-fs", required_argument, NULL, OPTION_CRIU },
	{ "ext-mount-map", required_argument, NULL, OPTION_CRIU },
	{ "skip-mnt", required_argument, NULL, OPTION_CRIU },
	{ "empty-ns", required_argument, NULL, OPTION_CRIU },
	{ "libdir", required_argument, NULL, OPTION_CRIU },
	{ "mntns-compat-mode", no_argument, NULL, OPTION_CRIU },
	{ "criu-option", required_argument, NULL, OPTION_CRIU_ANY },
	{ 0 },
};

struct settings {
	const char *command; /* argv[0] */
	struct restore_options restore;
	struct container_line container;
	struct endpoint endpoint;
	const char *pool_list; /* --pool */
	struct endpoint pools[RESTORE_POOLS];
	char **criu_arguments;
	const char *pidfile;
	int status_fd;
	int count;          /* -1: one, without a number */
	unsigned parallel;
	int spares;         /* -1: as it is */
	uint64_t spares_for_ns;
	bool all_or_none, network_given;
	char network[PATH_MAX]; /* a file's */
	bool detach, wait, json, help, last_commit, latest, take_over;
};

static int add_criu_argument(struct settings *settings, const struct option *option)
{
	char *argument = optarg ? format_text("--%s=%s", option->name, optarg) : format_text("--%s", option->name);
	if (!argument)
		return cli_usage_error(settings->command, "out of memory");
	settings->criu_arguments[settings->restore.criu_argument_count++] = argument;
	return 0;
}

/* Options that are ours to give. */
static bool is_reserved(const char *option)
{
	static const char *const reserved[] = {
		"--images-dir", "--work-dir", "--lazy-pages", "--restore-detached", "--restore-sibling", "--pidfile",
		"--log-file", "--leave-stopped", "--exec-cmd", "--config", "--status-fd",
	};
	for (size_t i = 0; i < ARRAY_LENGTH(reserved); i++)
		if (!strncmp(option, reserved[i], strlen(reserved[i])))
			return true;
	return false;
}

static int add_any_criu_argument(struct settings *settings)
{
	if (strncmp(optarg, "--", 2) || !optarg[2] || is_reserved(optarg))
		return cli_usage_error(settings->command, "--criu-option takes a long option that is not ours to give, such as "
				       "--criu-option=--root=/srv/root; `%s` is not", optarg);
	char *argument = strdup(optarg);
	if (!argument)
		return cli_usage_error(settings->command, "out of memory");
	settings->criu_arguments[settings->restore.criu_argument_count++] = argument;
	return 0;
}

static int take_number(const struct settings *settings, const char *text, int *number)
{
	char *end;
	long value = strtol(text, &end, 10);
	if (end == text || *end || value < 0 || value > INT32_MAX || fcntl((int)value, F_GETFD) < 0)
		return cli_usage_error(settings->command, "--status-fd takes the number of an open descriptor");
	*number = (int)value;
	return 0;
}

static int take_count(const struct settings *settings, const char *option, unsigned least, unsigned most, int *count)
{
	char *end;
	long value = strtol(optarg, &end, 10);
	if (end == optarg || *end || value < (long)least || value > (long)most)
		return cli_usage_error(settings->command, "%s takes a number from %u to %u", option, least, most);
	*count = (int)value;
	return 0;
}

static int take_parallel(struct settings *settings)
{
	int parallel = 0;
	int code = take_count(settings, "--parallel", 1, 64, &parallel);
	settings->parallel = (unsigned)parallel;
	return code;
}

static int take_network(struct settings *settings)
{
	settings->network_given = true;
	settings->restore.network = NULL;
	if (!strcmp(optarg, "host"))
		return 0;
	if (!strcmp(optarg, RESTORE_NETWORK_OWN)) {
		settings->restore.network = RESTORE_NETWORK_OWN;
		return 0;
	}
	if (!realpath(optarg, settings->network))
		return cli_usage_error(settings->command,
				       "--network takes host, none, or the file of a network namespace such as /run/netns/blue: %s: %s",
				       optarg, strerror(errno));
	settings->restore.network = settings->network;
	return 0;
}

static int take_spares_for(struct settings *settings)
{
	uint64_t *lifetime_ns = &settings->spares_for_ns;
	if (parse_duration(optarg, lifetime_ns) || *lifetime_ns < 1000000000u || *lifetime_ns > UINT64_C(86400000000000))
		return cli_usage_error(settings->command, "--spares-for takes a time from 1s to 24h, such as 10m");
	return 0;
}

static int take_policy(struct settings *settings)
{
	int policy = prefetch_policy_find(optarg);
	if (policy < 0)
		return cli_usage_error(settings->command,
				       "--prefetch-policy takes adaptive, none, sequential, stride, trend, learned or recorded");
	settings->restore.prefetch_policy = (enum prefetch_policy)policy;
	return 0;
}

static int take_stall_timeout(struct settings *settings)
{
	uint64_t *timeout_ns = &settings->restore.stall_timeout_ns;
	if (parse_duration(optarg, timeout_ns) || *timeout_ns < 100000000u || *timeout_ns > UINT64_C(86400000000000))
		return cli_usage_error(settings->command, "--stall-timeout takes a time from 100ms to 24h, such as 30s");
	return 0;
}

static int take_on_lost(struct settings *settings)
{
	static const char *const names[] = { [ON_LOST_STOP] = "stop", [ON_LOST_KILL] = "kill", [ON_LOST_FREEZE] = "freeze" };
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		if (!strcmp(optarg, names[i])) {
			settings->restore.on_lost = (enum pager_on_lost)i;
			return 0;
		}
	return cli_usage_error(settings->command, "--on-lost takes stop, kill or freeze");
}

static int take_prefetch(struct settings *settings)
{
	bool working_set = !strcmp(optarg, "working-set");
	if (!working_set && strcmp(optarg, "stream"))
		return cli_usage_error(settings->command, "--prefetch takes stream or working-set");
	settings->restore.working_set = working_set;
	return 0;
}

static int take_propagate(struct settings *settings)
{
	settings->restore.commit_interval_ns = 0;
	settings->restore.through = !strcmp(optarg, "through");
	if (settings->restore.through || !strcmp(optarg, "evict"))
		return 0;
	if (strncmp(optarg, "back:", 5))
		return cli_usage_error(settings->command, "--propagate takes evict, back:INTERVAL, such as back:5s, or through");
	return commit_line_interval(settings->command, "--propagate back:", optarg + 5, &settings->restore.commit_interval_ns);
}

static int take_container(struct container_line *line, int value)
{
	const char **to = value == OPTION_CONTAINER ? &line->container
			  : value == OPTION_BUNDLE  ? &line->bundle
			  : value == OPTION_RUNTIME ? &line->runtime
						    : &line->root;
	*to = optarg;
	return 0;
}

static int take_option(struct settings *settings, int value, const struct option *option)
{
	struct restore_options *restore = &settings->restore;
	switch (value) {
	case OPTION_LOCAL_MEMORY: restore->local_memory = optarg; return 0;
	case OPTION_DETACH: settings->detach = true; return 0;
	case OPTION_PROPAGATE: return take_propagate(settings);
	case OPTION_LAST_COMMIT: settings->last_commit = true; return 0;
	case OPTION_LATEST: settings->latest = true; return 0;
	case OPTION_TAKE_OVER: settings->take_over = true; return 0;
	case OPTION_WAIT: settings->wait = true; return 0;
	case OPTION_PIDFILE: settings->pidfile = optarg; return 0;
	case OPTION_STATUS_FD: return take_number(settings, optarg, &settings->status_fd);
	case OPTION_NAME: restore->name = optarg; return 0;
	case OPTION_JSON: settings->json = true; return 0;
	case OPTION_ROOT: restore->root = instance_root(optarg); return 0;
	case 'v': restore->verbose++; return 0;
	case 'h': settings->help = true; return 0;
	case OPTION_PID_NAMESPACE:
		restore->host_pid_namespace = !strcmp(optarg, "host");
		if (restore->host_pid_namespace || !strcmp(optarg, "own"))
			return 0;
		return cli_usage_error(settings->command, "--pid-namespace takes own or host");
	case OPTION_COMPRESS:
		if (client_compress_parse(optarg, &restore->compress) == 0)
			return 0;
		return cli_usage_error(settings->command, "--compress takes auto, off or lz4");
	case OPTION_PREFETCH_POLICY: return take_policy(settings);
	case OPTION_PREFETCH: return take_prefetch(settings);
	case OPTION_STALL_TIMEOUT: return take_stall_timeout(settings);
	case OPTION_ON_LOST: return take_on_lost(settings);
	case OPTION_POOL: settings->pool_list = optarg; return 0;
	case OPTION_SPREAD: restore->spread = true; return 0;
	case OPTION_CONTAINER:
	case OPTION_BUNDLE:
	case OPTION_RUNTIME:
	case OPTION_RUNTIME_ROOT: return take_container(&settings->container, value);
	case OPTION_COUNT: return take_count(settings, "--count", 0, MANY_MOST, &settings->count);
	case OPTION_PARALLEL: return take_parallel(settings);
	case OPTION_ALL_OR_NONE: settings->all_or_none = true; return 0;
	case OPTION_NETWORK: return take_network(settings);
	case OPTION_PRE_CREATED: return take_count(settings, "--pre-created", 0, SPARES_MOST, &settings->spares);
	case OPTION_SPARES_FOR: return take_spares_for(settings);
	case OPTION_ACK:
		restore->ack_one = !strcmp(optarg, "1");
		if (restore->ack_one || !strcmp(optarg, "all"))
			return 0;
		return cli_usage_error(settings->command, "--ack takes all or 1");
	case OPTION_RECORD:
		restore->record = !optarg || !strcmp(optarg, "yes") ? RECORD_ALWAYS : RECORD_NEVER;
		if (!optarg || !strcmp(optarg, "yes") || !strcmp(optarg, "no"))
			return 0;
		return cli_usage_error(settings->command, "--record takes yes or no");
	case OPTION_STAY_AWAKE:
		restore->may_sleep = !strcmp(optarg, "never");
		if (restore->may_sleep || !strcmp(optarg, "auto"))
			return 0;
		return cli_usage_error(settings->command, "--stay-awake takes auto or never");
	case OPTION_MIGRATE:
		restore->migrate = true;
		if (!optarg || (!parse_size(optarg, &restore->migrate_rate_bytes) && restore->migrate_rate_bytes))
			return 0;
		return cli_usage_error(settings->command, "--migrate takes bytes a second, such as --migrate=800M");
	case OPTION_SHELL_JOB: restore->shell_job = true; return add_criu_argument(settings, option);
	case OPTION_CRIU_ANY: return add_any_criu_argument(settings);
	case OPTION_CRIU: return add_criu_argument(settings, option);
	default: return cli_usage_hint(settings->command);
	}
}

/* What goes together, and what follows from it. */
static int settle(struct settings *settings)
{
	struct restore_options *restore = &settings->restore;
	if (settings->count < 0 && (settings->parallel || settings->all_or_none))
		return cli_usage_error(settings->command, "--parallel and --all-or-none go with --count");
	if (settings->count == 0 && settings->spares < 0)
		return cli_usage_error(settings->command, "--count 0 goes with --pre-created");
	bool of_one = restore->shell_job || settings->pidfile || settings->status_fd >= 0 || restore->host_pid_namespace;
	if (settings->count >= 0 && of_one)
		return cli_usage_error(settings->command,
				       "--count does not go with --shell-job, --pidfile, --status-fd or --pid-namespace host");
	if (settings->count >= 0)
		restore->foreground = false;
	if (!settings->network_given && (settings->count > 1 || settings->spares > 0))
		restore->network = RESTORE_NETWORK_OWN;
	return 0;
}

static int read_options(struct settings *settings, int argc, char **argv)
{
	settings->criu_arguments = calloc((size_t)argc + 1, sizeof(char *));
	if (!settings->criu_arguments)
		return cli_usage_error(settings->command, "out of memory");
	settings->restore.criu_arguments = settings->criu_arguments;
	for (int value, index = 0; (value = getopt_long(argc, argv, "vhj", options, &index)) != -1;) {
		static const struct option shell_job = { "shell-job", no_argument, NULL, OPTION_SHELL_JOB };
		int wrong = value == 'j' ? take_option(settings, OPTION_SHELL_JOB, &shell_job)
					: take_option(settings, value, &options[index]);
		if (wrong || settings->help)
			return wrong;
	}
	int code = settle(settings);
	if (code)
		return code;
	if (argc - optind != 1)
		return cli_usage_error(settings->command,
				       "which snapshot? Write one POOL/REPO:TAG, such as dp://host:7400/redis:prod");
	if (settings->detach && (settings->wait || settings->restore.foreground))
		return cli_usage_error(settings->command, "--detach is the opposite of --wait and of `run`");
	bool many = settings->wait || settings->restore.foreground || settings->restore.group || settings->restore.network;
	if (settings->container.container && many)
		return cli_usage_error(settings->command,
				       "--container does not go with --wait, --network and `run`: its runtime has those");
	const struct container_line *container = &settings->container;
	if (!container->container && (container->runtime || container->bundle || container->root))
		return cli_usage_error(settings->command, "--runtime, --runtime-root and --bundle go with --container");
	if (settings->take_over && !settings->last_commit && !settings->latest)
		return cli_usage_error(settings->command, "--take-over goes with --last-commit or --latest");
	return 0;
}

static void print_times(const struct restore_times *times)
{
	const struct { const char *name; uint64_t from, to; } phases[] = {
		{ "open snapshot", times->start_ns, times->opened_ns },
		{ "fetch skeleton", times->opened_ns, times->fetched_ns },
		{ "check", times->fetched_ns, times->checked_ns },
		{ "criu", times->checked_ns, times->criu_done_ns },
		{ "hand over", times->criu_done_ns, times->done_ns },
	};
	for (size_t i = 0; i < ARRAY_LENGTH(phases); i++)
		fprintf(stderr, "%-14s %7.2f ms\n", phases[i].name, (double)(int64_t)(phases[i].to - phases[i].from) / 1e6);
	fprintf(stderr, "(criu was started after %.2f ms)\n", (double)(times->criu_started_ns - times->start_ns) / 1e6);
}

static void print_text(const struct restore_session *session)
{
	const struct instance *instance = &session->instance;
	char size[32], budget[64] = "all";
	uint64_t bytes = instance->snapshot_pages * PAGE_BYTES;
	if (instance->budget_bytes && bytes)
		snprintf(budget, sizeof(budget), "%.0f %%", 100.0 * (double)instance->budget_bytes / (double)bytes);
	printf("restored %s as %s: pid %d, %s of %s local, %.0f ms\n", instance->snapshot, instance->id,
	       (int)instance->root.pid, budget, format_size(bytes, size, sizeof(size)),
	       (double)(session->times.done_ns - session->times.start_ns) / 1e6);
	fflush(stdout);
}

static void print_json(const struct restore_session *session)
{
	const struct instance *instance = &session->instance;
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.restore/1"));
	json_object_object_add(object, "id", json_object_new_string(instance->id));
	json_object_object_add(object, "name", json_object_new_string(instance->name));
	json_object_object_add(object, "snapshot", json_object_new_string(instance->snapshot));
	json_object_object_add(object, "pool", json_object_new_string(instance->pool));
	json_object_object_add(object, "pid", json_object_new_int(instance->root.pid));
	json_object_object_add(object, "init_pid", json_object_new_int(instance->init.pid));
	json_object_object_add(object, "pager_pid", json_object_new_int(instance->pager.pid));
	json_object_object_add(object, "supervisor_pid", json_object_new_int(instance->supervisor.pid));
	json_object_object_add(object, "directory", json_object_new_string(instance->directory));
	json_object_object_add(object, "snapshot_bytes", json_object_new_uint64(instance->snapshot_pages * PAGE_BYTES));
	json_object_object_add(object, "budget_bytes", json_object_new_uint64(instance->budget_bytes));
	json_object_object_add(object, "elapsed_ns", json_object_new_uint64(session->times.done_ns - session->times.start_ns));
	json_object_object_add(object, "criu_ns",
			       json_object_new_uint64(session->times.criu_done_ns - session->times.checked_ns));
	cli_print_json(object);
	fflush(stdout);
}

/* Whoever waits on the descriptor is told first. */
static int announce(const struct settings *settings, const struct restore_session *session, struct dp_err *err)
{
	int ret = 0;
	if (settings->pidfile) {
		char text[32];
		int length = snprintf(text, sizeof(text), "%d\n", (int)session->instance.root.pid);
		ret = io_write_file(settings->pidfile, text, (size_t)length, 0644);
		if (ret)
			dp_fail_errno(err, -ret, "the tree runs as %s, but its pid file %s cannot be written",
				      session->instance.id, settings->pidfile);
	}
	if (settings->status_fd >= 0 && io_write_full(settings->status_fd, "", 1) == 0)
		close(settings->status_fd);
	if (settings->json)
		print_json(session);
	else if (!settings->restore.foreground)
		print_text(session);
	if (settings->restore.verbose)
		print_times(&session->times);
	return ret;
}

/* What a supervisor of services, a terminal or a user may send; what is left out is about this process itself. */
static void forwarded_signals(sigset_t *set)
{
	static const int own[] = { SIGCHLD, SIGPIPE, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS, SIGKILL, SIGSTOP,
				   SIGTTIN, SIGTTOU };
	sigfillset(set);
	for (size_t i = 0; i < ARRAY_LENGTH(own); i++)
		sigdelset(set, own[i]);
}

/* With `run`, every code below 125 is the process's own. */
static int failure(const struct settings *settings, int ret, const struct dp_err *err)
{
	int code = cli_print_error(ret, err, settings->json);
	return settings->restore.foreground ? EXIT_RUN_FAILED : code;
}

/* That a later start will be slower is no failure of this one. */
static int keep_spares(const struct settings *settings)
{
	struct dp_err err;
	if (settings->spares < 0)
		return 0;
	int ret = spares_keep(&settings->restore, (unsigned)settings->spares, settings->spares_for_ns, &err);
	if (ret)
		cli_print_error(ret, &err, settings->json && settings->count == 0);
	return ret;
}

static int start_many(struct settings *settings)
{
	const struct run_many run = {
		.restore = &settings->restore, .name = settings->restore.name, .count = (unsigned)settings->count,
		.parallel = settings->parallel, .all_or_none = settings->all_or_none, .wait = settings->wait,
		.json = settings->json,
	};
	int ret = keep_spares(settings);
	if (settings->count == 0)
		return cli_exit_code(ret);
	return run_many(&run);
}

static int restore_and_wait(struct settings *settings)
{
	struct restore_session session;
	bool was_spare;
	struct dp_err err = { "" };
	sigset_t forward;
	bool foreground = settings->restore.foreground;
	forwarded_signals(&forward);
	if (foreground)
		sigprocmask(SIG_BLOCK, &forward, NULL); /* none is lost while the tree is not there yet */
	int ret = settings->container.container
			  ? container_line_restore(&settings->container, &settings->restore, &session, &err)
			  : many_start_one(&settings->restore, true, &session, &was_spare, &err);
	if (ret)
		return failure(settings, ret, &err);
	ret = announce(settings, &session, &err);
	keep_spares(settings);
	int code = ret ? cli_print_error(ret, &err, settings->json) : EXIT_OK;
	if (foreground || settings->wait) {
		ret = restore_wait(&session, foreground ? &forward : NULL, &code, &err);
		if (ret)
			code = failure(settings, ret, &err);
	}
	restore_session_done(&session);
	return code;
}

/* A state has its connections as they were; their other ends have seen the crash. */
static int close_connections(struct settings *settings)
{
	for (size_t i = 0; i < settings->restore.criu_argument_count; i++)
		if (!strncmp(settings->criu_arguments[i], "--tcp-", 6))
			return 0;
	char *argument = strdup("--tcp-close");
	if (!argument)
		return -ENOMEM;
	/* there is room: one a word of the command line */
	settings->criu_arguments[settings->restore.criu_argument_count++] = argument;
	return 0;
}

/* Which snapshot is meant: the named one, or the newest state of what is named. */
static int resolve(struct settings *settings, const char *text, struct dp_err *err)
{
	struct commit_note note;
	char key[256], found[256];
	if (!settings->last_commit && !settings->latest)
		return endpoint_parse(&settings->endpoint, text, err);
	bool uri = strstr(text, ":/");
	int ret = uri ? 0 : commits_find(settings->restore.root, text, &note);
	if (ret)
		return dp_fail(err, ENOENT, "this host knows no commit of `%s`: name its pool too, such as dp://host:7400/%s",
			       text, text);
	ret = endpoint_parse(&settings->endpoint, uri ? text : note.pool, err);
	if (!ret && uri && !settings->endpoint.name[0])
		ret = dp_fail(err, EINVAL,
			      "%s names a pool only: an instance, a snapshot or a series of states belongs behind it", text);
	if (ret)
		return ret;
	snprintf(key, sizeof(key), "%s", uri ? settings->endpoint.name : text);
	ret = commit_find(&settings->endpoint, key, settings->latest, found, err);
	if (ret)
		return ret;
	strcpy(settings->endpoint.name, found);
	if (settings->take_over) { /* then the newest: it may have made one meanwhile, and makes no other */
		ret = commit_fence(&settings->endpoint, err);
		if (!ret)
			ret = commit_find(&settings->endpoint, key, settings->latest, found, err);
		if (ret)
			return ret;
		strcpy(settings->endpoint.name, found);
	}
	return close_connections(settings) ? dp_fail(err, ENOMEM, "out of memory") : 0;
}

/* --pool A,B and a name. */
static int take_pools(struct settings *settings, const char *name, struct dp_err *err)
{
	cleanup_free char *list = strdup(settings->pool_list);
	char *save = NULL;
	if (!list)
		return dp_fail(err, ENOMEM, "out of memory");
	for (char *uri = strtok_r(list, ",", &save); uri; uri = strtok_r(NULL, ",", &save)) {
		struct endpoint *pool = &settings->pools[settings->restore.pool_count];
		if (settings->restore.pool_count == RESTORE_POOLS)
			return dp_fail(err, EINVAL, "--pool takes at most %u pools", RESTORE_POOLS);
		int ret = endpoint_parse(pool, uri, err);
		if (!ret && *pool->name)
			ret = dp_fail(err, EINVAL, "--pool %s: the name belongs at the end of the command, once", uri);
		if (!ret)
			ret = endpoint_name_check(name, pool->name, err);
		if (ret)
			return ret;
		settings->restore.pool_count++;
	}
	if (!settings->restore.pool_count || settings->last_commit || settings->latest)
		return dp_fail(err, EINVAL,
			       "--pool takes one pool or more, such as dp://a:7400,dp://b:7400, and a REPO:TAG at the end");
	settings->endpoint = settings->pools[0];
	settings->restore.pools = settings->pools;
	return 0;
}

static int restore_command(int argc, char **argv, bool foreground)
{
	struct dp_err err;
	struct settings settings = {
		.command = argv[0], .status_fd = -1, .count = -1, .spares = -1, .spares_for_ns = SPARES_LIFETIME_NS,
		.restore = { .root = instance_root(NULL), .foreground = foreground },
	};
	int code = read_options(&settings, argc, argv);
	if (settings.help && !code) {
		printf("%s%s", foreground ? run_usage : restore_usage, common_usage);
	} else if (!code) {
		bool named = strstr(argv[optind], ":/") || settings.last_commit || settings.latest;
		if (!settings.pool_list && !named)
			settings.pool_list = getenv("DISTRI_PROC_POOL");
		bool listed = settings.pool_list && *settings.pool_list;
		int ret = (listed ? take_pools : resolve)(&settings, argv[optind], &err);
		settings.restore.endpoint = &settings.endpoint;
		if (ret)
			code = failure(&settings, ret, &err);
		else
			code = settings.count >= 0 ? start_many(&settings) : restore_and_wait(&settings);
	}
	for (size_t i = 0; i < settings.restore.criu_argument_count; i++)
		free(settings.criu_arguments[i]);
	free(settings.criu_arguments);
	return code;
}

int cmd_restore(int argc, char **argv)
{
	return restore_command(argc, argv, false);
}

int cmd_run(int argc, char **argv)
{
	return restore_command(argc, argv, true);
}
