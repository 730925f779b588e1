/* criu_command: the command line of `criu restore`, and what its log says when it failed. */
#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "restore/criu_cache.h"
#include "restore/criu_libraries.h"
#include "restore/plan.h"
#include "sys/criu.h"

/* Fixed arguments, besides those of the caller. */
#define FIXED_ARGUMENTS 24

/* A mount namespace is made below --root; without one CRIU 4.2 crashes. */
static bool needs_root(const struct restore_plan *plan)
{
	const struct restore_options *options = plan->options;
	for (size_t i = 0; i < options->criu_argument_count; i++)
		if (!strncmp(options->criu_arguments[i], "--root=", 7))
			return false;
	return plan->own_mounts;
}

/* Connections that are locked and unlocked need the libraries. */
static bool needs_libraries(const struct restore_options *options)
{
	for (size_t i = 0; i < options->criu_argument_count; i++)
		if (!strncmp(options->criu_arguments[i], "--tcp-", 6) ||
		    !strncmp(options->criu_arguments[i], "--network-lock", 14))
			return true;
	return false;
}

int criu_command_make(const struct restore_plan *plan, struct criu_command *command, struct dp_err *err)
{
	const struct restore_options *options = plan->options;
	const struct instance *instance = &plan->instance;
	char criu_path[256];
	int ret = criu_find(criu_path, err);
	if (ret)
		return ret;
	command->kdat[0] = command->preload[0] = 0;
	/* It goes with a mount namespace of the tree's: on the host a killed init would leave it. */
	if (!options->host_pid_namespace)
		criu_cache_prepare(criu_path, command->kdat, sizeof(command->kdat));
	if (!needs_libraries(options))
		criu_libraries_prepare(criu_path, command->preload, sizeof(command->preload));
	char **list = calloc(FIXED_ARGUMENTS + options->criu_argument_count, sizeof(*list));
	if (!list)
		return dp_fail(err, ENOMEM, "out of memory");
	size_t count = 0;
	list[count++] = strdup(criu_path);
	list[count++] = "restore";
	list[count++] = "--no-default-config";
	list[count++] = "--lazy-pages";
	list[count++] = "--restore-detached";
	list[count++] = "--images-dir";
	list[count++] = format_text("%s/images", instance->directory);
	list[count++] = "--work-dir";
	list[count++] = format_text("%s/work", instance->directory);
	list[count++] = "--pidfile";
	list[count++] = format_text("%s/work/root.pid", instance->directory);
	list[count++] = "--log-file";
	list[count++] = format_text("%s/restore.log", instance->directory);
	list[count++] = options->verbose > 1 ? "-v4" : "-v2";
	if (needs_root(plan))
		list[count++] = "--root=/";
	if (options->working_set || options->hold) {
		ret = working_set_prepare(instance, options->working_set, options->hold, err);
		if (ret)
			return ret;
		list[count++] = format_text("--action-script=%s/" WORKING_SET_ACTION, instance->directory);
	}
	for (size_t i = 0; i < options->criu_argument_count; i++)
		list[count++] = options->criu_arguments[i];
	for (size_t i = 0; i < count; i++)
		if (!list[i])
			return dp_fail(err, ENOMEM, "out of memory");
	command->argv = list;
	return 0;
}

/* "(00.012345)   1234: Error (criu/files-reg.c:2171): Can't open file x" -> "Can't open file x"; NULL: no error line */
static char *error_of_line(char *line)
{
	char *mark = strstr(line, "Error (");
	if (!mark)
		return NULL;
	char *text = strstr(mark, "): ");
	return text ? text + 3 : mark;
}

/* Lines that say no more than that it went wrong. */
static bool says_nothing(const char *text)
{
	static const char *const phrases[] = { "Restoring FAILED", "Failed to wait for all tasks", "exited, status=" };
	for (size_t i = 0; i < ARRAY_LENGTH(phrases); i++)
		if (strstr(text, phrases[i]))
			return true;
	return false;
}

bool criu_text_last_error(char *log, char *text, size_t size)
{
	char *rest = log, *line;
	const char *last = NULL, *last_empty = NULL;
	while ((line = strsep(&rest, "\n"))) {
		const char *error = error_of_line(line);
		if (error && says_nothing(error))
			last_empty = error;
		else if (error)
			last = error;
	}
	if (!last)
		last = last_empty;
	if (last)
		snprintf(text, size, "%s", last);
	return last;
}

bool criu_log_last_error(const char *log_path, char *text, size_t size)
{
	cleanup_free char *log = NULL;
	return io_read_file(log_path, &log, 64u << 20) >= 0 && criu_text_last_error(log, text, size);
}
