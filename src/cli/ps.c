/* ps: the instances of this host. */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/commit_line.h"
#include "instance/instance.h"
#include "instance/process.h"
#include "instance/stats.h"
#include "sys/proc.h"

static const char usage[] =
	"Usage: distri-proc ps [--group NAME|--groups|--container ID] [--json] [--root DIRECTORY]\n"
	"\n"
	"Lists the process trees restored on this host.\n"
	"\n"
	"  --group NAME      only those of a group (`run --count`)\n"
	"  --groups          a line for each group instead; those of no group have one of their own\n"
	"  --container ID    only that of a container, by its name or the beginning of it\n"
	"  --json            one object, sizes in bytes, times in ns\n"
	"  --root DIRECTORY  registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n";

struct row {
	const struct instance *instance;
	size_t tasks;
	bool has_stats, local; /* local: the pager has left */
	uint64_t budget_bytes, resident_bytes, remote_bytes, faults, corrupt_pages, uptime_ns;
};

static bool is_unsupervised(const struct row *row)
{
	const struct instance *instance = row->instance;
	return instance->running && row->tasks && !row->local &&
	       !process_is_alive(instance->supervisor.pid, instance->supervisor.start_time);
}

static const char *state_of(const struct row *row)
{
	if (row->instance->spare)
		return "spare";
	if (!row->instance->running)
		return "restoring";
	if (!row->tasks)
		return "ending";
	if (row->local) /* it needs nobody */
		return "local";
	return is_unsupervised(row) ? "unsupervised" : "running";
}

/* Of an instance that no pager counts any more. */
static uint64_t anonymous_bytes(const pid_t *tasks, size_t count)
{
	uint64_t bytes = 0;
	struct proc_pss pss;
	for (size_t i = 0; i < count; i++)
		if (!proc_read_pss(tasks[i], &pss))
			bytes += pss.anonymous_bytes;
	return bytes;
}

static void fill_row(struct row *row, const struct instance *instance)
{
	char path[PATH_MAX];
	struct timespec now;
	pid_t *tasks = NULL;
	*row = (struct row){ .instance = instance, .budget_bytes = instance->budget_bytes };
	if (instance_tasks(instance, &tasks, &row->tasks))
		row->tasks = 0;
	clock_gettime(CLOCK_REALTIME, &now);
	uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	row->uptime_ns = now_ns > instance->created_unix_ns ? now_ns - instance->created_unix_ns : 0;
	struct pager_stats *stats = stats_map(instance_path(instance, "stats", path, sizeof(path)), 0, NULL);
	if (!stats) { /* the pager has not come so far yet */
		free(tasks);
		return;
	}
	row->has_stats = true;
	if (row->tasks && stats->tasks)
		row->tasks = stats->tasks; /* without helpers of ours */
	row->resident_bytes = stats->resident_pages * PAGE_BYTES;
	row->remote_bytes = stats->remote_pages * PAGE_BYTES;
	row->corrupt_pages = stats->corrupt_pages;
	row->local = stats->left_ns > 0;
	if (row->local)
		row->resident_bytes = anonymous_bytes(tasks, row->tasks);
	if (instance->budget_bytes && !stats->budget_pages)
		row->budget_bytes = 0; /* it was lifted */
	free(tasks);
	for (int i = 0; i < FAULT_KINDS; i++)
		row->faults += stats->faults[i];
	stats_unmap(stats);
}

static json_object *row_json(const struct row *row)
{
	const struct instance *instance = row->instance;
	json_object *object = json_object_new_object();
	json_object_object_add(object, "id", json_object_new_string(instance->id));
	json_object_object_add(object, "name", json_object_new_string(instance->name));
	json_object_object_add(object, "group", json_object_new_string(instance->group));
	json_object_object_add(object, "snapshot", json_object_new_string(instance->snapshot));
	json_object_object_add(object, "pool", json_object_new_string(instance->pool));
	json_object_object_add(object, "state", json_object_new_string(state_of(row)));
	json_object_object_add(object, "pid", json_object_new_int(instance->root.pid));
	json_object_object_add(object, "init_pid", json_object_new_int(instance->init.pid));
	json_object_object_add(object, "pager_pid", json_object_new_int(instance->pager.pid));
	json_object_object_add(object, "supervisor_pid", json_object_new_int(instance->supervisor.pid));
	json_object_object_add(object, "directory", json_object_new_string(instance->directory));
	json_object_object_add(object, "tasks", json_object_new_uint64(row->tasks));
	json_object_object_add(object, "snapshot_bytes", json_object_new_uint64(instance->snapshot_pages * PAGE_BYTES));
	json_object_object_add(object, "budget_bytes", json_object_new_uint64(row->budget_bytes));
	json_object_object_add(object, "resident_bytes", row->has_stats ? json_object_new_uint64(row->resident_bytes) : NULL);
	json_object_object_add(object, "remote_bytes", row->has_stats ? json_object_new_uint64(row->remote_bytes) : NULL);
	json_object_object_add(object, "faults", row->has_stats ? json_object_new_uint64(row->faults) : NULL);
	json_object_object_add(object, "commit", commit_line_note_json(instance));
	json_object_object_add(object, "corrupt_pages", row->has_stats ? json_object_new_uint64(row->corrupt_pages) : NULL);
	json_object_object_add(object, "restore_ns", json_object_new_uint64(instance->restore_ns));
	json_object_object_add(object, "uptime_ns", json_object_new_uint64(row->uptime_ns));
	return object;
}

static void print_json(const struct instance *list, size_t count)
{
	json_object *all = json_object_new_object(), *rows = json_object_new_array();
	json_object_object_add(all, "schema", json_object_new_string("distriproc.ps/1"));
	json_object_object_add(all, "instances", rows);
	for (size_t i = 0; i < count; i++) {
		struct row row;
		fill_row(&row, &list[i]);
		json_object_array_add(rows, row_json(&row));
	}
	cli_print_json(all);
}

static const char *format_uptime(uint64_t ns, char *buffer, size_t size)
{
	uint64_t seconds = ns / 1000000000u;
	if (seconds < 120)
		snprintf(buffer, size, "%us", (unsigned)seconds);
	else if (seconds < 7200)
		snprintf(buffer, size, "%um", (unsigned)(seconds / 60));
	else if (seconds < 48 * 3600)
		snprintf(buffer, size, "%uh", (unsigned)(seconds / 3600));
	else
		snprintf(buffer, size, "%ud", (unsigned)(seconds / 86400));
	return buffer;
}

static void print_table(const struct instance *list, size_t count)
{
	int id = 2, name = 4, snapshot = 8;
	for (size_t i = 0; i < count; i++) {
		id = DP_MAX(id, (int)strlen(list[i].id));
		name = DP_MAX(name, (int)strlen(list[i].name));
		snapshot = DP_MAX(snapshot, (int)strlen(list[i].snapshot));
	}
	printf("%-*s  %-*s  %-*s  %7s  %-12s  %5s  %10s  %10s  %10s  %6s  %6s\n", id, "ID", name, "NAME", snapshot, "SNAPSHOT",
	       "PID", "STATE", "TASKS", "RESIDENT", "BUDGET", "FAULTS", "UPTIME", "COMMIT");
	for (size_t i = 0; i < count; i++) {
		char resident[32] = "-", budget[32] = "none", faults[32] = "-", uptime[32], commit[32];
		struct row row;
		fill_row(&row, &list[i]);
		if (row.has_stats) {
			format_size(row.resident_bytes, resident, sizeof(resident));
			snprintf(faults, sizeof(faults), "%llu", (unsigned long long)row.faults);
		}
		if (row.budget_bytes)
			format_size(row.budget_bytes, budget, sizeof(budget));
		printf("%-*s  %-*s  %-*s  %7d  %-12s  %5zu  %10s  %10s  %10s  %6s  %6s\n", id, list[i].id, name, list[i].name,
		       snapshot, list[i].snapshot, (int)list[i].root.pid, state_of(&row), row.tasks, resident, budget, faults,
		       format_uptime(row.uptime_ns, uptime, sizeof(uptime)),
		       commit_line_age_text(&list[i], commit, sizeof(commit)));
		if (row.corrupt_pages)
			printf("%s: %llu corrupt pages, each a bus error where it was touched; see %s/pager.log\n", list[i].id,
			       (unsigned long long)row.corrupt_pages, list[i].directory);
		if (is_unsupervised(&row))
			printf("%s: its supervisor was killed; it runs on, but is killed if its pager ends too. `distri-proc migrate-in --lift-budget %s` "
			       "brings all its memory here, and it needs neither; or checkpoint it, and restore it again\n",
			       list[i].id, list[i].id);
	}
}

struct group {
	const char *name, *snapshot;
	size_t instances, running, tasks;
	uint64_t resident_bytes, remote_bytes, faults;
};

/* Groups in the order of their oldest instances; fresh array. */
static struct group *sum_groups(const struct instance *list, size_t count, size_t *group_count)
{
	struct group *groups = calloc(count + 1, sizeof(*groups));
	*group_count = 0;
	for (size_t i = 0; groups && i < count; i++) {
		const char *name = list[i].group[0] ? list[i].group : "-";
		size_t at = 0;
		struct row row;
		while (at < *group_count && (strcmp(groups[at].name, name) || strcmp(groups[at].snapshot, list[i].snapshot)))
			at++;
		*group_count = DP_MAX(*group_count, at + 1);
		fill_row(&row, &list[i]);
		groups[at].name = name;
		groups[at].snapshot = list[i].snapshot;
		groups[at].instances++;
		groups[at].running += list[i].running;
		groups[at].tasks += row.tasks;
		groups[at].resident_bytes += row.resident_bytes;
		groups[at].remote_bytes += row.remote_bytes;
		groups[at].faults += row.faults;
	}
	return groups;
}

static void print_groups_json(const struct group *groups, size_t count)
{
	json_object *all = json_object_new_object(), *rows = json_object_new_array();
	json_object_object_add(all, "schema", json_object_new_string("distriproc.groups/1"));
	json_object_object_add(all, "groups", rows);
	for (size_t i = 0; i < count; i++) {
		json_object *object = json_object_new_object();
		json_object_object_add(object, "group", json_object_new_string(groups[i].name));
		json_object_object_add(object, "snapshot", json_object_new_string(groups[i].snapshot));
		json_object_object_add(object, "instances", json_object_new_uint64(groups[i].instances));
		json_object_object_add(object, "running", json_object_new_uint64(groups[i].running));
		json_object_object_add(object, "tasks", json_object_new_uint64(groups[i].tasks));
		json_object_object_add(object, "resident_bytes", json_object_new_uint64(groups[i].resident_bytes));
		json_object_object_add(object, "remote_bytes", json_object_new_uint64(groups[i].remote_bytes));
		json_object_object_add(object, "faults", json_object_new_uint64(groups[i].faults));
		json_object_array_add(rows, object);
	}
	cli_print_json(all);
}

static int print_groups(const struct instance *list, size_t count, bool json)
{
	size_t group_count;
	int name = 5, snapshot = 8;
	cleanup_free struct group *groups = sum_groups(list, count, &group_count);
	if (!groups)
		return cli_print_error(-ENOMEM, NULL, json);
	if (json) {
		print_groups_json(groups, group_count);
		return EXIT_OK;
	}
	for (size_t i = 0; i < group_count; i++) {
		name = DP_MAX(name, (int)strlen(groups[i].name));
		snapshot = DP_MAX(snapshot, (int)strlen(groups[i].snapshot));
	}
	printf("%-*s  %-*s  %9s  %7s  %5s  %10s  %10s  %10s\n", name, "GROUP", snapshot, "SNAPSHOT", "INSTANCES", "RUNNING", "TASKS",
	       "RESIDENT", "REMOTE", "FAULTS");
	for (size_t i = 0; i < group_count; i++) {
		const struct group *group = &groups[i];
		char resident[32], remote[32];
		printf("%-*s  %-*s  %9zu  %7zu  %5zu  %10s  %10s  %10llu\n", name, group->name, snapshot, group->snapshot,
		       group->instances, group->running, group->tasks,
		       format_size(group->resident_bytes, resident, sizeof(resident)),
		       format_size(group->remote_bytes, remote, sizeof(remote)), (unsigned long long)group->faults);
	}
	return EXIT_OK;
}

/* Only those of the group stay, in their order. */
static size_t keep_group(struct instance *list, size_t count, const char *group)
{
	size_t kept = 0;
	for (size_t i = 0; i < count; i++)
		if (!strcmp(list[i].group, group))
			list[kept++] = list[i];
	return kept;
}

static size_t keep_container(struct instance *list, size_t count, const char *container)
{
	size_t kept = 0;
	for (size_t i = 0; i < count; i++)
		if (list[i].container[0] && !strncmp(list[i].container, container, strlen(container)))
			list[kept++] = list[i];
	return kept;
}

int cmd_ps(int argc, char **argv)
{
	static const struct option options[] = {
		{ "group", required_argument, NULL, 'g' }, { "groups", no_argument, NULL, 's' },
		{ "container", required_argument, NULL, 'c' },
		{ "json", no_argument, NULL, 'j' }, { "root", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' }, { 0 },
	};
	bool json = false, groups = false;
	const char *root = NULL, *group = NULL, *container = NULL;
	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		if (option == 'j')
			json = true;
		else if (option == 'g')
			group = optarg;
		else if (option == 's')
			groups = true;
		else if (option == 'c')
			container = optarg;
		else if (option == 'r')
			root = optarg;
		else if (option == 'h')
			return fputs(usage, stdout), EXIT_OK;
		else
			return cli_usage_hint(argv[0]);
	}
	if (optind != argc)
		return cli_usage_error(argv[0], "takes no arguments");
	struct dp_err err;
	struct instance *list;
	size_t count;
	int ret = instance_list(instance_root(root), &list, &count, &err); /* keeps the last words of what was killed; then */
	instance_sweep_memory();
	if (ret)
		return cli_print_error(ret, &err, json);
	if (group)
		count = keep_group(list, count, group);
	if (container)
		count = keep_container(list, count, container);
	int code = EXIT_OK;
	if (groups)
		code = print_groups(list, count, json);
	else if (json)
		print_json(list, count);
	else
		print_table(list, count);
	free(list);
	return code;
}
