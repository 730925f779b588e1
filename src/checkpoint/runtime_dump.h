/* runtime_dump: a checkpoint in which not we run CRIU but a container's runtime does: `runc checkpoint ...`.
 *
 * The runtime is our child and finds, in CRIU's place, our launcher (sys/criu_launch.h): so the pages come to us over a Unix
 * socket and CRIU asks our hook before it finishes, as in criu_dump.h, whose struct this fills and whose other functions do the
 * rest. The images and the log lie where the runtime was told to put them.
 * Thread rule: one thread. */
#ifndef DP_CHECKPOINT_RUNTIME_DUMP_H
#define DP_CHECKPOINT_RUNTIME_DUMP_H

#include "base/err.h"
#include "checkpoint/criu_dump.h"
#include "checkpoint/workspace.h"

struct runtime_dump {
	char *const *argv;    /* of the runtime, whole; argv[0] is found in PATH; borrowed */
	const char *images;   /* the directories that it was told; they exist */
	const char *work;
	const char *criu_options; /* for CRIU's configuration, one a line, each with its end; or NULL */
	/* Called when the snapshot is in the pool, before CRIU may end the container: what the runtime's directory is to hold in
	 * the place of the images is put there. May be NULL. */
	int (*on_published)(void *context, struct dp_err *err);
	void *context;
};

/* A workspace over the runtime's directories, with a private one for sockets beside it. */
int runtime_dump_open(const struct runtime_dump *runtime, struct workspace *workspace, struct dp_err *err);
/* Starts the runtime. criu: the real one's path. -errno as criu_dump_start. */
int runtime_dump_start(struct criu_dump *dump, const struct runtime_dump *runtime, const char *criu,
		       const struct workspace *workspace, struct dp_err *err);

#endif
