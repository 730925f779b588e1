/* annotations: what a container asks for, in its bundle's config.json; and what the host says, in runtime.conf.
 *
 *   distri-proc.io/enabled        true: a checkpoint of it goes into a pool
 *   distri-proc.io/pool           that pool, such as dps://memory.example:7400
 *   distri-proc.io/snapshot       REPO:TAG for it (default: of the container's name and the time)
 *   distri-proc.io/memory-policy  lazy (default): pages come when they are touched; hot-local: besides, those that an earlier run
 *                                 wanted are there before it runs; full: all of them come in the background, and stay
 *   distri-proc.io/remote-memory  what is to lie in the pool for good: 50%, 512M; or cgroup: as much as the container's limit
 *   says
 *   distri-proc.io/prefetch       stream, working-set, or a policy's name
 *   distri-proc.io/runtime        which real runtime it is of (runtimes.h)
 *   distri-proc.io/start-from     REPO:TAG in the pool: `create` and `run` make the container of that snapshot
 *
 * runtime.conf: lines of `name = value`; # begins a comment. runtime, runtimes, pool, registry; psk-file, tls-cert, tls-key,
 * tls-ca, tls-name, allow-plaintext, criu: as the options and variables of distri-proc.
 * No thread rule: no state but the environment, which runtime.conf sets. */
#ifndef DP_OCI_ANNOTATIONS_H
#define DP_OCI_ANNOTATIONS_H

#include <stdbool.h>

#include "base/err.h"

enum oci_policy { OCI_LAZY, OCI_HOT_LOCAL, OCI_FULL };

struct oci_wishes {
	bool enabled;
	enum oci_policy policy;
	char pool[1400], snapshot[256], remote_memory[32], prefetch[32], runtime[1024];
	char start_from[256]; /* all of these: "" not said */
};

/* Of BUNDLE/config.json. -EINVAL with the annotation that is wrong, -ENOENT, -EBADMSG. */
int oci_wishes_read(const char *bundle, struct oci_wishes *wishes, struct dp_err *err);
/* The same of a text. */
int oci_wishes_parse(const char *config_json, struct oci_wishes *wishes, struct dp_err *err);

struct oci_host {
	char runtime[1024]; /* the real one; "runc" where nobody says */
	char runtimes[4096]; /* paths that containers may ask for, with commas or blanks between them */
	char pool[1400];    /* for containers that name none */
};
/* Reads runtime.conf ($DISTRI_PROC_RUNTIME_CONF, else /etc/distri-proc/runtime.conf; one that is not there is empty); what the
 * environment says goes before. -EINVAL with the line. */
int oci_host_read(struct oci_host *host, struct dp_err *err);
/* A text of it: values of the environment are set by `set` (setenv's shape). */
int oci_host_parse(const char *text, struct oci_host *host, int (*set)(const char *name, const char *value, int overwrite),
		   struct dp_err *err);

#endif
