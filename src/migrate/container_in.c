/* The destination's side of a container's migration. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/base.h"
#include "base/log.h"
#include "instance/process.h"
#include "migrate/ferry_container.h"
#include "restore/container.h"
#include "restore/processes.h"
#include "restore/restore.h"
#include "sys/proc.h"

#define LOG_LIMIT_BYTES (4u << 20)
#define COPY_BYTES 65536u
#define ARGUMENTS_MOST 40u
#define GONE_MS 10000
#define END_CRIU_MS 50 /* then again what has come meanwhile */

/* ---- before ---- */

static int use_runtime(struct container_in *container, const char *root, struct dp_err *err)
{
	int ret = oci_host_read(&container->host, err);
	snprintf(container->landing.runtime_root, sizeof(container->landing.runtime_root), "%s", root ? root : "");
	container->globals[0] = root && *root ? (char *)(uintptr_t)"--root" : NULL;
	container->globals[1] = container->landing.runtime_root;
	container->runtime = (struct oci_runtime){ .program = container->host.runtime, .globals = container->globals };
	return ret;
}

static int save(const struct in *in, struct dp_err *err)
{
	char path[PATH_MAX];
	json_object *saved = oci_landing_save(&in->container->landing);
	const char *text = json_object_to_json_string_ext(saved, JSON_C_TO_STRING_PLAIN);
	int ret = io_write_file(ferry_path(in->root, "in", in->id, CONTAINER_STATE, path), text, strlen(text), 0600);
	json_object_put(saved);
	return ret ? dp_fail_errno(err, -ret, "write %s", path) : 0;
}

/* FC2 */
static bool has_marker(const struct container_in *container, const char *marker)
{
	char path[PATH_MAX + 80];
	struct stat info;
	if (!marker || strncmp(marker, ".distri-proc-", 13) != 0 || strchr(marker, '/'))
		return false;
	snprintf(path, sizeof(path), "%s/%.70s", container->landing.rootfs, marker);
	return !lstat(path, &info);
}

int container_in_ready(struct in *in, json_object *answer)
{
	json_object *told, *facts = NULL, *volumes = NULL;
	if (!json_object_object_get_ex(in->prepare, "container", &told))
		return 0;
	struct container_in *container = in->container = calloc(1, sizeof(*container));
	if (!container)
		return dp_fail(&in->err, ENOMEM, "out of memory");
	container->receiver.root_fd = -1;
	json_object_object_get_ex(told, "facts", &facts);
	json_object_object_get_ex(told, "volumes", &volumes);
	int ret = use_runtime(container, line_text(told, "runtime_root"), &in->err);
	if (!ret) {
		struct oci_landing *landing = &container->landing;
		cleanup_free char *root = strdup(landing->runtime_root);
		ret = oci_landing_plan(landing, &container->runtime, line_text(told, "id"), facts, line_text(told, "bundle"), volumes,
				       &in->err);
		snprintf(landing->runtime_root, sizeof(landing->runtime_root), "%s", root ? root : "");
	}
	container->ours = !ret;
	bool shared = !ret && has_marker(container, line_text(told, "marker"));
	if (!ret)
		ret = save(in, &in->err);
	if (!ret)
		ret = oci_landing_make(&container->landing, &in->err);
	if (!ret && !shared)
		ret = tree_receiver_open(&container->receiver, container->landing.rootfs, &in->err);
	line_add_flag(answer, "shared", shared);
	return ret;
}

int container_in_recover(struct in *in)
{
	char path[PATH_MAX];
	cleanup_free char *text = NULL;
	if (io_read_file(ferry_path(in->root, "in", in->id, CONTAINER_STATE, path), &text, 4 * OCI_CONFIG_LIMIT) < 0)
		return 0;
	struct container_in *container = in->container = calloc(1, sizeof(*container));
	json_object *saved = json_tokener_parse(text);
	int ret = container ? 0 : dp_fail(&in->err, ENOMEM, "out of memory");
	if (!ret) {
		container->receiver.root_fd = -1;
		ret = oci_landing_load(&container->landing, saved, &in->err);
	}
	if (!ret) {
		cleanup_free char *root = strdup(container->landing.runtime_root);
		ret = use_runtime(container, root, &in->err);
		container->ours = !ret;
	}
	json_object_put(saved);
	if (ret)
		log_error("%s", in->err.text);
	return ret;
}

/* ---- the restorer's part ---- */

struct output {
	int pipe_fd; /* -1: nobody writes any more */
	int log_fd;
	uint64_t written;
	char path[PATH_MAX];
};

static int open_output(const struct in *in, struct output *output, int *write_fd, struct dp_err *err)
{
	char directory[PATH_MAX];
	int pair[2];
	ferry_home_path(in->root, "containers", directory);
	if (mkdir(directory, 0700) && errno != EEXIST)
		return dp_fail_errno(err, errno, "make %s", directory);
	if ((size_t)snprintf(output->path, sizeof(output->path), "%s/%s.log", directory, in->container->landing.id) >= sizeof(output->path))
		return dp_fail(err, ENAMETOOLONG, "%s: shorter, please", directory);
	output->log_fd = open(output->path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (output->log_fd < 0 || pipe2(pair, O_CLOEXEC))
		return dp_fail_errno(err, errno, "open %s", output->path);
	output->pipe_fd = pair[0];
	*write_fd = pair[1];
	return 0;
}

/* A log that is full is put aside, as .old, and another begun. */
static void copy_output(struct output *output)
{
	char text[COPY_BYTES], old[PATH_MAX + 8];
	ssize_t got = read(output->pipe_fd, text, sizeof(text));
	if (got <= 0) {
		if (!got || errno != EINTR)
			dp_close_fd(&output->pipe_fd), output->pipe_fd = -1;
		return;
	}
	if (output->written + (uint64_t)got > LOG_LIMIT_BYTES) {
		snprintf(old, sizeof(old), "%s.old", output->path);
		rename(output->path, old);
		dp_close_fd(&output->log_fd);
		output->log_fd = open(output->path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
		output->written = 0;
	}
	output->written += (uint64_t)got;
	if (output->log_fd >= 0 && io_write_full(output->log_fd, text, (size_t)got))
		dp_close_fd(&output->log_fd), output->log_fd = -1; /* the container goes on without a log */
}

/* `restore ... ID` */
static void make_command(const struct in *in, char **command)
{
	size_t used = 0;
	json_object *extra;
	command[used++] = (char *)(uintptr_t)"restore";
	command[used++] = (char *)(uintptr_t)"--detach";
	command[used++] = (char *)(uintptr_t)"--bundle";
	command[used++] = in->container->landing.bundle;
	if (line_flag(in->prepare, "tcp_established"))
		command[used++] = (char *)(uintptr_t)"--tcp-established";
	if (json_object_object_get_ex(in->prepare, "criu", &extra) && json_object_is_type(extra, json_type_array))
		for (size_t i = 0; i < json_object_array_length(extra) && used < ARGUMENTS_MOST; i++)
			command[used++] = (char *)(uintptr_t)json_object_get_string(json_object_array_get_idx(extra, i));
	command[used++] = in->container->landing.id;
	command[used] = NULL;
}

/* Ends with us: a container whose ferry is gone before it runs is nobody's. */
static pid_t start_runtime(char **argv, int write_fd)
{
	pid_t self = getpid(), child = fork();
	if (child)
		return child;
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != self || dup2(null_fd, 0) < 0 || dup2(write_fd, 1) < 0 || dup2(write_fd, 2) < 0)
		_exit(126);
	execvp(argv[0], argv);
	fprintf(stderr, "run %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* Its last words, which are the runtime's or the container's. */
static int say_why(const struct output *output, const char *program, int status, struct dp_err *err)
{
	if (WIFSIGNALED(status))
		return dp_fail(err, EIO, "%s was killed by signal %d before the container ran", program, WTERMSIG(status));
	char text[400] = "";
	cleanup_fd int fd = open(output->path, O_RDONLY | O_CLOEXEC);
	struct stat info;
	ssize_t got = fd < 0 || fstat(fd, &info) ? 0 : pread(fd, text, sizeof(text) - 1, DP_MAX(info.st_size - 399, 0));
	text[DP_MAX(got, 0)] = 0;
	while (got > 0 && text[got - 1] == '\n')
		text[--got] = 0;
	char *line = strrchr(text, '\n');
	return dp_fail(err, EIO, "%s could not restore it: %s (%s)", program, line ? line + 1 : text, output->path);
}

/* CRIU and what it has made so far, which may wait for pages that will never come: then the runtime cleans up. */
static void end_criu(pid_t runtime)
{
	cleanup_free pid_t *pids = NULL;
	ssize_t count = proc_tree(runtime, &pids);
	for (ssize_t i = 1; i < count; i++)
		kill(pids[i], SIGKILL);
}

/* Until the runtime has ended; 0 where it was content. What the container writes goes on meanwhile. The ferry is gone, or wants
 * no more of it, when order_fd hangs up. */
static int await_runtime(pid_t runtime, int order_fd, struct output *output, const char *program, struct dp_err *err)
{
	int status = -1;
	cleanup_fd int pidfd = pidfd_open(runtime, 0);
	struct pollfd polls[] = { { .fd = pidfd, .events = POLLIN }, { .fd = output->pipe_fd, .events = POLLIN },
				  { .fd = order_fd, .events = POLLIN } };
	while (runtime > 0 && pidfd >= 0 && !polls[0].revents) {
		poll(polls, ARRAY_LENGTH(polls), polls[2].fd < 0 ? END_CRIU_MS : -1);
		if (polls[1].revents) {
			copy_output(output);
			polls[1].fd = output->pipe_fd;
		}
		if (polls[2].revents || polls[2].fd < 0) {
			polls[2] = (struct pollfd){ .fd = -1 };
			end_criu(runtime);
		}
	}
	while (runtime > 0 && waitpid(runtime, &status, 0) < 0 && errno == EINTR)
		continue;
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	struct pollfd rest = { .fd = output->pipe_fd, .events = POLLIN };
	while (output->pipe_fd >= 0 && poll(&rest, 1, 0) > 0)
		copy_output(output);
	kill_descendants(0); /* of a runtime that was killed */
	return say_why(output, program, status, err);
}

/* We are its parent, the runtime having left it to us. */
static int await_container(pid_t root, struct output *output)
{
	int status = 0;
	cleanup_fd int pidfd = pidfd_open(root, 0);
	struct pollfd polls[] = { { .fd = pidfd, .events = POLLIN }, { .fd = output->pipe_fd, .events = POLLIN } };
	while (pidfd >= 0 && !polls[0].revents) {
		poll(polls, ARRAY_LENGTH(polls), -1);
		if (polls[1].revents) {
			copy_output(output);
			polls[1].fd = output->pipe_fd;
		}
	}
	if (waitpid(root, &status, 0) != root)
		return 0;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int container_in_restore(struct in *in, struct restore_options *options, void (*runs)(void *context, struct instance *instance),
			 void *context, int *code, struct dp_err *err)
{
	char *command[ARGUMENTS_MOST + 8], script[PATH_MAX];
	cleanup_free char **argv = NULL;
	struct output output = { .pipe_fd = -1, .log_fd = -1 };
	struct instance instance;
	cleanup_fd int write_fd = -1;
	struct oci_restore restore = { .runtime = in->container->runtime, .argv = command, .id = in->container->landing.id,
				       .restore = options,
				       .action_script = ferry_path(in->root, "in", in->id, FERRY_GATE_ACTION, script) };
	make_command(in, command);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	int ret = oci_restore_prepare(&restore, &instance, &argv, err);
	if (!ret)
		ret = open_output(in, &output, &write_fd, err);
	if (ret)
		return ret;
	pid_t runtime = start_runtime(argv, write_fd);
	dp_close_fd(&write_fd);
	write_fd = -1;
	ret = await_runtime(runtime, in->order_fd, &output, argv[0], err);
	if (!ret)
		ret = instance_load(options->root, instance.id, &instance, err);
	if (ret)
		return ret;
	runs(context, &instance);
	*code = await_container(instance.root.pid, &output);
	return 0;
}

/* ---- after ---- */

static bool instance_is_there(const struct in *in)
{
	struct instance instance;
	return instance_find(in->root, in->name, &instance, NULL) == 0;
}

void container_in_done(struct in *in, bool here)
{
	struct container_in *container = in->container;
	struct dp_err err;
	if (!container)
		return;
	tree_receiver_close(&container->receiver);
	if (!here && container->ours) {
		for (int waited_ms = 0; waited_ms < GONE_MS && instance_is_there(in); waited_ms += 20)
			poll(NULL, 0, 20); /* its pager, which holds what the kernel has of the root filesystem, goes with it */
		if (container->runtime.program && oci_delete(&container->runtime, container->landing.id, &err))
			log_error("%s", err.text);
		oci_landing_undo(&container->landing);
	}
	oci_landing_done(&container->landing);
	free(container);
	in->container = NULL;
}
