/* cli: the command line. One file per subcommand: options in, a library call, output.
 *
 * A subcommand is `int cmd_<name>(int argc, char **argv)`, declared in commands.h, with one line in the table of main.c.
 * argv[0] is "distri-proc <name>", so getopt_long's own messages read right; its result is the process's exit code.
 * `--help` prints to stdout and returns 0. Errors are one line on stderr, what and how to mend it; never the help text.
 * Thread rule: the main thread. */
#ifndef DP_CLI_CLI_H
#define DP_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* 125, 126, 127 and 128 + signal belong to `run`: ours failed, not executable, not found, the process's own. */
enum cli_exit {
	EXIT_OK = 0,
	EXIT_FAILED = 1,      /* anything else */
	EXIT_USAGE = 2,       /* invalid arguments */
	EXIT_UNSUPPORTED = 3, /* this host, kernel or CRIU cannot do it */
	EXIT_PRIVILEGE = 4,
	EXIT_NO_PROGRAM = 5, /* a needed program is missing */
	EXIT_CONFIG = 6,
	EXIT_NOT_RUNNING = 7, /* no daemon, or its control socket does not answer */
	EXIT_NOT_FOUND = 8,   /* no such target, snapshot or object */
	EXIT_UNREACHABLE = 9, /* peer or time-out: trying again may help */
	EXIT_INTEGRITY = 10,  /* damaged, fenced off or not authenticated: do not try again */
	EXIT_PARTIAL = 11,    /* the process runs, but not as was asked */
	EXIT_RUN_FAILED = 125,
};

/* The exit code for a negative errno of the library; 0 for values >= 0. */
int cli_exit_code(int result);

/* Reports a failed library call: `distri-proc: text` on stderr, and with json the object {"error": ...} on stdout besides.
 * Returns cli_exit_code(result), so that `return cli_print_error(ret, &err, json);` reads well. */
int cli_print_error(int result, const struct dp_err *err, bool json);

/* Wrong arguments: `distri-proc COMMAND: text; see 'distri-proc COMMAND --help'`. `command` is argv[0]. Returns EXIT_USAGE. */
int cli_usage_error(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same after getopt_long returned '?': it has printed the one line already. */
int cli_usage_hint(const char *command);

/* Takes an option meant for `criu dump`, in its long form, into a list with room for so many; the text stays the caller's. 0, or
 * EXIT_USAGE after a message. */
int cli_criu_option(const char *command, char *option, char **list, size_t *count, size_t room);

/* The candidate nearest to `word` by edit distance, or NULL where none is near. */
const char *cli_nearest(const char *word, const char *const *candidates, unsigned count);

/* Writes and frees (json_object_put) a JSON object to stdout as one line. The type is json-c's. */
struct json_object;
void cli_print_json(struct json_object *object);

#endif
