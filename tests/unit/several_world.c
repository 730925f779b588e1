#include "several_world.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/base.h"
#include "base/log.h"
#include "places.h"
#include "pool_fixture.h"

struct world world;
struct seen seen;
static struct pool_fixture pools[POOLS];
static const unsigned indexes[POOLS] = { 0, 1, 2 };

uint64_t dice(uint64_t sides)
{
	world.random ^= world.random << 13;
	world.random ^= world.random >> 7;
	world.random ^= world.random << 17;
	return (world.random >> 11) % sides;
}

/* ---- time, and places to die at ---- */

uint64_t __real_clock_now_ns(void);
uint64_t __wrap_clock_now_ns(void);
uint64_t __wrap_clock_now_ns(void)
{
	bool waits = false;
	for (unsigned i = 0; i < POOLS; i++)
		waits |= world.away[i];
	world.skew_ns += waits ? 40 * MS : MS;
	return __real_clock_now_ns() + world.skew_ns;
}

static void place(void)
{
	if (!world.armed || --world.crash_in)
		return;
	world.armed = false;
	seen.crashes++;
	longjmp(world.crash, 1);
}

#define DIE_AT(text) place()
struct mirror;
struct member;
struct mirrored;
PLACE(int, link_put,
	(struct link * link, uint32_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	size_t data_count, uint64_t cookie),
	(link, space, ranges, count, data, data_count, cookie))
PLACE(int, link_drop, (struct link *link, uint32_t space, const struct page_range *ranges, size_t count, uint64_t cookie),
	(link, space, ranges, count, cookie))
PLACE(int, link_move, (struct link *link, uint32_t space, uint64_t from, uint64_t to, uint64_t pages, uint64_t cookie),
	(link, space, from, to, pages, cookie))
PLACE(int, link_fork, (struct link *link, uint32_t parent, uint32_t child, uint64_t cookie), (link, parent, child, cookie))
PLACE(int, link_space_free, (struct link *link, uint32_t space, uint64_t cookie), (link, space, cookie))
PLACE(int, link_note, (struct link *link, const void *note, uint32_t bytes, uint64_t cookie), (link, note, bytes, cookie))
PLACE_VOID(missed_note, (struct mirror *mirror, struct member *member, const struct mirrored *operation, uint64_t sequence),
	   (mirror, member, operation, sequence))
extern void __real_missed_unanswered(struct mirror *mirror, struct member *member);
void __wrap_missed_unanswered(struct mirror *mirror, struct member *member);
void __wrap_missed_unanswered(struct mirror *mirror, struct member *member)
{
	place();
	__real_missed_unanswered(mirror, member);
	if (world.dies_leaving)
		longjmp(world.crash, 1);
	place();
}
PLACE_VOID(mirror_settle, (struct member *member), (member))
PLACE_VOID(mirror_begin_note, (struct mirror *mirror), (mirror))
PLACE_VOID(catch_up_put_back, (struct mirror *mirror, struct member *member), (mirror, member))
/* Of even seeds also between two answers. */
extern void __real_mirror_on_done(void *context, uint64_t cookie, int result);
void __wrap_mirror_on_done(void *context, uint64_t cookie, int result);
void __wrap_mirror_on_done(void *context, uint64_t cookie, int result)
{
	if (world.seed % 2 == 0)
		place();
	__real_mirror_on_done(context, cookie, result);
	if (world.seed % 2 == 0)
		place();
}
PLACE_VOID(catch_up_work, (struct mirror *mirror, struct member *member), (mirror, member))

/* ---- pages ---- */

uint64_t pgno_of(uint64_t index)
{
	return index / WINDOW * SPREAD_CHUNK_PAGES + SPREAD_CHUNK_PAGES - WINDOW / 2 + index % WINDOW;
}

static void fill(uint8_t *page, uint64_t value)
{
	fill_page(page, value & ((1u << NUMBER_BITS) - 1), value >> NUMBER_BITS);
}

static void expect(const void *page, uint64_t value, const char *who, uint32_t space, uint64_t pgno)
{
	uint8_t wanted[PAGE_BYTES] = { 0 };
	if (value)
		fill(wanted, value);
	if (page ? memcmp(page, wanted, PAGE_BYTES) != 0 : value != 0)
		fail_msg("kind %d, seed %" PRIu64 ": %s: page %" PRIu64 " of space %u is not what was written last (%" PRIx64 ")",
			 world.kind, world.seed, who, pgno, space, value);
}

/* ---- the pager's side ---- */

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	(void)context;
	(void)cookie;
	assert_true(world.reading);
	for (uint64_t i = 0; i < range.pages; i++) {
		uint64_t index = world.read_at;
		while (pgno_of(index) != range.pgno + i)
			assert_true(++index < PAGES);
		expect(data ? (const uint8_t *)data + i * PAGE_BYTES : NULL, world.model[world.read_space][index], "read",
		       world.read_space, range.pgno + i);
	}
	if (last)
		world.reading = false;
}

static void on_done(void *context, uint64_t cookie, int result)
{
	(void)context;
	if (result)
		fail_msg("kind %d, seed %" PRIu64 ": call %" PRIu64 ": %s", world.kind, world.seed, cookie, strerror(-result));
}

static int connect_pool(void *context, struct client **client, unsigned timeout_ms, struct dp_err *err)
{
	unsigned index = *(const unsigned *)context;
	if (world.away[index] && ++world.refusals % 16 == 0) /* it may be the one that all wait for */
		world.away[index] = false;
	if (world.away[index])
		return dp_fail_errno(err, ECONNREFUSED, "connect");
	int ret = client_open(client, &pools[index].endpoint, timeout_ms, err);
	if (!ret)
		world.fd[index] = client_fd(*client);
	return ret;
}

void open_source(struct client **clients)
{
	struct mirror_member members[POOLS] = { { .client = NULL } };
	struct dp_err err = { "" };
	for (unsigned i = 0; i < world.count; i++) {
		members[i].config = (struct link_config){ .compress = CLIENT_COMPRESS_OFF, .connect = connect_pool,
							  .connect_context = (void *)(uintptr_t)&indexes[i] };
		members[i].attached = world.home[i];
		members[i].client = clients ? clients[i] : NULL;
		if (!clients)
			members[i].attached = (struct client_attached){ .instance = world.home[i].instance,
									.epoch = world.home[i].epoch,
									.applied = LINK_UNSETTLED };
		memcpy(members[i].attached.identity, world.home[i].identity, sizeof(world.home[i].identity));
	}
	int ret = world.kind == SPREAD
			  ? source_spread_new(&world.inner, members, world.count, &err)
			  : source_mirror_new(&world.inner, members, world.count, world.kind == MIRROR_ACK_ONE, &err);
	if (ret)
		fail_msg("%s", err.text);
	world.inner->ops->keep(world.inner, world.saved);
	assert_int_equal(oplog_new(&world.log, world.inner, world.area), 0);
	world.log->handler = (struct source_handler){ .on_pages = on_pages, .on_done = on_done };
}

void close_source(void)
{
	world.log->ops->free(world.log);
	world.inner->ops->free(world.inner);
}

int read_put(void *context, const struct op *op, void *data)
{
	(void)context;
	for (uint32_t i = 0; i < op->count; i++)
		fill((uint8_t *)data + (uint64_t)i * PAGE_BYTES, op->page[i].slot);
	return 0;
}

int failed(void *context, const struct op *op, int result)
{
	(void)context;
	(void)op;
	return result;
}

void pump(void)
{
	struct pollfd wait = { .fd = world.inner->ops->fd(world.inner), .events = POLLIN };
	world.log->ops->work(world.log);
	poll(&wait, 1, 1);
	int ret = world.log->ops->receive(world.log);
	if (ret < 0)
		fail_msg("kind %d, seed %" PRIu64 ": the source ended: %s", world.kind, world.seed, strerror(-ret));
	if (++world.pumps % 400 == 0) /* it may be the one that the others wait for */
		memset(world.away, 0, sizeof(world.away));
}

/* ---- calls ---- */

int call_once(struct chosen *chosen, uint64_t *versions)
{
	const struct source_ops *ops = world.log->ops;
	uint64_t space = world.space[chosen->space];
	struct page_range range = { pgno_of(chosen->from), chosen->pages };
	static uint8_t content[WINDOW][PAGE_BYTES];
	struct op_page pages[WINDOW];
	struct iovec data = { content, chosen->pages * PAGE_BYTES };
	switch (chosen->call) {
	case CALL_PUT:
		for (uint64_t i = 0; i < chosen->pages; i++) {
			fill(content[i], versions[i]);
			pages[i] = (struct op_page){ range.pgno + i, versions[i] };
		}
		oplog_next_put(world.log, chosen->space + 1, pages, chosen->pages);
		return ops->put(world.log, space, &range, 1, &data, 1, 1);
	case CALL_DROP:
		return ops->drop(world.log, space, &range, 1, 2);
	case CALL_MOVE:
		return ops->move(world.log, space, range.pgno, pgno_of(chosen->to), chosen->pages, 3);
	case CALL_FORK:
		return ops->fork(world.log, space, &chosen->child_id, 4);
	case CALL_FREE:
		return ops->space_free(world.log, space, 5);
	}
	return -EINVAL;
}

void follow(const struct chosen *chosen, const uint64_t *versions)
{
	uint64_t *model = world.model[chosen->space], moved[WINDOW];
	switch (chosen->call) {
	case CALL_PUT:
		memcpy(model + chosen->from, versions, chosen->pages * sizeof(*versions));
		break;
	case CALL_DROP:
		memset(model + chosen->from, 0, chosen->pages * sizeof(*model));
		break;
	case CALL_MOVE:
		memcpy(moved, model + chosen->from, chosen->pages * sizeof(*model));
		memset(model + chosen->from, 0, chosen->pages * sizeof(*model));
		memcpy(model + chosen->to, moved, chosen->pages * sizeof(*model));
		break;
	case CALL_FORK:
		memcpy(world.model[chosen->child], model, sizeof(world.model[0]));
		world.space[chosen->child] = chosen->child_id;
		break;
	case CALL_FREE:
		world.space[chosen->space] = 0;
		break;
	}
}

/* ---- a seed ---- */

static bool all_is_done(void)
{
	struct source_health health = { 0 };
	world.inner->ops->health(world.inner, &health);
	return world.area->tail == world.area->head && health.pools_there == world.count && !health.behind_pages &&
	       !health.waiting_since_ns; /* with ack_one it is answered before all have it */
}

static void check_pool(unsigned pool)
{
	struct client *client = fixture_connect(&pools[pool]);
	static uint8_t memory[WINDOW * PAGE_BYTES];
	for (uint32_t space = 0; space < SPACES; space++)
		for (uint64_t window = 0; world.space[space] && window < 3; window++) {
			struct page_range range = { pgno_of(window * WINDOW), WINDOW };
			struct results results = { .memory = memory, .base = range.pgno, .pages = WINDOW };
			uint64_t id = world.home[pool].instance << NUMBER_BITS | (world.space[space] & ((1u << NUMBER_BITS) - 1));
			memset(memory, 0, sizeof(memory));
			assert_int_equal(client_get(client, CLASS_DEMAND, id, &range, 1, 1), 0);
			assert_int_equal(results_wait(client, &results, 1), 0);
			for (uint64_t i = 0; i < WINDOW; i++)
				if (world.kind != SPREAD || spread_place(range.pgno + i, world.count) == pool)
					expect(memory + i * PAGE_BYTES, world.model[space][window * WINDOW + i],
					       pool ? "a later pool" : "pool 0", space, range.pgno + i);
		}
	client_close(client);
}

void begin_seed(enum kind kind, uint64_t seed)
{
	struct client *clients[POOLS];
	struct dp_err err;
	struct oplog_area *area = world.area;
	uint8_t *saved = world.saved;
	memset(&world, 0, sizeof(world));
	world.area = area;
	world.saved = saved;
	memset(area, 0, sizeof(*area));
	assert_int_equal(madvise(saved, SOURCE_SAVED_BYTES, MADV_DONTNEED), 0);
	world.kind = kind;
	world.seed = seed;
	world.random = (seed + 1) * 0x9e3779b97f4a7c15u + kind;
	world.count = kind == SPREAD ? 3 : 2;
	world.version = 1;
	for (unsigned i = 0; i < world.count; i++) {
		clients[i] = fixture_connect(&pools[i]);
		assert_int_equal(client_instance_create_resumable(clients[i], "a:b", "test", &world.home[i], &err), 0);
		world.fd[i] = client_fd(clients[i]);
	}
	for (uint64_t i = 0; i < PAGES; i++)
		world.model[0][i] = pgno_of(i) < SNAPSHOT_PAGES ? UINT64_C(1) << NUMBER_BITS | pgno_of(i) : 0;
	open_source(clients);
	assert_int_equal(world.inner->ops->find_space(world.inner, 1, &world.space[0], &err), 0);
}

void come_to_rest(void)
{
	memset(world.away, 0, sizeof(world.away));
	for (unsigned rounds = 0; !all_is_done(); rounds++) {
		pump();
		if (rounds > 20000)
			fail_msg("kind %d, seed %" PRIu64 ": it does not come to rest", world.kind, world.seed);
	}
}

void end_seed(void)
{
	come_to_rest();
	for (unsigned i = 0; i < world.count; i++)
		check_pool(i);
	close_source();
	for (unsigned i = 0; i < world.count; i++) {
		struct client *client = fixture_connect(&pools[i]);
		assert_int_equal(client_instance_end(client, world.home[i].instance, world.home[i].epoch, NULL), 0);
		client_close(client);
		client_attached_done(&world.home[i]);
	}
}

/* What a pager holds while it makes changes again goes with it when it dies. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
	return "leak:oplog_replay\n";
}

int start_pools(void **state)
{
	(void)state;
	if (!getenv("DP_LOUD"))
		log_setup(-1, LOG_LEVEL_ERROR, "several");
	world.area = calloc(1, sizeof(*world.area));
	world.saved = mmap(NULL, SOURCE_SAVED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(world.area && world.saved != MAP_FAILED);
	for (unsigned i = 0; i < POOLS; i++) {
		fixture_start(&pools[i], "memory:");
		struct client *client = fixture_connect(&pools[i]);
		make_snapshot(client, "a:b", SNAPSHOT_PAGES);
		client_close(client);
	}
	return 0;
}

int stop_pools(void **state)
{
	(void)state;
	for (unsigned i = 0; i < POOLS; i++) {
		fixture_end(&pools[i]);
		remove_tree(pools[i].directory);
	}
	munmap(world.saved, SOURCE_SAVED_BYTES);
	free(world.area);
	return 0;
}
