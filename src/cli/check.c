/* check: what this host can do. */
#include <getopt.h>
#include <json-c/json.h>
#include <stdio.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "sys/probe.h"

static const char help[] =
	"Usage: distri-proc check [--json]\n"
	"Says what this host can do, one line each: yes or no, the name, whether the main job (checkpoint a process into a\n"
	"pool, restore it with remote memory) requires it, and what was found. A \"no\" comes with its reason and the remedy.\n"
	"Each feature is tried, not guessed; nothing on the host is changed.\n"
	"\n"
	"  --json    one object: {\"schema\":\"distriproc.check/1\",\"can_run\":...,\"features\":[...]}\n"
	"  --help    this text\n"
	"\n"
	"Exit code: 0 if the main job can run, 3 if not.\n";

static void print_json(const struct probe_result *results, size_t count, bool can_run)
{
	struct json_object *features = json_object_new_array();
	for (size_t i = 0; i < count; i++) {
		const struct probe_result *result = &results[i];
		struct json_object *feature = json_object_new_object();
		json_object_object_add(feature, "name", json_object_new_string(result->name));
		json_object_object_add(feature, "present", json_object_new_boolean(result->present));
		json_object_object_add(feature, "required", json_object_new_boolean(result->required));
		json_object_object_add(feature, "detail", json_object_new_string(result->detail));
		json_object_object_add(feature, "remedy", result->present ? NULL : json_object_new_string(result->remedy));
		json_object_array_add(features, feature);
	}
	struct json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.check/1"));
	json_object_object_add(object, "version", json_object_new_string(DP_VERSION));
	json_object_object_add(object, "can_run", json_object_new_boolean(can_run));
	json_object_object_add(object, "features", features);
	cli_print_json(object);
}

static void print_table(const struct probe_result *results, size_t count, bool can_run)
{
	for (size_t i = 0; i < count; i++) {
		const struct probe_result *result = &results[i];
		printf("%-3s  %-22s  %s  %s", result->present ? "yes" : "no", result->name,
		       result->required ? "required" : "optional", result->detail);
		printf(result->present ? "\n" : "; remedy: %s\n", result->remedy);
	}
	puts(can_run ? "The main job can run here." : "The main job cannot run here: see each required \"no\" above.");
}

int cmd_check(int argc, char **argv)
{
	static const struct option options[] = { { "json", no_argument, NULL, 'j' }, { "help", no_argument, NULL, 'h' }, { 0 } };
	bool json = false;
	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		switch (option) {
		case 'j':
			json = true;
			break;
		case 'h':
			fputs(help, stdout);
			return EXIT_OK;
		default:
			return cli_usage_hint(argv[0]);
		}
	}
	if (optind < argc)
		return cli_usage_error(argv[0], "no argument is expected, got '%s'", argv[optind]);

	struct probe_result results[PROBE_MAX];
	size_t count = probe_all(results);
	bool can_run = probe_main_job_can_run(results, count);
	if (json)
		print_json(results, count, can_run);
	else
		print_table(results, count, can_run);
	return can_run ? EXIT_OK : EXIT_UNSUPPORTED;
}
