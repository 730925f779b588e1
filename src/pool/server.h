/* pool/server: serves a pool to its connections: one thread, one epoll loop.
 *
 * How it works: each connection has an input buffer, in which whole messages are handled in order, and two queues of answers:
 * urgent (demand pages, short answers) and bulk (prefetched pages, files, lists). What is urgent overtakes what is bulk, but
 * not within a part. Page answers refer to slots and are sent straight from the store's memory where it has them mapped. A
 * connection whose queues hold more than OUTPUT_HIGH_BYTES is not read until they have drained.
 *
 * Thread rule: one thread, but for server_stop, which may be called from a signal handler or another thread. */
#ifndef DP_POOL_SERVER_H
#define DP_POOL_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "pool/access.h"
#include "pool/pool.h"
#include "transport/stream.h"

struct server;

#define SERVER_NICE (-15) /* of a pool's process: as the pagers' */

/* `pool` is borrowed and outlives the server. */
int server_open(struct server **server, struct pool *pool, struct dp_err *err);
/* Who may do what (access.h), taken; without it, whoever is let in may do all. Before server_listen. */
void server_set_access(struct server *server, struct access *access);
/* Connections at once, in all and of one host or user. Beyond that a connection is closed as soon as it is made. */
#define SERVER_CONNECTIONS 8192
#define SERVER_CONNECTIONS_PER_PEER 4096
void server_set_connection_limits(struct server *server, unsigned connections, unsigned per_peer);
/* Those that have not said hello yet: how many, and for how long. */
#define SERVER_STRANGERS 512
#define SERVER_STRANGERS_PER_PEER 128
#define SERVER_HELLO_NS (UINT64_C(10) * 1000000000)
/* Adds a place to listen at; *in_use (may be NULL) is the endpoint with the port in use, borrowed from the server. */
int server_listen(struct server *server, const struct endpoint *endpoint, bool allow_plaintext, const struct endpoint **in_use,
		  struct dp_err *err);
/* The host's processors may sleep also while pages are wanted at once (awake.h). */
void server_let_sleep(struct server *server);
/* Ends by itself when nobody has been connected, and no kept instance is left, for idle_ns. */
void server_set_idle_exit(struct server *server, uint64_t idle_ns);
/* Calls `ready` in the server's thread whenever the descriptor (borrowed) is readable or hung up; a negative result ends
 * server_run with it. One per server. 0 or -errno. */
int server_watch(struct server *server, int fd, int (*ready)(void *context), void *context);
/* So many connections are open. */
unsigned server_connections(const struct server *server);
/* Serves until server_stop or idle exit. 0 or -errno. */
int server_run(struct server *server);
void server_stop(struct server *server);
/* Takes NULL. Closes all connections and listeners. */
void server_close(struct server *server);

#endif
