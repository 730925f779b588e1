#include "oci/arguments.h"

#include <stddef.h>
#include <string.h>

#include "base/base.h"

/* Options whose value may be the next argument. */
static const char *const valued[] = {
	/* before the command */
	"log", "log-format", "root", "criu", "rootless", "cgroup-manager", "config",
	/* of checkpoint and restore */
	"image-path", "work-path", "parent-path", "page-server", "status-fd", "manage-cgroups-mode", "empty-ns", "console-socket",
	"bundle", "b", "pid-file", "lsm-profile", "lsm-mount-context", "network-lock",
	/* of create and run */
	"preserve-fds", "pidfd-socket",
};

static bool has_value(const char *name, size_t length)
{
	for (size_t i = 0; i < ARRAY_LENGTH(valued); i++)
		if (strlen(valued[i]) == length && !strncmp(valued[i], name, length))
			return true;
	return false;
}

static bool is(const char *name, size_t length, const char *option)
{
	return strlen(option) == length && !strncmp(name, option, length);
}

static void take(struct oci_arguments *arguments, const char *name, size_t length, const char *value, int at)
{
	bool on = !value || strcmp(value, "false") != 0;
	if (is(name, length, "image-path")) {
		arguments->images = value;
		arguments->image_path = at;
	} else if (is(name, length, "work-path")) {
		arguments->work = value;
	} else if (is(name, length, "bundle") || is(name, length, "b")) {
		arguments->bundle = value;
	} else if (is(name, length, "root") && !arguments->command) {
		arguments->root = value;
	} else if (is(name, length, "log")) {
		arguments->log = value;
	} else if (is(name, length, "log-format")) {
		arguments->log_format = value;
	} else if (is(name, length, "leave-running")) {
		arguments->leave_running = on;
	} else if (is(name, length, "pre-dump")) {
		arguments->pre_dump = on;
	} else if (is(name, length, "lazy-pages")) {
		arguments->lazy_pages = on;
	} else if (is(name, length, "page-server")) {
		arguments->page_server = true;
	} else if (is(name, length, "parent-path")) {
		arguments->parent = true;
	} else if (is(name, length, "help") || is(name, length, "h")) {
		arguments->help = true;
	}
}

void oci_arguments_read(int argc, char *const *argv, struct oci_arguments *arguments)
{
	*arguments = (struct oci_arguments){ 0 };
	for (int at = 1; at < argc; at++) {
		const char *name = argv[at];
		if (name[0] != '-' || !name[1]) {
			if (!arguments->command)
				arguments->command = at;
			else if (!arguments->id)
				arguments->id = at;
			continue;
		}
		name += name[1] == '-' ? 2 : 1; /* one dash or two are the same to them */
		const char *equals = strchr(name, '=');
		size_t length = equals ? (size_t)(equals - name) : strlen(name);
		const char *value = equals ? equals + 1 : NULL;
		if (!value && has_value(name, length) && at + 1 < argc)
			value = argv[++at];
		take(arguments, name, length, value, at);
	}
}
