#include "pager/source_pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

struct source_pool {
	struct source source;
	struct client *client;
	uint64_t instance, epoch;
	struct snapshot_space *spaces;
	size_t space_count;
	uint64_t next_child; /* low bits of the next forked space's id; see client_fork */
	uint32_t *freed;     /* low bits of ids that were freed: the pool has forgotten them when it gets the next request */
	size_t freed_count, freed_room;
};

#define SPACE_BITS 20

static struct source_pool *of(const struct source *source)
{
	return (struct source_pool *)source;
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

static int get(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	struct client_handler handler = { source->handler.context, source->handler.on_pages, source->handler.on_done };
	int ret = client_get_near(of(source)->client, &handler, space, ranges, count, cookie);
	return ret ? DP_MIN(ret, 0) : client_get(of(source)->client, class, space, ranges, count, cookie);
}

static int put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	       size_t data_count, uint64_t cookie)
{
	return client_put(of(source)->client, space, of(source)->epoch, ranges, count, data, data_count, cookie);
}

static int drop(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	return client_drop(of(source)->client, space, of(source)->epoch, ranges, count, cookie);
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	return client_move(of(source)->client, space, of(source)->epoch, from_pgno, to_pgno, pages, cookie);
}

/* 0: no id is left. */
static uint64_t choose_number(const struct source_pool *pool)
{
	if (pool->freed_count)
		return pool->freed[pool->freed_count - 1];
	return pool->next_child >> SPACE_BITS ? 0 : pool->next_child;
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	struct source_pool *pool = of(source);
	uint64_t number = *child ? *child & ((1u << SPACE_BITS) - 1) : choose_number(pool);
	if (!number)
		return -EOVERFLOW; /* a million forked children alive */
	bool given = *child;
	uint64_t id = (parent >> SPACE_BITS << SPACE_BITS) | number;
	int ret = client_fork(pool->client, parent, pool->epoch, id, cookie);
	if (ret)
		return ret;
	if (!given && pool->freed_count)
		pool->freed_count--;
	else if (!given)
		pool->next_child++;
	*child = id;
	return 0;
}

static int space_free(struct source *source, uint64_t space, uint64_t cookie)
{
	struct source_pool *pool = of(source);
	int ret = client_space_free(pool->client, space, pool->epoch, cookie);
	if (!ret && pool->freed_count == pool->freed_room) {
		size_t room = pool->freed_room * 2 + 64;
		uint32_t *larger = realloc(pool->freed, room * sizeof(*larger));
		if (!larger)
			return ret; /* this id is not used again, that is all */
		pool->freed = larger;
		pool->freed_room = room;
	}
	if (!ret)
		pool->freed[pool->freed_count++] = (uint32_t)(space & ((1u << SPACE_BITS) - 1));
	return ret;
}

static int order_put(struct source *source, const struct order_run *runs, size_t count, uint64_t cookie)
{
	return client_order_put(of(source)->client, of(source)->instance, of(source)->epoch, runs, count, cookie);
}

static int receive(struct source *source)
{
	struct client_handler handler = { source->handler.context, source->handler.on_pages, source->handler.on_done };
	return client_receive(of(source)->client, &handler);
}

static int fd(const struct source *source)
{
	return client_fd(of(source)->client);
}

static bool wants_write(const struct source *source)
{
	return client_wants_write(of(source)->client);
}

static void bytes(const struct source *source, uint64_t *in, uint64_t *out)
{
	*in = client_bytes_received(of(source)->client);
	*out = client_bytes_sent(of(source)->client);
}

static void source_free(struct source *source)
{
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
	.order_put = order_put,
	.receive = receive,
	.fd = fd,
	.wants_write = wants_write,
	.bytes = bytes,
	.free = source_free,
};

int source_pool_new(struct source **source, struct client *client, const struct instance_info *instance, struct dp_err *err)
{
	struct source_pool *pool = calloc(1, sizeof(*pool));
	struct snapshot_space *spaces = calloc(instance->space_count ? instance->space_count : 1, sizeof(*spaces));
	if (!pool || !spaces) {
		free(pool);
		free(spaces);
		return dp_fail(err, ENOMEM, "out of memory");
	}
	memcpy(spaces, instance->spaces, instance->space_count * sizeof(*spaces));
	pool->source = (struct source){ .ops = &pool_ops, .writable = true };
	pool->client = client;
	client_read_near(client);
	pool->instance = instance->id;
	pool->epoch = instance->epoch;
	pool->spaces = spaces;
	pool->space_count = instance->space_count;
	for (size_t i = 0; i < instance->space_count; i++)
		if ((spaces[i].space & ((1u << SPACE_BITS) - 1)) >= pool->next_child)
			pool->next_child = (spaces[i].space & ((1u << SPACE_BITS) - 1)) + 1;
	*source = &pool->source;
	return 0;
}

bool source_pool_instance(const struct source *source, uint64_t *instance, uint64_t *epoch)
{
	if (source->ops != &pool_ops)
		return false;
	*instance = of(source)->instance;
	*epoch = of(source)->epoch;
	return true;
}
