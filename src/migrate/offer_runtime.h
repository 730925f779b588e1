/* offer_runtime: an offer of a container: not the offerer runs CRIU but the container's own runtime (`runc checkpoint`), so that
 * everything is in the images that `runc restore` looks for.
 *
 * How it works: as a checkpoint of a container (checkpoint/runtime_dump.h), with the library of an offer in the runtime's CRIU
 * (sys/criu_launch.h). CRIU's post-dump action is the same hook, so whoever is left holds the container (offer.h, F2). When CRIU
 * has killed it the runtime removes what it knows of it; where CRIU failed, it is the runtime's as before.
 * Thread rule: the offerer's one thread. */
#ifndef DP_MIGRATE_OFFER_RUNTIME_H
#define DP_MIGRATE_OFFER_RUNTIME_H

#include "checkpoint/criu_dump.h"
#include "migrate/offer.h"

/* A workspace that another program can find. */
int offer_runtime_open(struct workspace *workspace, struct dp_err *err);
/* Starts the runtime, whose CRIU gets the library with these orders (criu_launch_preload). Returns when it sends its pages.
 * Errors: runtime_dump_start's. */
int offer_runtime_start(struct criu_dump *dump, const struct offer_options *options, const char *criu,
			const struct workspace *workspace, const char *library, const char *orders, struct dp_err *err);

#endif
