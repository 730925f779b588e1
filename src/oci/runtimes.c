#include "oci/runtimes.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"

#define NOTES ".runtimes"
#define WAITS "waits"

int oci_runtime_check(const struct oci_host *host, const char *runtime, struct dp_err *err)
{
	if (!strcmp(runtime, "runc") || !strcmp(runtime, "crun") || !strcmp(runtime, host->runtime))
		return 0;
	cleanup_free char *list = strdup(host->runtimes);
	char *rest = list, *word;
	while (list && *runtime == '/' && (word = strsep(&rest, ", \t")))
		if (!strcmp(word, runtime))
			return 0;
	return dp_fail(err, EPERM,
		       "annotation distri-proc.io/runtime takes runc, crun, or a path that `runtimes = PATH, ...` in "
		       "/etc/distri-proc/runtime.conf allows, not `%.80s`", runtime);
}

/* -ENAMETOOLONG, -EINVAL: it can be no container's. */
static int note_path(const char *registry, const char *root, const char *id, char path[static PATH_MAX])
{
	size_t used = (size_t)snprintf(path, PATH_MAX, "%s/" NOTES "/", registry);
	size_t name = strlen(root) + strlen(id) + 1;
	if (!*id || strchr(id, '/') || used + name >= PATH_MAX || name > NAME_MAX)
		return -EINVAL;
	for (const char *at = root; *at; at++)
		path[used++] = *at == '/' ? '%' : *at;
	sprintf(path + used, ":%s", id);
	return 0;
}

int oci_runtime_note(const char *registry, const char *root, const char *id, const struct oci_note *note, struct dp_err *err)
{
	char path[PATH_MAX], directory[PATH_MAX];
	if (note_path(registry, root, id, path))
		return note ? dp_fail(err, EINVAL, "the names of the runtime's directory and of %.80s are too long", id) : 0;
	if (!note) {
		if (unlink(path) && errno != ENOENT)
			return dp_fail_errno(err, errno, "remove %s", path);
		return 0;
	}
	snprintf(directory, sizeof(directory), "%s/" NOTES, registry);
	if ((mkdir(registry, 0700) && errno != EEXIST) || (mkdir(directory, 0700) && errno != EEXIST))
		return dp_fail_errno(err, errno, "make %s", directory);
	cleanup_free char *text = format_text("%s\n%s", note->runtime, note->waits ? WAITS : "");
	int ret = text ? io_write_file(path, text, strlen(text), 0600) : -ENOMEM;
	return ret ? dp_fail_errno(err, -ret, "write %s", path) : 0;
}

int oci_runtime_noted(const char *registry, const char *root, int argc, char *const *argv, int from, struct oci_note *note)
{
	char path[PATH_MAX];
	for (int i = from; i < argc; i++) {
		cleanup_free char *text = NULL;
		if (argv[i][0] == '-' || note_path(registry, root, argv[i], path))
			continue;
		char *end = io_read_file(path, &text, 2 * sizeof(note->runtime)) > 0 ? strchr(text, '\n') : NULL;
		if (end && end < text + sizeof(note->runtime)) {
			*end = 0;
			strcpy(note->runtime, text);
			note->waits = !strcmp(end + 1, WAITS);
			return i;
		}
	}
	return 0;
}
