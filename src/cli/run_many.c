#include "cli/run_many.h"

#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <string.h>

#include "base/base.h"
#include "cli/cli.h"
#include "restore/many.h"

#define REDRAW_NS 100000000u

struct progress {
	const struct run_many *run;
	bool terminal;
	unsigned failed;
	uint64_t began_ns, drawn_ns;
};

static void on_start(void *context, unsigned ended, const struct many_start *start)
{
	struct progress *progress = context;
	uint64_t now_ns = clock_now_ns();
	progress->failed += start->error != 0;
	if (!progress->terminal || (now_ns - progress->drawn_ns < REDRAW_NS && ended < progress->run->count))
		return;
	progress->drawn_ns = now_ns;
	fprintf(stderr, "\r%u of %u started, %.1f a second, %u failed ", ended - progress->failed, progress->run->count,
		(double)ended * 1e9 / (double)(now_ns - progress->began_ns + 1), progress->failed);
	if (ended == progress->run->count)
		fputc('\n', stderr);
	fflush(stderr);
}

/* "team/redis:prod" -> "redis" */
static void name_group(const struct run_many *run, char *group, size_t size)
{
	const char *name = run->restore->endpoint->name, *slash = strrchr(name, '/');
	const char *start = slash ? slash + 1 : name;
	if (run->name)
		snprintf(group, size, "%s", run->name);
	else
		snprintf(group, size, "%.*s", (int)DP_MIN(strcspn(start, ":"), 40u), start);
}

struct summary {
	const struct run_many *run;
	const char *group;
	const struct many_start *starts;
	unsigned running, spares;
	uint64_t elapsed_ns;
	struct many_memory memory; /* of all that run */
};

static uint64_t each(const struct summary *summary, uint64_t bytes)
{
	return summary->running ? bytes / summary->running : 0;
}

static double starts_a_second(const struct summary *summary)
{
	return (double)summary->running * 1e9 / (double)(summary->elapsed_ns + 1);
}

static json_object *lists_json(const struct summary *summary, bool failures)
{
	json_object *list = json_object_new_array();
	for (unsigned i = 0; i < summary->run->count; i++) {
		const struct many_start *start = &summary->starts[i];
		if ((start->error != 0) != failures)
			continue;
		json_object *object = json_object_new_object();
		if (failures) {
			json_object_object_add(object, "number", json_object_new_uint64(i + 1));
			json_object_object_add(object, "errno", json_object_new_int(-start->error));
			json_object_object_add(object, "message", json_object_new_string(start->text));
		} else {
			json_object_object_add(object, "name", json_object_new_string(start->instance.name));
			json_object_object_add(object, "id", json_object_new_string(start->instance.id));
			json_object_object_add(object, "pid", json_object_new_int(start->instance.root.pid));
			json_object_object_add(object, "elapsed_ns", json_object_new_uint64(start->elapsed_ns));
			json_object_object_add(object, "was_spare", json_object_new_boolean(start->was_spare));
		}
		json_object_array_add(list, object);
	}
	return list;
}

static void print_json(const struct summary *summary)
{
	json_object *object = json_object_new_object(), *memory = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.run/1"));
	json_object_object_add(object, "group", json_object_new_string(summary->group));
	json_object_object_add(object, "snapshot", json_object_new_string(summary->run->restore->endpoint->name));
	json_object_object_add(object, "asked", json_object_new_uint64(summary->run->count));
	json_object_object_add(object, "running", json_object_new_uint64(summary->running));
	json_object_object_add(object, "were_spares", json_object_new_uint64(summary->spares));
	json_object_object_add(object, "elapsed_ns", json_object_new_uint64(summary->elapsed_ns));
	json_object_object_add(object, "starts_per_second", json_object_new_double(starts_a_second(summary)));
	json_object_object_add(memory, "tree_bytes", json_object_new_uint64(each(summary, summary->memory.tree)));
	json_object_object_add(memory, "ours_bytes", json_object_new_uint64(each(summary, summary->memory.ours)));
	json_object_object_add(memory, "files_bytes", json_object_new_uint64(each(summary, summary->memory.files)));
	json_object_object_add(object, "memory_per_instance", memory);
	json_object_object_add(object, "instances", lists_json(summary, false));
	json_object_object_add(object, "failures", lists_json(summary, true));
	cli_print_json(object);
}

static void print_text(const struct summary *summary)
{
	char all[32], tree[32], ours[32], files[32];
	const struct many_memory *memory = &summary->memory;
	for (unsigned i = 0; i < summary->run->count; i++)
		if (summary->starts[i].error)
			fprintf(stderr, "distri-proc: number %u: %s\n", i + 1, summary->starts[i].text);
	if (!summary->running)
		return;
	printf("%u of %u running as group %s: %.1f starts a second, %u of them spares\n", summary->running, summary->run->count,
	       summary->group, starts_a_second(summary), summary->spares);
	printf("memory of each: %s (tree %s, distri-proc %s, files in memory %s)\n",
	       format_size(each(summary, memory->tree + memory->ours + memory->files), all, sizeof(all)),
	       format_size(each(summary, memory->tree), tree, sizeof(tree)),
	       format_size(each(summary, memory->ours), ours, sizeof(ours)),
	       format_size(each(summary, memory->files), files, sizeof(files)));
	fflush(stdout);
}

static int exit_code(const struct summary *summary)
{
	if (summary->running == summary->run->count)
		return EXIT_OK;
	for (unsigned i = 0; i < summary->run->count && !summary->running; i++)
		if (summary->starts[i].error && summary->starts[i].error != -ECANCELED)
			return cli_exit_code(summary->starts[i].error);
	return EXIT_PARTIAL;
}

static int start_and_tell(const struct run_many *run, const char *group, struct many_start *starts, const sigset_t *stop)
{
	struct progress progress = { .run = run, .terminal = isatty(2), .began_ns = clock_now_ns() };
	struct dp_err err = { "" };
	int first = many_first_number(run->restore->root, group, run->count, &err);
	if (first < 0)
		return cli_print_error(first, &err, run->json);
	const struct many_options options = {
		.restore = run->restore, .group = group, .first = (unsigned)first, .count = run->count, .parallel = run->parallel,
		.all_or_none = run->all_or_none, .keep = run->wait, .spares = true, .stop = stop, .on_start = on_start,
		.context = &progress,
	};
	int running = many_begin(&options, starts, &err);
	if (running < 0)
		return cli_print_error(running, &err, run->json);
	struct summary summary = { .run = run, .group = group, .starts = starts, .running = (unsigned)running,
				   .elapsed_ns = clock_now_ns() - progress.began_ns };
	for (unsigned i = 0; i < run->count; i++)
		if (!starts[i].error) {
			summary.spares += starts[i].was_spare;
			many_add_memory(&starts[i].instance, &summary.memory);
		}
	if (run->json)
		print_json(&summary);
	else
		print_text(&summary);
	return exit_code(&summary);
}

int run_many(const struct run_many *run)
{
	char group[INSTANCE_ID_BYTES];
	sigset_t stop;
	cleanup_free struct many_start *starts = calloc(run->count, sizeof(*starts));
	if (!starts)
		return cli_print_error(-ENOMEM, NULL, run->json);
	for (unsigned i = 0; i < run->count; i++)
		starts[i].report_fd = -1;
	if (run->name && strlen(run->name) >= sizeof(group) - 6)
		return cli_usage_error("distri-proc run", "--name %s is too long for %u numbers behind it", run->name, run->count);
	name_group(run, group, sizeof(group));
	sigemptyset(&stop);
	sigaddset(&stop, SIGINT);
	sigaddset(&stop, SIGTERM);
	sigaddset(&stop, SIGHUP);
	sigprocmask(SIG_BLOCK, &stop, NULL);
	int code = start_and_tell(run, group, starts, &stop);
	if (run->wait && many_wait(starts, run->count, &stop) && !code)
		code = EXIT_FAILED;
	return code;
}
