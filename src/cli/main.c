/* The program: finds the subcommand and calls it. */
#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "restore/restore.h"

enum group { GROUP_PROCESSES, GROUP_POOL, GROUP_HOST, GROUP_HIDDEN };

static const char *const group_titles[] = {
	[GROUP_PROCESSES] = "Processes",
	[GROUP_POOL] = "Pools",
	[GROUP_HOST] = "This host and other tools",
};

static const struct command {
	const char *name;
	int (*function)(int argc, char **argv);
	const char *summary;
	enum group group;
} commands[] = {
	{ "checkpoint", cmd_checkpoint, "store a running process tree in a pool", GROUP_PROCESSES },
	{ "restore", cmd_restore, "bring a snapshot back to life, its memory in the pool", GROUP_PROCESSES },
	{ "run", cmd_run, "restore in the foreground, pass signals on, exit as it does", GROUP_PROCESSES },
	{ "ps", cmd_ps, "list the process trees restored on this host", GROUP_PROCESSES },
	{ "stats", cmd_stats, "show memory, faults and traffic of one", GROUP_PROCESSES },
	{ "migrate-in", cmd_migrate_in, "fetch all memory of a running one in the background", GROUP_PROCESSES },
	{ "stop", cmd_stop, "end one and wait until nothing of it is left", GROUP_PROCESSES },
	{ "pool", cmd_pool, "serve a pool; list, show and remove what is in one", GROUP_POOL },
	{ "check", cmd_check, "say what this host can do, and what to do about each \"no\"", GROUP_HOST },
	{ "lazy-pages", cmd_lazy_pages, "stand in for `criu lazy-pages`", GROUP_HOST },
	{ "criu-hook", cmd_criu_hook, "asked by CRIU during a checkpoint", GROUP_HIDDEN },
};

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < ARRAY_LENGTH(commands); i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}

static void print_help(void)
{
	puts("Usage: distri-proc COMMAND [OPTIONS]\n"
	     "Runs Linux processes while their memory lies elsewhere: in a pool, on another machine, on disk.");
	for (unsigned group = 0; group < ARRAY_LENGTH(group_titles); group++) {
		bool titled = false;
		for (size_t i = 0; i < ARRAY_LENGTH(commands); i++) {
			if (commands[i].group != group)
				continue;
			if (!titled)
				printf("\n%s:\n", group_titles[group]);
			titled = true;
			printf("  %-12s %s\n", commands[i].name, commands[i].summary);
		}
	}
	puts("\n'distri-proc help COMMAND' tells more about one; 'distri-proc --version [--json]' its version.\n"
	     "A pool is named by a URI: dp://HOST:PORT/REPO:TAG, dp+unix:///PATH#REPO:TAG, dir:/PATH#REPO:TAG.");
}

static int print_version(bool json)
{
	if (!json) {
		puts("distri-proc " DP_VERSION);
		return EXIT_OK;
	}
	struct json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.version/1"));
	json_object_object_add(object, "version", json_object_new_string(DP_VERSION));
	cli_print_json(object);
	return EXIT_OK;
}

static int unknown_command(const char *name)
{
	const char *names[ARRAY_LENGTH(commands)];
	unsigned count = 0;
	for (size_t i = 0; i < ARRAY_LENGTH(commands); i++)
		if (commands[i].group != GROUP_HIDDEN)
			names[count++] = commands[i].name;
	const char *nearest = cli_nearest(name, names, count);
	if (nearest)
		fprintf(stderr, "distri-proc: no command '%s'; did you mean '%s'?\n", name, nearest);
	else
		fprintf(stderr, "distri-proc: no command '%s'; 'distri-proc --help' lists them\n", name);
	return EXIT_USAGE;
}

/* argv[0] becomes "distri-proc NAME": getopt_long prints it before its messages. */
static int run_command(const char *name, int argc, char **argv)
{
	const struct command *command = find_command(name);
	if (!command)
		return unknown_command(name);
	char title[64];
	snprintf(title, sizeof(title), "distri-proc %s", command->name);
	argv[0] = title;
	return command->function(argc, argv);
}

/* A full disk behind stdout must not look like success. */
static int finish_output(int code)
{
	errno = 0;
	bool failed = fflush(stdout) || ferror(stdout);
	if (!failed || errno == EPIPE || code != EXIT_OK)
		return code;
	fprintf(stderr, "distri-proc: write output: %s\n", strerror(errno ? errno : EIO));
	return EXIT_FAILED;
}

static int dispatch(int argc, char **argv)
{
	const char *first = argc > 1 ? argv[1] : NULL;
	if (!first) {
		fputs("distri-proc: no command given; 'distri-proc --help' lists them\n", stderr);
		return EXIT_USAGE;
	}
	if (strcmp(first, "--version") == 0 || strcmp(first, "-V") == 0) {
		if (argc > 3 || (argc == 3 && strcmp(argv[2], "--json") != 0))
			return cli_usage_error("distri-proc", "--version takes --json only");
		return print_version(argc == 3);
	}
	bool help = strcmp(first, "help") == 0;
	if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0 || (help && argc == 2)) {
		print_help();
		return EXIT_OK;
	}
	if (help) {
		char *help_argv[] = { argv[0], "--help", NULL };
		return run_command(argv[2], 2, help_argv);
	}
	if (first[0] == '-')
		return cli_usage_error("distri-proc", "no option '%s' before a command", first);
	return run_command(first, argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
	/* a pool that goes away is an error of a write, not the end of this process */
	signal(SIGPIPE, SIG_IGN);
	if (argc && working_set_is_action(argv[0]))
		return working_set_action(argv[0]);
	return finish_output(dispatch(argc, argv));
}
