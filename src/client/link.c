#include "client/link.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/base.h"
#include "base/log.h"
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

static uint64_t now_of(const struct link *link)
{
	return link->config.clock ? link->config.clock(link->config.connect_context) : clock_now_ns();
}

static uint64_t space_id(const struct link *link, uint32_t number)
{
	return link->instance << SPACE_BITS | number;
}

static struct operation *operation_at(struct link *link, uint64_t number)
{
	return &link->operations[number % SEQUENCE_WINDOW];
}

/* ---- losing and ending ---- */

static int end(struct link *link, int error, const char *why)
{
	if (!link->failure) {
		link->failure = error;
		snprintf(link->why, sizeof(link->why), "%s", why);
	}
	return link->failure;
}

static uint64_t random_of(struct link *link)
{
	link->random ^= link->random << 13;
	link->random ^= link->random >> 7;
	link->random ^= link->random << 17;
	return link->random;
}

static void plan_retry(struct link *link)
{
	link->retry_ns = now_of(link) + link->backoff_ns / 2 + random_of(link) % (link->backoff_ns + 1);
	link->backoff_ns = DP_MIN(link->backoff_ns * 2, LINK_BACKOFF_LIMIT_NS);
}

static bool usable(const struct link *link)
{
	return link->client && !link->broken;
}

/* The connection is of no more use. What was asked for over it is asked for again over the next. */
static void lost(struct link *link, int error, const char *why)
{
	if (!link->client)
		return;
	if (link->inside) {
		link->broken = link->broken ? link->broken : error;
		return;
	}
	link->broken = 0;
	snprintf(link->why, sizeof(link->why), "%s", why ? why : strerror(-error));
	log_warn("connection to the pool is lost: %s: %" PRIu64 " operations and %u requests for pages wait for the next",
		 link->why, link->next - link->base, link->gets_used);
	link->bytes_in += client_bytes_received(link->client);
	link->bytes_out += client_bytes_sent(link->client);
	client_close(link->client);
	link->client = NULL;
	link->sent = link->base;
	link->note_sent = false;
	link->gets_unsent = 0;
	for (uint32_t i = 0; i < GETS; i++)
		if (link->gets[i].used) {
			link->gets[i].sent = false;
			link->gets_unsent++;
		}
	for (uint32_t i = 0; i < ADVICES; i++)
		if (link->advice[i]) {
			link->lost_advice[link->lost_advices++ % ADVICES] = link->advice[i];
			link->advice[i] = 0;
		}
	link->lost_advices = DP_MIN(link->lost_advices, ADVICES);
	/* The first try at once: most often it is the pool's process that was restarted. But one that breaks again and again is
	 * given time. */
	if (now_of(link) - link->attached_ns < LINK_BACKOFF_LIMIT_NS) {
		plan_retry(link);
	} else {
		link->backoff_ns = LINK_BACKOFF_NS;
		link->retry_ns = now_of(link);
	}
}

/* ---- the journal ---- */

static bool take_blocks(struct link *link, struct operation *operation, uint64_t pages, size_t ranges)
{
	uint64_t count = DP_MAX((pages + BLOCK_PAGES - 1) / BLOCK_PAGES,
				ranges > FEW_RANGES ? (ranges + BLOCK_PAGES - 1) / BLOCK_PAGES : 0);

	if (count > link->free_blocks || count > OPERATION_BLOCKS)
		return false;
	operation->block_count = (uint16_t)count;
	for (uint64_t i = 0; i < count; i++)
		operation->block[i] = link->free_block[--link->free_blocks];
	return true;
}

static void give_blocks(struct link *link, struct operation *operation)
{
	while (operation->block_count)
		link->free_block[link->free_blocks++] = operation->block[--operation->block_count];
}

static void keep_ranges(struct link *link, struct operation *operation, const struct page_range *ranges, size_t count)
{
	operation->range_count = (uint32_t)count;
	if (count <= FEW_RANGES) {
		for (size_t i = 0; i < count; i++)
			operation->few[i] = ranges[i];
		return;
	}
	for (size_t i = 0; i < count; i++)
		link->blocks[operation->block[i / BLOCK_PAGES]].ranges[i % BLOCK_PAGES] = ranges[i];
}

static void kept_ranges(const struct link *link, const struct operation *operation, struct page_range *ranges)
{
	if (operation->range_count <= FEW_RANGES) {
		memcpy(ranges, operation->few, operation->range_count * sizeof(*ranges));
		return;
	}
	for (size_t i = 0; i < operation->range_count; i++)
		ranges[i] = link->blocks[operation->block[i / BLOCK_PAGES]].ranges[i % BLOCK_PAGES];
}

static void keep_pages(struct link *link, struct operation *operation, const struct iovec *data, size_t count)
{
	uint64_t at = 0; /* bytes */

	for (size_t i = 0; i < count; i++) {
		const uint8_t *from = data[i].iov_base;

		for (size_t left = data[i].iov_len; left;) {
			uint64_t inside = at % (BLOCK_PAGES * PAGE_BYTES);
			size_t part = DP_MIN(left, BLOCK_PAGES * PAGE_BYTES - inside);

			memcpy(link->blocks[operation->block[at / (BLOCK_PAGES * PAGE_BYTES)]].pages + inside, from, part);
			from += part;
			at += part;
			left -= part;
		}
	}
}

static size_t kept_pages(const struct link *link, const struct operation *operation, struct iovec *data)
{
	uint64_t left = operation->number[0] * PAGE_BYTES;
	size_t count = 0;

	for (; left; count++) {
		uint64_t part = DP_MIN(left, (uint64_t)BLOCK_PAGES * PAGE_BYTES);

		data[count] = (struct iovec){ link->blocks[operation->block[count]].pages, part };
		left -= part;
	}
	return count;
}

/* Sends one operation, from the journal or, where `data` is given, straight from its caller. */
static int send_operation(struct link *link, uint64_t number, const struct operation *operation, const struct page_range *ranges,
			  const struct iovec *data, size_t data_count)
{
	uint64_t space = space_id(link, operation->space), cookie = COOKIE_OPERATION | number, epoch = link->epoch;
	int result = -EINVAL;

	client_set_sequence(link->client, number);
	switch ((enum kind)operation->kind) {
	case KIND_PUT:
		result = client_put(link->client, space, epoch, ranges, operation->range_count, data, data_count, cookie);
		break;
	case KIND_DROP:
		result = client_drop(link->client, space, epoch, ranges, operation->range_count, cookie);
		break;
	case KIND_MOVE:
		result = client_move(link->client, space, epoch, operation->number[0], operation->number[1], operation->number[2],
				     cookie);
		break;
	case KIND_FORK:
		result = client_fork(link->client, space, epoch, space_id(link, (uint32_t)operation->number[0]), cookie);
		break;
	case KIND_SPACE_FREE:
		result = client_space_free(link->client, space, epoch, cookie);
		break;
	}
	client_set_sequence(link->client, 0);
	return result;
}

static int send_kept(struct link *link, uint64_t number)
{
	struct operation *operation = operation_at(link, number);
	struct page_range ranges[OPERATION_RANGES];
	struct iovec data[OPERATION_BLOCKS] = { { NULL, 0 } };
	size_t count = 0;

	kept_ranges(link, operation, ranges);
	if (operation->kind == KIND_PUT)
		count = kept_pages(link, operation, data);
	return send_operation(link, number, operation, ranges, data, count);
}

/* One new operation: into the journal, and on its way if everything before it is. */
static int append(struct link *link, struct operation *fresh, const struct page_range *ranges, size_t range_count,
		  const struct iovec *data, size_t data_count, uint64_t pages)
{
	struct operation *operation = operation_at(link, link->next);

	if (link->failure)
		return link->failure;
	if (range_count > OPERATION_RANGES || pages > PUT_PAGES_LIMIT)
		return -EINVAL;
	if (link->unsettled || link->next - link->base >= SEQUENCE_WINDOW || !take_blocks(link, fresh, pages, range_count))
		return -EAGAIN;
	fresh->range_count = (uint32_t)range_count;
	fresh->asked_ns = now_of(link);
	if (link->base == link->next && !link->gets_used)
		link->heard_ns = fresh->asked_ns; /* silence begins with what waits */
	if (usable(link) && link->sent == link->next) {
		int result = send_operation(link, link->next, fresh, ranges, data, data_count);

		if ((result == -EAGAIN && !link->config.keep_all) || result == -EINVAL || result == -EMSGSIZE ||
		    result == -ENOMEM) {
			give_blocks(link, fresh);
			return result;
		}
		if (result == 0)
			link->sent++;
		else if (result != -EAGAIN)
			lost(link, result, NULL);
	}
	*operation = *fresh;
	keep_ranges(link, operation, ranges, range_count);
	keep_pages(link, operation, data, data_count);
	link->next++;
	return 0;
}

int link_put(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	     size_t data_count, uint64_t cookie)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < data_count; i++)
		bytes += data[i].iov_len;
	struct operation operation = { .kind = KIND_PUT, .space = space, .number = { bytes / PAGE_BYTES }, .cookie = cookie };

	return bytes % PAGE_BYTES ? -EINVAL : append(link, &operation, ranges, count, data, data_count, bytes / PAGE_BYTES);
}

int link_drop(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	struct operation operation = { .kind = KIND_DROP, .space = space, .cookie = cookie };

	return append(link, &operation, ranges, count, NULL, 0, 0);
}

int link_move(struct link *link, uint32_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	struct operation operation = {
		.kind = KIND_MOVE, .space = space, .number = { from_pgno, to_pgno, pages }, .cookie = cookie
	};

	return append(link, &operation, NULL, 0, NULL, 0, 0);
}

int link_fork(struct link *link, uint32_t parent, uint32_t child, uint64_t cookie)
{
	struct operation operation = { .kind = KIND_FORK, .space = parent, .number = { child }, .cookie = cookie };

	return append(link, &operation, NULL, 0, NULL, 0, 0);
}

int link_space_free(struct link *link, uint32_t space, uint64_t cookie)
{
	struct operation operation = { .kind = KIND_SPACE_FREE, .space = space, .cookie = cookie };
	int result = append(link, &operation, NULL, 0, NULL, 0, 0);

	for (uint32_t i = 0; result == 0 && i < GETS; i++)
		if (link->gets[i].used && link->gets[i].space == space)
			link->gets[i].dead = true;
	return result;
}

int link_note(struct link *link, const void *note, uint32_t bytes, uint64_t cookie)
{
	if (link->failure)
		return link->failure;
	if (bytes > NOTE_LIMIT)
		return -EMSGSIZE;
	if (link->note_waits)
		return -EAGAIN;
	if (bytes)
		memcpy(link->note, note, bytes);
	link->note_bytes = bytes;
	link->note_cookie = cookie;
	link->note_waits = true;
	link->note_sent = false;
	link->note_asked_ns = now_of(link);
	return 0;
}

bool link_has_room(const struct link *link)
{
	return !link->failure && !link->unsettled && link->next - link->base < SEQUENCE_WINDOW &&
	       link->free_blocks >= OPERATION_BLOCKS;
}

int link_order_put(struct link *link, const struct order_run *runs, size_t count, uint64_t cookie)
{
	uint32_t free_place = 0;

	while (free_place < ADVICES && link->advice[free_place])
		free_place++;
	if (!usable(link) || free_place == ADVICES || link->lost_advices)
		return -ENOTCONN;
	int result = client_order_put(link->client, link->instance, link->epoch, runs, count, COOKIE_ADVICE | free_place);

	if (result == 0)
		link->advice[free_place] = cookie;
	return result;
}

/* ---- GETs ---- */

static struct get *take_get(struct link *link)
{
	if (link->free_get == GETS)
		return NULL;
	struct get *get = &link->gets[link->free_get];

	link->free_get = get->next_free;
	link->gets_used++;
	return get;
}

static uint64_t end_get(struct link *link, struct get *get)
{
	get->used = false;
	get->next_free = (uint16_t)link->free_get;
	link->free_get = (uint32_t)(get - link->gets);
	link->gets_used--;
	return get->cookie;
}

/* Answered with zeros: its space has gone, and nobody looks. */
static int bury(struct link *link, struct get *get)
{
	struct page_range ranges[GET_RANGES_LIMIT];
	size_t count = get->count;
	uint64_t cookie = end_get(link, get);

	memcpy(ranges, get->ranges, count * sizeof(*ranges));

	for (size_t i = 0; i < count; i++)
		link->handler.on_pages(link->handler.context, cookie, ranges[i], NULL, i + 1 == count);
	return (int)count;
}

static struct client_handler own_handler(struct link *link);

/* A fresh one, from the pool's memory where it is known where the pages lie. */
static int send_get(struct link *link, const struct client_handler *handler, struct get *get)
{
	uint64_t index = (uint64_t)(get - link->gets), space = space_id(link, get->space);
	struct page_range ranges[GET_RANGES_LIMIT]; /* those of get become fewer while pages are handed over */
	size_t count = get->count;
	int result = 0;

	memcpy(ranges, get->ranges, count * sizeof(*ranges));

	link->handler = *handler;
	get->sent = true;
	if (link->config.near) {
		struct client_handler own = own_handler(link);

		link->inside++;
		result = client_get_near(link->client, &own, space, ranges, count, index);
		link->inside--;
		if (result > 0) {
			if (link->broken && !link->inside)
				lost(link, link->broken, NULL);
			return 0; /* it is answered, and its entry may be another's already */
		}
	}
	if (result == 0)
		result = client_get(link->client, (enum request_class)get->class, space, ranges, count, index);
	if (result == -EAGAIN || result == -EINVAL) {
		end_get(link, get);
		return result;
	}
	if (result < 0) {
		if (link->inside) { /* lost() will come later and count it */
			link->broken = result;
			return 0;
		}
		lost(link, result, NULL);
	}
	return 0;
}

int link_get(struct link *link, const struct client_handler *handler, enum request_class class, uint32_t space,
	     const struct page_range *ranges, size_t count, uint64_t cookie)
{
	if (link->failure)
		return link->failure;
	if (count == 0 || count > GET_RANGES_LIMIT)
		return -EINVAL;
	bool now = usable(link) && link->sent == link->next && !link->gets_unsent;
	struct get *get = take_get(link);

	if (!get)
		return -EAGAIN;
	get->used = true;
	get->sent = get->dead = false;
	get->class = (uint8_t)class;
	get->space = space;
	get->count = (uint32_t)count;
	get->cookie = cookie;
	get->asked_ns = now_of(link);
	memcpy(get->ranges, ranges, count * sizeof(*ranges));
	if (link->base == link->next && link->gets_used == 1)
		link->heard_ns = get->asked_ns;
	if (!now) {
		link->gets_unsent++;
		return 0;
	}
	return send_get(link, handler, get);
}

/* ---- answers ---- */

/* Takes what has come off what is still to come; the GET's cookie. Pages come in their order, but for those that came damaged and
 * were asked for again, which come later. */
static uint64_t moved_on(struct link *link, uint64_t cookie, struct page_range range, bool last)
{
	struct get *get = &link->gets[cookie];
	uint32_t at = 0;

	if (last)
		return end_get(link, get);
	while (at < get->count &&
	       (range.pgno < get->ranges[at].pgno || range.pgno - get->ranges[at].pgno >= get->ranges[at].pages))
		at++;
	/* The client looks that nothing comes that was not asked for. */
	assert(at < get->count && range.pages <= get->ranges[at].pages - (range.pgno - get->ranges[at].pgno));
	struct page_range *in = &get->ranges[at];
	const struct page_range behind = { range.pgno + range.pages, in->pgno + in->pages - range.pgno - range.pages };

	in->pages = range.pgno - in->pgno;
	if (in->pages && behind.pages && get->count == GET_RANGES_LIMIT) {
		end(link, -EIO, "too many pages came damaged at once");
	} else if (in->pages && behind.pages) {
		memmove(in + 2, in + 1, (get->count++ - at - 1) * sizeof(*in));
		in[1] = behind;
	} else if (behind.pages) {
		*in = behind;
	} else if (!in->pages) {
		memmove(in, in + 1, (--get->count - at) * sizeof(*in));
	}
	return get->cookie;
}

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct link *link = context;
	uint64_t own = moved_on(link, cookie, range, last);

	link->handler.on_pages(link->handler.context, own, range, data, last);
}

static void on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	struct link *link = context;
	uint64_t own = moved_on(link, cookie, range, last);

	link->handler.on_damaged(link->handler.context, own, range, last);
}

static void answered(struct link *link, uint64_t number, int result)
{
	struct operation *operation = operation_at(link, number);
	uint64_t cookie = operation->cookie;

	operation->answered = true;
	give_blocks(link, operation);
	while (link->base < link->next && operation_at(link, link->base)->answered)
		link->base++;
	link->sent = DP_MAX(link->sent, link->base);
	link->handler.on_done(link->handler.context, cookie, result);
}

static void on_done(void *context, uint64_t cookie, int result)
{
	struct link *link = context;

	if (cookie & COOKIE_OPERATION) {
		/* Damaged on its way, or behind one that was; or an older connection of ours has come late. The pool has not
		 * counted it. */
		if (result == -EBADMSG || result == -EPROTO || result == -EBUSY) {
			link->broken = link->broken ? link->broken : result;
			return;
		}
		if (result == -ESTALE) {
			end(link, -ESTALE, "the lease of the instance was taken by another");
			return;
		}
		answered(link, cookie & ~COOKIE_OPERATION, result);
	} else if (cookie & COOKIE_NOTE) {
		if (result == -EBUSY || result == -EBADMSG) {
			link->broken = link->broken ? link->broken : result;
		} else if (result == -ESTALE) {
			end(link, -ESTALE, "the lease of the instance was taken by another");
		} else {
			link->note_waits = false;
			link->handler.on_done(link->handler.context, link->note_cookie, result);
		}
	} else if (cookie & COOKIE_ADVICE) {
		uint64_t own = link->advice[cookie & 0xff];

		link->advice[cookie & 0xff] = 0;
		link->handler.on_done(link->handler.context, own, result);
	} else if (result == -ESTALE) {
		end(link, -ESTALE, "the lease of the instance was taken by another");
	} else {
		link->handler.on_done(link->handler.context, end_get(link, &link->gets[cookie]), result);
	}
}

static struct client_handler own_handler(struct link *link)
{
	return (struct client_handler){ link, on_pages, on_done, link->handler.on_damaged ? on_damaged : NULL };
}

/* What the pool said of operations whose answers were lost with the connection. */
static int tell(struct link *link)
{
	int calls = 0;

	link->telling = false;
	for (uint64_t number = link->base; number < link->next && number <= link->told.applied && !link->failure; number++) {
		int result = 0;

		if (operation_at(link, number)->answered)
			continue;
		for (uint32_t i = 0; i < link->told.failure_count; i++)
			if (link->told.failures[i].sequence == number)
				result = -link->told.failures[i].error;
		answered(link, number, result);
		calls++;
	}
	client_attached_done(&link->told);
	return calls;
}

/* Sends what waits, as far as it goes: operations first, in their order (L1). */
static int pump(struct link *link)
{
	int result = 0, calls = 0;

	if (link->note_waits && !link->note_sent) {
		result = client_note(link->client, link->instance, link->epoch, link->note, link->note_bytes, COOKIE_NOTE);
		link->note_sent = result == 0;
	}
	while (usable(link) && result == 0 && link->sent < link->next) {
		result = send_kept(link, link->sent);
		link->sent += result == 0;
	}
	if (result == 0 && link->gets_unsent && usable(link)) {
		for (uint32_t i = 0; i < GETS && result == 0 && link->gets_unsent && usable(link); i++) {
			struct get *get = &link->gets[i];

			if (!get->used || get->sent)
				continue;
			if (get->dead) {
				link->gets_unsent--;
				calls += bury(link, get);
				continue;
			}
			result = client_get(link->client, (enum request_class)get->class, space_id(link, get->space), get->ranges,
					    get->count, i);
			get->sent = result == 0;
			link->gets_unsent -= result == 0;
		}
	}
	if (result < 0 && result != -EAGAIN && link->client)
		lost(link, result, NULL);
	return calls;
}

/* A connection has been made and attached. */
static int take_connection(struct link *link, struct client *client, struct client_attached *attached)
{
	if (link->unsettled)
		link->base = link->next = link->sent = attached->applied + 1;
	link->unsettled = false;
	if (attached->applied + 1 < link->base || attached->applied >= link->next) {
		char text[200];

		snprintf(text, sizeof(text),
			 "the pool is at operation %" PRIu64 " of the instance, and %" PRIu64 " to %" PRIu64
			 " are possible: it was set back, or another has written",
			 attached->applied, link->base - 1, link->next - 1);
		client_close(client);
		client_attached_done(attached);
		return end(link, -EIO, text);
	}
	link->client = client;
	client_attached_done(&link->told);
	link->told = *attached;
	link->telling = true;
	link->epoch = attached->epoch;
	client_set_read_epoch(client, attached->epoch);
	link->sent = DP_MAX(link->base, attached->applied + 1);
	link->heard_bytes = client_bytes_received(client);
	link->heard_ns = now_of(link);
	link->attached_ns = link->heard_ns;
	link->reconnects++;
	link->why[0] = 0;
	log_info("attached to the pool again: it has %" PRIu64 " of %" PRIu64
		 " operations, %u requests for pages are asked again",
		 attached->applied, link->next - 1, link->gets_unsent);
	return 0;
}

/* Errors that another try does not mend. */
static bool is_final(int error)
{
	return error == -ESTALE || error == -ENOENT || error == -ENXIO || error == -EPROTONOSUPPORT;
}

static void try_is_over(struct link *link, int result, struct client *client, struct client_attached *attached, const char *why)
{
	if (result == 0) {
		take_connection(link, client, attached);
		return;
	}
	/* A captive store that is not there is -ENOENT before any pool was asked: it may come back with its disk. */
	if (is_final(result) && link_connector_asked(link->connector)) {
		end(link, result, why);
		return;
	}
	if (strcmp(link->why, why)) {
		snprintf(link->why, sizeof(link->why), "%s", why);
		log_warn("no connection to the pool: %s", why);
	}
	plan_retry(link);
}

static void look_at_connector(struct link *link)
{
	struct client_attached attached;
	struct client *client;
	struct dp_err err = { "" };
	int result;

	if (!link->connector || !link_connector_take(link->connector, &result, &client, &attached, &err))
		return;
	try_is_over(link, result, client, &attached, err.text);
	link_connector_free(link->connector);
	link->connector = NULL;
}

int link_receive(struct link *link, const struct client_handler *handler)
{
	int calls = 0;

	if (link->failure)
		return link->failure;
	link->handler = *handler;
	look_at_connector(link);
	while (link->lost_advices) {
		handler->on_done(handler->context, link->lost_advice[--link->lost_advices], -ENOTCONN);
		calls++;
	}
	if (link->telling)
		calls += tell(link);
	if (usable(link) && !link->inside) {
		struct client_handler own = own_handler(link);

		link->inside++;
		int result = client_receive(link->client, &own);

		link->inside--;
		if (result == -EIO && !link->handler.on_damaged)
			end(link, -EIO, "a page in the pool is damaged");
		if (result < 0 && !link->failure)
			lost(link, result, NULL);
		calls += DP_MAX(result, 0);
	}
	if (link->broken && !link->inside)
		lost(link, link->broken, NULL);
	if (usable(link) && !link->failure &&
	    (link->sent < link->next || link->gets_unsent || (link->note_waits && !link->note_sent)))
		calls += pump(link);
	return link->failure ? link->failure : calls;
}

/* ---- the clock ---- */

static uint64_t silence_limit(const struct link *link)
{
	static const uint64_t usual[3] = { UINT64_C(5000000000), UINT64_C(10000000000), UINT64_C(20000000000) };
	unsigned class = CLASS_WRITE_BACK;

	for (uint32_t i = 0; i < GETS; i++)
		if (link->gets[i].used && link->gets[i].class < class)
			class = link->gets[i].class;
	return link->config.silence_ns[class] ? link->config.silence_ns[class] : usual[class];
}

/* Something waits, and nothing has come for too long: the other side has accepted and does not answer, or a network swallows
 * all. */
static void check_silence(struct link *link, uint64_t now)
{
	uint64_t heard = client_bytes_received(link->client);

	if (heard != link->heard_bytes || (link->base == link->next && !link->gets_used && !link->note_waits)) {
		link->heard_bytes = heard;
		link->heard_ns = now;
		return;
	}
	if (now > link->heard_ns && now - link->heard_ns > silence_limit(link))
		lost(link, -ETIMEDOUT, "no answer in time");
}

static void start_try(struct link *link)
{
	struct dp_err err = { "" };
	int result = link_connector_start(&link->connector, &link->config, &link->endpoint, link->instance, link->epoch,
					  link->identity, &err);

	if (result < 0)
		try_is_over(link, result, NULL, NULL, err.text);
	else
		look_at_connector(link); /* one without a thread is ready already */
}

uint64_t link_work(struct link *link)
{
	uint64_t now = now_of(link);

	if (link->failure)
		return UINT64_MAX;
	if (link->client) {
		if (now >= link->next_check_ns) {
			check_silence(link, now);
			link->next_check_ns = now + CHECK_NS;
		}
		if (link->client)
			return link->base < link->next || link->gets_used || link->note_waits ? CHECK_NS : UINT64_MAX;
	}
	if (!link->connector && now >= link->retry_ns)
		start_try(link);
	if (link->connector || link->client || link->failure)
		return link->client || link->failure ? 0 : CHECK_NS;
	return link->retry_ns > now ? link->retry_ns - now : 0;
}

/* ---- life ---- */

static int prepare(struct link *link, struct dp_err *err)
{
	link->operations = calloc(SEQUENCE_WINDOW, sizeof(*link->operations));
	link->gets = calloc(GETS, sizeof(*link->gets)); /* touched as needed */
	link->blocks = mmap(NULL, sizeof(struct block) * BLOCKS, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	link->idle_fd = link_idle_fd();
	if (link->blocks == MAP_FAILED)
		link->blocks = NULL;
	if (!link->operations || !link->gets || !link->blocks || link->idle_fd < 0)
		return dp_fail(err, ENOMEM, "room for what is asked of the pool");
	for (uint32_t i = 0; i < GETS; i++)
		link->gets[i].next_free = (uint16_t)(i + 1);
	for (uint32_t i = 0; i < BLOCKS; i++)
		link->free_block[i] = (uint16_t)(BLOCKS - 1 - i);
	link->free_blocks = BLOCKS;
	return 0;
}

int link_new_lost(struct link **result, const struct link_config *config, const struct client_attached *attached,
		  struct dp_err *err)
{
	struct link *link = calloc(1, sizeof(*link));

	if (!link)
		return dp_fail(err, ENOMEM, "out of memory");
	link->config = *config;
	link->idle_fd = -1;
	if (config->endpoint)
		link->endpoint = *config->endpoint;
	link->instance = attached->instance;
	link->epoch = attached->epoch;
	memcpy(link->identity, attached->identity, IDENTITY_BYTES);
	link->unsettled = attached->applied == LINK_UNSETTLED;
	link->base = link->next = link->sent = link->unsettled ? 1 : attached->applied + 1;
	link->backoff_ns = LINK_BACKOFF_NS;
	link->random = (now_of(link) ^ attached->instance << 20) | 1;
	int code = prepare(link, err);

	if (code < 0) {
		link_free(link);
		return code;
	}
	link->retry_ns = link->heard_ns = now_of(link);
	*result = link;
	return 0;
}

int link_new(struct link **result, const struct link_config *config, struct client *client,
	     const struct client_attached *attached, struct dp_err *err)
{
	int code = link_new_lost(result, config, attached, err);

	if (code < 0)
		return code;
	(*result)->client = client;
	client_set_read_epoch(client, attached->epoch);
	(*result)->heard_bytes = client_bytes_received(client);
	return 0;
}

void link_free(struct link *link)
{
	if (!link)
		return;
	client_close(link->client);
	link_connector_free(link->connector);
	client_attached_done(&link->told);
	if (link->blocks)
		munmap(link->blocks, sizeof(struct block) * BLOCKS);
	free(link->operations);
	free(link->gets);
	dp_close_fd(&link->idle_fd);
	free(link);
}

int link_fd(const struct link *link)
{
	return link->client ? client_fd(link->client) : link->connector ? link_connector_fd(link->connector) : link->idle_fd;
}

bool link_wants_write(const struct link *link)
{
	return link->client && client_wants_write(link->client);
}

void link_state(const struct link *link, struct link_state *state)
{
	*state = (struct link_state){ .attached = link->client,
				      .settled = !link->unsettled,
				      .reconnects = link->reconnects,
				      .pending_operations = link->next - link->base,
				      .bytes_in = link->bytes_in,
				      .bytes_out = link->bytes_out,
				      .instance = link->instance,
				      .epoch = link->epoch,
				      .next_sequence = link->next,
				      .first_unanswered = link->base };
	if (link->client) {
		state->bytes_in += client_bytes_received(link->client);
		state->bytes_out += client_bytes_sent(link->client);
	}
	uint64_t oldest = link->note_waits ? link->note_asked_ns : UINT64_MAX;

	if (link->base < link->next)
		oldest = link->operations[link->base % SEQUENCE_WINDOW].asked_ns;
	for (uint32_t i = 0; link->gets_used && i < GETS; i++)
		if (link->gets[i].used)
			oldest = DP_MIN(oldest, link->gets[i].asked_ns);
	state->waiting_since_ns = oldest == UINT64_MAX ? 0 : oldest;
}

const char *link_why(const struct link *link)
{
	return link->why;
}

struct client *link_disown(struct link *link)
{
	struct client *client = link->client;

	link->client = NULL;
	return client;
}
