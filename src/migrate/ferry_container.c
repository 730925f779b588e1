/* The source's side, and what both have in common. */
#include "migrate/ferry_container.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "base/log.h"

/* ---- the source ---- */

static int use_runtime(struct out *out, struct container_out *container)
{
	const char *program = line_text(out->request, "runtime"), *root = line_text(out->request, "runtime_root");
	int ret = oci_host_read(&container->host, &out->err);
	container->command[0] = program ? (char *)(uintptr_t)program : container->host.runtime;
	container->command[1] = root ? (char *)(uintptr_t)"--root" : NULL;
	container->command[2] = (char *)(uintptr_t)root;
	container->runtime = (struct oci_runtime){ .program = container->command[0], .globals = container->command + 1 };
	return ret;
}

int container_out_find(struct out *out)
{
	const char *id = line_text(out->request, "container");
	if (!id)
		return 0;
	const char *mode = line_text(out->request, "mode");
	if (mode && strcmp(mode, "post-copy") != 0)
		return dp_fail(&out->err, EOPNOTSUPP, "--container goes with --mode post-copy only");
	struct container_out *container = out->container = calloc(1, sizeof(*container));
	int64_t limit = line_number(out->request, "rootfs_limit");
	if (!container)
		return dp_fail(&out->err, ENOMEM, "out of memory");
	int ret = use_runtime(out, container);
	if (!ret)
		ret = oci_moving_read(&container->runtime, id, &container->moving, &out->err);
	if (!ret)
		ret = tree_sender_open(&container->sender, container->moving.rootfs,
				       limit > 0 ? (uint64_t)limit : TREE_COPY_LIMIT_BYTES, &out->err);
	if (ret)
		return ret;
	container->offered = (struct offer_container){ .runtime = container->command, .id = id };
	out->pid = container->moving.pid;
	size_t length = strlen(id); /* an instance's name, as restored containers have it */
	snprintf(out->name, sizeof(out->name), "%.*s", length < INSTANCE_ID_BYTES && length < sizeof(out->name) ? (int)length : 12, id);
	return 0;
}

/* A file of a name that nobody else has: does the destination see it too? */
static void leave_marker(struct out *out)
{
	struct container_out *container = out->container;
	char path[PATH_MAX + 80];
	snprintf(container->marker, sizeof(container->marker), ".distri-proc-%s", out->id);
	snprintf(path, sizeof(path), "%s/%s", container->moving.rootfs, container->marker);
	cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0) /* what cannot be written to here, is not written to there either */
		container->marker[0] = 0;
}

static void remove_marker(struct container_out *container)
{
	char path[PATH_MAX + 80];
	snprintf(path, sizeof(path), "%s/%s", container->moving.rootfs, container->marker);
	if (container->marker[0])
		unlink(path);
	container->marker[0] = 0;
}

void container_out_describe(struct out *out, json_object *line)
{
	static const char *const passed_on[] = { "bundle", "volumes", "runtime_root" };
	struct container_out *container = out->container;
	if (!container)
		return;
	json_object *told = json_object_new_object();
	leave_marker(out);
	line_add_text(told, "id", container->offered.id);
	line_add_text(told, "marker", container->marker);
	json_object_object_add(told, "facts", json_object_get(container->moving.facts));
	for (size_t i = 0; i < ARRAY_LENGTH(passed_on); i++) {
		json_object *value;
		if (json_object_object_get_ex(out->request, passed_on[i], &value))
			json_object_object_add(told, passed_on[i], json_object_get(value));
	}
	json_object_object_add(line, "container", told);
}

void container_out_answered(struct out *out, json_object *answer)
{
	if (!out->container)
		return;
	remove_marker(out->container);
	out->container->shared = line_flag(answer, "shared");
}

int container_out_copy(struct out *out, bool frozen)
{
	struct container_out *container = out->container;
	uint64_t begun_ns = clock_now_ns();
	if (!container || container->shared)
		return 0;
	if (!frozen)
		out_phase(out, "copying files");
	int ret = tree_send(container->sender, &out->destination, frozen ? out->pid : 0, &out->err);
	if (ret)
		dp_err_doing(&out->err, "its root filesystem");
	*(frozen ? &container->changes_ns : &container->copied_ns) = clock_now_ns() - begun_ns;
	return ret;
}

/* For who comes after us. */
int container_out_note(struct out *out)
{
	char path[PATH_MAX];
	struct container_out *container = out->container;
	if (!container)
		return 0;
	json_object *noted = json_object_new_object();
	line_add_text(noted, "id", container->offered.id);
	line_add_text(noted, "runtime", container->command[0]);
	line_add_text(noted, "runtime_root", container->command[2]);
	const char *text = json_object_to_json_string_ext(noted, JSON_C_TO_STRING_PLAIN);
	int ret = io_write_file(ferry_path(out->root, "out", out->id, CONTAINER_STATE, path), text, strlen(text), 0600);
	json_object_put(noted);
	return ret ? dp_fail_errno(&out->err, -ret, "write %s", path) : 0;
}

void container_out_forget(const char *root, const char *id)
{
	char path[PATH_MAX];
	struct dp_err err;
	cleanup_free char *text = NULL;
	if (io_read_file(ferry_path(root, "out", id, CONTAINER_STATE, path), &text, 65536) < 0)
		return;
	json_object *noted = json_tokener_parse(text);
	const char *place = line_text(noted, "runtime_root"), *name = line_text(noted, "id");
	char *globals[] = { place ? (char *)(uintptr_t)"--root" : NULL, (char *)(uintptr_t)place, NULL };
	const struct oci_runtime runtime = { .program = line_text(noted, "runtime"), .globals = globals };
	if (runtime.program && name && oci_delete(&runtime, name, &err))
		log_error("%s", err.text);
	json_object_put(noted);
}

void container_out_done(struct out *out, json_object *event, bool moved)
{
	struct container_out *container = out->container;
	struct dp_err err;
	if (!container)
		return;
	remove_marker(container);
	line_add_text(event, "container", container->offered.id);
	line_add_number(event, "files_bytes", container->sender ? tree_sender_bytes(container->sender) : 0);
	line_add_number(event, "files_ns", container->copied_ns);
	line_add_number(event, "files_frozen_ns", container->changes_ns);
	if (moved && container->offered.id && oci_delete(&container->runtime, container->offered.id, &err))
		log_error("%s", err.text);
	tree_sender_free(container->sender);
	oci_moving_done(&container->moving);
	free(container);
	out->container = NULL;
}
