/* clone: a second copy of a running process tree, for looking at it: the tree goes on after a pause of tens of milliseconds, the
 * copy starts beside it with its memory of that instant, which comes from forks of the tree's processes when it is touched.
 *
 * How it works: an offer that is a copy (offer.h), at a Unix socket nobody else knows, a restore from there in namespaces of its
 * own, and the offer left alone: it ends, the forks with it, when the clone has all it wants or is gone.
 * The clone's pool is the offer's own: it knows neither the pool nor the instance that the original may be of. Its network
 * is a fresh namespace with nothing but a loopback (unless told otherwise), open connections are closed in it. It sees the host's
 * files, but what it writes, and the names of its sockets, stay its own (restore/private_files.h), unless share_files. Thread
 * rule: one thread; forks. */
#ifndef DP_MIGRATE_CLONE_H
#define DP_MIGRATE_CLONE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "instance/instance.h"
#include "migrate/clone_source.h"
#include "migrate/lines.h"
#include "migrate/offer.h"
#include "transport/endpoint.h"

struct clone_options {
	pid_t pid;             /* of the original's first process, on this host; */
	const struct endpoint *from; /* or the agent of another, */
	const char *source;    /* and what it is called there: an instance, a container or a pid */
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
	pid_t source_pid;
	uint64_t total_ns;
};

/* Returns when the clone runs. After an error the original runs as if nothing had been, and nothing is left. Errors: those of
 * offer_make and restore_start, -EOPNOTSUPP (files, see above). */
int clone_make(const struct clone_options *options, struct clone_result *result, struct dp_err *err);

/* The part of the host that has the original. An offer that is a copy, of what `source` is; of `common` what is not said by
 * that. */
int clone_offer(const struct clone_source *source, const struct offer_options *common, struct offer **offer,
		struct offer_facts *facts, struct dp_err *err);
/* The same for who asks this host's agent: {"op":"clone","source":...} -> {"event":"offered","uri":...}, and the offer is left
 * alone after {"op":"detach"}, or gone where the connection is. identity: the only one that may fetch its pages. Returns an exit
 * code. */
int clone_lend(const char *registry, json_object *request, struct lines *peer, const char *identity);

#endif
