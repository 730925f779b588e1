/* moving: what a container has to have on another host: a bundle, a root filesystem, what it mounts; and what of it is made
 * there.
 *
 * Where it runs, oci_moving_read says what there is, and refuses what cannot move. What it says travels as JSON. There,
 * oci_landing_plan looks whether everything is there (nothing has changed yet), oci_landing_make makes what is not (the bundle's
 * config.json, the directory of the root filesystem, or the overlay that it is a mount of), and oci_landing_undo takes all of
 * that away again. A landing is kept as JSON, for whoever comes after a process that was killed.
 * Invariant: OL1 what was there before is never removed, and a config.json that was replaced is put back.
 * Thread rule: no state. Blocks: asks the runtime. */
#ifndef DP_OCI_MOVING_H
#define DP_OCI_MOVING_H

#include <json-c/json.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "oci/oci.h"

#define OCI_CONFIG_LIMIT (512u << 10)

struct oci_moving {
	pid_t pid;
	char bundle[PATH_MAX], rootfs[PATH_MAX]; /* absolute */
	json_object *facts; /* {bundle, config, overlay: {lower, upper, work}}; fresh */
};
/* -ENOENT: no such container; -EOPNOTSUPP with what to do instead: a shim's or Podman's, one with a terminal, without a PID
 * namespace of its own. oci_moving_done also after an error. */
int oci_moving_read(const struct oci_runtime *runtime, const char *id, struct oci_moving *moving, struct dp_err *err);
void oci_moving_done(struct oci_moving *moving);

struct oci_landing {
	char id[256], bundle[PATH_MAX], rootfs[PATH_MAX], runtime_root[PATH_MAX]; /* runtime_root "": the runtime's own default */
	char *config;                          /* its config.json, as it is to be here */
	char *old_config;                      /* what was there; NULL: none */
	char *lower, *upper, *work;            /* of an overlay; NULL: none to be mounted */
	/* its control group's path, where it was not there before; "": it was, or unknown */
	char group[PATH_MAX];
	bool same_config, makes_bundle, makes_rootfs, makes_upper, makes_work;
};
/* `facts` come from the other host; bundle: or NULL, as there; volumes: NULL or an array of texts "SOURCE=HERE". Errors: -EEXIST
 * (the container is here already), -ENOENT with what is missing, -EBADMSG. oci_landing_done also after an error. */
int oci_landing_plan(struct oci_landing *landing, const struct oci_runtime *runtime, const char *id, json_object *facts,
		     const char *bundle, json_object *volumes, struct dp_err *err);
int oci_landing_make(const struct oci_landing *landing, struct dp_err *err);
void oci_landing_undo(const struct oci_landing *landing);
void oci_landing_done(struct oci_landing *landing);
json_object *oci_landing_save(const struct oci_landing *landing);
/* -EBADMSG, -ENOMEM. */
int oci_landing_load(struct oci_landing *landing, json_object *saved, struct dp_err *err);

/* Removes what the runtime knows of a container, and kills what of it runs. 0 also where it knows none. -EBUSY. */
int oci_delete(const struct oci_runtime *runtime, const char *id, struct dp_err *err);

/* The options of the mount at `path`, of type overlay: false where there is none. Pure but for reading `mountinfo`. */
bool oci_overlay_find(const char *mountinfo, const char *path, char **lower, char **upper, char **work);

#endif
