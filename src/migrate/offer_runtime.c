#include "migrate/offer_runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "checkpoint/hide_record.h"
#include "checkpoint/runtime_dump.h"
#include "sys/criu_launch.h"

#define ARGUMENTS_LIMIT 40

static int make_directory(const struct workspace *workspace, const char *name, struct dp_err *err)
{
	if (mkdirat(workspace->root_fd, name, 0700))
		return dp_fail_errno(err, errno, "make %s/%s", workspace->directory, name);
	int fd = openat(workspace->root_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? dp_fail_errno(err, errno, "open %s/%s", workspace->directory, name) : fd;
}

int offer_runtime_open(struct workspace *workspace, struct dp_err *err)
{
	int ret = workspace_open_private(workspace, err);
	if (!ret)
		ret = workspace->images_fd = make_directory(workspace, "images", err);
	if (ret >= 0)
		ret = workspace->work_fd = make_directory(workspace, "work", err);
	if (ret >= 0)
		snprintf(workspace->path, sizeof(workspace->path), "%s", workspace->directory);
	return ret < 0 ? ret : 0;
}

/* `RUNTIME checkpoint ... ID`. */
static int make_command(char **argv, const struct offer_options *options, char *images, char *work, struct dp_err *err)
{
	char *const *runtime = options->container->runtime;
	size_t used = 0;
	while (used < ARGUMENTS_LIMIT - 10 && runtime[used]) {
		argv[used] = runtime[used];
		used++;
	}
	if (used == ARGUMENTS_LIMIT - 10)
		return dp_fail(err, E2BIG, "too many options for the runtime");
	argv[used++] = (char *)(uintptr_t)"checkpoint";
	argv[used++] = (char *)(uintptr_t)"--image-path";
	argv[used++] = images;
	argv[used++] = (char *)(uintptr_t)"--work-path";
	argv[used++] = work;
	if (options->tcp_established)
		argv[used++] = (char *)(uintptr_t)"--tcp-established";
	if (options->copy)
		argv[used++] = (char *)(uintptr_t)"--leave-running";
	argv[used++] = (char *)(uintptr_t)options->container->id;
	argv[used] = NULL;
	return 0;
}

/* What the runtime has no option for. The default lock runs a program for each connection, while the container stands still. */
static char *make_options(const struct offer_options *options)
{
	char *text = format_text("network-lock nftables\n%s%s", options->verbose ? "verbosity 4\n" : "",
				 options->tcp_close ? "tcp-close\n" : "");
	for (size_t i = 0; text && i < options->criu_argument_count; i++) {
		const char *argument = options->criu_arguments[i];
		char *longer = strncmp(argument, "--", 2) ? strdup(text) : format_text("%s%s\n", text, argument + 2);
		free(text);
		text = longer;
	}
	return text;
}

int offer_runtime_start(struct criu_dump *dump, const struct offer_options *options, const char *criu,
			const struct workspace *workspace, const char *library, const char *orders, struct dp_err *err)
{
	char *argv[ARGUMENTS_LIMIT];
	cleanup_free char *images = format_text("%s/images", workspace->directory);
	cleanup_free char *work = format_text("%s/work", workspace->directory);
	cleanup_free char *criu_options = make_options(options);
	if (!images || !work || !criu_options)
		return dp_fail(err, ENOMEM, "out of memory");
	int ret = make_command(argv, options, images, work, err);
	if (!ret && criu_launch_preload(library, HIDE_ENVIRONMENT, orders))
		ret = dp_fail(err, ENOMEM, "out of memory");
	const struct runtime_dump runtime = { .argv = argv, .images = images, .work = work, .criu_options = criu_options };
	if (!ret)
		ret = runtime_dump_start(dump, &runtime, criu, workspace, err);
	criu_launch_preload(NULL, NULL, NULL);
	return ret;
}
