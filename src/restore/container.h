/* container: a restore in which not we run CRIU but a container's runtime does: `runc restore ...`, under Podman's conmon or
 * containerd's shim, whose child the container has to be. The pager stays outside of it.
 *
 * How it works: restore_container_start makes everything that `distri-proc restore` has at the moment when CRIU connects:
 * instance, skeleton, supervisor, pager, the socket. The caller then becomes the runtime (execve): so its parent, its exit
 * code, its signals and its terminal are the runtime's alone. The runtime finds our launcher for `criu` (sys/criu_launch.h),
 * which adds an action script; in the post-restore step, when every task is in its place and none has run, that says over
 * `gate.sock` which process the container's first is, and CRIU goes on only when the supervisor knows.
 * In the place of init there is a *watcher*: it is no parent of the tree, sees its end by a pidfd, and takes over init's part
 * should the supervisor be killed. One that is killed itself is followed by another.
 *
 *   caller = runtime ─── criu ── container        supervisor ─┬─ pager
 *      (child of conmon, shim, shell)                         └─ watcher
 *
 * Invariants: those of restore.h; a container whose supervisor does not know it never runs. */
#ifndef DP_RESTORE_CONTAINER_H
#define DP_RESTORE_CONTAINER_H

#include <limits.h>
#include <stdbool.h>

#include "base/err.h"
#include "instance/instance.h"

struct init_config;
struct restore_options;
struct restore_plan;

struct restore_container {
	const char *id;        /* as the runtime knows it */
	const char *work_path; /* where CRIU will look for lazy-pages.socket; NULL: in the images directory of the instance */
	const char *action_script; /* a further one for CRIU; NULL: none */
	int caller_pidfd;      /* of the process that becomes the runtime; set by restore_container_start */
};

/* Returns when the runtime may be run; options->container is set. The instance's `images` is the runtime's image directory, and
 * its directory the first of the runtime's PATH (criu_launch_environment). Errors as restore_start. */
int restore_container_start(struct restore_options *options, struct restore_container *container, struct instance *instance,
			    struct dp_err *err);

/* Is this the name by which CRIU calls us in a container's restore, and what is to be done then. Changes name. */
bool container_gate_is_action(const char *name);
int container_gate_action(char *name);

/* ---- inside src/restore ---- */
/* What the runtime will find in the instance's directory. Returns the gate's socket, or -errno. */
int container_prepare(const struct restore_plan *plan, struct dp_err *err);
/* Becomes the watcher. */
void container_watch(const struct init_config *config) __attribute__((noreturn));
/* Kills all of it and waits until it is dead. */
void container_kill(int root_pidfd, bool own_pid_namespace);

#endif
