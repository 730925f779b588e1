/* The program: finds the subcommand and calls it. */
#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "migrate/ferry.h"
#include "oci/oci.h"
#include "restore/container.h"
#include "restore/restore.h"
#include "sys/criu_launch.h"

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
	{ "spares", cmd_spares, "list and end what `run --pre-created` keeps ready", GROUP_PROCESSES },
	{ "exec", cmd_exec, "run a program in the namespaces of one", GROUP_PROCESSES },
	{ "ps", cmd_ps, "list the process trees restored on this host", GROUP_PROCESSES },
	{ "stats", cmd_stats, "show memory, faults and traffic of one", GROUP_PROCESSES },
	{ "clone", cmd_clone, "make a second copy of a running process tree, to look at", GROUP_PROCESSES },
	{ "offer", cmd_offer, "freeze a process tree for a restore elsewhere, its pages where they are", GROUP_PROCESSES },
	{ "migrate", cmd_migrate, "move a running process tree to another host, its pages following", GROUP_PROCESSES },
	{ "migrate-in", cmd_migrate_in, "fetch all memory of a running one in the background", GROUP_PROCESSES },
	{ "commit", cmd_commit, "make the present state of one restorable, while it runs on", GROUP_PROCESSES },
	{ "protect", cmd_protect, "commit one again and again, and keep the newest states", GROUP_PROCESSES },
	{ "stop", cmd_stop, "end one and wait until nothing of it is left", GROUP_PROCESSES },
	{ "pool", cmd_pool, "serve a pool; list, show and remove what is in one", GROUP_POOL },
	{ "check", cmd_check, "say what this host can do, and what to do about each \"no\"", GROUP_HOST },
	{ "agent", cmd_agent, "the daemon of a host that takes part in migrations", GROUP_HOST },
	{ "events", cmd_events, "show what happened to this host's migrations, and follow it", GROUP_HOST },
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
	     "A pool is named by a URI: dp://HOST:PORT/REPO:TAG, dp+unix:///PATH#REPO:TAG, dir:/PATH#REPO:TAG;\n"
	     "dps://HOST:PORT/REPO:TAG for TLS, for which every command takes these options (or variables):\n\n"
	     "  --psk-file FILE     a pre-shared key, IDENTITY:HEXKEY (DISTRI_PROC_PSK_FILE)\n"
	     "  --tls-cert FILE     our certificate (DISTRI_PROC_TLS_CERT)\n"
	     "  --tls-key FILE      its key (DISTRI_PROC_TLS_KEY)\n"
	     "  --tls-ca FILE       who signs the other side's (DISTRI_PROC_TLS_CA)\n"
	     "  --tls-name NAME     the name in the pool's certificate, if not its host (DISTRI_PROC_TLS_NAME)\n"
	     "  --allow-plaintext   dp:// beyond loopback: whoever is in between sees all (DISTRI_PROC_ALLOW_PLAINTEXT=1)");
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

/* How pools are reached is the same for every command, and for the processes that it starts: it goes into the environment. */
static const struct connection_option {
	const char *option, *variable;
	bool path; /* made absolute: servers leave their directory */
} connection_options[] = {
	{ "--tls-cert", "DISTRI_PROC_TLS_CERT", true },  { "--tls-key", "DISTRI_PROC_TLS_KEY", true },
	{ "--tls-ca", "DISTRI_PROC_TLS_CA", true },      { "--tls-name", "DISTRI_PROC_TLS_NAME", false },
	{ "--psk-file", "DISTRI_PROC_PSK_FILE", true },  { "--allow-plaintext", "DISTRI_PROC_ALLOW_PLAINTEXT", false },
};

static int set_connection_option(const struct connection_option *option, const char *value)
{
	char *absolute = option->path ? realpath(value, NULL) : NULL;
	int failed = setenv(option->variable, absolute ? absolute : value, 1);
	free(absolute);
	return failed ? -ENOMEM : 0;
}

/* The value of `argument` if it is this option: behind '=' or the next argument. *used: how many arguments that were. */
static const char *option_value(const struct connection_option *option, const char *argument, const char *next, int *used)
{
	size_t length = strlen(option->option);
	if (strncmp(argument, option->option, length) != 0 || (argument[length] && argument[length] != '='))
		return NULL;
	*used = 1;
	if (strcmp(option->option, "--allow-plaintext") == 0)
		return argument[length] ? NULL : "1";
	if (argument[length])
		return argument + length + 1;
	*used = 2;
	return next;
}

/* Takes the connection options out of the arguments, up to "--", wherever they stand. The number of those that are left. */
static int take_connection_options(int argc, char **argv)
{
	int kept = argc ? 1 : 0;
	bool end = false;
	for (int at = 1; at < argc;) {
		const char *value = NULL;
		int used = 1;
		end = end || strcmp(argv[at], "--") == 0;
		for (size_t i = 0; i < ARRAY_LENGTH(connection_options) && !value && !end; i++) {
			value = option_value(&connection_options[i], argv[at], at + 1 < argc ? argv[at + 1] : NULL, &used);
			if (value && set_connection_option(&connection_options[i], value))
				return -ENOMEM;
			if (!value && used == 2) {
				cli_usage_error("distri-proc", "%s needs a value", argv[at]);
				return -EINVAL;
			}
		}
		if (value)
			at += used;
		else
			argv[kept++] = argv[at++];
	}
	argv[kept] = NULL;
	return kept;
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
	signal(SIGXFSZ, SIG_IGN); /* a limit of file sizes is a full disk, not the end */
	if (argc && criu_launch_is(argv[0]))
		return criu_launch_main(argc, argv);
	if (argc && container_gate_is_action(argv[0]))
		return container_gate_action(argv[0]);
	if (argc && oci_runtime_is(argv[0]))
		return oci_runtime_main(argc, argv);
	if (argc && working_set_is_action(argv[0]))
		return working_set_action(argv[0]);
	if (argc && ferry_is_gate_action(argv[0]))
		return ferry_gate_action(argv[0]);
	argc = take_connection_options(argc, argv);
	if (argc < 0)
		return argc == -EINVAL ? EXIT_USAGE : EXIT_FAILED;
	return finish_output(dispatch(argc, argv));
}
