/* pool/request: a message being handled; shared by requests.c and page_requests.c. Thread rule: the server's thread. */
#ifndef DP_POOL_REQUEST_H
#define DP_POOL_REQUEST_H

#include "pool/connection.h"

struct request {
	struct connection *connection;
	struct pool *pool;
	const struct message_header *header;
	const uint8_t *payload;
	struct dp_err err;
	uint64_t ok_object, ok_epoch; /* of the OK that answers, unless answered */
	bool answered;
};

/* -EBADMSG with a text. */
int request_malformed(struct request *request);
/* Queues the answer and notes that there is one. */
void request_answer(struct request *request, struct reply *reply, enum message_type type, uint8_t class, uint64_t object,
		    uint64_t epoch);

/* ---- rights.c ---- */
/* Before any handler: who is it, and may he send this? -EACCES with a text. Sets who pays for what is stored. */
int request_check(struct request *request);
/* For names and objects that are in the payload. */
int request_right_name(struct request *request, const char *name, unsigned right);
int request_right_object(struct request *request, uint64_t object, unsigned right);
bool request_may_read(const struct request *request, const struct object *object);
/* Counts a refusal; a peer that insists must not fill the log. */
bool refusal_may_be_logged(struct connection_shared *shared);

/* A handler answers by itself, or returns 0 for a plain OK, or -errno for an ERROR. */
int request_handle_get(struct request *request);
int request_handle_near(struct request *request);
int request_handle_locate(struct request *request);
int request_handle_put(struct request *request);
int request_handle_drop(struct request *request);
int request_handle_move(struct request *request);
int request_handle_fork(struct request *request);
int request_handle_space_free(struct request *request);
/* The space that is to be read: -ENOENT; -ESTALE where the reader says a lease that is not the instance's any more: what he would
 * get may have been written by another since. */
int request_space_to_read(const struct request *request, const struct space **space);
int request_handle_attach(struct request *request);
int request_handle_note(struct request *request);
/* An operation with a place in its instance's sequence: 0: it is the next; 1: a repeat that was applied well; or what it failed
 * with, or why it is refused. */
int request_sequence_check(struct request *request, struct object **instance, bool *refused);
int request_handle_scrub(struct request *request);
int request_handle_find(struct request *request);
int request_handle_repair(struct request *request);

#endif
