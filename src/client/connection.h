/* client/connection: the inside of a client: buffers, requests in flight, sending and receiving. Shared by the page calls
 * (client.c, pages.c) and the control calls (control.c). Thread rule: the client's thread. */
#ifndef DP_CLIENT_CONNECTION_H
#define DP_CLIENT_CONNECTION_H

#include "base/base.h"
#include "client/client.h"
#include "client/compress.h"
#include "client/near.h"
#include "transport/stream.h"
#include "wire/message.h"

#ifdef DP_FUZZ /* a client an input: making large buffers is nearly all that a fuzzer would do */
#define IN_FLIGHT_LIMIT 32
#define OUTPUT_BYTES (96u << 10)
#else
#define IN_FLIGHT_LIMIT 1024             /* page requests; more are -EAGAIN */
#define OUTPUT_BYTES (16u << 20)         /* what may wait to be sent */
#endif
#define OUTPUT_PUT_BYTES (1u << 20)      /* a PUT is queued behind at most this much */
#ifdef DP_FUZZ
#define INPUT_BYTES (64u << 10)
#define PAGE_ANSWER_LIMIT (32u << 10)
#else
#define INPUT_BYTES (2u << 20)
#define PAGE_ANSWER_LIMIT (512u << 10)   /* payload of an answer to a page request */
#endif
#define CONTROL_TIMEOUT_MS 60000u

/* AGAIN: pages of another request that came damaged; at most 64, so that the answer has one part. */
enum flight_kind { FLIGHT_FREE, FLIGHT_GET, FLIGHT_LOCATE, FLIGHT_CHANGE, FLIGHT_AGAIN };

/* A page request that waits for its answer. */
struct flight {
	enum flight_kind kind;
	uint32_t generation; /* counts the uses of this entry: part of the request id */
	uint32_t next_free;
	uint64_t cookie;
	uint64_t sequence;   /* with SEQUENCE_BIT: the request's id; 0: it is made of the generation */
	uint32_t pages;      /* asked for or sent; 0 where none travel */
	uint8_t turn;        /* the meter's when it was sent */
	/* GET: the parts come in order, so the next page expected says all. */
	uint32_t range_count, range_at;
	uint64_t page_at; /* in that range */
	struct page_range ranges[GET_RANGES_LIMIT]; /* LOCATE: what was asked for, and the whole blocks around it */
	uint64_t space;
	uint64_t changes;                           /* LOCATE */
	bool answered;                              /* all parts have come; pages that were asked for again may not have */
	uint32_t again;                             /* so many requests for them */
	uint32_t parent, parent_generation;         /* AGAIN: the request that they are for */
};

/* A message that came while a control call waited for its own; delivered by the next client_receive. */
struct held {
	struct held *next;
	struct message_header header;
	uint8_t payload[];
};

struct client {
	struct stream *stream;
	char text[1400]; /* the pool, for error texts */
	int error;       /* sticky: negative errno */
	uint64_t bytes_sent, bytes_received;
	uint64_t damaged_pages; /* came, and were asked for again */

	uint8_t *output; /* bytes [output_start, output_end) wait to be sent */
	size_t output_start, output_end;
	uint8_t *input; /* bytes [input_start, input_end) wait to be handled */
	size_t input_size, input_start, input_end;

	uint32_t features;                   /* that the pool has too */
	struct compress_meter get_meter, put_meter;
	uint8_t *packed;                     /* room for a packed PUT; NULL where nothing is ever packed */
	uint8_t *unpacked;                   /* room for the pages of a packed DATA */
	struct near *near;                   /* NULL: pages come as messages */
	uint8_t *near_pages;                 /* [NEAR_READ_PAGES] */
	bool near_busy;                      /* near_pages is in use further up */

	uint64_t read_epoch;                         /* said with GET and LOCATE; 0: not */
	uint64_t sequence;                           /* of the next operation; 0: none */
	uint32_t by_sequence[SEQUENCE_WINDOW];       /* flights of operations with a number */
	struct flight *flights;
	uint32_t first_free; /* IN_FLIGHT_LIMIT: none */
	uint64_t control_count;
	struct held *held, **last_held;
};

/* The control calls' request ids have this bit, so that nobody mistakes one for the other. */
#define CONTROL_REQUEST (UINT64_C(1) << 63)

int connection_open(struct client *client, struct stream *stream);
/* A client over a stream, which it takes; says hello. `text` names the pool in errors. */
int client_open_stream(struct client **client, struct stream *stream, const char *text, unsigned timeout_ms, struct dp_err *err);
/* Queues header, payload and data as one message and sends what goes at once. -EAGAIN where more than queue_limit bytes would
 * wait in front of it; -EMSGSIZE where it can never be sent. */
int connection_send(struct client *client, struct message_header *header, const void *payload, size_t payload_bytes,
		    const struct iovec *data, size_t data_count, size_t data_bytes, size_t queue_limit);
int connection_flush(struct client *client);
/* More than queue_limit bytes wait to be sent, though all that could be was sent; or the connection has failed. */
bool connection_queue_full(struct client *client, size_t queue_limit);
/* Reads once. 1 where bytes came, 0 where none are there, or the error. */
int connection_fill(struct client *client);
/* Takes the next whole message out of the input. 1, or 0 where none is whole. *payload is valid until the next fill. */
int connection_next(struct client *client, struct message_header *header, const uint8_t **payload);
/* Sets the error that ends the client, returns it. */
int connection_fail(struct client *client, int error);
/* Hands one answer to a page request to the handler; the number of calls made or -EPROTO. */
int connection_deliver(struct client *client, const struct client_handler *handler, const struct message_header *header,
		       const uint8_t *payload);
/* A request without pages that is answered by OK or ERROR. */
int connection_send_change(struct client *client, struct message_header *header, const void *payload, int bytes, uint64_t cookie);
#define NEAR_READ_PAGES 64u
/* Takes an entry; NULL where all are in use. */
struct flight *connection_take_flight(struct client *client, enum flight_kind kind, uint64_t cookie, uint64_t *request);
/* Hands pages at known places to the handler; the number of calls made or the error. Ends the flight. */
int connection_deliver_near(struct client *client, const struct client_handler *handler, struct flight *flight,
			    const struct page_range *ranges, size_t count, const struct page_place *places);
int connection_hold(struct client *client, const struct message_header *header, const uint8_t *payload);

#define ANY_ANSWER ((enum message_type)0)
/* Control calls: sends and waits for the answer; other answers that come meanwhile are held. On success *payload is valid
 * until the next call on this client. An ERROR answer becomes err and its errno. timeout_ms 0: wait as long as it takes. */
int control_call(struct client *client, struct message_header *request, const void *payload, size_t payload_bytes,
		 const struct iovec *data, size_t data_bytes, enum message_type expected, unsigned timeout_ms,
		 struct message_header *answer, const uint8_t **answer_payload, struct dp_err *err);
int control_wait(struct client *client, uint64_t request, unsigned timeout_ms, struct message_header *answer,
		 const uint8_t **answer_payload, struct dp_err *err);
/* The answer to any of `count` control requests with ids from `first` on. */
int control_wait_any(struct client *client, uint64_t first, uint64_t count, unsigned timeout_ms, struct message_header *answer,
		     const uint8_t **payload, struct dp_err *err);
/* Turns an ERROR answer into err and its errno; anything but `expected` (ANY_ANSWER: whatever) ends the client. */
int control_check_answer(struct client *client, const struct message_header *answer, const uint8_t *payload,
			 enum message_type expected, struct dp_err *err);
int control_hello(struct client *client, unsigned timeout_ms, struct dp_err *err);

#endif
