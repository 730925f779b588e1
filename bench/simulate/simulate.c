/* simulate: policies of the pager over traces, without a pager: `simulate [--prefetch|--replacement] [--local SHARE] [--json
 * FILE] [TRACE...]`.
 * Made-up traces always, and the recorded ones that are named. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simulate.h"

static const struct option long_options[] = {
	{ "prefetch", no_argument, NULL, 'p' },
	{ "replacement", no_argument, NULL, 'r' },
	{ "local", required_argument, NULL, 'l' },
	{ "json", required_argument, NULL, 'j' },
	{ NULL, 0, NULL, 0 },
};

static struct {
	bool prefetch, replacement;
	double share;
	const char *json;
} options = { .prefetch = true, .replacement = true, .share = 0.5 };

static void simulate(const struct trace *trace, const struct trace *again, json_object *replacement, json_object *prefetch)
{
	if (options.replacement)
		simulate_replacement(trace, options.share, replacement);
	if (options.prefetch)
		simulate_prefetch(trace, again, options.share, prefetch);
	fflush(stdout);
}

static int save(json_object *replacement, json_object *prefetch)
{
	json_object *all = json_object_new_object();
	json_object_object_add(all, "schema", json_object_new_string("distriproc.simulate/1"));
	json_object_object_add(all, "replacement", replacement);
	json_object_object_add(all, "prefetch", prefetch);
	int ret = options.json ? json_object_to_file_ext(options.json, all, JSON_C_TO_STRING_PRETTY) : 0;
	json_object_put(all);
	if (ret)
		fprintf(stderr, "simulate: cannot write %s\n", options.json);
	return ret ? 1 : 0;
}

int main(int argc, char **argv)
{
	json_object *replacement = json_object_new_array(), *prefetch = json_object_new_array();
	struct trace trace, again;
	for (int option; (option = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
		switch (option) {
		case 'p': options.replacement = false; break;
		case 'r': options.prefetch = false; break;
		case 'l': options.share = atof(optarg); break;
		case 'j': options.json = optarg; break;
		default: return 2;
		}
	if (options.share <= 0 || options.share >= 1) {
		fprintf(stderr, "simulate: --local takes a share between 0 and 1, such as 0.5\n");
		return 2;
	}
	for (unsigned number = 0; trace_make(&trace, number, 1); number++) {
		trace_make(&again, number, 2);
		simulate(&trace, &again, replacement, prefetch);
		trace_done(&trace);
		trace_done(&again);
	}
	for (int i = optind; i < argc; i++) {
		if (!trace_read(&trace, argv[i]))
			return 1;
		simulate(&trace, NULL, replacement, prefetch);
		trace_done(&trace);
	}
	return save(replacement, prefetch);
}
