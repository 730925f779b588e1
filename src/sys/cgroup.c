#include "sys/cgroup.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/base.h"

#define TEXT_LIMIT (1u << 20)

/* Is `word` in a list with commas? */
static bool lists(const char *list, size_t length, const char *word)
{
	size_t word_length = strlen(word);
	for (const char *at = list, *end = list + length; at < end;) {
		const char *comma = memchr(at, ',', (size_t)(end - at));
		size_t part = (size_t)((comma ? comma : end) - at);
		if (part == word_length && !memcmp(at, word, part))
			return true;
		at += part + 1;
	}
	return false;
}

/* Mount point of version 2 (what NULL) or of version 1 with that controller. */
static bool find_mount(const char *mounts, const char *controller, char to[static 256])
{
	for (const char *line = mounts; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
		char point[256], kind[32], options[1024];
		const char *end = strchr(line, '\n'), *dash = strstr(line, " - ");
		if (!dash || (end && dash > end) || sscanf(line, "%*s %*s %*s %*s %255s", point) != 1 ||
		    sscanf(dash, " - %31s %*s %1023s", kind, options) != 2)
			continue;
		bool version_1 = controller && !strcmp(kind, "cgroup") && lists(options, strlen(options), controller);
		if (version_1 || (!controller && !strcmp(kind, "cgroup2"))) {
			snprintf(to, 256, "%s", point);
			return true;
		}
	}
	return false;
}

/* "4:memory:/a" or "0::/a": the path of the line whose list has the controller (NULL: is empty). */
static bool find_group(const char *membership, const char *controller, char *to, size_t size)
{
	for (const char *line = membership; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
		const char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;
		size_t length = path ? (size_t)(path - list - 1) : 0;
		if (path && (controller ? lists(list + 1, length, controller) : length == 0)) {
			snprintf(to, size, "%.*s", (int)strcspn(path + 1, "\n"), path + 1);
			return true;
		}
	}
	return false;
}

static int join(struct cgroup *cgroup, int version, const char *group)
{
	cgroup->version = version;
	int length = snprintf(cgroup->path, sizeof(cgroup->path), "%s%s", cgroup->mount, strcmp(group, "/") ? group : "");
	return length < (int)sizeof(cgroup->path) && !strstr(group, "/..") ? 0 : -ENAMETOOLONG;
}

int cgroup_parse(const char *membership, const char *mounts, struct cgroup *cgroup)
{
	char group[700];
	*cgroup = (struct cgroup){ 0 };
	if (find_group(membership, "memory", group, sizeof(group)) && find_mount(mounts, "memory", cgroup->mount))
		return join(cgroup, 1, group);
	if (find_group(membership, NULL, group, sizeof(group)) && find_mount(mounts, NULL, cgroup->mount))
		return join(cgroup, 2, group);
	return 0;
}

int cgroup_find(pid_t pid, struct cgroup *cgroup)
{
	char path[64];
	cleanup_free char *membership = NULL, *mounts = NULL;
	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	ssize_t got = io_read_file(path, &membership, TEXT_LIMIT);
	if (got >= 0)
		got = io_read_file("/proc/self/mountinfo", &mounts, TEXT_LIMIT);
	return got < 0 ? (got == -ENOENT ? -ESRCH : (int)got) : cgroup_parse(membership, mounts, cgroup);
}

/* A number, or "max". */
static int read_number(const char *directory, const char *file, uint64_t *number)
{
	cleanup_free char *path = format_text("%s/%s", directory, file);
	cleanup_free char *text = NULL;
	ssize_t got = path ? io_read_file(path, &text, 4096) : -ENOMEM;
	if (got < 0)
		return (int)got;
	*number = !strncmp(text, "max", 3) ? CGROUP_NO_LIMIT : strtoull(text, NULL, 10);
	return 0;
}

static int limit_of_version_1(const struct cgroup *cgroup, uint64_t *limit_bytes)
{
	static const char name[] = "hierarchical_memory_limit ";
	cleanup_free char *path = format_text("%s/memory.stat", cgroup->path);
	cleanup_free char *text = NULL;
	ssize_t got = path ? io_read_file(path, &text, TEXT_LIMIT) : -ENOMEM;
	if (got < 0)
		return (int)got;
	const char *line = strstr(text, name);
	if (!line)
		return read_number(cgroup->path, "memory.limit_in_bytes", limit_bytes);
	*limit_bytes = strtoull(line + strlen(name), NULL, 10);
	return 0;
}

int cgroup_limit(const struct cgroup *cgroup, uint64_t *limit_bytes)
{
	char directory[sizeof(cgroup->path)];
	*limit_bytes = CGROUP_NO_LIMIT;
	if (cgroup->version == 0)
		return 0;
	if (cgroup->version == 1)
		return limit_of_version_1(cgroup, limit_bytes);
	snprintf(directory, sizeof(directory), "%s", cgroup->path);
	if (access(directory, F_OK))
		return -errno;
	/* the root has no such files, nor has a group whose parent does not hand the controller on */
	while (strlen(directory) > strlen(cgroup->mount)) {
		uint64_t number;
		if (!read_number(directory, "memory.max", &number))
			*limit_bytes = DP_MIN(*limit_bytes, number);
		if (!read_number(directory, "memory.high", &number))
			*limit_bytes = DP_MIN(*limit_bytes, number);
		*strrchr(directory, '/') = 0;
	}
	return 0;
}

int cgroup_usage(const struct cgroup *cgroup, uint64_t *usage_bytes)
{
	if (cgroup->version == 0)
		return -ENOENT;
	return read_number(cgroup->path, cgroup->version == 1 ? "memory.usage_in_bytes" : "memory.current", usage_bytes);
}
