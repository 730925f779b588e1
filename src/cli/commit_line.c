#include "cli/commit_line.h"

#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <signal.h>
#include <string.h>

#include "base/base.h"
#include "checkpoint/commit_loop.h"
#include "cli/cli.h"

#define LEAST_INTERVAL_NS 100000000u
#define MOST_INTERVAL_NS (366ull * 24 * 3600 * 1000000000)
#define MOST_KEPT 10000

static volatile bool stop;

static void on_signal(int number)
{
	(void)number;
	stop = true;
}

const volatile bool *commit_line_until_signal(void)
{
	static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };
	for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++)
		sigaction(numbers[i], &(const struct sigaction){ .sa_handler = on_signal }, NULL);
	return &stop;
}

static void print_json(const struct commit_result *result)
{
	const struct {
		const char *name;
		uint64_t number;
	} numbers[] = {
		{ "unix_ns", result->unix_ns }, { "pages", result->pages }, { "pushed_pages", result->pushed_pages },
		{ "sent_pages", result->sent_pages }, { "bytes", result->bytes }, { "frozen_ns", result->frozen_ns },
		{ "total_ns", result->total_ns }, { "removed", result->removed },
	};
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.commit/1"));
	json_object_object_add(object, "snapshot", json_object_new_string(result->snapshot));
	for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++)
		json_object_object_add(object, numbers[i].name, json_object_new_uint64(numbers[i].number));
	cli_print_json(object);
}

void commit_line_print(const struct commit_line *line, const struct commit_result *result)
{
	char bytes[32], removed[64] = "";
	if (line->json) {
		print_json(result);
	} else {
		if (result->removed)
			snprintf(removed, sizeof(removed), ", %llu older removed", (unsigned long long)result->removed);
		printf("%s %s: %s travelled (%llu pages ahead, %llu in the freeze), frozen %.0f ms, %.0f ms in all%s\n",
		       line->verb, result->snapshot, format_size(result->bytes, bytes, sizeof(bytes)),
		       (unsigned long long)result->pushed_pages, (unsigned long long)result->sent_pages,
		       (double)result->frozen_ns / 1e6, (double)result->total_ns / 1e6, removed);
	}
	fflush(stdout);
}

static void on_commit(void *context, int ret, const struct commit_result *result, const struct dp_err *err)
{
	const struct commit_line *line = context;
	if (ret)
		cli_print_error(ret, err, line->json);
	else
		commit_line_print(line, result);
	fflush(stdout);
}

void commit_line_loop(const struct commit_line *line, struct committer *committer, uint64_t interval_ns)
{
	const struct commit_loop loop = {
		.committer = committer,
		.interval_ns = interval_ns,
		.stop = commit_line_until_signal(),
		.on_commit = on_commit,
		.context = (void *)(uintptr_t)line,
	};
	commit_loop_run(&loop);
}

static bool load_note(const struct instance *instance, struct commit_note *note)
{
	char root[sizeof(instance->directory)];
	snprintf(root, sizeof(root), "%s", instance->directory);
	char *slash = strrchr(root, '/');
	if (!slash)
		return false;
	*slash = 0;
	return !commits_load(root, instance->id, note) && (note->snapshot[0] || note->error[0]);
}

struct json_object *commit_line_note_json(const struct instance *instance)
{
	struct commit_note note;
	if (!load_note(instance, &note))
		return NULL;
	json_object *object = json_object_new_object();
	const struct {
		const char *name;
		uint64_t number;
	} numbers[] = {
		{ "unix_ns", note.unix_ns },	 { "age_ns", commits_age_ns(&note) }, { "bytes", note.bytes },
		{ "frozen_ns", note.frozen_ns }, { "total_ns", note.total_ns },	      { "count", note.count },
		{ "failures", note.failures },	 { "interval_ns", note.interval_ns },
	};
	json_object_object_add(object, "snapshot", json_object_new_string(note.snapshot));
	json_object_object_add(object, "kind", json_object_new_string(note.kind));
	json_object_object_add(object, "error", json_object_new_string(note.error));
	for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++)
		json_object_object_add(object, numbers[i].name, json_object_new_uint64(numbers[i].number));
	return object;
}

static const char *age_text(const struct commit_note *note, char *text, size_t size)
{
	uint64_t seconds = commits_age_ns(note) / 1000000000u;
	if (!note->snapshot[0])
		snprintf(text, size, "none");
	else if (seconds < 120)
		snprintf(text, size, "%us", (unsigned)seconds);
	else if (seconds < 7200)
		snprintf(text, size, "%um", (unsigned)(seconds / 60));
	else
		snprintf(text, size, "%uh", (unsigned)(seconds / 3600));
	return text;
}

const char *commit_line_age_text(const struct instance *instance, char *text, size_t size)
{
	struct commit_note note;
	snprintf(text, size, "-");
	return load_note(instance, &note) ? age_text(&note, text, size) : text;
}

const char *commit_line_note_text(const struct instance *instance, char *text, size_t size)
{
	struct commit_note note;
	char age[32], bytes[32];
	text[0] = 0;
	if (load_note(instance, &note))
		snprintf(text, size, "%s ago, %s travelled, frozen %.0f ms, %.0f ms in all, failed %llu%s%s",
			 age_text(&note, age, sizeof(age)), format_size(note.bytes, bytes, sizeof(bytes)),
			 (double)note.frozen_ns / 1e6, (double)note.total_ns / 1e6, (unsigned long long)note.failures,
			 note.error[0] ? "; the last try: " : "", note.error);
	return text;
}

static int read_keep(const char *command, const char *text, unsigned *keep)
{
	char *end;
	long number = strtol(text, &end, 10);
	if (end == text || *end || number < 1 || number > MOST_KEPT)
		return cli_usage_error(command, "--keep takes a number from 1 to %d", MOST_KEPT);
	*keep = (unsigned)number;
	return 0;
}

int commit_line_interval(const char *command, const char *option, const char *text, uint64_t *interval_ns)
{
	if (parse_duration(text, interval_ns) || *interval_ns < LEAST_INTERVAL_NS || *interval_ns > MOST_INTERVAL_NS)
		return cli_usage_error(command, "%s takes a time of at least 100ms, such as 5s or 1m", option);
	return 0;
}

static int read_rate(const char *command, const char *text, uint64_t *rate_bytes)
{
	return parse_size(text, rate_bytes) ? cli_usage_error(command, "--rate takes bytes a second, such as 100M") : 0;
}

int commit_line_option(struct commit_settings *settings, const char *command, int option)
{
	struct commit_options *commit = &settings->commit;
	switch (option) {
	case COMMIT_KEEP: return read_keep(command, optarg, &commit->keep);
	case COMMIT_EVERY: return commit_line_interval(command, "--every", optarg, &commit->interval_ns);
	case COMMIT_RATE: return read_rate(command, optarg, &commit->rate_bytes);
	case COMMIT_CRIU_OPTION:
		return cli_criu_option(command, optarg, settings->criu_arguments, &commit->criu_argument_count,
				       COMMIT_CRIU_ARGUMENTS);
	case COMMIT_JSON: settings->line.json = true; return 0;
	case COMMIT_ROOT: commit->registry = instance_root(optarg); return 0;
	case 'v': commit->verbose = true; return 0;
	case 'h': settings->help = true; return 0;
	default: return cli_usage_hint(command);
	}
}
