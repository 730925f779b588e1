/* stop: ends an instance and waits until nothing of it is left. */
#include <errno.h>
#include <fcntl.h>
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
#include "restore/spares.h"

static const char usage[] =
	"Usage: distri-proc stop [--timeout 10s] [--kill] [--group NAME] [--spares] [INSTANCE...]\n"
	"\n"
	"Sends SIGTERM to the first process of each instance's tree, then, after the timeout, SIGKILL to all of it, and waits\n"
	"until the instance is gone. INSTANCE is an id, a name, the beginning of an id, or the pid of one of its processes.\n"
	"\n"
	"  --timeout TIME    how long the tree may take to end by itself (default 10s)\n"
	"  --kill            SIGKILL at once\n"
	"  --group NAME      all instances of a group (`run --count`), besides those that are named\n"
	"  --spares          all spares, and those that keep them\n"
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

struct stopping {
	struct instance instance;
	int last, tree, first; /* pidfds; -1: gone */
	bool asked;            /* SIGTERM was sent */
};

/* All are asked before any is waited for: they end side by side. */
static void begin_stop(struct stopping *stopping, bool kill_now)
{
	const struct instance *instance = &stopping->instance;
	stopping->last = open_last_process(instance);
	stopping->tree = process_open(instance->init.pid, instance->init.start_time);
	stopping->first = process_open(instance->root.pid, instance->root.start_time);
	stopping->asked = !kill_now && stopping->first >= 0 && !pidfd_send_signal(stopping->first, SIGTERM, NULL, 0);
}

static void close_stop(struct stopping *stopping)
{
	dp_close_fd(&stopping->last);
	dp_close_fd(&stopping->tree);
	dp_close_fd(&stopping->first);
}

static int finish_stop(const struct stopping *stopping, uint64_t until_ns, struct dp_err *err)
{
	const struct instance *instance = &stopping->instance;
	uint64_t now_ns = clock_now_ns();
	if (stopping->last < 0)
		return 0; /* it ended meanwhile */
	if (!(stopping->asked && wait_for_end(stopping->last, until_ns > now_ns ? until_ns - now_ns : 0))) {
		char path[PATH_MAX];
		instance_path(instance, INSTANCE_STOPPED, path, sizeof(path));
		cleanup_fd int noted = open(path, O_CREAT | O_CLOEXEC, 0600);
		(void)noted; /* without it the supervisor takes our kill for an accident */
		kill_tasks(instance);
		/* init's end is the end of everything below it; the supervisor sees to what a namespace does not. */
		bool container = instance->container[0] && stopping->first >= 0;
		int end = container ? stopping->first : stopping->tree >= 0 ? stopping->tree : stopping->last;
		if (pidfd_send_signal(end, SIGKILL, NULL, 0) && errno != ESRCH)
			return dp_fail_errno(err, errno, "kill %s", instance->id);
		if (!wait_for_end(stopping->last, KILLED_WAIT_NS))
			return dp_fail(err, ETIMEDOUT, "%s was killed but does not end: see %s/supervisor.log", instance->id,
				       instance->directory);
	}
	return instance_remove(instance, err); /* nothing there any more, unless its supervisor was killed */
}

struct choice {
	const char *root, *group;
	char *const *keys;
	size_t key_count;
	bool kill_now, json, spares;
	uint64_t timeout_ns;
};

/* Fresh array of those that are meant. */
static int choose(const struct choice *choice, struct stopping **chosen, size_t *count, struct dp_err *err)
{
	cleanup_free struct instance *list = NULL;
	size_t live = 0;
	int ret = choice->group ? instance_list(choice->root, &list, &live, err) : 0;
	*count = 0;
	*chosen = ret ? NULL : calloc(live + choice->key_count + 1, sizeof(**chosen));
	if (!*chosen)
		return ret ? ret : dp_fail(err, ENOMEM, "out of memory");
	for (size_t i = 0; i < choice->key_count && !ret; i++)
		ret = instance_find(choice->root, choice->keys[i], &(*chosen)[(*count)++].instance, err);
	for (size_t i = 0; i < live && !ret; i++)
		if (!strcmp(list[i].group, choice->group))
			(*chosen)[(*count)++].instance = list[i];
	if (!ret && choice->group && *count == choice->key_count)
		ret = dp_fail(err, ENOENT, "no instance is in a group `%s` (`distri-proc ps --groups` lists them)", choice->group);
	return ret;
}

static int stop_spares(const struct choice *choice, json_object *stopped, struct dp_err *err)
{
	cleanup_free struct spares_status *list = NULL;
	size_t count = 0;
	int ret = spares_list(choice->root, &list, &count, err);
	for (size_t i = 0; i < count && !ret; i++) {
		ret = spares_end(choice->root, list[i].key, err);
		if (!ret)
			json_object_array_add(stopped, json_object_new_string(list[i].key));
		if (!ret && !choice->json)
			printf("stopped the spares of %s\n", list[i].snapshot);
	}
	return ret;
}

static int stop_chosen(const struct choice *choice, json_object *stopped, struct dp_err *err)
{
	cleanup_free struct stopping *chosen = NULL;
	size_t count;
	int ret = choose(choice, &chosen, &count, err);
	if (ret)
		return ret;
	for (size_t i = 0; i < count; i++)
		begin_stop(&chosen[i], choice->kill_now);
	uint64_t until_ns = clock_now_ns() + choice->timeout_ns;
	for (size_t i = 0; i < count; i++) {
		ret = ret ? ret : finish_stop(&chosen[i], until_ns, err);
		close_stop(&chosen[i]);
		if (ret)
			continue;
		json_object_array_add(stopped, json_object_new_string(chosen[i].instance.id));
		if (!choice->json)
			printf("stopped %s\n", chosen[i].instance.id);
	}
	return ret;
}

int cmd_stop(int argc, char **argv)
{
	static const struct option options[] = {
		{ "timeout", required_argument, NULL, 't' },
		{ "kill", no_argument, NULL, 'k' },
		{ "group", required_argument, NULL, 'g' },
		{ "spares", no_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "root", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct choice choice = { .root = instance_root(NULL), .timeout_ns = 10000000000u };
	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		if (option == 't' && parse_duration(optarg, &choice.timeout_ns))
			return cli_usage_error(argv[0], "--timeout takes a time such as 10s or 500ms");
		else if (option == 'k')
			choice.kill_now = true;
		else if (option == 'g')
			choice.group = optarg;
		else if (option == 's')
			choice.spares = true;
		else if (option == 'j')
			choice.json = true;
		else if (option == 'r')
			choice.root = instance_root(optarg);
		else if (option == 'h')
			return fputs(usage, stdout), EXIT_OK;
		else if (option == '?')
			return cli_usage_hint(argv[0]);
	}
	choice.keys = argv + optind;
	choice.key_count = (size_t)(argc - optind);
	if (!choice.key_count && !choice.group && !choice.spares)
		return cli_usage_error(argv[0], "which instance? `distri-proc ps` lists them");
	json_object *stopped = json_object_new_array();
	struct dp_err err;
	int ret = choice.spares ? stop_spares(&choice, stopped, &err) : 0;
	if (!ret && (choice.key_count || choice.group))
		ret = stop_chosen(&choice, stopped, &err);
	int code = ret ? cli_print_error(ret, &err, choice.json) : EXIT_OK;
	if (choice.json && !code)
		printf("{\"schema\":\"distriproc.stop/1\",\"stopped\":%s}\n",
		       json_object_to_json_string_ext(stopped, JSON_C_TO_STRING_PLAIN));
	json_object_put(stopped);
	return code;
}
