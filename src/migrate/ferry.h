/* ferry: the processes of a migration, one on each side, and what they leave behind for each other.
 *
 *   source host                                             destination host
 *   agent ─ session = ferry out ── "to" ──(TLS, JSON lines)──▶ agent ─ session = ferry in ─┬─ restorer ─ restore_start
 *             ├─ offerer ═ criu ═ the frozen tree                                          └─ gate: CRIU's post-restore action
 *             └─ asks.sock ◀─ session ◀── "asks" ──(TLS)────────────── ferry in
 *
 * The ferry out prepares both sides (everything that may be refused is refused before anything stands still), has the tree frozen
 * (offer.h), and from then on is the one that decides (switch.h). The ferry in restores from the offer's pool, waits with CRIU
 * at its gate until the source has granted, and asks over a connection of its own, which it makes again whenever it breaks.
 * Each ferry has a session of its own: it outlives the agent that forked it.
 *
 *   ROOT/.agent/out/ID/  asks.sock record token address   (source; a record that is final stays for a day)
 *   ROOT/.agent/in/ID/   state.json lease gate landing fence (destination; goes when the migration is over)
 *   ROOT/.agent/events   what happened, one JSON object a line
 * A ferry holds the lock of its directory; one whose lock is free is an orphan, and the agent starts who sees to it.
 *
 * Invariants: FY1 nothing of a tree runs here but by the switch's word: no gate is opened before a grant, and the lease's page
 * holds what the switch holds; FY2 what is decided is recorded before it is told; FY3 an address is on one host at most while
 * both ferries live: it leaves the source before the destination is told to restore.
 * Thread rule: single-threaded processes. */
#ifndef DP_MIGRATE_FERRY_H
#define DP_MIGRATE_FERRY_H

#include <limits.h>
#include <stdbool.h>

#include "base/err.h"
#include "migrate/lines.h"
#include "transport/endpoint.h"

#define AGENT_PORT 7410
#define FERRY_ID_BYTES 33 /* 16 random bytes in hex, as the token */
#define FERRY_ANSWER_MS 5000

/* ROOT/.agent/FILE; returns buffer. */
const char *ferry_home_path(const char *root, const char *file, char buffer[static PATH_MAX]);
/* ROOT/.agent/KIND/ID/FILE; kind "in" or "out". */
const char *ferry_path(const char *root, const char *kind, const char *id, const char *file, char buffer[static PATH_MAX]);
/* Makes ROOT/.agent and what is in it, 0700. */
int ferry_make_home(const char *root, struct dp_err *err);
/* Makes a migration's directory and takes its lock. The lock's descriptor, or -errno. */
int ferry_claim(const char *root, const char *kind, const char *id, struct dp_err *err);
/* 32 hex digits and nothing else. */
bool ferry_id_is_proper(const char *id);
void ferry_make_id(char id[static FERRY_ID_BYTES]);
/* dps://OUR ADDRESS ON THE WAY TO WHO IS AT THE OTHER END:0, which they can reach; tcp:// where not tls. -EIO. */
int ferry_listen_text(const struct stream *stream, bool tls, char text[static 128]);
/* Appends to ROOT/.agent/events, with the time and our process; takes the object. */
void ferry_note(const char *root, json_object *event);

/* Becomes the source's ferry of the migration that `request` asks for, and tells `client` of it until it is over. Returns an exit
 * code. `listen`: where the local agent listens for others. */
int ferry_out(const char *root, json_object *request, struct lines *client, const struct endpoint *listen);
/* Becomes the destination's ferry: `prepare` is the first line that came from `source`. allowed: by the agent's rights. */
int ferry_in(const char *root, json_object *prepare, struct lines *source);
/* Serves the asks of a destination: hands them to the ferry of that migration, or reads its record. */
int ferry_asks(const char *root, json_object *first, struct lines *peer);
/* Sees to a migration whose ferry died. Blocks as long as that takes. */
int ferry_recover_in(const char *root, const char *id);
int ferry_recover_out(const char *root, const char *id);
/* Calls `each` for every migration's directory whose ferry is gone. Records that are over and a day old are removed. */
void ferry_each_orphan(const char *root, void (*each)(void *context, const char *kind, const char *id), void *context);

/* CRIU's post-restore action at the destination: is it called by this name? Then this is what to do. */
#define FERRY_GATE_ACTION "migration-gate"
bool ferry_is_gate_action(const char *name);
int ferry_gate_action(char *name);

#endif
