/* Links and leases under a network that is simulated: the real client, the real link, the real pool's handling of connections,
 * requests and journals, in one thread and in a time of their own. Bytes are delayed, cut into pieces, held back; connections
 * break, on one side first, and what they still carried reaches the pool after the next one has; the network parts for a while;
 * the pool ends and comes back with its store; a writer stops, another takes its lease, and the first one comes back.
 *
 * What must hold, for every seed (DP_SEEDS of them, 1500 by default; DP_SEED=N for one):
 *   - each page that is read has a content that it had between the asking and the answer, in the order of the writer's own calls;
 *   - no operation that was answered is missing, and each was applied once (MOVE twice would show);
 *   - when a lease is taken, the instance is exactly what the operations up to the one told make of it, and nothing of an older
 *   writer is
 *     applied from then on; the older writer is told ESTALE when it hears of the pool again;
 *   - all are answered once the network is quiet. */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "base/base.h"
#include "base/log.h"
#include "client/connection.h"
#include "client/link.h"
#include "pool/connection.h"

#define SPACES 6u
#define PAGES 24u
#define HISTORY 4096u
#define PIPES 32u
#define PIPE_BYTES (1u << 20)
#define WRITERS 8u
#define MS UINT64_C(1000000)

/* What a writer's operations make of the instance. 0: no such page; UINT64_MAX in [0]: no such space. */
struct model {
	uint64_t page[SPACES][PAGES];
	bool there[SPACES];
};

/* One direction of a connection. */
struct pipe {
	uint8_t *bytes;
	size_t used, ready; /* ready: have arrived */
	bool ended;
};

struct connection_pair {
	struct stream client_stream, pool_stream; /* first: a stream's address tells the pair */
	struct pipe up, down;
	bool used, client_open, pool_open;
	bool stalled; /* nothing arrives, and nobody is told */
	struct connection *connection; /* the pool's */
};

struct writer {
	struct link *link;
	struct model *history; /* [HISTORY], by operation */
	uint64_t first, next;  /* operations first .. next - 1 were called by this writer */
	uint64_t answered;     /* all up to here */
	bool paused, stale, done;
	unsigned gets;
};

struct asked {
	bool used;
	struct writer *writer;
	uint32_t space;
	uint64_t pgno, pages, since; /* since: operations called before */
	uint64_t seen;
};

struct sim {
	uint64_t now, random, seed;
	bool parted, blocking, quiet;
	struct connection_shared shared;
	struct pool *pool;
	char store[128];
	bool keeps;
	struct connection_pair pair[PIPES];
	struct writer writer[WRITERS];
	unsigned writers;
	struct asked asked[256];
	uint64_t version;
	uint64_t instance;
	struct client_lease lease; /* as the last taker noted it */
	unsigned steps_waited;
	uint64_t openings;
	unsigned unheard; /* leases that were asked for without an answer */
	bool owed;        /* one of them was taken */
};

static struct sim *world;
/* over all seeds: that it happens at all */
static struct { uint64_t operations, gets, reconnects, take_overs, restarts, breaks; } seen;

static uint64_t dice(uint64_t sides)
{
	world->random ^= world->random << 13;
	world->random ^= world->random >> 7;
	world->random ^= world->random << 17;
	return sides ? (world->random >> 11) % sides : 0;
}

/* ---- the network ---- */

static struct connection_pair *of_client(struct stream *stream)
{
	return (struct connection_pair *)stream;
}

static struct connection_pair *of_pool(struct stream *stream)
{
	return (struct connection_pair *)((char *)stream - offsetof(struct connection_pair, pool_stream));
}

static ssize_t send_to(struct pipe *pipe, const struct iovec *iov, int count)
{
	size_t room = PIPE_BYTES - pipe->used, sent = 0;

	if (!room)
		return -EAGAIN;
	if (dice(4) == 0)
		room = DP_MIN(room, 1 + dice(9000));
	for (int i = 0; i < count && room; i++) {
		size_t part = DP_MIN(room, iov[i].iov_len);

		if (part)
			memcpy(pipe->bytes + pipe->used, iov[i].iov_base, part);
		pipe->used += part;
		sent += part;
		room -= part;
	}
	return (ssize_t)sent;
}

static ssize_t receive_from(struct pipe *pipe, void *buffer, size_t bytes)
{
	size_t part = DP_MIN(bytes, pipe->ready);

	if (!part)
		return pipe->ended && !pipe->used ? 0 : -EAGAIN;
	memcpy(buffer, pipe->bytes, part);
	memmove(pipe->bytes, pipe->bytes + part, pipe->used - part);
	pipe->used -= part;
	pipe->ready -= part;
	return (ssize_t)part;
}

static void step(void);

static ssize_t client_sendv(struct stream *stream, const struct iovec *iov, int count)
{
	struct connection_pair *pair = of_client(stream);

	return pair->client_open && !pair->down.ended ? send_to(&pair->up, iov, count) : -ECONNRESET;
}

/* While the other side is waited for, time goes on. */
static ssize_t client_receive_bytes(struct stream *stream, void *buffer, size_t bytes)
{
	struct connection_pair *pair = of_client(stream);

	for (;;) {
		ssize_t got = pair->client_open ? receive_from(&pair->down, buffer, bytes) : -ECONNRESET;

		if (got != -EAGAIN || !world->blocking)
			return got;
		if (++world->steps_waited > 300)
			return -ETIMEDOUT;
		step();
	}
}

static void pair_settle(struct connection_pair *pair)
{
	if (pair->client_open || pair->pool_open || !pair->used)
		return;
	free(pair->up.bytes);
	free(pair->down.bytes);
	pair->used = false;
}

/* What was sent may still arrive: the pool learns of the end behind it. */
static void client_close_stream(struct stream *stream)
{
	struct connection_pair *pair = of_client(stream);

	close(pair->client_stream.fd);
	pair->client_open = false;
	pair->up.ended = true;
	pair_settle(pair);
}

static ssize_t pool_sendv(struct stream *stream, const struct iovec *iov, int count)
{
	struct connection_pair *pair = of_pool(stream);

	if (!pair->client_open || pair->down.ended) { /* into nothing */
		size_t all = 0;

		for (int i = 0; i < count; i++)
			all += iov[i].iov_len;
		return (ssize_t)all;
	}
	return send_to(&pair->down, iov, count);
}

static ssize_t pool_receive(struct stream *stream, void *buffer, size_t bytes)
{
	return receive_from(&of_pool(stream)->up, buffer, bytes);
}

static void pool_close_stream(struct stream *stream)
{
	struct connection_pair *pair = of_pool(stream);

	pair->pool_open = false;
	pair->connection = NULL;
	pair->down.ended = true;
	pair_settle(pair);
}

static void pool_identity(const struct stream *stream, char *identity, size_t size)
{
	(void)stream;
	snprintf(identity, size, "anonymous");
}

static const struct stream_ops client_ops = { .sendv = client_sendv,
					      .receive = client_receive_bytes,
					      .close = client_close_stream };
static const struct stream_ops pool_ops = { .sendv = pool_sendv, .receive = pool_receive, .close = pool_close_stream,
					    .identity = pool_identity };

static struct connection_pair *new_pair(void)
{
	for (size_t i = 0; i < PIPES; i++) {
		struct connection_pair *pair = &world->pair[i];

		if (pair->used)
			continue;
		*pair = (struct connection_pair){ .used = true, .client_open = true, .pool_open = true };
		/* poll(2) never waits on it */
		pair->client_stream = (struct stream){ &client_ops, eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK) };
		pair->pool_stream = (struct stream){ &pool_ops, -1 };
		pair->up.bytes = malloc(PIPE_BYTES);
		pair->down.bytes = malloc(PIPE_BYTES);
		assert_true(pair->up.bytes && pair->down.bytes);
		return pair;
	}
	return NULL;
}

static void arrive(struct pipe *pipe)
{
	size_t under_way = pipe->used - pipe->ready;

	if (under_way && dice(3))
		pipe->ready += world->quiet || dice(3) ? under_way : 1 + dice(under_way);
}

static void serve(struct connection_pair *pair)
{
	struct connection *connection = pair->connection;

	if (!connection || !pair->pool_open)
		return;
	int result = connection_wants_write(connection) ? connection_writable(connection) : 0;

	for (int turns = 0; turns < 4 && result == 0 && connection_wants_read(connection) && (pair->up.ready || pair->up.ended);
	     turns++) {
		bool end = pair->up.ended && !pair->up.used;

		result = connection_readable(connection);
		if (end)
			break;
	}
	if (result < 0)
		connection_free(connection);
}

/* Breaks a connection on the client's side; what it has sent stays under way, perhaps for long. */
static void break_one(void)
{
	struct connection_pair *pair = &world->pair[dice(PIPES)];

	for (size_t i = 0; i < PIPES && !(pair->used && pair->client_open && pair->pool_open); i++)
		pair = &world->pair[dice(PIPES)];
	if (pair->used && pair->client_open && pair->pool_open) {
		seen.breaks++;
		pair->stalled = dice(2);
		pair->down.ended = true;
		pair->down.used = pair->down.ready = 0;
		if (dice(3) == 0) /* lost for good: the tail of what was sent */
			pair->up.used = pair->up.ready + dice(pair->up.used - pair->up.ready + 1);
	}
}

static void pool_open_again(void)
{
	struct store *store;
	struct dp_err err;

	if (store_open(&store, world->store, true, &err) < 0 || pool_open(&world->pool, store, &err) < 0)
		fail_msg("%s", err.text);
	world->shared.pool = world->pool;
}

static void sim_open_again(void)
{
	pool_open_again();
	world->pool->next_id = ++world->openings * 1000; /* a seed is the same each time */
}

/* kill -9: what was not answered may or may not have been done; what is on its way to the clients may still arrive. */
static void pool_ends(void)
{
	for (size_t i = 0; i < PIPES; i++) {
		struct connection_pair *pair = &world->pair[i];

		if (!pair->used || !pair->connection)
			continue;
		pair->up.used = pair->up.ready = 0;
		connection_free(pair->connection);
	}
	seen.restarts++;
	pool_close(world->pool);
	sim_open_again();
}

static void step(void)
{
	world->now += 1 + dice(20 * MS);
	if (!world->quiet) {
		if (dice(60) == 0)
			world->parted = !world->parted && dice(2);
		if (dice(50) == 0)
			break_one();
		if (world->keeps && dice(150) == 0)
			pool_ends();
	}
	for (size_t n = 0, i = dice(PIPES); n < PIPES; n++, i = (i + 1) % PIPES) {
		struct connection_pair *pair = &world->pair[i];

		if (!pair->used)
			continue;
		if (pair->stalled && (world->quiet || dice(30) == 0))
			pair->stalled = false;
		if (!world->parted && !pair->stalled) {
			arrive(&pair->up);
			arrive(&pair->down);
		}
		serve(pair);
	}
}

/* One that accepts and may never answer. */
static int sim_connect(void *context, struct client **client, unsigned timeout_ms, struct dp_err *err)
{
	struct connection_pair *pair = world->parted && dice(2) ? NULL : new_pair();

	(void)context;
	if (!pair)
		return dp_fail_errno(err, ECONNREFUSED, "connect");
	pair->connection = connection_new(&world->shared, &pair->pool_stream);
	assert_non_null(pair->connection);
	world->blocking = true;
	world->steps_waited = 0;
	return client_open_stream(client, &pair->client_stream, "sim", timeout_ms, err);
}

/* The attachment behind it waits too; what blocks is over when the link goes on. */
static uint64_t sim_clock(void *context)
{
	(void)context;
	return world->now;
}

static struct link_config config_of_sim(void)
{
	return (struct link_config){ .compress = CLIENT_COMPRESS_OFF, .connect = sim_connect, .clock = sim_clock,
				     .silence_ns = { 400 * MS, 600 * MS, 900 * MS } };
}

/* ---- writers ---- */

static void fill(uint8_t *page, uint64_t version)
{
	memset(page, (int)(version % 255 + 1), PAGE_BYTES);
	memcpy(page, &version, sizeof(version));
	memcpy(page + PAGE_BYTES - sizeof(version), &version, sizeof(version));
}

static uint64_t version_of(const uint8_t *page)
{
	uint64_t first, last;

	memcpy(&first, page, sizeof(first));
	memcpy(&last, page + PAGE_BYTES - sizeof(last), sizeof(last));
	assert_int_equal(first, last);
	return first;
}

static void check_page(const struct asked *asked, uint64_t pgno, uint64_t version)
{
	const struct writer *writer = asked->writer;

	for (uint64_t number = asked->since; number < writer->next; number++) {
		const struct model *model = &writer->history[number - writer->first + 1];

		if (!model->there[asked->space - 1] || model->page[asked->space - 1][pgno] == version)
			return;
	}
	fail_msg("seed %" PRIu64 ": page %" PRIu64 " of space %u is of version %" PRIu64
		 ", which it had not since operation %" PRIu64,
		 world->seed, pgno, asked->space, version, asked->since);
}

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct writer *writer = context;
	struct asked *asked = &world->asked[cookie & 0xff];

	assert_true(asked->used && asked->writer == writer && cookie >> 63 == 0);
	assert_int_equal(range.pgno, asked->pgno + asked->seen);
	for (uint64_t i = 0; i < range.pages; i++)
		check_page(asked, range.pgno + i, data ? version_of((const uint8_t *)data + i * PAGE_BYTES) : 0);
	asked->seen += range.pages;
	assert_int_equal(last, asked->seen == asked->pages);
	if (last) {
		asked->used = false;
		writer->gets--;
	}
}

static void on_done(void *context, uint64_t cookie, int result)
{
	struct writer *writer = context;

	if (result)
		fail_msg("seed %" PRIu64 ": operation %" PRIu64 ": %s", world->seed, cookie, strerror(-result));
	/* Once each, and in order: the pool handles them so, and so does what it tells when we attach. */
	assert_int_equal(cookie, writer->answered + 1);
	writer->answered = cookie;
}

static struct client_handler handler_of(struct writer *writer)
{
	return (struct client_handler){ .context = writer, .on_pages = on_pages, .on_done = on_done };
}

static int put_some(struct writer *writer, struct model *after)
{
	static uint8_t pages[8][PAGE_BYTES];
	uint32_t space = (uint32_t)dice(SPACES);
	struct page_range range = { dice(PAGES), 1 + dice(6) };

	range.pages = DP_MIN(range.pages, PAGES - range.pgno);
	if (!after->there[space])
		return -EAGAIN;
	for (uint64_t i = 0; i < range.pages; i++) {
		uint64_t version = dice(9) ? ++world->version : 0;

		if (version)
			fill(pages[i], version);
		else
			memset(pages[i], 0, PAGE_BYTES);
		after->page[space][range.pgno + i] = version;
	}
	const struct iovec data = { pages, range.pages * PAGE_BYTES };

	return link_put(writer->link, space + 1, &range, 1, &data, 1, writer->next);
}

static int drop_some(struct writer *writer, struct model *after)
{
	uint32_t space = (uint32_t)dice(SPACES);
	const struct page_range ranges[3] = { { dice(8), 1 + dice(3) }, { 10 + dice(3), 1 }, { 15 + dice(3), 1 + dice(4) } };
	size_t count = 1 + dice(3);

	if (!after->there[space])
		return -EAGAIN;
	for (size_t i = 0; i < count; i++)
		memset(&after->page[space][ranges[i].pgno], 0, ranges[i].pages * sizeof(uint64_t));
	return link_drop(writer->link, space + 1, ranges, count, writer->next);
}

static int move_some(struct writer *writer, struct model *after)
{
	uint32_t space = (uint32_t)dice(SPACES);
	uint64_t pages = 1 + dice(5), from = dice(PAGES - pages), to = dice(PAGES - pages), copy[PAGES];

	if (!after->there[space] || from == to)
		return -EAGAIN;
	memcpy(copy, after->page[space], sizeof(copy));
	memset(&after->page[space][from], 0, pages * sizeof(uint64_t));
	memcpy(&after->page[space][to], copy + from, pages * sizeof(uint64_t));
	return link_move(writer->link, space + 1, from, to, pages, writer->next);
}

static int fork_or_free(struct writer *writer, struct model *after)
{
	uint32_t parent = (uint32_t)dice(SPACES), child = (uint32_t)(1 + dice(SPACES - 1));

	if (after->there[child]) {
		after->there[child] = false;
		return link_space_free(writer->link, child + 1, writer->next);
	}
	if (!after->there[parent])
		return -EAGAIN;
	after->there[child] = true;
	memcpy(after->page[child], after->page[parent], sizeof(after->page[child]));
	return link_fork(writer->link, parent + 1, child + 1, writer->next);
}

static void operate(struct writer *writer)
{
	if (writer->next - writer->first + 2 >= HISTORY)
		return;
	struct model *after = &writer->history[writer->next - writer->first + 1];

	*after = *(after - 1);
	uint64_t what = dice(10);
	int result = what < 5	? put_some(writer, after)
		     : what < 6 ? drop_some(writer, after)
		     : what < 8 ? move_some(writer, after)
				: fork_or_free(writer, after);
	if (result == 0)
		writer->next++;
	else if (result != -EAGAIN)
		assert_int_equal(result, -ESTALE);
}

static void ask(struct writer *writer)
{
	struct client_handler handler = handler_of(writer);
	const struct model *model = &writer->history[writer->next - writer->first];
	uint32_t space = (uint32_t)dice(SPACES);
	size_t free_place = 0;

	while (free_place < ARRAY_LENGTH(world->asked) && world->asked[free_place].used)
		free_place++;
	if (free_place == ARRAY_LENGTH(world->asked) || !model->there[space])
		return;
	struct asked *asked = &world->asked[free_place];

	*asked = (struct asked){
		.used = true, .writer = writer, .space = space + 1, .pgno = dice(PAGES - 4), .since = writer->next - 1
	};
	asked->pages = 1 + dice(PAGES - asked->pgno);
	struct page_range range = { asked->pgno, asked->pages };

	writer->gets++;
	seen.gets++;
	int result = link_get(writer->link, &handler, (enum request_class)dice(2), space + 1, &range, 1, free_place);

	if (result < 0) {
		assert_true(result == -EAGAIN || result == -ESTALE);
		asked->used = false;
		writer->gets--;
	}
}

static void live(struct writer *writer)
{
	struct client_handler handler = handler_of(writer);

	if (writer->stale || !writer->link)
		return;
	link_work(writer->link);
	world->blocking = false;
	int result = link_receive(writer->link, &handler);

	if (result < 0) {
		if (result != -ESTALE)
			fail_msg("seed %" PRIu64 ": the link ended: %s: %s", world->seed, strerror(-result),
				 link_why(writer->link));
		/* The newest only where somebody's taking of the lease arrived whose answer was lost: he tries again. */
		if (writer == &world->writer[world->writers - 1]) {
			assert_true(world->unheard > 0);
			world->unheard--;
			world->owed = true;
		}
		writer->stale = true;
		for (size_t i = 0; i < ARRAY_LENGTH(world->asked); i++)
			if (world->asked[i].writer == writer)
				world->asked[i].used = false;
		writer->gets = 0;
	}
}

/* The pool has exactly this. */
static void check_pool(const struct model *model)
{
	for (uint32_t i = 0; i < SPACES; i++) {
		const struct space *space = pool_space(world->pool, world->instance << SPACE_NUMBER_BITS | (i + 1));
		uint64_t slots[PAGES];

		assert_int_equal(space != NULL, model->there[i]);
		if (!space)
			continue;
		pagemap_read(&space->map, 0, slots, PAGES);
		for (uint64_t pgno = 0; pgno < PAGES; pgno++) {
			const uint8_t *page = slots[pgno] ? world->pool->store->ops->page(world->pool->store, slots[pgno]) : NULL;
			uint64_t version = page ? version_of(page) : 0;

			if (version != model->page[i][pgno])
				fail_msg("seed %" PRIu64 ": page %" PRIu64 " of space %u in the pool is of version %" PRIu64
					 ", not %" PRIu64,
					 world->seed, pgno, i + 1, version, model->page[i][pgno]);
		}
	}
}

static struct model histories[WRITERS][HISTORY];

static void begin_writer(struct client *client, struct client_attached *attached, const struct model *state)
{
	struct writer *writer = &world->writer[world->writers];
	struct link_config config = config_of_sim();
	struct dp_err err;

	*writer = (struct writer){ .history = histories[world->writers],
				   .first = attached->applied + 1,
				   .next = attached->applied + 1,
				   .answered = attached->applied };
	writer->history[0] = *state;
	assert_int_equal(link_new(&writer->link, &config, client, attached, &err), 0);
	client_attached_done(attached);
	world->writers++;
}

/* Or the taker dies just before. */
static int note_lease(void *context, const struct client_lease *lease)
{
	(void)context;
	if (dice(8) == 0)
		return -EINTR;
	world->lease = *lease;
	return 0;
}

/* Another takes the lease, if the network lets it. Nobody else does, so whatever was not heard before, it is never said to be
 * another's. */
static void take_over(void)
{
	struct writer *old = &world->writer[world->writers - 1];
	struct client_lease lease = world->lease;
	struct client_attached attached;
	struct client *client;
	struct dp_err err;

	if (sim_connect(NULL, &client, 5000, &err) < 0) {
		world->blocking = false;
		return;
	}
	world->steps_waited = 0;
	int result = client_take_over(client, &lease, note_lease, NULL, 5000, &attached, &err);

	world->blocking = false;
	if (result == -ESTALE)
		fail_msg("seed %" PRIu64 ": a lease is lost that nobody else took", world->seed);
	if (result < 0) {
		client_close(client);
		world->unheard++;
		return;
	}
	world->owed = false;
	if (attached.applied < old->answered || attached.applied >= old->next)
		fail_msg("seed %" PRIu64 ": operation %" PRIu64 " was answered, and %" PRIu64 " is the last", world->seed,
			 old->answered, attached.applied);
	const struct model *state = &old->history[attached.applied - old->first + 1];

	check_pool(state);
	begin_writer(client, &attached, state);
}

/* ---- a seed ---- */

static void make_instance(void)
{
	struct client_attached attached;
	struct model state = { .there = { true } };
	struct client *client;
	struct dp_err err;
	uint64_t draft, space;

	world->quiet = true;
	assert_int_equal(sim_connect(NULL, &client, 5000, &err), 0);
	assert_int_equal(client_snapshot_begin(client, "r", true, &draft, &err), 0);
	assert_int_equal(client_snapshot_space(client, draft, 1, &space, &err), 0);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), 0);
	world->steps_waited = 0;
	if (client_instance_create_resumable(client, "r", "i", &attached, &err) < 0)
		fail_msg("%s", err.text);
	world->blocking = world->quiet = false;
	world->instance = attached.instance;
	world->lease = (struct client_lease){ .instance = attached.instance, .epoch = attached.epoch };
	memcpy(world->lease.identity, attached.identity, sizeof(world->lease.identity));
	begin_writer(client, &attached, &state);
}

static bool all_quiet(void)
{
	if (world->owed)
		return false;
	for (unsigned i = 0; i < world->writers; i++) {
		const struct writer *writer = &world->writer[i];

		if (i + 1 < world->writers ? !writer->stale : writer->gets || writer->answered + 1 < writer->next)
			return false;
	}
	return true;
}

static void run_seed(uint64_t seed, const char *directory)
{
	static struct sim sim;
	unsigned rounds;

	memset(&sim, 0, sizeof(sim));
	world = &sim;
	world->seed = seed;
	world->random = (seed + 1) * 0x9e3779b97f4a7c15u;
	world->now = 1000 * MS;
	world->keeps = seed % 8 == 0;
	snprintf(world->store, sizeof(world->store), world->keeps ? "dir:%s/%" PRIu64 : "memory:%.0s8M", directory, seed);
	sim_open_again();
	make_instance();
	for (rounds = 0; rounds < 300; rounds++) {
		for (unsigned i = 0; i < world->writers; i++) {
			struct writer *writer = &world->writer[i];

			if (dice(writer->paused ? 8 : 40) == 0)
				writer->paused = !writer->paused;
			if (writer->paused || writer->stale)
				continue;
			for (uint64_t calls = dice(4); calls; calls--)
				dice(3) ? operate(writer) : ask(writer);
			live(writer);
		}
		if (world->writers < WRITERS && (world->owed || (world->writers < 3 && dice(250) == 0)))
			take_over();
		step();
	}
	world->quiet = true;
	world->parted = false;
	for (rounds = 0; rounds < 2000 && !all_quiet(); rounds++) {
		for (unsigned i = 0; i < world->writers; i++) {
			if (i + 1 < world->writers && !world->writer[i].stale &&
			    world->writer[i].answered + 1 == world->writer[i].next)
				operate(&world->writer[i]); /* the older one has something to say, and is told */
			live(&world->writer[i]);
		}
		if (world->owed && world->writers < WRITERS)
			take_over();
		step();
	}
	if (!all_quiet())
		fail_msg("seed %" PRIu64 ": something was never answered", seed);
	const struct writer *last = &world->writer[world->writers - 1];

	check_pool(&last->history[last->next - last->first]);
	for (unsigned i = 0; i < world->writers; i++) {
		struct link_state state;

		link_state(world->writer[i].link, &state);
		seen.reconnects += state.reconnects;
		seen.operations += world->writer[i].next - world->writer[i].first;
		link_free(world->writer[i].link);
	}
	seen.take_overs += world->writers - 1;
	for (size_t i = 0; i < PIPES; i++)
		if (world->pair[i].used && world->pair[i].connection)
			connection_free(world->pair[i].connection);
	connection_shared_done(&world->shared);
	pool_close(world->pool);
}

static void links__simulated_network__nothing_is_lost_doubled_or_written_by_an_older_lease(void **state)
{
	const char *one = getenv("DP_SEED"), *many = getenv("DP_SEEDS");
	uint64_t first = one ? strtoull(one, NULL, 10) : 0, count = one ? 1 : many ? strtoull(many, NULL, 10) : 1500;
	char directory[] = "/dev/shm/dp-links-XXXXXX";

	(void)state;
	assert_non_null(mkdtemp(directory));
	if (!getenv("DP_LOUD"))
		log_setup(-1, LOG_LEVEL_ERROR, "links");
	for (uint64_t seed = first; seed < first + count; seed++)
		run_seed(seed, directory);
	remove_tree(directory);
	print_message("%" PRIu64 " operations, %" PRIu64 " reads, %" PRIu64 " connections broken and %" PRIu64
		      " made again, %" PRIu64 " leases taken, %" PRIu64 " restarts of the pool\n",
		      seen.operations, seen.gets, seen.breaks, seen.reconnects, seen.take_overs, seen.restarts);
	if (count >= 500)
		assert_true(seen.reconnects > count && seen.take_overs > count / 10 && seen.restarts > count / 20);
}

/* A pool that is started several times within a second, with instances that outlive it: a writer of then never meets an object of
 * now. */
static void ids__restarts_within_a_second__none_comes_again(void **state)
{
	char directory[] = "/dev/shm/dp-ids-XXXXXX", path[64];
	uint64_t ids[64], draft;
	size_t count = 0;
	struct object *instance;
	struct dp_err err;

	(void)state;
	static struct sim sim;
	world = &sim;
	assert_non_null(mkdtemp(directory));
	snprintf(world->store, sizeof(world->store), "dir:%s/store", directory);
	for (unsigned start = 0; start < 8; start++) {
		pool_open_again();
		assert_int_equal(world->pool->instance_count, 3 * start);
		assert_int_equal(pool_snapshot_begin(world->pool, NULL, "of:it", true, &draft, &err), 0);
		assert_int_equal(pool_snapshot_commit_begin(world->pool, NULL, draft, "{}", 2, &err), 0);
		assert_int_equal(pool_snapshot_commit_finish(world->pool, NULL, draft, 0, &err), 0);
		ids[count++] = draft;
		for (unsigned i = 0; i < 3; i++, count++) {
			assert_int_equal(pool_instance_create(world->pool, NULL, "of:it", "i", INSTANCE_FLAG_KEEP | INSTANCE_FLAG_RESUME,
							      &instance, &err), 0);
			ids[count] = instance->id;
		}
		for (size_t i = 0; i < count; i++)
			for (size_t k = 0; k < i; k++)
				assert_int_not_equal(ids[i], ids[k]);
		pool_close(world->pool);
	}
	snprintf(path, sizeof(path), "%s/store/blobs/ids", directory);
	assert_int_equal(truncate(path, 3), 0);
	pool_open_again(); /* opens all the same */
	assert_int_equal(world->pool->instance_count, 24);
	pool_close(world->pool);
	remove_tree(directory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ids__restarts_within_a_second__none_comes_again),
		cmocka_unit_test(links__simulated_network__nothing_is_lost_doubled_or_written_by_an_older_lease),
	};

	return cmocka_run_group_tests_name("links", tests, NULL, NULL);
}
