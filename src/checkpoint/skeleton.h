/* skeleton: everything of a snapshot but the pages: CRIU's images go into the pool's draft, with a text that says what they are.
 * Thread rule: the client's. */
#ifndef DP_CHECKPOINT_SKELETON_H
#define DP_CHECKPOINT_SKELETON_H

#include <stdint.h>

#include "checkpoint/capture.h"
#include "checkpoint/checkpoint.h"

/* Sends every image of images_fd; *bytes is their sum. */
int skeleton_send(struct client *client, uint64_t draft, int images_fd, uint64_t *bytes, struct dp_err *err);

struct skeleton_facts {
	const struct checkpoint_options *options;
	const struct capture_totals *totals;
	const char *criu_version;
	const char *command_line;
	uint64_t tasks, threads;
	int root_pid; /* virtual */
	uint64_t pool_instance; /* that the tree is, in this pool; 0: none */
};
/* Fills tasks, threads and root_pid from the images. */
int skeleton_read_tasks(int images_fd, struct skeleton_facts *facts, struct dp_err *err);
/* The snapshot's meta text (JSON), fresh; NULL where memory is out. */
char *skeleton_meta(const struct skeleton_facts *facts);

#endif
