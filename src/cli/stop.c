/* stop: ends an instance and waits until nothing of it is left. */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "instance/instance.h"
#include "instance/process.h"

static const char usage[] =
	"Usage: distri-proc stop [--timeout 10s] [--kill] INSTANCE...\n"
	"\n"
	"Sends SIGTERM to the first process of each instance's tree, then, after the timeout, SIGKILL to all of it, and waits\n"
	"until the instance is gone. INSTANCE is an id, a name, the beginning of an id, or the pid of one of its processes.\n"
	"\n"
	"  --timeout TIME    how long the tree may take to end by itself (default 10s)\n"
	"  --kill            SIGKILL at once\n"
	"  --json            one object when all are gone\n"
	"  --root DIRECTORY  registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n";

#define KILLED_WAIT_NS 60000000000u /* a killed process can be held by the kernel, but not for ever */

/* true once the process behind the pidfd has ended. */
static bool wait_for_end(int pidfd, uint64_t timeout_ns)
{
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };
	uint64_t until_ns = clock_now_ns() + timeout_ns;
	for (uint64_t now = clock_now_ns();; now = clock_now_ns()) {
		int left_ms = now < until_ns ? (int)DP_MIN((until_ns - now) / 1000000u + 1, 1000000u) : 0;
		int ready = poll(&ended, 1, left_ms);
		if (ready > 0 || (ready == 0 && left_ms == 0))
			return ready > 0;
	}
}

/* The supervisor ends last; an instance whose supervisor was killed ends with its init. */
static int open_last_process(const struct instance *instance)
{
	int pidfd = process_open(instance->supervisor.pid, instance->supervisor.start_time);
	return pidfd >= 0 ? pidfd : process_open(instance->init.pid, instance->init.start_time);
}

/* Without our namespace around the tree and without a supervisor, nobody else kills what is below init. */
static void kill_tasks(const struct instance *instance)
{
	pid_t *tasks;
	size_t count;
	if (instance->own_pid_namespace || process_is_alive(instance->supervisor.pid, instance->supervisor.start_time))
		return;
	while (!instance_tasks(instance, &tasks, &count)) {
		size_t alive = 0;
		for (size_t i = 0; i < count; i++)
			alive += process_start_time(tasks[i]) && !kill(tasks[i], SIGKILL);
		free(tasks);
		if (!alive)
			return;
		poll(NULL, 0, 10); /* their init reaps them, and with its root gone it ends too */
	}
}

static int stop_instance(const char *root, const char *key, bool kill_now, uint64_t timeout_ns, struct instance *instance,
			 struct dp_err *err)
{
	int ret = instance_find(root, key, instance, err);
	if (ret)
		return ret;
	cleanup_fd int last = open_last_process(instance);
	cleanup_fd int tree = process_open(instance->init.pid, instance->init.start_time);
	cleanup_fd int first = process_open(instance->root.pid, instance->root.start_time);
	if (last < 0)
		return 0; /* it ended meanwhile */
	bool asked = !kill_now && first >= 0 && !pidfd_send_signal(first, SIGTERM, NULL, 0);
	if (!(asked && wait_for_end(last, timeout_ns))) {
		kill_tasks(instance);
		/* init's end is the end of everything below it; the supervisor sees to what a namespace does not. */
		int end = tree >= 0 ? tree : last;
		if (pidfd_send_signal(end, SIGKILL, NULL, 0) && errno != ESRCH)
			return dp_fail_errno(err, errno, "kill %s", instance->id);
		if (!wait_for_end(last, KILLED_WAIT_NS))
			return dp_fail(err, ETIMEDOUT, "%s was killed but does not end: see %s/supervisor.log", instance->id,
				       instance->directory);
	}
	return instance_remove(instance, err); /* nothing there any more, unless its supervisor was killed */
}

int cmd_stop(int argc, char **argv)
{
	static const struct option options[] = {
		{ "timeout", required_argument, NULL, 't' },
		{ "kill", no_argument, NULL, 'k' },
		{ "json", no_argument, NULL, 'j' },
		{ "root", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool kill_now = false, json = false;
	uint64_t timeout_ns = 10000000000u;
	const char *root = NULL;
	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		if (option == 't' && parse_duration(optarg, &timeout_ns))
			return cli_usage_error(argv[0], "--timeout takes a time such as 10s or 500ms");
		else if (option == 'k')
			kill_now = true;
		else if (option == 'j')
			json = true;
		else if (option == 'r')
			root = optarg;
		else if (option == 'h')
			return fputs(usage, stdout), EXIT_OK;
		else if (option == '?')
			return cli_usage_hint(argv[0]);
	}
	if (optind == argc)
		return cli_usage_error(argv[0], "which instance? `distri-proc ps` lists them");
	json_object *stopped = json_object_new_array();
	int code = 0;
	for (int i = optind; i < argc && !code; i++) {
		struct instance instance;
		struct dp_err err;
		int ret = stop_instance(instance_root(root), argv[i], kill_now, timeout_ns, &instance, &err);
		if (ret)
			code = cli_print_error(ret, &err, json);
		else
			json_object_array_add(stopped, json_object_new_string(instance.id));
		if (!ret && !json)
			printf("stopped %s\n", instance.id);
	}
	if (json && !code)
		printf("{\"schema\":\"distriproc.stop/1\",\"stopped\":%s}\n",
		       json_object_to_json_string_ext(stopped, JSON_C_TO_STRING_PLAIN));
	json_object_put(stopped);
	return code;
}
