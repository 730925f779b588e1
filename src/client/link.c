#include "client/link.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "client/link_inside.h"

/* ---- losing and ending ---- */

int link_end(struct link *link, int error, const char *why)
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
	link->retry_ns = link_now(link) + link->backoff_ns / 2 + random_of(link) % (link->backoff_ns + 1);
	link->backoff_ns = DP_MIN(link->backoff_ns * 2, LINK_BACKOFF_LIMIT_NS);
}

void link_lost(struct link *link, int error, const char *why)
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
	if (link_now(link) - link->attached_ns < LINK_BACKOFF_LIMIT_NS) {
		plan_retry(link);
	} else {
		link->backoff_ns = LINK_BACKOFF_NS;
		link->retry_ns = link_now(link);
	}
}

/* ---- connections ---- */

/* What the pool said of operations whose answers were lost with the connection. */
static int tell(struct link *link)
{
	int calls = 0;

	link->telling = false;
	for (uint64_t number = link->base; number < link->next && number <= link->told.applied && !link->failure; number++) {
		int result = 0;

		if (link_operation(link, number)->answered)
			continue;
		for (uint32_t i = 0; i < link->told.failure_count; i++)
			if (link->told.failures[i].sequence == number)
				result = -link->told.failures[i].error;
		link_answered(link, number, result);
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
	while (link_is_usable(link) && result == 0 && link->sent < link->next) {
		result = link_send_kept(link, link->sent);
		link->sent += result == 0;
	}
	if (result == 0 && link->gets_unsent && link_is_usable(link)) {
		for (uint32_t i = 0; i < GETS && result == 0 && link->gets_unsent && link_is_usable(link); i++) {
			struct get *get = &link->gets[i];

			if (!get->used || get->sent)
				continue;
			if (get->dead) {
				link->gets_unsent--;
				calls += link_bury(link, get);
				continue;
			}
			result = client_get(link->client, (enum request_class)get->class, link_space_id(link, get->space),
					    get->ranges, get->count, i);
			get->sent = result == 0;
			link->gets_unsent -= result == 0;
		}
	}
	if (result < 0 && result != -EAGAIN && link->client)
		link_lost(link, result, NULL);
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
		return link_end(link, -EIO, text);
	}
	link->client = client;
	client_attached_done(&link->told);
	link->told = *attached;
	link->telling = true;
	link->epoch = attached->epoch;
	client_set_read_epoch(client, attached->epoch);
	link->sent = DP_MAX(link->base, attached->applied + 1);
	link->heard_bytes = client_bytes_received(client);
	link->heard_ns = link_now(link);
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
		link_end(link, result, why);
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
	if (link_is_usable(link) && !link->inside) {
		struct client_handler own = link_own_handler(link);

		link->inside++;
		int result = client_receive(link->client, &own);

		link->inside--;
		if (result == -EIO && !link->handler.on_damaged)
			link_end(link, -EIO, "a page in the pool is damaged");
		if (result < 0 && !link->failure)
			link_lost(link, result, NULL);
		calls += DP_MAX(result, 0);
	}
	if (link->broken && !link->inside)
		link_lost(link, link->broken, NULL);
	if (link_is_usable(link) && !link->failure &&
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
		link_lost(link, -ETIMEDOUT, "no answer in time");
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
	uint64_t now = link_now(link);

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
	link->random = (link_now(link) ^ attached->instance << 20) | 1;
	int code = prepare(link, err);

	if (code < 0) {
		link_free(link);
		return code;
	}
	link->retry_ns = link->heard_ns = link_now(link);
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
