#include "checkpoint/skeleton.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>

#include "base/base.h"
#include "image/images.h"

/* Files of the skeleton, mapped. */
struct files {
	struct client_file *list;
	size_t count, room;
};

static void files_done(struct files *files)
{
	for (size_t i = 0; i < files->count; i++) {
		if (files->list[i].bytes)
			munmap((void *)(uintptr_t)files->list[i].content, files->list[i].bytes);
		free((void *)(uintptr_t)files->list[i].name);
	}
	free(files->list);
}

static int add_file(void *context, int images_fd, const char *name, struct dp_err *err)
{
	struct files *files = context;
	struct stat status;
	cleanup_fd int fd = openat(images_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &status) < 0)
		return dp_fail_errno(err, errno, "read image %s", name);
	if (!S_ISREG(status.st_mode))
		return dp_fail(err, EBADMSG, "%s among CRIU's images is no regular file", name);
	if (files->count == files->room) {
		size_t room = files->room ? files->room * 2 : 64;
		struct client_file *wider = reallocarray(files->list, room, sizeof(*wider));
		if (!wider)
			return dp_fail_errno(err, ENOMEM, "read image %s", name);
		files->list = wider;
		files->room = room;
	}
	struct client_file file = {.name = strdup(name), .content = "", .bytes = (uint64_t)status.st_size};
	if (file.bytes > 0)
		file.content = mmap(NULL, file.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	if (!file.name || file.content == MAP_FAILED) {
		free((void *)(uintptr_t)file.name);
		return dp_fail_errno(err, errno, "map image %s", name);
	}
	files->list[files->count++] = file;
	return 0;
}

int skeleton_send(struct client *client, uint64_t draft, int images_fd, uint64_t *bytes, struct dp_err *err)
{
	struct files files = {0};
	int rc = images_each(images_fd, add_file, &files, err);
	if (rc == 0 && (rc = client_snapshot_files(client, draft, files.list, files.count, err)) < 0)
		dp_err_doing(err, "store CRIU's images");
	*bytes = 0;
	for (size_t i = 0; i < files.count; i++)
		*bytes += files.list[i].bytes;
	files_done(&files);
	return rc;
}

int skeleton_read_tasks(int images_fd, struct skeleton_facts *facts, struct dp_err *err)
{
	struct image_task *tasks;
	size_t count;
	int rc = images_read_pstree(images_fd, &tasks, &count, err);
	if (rc < 0)
		return rc;
	facts->tasks = count;
	facts->threads = 0;
	for (size_t i = 0; i < count; i++)
		facts->threads += tasks[i].threads;
	facts->root_pid = tasks[0].pid;
	free(tasks);
	return 0;
}

static void add_number(struct json_object *object, const char *name, uint64_t number)
{
	json_object_object_add(object, name, json_object_new_int64((int64_t)number));
}

static void add_text(struct json_object *object, const char *name, const char *text)
{
	json_object_object_add(object, name, json_object_new_string(text));
}

char *skeleton_meta(const struct skeleton_facts *facts)
{
	struct utsname system;
	struct json_object *meta = json_object_new_object(), *arguments = json_object_new_array();
	if (!meta || !arguments || uname(&system) < 0)
		return NULL;
	char created[40];
	time_t now = time(NULL);
	struct tm utc;
	strftime(created, sizeof(created), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
	const struct capture_totals *totals = facts->totals;
	for (size_t i = 0; i < facts->options->criu_argument_count; i++)
		json_object_array_add(arguments, json_object_new_string(facts->options->criu_arguments[i]));
	add_text(meta, "schema", "distriproc.snapshot/1");
	add_text(meta, "arch", system.machine);
	add_text(meta, "kernel", system.release);
	add_text(meta, "criu", facts->criu_version);
	add_text(meta, "created", created);
	add_number(meta, "page_bytes", PAGE_BYTES);
	add_number(meta, "tasks", facts->tasks);
	add_number(meta, "threads", facts->threads);
	add_number(meta, "root_pid", (uint64_t)facts->root_pid);
	add_text(meta, "cmdline", facts->command_line);
	add_number(meta, "pages", totals->stored_pages + totals->inherited_pages + totals->eager_pages);
	add_number(meta, "eager_pages", totals->eager_pages);
	add_number(meta, "zero_pages", totals->zero_pages);
	json_object_object_add(meta, "leave_running", json_object_new_boolean(facts->options->leave_running));
	json_object_object_add(meta, "criu_options", arguments);
	const struct checkpoint_origin *origin = facts->options->origin;
	if (origin) {
		struct json_object *commit = json_object_new_object();
		add_text(commit, "kind", origin->kind);
		add_text(commit, "series", origin->series);
		add_text(commit, "instance", origin->instance);
		add_text(commit, "name", origin->name);
		add_text(commit, "lineage", origin->lineage);
		if (facts->pool_instance)
			add_number(commit, "pool_instance", facts->pool_instance);
		json_object_object_add(meta, "commit", commit);
	}
	const char *text = json_object_to_json_string_ext(meta, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	char *copy = text ? strdup(text) : NULL;
	json_object_put(meta);
	return copy;
}
