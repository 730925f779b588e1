#include "cli/container_line.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "base/base.h"
#include "instance/instance.h"
#include "oci/annotations.h"
#include "oci/oci.h"

/* The runtime's command line: what does not change goes before and behind CRIU's options, of which it knows some by their
 * names. */
#define FIXED_ARGUMENTS 12

static int runtime_of(const struct container_line *line, struct oci_host *host, char *globals[static 3],
		      struct oci_runtime *runtime, struct dp_err *err)
{
	int ret = oci_host_read(host, err);
	globals[0] = line->root ? (char *)(uintptr_t)"--root" : NULL;
	globals[1] = (char *)(uintptr_t)line->root;
	globals[2] = NULL;
	*runtime = (struct oci_runtime){ .program = line->runtime ? line->runtime : host->runtime, .globals = globals };
	return ret;
}

int container_line_pid(const struct container_line *line, pid_t *pid, struct dp_err *err)
{
	struct oci_host host;
	struct oci_runtime runtime;
	struct oci_state state;
	char *globals[3];
	int ret = runtime_of(line, &host, globals, &runtime, err);
	if (!ret)
		ret = oci_state(&runtime, line->container, true, &state, err);
	if (!ret && state.pid <= 0)
		ret = dp_fail(err, ESRCH, "it does not run");
	if (ret)
		dp_err_doing(err, "container %s", line->container);
	else
		*pid = state.pid;
	return ret;
}

int container_line_checkpoint(const struct container_line *line, struct checkpoint_options *options,
			      struct checkpoint_result *result, struct dp_err *err)
{
	struct oci_host host;
	struct oci_runtime runtime;
	char *globals[3], directory[] = "/tmp/distri-proc-container-XXXXXX";
	int ret = runtime_of(line, &host, globals, &runtime, err);
	if (ret)
		return ret;
	cleanup_free char **argv = calloc(FIXED_ARGUMENTS + options->criu_argument_count, sizeof(*argv));
	if (!argv)
		return dp_fail(err, ENOMEM, "out of memory");
	if (!mkdtemp(directory))
		return dp_fail_errno(err, errno, "make a directory like %s", directory);
	cleanup_free char *images = format_text("%s/images", directory);
	cleanup_free char *work = format_text("%s/work", directory);
	size_t used = 0;
	argv[used++] = (char *)(uintptr_t)runtime.program;
	for (size_t i = 0; globals[i]; i++)
		argv[used++] = globals[i];
	argv[used++] = (char *)(uintptr_t)"checkpoint";
	argv[used++] = (char *)(uintptr_t)"--image-path";
	argv[used++] = images;
	argv[used++] = (char *)(uintptr_t)"--work-path";
	argv[used++] = work;
	if (options->leave_running)
		argv[used++] = (char *)(uintptr_t)"--leave-running";
	for (size_t i = 0; i < options->criu_argument_count; i++)
		argv[used++] = options->criu_arguments[i];
	argv[used++] = (char *)(uintptr_t)line->container;
	struct oci_checkpoint run = { .argv = argv, .images = images, .work = work, .checkpoint = *options };
	ret = images && work ? oci_checkpoint(&run, result, err) : dp_fail(err, ENOMEM, "out of memory");
	remove_tree(directory);
	return ret;
}

/* Runs the runtime, which leaves the container to whoever adopts orphans. */
static int run_runtime(char **argv, struct dp_err *err)
{
	int status = -1;
	sigset_t none;
	pid_t child = fork();
	if (child == 0) {
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		signal(SIGPIPE, SIG_DFL);
		execvp(argv[0], argv);
		fprintf(stderr, "distri-proc: run %s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
		continue;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	return dp_fail(err, EIO, "%s could not restore it: its own message says why", argv[0]);
}

int container_line_restore(const struct container_line *line, struct restore_options *options, struct restore_session *session,
			   struct dp_err *err)
{
	struct oci_host host;
	struct oci_restore restore = { .id = line->container, .restore = options };
	char *globals[3];
	cleanup_free char **argv = NULL;
	*session = (struct restore_session){ .report_fd = -1, .terminal.master_fd = -1, .times.start_ns = clock_now_ns() };
	int ret = runtime_of(line, &host, globals, &restore.runtime, err);
	if (ret)
		return ret;
	cleanup_free char **command = calloc(FIXED_ARGUMENTS + options->criu_argument_count, sizeof(*command));
	if (!command)
		return dp_fail(err, ENOMEM, "out of memory");
	size_t used = 0;
	command[used++] = (char *)(uintptr_t)"restore";
	command[used++] = (char *)(uintptr_t)"--detach";
	command[used++] = (char *)(uintptr_t)"--bundle";
	command[used++] = (char *)(uintptr_t)(line->bundle ? line->bundle : ".");
	for (size_t i = 0; i < options->criu_argument_count; i++)
		command[used++] = options->criu_arguments[i];
	command[used++] = (char *)(uintptr_t)line->container;
	restore.argv = command;
	ret = oci_restore_prepare(&restore, &session->instance, &argv, err);
	session->times.opened_ns = session->times.fetched_ns = session->times.checked_ns = clock_now_ns();
	if (!ret)
		ret = run_runtime(argv, err);
	if (!ret)
		ret = instance_load(options->root, session->instance.id, &session->instance, err);
	session->times.criu_started_ns = session->times.checked_ns;
	session->times.criu_done_ns = session->times.done_ns = clock_now_ns();
	if (ret)
		dp_err_doing(err, "restore %s as container %s", options->endpoint->name, line->container);
	return ret;
}
