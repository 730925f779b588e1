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
/* Until the tree has ended, or SIGINT, SIGTERM or SIGHUP. A failure is a line on stderr, and goes on. */
void commit_line_loop(const struct commit_line *line, struct committer *committer, uint64_t interval_ns);

/* What this host noted of an instance's last commit: an object for JSON, or NULL; its age, bytes and frozen time as text, or
 * "". */
struct json_object *commit_line_note_json(const struct instance *instance);
const char *commit_line_note_text(const struct instance *instance, char *text, size_t size);
/* Age alone, such as 12s; "-" where there is none. */
const char *commit_line_age_text(const struct instance *instance, char *text, size_t size);

/* 0, or the exit code after a message. `command` is argv[0]. */
int commit_line_keep(const char *command, const char *text, unsigned *keep);
int commit_line_interval(const char *command, const char *option, const char *text, uint64_t *interval_ns);
int commit_line_criu_option(const char *command, char *text, char **arguments, size_t limit, size_t *count);

#endif
