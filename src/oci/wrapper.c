/* distri-proc-runtime: in the place of runc. */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "base/base.h"
#include "oci/annotations.h"
#include "oci/arguments.h"
#include "oci/oci.h"
#include "oci/runtimes.h"

#define NAME "distri-proc-runtime"

struct wrapper {
	int argc;
	char **argv;
	struct oci_arguments arguments;
	struct oci_host host;
	struct oci_runtime runtime;
	struct oci_wishes wishes;
	struct endpoint endpoint;
	struct dp_err err;
};

bool oci_runtime_is(const char *name)
{
	const char *base = strrchr(name, '/');
	return !strcmp(base ? base + 1 : name, NAME);
}

/* Where the runtime's callers look: stderr, and the log that they named. */
static int say_why(const struct wrapper *wrapper)
{
	const struct oci_arguments *arguments = &wrapper->arguments;
	fprintf(stderr, NAME ": %s\n", wrapper->err.text);
	if (!arguments->log)
		return 1;
	cleanup_fd int fd = open(arguments->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	char now_text[40];
	time_t now = time(NULL);
	struct tm utc;
	strftime(now_text, sizeof(now_text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
	if (fd >= 0 && arguments->log_format && !strcmp(arguments->log_format, "json")) {
		json_object *line = json_object_new_object();
		json_object_object_add(line, "level", json_object_new_string("error"));
		json_object_object_add(line, "msg", json_object_new_string(wrapper->err.text));
		json_object_object_add(line, "time", json_object_new_string(now_text));
		dprintf(fd, "%s\n", json_object_to_json_string_ext(line, JSON_C_TO_STRING_PLAIN));
		json_object_put(line);
	} else if (fd >= 0) {
		dprintf(fd, "time=\"%s\" level=error msg=\"%s\"\n", now_text, wrapper->err.text);
	}
	return 1;
}

/* The real runtime, as if it had been called. Returns where it cannot be run. */
static int become(struct wrapper *wrapper, char **argv)
{
	signal(SIGPIPE, SIG_DFL);
	signal(SIGXFSZ, SIG_DFL);
	execvp(argv[0], argv);
	dp_fail_errno(&wrapper->err, errno, "run %s (`runtime = PATH` in /etc/distri-proc/runtime.conf names another)", argv[0]);
	return say_why(wrapper);
}

static int pass_on(struct wrapper *wrapper)
{
	wrapper->argv[0] = wrapper->host.runtime;
	return become(wrapper, wrapper->argv);
}

static const char *images_of(const struct oci_arguments *arguments)
{
	return arguments->images ? arguments->images : "checkpoint"; /* below the current directory, as runc has it */
}

/* ---- checkpoint ---- */

/* REPO:TAG of what nobody named: the container's name as far as a repository can have it, and the time. */
static void make_name(const char *id, char name[static 256])
{
	char repository[41];
	size_t used = 0, most = strlen(id) < sizeof(repository) ? sizeof(repository) - 1 : 12; /* as Podman abbreviates them */
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	for (const char *at = id; *at && used < most; at++) {
		char letter = *at >= 'A' && *at <= 'Z' ? (char)(*at - 'A' + 'a') : *at;
		bool plain = (letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9');
		if (plain || (used && strchr("._-", letter)))
			repository[used++] = letter;
	}
	repository[used] = 0;
	snprintf(name, 256, "%s:%llx", used ? repository : "container",
		 (unsigned long long)now.tv_sec * 1000000000ull + (unsigned long long)now.tv_nsec);
}

static int name_target(struct wrapper *wrapper, const char *id)
{
	struct oci_wishes *wishes = &wrapper->wishes;
	const char *pool = wishes->pool[0] ? wishes->pool : wrapper->host.pool;
	char made[256];
	if (!*pool)
		return dp_fail(&wrapper->err, EINVAL,
			       "container %s wants its pages in a pool, but which? Give it the annotation "
			       "distri-proc.io/pool, or this host `pool = URI` in /etc/distri-proc/runtime.conf",
			       id);
	int ret = endpoint_parse(&wrapper->endpoint, pool, &wrapper->err);
	if (ret)
		return ret;
	make_name(id, made);
	return endpoint_name_check(wishes->snapshot[0] ? wishes->snapshot : made, wrapper->endpoint.name, &wrapper->err);
}

static int checkpoint(struct wrapper *wrapper)
{
	const struct oci_arguments *arguments = &wrapper->arguments;
	const char *id = wrapper->argv[arguments->id];
	struct oci_state state;
	struct checkpoint_result result;
	if (oci_state(&wrapper->runtime, id, true, &state, NULL) || state.pid <= 0)
		return pass_on(wrapper); /* which says what is wrong */
	int ret = oci_wishes_read(state.bundle, &wrapper->wishes, &wrapper->err);
	if (ret)
		return say_why(wrapper);
	if (!wrapper->wishes.enabled)
		return pass_on(wrapper);
	if (name_target(wrapper, id))
		return say_why(wrapper);
	struct oci_checkpoint run = {
		.argv = wrapper->argv, .images = images_of(arguments), .work = arguments->work,
		.checkpoint = { .pid = state.pid, .endpoint = &wrapper->endpoint, .leave_running = arguments->leave_running,
				.replace = wrapper->wishes.snapshot[0] },
	};
	wrapper->argv[0] = wrapper->host.runtime;
	ret = oci_checkpoint(&run, &result, &wrapper->err);
	return ret ? say_why(wrapper) : 0;
}

/* ---- restore ---- */

static int take_prefetch(struct wrapper *wrapper, struct restore_options *options)
{
	const char *prefetch = wrapper->wishes.prefetch;
	int policy = prefetch_policy_find(prefetch);
	options->working_set = wrapper->wishes.policy == OCI_HOT_LOCAL;
	if (!strcmp(prefetch, "working-set"))
		options->working_set = true;
	else if (!strcmp(prefetch, "stream"))
		options->working_set = false;
	else if (policy >= 0)
		options->prefetch_policy = (enum prefetch_policy)policy;
	else if (*prefetch)
		return dp_fail(&wrapper->err, EINVAL,
			       "annotation distri-proc.io/prefetch takes stream, working-set or a policy of "
			       "distri-proc-restore(1), not `%s`",
			       prefetch);
	return 0;
}

static int take_wishes(struct wrapper *wrapper, struct restore_options *options)
{
	const struct oci_wishes *wishes = &wrapper->wishes;
	options->migrate = wishes->policy == OCI_FULL;
	if (wishes->policy != OCI_FULL && !strcmp(wishes->remote_memory, "cgroup"))
		options->local_memory = "cgroup";
	else if (wishes->policy != OCI_FULL && wishes->remote_memory[0])
		options->remote_memory = wishes->remote_memory;
	return take_prefetch(wrapper, options);
}

static int restore(struct wrapper *wrapper)
{
	const struct oci_arguments *arguments = &wrapper->arguments;
	char uri[2048];
	char **argv;
	struct instance instance;
	int ret = oci_reference_read(images_of(arguments), uri, &wrapper->err);
	if (ret == -ENOENT)
		return pass_on(wrapper);
	if (!ret)
		ret = oci_wishes_read(arguments->bundle ? arguments->bundle : ".", &wrapper->wishes, &wrapper->err);
	if (!ret)
		ret = endpoint_parse(&wrapper->endpoint, uri, &wrapper->err);
	struct restore_options options = { .root = instance_root(NULL), .endpoint = &wrapper->endpoint };
	if (!ret)
		ret = take_wishes(wrapper, &options);
	if (ret)
		return say_why(wrapper);
	struct oci_restore run = {
		.runtime = wrapper->runtime, .argv = wrapper->argv + arguments->command, .restore = &options,
		.id = wrapper->argv[arguments->id], .work = arguments->work,
	};
	ret = oci_restore_prepare(&run, &instance, &argv, &wrapper->err);
	return ret ? say_why(wrapper) : become(wrapper, argv);
}

/* ---- containers that begin as a snapshot ---- */

/* The command line of `restore`, of that of `create` or `run`: without what it does not know. Fresh; borrowed texts. */
static char **as_restore(const struct wrapper *wrapper, bool detach)
{
	static const char *const dropped[] = { "no-new-keyring", "keep", "preserve-fds", "pidfd-socket" };
	char **argv = calloc((size_t)wrapper->argc + 3, sizeof(*argv));
	int used = 0;
	if (!argv)
		return NULL;
	argv[used++] = (char *)(uintptr_t)"restore";
	if (detach)
		argv[used++] = (char *)(uintptr_t)"--detach";
	for (int i = wrapper->arguments.command + 1; i < wrapper->argc; i++) {
		const char *name = wrapper->argv[i] + strspn(wrapper->argv[i], "-");
		size_t length = strcspn(name, "=");
		bool drop = false, valued = false;
		for (size_t d = 0; d < ARRAY_LENGTH(dropped) && name != wrapper->argv[i] && !drop; d++) {
			drop = strlen(dropped[d]) == length && !strncmp(name, dropped[d], length);
			valued = drop && d >= 2 && !name[length];
		}
		if (!drop)
			argv[used++] = wrapper->argv[i];
		i += valued;
	}
	return argv;
}

/* Runs the runtime as a child; its exit code, 128 + signal, or 127. */
static int run_child(char *const *argv)
{
	int status = 127 << 8;
	pid_t child = fork();
	if (child == 0) {
		signal(SIGPIPE, SIG_DFL);
		signal(SIGXFSZ, SIG_DFL);
		execvp(argv[0], argv);
		_exit(127);
	}
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
		continue;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* `COMMAND ID` of the real runtime. */
static int run_on(const struct wrapper *wrapper, const char *command, const char *id)
{
	const int globals = wrapper->arguments.command - 1;
	char **argv = calloc((size_t)globals + 5, sizeof(*argv));
	int used = 0;
	if (!argv)
		return 127;
	argv[used++] = (char *)(uintptr_t)wrapper->host.runtime;
	for (int i = 0; i < globals; i++)
		argv[used++] = wrapper->argv[1 + i];
	argv[used++] = (char *)(uintptr_t)command;
	if (!strcmp(command, "delete"))
		argv[used++] = (char *)(uintptr_t)"--force";
	argv[used++] = (char *)(uintptr_t)id;
	int code = run_child(argv);
	free(argv);
	return code;
}

static int prepare_from(struct wrapper *wrapper, bool detach, char ***argv)
{
	const struct oci_wishes *wishes = &wrapper->wishes;
	const char *pool = wishes->pool[0] ? wishes->pool : wrapper->host.pool;
	struct restore_options options = { .root = instance_root(NULL), .endpoint = &wrapper->endpoint };
	struct oci_restore run = { .runtime = wrapper->runtime, .id = wrapper->argv[wrapper->arguments.id], .restore = &options };
	struct instance instance;
	if (!*pool)
		return dp_fail(&wrapper->err, EINVAL, "container %s starts from %s, but of which pool? Give it the annotation "
			       "distri-proc.io/pool, or this host `pool = URI` in /etc/distri-proc/runtime.conf", run.id, wishes->start_from);
	int ret = endpoint_parse(&wrapper->endpoint, pool, &wrapper->err);
	if (!ret)
		ret = endpoint_name_check(wishes->start_from, wrapper->endpoint.name, &wrapper->err);
	if (!ret)
		ret = take_wishes(wrapper, &options);
	char **restore = ret ? NULL : as_restore(wrapper, detach);
	if (!ret && !restore)
		ret = dp_fail(&wrapper->err, ENOMEM, "out of memory");
	run.argv = restore;
	if (!ret)
		ret = oci_restore_prepare(&run, &instance, argv, &wrapper->err);
	free(restore);
	return ret;
}

/* `create`: restored, and paused until `start`. `run`: the same as a restore. */
static int begin_from(struct wrapper *wrapper, bool create)
{
	const char *id = wrapper->argv[wrapper->arguments.id], *root = wrapper->arguments.root ? wrapper->arguments.root : "";
	struct oci_note note = { .waits = true };
	char **argv;
	if (prepare_from(wrapper, create, &argv))
		return say_why(wrapper);
	if (!create)
		return become(wrapper, argv);
	strcpy(note.runtime, wrapper->host.runtime);
	if (oci_runtime_note(instance_root(NULL), root, id, &note, &wrapper->err))
		return say_why(wrapper);
	int code = run_child(argv);
	if (!code && run_on(wrapper, "pause", id)) {
		run_on(wrapper, "delete", id);
		dp_fail(&wrapper->err, ECANCELED, "container %s was restored from %s and could not be paused until it is started", id,
			wrapper->wishes.start_from);
		code = say_why(wrapper);
	}
	if (code)
		oci_runtime_note(instance_root(NULL), root, id, NULL, NULL);
	return code;
}

/* ---- whose container it is ---- */

/* A command by which a container comes to be: its bundle says which runtime it is of. What is wrong with the bundle the runtime
 * says. */
static int choose_runtime(struct wrapper *wrapper, const char *root, const char *id)
{
	struct oci_note note = { .waits = false };
	const char *bundle = wrapper->arguments.bundle ? wrapper->arguments.bundle : ".";
	struct oci_wishes *wishes = &wrapper->wishes;
	int read = oci_wishes_read(bundle, wishes, &wrapper->err);
	if (read == -EINVAL && (wishes->runtime[0] || wishes->start_from[0]))
		return read; /* what was asked for for its beginning could be something else */
	if (read)
		*wishes = (struct oci_wishes){ 0 };
	if (!wishes->runtime[0]) {
		oci_runtime_note(instance_root(NULL), root, id, NULL, NULL); /* who may not look there has none */
		return 0;
	}
	strcpy(note.runtime, wishes->runtime);
	int ret = oci_runtime_check(&wrapper->host, note.runtime, &wrapper->err);
	if (!ret)
		ret = oci_runtime_note(instance_root(NULL), root, id, &note, &wrapper->err);
	if (!ret)
		strcpy(wrapper->host.runtime, note.runtime);
	return ret;
}

/* A later command, of a container with a note. 0, or 1: *code is what to exit with. */
static int follow_note(struct wrapper *wrapper, const char *root, struct oci_note *note, int at, int *code)
{
	const char *id = wrapper->argv[at], *command = wrapper->argv[wrapper->arguments.command];
	strcpy(wrapper->host.runtime, note->runtime);
	if (!strcmp(command, "start") && note->waits) {
		*code = run_on(wrapper, "resume", id);
		note->waits = *code != 0;
		oci_runtime_note(instance_root(NULL), root, id, note, NULL);
		return 1;
	}
	if (strcmp(command, "delete") != 0)
		return 0;
	wrapper->argv[0] = wrapper->host.runtime;
	*code = run_child(wrapper->argv);
	if (!*code)
		oci_runtime_note(instance_root(NULL), root, id, NULL, NULL);
	return 1;
}

/* Sets host.runtime. 0, -errno, or 1: *code is what to exit with. */
static int find_runtime(struct wrapper *wrapper, int *code)
{
	const struct oci_arguments *arguments = &wrapper->arguments;
	const char *command = arguments->command ? wrapper->argv[arguments->command] : "";
	const char *root = arguments->root ? arguments->root : "";
	struct oci_note note;
	if (!arguments->id || arguments->help)
		return 0;
	if (!strcmp(command, "create") || !strcmp(command, "run") || !strcmp(command, "restore"))
		return choose_runtime(wrapper, root, wrapper->argv[arguments->id]);
	int id = oci_runtime_noted(instance_root(NULL), root, wrapper->argc, wrapper->argv, arguments->command + 1, &note);
	return id ? follow_note(wrapper, root, &note, id, code) : 0;
}

/* ---- */

int oci_runtime_main(int argc, char **argv)
{
	struct wrapper wrapper = { .argc = argc, .argv = argv };
	struct oci_arguments *arguments = &wrapper.arguments;
	oci_arguments_read(argc, argv, arguments);
	if (oci_host_read(&wrapper.host, &wrapper.err))
		return say_why(&wrapper);
	int code = 1, found = find_runtime(&wrapper, &code);
	if (found)
		return found < 0 ? say_why(&wrapper) : code;
	const char *command = arguments->command ? argv[arguments->command] : "";
	bool checkpoints = !strcmp(command, "checkpoint"), restores = !strcmp(command, "restore");
	bool creates = !strcmp(command, "create");
	bool begins = wrapper.wishes.start_from[0] && (creates || !strcmp(command, "run"));
	bool plain = !arguments->id || arguments->help || arguments->pre_dump || arguments->lazy_pages ||
		     arguments->page_server || arguments->parent;
	if ((!checkpoints && !restores && !begins) || plain)
		return pass_on(&wrapper);
	char **globals = calloc((size_t)arguments->command, sizeof(*globals)); /* argv[1] to the command */
	if (!globals) {
		dp_fail(&wrapper.err, ENOMEM, "out of memory");
		return say_why(&wrapper);
	}
	memcpy(globals, argv + 1, (size_t)(arguments->command - 1) * sizeof(*globals));
	wrapper.runtime = (struct oci_runtime){ .program = wrapper.host.runtime, .globals = globals };
	code = begins ? begin_from(&wrapper, creates) : checkpoints ? checkpoint(&wrapper) : restore(&wrapper);
	free(globals);
	return code;
}
