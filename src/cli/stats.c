/* stats: what the pager of an instance counts. */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <string.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/commit_line.h"
#include "cli/heat_map.h"
#include "instance/instance.h"
#include "instance/process.h"
#include "instance/stats.h"
#include "prefetch/prefetch.h"

static const char usage[] =
	"Usage: distri-proc stats [--watch[=SECONDS]] [--json] INSTANCE\n"
	"       distri-proc stats --heat [--hot-after N] [--cold-after TIME] [--sample TIME] [--plot FILE] [--json] INSTANCE\n"
	"\n"
	"Shows what the pager of an instance counts: memory, faults with their latencies, traffic, evictions. INSTANCE is an\n"
	"id, a name, the beginning of an id, a container's name, or the pid of one of its processes.\n"
	"\n"
	"  -w, --watch[=SECONDS]  again every so many seconds (default 1) until the instance ends, with rates\n"
	"  --json                 one object; with --watch one a line. Bytes, pages and ns\n"
	"  --heat                 which memory is hot, warm and cold, area by area\n"
	"  --hot-after N          hot: touched so many times in a row while it waited in staging, 1 to 7 (default 2)\n"
	"  --cold-after TIME      cold: not seen used for so long, 2s to 2m (default 1m), or evicted untouched\n"
	"  --sample TIME          watch the kernel's accessed bits for so long (default 1s; 0: not at all)\n"
	"  --plot FILE            draw the heat map by gnuplot, as PNG or (FILE.svg) SVG\n"
	"  --pages                with --heat --json: the hot pages, as runs of page numbers\n"
	"  --container ID         in the place of INSTANCE: that of a container\n"
	"  --root DIRECTORY       registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n";

static const char *const fault_names[FAULT_KINDS] = {
	[FAULT_REMOTE] = "remote", [FAULT_STAGED] = "staged", [FAULT_ZERO] = "zero",
	[FAULT_IN_FLIGHT] = "in_flight", [FAULT_SPURIOUS] = "spurious",
};

/* Every plain counter under its JSON name. */
static const struct { const char *name; size_t offset;
} fields[] = {
#define FIELD(name) { #name, offsetof(struct pager_stats, name) }
	FIELD(resident_pages),
	FIELD(remote_pages),
	FIELD(staged_pages),
	FIELD(zero_pages),
	FIELD(dirty_pages),
	FIELD(other_pages),
	FIELD(pss_pages),
	FIELD(budget_pages),
	FIELD(reserve_pages),
	FIELD(spaces),
	FIELD(tasks),
	FIELD(wardens),
	FIELD(table_bytes),
	FIELD(table_pages),
	FIELD(events_fork),
	FIELD(events_remap),
	FIELD(events_remove),
	FIELD(events_unmap),
	FIELD(bytes_in),
	FIELD(bytes_out),
	FIELD(requests),
	FIELD(corrupt_pages),
	FIELD(installed_pages),
	FIELD(zero_filled_pages),
	FIELD(evicted_pages),
	FIELD(moved_pages),
	FIELD(second_chance_pages),
	FIELD(written_back_pages),
	FIELD(clean_dropped_pages),
	FIELD(busy_pages),
	FIELD(unshared_pages),
	FIELD(prefetched_pages),
	FIELD(prefetch_used_pages),
	FIELD(prefetch_wasted_pages),
	FIELD(stalls),
	FIELD(copy_retries),
	FIELD(areas_found),
	FIELD(evict_cpu_ns),
	FIELD(pushed_pages),
	FIELD(pager_pid),
	FIELD(pools),
	FIELD(pools_there),
	FIELD(pool_reconnects),
	FIELD(lost_since_ns),
	FIELD(mirror_behind_pages),
	FIELD(replayed_pages),
	FIELD(pager_restarts),
	FIELD(warden_restarts),
	FIELD(migrate_state),
	FIELD(migrated_pages),
	FIELD(migrate_rate_bytes),
	FIELD(migrate_window_bytes),
	FIELD(migrate_share),
	FIELD(migrate_backed_off),
	FIELD(left_ns),
#undef FIELD
};

static json_object *histogram_json(const struct histogram *histogram)
{
	json_object *object = json_object_new_object();
	json_object_object_add(object, "count", json_object_new_uint64(histogram->count));
	json_object_object_add(object, "mean_ns",
			       json_object_new_uint64(histogram->count ? histogram->sum_ns / histogram->count : 0));
	json_object_object_add(object, "p50_ns", json_object_new_uint64(histogram_quantile_ns(histogram, 0.5)));
	json_object_object_add(object, "p99_ns", json_object_new_uint64(histogram_quantile_ns(histogram, 0.99)));
	json_object_object_add(object, "p999_ns", json_object_new_uint64(histogram_quantile_ns(histogram, 0.999)));
	json_object_object_add(object, "max_ns", json_object_new_uint64(histogram->max_ns));
	return object;
}

static void print_json(const struct instance *instance, const struct pager_stats *stats, uint64_t now_ns)
{
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.stats/1"));
	json_object_object_add(object, "id", json_object_new_string(instance->id));
	json_object_object_add(object, "name", json_object_new_string(instance->name));
	json_object_object_add(object, "snapshot", json_object_new_string(instance->snapshot));
	json_object_object_add(object, "pid", json_object_new_int(instance->root.pid));
	json_object_object_add(object, "commit", commit_line_note_json(instance));
	json_object_object_add(object, "page_bytes", json_object_new_int(PAGE_BYTES));
	json_object_object_add(object, "uptime_ns", json_object_new_uint64(now_ns - stats->started_ns));
	for (size_t i = 0; i < ARRAY_LENGTH(fields); i++) {
		const uint64_t *value = (const uint64_t *)((const char *)stats + fields[i].offset);
		json_object_object_add(object, fields[i].name, json_object_new_uint64(*value));
	}
	json_object *by_policy = json_object_new_object();
	for (int i = 0; i < PREFETCH_POLICIES; i++)
		if (stats->prefetched_by[i])
			json_object_object_add(by_policy, prefetch_policy_name((enum prefetch_policy)i),
					       json_object_new_uint64(stats->prefetched_by[i]));
	json_object_object_add(object, "prefetched_by", by_policy);
	json_object *faults = json_object_new_object(), *latency = json_object_new_object();
	for (int i = 0; i < FAULT_KINDS; i++)
		json_object_object_add(faults, fault_names[i], json_object_new_uint64(stats->faults[i]));
	json_object_object_add(latency, "remote", histogram_json(&stats->fault_remote));
	json_object_object_add(latency, "staged", histogram_json(&stats->fault_staged));
	json_object_object_add(latency, "zero", histogram_json(&stats->fault_zero));
	json_object_object_add(object, "faults", faults);
	json_object_object_add(object, "fault_latency", latency);
	cli_print_json(object);
	fflush(stdout);
}

static const char *pages_text(uint64_t pages, char buffer[static 32])
{
	return format_size(pages * PAGE_BYTES, buffer, 32);
}

static const char *latency_text(uint64_t ns, char buffer[static 32])
{
	if (ns < 10000)
		snprintf(buffer, 32, "%.1f us", (double)ns / 1e3);
	else if (ns < 1000000)
		snprintf(buffer, 32, "%.0f us", (double)ns / 1e3);
	else
		snprintf(buffer, 32, "%.1f ms", (double)ns / 1e6);
	return buffer;
}

static double rate(uint64_t now, uint64_t before, double seconds)
{
	return seconds > 0 && now >= before ? (double)(now - before) / seconds : 0;
}

static void print_memory(const struct pager_stats *now)
{
	char a[32], b[32], c[32], d[32];
	printf("memory     resident %s", pages_text(now->resident_pages, a));
	if (now->budget_pages)
		printf(" of %s (%.0f %%), reserve %s\n", pages_text(now->budget_pages, b),
		       100.0 * (double)now->resident_pages / (double)now->budget_pages, pages_text(now->reserve_pages, c));
	else
		printf(", no budget\n");
	printf("           remote %s   staged %s   dirty %s   zero %s\n", pages_text(now->remote_pages, a),
	       pages_text(now->staged_pages, b), pages_text(now->dirty_pages, c), pages_text(now->zero_pages, d));
	printf("           other %s   pss %s   page tables %s\n", pages_text(now->other_pages, a), pages_text(now->pss_pages, b),
	       format_size(now->table_bytes, c, sizeof(c)));
	printf("tree       %llu tasks   %llu spaces   %llu wardens\n", (unsigned long long)now->tasks,
	       (unsigned long long)now->spaces, (unsigned long long)now->wardens);
}

static void print_fault_row(const char *name, uint64_t now, uint64_t before, double seconds, const struct histogram *latency)
{
	char p50[32] = "-", p99[32] = "-", p999[32] = "-", most[32] = "-";
	if (latency && latency->count) {
		latency_text(histogram_quantile_ns(latency, 0.5), p50);
		latency_text(histogram_quantile_ns(latency, 0.99), p99);
		latency_text(histogram_quantile_ns(latency, 0.999), p999);
		latency_text(latency->max_ns, most);
	}
	printf("  %-9s %12llu %10.0f %10s %10s %10s %10s\n", name, (unsigned long long)now, rate(now, before, seconds), p50,
	       p99, p999, most);
}

static const char *transfer_state(const struct pager_stats *stats)
{
	static const char *const names[] = {
		[MIGRATE_NONE] = "", [MIGRATE_RUNNING] = "running", [MIGRATE_AT_BUDGET] = "at the budget",
		[MIGRATE_STOPPED] = "stopped", [MIGRATE_DONE] = "done",
	};
	if (stats->left_ns)
		return "all is local, the pager has left";
	return stats->migrate_state < ARRAY_LENGTH(names) ? names[stats->migrate_state] : "";
}

static void print_counters(const struct pager_stats *now, const struct pager_stats *before, double seconds)
{
	char a[32], b[32], c[32], d[32];
	printf("traffic    in %s (%s/s)   out %s (%s/s)   requests %llu\n", format_size(now->bytes_in, a, sizeof(a)),
	       format_size((uint64_t)rate(now->bytes_in, before->bytes_in, seconds), b, sizeof(b)),
	       format_size(now->bytes_out, c, sizeof(c)),
	       format_size((uint64_t)rate(now->bytes_out, before->bytes_out, seconds), d, sizeof(d)),
	       (unsigned long long)now->requests);
	if (now->pools > 1 || now->pool_reconnects || now->lost_since_ns)
		printf("pools      %llu of %llu there   connections made again %llu   a mirror is behind by %s%s\n",
		       (unsigned long long)now->pools_there, (unsigned long long)now->pools,
		       (unsigned long long)now->pool_reconnects, pages_text(now->mirror_behind_pages, a),
		       now->lost_since_ns ? "   NO ANSWER: faults wait" : "");
	if (now->pager_restarts || now->warden_restarts)
		printf("restarts   pagers %llu   wardens %llu\n", (unsigned long long)now->pager_restarts,
		       (unsigned long long)now->warden_restarts);
	printf("eviction   out %s   clean %s   written back %s   second chance %s\n", pages_text(now->evicted_pages, a),
	       pages_text(now->clean_dropped_pages, b), pages_text(now->written_back_pages, c),
	       pages_text(now->second_chance_pages, d));
	printf("           moved %s   busy %llu   unshared %llu   stalls %llu\n", pages_text(now->moved_pages, a),
	       (unsigned long long)now->busy_pages, (unsigned long long)now->unshared_pages, (unsigned long long)now->stalls);
	printf("prefetch   %s   used %s   wasted %s   replayed %s\n", pages_text(now->prefetched_pages, a),
	       pages_text(now->prefetch_used_pages, b), pages_text(now->prefetch_wasted_pages, c),
	       pages_text(now->replayed_pages, d));
	printf("installed  %s   zero-filled %s   retries %llu\n", pages_text(now->installed_pages, a),
	       pages_text(now->zero_filled_pages, b), (unsigned long long)now->copy_retries);
	if (now->corrupt_pages)
		printf("corrupt    %llu page%s came damaged from the pool: a bus error there\n",
		       (unsigned long long)now->corrupt_pages, now->corrupt_pages == 1 ? "" : "s");
	if (now->migrate_state)
		printf("transfer   fetched %s (%s/s)   window %s   share %.0f %%   backed off %llu   %s\n",
		       pages_text(now->migrated_pages, a),
		       pages_text((uint64_t)rate(now->migrated_pages, before->migrated_pages, seconds), b),
		       format_size(now->migrate_window_bytes, c, sizeof(c)), (double)now->migrate_share / 10.24,
		       (unsigned long long)now->migrate_backed_off, transfer_state(now));
	printf("events     fork %llu   remap %llu   remove %llu   unmap %llu   areas found %llu\n",
	       (unsigned long long)now->events_fork, (unsigned long long)now->events_remap,
	       (unsigned long long)now->events_remove, (unsigned long long)now->events_unmap,
	       (unsigned long long)now->areas_found);
}

/* `before` and `seconds` are those of the last look; the first time, the pager's start. */
static void print_table(const struct instance *instance, const struct pager_stats *now, const struct pager_stats *before,
			double seconds)
{
	const struct histogram *latency[FAULT_KINDS] = {
		[FAULT_REMOTE] = &now->fault_remote, [FAULT_STAGED] = &now->fault_staged, [FAULT_ZERO] = &now->fault_zero,
	};
	printf("%s (%s)   pid %d   snapshot %s\n", instance->id, instance->name, (int)instance->root.pid, instance->snapshot);
	print_memory(now);
	printf("faults %15s %12s %10s %10s %10s %10s\n", "count", "per second", "p50", "p99", "p999", "max");
	for (int i = 0; i < FAULT_KINDS; i++)
		print_fault_row(i == FAULT_IN_FLIGHT ? "in flight" : fault_names[i], now->faults[i], before->faults[i], seconds,
				latency[i]);
	print_counters(now, before, seconds);
	char commit[600];
	if (*commit_line_note_text(instance, commit, sizeof(commit)))
		printf("commit     %s\n", commit);
	fflush(stdout);
}

static int watch(const struct instance *instance, const struct pager_stats *stats, uint64_t interval_ns, bool json)
{
	cleanup_fd int init = process_open(instance->init.pid, instance->init.start_time);
	struct pollfd ended = { .fd = init, .events = POLLIN };
	bool redraw = !json && isatty(1);
	struct pager_stats before = { 0 };
	uint64_t before_ns = stats->started_ns, due_ns = clock_now_ns();
	while (init >= 0 && !ended.revents) {
		struct pager_stats now = *stats;
		uint64_t now_ns = clock_now_ns();
		if (redraw)
			printf("\033[H\033[J");
		if (json)
			print_json(instance, &now, now_ns);
		else
			print_table(instance, &now, &before, (double)(now_ns - before_ns) / 1e9);
		if (!json && !redraw)
			printf("\n");
		if (ferror(stdout))
			return 0; /* the reader has gone */
		before = now;
		before_ns = now_ns;
		due_ns += interval_ns;
		for (uint64_t at = clock_now_ns(); at < due_ns && !ended.revents; at = clock_now_ns())
			poll(&ended, 1, (int)DP_MIN((due_ns - at) / 1000000u + 1, 1000000u));
	}
	return 0;
}

static int show_heat(const struct instance *instance, const struct heat_options *options, bool json)
{
	struct heat_map map;
	struct dp_err err;
	int ret = heat_map_take(&map, instance, options, &err);
	if (ret)
		return cli_print_error(ret, &err, json);
	if (json)
		heat_show_json(&map, instance);
	else
		heat_show_text(&map, instance);
	if (options->plot)
		ret = heat_show_plot(&map, instance, &err);
	heat_map_done(&map);
	return ret ? cli_print_error(ret, &err, json) : EXIT_OK;
}

static int show(const char *root, const char *key, uint64_t interval_ns, bool json, const struct heat_options *heat)
{
	struct instance instance;
	struct dp_err err;
	char path[PATH_MAX];
	int ret = instance_find(root, key, &instance, &err);
	if (ret)
		return cli_print_error(ret, &err, json);
	struct pager_stats *stats = stats_map(instance_path(&instance, "stats", path, sizeof(path)), 0, &err);
	if (!stats)
		return cli_print_error(-EBADMSG, &err, json);
	int code = EXIT_OK;
	if (heat && stats->left_ns) {
		dp_fail(&err, ENOTCONN, "%s has no pager any more, all of its memory is local", instance.name);
		code = cli_print_error(-ENOTCONN, &err, json);
	} else if (heat) {
		code = show_heat(&instance, heat, json);
	} else if (interval_ns) {
		watch(&instance, stats, interval_ns, json);
	} else {
		struct pager_stats now = *stats, none = { 0 };
		uint64_t now_ns = clock_now_ns();
		if (json)
			print_json(&instance, &now, now_ns);
		else
			print_table(&instance, &now, &none, (double)(now_ns - now.started_ns) / 1e9);
	}
	stats_unmap(stats);
	return code;
}

struct settings {
	const char *root, *container;
	uint64_t interval_ns;
	bool json, help, heat, heat_options; /* heat_options: one that goes only with --heat was given */
	struct heat_options heat_map;
};

static int take_heat_option(struct settings *settings, const char *command, int option)
{
	struct heat_options *heat = &settings->heat_map;
	char *end;
	settings->heat_options = true;
	switch (option) {
	case 'H': {
		unsigned long uses = strtoul(optarg, &end, 10);
		if (end == optarg || *end || uses < 1 || uses > 7)
			return cli_usage_error(command, "--hot-after takes a number from 1 to 7");
		heat->rule.hot_uses = (unsigned)uses;
		return 0;
	}
	case 'C':
		if (parse_duration(optarg, &heat->cold_after_ns) || heat->cold_after_ns < 2000000000u ||
		    heat->cold_after_ns > 128000000000u)
			return cli_usage_error(command, "--cold-after takes a time from 2s to 2m");
		heat->rule.cold_age = heat_age_of_ns(heat->cold_after_ns);
		return 0;
	case 'S':
		if (parse_duration(optarg, &heat->sample_ns) || heat->sample_ns > 60000000000u)
			return cli_usage_error(command, "--sample takes a time of at most 1m");
		return 0;
	case 'P':
		heat->plot = optarg;
		return 0;
	default: /* --pages */
		heat->pages = true;
		return 0;
	}
}

static int take_interval(uint64_t *interval_ns, const char *command, const char *text)
{
	if (parse_duration(text, interval_ns) || *interval_ns < 10000000u)
		return cli_usage_error(command, "--watch takes seconds, at least 0.01");
	return 0;
}

static int read_options(struct settings *settings, int argc, char **argv)
{
	static const struct option options[] = {
		{ "watch", optional_argument, NULL, 'w' },      { "json", no_argument, NULL, 'j' },
		{ "heat", no_argument, NULL, 't' },             { "hot-after", required_argument, NULL, 'H' },
		{ "cold-after", required_argument, NULL, 'C' }, { "sample", required_argument, NULL, 'S' },
		{ "plot", required_argument, NULL, 'P' },       { "pages", no_argument, NULL, 'p' },
		{ "container", required_argument, NULL, 'c' },
		{ "root", required_argument, NULL, 'r' },       { "help", no_argument, NULL, 'h' }, { 0 },
	};
	for (int option, code; (option = getopt_long(argc, argv, "hw", options, NULL)) != -1;) {
		switch (option) {
		case 'w':
			settings->interval_ns = 1000000000u;
			if (optarg && (code = take_interval(&settings->interval_ns, argv[0], optarg)))
				return code;
			break;
		case 'j': settings->json = true; break;
		case 't': settings->heat = true; break;
		case 'r': settings->root = optarg; break;
		case 'c': settings->container = optarg; break;
		case 'h': settings->help = true; return 0;
		case '?': return cli_usage_hint(argv[0]);
		default:
			if ((code = take_heat_option(settings, argv[0], option)))
				return code;
		}
	}
	if (settings->heat_options && !settings->heat)
		return cli_usage_error(argv[0], "--hot-after, --cold-after, --sample, --plot and --pages go with --heat");
	if (settings->heat && settings->interval_ns)
		return cli_usage_error(argv[0], "--heat is one look; it does not go with --watch");
	return 0;
}

int cmd_stats(int argc, char **argv)
{
	struct settings settings = {
		.heat_map = { .rule.hot_uses = 2, .cold_after_ns = 60000000000u, .sample_ns = 1000000000u },
	};
	settings.heat_map.rule.cold_age = heat_age_of_ns(settings.heat_map.cold_after_ns);
	int code = read_options(&settings, argc, argv), at = optind;
	if (code)
		return code;
	if (settings.help)
		return fputs(usage, stdout), EXIT_OK;
	/* `--watch 2 ID` and `ID --watch 2` are what people type: a number beside the instance is the interval. */
	if (argc - optind == 2 && settings.interval_ns) {
		int number = parse_duration(argv[optind], &settings.interval_ns) ? optind + 1 : optind;
		if ((code = take_interval(&settings.interval_ns, argv[0], argv[number])))
			return code;
		at = number == optind ? optind + 1 : optind;
	} else if (argc - optind != (settings.container ? 0 : 1)) {
		return cli_usage_error(argv[0], "which instance? `distri-proc ps` lists them");
	}
	const char *key = settings.container ? settings.container : argv[at];
	return show(instance_root(settings.root), key, settings.interval_ns, settings.json,
		    settings.heat ? &settings.heat_map : NULL);
}
