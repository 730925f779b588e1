/* migrate-in: brings the memory of a running instance here, in the background. */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "instance/instance.h"
#include "instance/process.h"
#include "instance/stats.h"
#include "pager/control.h"

static const char usage[] =
	"Usage: distri-proc migrate-in [--rate RATE] [--lift-budget] [--detach] [--json] INSTANCE\n"
	"       distri-proc migrate-in --stop INSTANCE\n"
	"\n"
	"Fetches all memory of a running instance in the background, hot pages first, and shows how far it is. Faults go\n"
	"first: the transfer yields when they take longer. Without a budget it finishes: everything is local, the pager leaves,\n"
	"the pool is no longer needed, and `ps` says `local`. With one it fills the budget and stays there. Ctrl-C only ends\n"
	"the display. INSTANCE is an id, a name, the beginning of an id, or the pid of one of its processes.\n"
	"\n"
	"  --rate RATE       at most so many bytes a second, such as 800M (default: what link and faults allow)\n"
	"  --lift-budget     the tree may keep everything from now on, whatever --local-memory said\n"
	"  --detach          begin and return\n"
	"  --stop            stop a transfer; what has come stays\n"
	"  --json            one object at the end, or the error as one\n"
	"  --root DIRECTORY  registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n";

#define LOOK_MS 200

struct settings {
	const char *root, *key;
	uint64_t rate_bytes;
	bool lift_budget, detach, stop, json;
};

struct progress {
	const struct pager_stats *stats; /* mapped */
	uint64_t begun_ns, from_pages;
};

static uint64_t come_bytes(const struct progress *progress)
{
	uint64_t now = progress->stats->migrated_pages;
	return (now - DP_MIN(progress->from_pages, now)) * PAGE_BYTES;
}

static const char *state_name(const struct pager_stats *stats)
{
	static const char *const names[] = {
		[MIGRATE_NONE] = "none", [MIGRATE_RUNNING] = "running", [MIGRATE_AT_BUDGET] = "at_budget",
		[MIGRATE_STOPPED] = "stopped", [MIGRATE_DONE] = "done",
	};
	uint64_t state = stats->migrate_state;
	return stats->left_ns ? "local" : state < ARRAY_LENGTH(names) ? names[state] : "unknown";
}

static bool is_over(const struct pager_stats *stats)
{
	uint64_t state = stats->migrate_state;
	return stats->left_ns || state == MIGRATE_AT_BUDGET || state == MIGRATE_STOPPED ||
	       (state == MIGRATE_DONE && stats->budget_pages); /* without a budget the pager's leaving ends it */
}

static void show(const struct progress *progress, const struct instance *instance, const char *end)
{
	const struct pager_stats *stats = progress->stats;
	char local[32], all[32], rate[32], come[32];
	uint64_t left = stats->remote_pages * PAGE_BYTES, here = stats->resident_pages * PAGE_BYTES;
	double seconds = (double)(clock_now_ns() - progress->begun_ns) / 1e9;
	double a_second = seconds > 0 ? (double)come_bytes(progress) / seconds : 0;
	format_size(here, local, sizeof(local));
	format_size(here + left, all, sizeof(all));
	format_size((uint64_t)a_second, rate, sizeof(rate));
	format_size(come_bytes(progress), come, sizeof(come));
	printf("%s: %s fetched at %s/s", instance->name, come, rate);
	if (!stats->left_ns)
		printf(", %s of %s local", local, all);
	if (!is_over(stats) && a_second > 0)
		printf(", %.0f s left", (double)left / a_second);
	if (!is_over(stats) && stats->migrate_share < 1024)
		printf(", yields to faults");
	printf("%s", end);
	fflush(stdout);
}

static void print_json(const struct progress *progress, const struct instance *instance)
{
	const struct pager_stats *stats = progress->stats;
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.migrate-in/1"));
	json_object_object_add(object, "id", json_object_new_string(instance->id));
	json_object_object_add(object, "name", json_object_new_string(instance->name));
	json_object_object_add(object, "state", json_object_new_string(state_name(stats)));
	json_object_object_add(object, "fetched_bytes", json_object_new_uint64(come_bytes(progress)));
	json_object_object_add(object, "remote_bytes", json_object_new_uint64(stats->remote_pages * PAGE_BYTES));
	json_object_object_add(object, "elapsed_ns", json_object_new_uint64(clock_now_ns() - progress->begun_ns));
	json_object_object_add(object, "rate_bytes", json_object_new_uint64(stats->migrate_rate_bytes));
	json_object_object_add(object, "backed_off", json_object_new_uint64(stats->migrate_backed_off));
	cli_print_json(object);
}

static void say_end(const struct progress *progress, const struct instance *instance)
{
	const struct pager_stats *stats = progress->stats;
	show(progress, instance, "");
	if (stats->left_ns)
		printf(": all memory is local, the pool is no longer needed\n");
	else if (stats->migrate_state == MIGRATE_AT_BUDGET)
		printf(": the budget is full; the rest comes when it is touched (--lift-budget fetches it)\n");
	else if (stats->migrate_state == MIGRATE_STOPPED)
		printf(": stopped; the rest comes when it is touched\n");
	else if (stats->migrate_state == MIGRATE_DONE)
		printf(": all memory is local, the pager stays to keep the budget\n");
	else
		printf("\n");
}

/* Until it is over, the instance has ended (-ESRCH), or the user has seen enough (1). */
static int follow(const struct settings *settings, const struct progress *progress, const struct instance *instance)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	cleanup_fd int signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	cleanup_fd int init = process_open(instance->init.pid, instance->init.start_time);
	struct pollfd polls[] = { { .fd = signal_fd, .events = POLLIN }, { .fd = init, .events = POLLIN } };
	bool redraw = !settings->json && isatty(1);
	while (!is_over(progress->stats)) {
		if (redraw)
			show(progress, instance, "\033[K\r");
		poll(polls, ARRAY_LENGTH(polls), redraw ? LOOK_MS : LOOK_MS / 10);
		if (polls[0].revents)
			return 1;
		if ((init < 0 || polls[1].revents) && !is_over(progress->stats))
			return -ESRCH;
	}
	if (redraw)
		printf("\033[K");
	return 0;
}

/* The pager has left: nothing to ask, and nothing to do. */
static int already_local(const struct settings *settings, const struct instance *instance, const struct pager_stats *stats)
{
	struct progress progress = { stats, clock_now_ns(), stats->migrated_pages };
	if (settings->json)
		print_json(&progress, instance);
	else
		printf("%s: all memory is local already\n", instance->name);
	return EXIT_OK;
}

static int begin(const struct settings *settings, const struct instance *instance, struct dp_err *err)
{
	char path[PATH_MAX];
	cleanup_fd int connection = control_connect(instance_path(instance, "control.sock", path, sizeof(path)), err);
	if (connection < 0)
		return connection;
	if (settings->stop)
		return control_migrate_stop(connection, err);
	return control_migrate(connection, settings->rate_bytes, settings->lift_budget, err);
}

static int migrate(const struct settings *settings, const struct instance *instance, const struct pager_stats *stats)
{
	struct dp_err err;
	struct progress progress = { stats, clock_now_ns(), stats->migrated_pages };
	if (stats->left_ns)
		return already_local(settings, instance, stats);
	int ret = begin(settings, instance, &err);
	if (ret)
		return cli_print_error(ret, &err, settings->json);
	ret = settings->stop || settings->detach ? 0 : follow(settings, &progress, instance);
	if (ret == -ESRCH) {
		dp_fail(&err, ESRCH, "%s ended before all of its memory was local", instance->name);
		return cli_print_error(ret, &err, settings->json);
	}
	if (settings->json)
		print_json(&progress, instance);
	else if (ret == 1)
		printf("\n%s goes on in the background; `distri-proc migrate-in --stop %s` stops it\n", instance->name,
		       instance->name);
	else if (settings->stop)
		printf("%s: stopped; what has come stays, the rest comes when it is touched\n", instance->name);
	else if (!settings->detach)
		say_end(&progress, instance);
	return EXIT_OK;
}

static int find_and_migrate(const struct settings *settings)
{
	struct instance instance;
	struct dp_err err;
	char path[PATH_MAX];
	int ret = instance_find(settings->root, settings->key, &instance, &err);
	if (ret)
		return cli_print_error(ret, &err, settings->json);
	struct pager_stats *stats = stats_map(instance_path(&instance, "stats", path, sizeof(path)), 0, &err);
	if (!stats)
		return cli_print_error(-EBADMSG, &err, settings->json);
	int code = migrate(settings, &instance, stats);
	stats_unmap(stats);
	return code;
}

int cmd_migrate_in(int argc, char **argv)
{
	static const struct option options[] = {
		{ "rate", required_argument, NULL, 'R' },  { "lift-budget", no_argument, NULL, 'l' },
		{ "detach", no_argument, NULL, 'd' },      { "stop", no_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },        { "root", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },        { 0 },
	};
	struct settings settings = { .root = instance_root(NULL) };
	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		switch (option) {
		case 'R':
			if (parse_size(optarg, &settings.rate_bytes) || !settings.rate_bytes)
				return cli_usage_error(argv[0], "--rate takes bytes a second, such as 800M");
			break;
		case 'l': settings.lift_budget = true; break;
		case 'd': settings.detach = true; break;
		case 's': settings.stop = true; break;
		case 'j': settings.json = true; break;
		case 'r': settings.root = instance_root(optarg); break;
		case 'h': return fputs(usage, stdout), EXIT_OK;
		default: return cli_usage_hint(argv[0]);
		}
	}
	if (settings.stop && (settings.rate_bytes || settings.lift_budget || settings.detach))
		return cli_usage_error(argv[0], "--stop goes with none of --rate, --lift-budget and --detach");
	if (argc - optind != 1)
		return cli_usage_error(argv[0], "which instance? `distri-proc ps` lists them");
	settings.key = argv[optind];
	return find_and_migrate(&settings);
}
