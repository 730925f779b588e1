/* oci: containers, under the runtimes that people have, unpatched.
 *
 * `distri-proc-runtime` stands in the runtime's place (`podman --runtime`, containerd's BinaryName, plain): it becomes the real
 * one (execve: arguments, descriptors, exit code, signals are that one's) for all but these commands of those that ask for it:
 *  - checkpoint: the real runtime is our child, its CRIU's pages go into a pool (checkpoint/runtime_dump.h), and what its image
 *    directory holds is a reference to the snapshot and the images without pages;
 *  - create and run of a container that is to begin as a snapshot (start-from): restored as below, and paused until `start`;
 *  - restore from such a directory: instance, pager and supervisor are there first (restore/container.h), then we become the real
 *    runtime.
 * `delete` and `kill` need nothing of us: an instance goes with its container.
 * Containers ask by annotations (annotations.h); which runtime is real, /etc/distri-proc/runtime.conf or $DISTRI_PROC_RUNTIME
 * says.
 *
 * Invariants: O1 a directory with a reference holds no inventory.img that CRIU could read: a restore without us fails at once,
 * rather than wait for ever for pages that are not there. O2 it holds that before CRIU may end the container. O3 where anything
 * of ours fails, the container lives on, or was never there.
 * Thread rule: one thread; forks. */
#ifndef DP_OCI_OCI_H
#define DP_OCI_OCI_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "checkpoint/checkpoint.h"
#include "restore/restore.h"

/* A real runtime and what has to stand before its commands. */
struct oci_runtime {
	const char *program;   /* a path, or a name that is looked up in PATH */
	char *const *globals;  /* its options before the command, such as --root DIR; NULL-terminated, or NULL */
};

struct oci_state {
	pid_t pid; /* 0: it does not run */
	char bundle[PATH_MAX];
};
/* Asks the runtime. -ENOENT where it knows no such container (it has said so on stderr unless `quiet`), -EBADMSG. Blocks. */
int oci_state(const struct oci_runtime *runtime, const char *id, bool quiet, struct oci_state *state, struct dp_err *err);

struct oci_checkpoint {
	char *const *argv;  /* the runtime's whole command line */
	const char *images; /* the directory that it names; made where it is missing */
	const char *work;   /* its --work-path, or NULL: the same */
	struct checkpoint_options checkpoint; /* pid, endpoint and what else there is to say */
};
/* Errors as checkpoint_run. */
int oci_checkpoint(struct oci_checkpoint *checkpoint, struct checkpoint_result *result, struct dp_err *err);

/* The snapshot that an image directory refers to, as a URI. -ENOENT: it is an ordinary one. */
int oci_reference_read(const char *images, char uri[static 2048], struct dp_err *err);

struct oci_restore {
	struct oci_runtime runtime;
	char *const *argv; /* of the command: "restore", its options and the container's name; NULL-terminated */
	const char *id, *work; /* work: its --work-path, or NULL */
	const char *action_script; /* a further one for CRIU, or NULL */
	struct restore_options *restore;
	char images[PATH_MAX]; /* set; argv points to it */
};
/* Makes the instance, and `argv` the command line (fresh) with which this process, or a child of it, then is to become the
 * runtime; the environment is set. Errors as restore_start. */
int oci_restore_prepare(struct oci_restore *restore, struct instance *instance, char ***argv, struct dp_err *err);

/* `distri-proc-runtime`: is this its name, and its main. */
bool oci_runtime_is(const char *name);
int oci_runtime_main(int argc, char **argv);

#endif
