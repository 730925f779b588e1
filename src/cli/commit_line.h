/* commit_line: what `commit` and `protect` share: the line of each commit, the loop that a signal ends, a few options. */
#ifndef DP_CLI_COMMIT_LINE_H
#define DP_CLI_COMMIT_LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checkpoint/commit.h"

struct json_object;

struct commit_line {
	const char *verb; /* committed, protected */
	bool json;
};

void commit_line_print(const struct commit_line *line, const struct commit_result *result);
/* What becomes true by SIGINT, SIGTERM or SIGHUP from now on. */
const volatile bool *commit_line_until_signal(void);
/* Until the tree has ended, or SIGINT, SIGTERM or SIGHUP. A failure is a line on stderr, and goes on. */
void commit_line_loop(const struct commit_line *line, struct committer *committer, uint64_t interval_ns);

/* What this host noted of an instance's last commit: an object for JSON, or NULL; its age, bytes and frozen time as text, or
 * "". */
struct json_object *commit_line_note_json(const struct instance *instance);
const char *commit_line_note_text(const struct instance *instance, char *text, size_t size);
/* Age alone, such as 12s; "-" where there is none. */
const char *commit_line_age_text(const struct instance *instance, char *text, size_t size);

#define COMMIT_CRIU_ARGUMENTS 32

/* The options that both commands have, into what; `commit.criu_arguments` must be `criu_arguments`, whose texts are of argv. */
struct commit_settings {
	struct commit_options commit;
	char *criu_arguments[COMMIT_CRIU_ARGUMENTS];
	struct commit_line line;
	bool help;
};

enum { COMMIT_KEEP = 256, COMMIT_EVERY, COMMIT_RATE, COMMIT_CRIU_OPTION, COMMIT_JSON, COMMIT_ROOT, COMMIT_OWN_OPTIONS };

/* The first entries of a table for getopt_long; a command's own begin at COMMIT_OWN_OPTIONS. */
#define COMMIT_OPTIONS                                                                                                           \
	{ "keep", required_argument, NULL, COMMIT_KEEP }, { "every", required_argument, NULL, COMMIT_EVERY },                    \
		{ "rate", required_argument, NULL, COMMIT_RATE }, { "criu-option", required_argument, NULL, COMMIT_CRIU_OPTION }, \
		{ "json", no_argument, NULL, COMMIT_JSON }, { "root", required_argument, NULL, COMMIT_ROOT },                    \
		{ "verbose", no_argument, NULL, 'v' },                                                                           \
	{                                                                                                                        \
		"help", no_argument, NULL, 'h'                                                                                   \
	}

/* A time between states. 0, or the exit code after a message; `command` is argv[0]. */
int commit_line_interval(const char *command, const char *option, const char *text, uint64_t *interval_ns);
/* Takes one of those, with getopt's optarg. The same. */
int commit_line_option(struct commit_settings *settings, const char *command, int option);

#endif
