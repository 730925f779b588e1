/* Where the container runs; and what both sides need. */
#include "oci/moving.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/base.h"
#include "sys/proc.h"

#define MOUNTS_LIMIT (8u << 20)
#define MOUNTS_MOST 8u /* on top of each other */
#define DELETE_TRIES 40
#define DELETE_PAUSE_US 50000

/* ---- mounts ---- */

static char *option_of(const char *options, const char *name)
{
	size_t length = strlen(name);
	for (const char *at = options; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
		if (!strncmp(at, name, length) && at[length] == '=')
			return strndup(at + length + 1, strcspn(at + length + 1, ","));
	return NULL;
}

/* 36 35 98:0 ROOT PLACE OPTIONS [FIELDS] - TYPE SOURCE OPTIONS: proc(5). */
static bool take_line(char *line, const char *path, char **lower, char **upper, char **work)
{
	char *word[6], *rest = line;
	for (size_t i = 0; i < ARRAY_LENGTH(word); i++)
		if (!(word[i] = strsep(&rest, " ")))
			return false;
	char *dash = rest ? strstr(rest, "- ") : NULL;
	proc_unescape(word[4]);
	if (!dash || strcmp(word[4], path) || strncmp(dash, "- overlay ", 10))
		return false;
	char *options = strchr(dash + 10, ' ');
	if (!options)
		return false;
	proc_unescape(options);
	free(*lower);
	free(*upper);
	free(*work);
	*lower = option_of(options + 1, "lowerdir");
	*upper = option_of(options + 1, "upperdir");
	*work = option_of(options + 1, "workdir");
	return true;
}

bool oci_overlay_find(const char *mountinfo, const char *path, char **lower, char **upper, char **work)
{
	bool found = false;
	cleanup_free char *text = strdup(mountinfo);
	char *rest = text;
	*lower = *upper = *work = NULL;
	for (char *line = strsep(&rest, "\n"); line; line = strsep(&rest, "\n"))
		found |= take_line(line, path, lower, upper, work); /* the last one is on top */
	return found;
}

/* ---- what cannot move ---- */

/* A container's parent that wants to hear how it ends cannot go along. */
static int check_parent(pid_t pid, const char *id, struct dp_err *err)
{
	char path[64], name[64] = "";
	cleanup_free char *status = NULL;
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	ssize_t length = io_read_file(path, &status, 65536);
	const char *line = length > 0 ? strstr(status, "\nPPid:") : NULL;
	cleanup_free char *comm = NULL;
	snprintf(path, sizeof(path), "/proc/%d/comm", line ? atoi(line + 6) : 0);
	if (io_read_file(path, &comm, 64) > 0)
		snprintf(name, sizeof(name), "%.*s", (int)strcspn(comm, "\n"), comm);
	bool shim = !strncmp(name, "containerd-shim", 15), conmon = !strcmp(name, "conmon");
	if (!shim && !conmon)
		return 0;
	return dp_fail(err, EOPNOTSUPP, "container %s belongs to %s, which would not find it on the other host: checkpoint it into a "
		       "pool and restore it there with %s (docs/containers.md)", id, shim ? "containerd" : "Podman",
		       shim ? "`ctr container restore --live`" : "`podman container restore --import`");
}

static int check_config(json_object *config, const char *id, struct dp_err *err)
{
	json_object *process, *terminal, *platform, *namespaces;
	bool own_pids = false;
	if (json_object_object_get_ex(config, "process", &process) && json_object_object_get_ex(process, "terminal", &terminal) &&
	    json_object_get_boolean(terminal))
		return dp_fail(err, EOPNOTSUPP, "container %s has a terminal, which cannot move", id);
	if (!json_object_object_get_ex(config, "linux", &platform) || !json_object_object_get_ex(platform, "namespaces", &namespaces) ||
	    !json_object_is_type(namespaces, json_type_array))
		return dp_fail(err, EBADMSG, "the config.json of container %s has no namespaces", id);
	for (size_t i = 0; i < json_object_array_length(namespaces); i++) {
		json_object *one = json_object_array_get_idx(namespaces, i), *type, *path;
		if (!json_object_object_get_ex(one, "type", &type))
			continue;
		const char *name = json_object_get_string(type);
		if (!strcmp(name, "pid") && !json_object_object_get_ex(one, "path", &path))
			own_pids = true;
	}
	return own_pids ? 0 : dp_fail(err, EOPNOTSUPP, "container %s has no PID namespace of its own, and its pids may be taken on the "
					  "other host", id);
}

/* ---- what there is ---- */

static int find_rootfs(json_object *config, struct oci_moving *moving, struct dp_err *err)
{
	json_object *root, *path;
	char joined[2 * PATH_MAX];
	if (!json_object_object_get_ex(config, "root", &root) || !json_object_object_get_ex(root, "path", &path))
		return dp_fail(err, EBADMSG, "its config.json names no root filesystem");
	const char *text = json_object_get_string(path);
	snprintf(joined, sizeof(joined), "%s%s%s", *text == '/' ? "" : moving->bundle, *text == '/' ? "" : "/", text);
	return realpath(joined, moving->rootfs) ? 0 : dp_fail_errno(err, errno, "its root filesystem %s", joined);
}

static int find_overlay(struct oci_moving *moving, struct dp_err *err)
{
	cleanup_free char *mounts = NULL, *lower = NULL, *upper = NULL, *work = NULL;
	if (io_read_file("/proc/self/mountinfo", &mounts, MOUNTS_LIMIT) < 0 ||
	    !oci_overlay_find(mounts, moving->rootfs, &lower, &upper, &work))
		return 0;
	if (!lower || !upper || !work || strchr(lower, '\\') || lower[0] != '/')
		return dp_fail(err, EOPNOTSUPP, "its root filesystem is an overlay whose directories this kernel does not tell plainly");
	json_object *overlay = json_object_new_object();
	json_object_object_add(overlay, "lower", json_object_new_string(lower));
	json_object_object_add(overlay, "upper", json_object_new_string(upper));
	json_object_object_add(overlay, "work", json_object_new_string(work));
	json_object_object_add(moving->facts, "overlay", overlay);
	return 0;
}

int oci_moving_read(const struct oci_runtime *runtime, const char *id, struct oci_moving *moving, struct dp_err *err)
{
	struct oci_state state;
	cleanup_free char *text = NULL;
	*moving = (struct oci_moving){ .facts = json_object_new_object() };
	int ret = oci_state(runtime, id, true, &state, err);
	if (!ret && state.pid <= 0)
		ret = dp_fail(err, ESRCH, "container %s does not run", id);
	if (ret)
		return ret;
	moving->pid = state.pid;
	strcpy(moving->bundle, state.bundle);
	cleanup_free char *path = format_text("%s/config.json", state.bundle);
	ssize_t length = path ? io_read_file(path, &text, OCI_CONFIG_LIMIT) : -ENOMEM;
	json_object *config = length > 0 ? json_tokener_parse(text) : NULL;
	if (!config)
		return dp_fail(err, EBADMSG, "the config.json of container %s in %s cannot be read, or is larger than %u KiB", id,
			       state.bundle, OCI_CONFIG_LIMIT >> 10);
	ret = check_parent(state.pid, id, err);
	if (!ret)
		ret = check_config(config, id, err);
	if (!ret)
		ret = find_rootfs(config, moving, err);
	if (!ret)
		ret = find_overlay(moving, err);
	json_object_object_add(moving->facts, "bundle", json_object_new_string(state.bundle));
	json_object_object_add(moving->facts, "config", config);
	return ret;
}

void oci_moving_done(struct oci_moving *moving)
{
	json_object_put(moving->facts);
	moving->facts = NULL;
}

/* ---- the runtime is told ---- */

/* Is this where `runc restore` has the root filesystem mounted for CRIU: .../ID/criu-root? */
static bool is_left_over(const char *place, const char *id)
{
	cleanup_free char *mark = format_text("/%s/criu-root", id);
	const char *found = mark ? strstr(place, mark) : NULL;
	return found && (!found[strlen(mark)] || found[strlen(mark)] == '/');
}

/* What a runtime that was killed has left mounted. How many of them were found; false in *good where one stays. */
static unsigned unmount_left_over(const char *id, bool *good)
{
	cleanup_free char *mounts = NULL;
	unsigned count = 0;
	*good = io_read_file("/proc/self/mountinfo", &mounts, MOUNTS_LIMIT) >= 0;
	char *rest = mounts;
	for (char *line = *good ? strsep(&rest, "\n") : NULL; line; line = strsep(&rest, "\n")) {
		char place[PATH_MAX];
		if (sscanf(line, "%*s %*s %*s %*s %4095s", place) != 1)
			continue;
		proc_unescape(place);
		if (!is_left_over(place, id))
			continue;
		count++;
		if (umount2(place, MNT_DETACH | UMOUNT_NOFOLLOW) && errno != EINVAL)
			*good = false;
	}
	return count;
}

/* Before `delete --force`: it would remove what is in there, which is the root filesystem's very files. */
static int forget_mounts(const char *id, struct dp_err *err)
{
	bool good = true;
	for (unsigned i = 0; i < MOUNTS_MOST && good; i++)
		if (!unmount_left_over(id, &good) && good)
			return 0;
	return dp_fail(err, EBUSY, "the root filesystem of container %s is still mounted in its runtime's directory: unmount it before "
		       "you delete it, or its files go too", id);
}

int oci_delete(const struct oci_runtime *runtime, const char *id, struct dp_err *err)
{
	struct oci_state state;
	int ret = forget_mounts(id, err);
	if (ret)
		return ret;
	for (int i = 0; i < DELETE_TRIES; i++) {
		/* the first time unasked: of one that was never whole a runtime may know no state, and have a directory */
		ret = i ? oci_state(runtime, id, true, &state, NULL) : 0;
		if (ret == -ENOENT)
			return 0;
		char *argv[16] = { (char *)(uintptr_t)runtime->program };
		size_t used = 1;
		for (size_t k = 0; runtime->globals && runtime->globals[k] && used < 12; k++)
			argv[used++] = runtime->globals[k];
		argv[used++] = (char *)(uintptr_t)"delete";
		argv[used++] = (char *)(uintptr_t)"--force";
		argv[used++] = (char *)(uintptr_t)id;
		pid_t child = fork();
		if (child == 0) {
			int null_fd = open("/dev/null", O_RDWR);
			for (int fd = 0; fd < 3; fd++)
				dup2(null_fd, fd);
			execvp(argv[0], argv);
			_exit(127);
		}
		while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
			continue;
		if (i)
			usleep(DELETE_PAUSE_US);
	}
	return dp_fail(err, EBUSY, "%s does not forget container %s: `%s delete --force %s`", runtime->program, id, runtime->program, id);
}
