/* What is done to a container, whoever asks for it: the wrapper, or `distri-proc checkpoint --runtime`. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/base.h"
#include "checkpoint/runtime_dump.h"
#include "instance/process.h"
#include "oci/oci.h"
#include "restore/container.h"
#include "sys/criu.h"
#include "sys/criu_launch.h"

#define REFERENCE "distri-proc.json"
#define REFERENCE_SCHEMA "distriproc.container/1"
#define REFERENCE_LIMIT 65536
#define STATE_LIMIT (1u << 20)
#define OLD_GONE_MS 5000 /* for an instance whose container has just ended */

/* ---- the runtime is asked ---- */

static size_t count_of(char *const *list)
{
	size_t count = 0;
	while (list && list[count])
		count++;
	return count;
}

/* program, its globals, what follows; fresh array, borrowed strings. */
static char **command_of(const struct oci_runtime *runtime, char *const *rest)
{
	size_t globals = count_of(runtime->globals), others = count_of(rest);
	char **argv = calloc(globals + others + 2, sizeof(*argv));
	if (!argv)
		return NULL;
	argv[0] = (char *)(uintptr_t)runtime->program;
	for (size_t i = 0; i < globals; i++)
		argv[1 + i] = runtime->globals[i];
	for (size_t i = 0; i < others; i++)
		argv[1 + globals + i] = rest[i];
	return argv;
}

/* What it prints, fresh; its exit code must be 0. */
static int run_and_read(char *const *argv, bool quiet, char **text, struct dp_err *err)
{
	int pair[2], status = -1;
	size_t used = 0;
	if (pipe2(pair, O_CLOEXEC))
		return dp_fail_errno(err, errno, "pipe");
	pid_t child = fork();
	if (child == 0) {
		int null_fd = open("/dev/null", O_RDWR);
		dup2(null_fd, 0);
		dup2(pair[1], 1);
		if (quiet)
			dup2(null_fd, 2);
		execvp(argv[0], argv);
		_exit(127);
	}
	close(pair[1]);
	*text = child > 0 ? calloc(1, STATE_LIMIT + 1) : NULL;
	for (ssize_t got = 1; *text && got > 0 && used < STATE_LIMIT;) {
		got = read(pair[0], *text + used, STATE_LIMIT - used);
		used += (size_t)DP_MAX(got, 0);
		if (got < 0 && errno == EINTR)
			got = 1;
	}
	close(pair[0]);
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
		continue;
	if (*text && WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	bool missing = WIFEXITED(status) && WEXITSTATUS(status) == 127;
	free(*text);
	*text = NULL;
	return missing ? dp_fail(err, ENOPKG, "%s cannot be run: is it installed?", argv[0])
		       : dp_fail(err, ENOENT, "%s knows no such container", argv[0]);
}

int oci_state(const struct oci_runtime *runtime, const char *id, bool quiet, struct oci_state *state, struct dp_err *err)
{
	char *const rest[] = { "state", (char *)(uintptr_t)id, NULL };
	cleanup_free char **argv = command_of(runtime, rest);
	cleanup_free char *text = NULL;
	*state = (struct oci_state){ 0 };
	int ret = argv ? run_and_read(argv, quiet, &text, err) : dp_fail(err, ENOMEM, "out of memory");
	if (ret)
		return ret;
	json_object *object = json_tokener_parse(text), *value;
	const char *bundle = "";
	if (json_object_object_get_ex(object, "pid", &value))
		state->pid = json_object_get_int(value);
	if (json_object_object_get_ex(object, "bundle", &value))
		bundle = json_object_get_string(value);
	bool good = bundle && *bundle == '/' && strlen(bundle) < sizeof(state->bundle);
	if (good)
		strcpy(state->bundle, bundle);
	json_object_put(object);
	return good ? 0 : dp_fail(err, EBADMSG, "`%s state %s` names no bundle", runtime->program, id);
}

/* ---- the reference ---- */

static int write_reference(int images_fd, const struct endpoint *endpoint, struct dp_err *err)
{
	char pool[1400];
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string(REFERENCE_SCHEMA));
	json_object_object_add(object, "pool", json_object_new_string(endpoint_pool_text(endpoint, pool, sizeof(pool))));
	json_object_object_add(object, "snapshot", json_object_new_string(endpoint->name));
	cleanup_free char *text = format_text("%s\n", json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY |
											     JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(object);
	cleanup_fd int fd = openat(images_fd, REFERENCE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	int ret = !text ? -ENOMEM : fd < 0 ? -errno : io_write_full(fd, text, strlen(text));
	return ret ? dp_fail_errno(err, -ret, "write " REFERENCE) : 0;
}

/* The pages that could not be lazy are in the pool too. */
static void drop_pages(int images_fd)
{
	int again = openat(images_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = again < 0 ? NULL : fdopendir(again);
	if (!directory) {
		dp_close_fd(&again);
		return;
	}
	for (struct dirent *entry = readdir(directory); entry; entry = readdir(directory))
		if (!strncmp(entry->d_name, "pages-", 6))
			unlinkat(images_fd, entry->d_name, 0);
	closedir(directory);
}

/* O1: tools look whether there is such a file; a CRIU that reads it says that its magic is wrong. */
static int replace_inventory(int images_fd, const struct endpoint *endpoint, struct dp_err *err)
{
	char pool[1400];
	cleanup_free char *text =
		format_text("The pages of this checkpoint are in the pool %s, as %s: restore it with distri-proc-runtime.\n",
			    endpoint_pool_text(endpoint, pool, sizeof(pool)), endpoint->name);
	unlinkat(images_fd, "inventory.img", 0);
	cleanup_fd int fd = openat(images_fd, "inventory.img", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int ret = !text ? -ENOMEM : fd < 0 ? -errno : io_write_full(fd, text, strlen(text));
	return ret ? dp_fail_errno(err, -ret, "write inventory.img") : 0;
}

static int leave_reference(void *context, struct dp_err *err)
{
	const struct oci_checkpoint *checkpoint = context;
	const struct endpoint *endpoint = checkpoint->checkpoint.endpoint;
	cleanup_fd int images_fd = open(checkpoint->images, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int ret = images_fd < 0 ? dp_fail_errno(err, errno, "open") : replace_inventory(images_fd, endpoint, err);
	if (!ret)
		ret = write_reference(images_fd, endpoint, err);
	if (ret)
		dp_err_doing(err, "%s", checkpoint->images);
	else
		drop_pages(images_fd);
	return ret;
}

int oci_reference_read(const char *images, char uri[static 2048], struct dp_err *err)
{
	cleanup_free char *path = format_text("%s/" REFERENCE, images);
	cleanup_free char *text = NULL;
	if (!path)
		return dp_fail(err, ENOMEM, "out of memory");
	ssize_t length = io_read_file(path, &text, REFERENCE_LIMIT);
	if (length == -ENOENT || length == -ENOTDIR)
		return -ENOENT;
	if (length < 0)
		return dp_fail_errno(err, (int)-length, "read %s", path);
	json_object *object = json_tokener_parse(text), *schema = NULL, *pool = NULL, *name = NULL;
	bool good = json_object_object_get_ex(object, "schema", &schema) && json_object_object_get_ex(object, "pool", &pool) &&
		    json_object_object_get_ex(object, "snapshot", &name) && json_object_is_type(schema, json_type_string) &&
		    json_object_is_type(pool, json_type_string) && json_object_is_type(name, json_type_string) &&
		    !strcmp(json_object_get_string(schema), REFERENCE_SCHEMA);
	if (good) {
		const char *text_of_pool = json_object_get_string(pool);
		bool tcp = !strncmp(text_of_pool, "dp://", 5) || !strncmp(text_of_pool, "dps://", 6);
		good = snprintf(uri, 2048, "%s%s%s", text_of_pool, tcp ? "/" : "#", json_object_get_string(name)) < 2048;
	}
	json_object_put(object);
	return good ? 0 : dp_fail(err, EBADMSG, "%s is damaged: it names no snapshot", path);
}

/* ---- checkpoint ---- */

int oci_checkpoint(struct oci_checkpoint *checkpoint, struct checkpoint_result *result, struct dp_err *err)
{
	const char *work = checkpoint->work ? checkpoint->work : checkpoint->images;
	const struct runtime_dump dump = {
		.argv = checkpoint->argv, .images = checkpoint->images, .work = work,
		.on_published = leave_reference, .context = checkpoint,
	};
	if (mkdir(checkpoint->images, 0700) && errno != EEXIST)
		return dp_fail_errno(err, errno, "make %s", checkpoint->images);
	if (mkdir(work, 0700) && errno != EEXIST)
		return dp_fail_errno(err, errno, "make %s", work);
	checkpoint->checkpoint.runtime = &dump;
	int ret = checkpoint_run(&checkpoint->checkpoint, result, err);
	checkpoint->checkpoint.runtime = NULL;
	return ret;
}

/* ---- restore ---- */

/* A name for the instance: the container's, or what people know a long one by. */
static void name_of(const char *id, char name[static INSTANCE_ID_BYTES])
{
	size_t length = strlen(id);
	snprintf(name, INSTANCE_ID_BYTES, "%.*s", length < INSTANCE_ID_BYTES ? (int)length : 12, id);
}

/* The container has ended, and its instance is about to: that takes a moment, for the pool is told. */
static void await_old(const char *root, const char *name)
{
	struct instance old;
	for (int waited_ms = 0; waited_ms < OLD_GONE_MS; waited_ms += 20) {
		if (instance_find(root, name, &old, NULL) || !old.container[0] ||
		    process_is_alive(old.root.pid, old.root.start_time))
			return;
		usleep(20000);
	}
}

/* `restore [options] ID` with our image directory; options that we set ourselves are left out. */
static char **restore_command(const struct oci_restore *restore, const char *images)
{
	size_t count = count_of(restore->argv), used = 0;
	cleanup_free char **rest = calloc(count + 5, sizeof(*rest));
	if (!rest)
		return NULL;
	rest[used++] = restore->argv[0];
	rest[used++] = (char *)(uintptr_t)"--lazy-pages";
	rest[used++] = (char *)(uintptr_t)"--image-path";
	rest[used++] = (char *)(uintptr_t)images;
	for (size_t i = 1; i < count; i++) {
		const char *name = restore->argv[i];
		name += *name == '-' ? 1 + (name[1] == '-') : 0;
		bool images_option = name != restore->argv[i] && !strncmp(name, "image-path", 10);
		if (images_option && !name[10]) {
			i++;
			continue;
		}
		if (images_option && name[10] == '=')
			continue;
		rest[used++] = restore->argv[i];
	}
	return command_of(&restore->runtime, rest);
}

int oci_restore_prepare(struct oci_restore *restore, struct instance *instance, char ***argv, struct dp_err *err)
{
	struct restore_options *options = restore->restore;
	struct restore_container container = { .id = restore->id, .work_path = restore->work,
					       .action_script = restore->action_script };
	char name[INSTANCE_ID_BYTES], criu[256];
	int ret = criu_find(criu, err);
	if (!ret)
		ret = criu_check_version(criu, NULL, err);
	if (ret)
		return ret;
	name_of(restore->id, name);
	if (!options->name)
		options->name = name;
	await_old(options->root, options->name);
	ret = restore_container_start(options, &container, instance, err);
	if (ret)
		return ret;
	*argv = restore_command(restore, instance_path(instance, "images", restore->images, sizeof(restore->images)));
	if (!*argv || criu_launch_environment(instance->directory, criu))
		return dp_fail(err, ENOMEM, "out of memory");
	return 0;
}
