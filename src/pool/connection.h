/* pool/connection: one client's connection, inside the server: bytes in, messages to requests.c, answers out.
 * Thread rule: the server's thread. */
#ifndef DP_POOL_CONNECTION_H
#define DP_POOL_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "pool/access.h"
#include "pool/committer.h"
#include "pool/pool.h"
#include "sys/awake.h"
#include "transport/stream.h"
#include "wire/message.h"

#define INPUT_SMALL_BYTES (64u << 10)
#define OUTPUT_HIGH_BYTES (8u << 20)
#define OUTPUT_LOW_BYTES (2u << 20)
#define REPLY_HEAD_BYTES (MESSAGE_HEADER_BYTES + 8 + DATA_RUNS_LIMIT * 16 + DATA_PAGES_LIMIT * DIGEST_BYTES)

/* One message on its way out: a head, then either slots (pages sent from the store's memory) or extra bytes. */
struct reply {
	struct reply *next;
	uint64_t total, sent; /* bytes */
	uint32_t head_bytes;
	uint32_t slot_count; /* each slot is referenced until the reply is sent */
	uint8_t *extra;      /* owned */
	uint64_t extra_bytes;
	uint64_t plain; /* of extra_bytes, the last so many: pages */
	uint64_t slots[DATA_PAGES_LIMIT];
	uint8_t head[REPLY_HEAD_BYTES];
};

struct reply_queue {
	struct reply *first, **last;
};

/* What the connections of a server share. */
struct connection_shared {
	struct pool *pool;
	struct committer *committer; /* NULL: commits are waited for in place */
	uint64_t next_connection_id;
	struct reply *spare; /* replies to be used again */
	unsigned spare_count;
	uint64_t started_ns;
	uint64_t bytes_in, bytes_out, requests, connections;
	struct awake awake; /* while pages are wanted at once */
	struct access *access; /* owned; NULL: whoever is let in may do all */
	uint64_t refusal_second; /* refusals are counted by the second, for the log */
	unsigned refusals;
	uint8_t *unpacked; /* room for a packed PUT, or NULL while there was none */
};

struct connection {
	struct connection *next, *previous;
	struct connection_shared *shared;
	struct stream *stream;
	uint64_t id;     /* never used again */
	bool hello;      /* said */
	bool can_pack;   /* it said so */
	bool near;       /* it asked where we are, and may ask where pages lie */
	bool committing; /* a commit is under way: later requests wait, so that they stay in order */
	bool identified; /* peer is whole; trusted, account are set */
	bool trusted;    /* every right */
	uint16_t account; /* who pays for what it stores */
	struct stream_peer peer;
	uint64_t accepted_ns;
	uint64_t seen_object; /* its last object, and the rights to it */
	unsigned seen_kind, seen_rights;
	bool broken;     /* to be closed once what is queued is sent */
	uint32_t events; /* what epoll watches; the server's */
	uint8_t *input;
	size_t input_size, input_start, input_end; /* bytes [start, end) wait to be handled */
	uint64_t last_active_ns;
	struct reply *current; /* sent in part; nothing may come between */
	struct reply_queue urgent, bulk;
	uint64_t queued_bytes;
};

/* Takes the stream. NULL where memory is out. */
struct connection *connection_new(struct connection_shared *shared, struct stream *stream);
/* Does not touch the list links. The pool forgets the connection's drafts and instances. */
void connection_free(struct connection *connection);
/* Reads once, handles what is complete, sends. Negative: close the connection. */
int connection_readable(struct connection *connection);
int connection_writable(struct connection *connection);
bool connection_wants_read(const struct connection *connection);
bool connection_wants_write(const struct connection *connection);
/* Gives a large idle buffer back. */
void connection_shrink(struct connection *connection);
void connection_shared_done(struct connection_shared *shared);

/* ---- for requests.c ---- */
/* A reply with room for a head; NULL where memory is out. */
struct reply *reply_new(struct connection_shared *shared);
void reply_free(struct connection_shared *shared, struct reply *reply);
/* Encodes the header, the payload's length being what is in the reply, and queues it. */
void connection_queue(struct connection *connection, struct reply *reply, const struct message_header *request,
		      enum message_type type, uint8_t class, uint64_t object, uint64_t epoch);
/* Handles one message, answers it. Negative: the connection cannot go on. */
int request_handle(struct connection *connection, const struct message_header *header, const uint8_t *payload);
/* A commit of this connection has been synced: finishes and answers it, goes on with what waited. Negative: close. */
int connection_committed(struct connection *connection, const struct commit_job *job);
void request_committed(struct connection *connection, const struct commit_job *job);
/* Answers with an error. */
int request_fail(struct connection *connection, const struct message_header *header, int error, const char *text);

#endif
