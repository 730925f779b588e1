#include "pager/source_pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

struct source_pool {
	struct source source;
	struct link *link;
	uint64_t instance;
	struct snapshot_space *spaces;
	size_t space_count;
	uint64_t next_child; /* number of the next forked space; see client_fork */
	uint32_t *freed;     /* numbers that were freed: the pool has forgotten them when it gets the next request */
	size_t freed_count, freed_room;
	uint64_t applied;    /* when we attached */
};

#define SPACE_BITS 20

static struct source_pool *of(const struct source *source)
{
	return (struct source_pool *)source;
}

static uint32_t number_of(uint64_t space)
{
	return (uint32_t)(space & ((1u << SPACE_BITS) - 1));
}

static int find_space(struct source *source, int vpid, uint64_t *space, struct dp_err *err)
{
	const struct source_pool *pool = of(source);
	for (size_t i = 0; i < pool->space_count; i++)
		if (pool->spaces[i].label == (uint64_t)vpid) {
			*space = pool->spaces[i].space;
			return 0;
		}
	return dp_fail(err, ENOENT, "the snapshot has no pages of task %d", vpid);
}

static struct client_handler handler_of(const struct source *source)
{
	return (struct client_handler){ .context = source->handler.context, .on_pages = source->handler.on_pages,
					.on_done = source->handler.on_done, .on_damaged = source->handler.on_damaged };
}

static int get(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	struct client_handler handler = handler_of(source);
	return link_get(of(source)->link, &handler, class, number_of(space), ranges, count, cookie);
}

static int put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	       size_t data_count, uint64_t cookie)
{
	return link_put(of(source)->link, number_of(space), ranges, count, data, data_count, cookie);
}

static int drop(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	return link_drop(of(source)->link, number_of(space), ranges, count, cookie);
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	return link_move(of(source)->link, number_of(space), from_pgno, to_pgno, pages, cookie);
}

/* 0: no id is left. */
static uint64_t choose_number(const struct source_pool *pool)
{
	if (pool->freed_count)
		return pool->freed[pool->freed_count - 1];
	return pool->next_child >> SPACE_BITS ? 0 : pool->next_child;
}

/* A number that a dead pager had given is in use again. */
static void keep_from_choice(struct source_pool *pool, uint64_t number)
{
	pool->next_child = DP_MAX(pool->next_child, number + 1);
	for (size_t i = 0; i < pool->freed_count; i++)
		if (pool->freed[i] == number)
			pool->freed[i--] = pool->freed[--pool->freed_count];
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	struct source_pool *pool = of(source);
	bool given = *child;
	uint64_t number = given ? number_of(*child) : choose_number(pool);
	if (!number)
		return -EOVERFLOW; /* a million forked children alive */
	int ret = link_fork(pool->link, number_of(parent), (uint32_t)number, cookie);
	if (ret)
		return ret;
	if (given)
		keep_from_choice(pool, number);
	else if (pool->freed_count)
		pool->freed_count--;
	else
		pool->next_child++;
	*child = (parent >> SPACE_BITS << SPACE_BITS) | number;
	return 0;
}

static int space_free(struct source *source, uint64_t space, uint64_t cookie)
{
	struct source_pool *pool = of(source);
	int ret = link_space_free(pool->link, number_of(space), cookie);
	if (!ret && pool->freed_count == pool->freed_room) {
		size_t room = pool->freed_room * 2 + 64;
		uint32_t *larger = realloc(pool->freed, room * sizeof(*larger));
		if (!larger)
			return ret; /* this id is not used again, that is all */
		pool->freed = larger;
		pool->freed_room = room;
	}
	if (!ret)
		pool->freed[pool->freed_count++] = number_of(space);
	return ret;
}

static int resume(struct source *source, uint64_t highest_child, uint64_t *applied)
{
	struct source_pool *pool = of(source);
	pool->next_child = DP_MAX(pool->next_child, (uint64_t)number_of(highest_child) + 1);
	*applied = pool->applied;
	return 0;
}

static int order_put(struct source *source, const struct order_run *runs, size_t count, uint64_t cookie)
{
	return link_order_put(of(source)->link, runs, count, cookie);
}

static int receive(struct source *source)
{
	struct client_handler handler = handler_of(source);
	return link_receive(of(source)->link, &handler);
}

static uint64_t work(struct source *source)
{
	return link_work(of(source)->link);
}

static void health(const struct source *source, struct source_health *health)
{
	struct link_state state;
	link_state(of(source)->link, &state);
	health->waiting_since_ns = state.waiting_since_ns;
	health->reconnects = state.reconnects;
	health->pools = 1;
	health->pools_there = state.attached;
	health->why = link_why(of(source)->link);
}

static int fd(const struct source *source)
{
	return link_fd(of(source)->link);
}

static bool wants_write(const struct source *source)
{
	return link_wants_write(of(source)->link);
}

static void bytes(const struct source *source, uint64_t *in, uint64_t *out)
{
	struct link_state state;
	link_state(of(source)->link, &state);
	*in = state.bytes_in;
	*out = state.bytes_out;
}

static void source_free(struct source *source)
{
	link_free(of(source)->link);
	free(of(source)->spaces);
	free(of(source)->freed);
	free(source);
}

static const struct source_ops pool_ops = {
	.find_space = find_space,
	.get = get,
	.put = put,
	.drop = drop,
	.move = move,
	.fork = fork_space,
	.space_free = space_free,
	.resume = resume,
	.order_put = order_put,
	.receive = receive,
	.work = work,
	.health = health,
	.fd = fd,
	.wants_write = wants_write,
	.bytes = bytes,
	.free = source_free,
};

int source_pool_new(struct source **source, const struct link_config *config, struct client *client, const struct client_attached *attached,
		    struct dp_err *err)
{
	struct source_pool *pool = calloc(1, sizeof(*pool));
	struct snapshot_space *spaces = calloc(attached->space_count + 1, sizeof(*spaces));
	if (!pool || !spaces) {
		free(pool);
		free(spaces);
		return dp_fail(err, ENOMEM, "out of memory");
	}
	if (config->near)
		client_read_near(client);
	int ret = link_new(&pool->link, config, client, attached, err);
	if (ret) {
		free(pool);
		free(spaces);
		return ret;
	}
	memcpy(spaces, attached->spaces, attached->space_count * sizeof(*spaces));
	pool->source = (struct source){ .ops = &pool_ops, .writable = true };
	pool->instance = attached->instance;
	pool->applied = attached->applied;
	pool->spaces = spaces;
	pool->space_count = attached->space_count;
	pool->next_child = 1;
	for (size_t i = 0; i < attached->space_count; i++)
		pool->next_child = DP_MAX(pool->next_child, (uint64_t)number_of(spaces[i].space) + 1);
	*source = &pool->source;
	return 0;
}

bool source_pool_instance(const struct source *source, uint64_t *instance, uint64_t *epoch)
{
	struct link_state state;
	if (source->ops != &pool_ops)
		return false;
	link_state(of(source)->link, &state);
	*instance = state.instance;
	*epoch = state.epoch;
	return true;
}
