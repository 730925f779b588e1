/* criu_launch: what stands in CRIU's place in the PATH of a container runtime.
 *
 * A runtime runs `criu swrk FD` by its name, as often as it likes (to ask for the version, for features, to dump), and says by
 * messages what it wants. What it does not say, CRIU takes from the configuration file that CRIU_CONFIG_FILE names; so options of
 * ours get in without a word to the runtime, and those of its own, or of its org.criu.config, still hold.
 *
 * How it works: a private directory has a link `criu` to this program, and `criu.conf` with options, one a line. The runtime gets
 * that directory as the first of its PATH. Called by that name, this program connects to `pages.sock` beside it, if there is one
 * (the socket becomes CRIU's page server), puts the options into a memory file for CRIU_CONFIG_FILE, and becomes the real CRIU:
 * the same process, with the descriptors it was given.
 * Thread rule: single-threaded processes. */
#ifndef DP_SYS_CRIU_LAUNCH_H
#define DP_SYS_CRIU_LAUNCH_H

#include <stdbool.h>

#include "base/err.h"

#define CRIU_LAUNCH_PAGES "pages.sock" /* in the directory: where a dump's pages are waited for */

/* Makes the link and criu.conf in the directory, which exists. Options as CRIU writes them in such a file: "action-script
 * /x\n". */
int criu_launch_prepare(const char *directory, const char *options, struct dp_err *err);
/* Changes the environment of this process (a child that is about to become a runtime): there `criu` is that of the directory, and
 * what it becomes is `criu_path`. -ENOMEM. */
int criu_launch_environment(const char *directory, const char *criu_path);

/* The same, for what is preloaded into that CRIU: `library`, which finds in `variable` its orders, a list of words with commas
 * between them; one that is "f" and a number is a descriptor of this very process, and CRIU gets one of its own of it (the
 * runtimes hand none on). NULL for library: nothing, as before. -ENOMEM. */
int criu_launch_preload(const char *library, const char *variable, const char *orders);

/* Is this the name by which a runtime calls us in CRIU's place? */
bool criu_launch_is(const char *name);
/* Then this is what to do. Does not return but with the exit code of a failure. */
int criu_launch_main(int argc, char **argv);

#endif
