/* container_line: what `checkpoint` and `restore` take where a container is meant, without the wrapper: --runtime,
 * --runtime-root, --container, --bundle. */
#ifndef DP_CLI_CONTAINER_LINE_H
#define DP_CLI_CONTAINER_LINE_H

#include <sys/types.h>

#include "checkpoint/checkpoint.h"
#include "restore/restore.h"

struct container_line {
	const char *container; /* its name; NULL: none is meant */
	const char *runtime;   /* NULL: what runtime.conf says, or runc */
	const char *root;      /* the runtime's --root, or NULL */
	const char *bundle;    /* NULL: the current directory */
};

/* The container's first process. */
int container_line_pid(const struct container_line *line, pid_t *pid, struct dp_err *err);
/* As checkpoint_run; options->pid is that process. */
int container_line_checkpoint(const struct container_line *line, struct checkpoint_options *options,
			      struct checkpoint_result *result, struct dp_err *err);
/* As restore_start, detached. */
int container_line_restore(const struct container_line *line, struct restore_options *options, struct restore_session *session,
			   struct dp_err *err);

#endif
