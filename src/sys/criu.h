/* criu: which CRIU program is used, and whether it is one this project works with.
 *
 * Only 4.2.x will do: 4.1 writes another page-map field and a shorter page-server header, 4.3 compresses pages.
 * Nothing is cached: a lookup is a few access(2) calls. Thread rule: any thread; no state. */
#ifndef DP_SYS_CRIU_H
#define DP_SYS_CRIU_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define CRIU_SUPPORTED "4.2.x"

/* The path of the program: $DISTRI_PROC_CRIU, else the private prefix (meson option criu_prefix) + /criu/bin/criu, else the
 * first `criu` in PATH. It is not run. Returns 0, or -ENOPKG with a text that says how to get one. */
int criu_find(char path[static 256], struct dp_err *err);

struct criu_version {
	int major, minor, sublevel;
	char text[32]; /* as the program prints it, "4.2.1" */
};
/* Runs `path --version` (~2 ms; blocks, at most 10 s). 0, -EBADMSG where it prints none, or -errno. */
int criu_version(const char *path, struct criu_version *version, struct dp_err *err);
/* Is it a CRIU_SUPPORTED? 0, or -ENOPKG with a text that says what to do; else as criu_version. `version` may be NULL. */
int criu_check_version(const char *path, struct criu_version *version, struct dp_err *err);
/* Runs `path check` (~20 ms; blocks, at most 10 s). 0, or -EOPNOTSUPP with CRIU's first error line in err. */
int criu_check_kernel(const char *path, struct dp_err *err);

/* For a process that is about to become CRIU: adds to LD_PRELOAD the library without which a process that lives on faults may be
 * killed by its dump or its restore (steady/steady.c), from where this program was built or installed. false: it is not there. */
bool criu_steady_preload(void);

/* Runs `path` with these arguments (the first one its name, NULL the last) and nothing to read or to say. preload: libraries for
 * LD_PRELOAD, every symbol of which is looked up at once, or NULL. Blocks until it has ended; its wait status, or -errno. */
int criu_run_quietly(const char *path, const char *preload, const char *const *arguments);

#endif
