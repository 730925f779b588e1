/* runtimes: which real runtime a container is of, where not all of a host are of the same.
 *
 * A container's annotation distri-proc.io/runtime is read when it is made (create, run, restore); later commands name the
 * container only, so what was chosen is noted: REGISTRY/.runtimes/ROOT:ID holds the runtime's name, ROOT being the value of
 * --root with % for /. The note goes with `delete`. Names are runc and crun; paths only those that runtime.conf allows, since
 * whoever may write an annotation may not choose what root runs. No state. */
#ifndef DP_OCI_RUNTIMES_H
#define DP_OCI_RUNTIMES_H

#include <limits.h>
#include <stdbool.h>

#include "base/err.h"
#include "oci/annotations.h"

/* May a container ask for this one? -EPERM. */
int oci_runtime_check(const struct oci_host *host, const char *runtime, struct dp_err *err);
struct oci_note {
	char runtime[1024];
	bool waits; /* it is restored and paused, and is to be resumed where others are started */
};
/* Notes what is known of a container, or removes the note where that is NULL. root: "" where none was given. -errno. */
int oci_runtime_note(const char *registry, const char *root, const char *id, const struct oci_note *note, struct dp_err *err);
/* Of a command's arguments the first that is a container with a note: its index; 0: none. */
int oci_runtime_noted(const char *registry, const char *root, int argc, char *const *argv, int from, struct oci_note *note);

#endif
