/* transport/stream: how bytes travel, behind a table of functions: TCP and Unix sockets now, TLS and RDMA later.
 *
 * A stream is a nonblocking byte stream with an fd to poll. A listener accepts streams. A pool that listens beyond loopback
 * without encryption is refused, unless the operator says that the network is private (allow_plaintext).
 * Thread rule: one thread per object. */
#ifndef DP_TRANSPORT_STREAM_H
#define DP_TRANSPORT_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/err.h"
#include "transport/endpoint.h"

struct stream;

struct stream_ops {
	/* Sends what the transport takes now. Bytes sent, or -EAGAIN, -EPIPE, -ECONNRESET, ... Never raises SIGPIPE. */
	ssize_t (*sendv)(struct stream *stream, const struct iovec *iov, int count);
	/* Bytes read, 0 at the end of the stream, -EAGAIN or another -errno. */
	ssize_t (*receive)(struct stream *stream, void *buffer, size_t bytes);
	void (*close)(struct stream *stream);
};

struct stream {
	const struct stream_ops *ops;
	int fd; /* pollable; owned */
};

static inline ssize_t stream_sendv(struct stream *stream, const struct iovec *iov, int count)
{
	return stream->ops->sendv(stream, iov, count);
}
static inline ssize_t stream_receive(struct stream *stream, void *buffer, size_t bytes)
{
	return stream->ops->receive(stream, buffer, bytes);
}
/* Does it leave this host, or could it: TCP, not a Unix socket. */
bool stream_is_network(const struct stream *stream);
/* Takes NULL. */
void stream_close(struct stream *stream);

/* Connects to a TCP or Unix endpoint; blocks at most timeout_ms. -ECONNREFUSED, -ENOENT, -ETIMEDOUT, ... */
int stream_connect(struct stream **stream, const struct endpoint *endpoint, unsigned timeout_ms, struct dp_err *err);
/* Connects to a Unix socket path that may be longer than sockaddr_un holds. */
int stream_connect_unix(struct stream **stream, const char *path, struct dp_err *err);
/* A stream over a connected socket, which it takes: for socketpairs in tests. Sets it nonblocking. */
struct stream *stream_from_socket(int fd);

struct listener {
	int fd;
	bool unlink_path; /* a Unix socket file that goes with the listener */
	struct endpoint endpoint; /* with the port in use */
};

/* Listens at a TCP or Unix endpoint. A Unix socket file left by a dead server is replaced; a living one is -EADDRINUSE.
 * TCP beyond loopback is -EACCES unless allow_plaintext. Port 0 picks one. */
int listener_open(struct listener *listener, const struct endpoint *endpoint, bool allow_plaintext, struct dp_err *err);
/* A stream, or NULL where nobody waits (or accepting failed; *error says why, 0 for nobody). */
struct stream *listener_accept(struct listener *listener, int *error);
void listener_close(struct listener *listener);

#endif
