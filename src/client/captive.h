/* client/captive: the pool that serves a dir: or file: store of this host while somebody needs it.
 *
 * Whoever opens such an endpoint first starts `distri-proc pool serve --captive` in the background, which takes the store's
 * lock, listens on a socket beside the store and leaves when nobody has been connected for a while. Two starters at once are
 * settled by the lock: the loser's server ends, the loser connects to the winner's. Thread rule: none, no state. */
#ifndef DP_CLIENT_CAPTIVE_H
#define DP_CLIENT_CAPTIVE_H

#include "base/err.h"
#include "transport/endpoint.h"
#include "transport/stream.h"

/* Where the store's socket is: beside it, or, where that is too long for a socket's name, below /run/distri-proc/pools. */
int captive_socket_path(const struct endpoint *endpoint, char *path, unsigned size);
/* A stream to the store's pool, which is started where it does not run. create: the store too. Blocks until deadline_ns. */
int captive_connect(struct stream **stream, const struct endpoint *endpoint, bool create, uint64_t deadline_ns,
		    struct dp_err *err);
/* The program to start; default /proc/self/exe. For tests, whose own program is not distri-proc. Borrowed. NULL: none is started,
 * for who may not or must not; then a pool that does not run is an error. */
void captive_set_program(const char *path);

#endif
