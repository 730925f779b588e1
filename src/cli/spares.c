/* spares: lists and ends those that keep instances ready (`run --pre-created`). */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <string.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "restore/spares.h"

static const char usage[] =
	"Usage: distri-proc spares [--json] [SNAPSHOT]\n"
	"       distri-proc spares --stop [--json] [SNAPSHOT]\n"
	"\n"
	"Lists what `run --pre-created` keeps ready, a line for each snapshot and set of options, or ends it.\n"
	"SNAPSHOT is REPO:TAG, or a key of the list.\n"
	"\n"
	"  --stop            end these spares and the process that keeps them; without SNAPSHOT all\n"
	"  --json            one object\n"
	"  --root DIRECTORY  registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n";

static bool is_meant(const struct spares_status *status, const char *snapshot)
{
	char normal[256];
	if (!snapshot || !strcmp(status->key, snapshot))
		return true;
	return !endpoint_name_check(snapshot, normal, NULL) && !strcmp(status->snapshot, normal);
}

static json_object *to_json(const struct spares_status *status)
{
	json_object *object = json_object_new_object();
	json_object_object_add(object, "key", json_object_new_string(status->key));
	json_object_object_add(object, "snapshot", json_object_new_string(status->snapshot));
	json_object_object_add(object, "pool", json_object_new_string(status->pool));
	json_object_object_add(object, "network", json_object_new_string(status->network));
	json_object_object_add(object, "pid", json_object_new_int(status->pid));
	json_object_object_add(object, "wanted", json_object_new_uint64(status->wanted));
	json_object_object_add(object, "ready", json_object_new_uint64(status->ready));
	json_object_object_add(object, "taken", json_object_new_uint64(status->taken));
	json_object_object_add(object, "missed", json_object_new_uint64(status->missed));
	json_object_object_add(object, "failed", json_object_new_uint64(status->failed));
	json_object_object_add(object, "error", json_object_new_string(status->error));
	json_object_object_add(object, "ends_in_ns", json_object_new_uint64(status->left_ns));
	return object;
}

static void print_line(const struct spares_status *status, int width, bool first)
{
	if (first)
		printf("%-16s  %-*s  %-7s  %7s  %6s  %6s  %6s  %6s  %7s\n", "KEY", width, "SNAPSHOT", "NETWORK", "KEEPER", "READY",
		       "WANTED", "TAKEN", "MISSED", "ENDS IN");
	printf("%-16s  %-*s  %-7s  %7d  %6u  %6u  %6llu  %6llu  %6llus\n", status->key, width, status->snapshot, status->network,
	       (int)status->pid, status->ready, status->wanted, (unsigned long long)status->taken,
	       (unsigned long long)status->missed, (unsigned long long)(status->left_ns / 1000000000u));
	if (status->error[0])
		printf("  the last one could not be made: %s\n", status->error);
}

static int list_or_stop(const char *root, const char *snapshot, bool stop, bool json)
{
	struct dp_err err;
	cleanup_free struct spares_status *list = NULL;
	size_t count, meant = 0;
	int width = 8, ret = spares_list(root, &list, &count, &err);
	json_object *rows = json_object_new_array();
	for (size_t i = 0; i < count && !ret; i++)
		width = DP_MAX(width, (int)strlen(list[i].snapshot));
	for (size_t i = 0; i < count && !ret; i++) {
		if (!is_meant(&list[i], snapshot))
			continue;
		if (stop)
			ret = spares_end(root, list[i].key, &err);
		json_object_array_add(rows, to_json(&list[i]));
		if (!ret && !json && stop)
			printf("stopped the spares of %s\n", list[i].snapshot);
		else if (!ret && !json)
			print_line(&list[i], width, !meant);
		meant++;
	}
	if (!ret && !meant && snapshot)
		ret = dp_fail(&err, ENOENT, "there are no spares of %s", snapshot);
	if (ret || !json) {
		json_object_put(rows);
		return ret ? cli_print_error(ret, &err, json) : EXIT_OK;
	}
	json_object *all = json_object_new_object();
	json_object_object_add(all, "schema", json_object_new_string("distriproc.spares/1"));
	json_object_object_add(all, stop ? "stopped" : "spares", rows);
	cli_print_json(all);
	return EXIT_OK;
}

int cmd_spares(int argc, char **argv)
{
	static const struct option options[] = {
		{ "stop", no_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "root", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool stop = false, json = false;
	const char *root = NULL;
	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		if (option == 's')
			stop = true;
		else if (option == 'j')
			json = true;
		else if (option == 'r')
			root = optarg;
		else if (option == 'h')
			return fputs(usage, stdout), EXIT_OK;
		else
			return cli_usage_hint(argv[0]);
	}
	if (argc - optind > 1)
		return cli_usage_error(argv[0], "takes one snapshot at most");
	return list_or_stop(instance_root(root), argv[optind], stop, json);
}
