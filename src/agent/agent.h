/* agent: the daemon that every host runs which takes part in migrations.
 *
 * How it works: it accepts, forks, and reaps; nothing else. Each connection gets a process of its own, with a session of its
 * own, which becomes what its first line asks for: on the control socket a status, a list, a stream of events, or the ferry
 * out of a migration (migrate/ferry.h); from another agent, over TLS 1.3 with both sides proven, a ferry in, the asks of one, or
 * the loan of a copy (migrate/clone.h).
 * So an agent that is killed ends no migration, and one that is started again finds those whose ferry died, and sees to them.
 * Restored trees do not know it: their supervisors hold their userfaultfds.
 *
 * The control socket (ROOT/.agent/control.sock, 0600 in a 0700 directory) speaks JSON objects, one a line:
 *   {"op":"status"}            -> one object                    {"op":"list"}     -> one object
 *   {"op":"events"}            -> what happened, and what happens, until the caller goes
 *   {"op":"migrate", ...}      -> phase, progress, and at last done or failed
 * Whatever is refused: {"event":"failed","code":ERRNO,"text":...}.
 * Thread rule: single-threaded processes (forks without exec). */
#ifndef DP_AGENT_AGENT_H
#define DP_AGENT_AGENT_H

#include <stdbool.h>

#include "base/err.h"
#include "migrate/lines.h"
#include "pool/access.h"
#include "transport/endpoint.h"

struct agent_options {
	const char *root;        /* registry of instances */
	const char *listen;      /* tls://HOST:PORT, dps://..., or NULL: only what systemd hands over */
	/* who may bring processes here (right `write`, by their name); NULL: whoever is proven; and who may have a copy of one
	 * (right `clone`); NULL: nobody */
	const char *access_file;
	bool allow_plaintext, verbose;
};

/* Runs until SIGTERM or SIGINT: then it takes nothing new and waits for what is under way, 30 s at most; ferries go on by
 * themselves after that. Blocks. */
int agent_run(const struct agent_options *options, struct dp_err *err);

/* A connection to this host's agent. -ENOTCONN (with what to do) where none runs. */
int agent_connect(const char *root, struct lines *lines, struct dp_err *err);

/* ---- session.c, only for this room ---- */
struct agent_place {
	const char *root;
	struct endpoint listen;  /* port 0: nowhere */
	struct access *access;   /* NULL: no file */
	uint64_t started_ns;     /* MONOTONIC */
	int agent_pid;
};
/* What the process of one connection does; takes the stream. Returns its exit code. */
int agent_control_session(const struct agent_place *place, struct stream *stream);
int agent_peer_session(const struct agent_place *place, struct stream *stream);

#endif
