#include "pager/oplog.h"

#include <assert.h>
#include <errno.h>
#include <poll.h> /* POLLIN */
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

#define COOKIE_OP (1ull << 61)
#define NO_SUCH_SPACE                                                                                                            \
	0xfffffu /* the highest of the numbers that a pool's instance can give its spaces, beyond those it does give */

struct oplog {
	struct source source;
	struct source_ops ops; /* log_ops, but for what the inner source cannot */
	struct source *inner;
	struct oplog_area *area;
	uint32_t put_space;
	const struct op_page *put_pages;
	size_t put_count;
	/* a replay under way */
	int (*failed)(void *context, const struct op *op, int result);
	void *context;
	int failure;
};

static struct oplog *of(const struct source *source)
{
	return (struct oplog *)source;
}

static void in_order(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* ---- answers ---- */

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct oplog *log = context;
	log->source.handler.on_pages(log->source.handler.context, cookie, range, data, last);
}

static void on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	struct oplog *log = context;
	log->source.handler.on_damaged(log->source.handler.context, cookie, range, last);
}

static void on_done(void *context, uint64_t cookie, int result)
{
	struct oplog *log = context;
	struct oplog_area *area = log->area;
	uint64_t number = cookie & ~COOKIE_OP;
	if (!(cookie & COOKIE_OP) || cookie >> 62 || number <= area->tail || number > area->head) {
		log->source.handler.on_done(log->source.handler.context, cookie, result);
		return;
	}
	struct op *op = &area->op[number % OPLOG_RECORDS];
	if (log->failed) {
		bool gone = (op->kind == OP_FREE || op->kind == OP_DROP) && result == -ENOENT;
		if (result < 0 && !gone && !log->failure)
			log->failure = op->kind == OP_PUT ? log->failed(log->context, op, result) : result;
	}
	uint64_t outer = op->cookie;
	op->answered = true;
	while (area->tail < area->head && area->op[(area->tail + 1) % OPLOG_RECORDS].answered)
		area->tail++;
	if (!log->failed)
		log->source.handler.on_done(log->source.handler.context, outer, result);
}

/* ---- changes ---- */

/* The record is written, but does not count yet. NULL: too many are unanswered. */
static struct op *op_new(struct oplog *log, enum op_kind kind, uint64_t space, uint64_t cookie)
{
	struct oplog_area *area = log->area;
	if (area->head - area->tail >= OPLOG_RECORDS - 1)
		return NULL;
	struct op *op = &area->op[(area->head + 1) % OPLOG_RECORDS];
	op->kind = kind;
	op->space = space;
	op->cookie = cookie;
	op->event = area->event;
	op->answered = false;
	op->count = 0;
	return op;
}

static uint64_t publish(struct oplog *log)
{
	in_order();
	log->area->head++;
	in_order();
	return COOKIE_OP | log->area->head;
}

static int result(struct oplog *log, int ret)
{
	if (ret)
		log->area->head--; /* O2: the source has not taken it */
	return ret;
}

/* Pages that do not lie in staging (a push, propagate.h) are local too, and not sent again. */
static void note_pages(struct oplog *log, struct op *op, const struct page_range *ranges, size_t count)
{
	op->space_number = log->put_space;
	if (log->put_count) {
		assert(log->put_count <= OPLOG_PAGES);
		op->count = (uint32_t)log->put_count;
		memcpy(op->page, log->put_pages, log->put_count * sizeof(op->page[0]));
		return;
	}
	for (size_t range = 0; range < count; range++)
		for (uint64_t i = 0; i < ranges[range].pages && op->count < OPLOG_PAGES; i++)
			op->page[op->count++] = (struct op_page){ ranges[range].pgno + i, OP_NOT_STAGED };
}

static int put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	       size_t data_count, uint64_t cookie)
{
	struct oplog *log = of(source);
	struct op *op = op_new(log, OP_PUT, space, cookie);
	if (!op)
		return -EAGAIN;
	note_pages(log, op, ranges, count);
	uint64_t inner = publish(log);
	int ret = result(log, log->inner->ops->put(log->inner, space, ranges, count, data, data_count, inner));
	if (!ret)
		log->put_count = 0;
	return ret;
}

static int drop(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	struct oplog *log = of(source);
	struct op *op = op_new(log, OP_DROP, space, cookie);
	if (!op)
		return -EAGAIN;
	assert(count <= OPLOG_PAGES);
	op->count = (uint32_t)count;
	for (size_t i = 0; i < count; i++)
		op->page[i] = (struct op_page){ ranges[i].pgno, ranges[i].pages };
	uint64_t inner = publish(log);
	return result(log, log->inner->ops->drop(log->inner, space, ranges, count, inner));
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	struct oplog *log = of(source);
	struct op *op = op_new(log, OP_MOVE, space, cookie);
	if (!op)
		return -EAGAIN;
	op->from = from_pgno;
	op->to = to_pgno;
	op->pages = pages;
	uint64_t inner = publish(log);
	return result(log, log->inner->ops->move(log->inner, space, from_pgno, to_pgno, pages, inner));
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	struct oplog *log = of(source);
	struct op *op = op_new(log, OP_FORK, parent, cookie);
	if (!op)
		return -EAGAIN;
	op->to = *child;
	uint64_t inner = publish(log);
	int ret = result(log, log->inner->ops->fork(log->inner, parent, child, inner));
	if (!ret) {
		log->area->highest_child = DP_MAX(log->area->highest_child, *child);
		op->to = *child;
	}
	return ret;
}

static int space_free(struct source *source, uint64_t space, uint64_t cookie)
{
	struct oplog *log = of(source);
	if (!log->inner->ops->space_free)
		return 0;
	struct op *op = op_new(log, OP_FREE, space, cookie);
	if (!op)
		return -EAGAIN;
	uint64_t inner = publish(log);
	return result(log, log->inner->ops->space_free(log->inner, space, inner));
}

/* ---- what is only passed on ---- */

static int find_space(struct source *source, int vpid, uint64_t *space, struct dp_err *err)
{
	return of(source)->inner->ops->find_space(of(source)->inner, vpid, space, err);
}

static int get(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count,
	       uint64_t cookie)
{
	return of(source)->inner->ops->get(of(source)->inner, class, space, ranges, count, cookie);
}

static int order_put(struct source *source, const struct order_run *runs, size_t count, uint64_t cookie)
{
	return of(source)->inner->ops->order_put(of(source)->inner, runs, count, cookie);
}

static int receive(struct source *source)
{
	return of(source)->inner->ops->receive(of(source)->inner);
}

static int fd(const struct source *source)
{
	return of(source)->inner->ops->fd(of(source)->inner);
}

static bool wants_write(const struct source *source)
{
	return of(source)->inner->ops->wants_write(of(source)->inner);
}

static uint64_t work(struct source *source)
{
	struct source *inner = of(source)->inner;
	return inner->ops->work ? inner->ops->work(inner) : UINT64_MAX;
}

static void health(const struct source *source, struct source_health *state)
{
	const struct source *inner = of(source)->inner;
	if (inner->ops->health)
		inner->ops->health(inner, state);
}

static void bytes(const struct source *source, uint64_t *in, uint64_t *out)
{
	of(source)->inner->ops->bytes(of(source)->inner, in, out);
}

static void log_free(struct source *source)
{
	free(of(source));
}

static const struct source_ops log_ops = {
	.find_space = find_space,
	.get = get,
	.put = put,
	.drop = drop,
	.move = move,
	.fork = fork_space,
	.space_free = space_free,
	.order_put = order_put,
	.receive = receive,
	.work = work,
	.health = health,
	.fd = fd,
	.wants_write = wants_write,
	.bytes = bytes,
	.free = log_free,
};

int oplog_new(struct source **source, struct source *inner, struct oplog_area *area)
{
	struct oplog *log = calloc(1, sizeof(*log));
	if (!log)
		return -ENOMEM;
	log->ops = log_ops;
	if (!inner->ops->order_put)
		log->ops.order_put = NULL;
	log->source = (struct source){ .ops = &log->ops, .writable = true };
	log->inner = inner;
	log->area = area;
	inner->handler = (struct source_handler){ log, on_pages, on_done, on_damaged };
	*source = &log->source;
	return 0;
}

void oplog_next_put(struct source *source, uint32_t space_number, const struct op_page *pages, size_t count)
{
	struct oplog *log = of(source);
	if (source->ops->put != put) /* a source that needs no log */
		return;
	log->put_space = space_number;
	log->put_pages = pages;
	log->put_count = count;
}

const struct op *oplog_last(const struct oplog_area *area, enum op_kind kind, uint64_t event)
{
	const struct op *op = &area->op[area->head % OPLOG_RECORDS];
	return area->head && op->kind == kind && op->event == event ? op : NULL;
}

/* ---- after a crash ---- */

bool oplog_sound(const struct oplog_area *area)
{
	if (area->tail > area->head || area->head - area->tail >= OPLOG_RECORDS)
		return false;
	for (uint64_t number = area->tail + 1; number <= area->head && number; number++) {
		const struct op *op = &area->op[number % OPLOG_RECORDS];
		if (op->kind < OP_PUT || op->kind > OP_FREE || op->count > OPLOG_PAGES || (op->kind == OP_PUT && !op->count))
			return false;
	}
	return area->head < COOKIE_OP;
}

/* Does a later record make a copy of what this put's space had? */
static bool forked_later(const struct oplog_area *area, uint64_t number)
{
	uint64_t space = area->op[number % OPLOG_RECORDS].space;
	for (uint64_t later = number + 1; later <= area->head; later++)
		if (area->op[later % OPLOG_RECORDS].kind == OP_FORK && area->op[later % OPLOG_RECORDS].space == space)
			return true;
	return false;
}

static int replay_put(struct oplog *log, uint64_t number, oplog_read_put *read_put, uint8_t *buffer)
{
	struct op *op = &log->area->op[number % OPLOG_RECORDS];
	struct page_range ranges[OPLOG_PAGES];
	int ret = op->page[0].slot == OP_NOT_STAGED ? -ENOENT : read_put(log->context, op, buffer);
	if (ret == -ENOENT && (op->page[0].slot == OP_NOT_STAGED || !forked_later(log->area, number))) {
		op->kind = OP_DROP; /* of a space that is none: takes the number, no more */
		op->space |= NO_SUCH_SPACE;
		ranges[0] = (struct page_range){ op->page[0].pgno, 1 };
		return log->inner->ops->drop(log->inner, op->space, ranges, 1, COOKIE_OP | number);
	}
	if (ret)
		return ret;
	for (uint32_t i = 0; i < op->count; i++)
		ranges[i] = (struct page_range){ op->page[i].pgno, 1 };
	struct iovec data = { buffer, (uint64_t)op->count * PAGE_BYTES };
	return log->inner->ops->put(log->inner, op->space, ranges, op->count, &data, 1, COOKIE_OP | number);
}

static int replay_one(struct oplog *log, uint64_t number, oplog_read_put *read_put, uint8_t *buffer)
{
	struct op *op = &log->area->op[number % OPLOG_RECORDS];
	const struct source_ops *ops = log->inner->ops;
	struct page_range ranges[OPLOG_PAGES];
	switch (op->kind) {
	case OP_PUT:
		return replay_put(log, number, read_put, buffer);
	case OP_DROP:
		for (uint32_t i = 0; i < op->count; i++)
			ranges[i] = (struct page_range){ op->page[i].pgno, op->page[i].slot };
		return ops->drop(log->inner, op->space, ranges, op->count, COOKIE_OP | number);
	case OP_MOVE:
		return ops->move(log->inner, op->space, op->from, op->to, op->pages, COOKIE_OP | number);
	case OP_FORK:
		return ops->fork(log->inner, op->space, &op->to, COOKIE_OP | number);
	case OP_FREE:
		return ops->space_free(log->inner, op->space, COOKIE_OP | number);
	default:
		return -EBADMSG;
	}
}

/* Waits until the source has something to say, or takes more. */
static int wait_for_source(struct oplog *log, const struct source_resume *resume)
{
	int ret = log->inner->ops->receive(log->inner);
	if (ret || log->area->tail == log->area->head)
		return DP_MIN(ret, 0);
	short events = (short)(POLLIN | (log->inner->ops->wants_write(log->inner) ? POLLOUT : 0));
	ret = source_resume_wait(resume, log->inner->ops->fd(log->inner), events);
	if (!ret && log->inner->ops->work)
		log->inner->ops->work(log->inner);
	return ret;
}

static int replay_all(struct oplog *log, const struct source_resume *resume, oplog_read_put *read_put, uint8_t *buffer)
{
	uint64_t first = resume->applied + 1, last = log->area->head;
	int ret = 0;
	for (uint64_t number = first; !ret && number <= last;) {
		ret = replay_one(log, number, read_put, buffer);
		if (ret == -EAGAIN)
			ret = wait_for_source(log, resume);
		else
			number++;
	}
	while (!ret && !log->failure && log->area->tail < last)
		ret = wait_for_source(log, resume);
	return ret ? ret : log->failure;
}

int oplog_replay(struct source *source, oplog_read_put *read_put, int (*failed)(void *context, const struct op *op, int result),
		 void *context, uint64_t patience_ns, int ended_fd, uint64_t *replayed)
{
	struct oplog *log = of(source);
	struct oplog_area *area = log->area;
	struct source_resume resume = { .highest_child = area->highest_child + 1, .answered = area->tail, .last = area->head,
					.began_ns = clock_now_ns(), .patience_ns = patience_ns, .ended_fd = ended_fd };
	if (!log->inner->ops->resume)
		return -ENOSYS;
	int ret = log->inner->ops->resume(log->inner, &resume);
	if (ret)
		return ret;
	uint64_t applied = resume.applied;
	if (applied > area->head || applied < area->tail)
		return -ESTALE; /* it is not the source that it was */
	area->tail = applied;
	for (uint64_t number = applied + 1; number <= area->head; number++)
		area->op[number % OPLOG_RECORDS].answered = false;
	*replayed = area->head - applied;
	uint8_t *buffer = malloc(OPLOG_PAGES * PAGE_BYTES);
	if (!buffer)
		return -ENOMEM;
	log->failed = failed;
	log->context = context;
	log->failure = 0;
	ret = replay_all(log, &resume, read_put, buffer);
	log->failed = NULL;
	free(buffer);
	return ret;
}
