/* client/link: the pages of one instance of a pool, over connections that come and go.
 *
 * How it works: a link owns one client at a time. What was asked for is kept until it is answered: GETs with how far their
 * answers have come, and the operations that change the instance (put, drop, move, fork, space_free) in a journal with their
 * pages, each under its number in the instance's sequence. A connection that fails, or on which a request waits longer than its
 * class may while nothing comes, is closed. A thread of its own then connects, says hello and attaches, with exponential back-off
 * and jitter, so that the caller never waits for a network, a name server or a handshake. Attached again, the pool says which
 * operation was the last that it handled: those up to it are answered from what it remembers, the others are sent again in order,
 * and then the GETs again, from where their answers broke off. So every operation is applied once, and every page of a GET is
 * handed over once.
 *
 * Invariants: L1 operations reach the pool in the order of the calls, and no GET overtakes an operation that was called before
 * it;
 * L2 an operation leaves the journal only when it was answered; L3 a pool that has forgotten an operation which it had answered,
 *    another
 * pool under the same name, and an instance whose lease was taken are the end of the link, never a reason to go on without.
 * A GET of a space that was freed meanwhile is answered with zeros: nobody looks at them any more.
 * Thread rule: one thread, the caller's; the connecting thread shares nothing with it but what it hands over at its end.
 * Errors: those of client.h for calls in themselves; the link's end: -ESTALE, -ENOENT, -ENXIO, -EIO with link_why. */
#ifndef DP_CLIENT_LINK_H
#define DP_CLIENT_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "client/client.h"
#include "transport/endpoint.h"

struct link;

#define LINK_CONNECT_MS 5000u          /* one try to connect, greet and attach */
#define LINK_BACKOFF_NS UINT64_C(20000000)     /* before the second try; doubles, */
#define LINK_BACKOFF_LIMIT_NS UINT64_C(1000000000) /* up to this; each by a random half more or less */

/* What a connection is made by; for tests another than the network. Fills *client with one that said hello. May block. */
typedef int link_connect(void *context, struct client **client, unsigned timeout_ms, struct dp_err *err);

struct link_config {
	const struct endpoint *endpoint; /* copied */
	enum client_compress compress;
	/* operations are taken as long as the journal has room (link_has_room), also while the queue is full */
	bool keep_all;
	bool near;                       /* pages may be read from the memory of a pool on this host */
	uint64_t silence_ns[3];          /* by class: how long a request may wait while nothing comes; 0: 5, 10 and 20 s */
	link_connect *connect;           /* NULL: the endpoint; else called in the caller's thread, from link_work */
	void *connect_context;
	uint64_t (*clock)(void *context); /* with connect; NULL: clock_now_ns */
};

/* Takes a client that is attached (client_instance_create_resumable or client_attach; `attached` is borrowed). Operations are
 * numbered from attached->applied + 1. The client stays the caller's on failure. -ENOMEM. */
int link_new(struct link **link, const struct link_config *config, struct client *client, const struct client_attached *attached,
	     struct dp_err *err);
/* A link that is not connected yet, to an instance that is known: the same as one whose connection was just lost. With
 * LINK_UNSETTLED for attached->applied, where a dead process made the operations before, its own are numbered from the first that
 * the pool has not applied when it is attached; until then none is taken (-EAGAIN). */
#define LINK_UNSETTLED UINT64_MAX
int link_new_lost(struct link **link, const struct link_config *config, const struct client_attached *attached,
		  struct dp_err *err);
/* Takes NULL. Does not end the instance. */
void link_free(struct link *link);

/* As in client.h, but for space, which is the number of the space in its instance (the lower 20 bits of its id). 0 also where
 * there is no connection now; -EAGAIN where the journal is full or, while there is a connection, its queue is. */
int link_get(struct link *link, const struct client_handler *handler, enum request_class class, uint32_t space,
	     const struct page_range *ranges, size_t count, uint64_t cookie);
int link_put(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	     size_t data_count, uint64_t cookie);
int link_drop(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, uint64_t cookie);
int link_move(struct link *link, uint32_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie);
int link_fork(struct link *link, uint32_t parent, uint32_t child, uint64_t cookie);
int link_space_free(struct link *link, uint32_t space, uint64_t cookie);
/* One at a time: -EAGAIN while one waits. Not an operation: it has no place in the sequence, and is sent until it was
 * answered. */
int link_note(struct link *link, const void *note, uint32_t bytes, uint64_t cookie);
/* May any operation be appended? */
bool link_has_room(const struct link *link);
/* Advice, not an operation: answered with -ENOTCONN where there is no connection, or it is lost before the answer. */
int link_order_put(struct link *link, const struct order_run *runs, size_t count, uint64_t cookie);

/* As client_receive. Never blocks. The error is the link's end. */
int link_receive(struct link *link, const struct client_handler *handler);
/* What is due by the clock: silence, the next try. Returns ns until it wants to be called again. */
uint64_t link_work(struct link *link);
/* The client is the caller's again; the link is of no more use. */
struct client *link_disown(struct link *link);
/* To be polled; changes when a connection is lost or made. wants_write as client_wants_write. */
int link_fd(const struct link *link);
bool link_wants_write(const struct link *link);

struct link_state {
	bool attached, settled; /* settled: it has been attached, or the number of its next operation was known from the first */
	uint64_t waiting_since_ns; /* when the oldest request without an answer was made; 0: none waits */
	uint64_t reconnects;
	uint64_t pending_operations;
	uint64_t bytes_in, bytes_out;
	uint64_t instance, epoch, next_sequence, first_unanswered;
};
void link_state(const struct link *link, struct link_state *state);
/* Why there is no connection, or why the link has ended; "" where all is well. */
const char *link_why(const struct link *link);

#endif
