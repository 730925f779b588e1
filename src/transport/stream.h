/* transport/stream: how bytes travel, behind a table of functions: TCP and Unix sockets here, TLS 1.3 over TCP in tls.h.
 *
 * A stream is a nonblocking byte stream with an fd to poll. A listener accepts streams. Listening or connecting beyond loopback
 * without encryption is refused, unless the operator says that the network is private (tls.h: allow_plaintext).
 * A stream that encrypts may hold bytes that poll(2) knows nothing of: some that have come and wait to be read (stream_pending:
 * read again before polling), and some that sendv took and could not send yet (stream_holds: poll for POLLOUT, then
 * stream_flush).
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

/* Who is at the other end. */
struct stream_peer {
	char host[64];      /* "10.0.0.7", or "uid:1000" over a Unix socket: what is counted by */
	char place[80];     /* with the port or process, for logs */
	char identity[160]; /* "cn:NAME" (certificate), "psk:NAME", "uid:N" (Unix socket), "anonymous" (neither) */
};

struct stream_ops {
	/* Sends what the transport takes now. Bytes taken, or -EAGAIN, -EPIPE, -ECONNRESET, ... Never raises SIGPIPE. */
	ssize_t (*sendv)(struct stream *stream, const struct iovec *iov, int count);
	/* Bytes read, 0 at the end of the stream, -EAGAIN or another -errno. */
	ssize_t (*receive)(struct stream *stream, void *buffer, size_t bytes);
	void (*close)(struct stream *stream);
	/* The rest may be NULL: nothing is ever held back, and the peer is who the kernel says. */
	int (*flush)(struct stream *stream);
	bool (*holds)(const struct stream *stream);
	bool (*pending)(const struct stream *stream);
	void (*identity)(const struct stream *stream, char *identity, size_t size);
	const char *(*why)(const struct stream *stream);
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
/* Sends what sendv took and holds. 0 where nothing is held any more, -EAGAIN, or an error. */
static inline int stream_flush(struct stream *stream)
{
	return stream->ops->flush ? stream->ops->flush(stream) : 0;
}
static inline bool stream_holds(const struct stream *stream)
{
	return stream->ops->holds && stream->ops->holds(stream);
}
/* Bytes have come that poll(2) does not tell of: receive once more. */
static inline bool stream_pending(const struct stream *stream)
{
	return stream->ops->pending && stream->ops->pending(stream);
}
/* Why the last call failed, in words, or "" where the errno says all. Borrowed. */
static inline const char *stream_why(const struct stream *stream)
{
	return stream->ops->why ? stream->ops->why(stream) : "";
}
/* The identity is known once bytes have been received. */
void stream_peer(const struct stream *stream, struct stream_peer *peer);
/* Does it leave this host, or could it: TCP, not a Unix socket. */
bool stream_is_network(const struct stream *stream);
/* Takes NULL. */
void stream_close(struct stream *stream);

/* Connects to a TCP or Unix endpoint, with the handshake where it is dps://; blocks at most timeout_ms. -ECONNREFUSED, -ENOENT,
 * -ETIMEDOUT, -EACCES (plain TCP beyond loopback), -EKEYREJECTED (the peer is not who it should be, or says so of us), ... */
int stream_connect(struct stream **stream, const struct endpoint *endpoint, unsigned timeout_ms, struct dp_err *err);
/* Connects to a Unix socket path that may be longer than sockaddr_un holds. */
int stream_connect_unix(struct stream **stream, const char *path, struct dp_err *err);
/* A stream over a connected socket, which it takes: for socketpairs in tests. Sets it nonblocking. */
struct stream *stream_from_socket(int fd);
/* Nonblocking, no delay, noticing a peer that is gone. -errno. */
int stream_prepare_socket(int fd);

struct listener {
	int fd;
	bool unlink_path; /* a Unix socket file that goes with the listener */
	void *tls;        /* dps://: what its streams are made with (tls.h) */
	struct endpoint endpoint; /* with the port in use */
};

/* Listens at a TCP or Unix endpoint. A Unix socket file left by a dead server is replaced; a living one is -EADDRINUSE.
 * Plain TCP beyond loopback is -EACCES unless allow_plaintext. Port 0 picks one. */
int listener_open(struct listener *listener, const struct endpoint *endpoint, bool allow_plaintext, struct dp_err *err);
/* A stream, or NULL where nobody waits (or accepting failed; *error says why, 0 for nobody). */
struct stream *listener_accept(struct listener *listener, int *error);
void listener_close(struct listener *listener);

#endif
