/* ferry_container: what a migration has to do besides where a container moves, on both sides.
 *
 * Source: the runtime freezes it (offer_runtime.h); its root filesystem is copied, once while it runs and once while it is frozen
 * (tree_copy.h), and after a release nothing of it is left for the runtime. Destination: what is missing is made (oci/moving.h),
 * the runtime restores it, under a process of ours that then is its parent: it keeps what the container writes to its standard
 * streams in ROOT/.agent/containers/ID.log, and tells how it ended.
 * Invariants: FC1 after a failure the destination's runtime knows no such container, and what was made for it is gone; what was
 * copied into a root filesystem that was there before stays. FC2 where both hosts have one root filesystem nothing is copied. */
#ifndef DP_MIGRATE_FERRY_CONTAINER_H
#define DP_MIGRATE_FERRY_CONTAINER_H

#include "migrate/ferry_in.h"
#include "migrate/ferry_out.h"
#include "migrate/tree_copy.h"
#include "oci/annotations.h"
#include "oci/moving.h"

#define CONTAINER_STATE "container.json" /* in the migration's directory at the destination: the landing */

struct container_out {
	struct oci_host host;
	char *command[4]; /* of the runtime: itself, --root DIR, NULL */
	struct oci_runtime runtime;
	struct offer_container offered;
	struct oci_moving moving;
	struct tree_sender *sender;
	char marker[64];  /* a file of the root filesystem, while the destination looks whether it has the same one; "": none */
	bool shared;
	uint64_t copied_ns, changes_ns; /* how long the two passes took */
};

/* Which process that is, and whether it can move. out->container is set where the request names one. */
int container_out_find(struct out *out);
/* Adds to what is said to the destination; and what it answered. */
void container_out_describe(struct out *out, json_object *line);
void container_out_answered(struct out *out, json_object *answer);
/* Notes in the migration's directory what container_out_forget needs. */
int container_out_note(struct out *out);
/* The root filesystem; frozen: what has changed since. */
int container_out_copy(struct out *out, bool frozen);
/* moved: the runtime is made to forget it, should it still know it. Adds to `event` what was copied. */
void container_out_done(struct out *out, json_object *event, bool moved);
/* For a ferry that follows one that died, when the container has moved. */
void container_out_forget(const char *root, const char *id);

struct container_in {
	struct oci_host host;
	char *globals[3];
	struct oci_runtime runtime;
	struct oci_landing landing;
	bool ours; /* the runtime knew no such container before us */
	struct tree_receiver receiver;
};

/* Looks, makes what is missing, and says in `answer` what the source has to know. */
int container_in_ready(struct in *in, json_object *answer);
/* The same for a ferry that follows one that died; does nothing where no container was to come. */
int container_in_recover(struct in *in);
/* In the restorer: restores, says so over `say`, and stays until the container has ended; *code is how. */
int container_in_restore(struct in *in, struct restore_options *options, void (*runs)(void *context, struct instance *instance),
			 void *context, int *code, struct dp_err *err);
/* here: it stays. */
void container_in_done(struct in *in, bool here);

#endif
