#include "pager/source_pool.h"

#include <errno.h>
#include <stdlib.h>

#include "base/base.h"
#include "pager/space_numbers.h"

struct source_pool {
	struct source source;
	struct link *link;
	struct space_numbers numbers;
	uint64_t applied; /* when we attached */
};

static struct source_pool *of(const struct source *source)
{
	return (struct source_pool *)source;
}

static int find_space(struct source *source, int vpid, uint64_t *space, struct dp_err *err)
{
	return space_numbers_find(&of(source)->numbers, vpid, space, err);
}

static struct client_handler handler_of(const struct source *source)
{
	return (struct client_handler){ .context = source->handler.context, .on_pages = source->handler.on_pages,
					.on_done = source->handler.on_done, .on_damaged = source->handler.on_damaged };
}

static int get(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count,
	       uint64_t cookie)
{
	struct client_handler handler = handler_of(source);
	return link_get(of(source)->link, &handler, class, space_number_of(space), ranges, count, cookie);
}

static int put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	       size_t data_count, uint64_t cookie)
{
	return link_put(of(source)->link, space_number_of(space), ranges, count, data, data_count, cookie);
}

static int drop(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	return link_drop(of(source)->link, space_number_of(space), ranges, count, cookie);
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	return link_move(of(source)->link, space_number_of(space), from_pgno, to_pgno, pages, cookie);
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	struct source_pool *pool = of(source);
	uint32_t number = space_numbers_choose(&pool->numbers, *child);
	if (!number)
		return -EOVERFLOW; /* a million forked children alive */
	int ret = link_fork(pool->link, space_number_of(parent), number, cookie);
	if (!ret)
		*child = space_numbers_take(&pool->numbers, number);
	return ret;
}

static int space_free(struct source *source, uint64_t space, uint64_t cookie)
{
	int ret = link_space_free(of(source)->link, space_number_of(space), cookie);
	if (!ret)
		space_numbers_free(&of(source)->numbers, space_number_of(space));
	return ret;
}

static int resume(struct source *source, struct source_resume *resume)
{
	struct source_pool *pool = of(source);
	space_numbers_skip(&pool->numbers, resume->highest_child);
	resume->applied = pool->applied;
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
	space_numbers_done(&of(source)->numbers);
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

int source_pool_new(struct source **source, const struct link_config *config, struct client *client,
		    const struct client_attached *attached, struct dp_err *err)
{
	struct source_pool *pool = calloc(1, sizeof(*pool));
	if (!pool || space_numbers_init(&pool->numbers, attached)) {
		free(pool);
		return dp_fail(err, ENOMEM, "out of memory");
	}
	if (config->near)
		client_read_near(client);
	int ret = link_new(&pool->link, config, client, attached, err);
	if (ret) {
		space_numbers_done(&pool->numbers);
		free(pool);
		return ret;
	}
	pool->source = (struct source){ .ops = &pool_ops, .writable = true };
	pool->applied = attached->applied;
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
