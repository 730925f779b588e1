#include "migrate/clone_source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "checkpoint/criu_dump.h"
#include "instance/instance.h"
#include "oci/annotations.h"
#include "oci/oci.h"
#include "sys/proc.h"

#define MOUNTS_LIMIT (8u << 20)

/* ---- by name ---- */

static int find_container(const char *id, pid_t *pid, struct dp_err *err)
{
	struct oci_host host;
	struct oci_state state;
	int ret = oci_host_read(&host, err);
	const struct oci_runtime runtime = { .program = host.runtime };
	if (!ret)
		ret = oci_state(&runtime, id, true, &state, err);
	if (!ret && state.pid <= 0)
		ret = dp_fail(err, ESRCH, "container %s does not run", id);
	if (!ret)
		*pid = state.pid;
	return ret;
}

int clone_source_find(const char *registry, const char *what, pid_t *pid, struct dp_err *err)
{
	struct instance instance;
	if (instance_find(registry, what, &instance, NULL) == 0 && instance.root.pid > 0) {
		*pid = instance.root.pid;
		return 0;
	}
	char *end;
	errno = 0;
	long number = strtol(what, &end, 10);
	if (!errno && !*end && number > 0 && number <= 1 << 22) {
		*pid = (pid_t)number;
		return 0;
	}
	if (*what && *what != '-' && !strchr(what, '/') && find_container(what, pid, NULL) == 0)
		return 0;
	return dp_fail(err, ENOENT, "there is no instance, process or container %.200s", what);
}

/* ---- a container's root ---- */

struct line {
	char device[32], root[PATH_MAX], place[PATH_MAX];
};

/* The next line's. NULL at the end. */
static const char *read_line(const char *at, struct line *line)
{
	while (*at) {
		size_t length = strcspn(at, "\n");
		cleanup_free char *text = strndup(at, length);
		at += length + (at[length] == '\n');
		if (text && sscanf(text, "%*s %*s %31s %4095s %4095s", line->device, line->root, line->place) == 3)
			return at;
	}
	return NULL;
}

/* What of a path is below another; NULL where it is not. */
static const char *below(const char *path, const char *above)
{
	size_t length = strcmp(above, "/") ? strlen(above) : 0;
	return !strncmp(path, above, length) && (!path[length] || path[length] == '/') ? path + length : NULL;
}

bool clone_source_root(const char *its_mounts, const char *host_mounts, char root[static PATH_MAX])
{
	struct line its = { "", "", "" }, line;
	bool found = false;
	for (const char *at = its_mounts; (at = read_line(at, &line));)
		if (!strcmp(line.place, "/"))
			its = line; /* the last one is on top */
	for (const char *at = host_mounts; *its.device && (at = read_line(at, &line));) {
		const char *rest = strcmp(line.device, its.device) ? NULL : below(its.root, line.root);
		if (rest && !strcmp(rest, "/"))
			rest = "";
		if (rest && (size_t)snprintf(root, PATH_MAX, "%s%s", strcmp(line.place, "/") ? line.place : "", rest) < PATH_MAX)
			found = *root;
	}
	return found;
}

static int find_root(struct clone_source *source, struct dp_err *err)
{
	char path[64];
	struct stat its, ours;
	cleanup_free char *its_mounts = NULL, *host_mounts = NULL;
	snprintf(path, sizeof(path), "/proc/%d/mountinfo", (int)source->pid);
	bool read = io_read_file(path, &its_mounts, MOUNTS_LIMIT) >= 0 &&
		    io_read_file("/proc/self/mountinfo", &host_mounts, MOUNTS_LIMIT) >= 0;
	snprintf(path, sizeof(path), "/proc/%d/root", (int)source->pid);
	if (!read || !clone_source_root(its_mounts, host_mounts, source->root) || stat(path, &its) || stat(source->root, &ours) ||
	    its.st_ino != ours.st_ino || its.st_dev != ours.st_dev)
		return dp_fail(err, EOPNOTSUPP, "the root file system of container process %d is not mounted on this host where it could be "
			       "found", source->pid);
	return 0;
}

/* ---- what it is ---- */

/* Memory that is shared by number (System V) is neither a file nor the tree's own. */
static int check_area(void *context, const struct proc_area *area)
{
	(void)context;
	return area->shared && area->write && !strncmp(area->name, "/SYSV", 5);
}

static int check_memory(pid_t root, struct dp_err *err)
{
	cleanup_free pid_t *pids = NULL;
	ssize_t count = proc_tree(root, &pids);
	int rc = count < 0 ? dp_fail_errno(err, (int)-count, "look at process %d", root) : 0;
	for (ssize_t i = 0; i < count && rc == 0; i++)
		if (proc_each_area(pids[i], check_area, NULL) > 0)
			rc = dp_fail(err, EOPNOTSUPP, "process %d shares memory by number (shmget), and the clone would write to it too: "
				     "--files shared, if that does no harm", pids[i]);
	return rc;
}

static bool same_namespace(pid_t pid, const char *name)
{
	char path[64], own[64];
	struct stat its, ours;
	snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)pid, name);
	snprintf(own, sizeof(own), "/proc/self/ns/%s", name);
	return !stat(path, &its) && !stat(own, &ours) && its.st_ino == ours.st_ino;
}

int clone_source_look(pid_t pid, bool share_files, struct clone_source *source, struct dp_err *err)
{
	struct criu_target target;
	*source = (struct clone_source){ .pid = pid };
	int rc = criu_dump_target(pid, &target, err);
	if (rc == 0)
		source->contained = !target.entering && !same_namespace(pid, "pid") && !same_namespace(pid, "mnt");
	source->own_network = source->contained && !same_namespace(pid, "net");
	if (rc == 0 && !share_files && !source->contained)
		rc = check_memory(pid, err);
	return rc == 0 && source->contained ? find_root(source, err) : rc;
}
