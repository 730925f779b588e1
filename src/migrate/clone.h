/* clone: a second copy of a running process tree, for looking at it: the tree goes on after a pause of tens of milliseconds, the
 * copy starts beside it with its memory of that instant, which comes from forks of the tree's processes when it is touched.
 *
 * How it works: an offer that is a copy (offer.h), at a Unix socket nobody else knows, a restore from there in namespaces of its
 * own, and the offer left alone: it ends, the forks with it, when the clone has all it wants or is gone.
 * The clone's pool is the offer's own: it knows neither the pool nor the instance that the original may be of. Its network
 * is a fresh namespace with nothing but a loopback (unless told otherwise), open connections are closed in it. It sees the host's
 * files, but what it writes, and the names of its sockets, stay its own (restore/private_files.h), unless share_files. Thread rule: one thread; forks. */
#ifndef DP_MIGRATE_CLONE_H
#define DP_MIGRATE_CLONE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "instance/instance.h"
#include "migrate/offer.h"

struct clone_options {
	pid_t pid;             /* of the original's first process */
	const char *registry;  /* of instances; NULL: the default */
	const char *name;      /* the clone's; NULL: its id */
	bool full;             /* fetch all memory in the background from the start on */
	bool host_network;     /* instead of one of its own */
	bool share_files;
	bool verbose;
	char *const *criu_arguments; /* further ones for CRIU, of the dump and of the restore; borrowed */
	size_t criu_argument_count;
};

struct clone_result {
	struct instance instance;
	struct offer_facts offer; /* stopped_ns: so long the original stood still */
	uint64_t total_ns;
};

/* Returns when the clone runs. After an error the original runs as if nothing had been, and nothing is left. Errors: those of
 * offer_make and restore_start, -EOPNOTSUPP (files, see above). */
int clone_make(const struct clone_options *options, struct clone_result *result, struct dp_err *err);

#endif
