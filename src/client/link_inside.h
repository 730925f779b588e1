/* link_inside: the inside of a link: link.c (connections that come and go, the clock, life), link_operations.c (changes: the
 * journal of those that are not answered) and link_pages.c (GETs, and what becomes of answers). Thread rule: as link.h. */
#ifndef DP_CLIENT_LINK_INSIDE_H
#define DP_CLIENT_LINK_INSIDE_H

#include "base/base.h"
#include "client/link.h"
#include "client/link_connect.h"
#include "wire/message.h"

#define GETS 512u
#define BLOCK_PAGES 64u
#define BLOCKS 320u
#define OPERATION_BLOCKS (PUT_PAGES_LIMIT / BLOCK_PAGES)
#define FEW_RANGES 2u
#define OPERATION_RANGES 256u
#define SPACE_BITS 20
#define COOKIE_OPERATION (UINT64_C(1) << 63)
#define COOKIE_ADVICE (UINT64_C(1) << 62)
#define COOKIE_NOTE (UINT64_C(1) << 61)
#define CHECK_NS UINT64_C(100000000)
#define ADVICES 4u

/* Pages and ranges of operations; taken last in, first out, so that few of them are ever touched. */
struct block {
	uint8_t pages[BLOCK_PAGES * PAGE_BYTES];
	struct page_range ranges[BLOCK_PAGES];
};

enum kind { KIND_PUT, KIND_DROP, KIND_MOVE, KIND_FORK, KIND_SPACE_FREE };

struct operation {
	uint8_t kind;
	bool answered;
	uint16_t block_count;
	uint16_t block[OPERATION_BLOCKS];
	uint32_t space, range_count;
	struct page_range few[FEW_RANGES];
	uint64_t number[3]; /* MOVE: from, to, pages; FORK: child; PUT: pages; NOTE: bytes */
	uint64_t cookie, asked_ns;
};

struct get {
	bool used, sent, dead;
	uint8_t class;
	uint16_t next_free;
	uint32_t space, count;
	uint64_t cookie, asked_ns;
	struct page_range ranges[GET_RANGES_LIMIT]; /* what has not come yet */
};

struct link {
	struct link_config config;
	struct endpoint endpoint;
	struct client *client; /* NULL: not attached */
	struct link_connector *connector; /* a try under way, or NULL */
	uint64_t instance, epoch;
	uint8_t identity[IDENTITY_BYTES];
	bool unsettled; /* it is not known yet which operation is the next */
	int failure;    /* the end */
	char why[256];
	int idle_fd; /* polled while there is nothing to poll */
	/* operations: numbers [base, next) are not answered yet; [base, sent) are on their way over this connection */
	uint64_t base, next, sent;
	struct operation *operations; /* [SEQUENCE_WINDOW], by number */
	struct block *blocks;         /* [BLOCKS] */
	uint16_t free_block[BLOCKS];
	uint32_t free_blocks;
	struct get *gets;
	uint32_t free_get, gets_used, gets_unsent; /* free_get: GETS: none */
	struct client_handler handler; /* of the call under way */
	unsigned inside;               /* calls of the client under way: it may not be closed under them */
	int broken;                    /* it is to be closed for this when they are over; 0: not */
	/* answers that the pool told when we attached: handed over by the next receive */
	struct client_attached told;
	bool telling;
	uint8_t note[NOTE_LIMIT]; /* idempotent, so outside the sequence: sent again until it was answered */
	uint32_t note_bytes;
	bool note_waits, note_sent;
	uint64_t note_cookie, note_asked_ns;
	uint64_t advice[ADVICES]; /* cookies of order_put, 0: none */
	uint64_t lost_advice[ADVICES];
	uint32_t lost_advices;
	uint64_t heard_bytes, heard_ns, next_check_ns;
	uint64_t retry_ns, backoff_ns, attached_ns, random;
	uint64_t reconnects, bytes_in, bytes_out;
};

static inline uint64_t link_now(const struct link *link)
{
	return link->config.clock ? link->config.clock(link->config.connect_context) : clock_now_ns();
}

static inline uint64_t link_space_id(const struct link *link, uint32_t number)
{
	return link->instance << SPACE_BITS | number;
}

static inline struct operation *link_operation(const struct link *link, uint64_t number)
{
	return &link->operations[number % SEQUENCE_WINDOW];
}

static inline bool link_is_usable(const struct link *link)
{
	return link->client && !link->broken;
}

/* ---- link.c ---- */
/* The link's end: what it gives from now on. The first reason stays. */
int link_end(struct link *link, int error, const char *why);
/* The connection is of no more use. What was asked for over it is asked for again over the next. */
void link_lost(struct link *link, int error, const char *why);

/* ---- link_operations.c ---- */
/* Sends an operation of the journal. */
int link_send_kept(struct link *link, uint64_t number);
void link_give_blocks(struct link *link, struct operation *operation);

/* ---- link_pages.c ---- */
/* Answers a GET with zeros: its space has gone, and nobody looks. Calls made. */
int link_bury(struct link *link, struct get *get);
/* An operation has its answer. */
void link_answered(struct link *link, uint64_t number, int result);
/* What a connection's answers go to; they go on to the handler of the call under way. */
struct client_handler link_own_handler(struct link *link);

#endif
