#include "cli/cli.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "checkpoint/checkpoint.h"

int cli_exit_code(int result)
{
	if (result >= 0)
		return EXIT_OK;
	switch (-result) {
	case EINVAL:
	case ERANGE:
		return EXIT_USAGE;
	case EOPNOTSUPP:
	case ENOSYS:
		return EXIT_UNSUPPORTED;
	case EPERM:
	case EACCES:
		return EXIT_PRIVILEGE;
	case ENOPKG:
		return EXIT_NO_PROGRAM;
	case ENOENT:
	case ESRCH:
		return EXIT_NOT_FOUND;
	case ECONNREFUSED:
	case ECONNRESET:
	case EPIPE:
	case ETIMEDOUT:
	case EHOSTUNREACH:
	case ENETUNREACH:
	case ENOTCONN:
		return EXIT_UNREACHABLE;
	case ESTALE:
	case EBADMSG:
	case EPROTO:
	case EKEYREJECTED:
		return EXIT_INTEGRITY;
	default:
		return EXIT_FAILED;
	}
}

void cli_print_json(struct json_object *object)
{
	puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	fflush(stdout);
	json_object_put(object);
}

int cli_print_error(int result, const struct dp_err *err, bool json)
{
	int code = cli_exit_code(result);
	const char *text = err && err->text[0] ? err->text : strerror(result < 0 ? -result : EIO);
	fprintf(stderr, "distri-proc: %s\n", text);
	if (!json)
		return code;
	struct json_object *inner = json_object_new_object();
	json_object_object_add(inner, "code", json_object_new_int(code));
	json_object_object_add(inner, "errno", json_object_new_int(result < 0 ? -result : 0));
	json_object_object_add(inner, "message", json_object_new_string(text));
	json_object_object_add(inner, "retryable", json_object_new_boolean(code == EXIT_UNREACHABLE));
	struct json_object *outer = json_object_new_object();
	json_object_object_add(outer, "error", inner);
	cli_print_json(outer);
	return code;
}

int cli_usage_hint(const char *command)
{
	return EXIT_USAGE;
}

int cli_usage_error(const char *command, const char *format, ...)
{
	char text[512];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fprintf(stderr, "%s: %s; see '%s --help'\n", command, text, command);
	return EXIT_USAGE;
}

#define LONGEST_WORD 32

/* Levenshtein's distance with two rows. */
static unsigned edit_distance(const char *from, const char *to)
{
	unsigned row[LONGEST_WORD + 1];
	size_t width = strlen(to);
	if (width > LONGEST_WORD || strlen(from) > LONGEST_WORD)
		return LONGEST_WORD;
	for (size_t x = 0; x <= width; x++)
		row[x] = (unsigned)x;
	for (size_t y = 0; from[y]; y++) {
		unsigned diagonal = row[0];
		row[0] = (unsigned)y + 1;
		for (size_t x = 0; x < width; x++) {
			unsigned replaced = diagonal + (from[y] != to[x]);
			diagonal = row[x + 1];
			row[x + 1] = DP_MIN(replaced, DP_MIN(diagonal, row[x]) + 1);
		}
	}
	return row[width];
}

const char *cli_nearest(const char *word, const char *const *candidates, unsigned count)
{
	const char *nearest = NULL;
	unsigned best = (unsigned)strlen(word) / 2 + 1;
	for (unsigned i = 0; i < count; i++) {
		unsigned distance = edit_distance(word, candidates[i]);
		if (distance < best) {
			best = distance;
			nearest = candidates[i];
		}
	}
	return nearest;
}

int cli_criu_option(const char *command, char *option, char **list, size_t *count, size_t room)
{
	struct dp_err err;
	if (checkpoint_check_option(option, &err) < 0)
		return cli_usage_error(command, "%s", err.text);
	if (strncmp(option, "--", 2))
		return cli_usage_error(command, "write CRIU's option in its long form: --criu-option=--name[=value], not '%s'",
				       option);
	if (*count == room)
		return cli_usage_error(command, "more than %zu options for CRIU", room);
	list[(*count)++] = option;
	return 0;
}
