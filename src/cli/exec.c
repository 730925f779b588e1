/* exec: a program inside an instance's namespaces: its network, its processes, its mounts. */
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "instance/instance.h"
#include "instance/process.h"

static const char usage[] =
	"Usage: distri-proc exec [options] INSTANCE COMMAND [ARGUMENT...]\n"
	"\n"
	"Runs a program in the namespaces of an instance: its network (with --network none only its own loopback is there), its\n"
	"processes and its mounts. Exits with the program's code. INSTANCE is an id, a name, the beginning of an id, or a pid.\n"
	"\n"
	"  --network-only    its network alone; all else is the caller's\n"
	"  --root DIRECTORY  registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n";

enum { EXIT_NOT_EXECUTABLE = 126, EXIT_NO_COMMAND = 127 };

static int enter(const struct instance *instance, bool network_only, struct dp_err *err)
{
	int flags = CLONE_NEWNET | (network_only ? 0 : CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS);
	cleanup_fd int root = process_open(instance->root.pid, instance->root.start_time);
	if (root < 0)
		return dp_fail(err, ESRCH, "%s does not run: `distri-proc ps` tells its state", instance->name);
	if (setns(root, flags))
		return dp_fail_errno(err, errno, "enter the namespaces of %s", instance->name);
	return 0;
}

static int run(char **command)
{
	pid_t child = fork(); /* a PID namespace is entered by children */
	int status;
	if (child == 0) {
		signal(SIGPIPE, SIG_DFL);
		execvp(command[0], command);
		fprintf(stderr, "distri-proc exec: %s: %s\n", command[0], strerror(errno));
		_exit(errno == ENOENT ? EXIT_NO_COMMAND : EXIT_NOT_EXECUTABLE);
	}
	signal(SIGINT, SIG_IGN); /* the terminal sends them to the child too */
	signal(SIGQUIT, SIG_IGN);
	while (child > 0 && waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return EXIT_RUN_FAILED;
	if (child < 0)
		return EXIT_RUN_FAILED;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int cmd_exec(int argc, char **argv)
{
	static const struct option options[] = {
		{ "network-only", no_argument, NULL, 'n' },
		{ "root", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool network_only = false;
	const char *root = NULL;
	for (int option; (option = getopt_long(argc, argv, "+h", options, NULL)) != -1;) {
		if (option == 'n')
			network_only = true;
		else if (option == 'r')
			root = optarg;
		else if (option == 'h')
			return fputs(usage, stdout), EXIT_OK;
		else
			return cli_usage_hint(argv[0]);
	}
	if (argc - optind < 2)
		return cli_usage_error(argv[0], "give an instance and a command, such as `%s redis-1 redis-cli ping`", argv[0]);
	struct instance instance;
	struct dp_err err;
	int ret = instance_find(instance_root(root), argv[optind], &instance, &err);
	if (!ret)
		ret = enter(&instance, network_only, &err);
	if (ret) {
		cli_print_error(ret, &err, false);
		return EXIT_RUN_FAILED;
	}
	return run(argv + optind + 1);
}
