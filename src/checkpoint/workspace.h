/* workspace: where CRIU writes its images and its log while it dumps: a tmpfs of our own that is attached to no mount
 * point and is reached by /proc/self/fd/N. It ends with the last process that holds it, so nothing is left behind even by
 * kill -9, and it looks the same from every mount namespace. Where the kernel refuses (no fsopen), a private directory of
 * $TMPDIR or /tmp, removed by workspace_close. Pages never come here but the eager ones. Thread rule: the owner's. */
#ifndef DP_CHECKPOINT_WORKSPACE_H
#define DP_CHECKPOINT_WORKSPACE_H

#include <stddef.h>

#include "base/err.h"

struct workspace {
	int root_fd;        /* criu inherits it under the same number */
	int images_fd;
	int work_fd;
	char path[256];     /* of root_fd, for us and for criu */
	char directory[256]; /* "" for the tmpfs */
};

int workspace_open(struct workspace *workspace, struct dp_err *err);
/* Only the root, and always as a directory: its path is workspace->directory, for processes that inherit no descriptor of
 * ours. */
int workspace_open_private(struct workspace *workspace, struct dp_err *err);
void workspace_close(struct workspace *workspace);
/* Copies `file` of the work directory to a lasting place (the registry's logs/, else $TMPDIR or /tmp); `kept` gets its path, or
 * "". */
void workspace_keep_log(const struct workspace *workspace, const char *file, int pid, char *kept, size_t size);

#endif
