#include "pager/source_spread.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "base/base.h"
#include "pager/link_watch.h"
#include "pager/space_numbers.h"

#define CALLS 1024u
#define FIXES 4u       /* pieces of a move under way */
#define FIX_PAGES 64u
#define COOKIE_FIX (UINT64_C(1) << 60)
#define WORK_NS UINT64_C(20000000)
#define PUT_PAGES 256u  /* of one call: one request for each pool, whatever lies where */
#define SAVED_MAGIC 0x3164616572705344ull /* "DSpread1": of this layout; both pagers are of one program */

/* What was asked of us, until all pools have answered. */
struct call {
	bool used;
	uint8_t class;
	uint8_t owed;    /* pools that are still to be asked */
	uint32_t generation, waiting, space, count;
	uint64_t cookie;
	int result;
	struct page_range ranges[64]; /* of a GET */
};

/* What outlives the pager of a change: where it went, before any pool can see it. */
struct spread_change {
	uint64_t number;
	uint64_t sequence[MIRROR_MEMBERS]; /* its number among that pool's operations; 0: not sent */
	uint32_t child;                    /* of a fork */
	uint8_t pools;                     /* that have a part in it */
	bool is_move;
};

struct spread_saved {
	uint64_t magic, highest_space;
	struct spread_change change[CALLS];
};
_Static_assert(sizeof(struct spread_saved) <= SOURCE_SAVED_BYTES, "a source's memory is too small");

/* A piece of a move: pages that are read from the pool that took them along, and put into their own. */
struct fix {
	bool used, ready; /* ready: read, and waits for room to be put */
	unsigned from, to, writes;
	struct page_range range;
	uint64_t zeros;
	uint8_t *pages; /* [FIX_PAGES] */
};

struct share {
	struct spread *spread;
	struct link *link;
	struct link_watch watch;
};

struct spread {
	struct source source;
	struct share share[MIRROR_MEMBERS];
	unsigned count;
	int epoll_fd, failure;
	char why[256];
	struct space_numbers numbers;
	struct call *calls; /* [CALLS] */
	struct spread_saved *saved;
	bool saved_is_ours; /* nobody has given us memory that outlives us */
	uint64_t next;      /* change */
	uint8_t had;        /* pools that have had their part of the change being made since before a crash */
	/* the move under way; NULL: none */
	struct call *move;
	uint64_t move_from, move_to, move_pages, move_at;
	struct fix fix[FIXES];
};

static struct spread *of(const struct source *source)
{
	return (struct spread *)source;
}

static uint64_t mix(uint64_t value)
{
	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
	value = (value ^ value >> 27) * 0x94d049bb133111ebu;
	return value ^ value >> 31;
}

unsigned spread_place(uint64_t pgno, unsigned count)
{
	uint64_t chunk = mix(pgno / SPREAD_CHUNK_PAGES + 1), best = 0;
	unsigned place = 0;
	for (unsigned i = 0; i < count; i++) {
		uint64_t weight = mix(chunk + mix(i + 0x9e3779b97f4a7c15u));
		if (i == 0 || weight > best) {
			best = weight;
			place = i;
		}
	}
	return place;
}

/* ---- calls ---- */

static struct call *take_call(struct spread *spread, uint32_t space, uint64_t cookie)
{
	for (size_t i = 0; i < CALLS; i++) {
		struct call *call = &spread->calls[i];
		if (call->used)
			continue;
		call->used = true;
		call->generation++;
		call->waiting = call->count = 0;
		call->owed = 0;
		call->result = 0;
		call->space = space;
		call->cookie = cookie;
		return call;
	}
	return NULL;
}

static uint64_t cookie_of(const struct spread *spread, const struct call *call)
{
	return (uint64_t)call->generation << 16 | (uint64_t)(call - spread->calls);
}

static struct call *call_of(struct spread *spread, uint64_t cookie)
{
	struct call *call = &spread->calls[cookie & 0xffff];
	return call->used && call->generation == (uint32_t)(cookie >> 16) ? call : NULL;
}

static bool can_change(const struct spread *spread)
{
	for (unsigned i = 0; i < spread->count; i++)
		if (!link_has_room(spread->share[i].link))
			return false;
	return true;
}

static struct spread_change *change_at(struct spread *spread, uint64_t number)
{
	return &spread->saved->change[number % CALLS];
}

/* The saved state's stores are in the order in which they are written. */
static void in_order(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Behind a move nothing is noted before its pages are in place. oplog.h's head says less: a dead pager may have left a call there
 * that was refused meanwhile. */
static bool is_followed(struct spread *spread, uint64_t number)
{
	return change_at(spread, number + 1)->number == number + 1;
}

/* One that a dead pager had begun is noted already, and some pools may have their part. */
static void note_change(struct spread *spread, uint8_t pools, uint32_t child, bool is_move)
{
	struct spread_change *change = change_at(spread, spread->next);
	spread->had = 0;
	if (change->number == spread->next) {
		for (unsigned i = 0; i < spread->count; i++)
			spread->had |= (uint8_t)((change->sequence[i] != 0) << i);
		return;
	}
	change->number = 0;
	in_order();
	*change = (struct spread_change){ .child = child, .pools = pools, .is_move = is_move };
	in_order();
	change->number = spread->next;
}

/* 0 and a call; or why there is none. It holds itself until end_change. */
static int begin(struct spread *spread, uint64_t space, uint64_t cookie, struct call **call)
{
	if (spread->failure)
		return spread->failure;
	if (spread->move || !can_change(spread))
		return -EAGAIN;
	*call = take_call(spread, space_number_of(space), cookie);
	if (!*call)
		return -EAGAIN;
	(*call)->waiting = 1;
	return 0;
}

/* Is this pool to be sent its part? Its number is noted before. */
static bool begin_part(struct spread *spread, unsigned pool)
{
	struct link_state state;
	if (spread->had >> pool & 1)
		return false;
	link_state(spread->share[pool].link, &state);
	change_at(spread, spread->next)->sequence[pool] = state.next_sequence;
	in_order();
	return true;
}

/* A link takes what it has room for, or has ended; then receive says so, and there is no answer. */
static void note_asked(struct call *call)
{
	call->waiting++;
}

static void finish_call(struct spread *spread, struct call *call);

static void end_change(struct spread *spread, struct call *call)
{
	spread->next++;
	finish_call(spread, call);
}

/* ---- reading ---- */

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last);
static void on_done(void *context, uint64_t cookie, int result);

static struct client_handler handler_of(struct share *share)
{
	return (struct client_handler){ .context = share, .on_pages = on_pages, .on_done = on_done };
}

/* The pieces of a GET that are this pool's. */
static size_t pieces_of(const struct spread *spread, const struct call *call, unsigned pool, struct page_range *pieces)
{
	size_t count = 0;
	for (uint32_t i = 0; i < call->count; i++)
		for (uint64_t at = 0, run; at < call->ranges[i].pages; at += run) {
			uint64_t pgno = call->ranges[i].pgno + at;
			run = DP_MIN(call->ranges[i].pages - at, SPREAD_CHUNK_PAGES - pgno % SPREAD_CHUNK_PAGES);
			struct page_range *last = count ? &pieces[count - 1] : NULL;
			if (spread_place(pgno, spread->count) != pool)
				continue;
			if (at && last && last->pgno + last->pages == pgno)
				last->pages += run;
			else
				pieces[count++] = (struct page_range){ pgno, run };
		}
	return count;
}

/* Asks the pools that are still to be asked. */
static void ask_owed(struct spread *spread, struct call *call)
{
	struct page_range pieces[64];
	for (unsigned i = 0; i < spread->count; i++) {
		if (!(call->owed >> i & 1))
			continue;
		struct client_handler handler = handler_of(&spread->share[i]);
		size_t count = pieces_of(spread, call, i, pieces);
		uint32_t generation = call->generation;
		call->owed &= (uint8_t)~(1u << i); /* before: it may be answered at once */
		int ret = link_get(spread->share[i].link, &handler, (enum request_class)call->class, call->space, pieces, count,
				   cookie_of(spread, call));
		if (ret == 0 && (!call->used || call->generation != generation))
			return; /* all has been answered */
		if (ret)
			call->owed |= (uint8_t)(1u << i);
	}
}

static int get_pages(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges,
		     size_t count, uint64_t cookie)
{
	struct spread *spread = of(source);
	struct call *call;
	struct page_range pieces[64];
	uint64_t pages = 0;
	if (spread->failure)
		return spread->failure;
	for (size_t i = 0; i < count; i++)
		pages += ranges[i].pages;
	/* So few pages that each range has at most one piece in a pool. */
	if (count > ARRAY_LENGTH(call->ranges) || pages > SPREAD_CHUNK_PAGES)
		return -EINVAL;
	if (spread->move || !(call = take_call(spread, space_number_of(space), cookie)))
		return -EAGAIN;
	call->class = (uint8_t)class;
	call->count = (uint32_t)count;
	memcpy(call->ranges, ranges, count * sizeof(*ranges));
	for (unsigned i = 0; i < spread->count; i++)
		if (pieces_of(spread, call, i, pieces)) {
			call->owed |= (uint8_t)(1u << i);
			call->waiting++;
		}
	ask_owed(spread, call);
	return 0;
}

/* ---- changes ---- */

/* What of a PUT is one pool's: ranges, and where their pages lie. */
struct part {
	struct page_range ranges[PUT_PAGES];
	struct iovec data[PUT_PAGES];
	size_t range_count, data_count;
};

static void add_page(struct part *part, uint64_t pgno, uint8_t *at)
{
	struct page_range *range = part->range_count ? &part->ranges[part->range_count - 1] : NULL;
	struct iovec *data = part->data_count ? &part->data[part->data_count - 1] : NULL;
	if (range && range->pgno + range->pages == pgno)
		range->pages++;
	else
		part->ranges[part->range_count++] = (struct page_range){ pgno, 1 };
	if (data && (uint8_t *)data->iov_base + data->iov_len == at)
		data->iov_len += PAGE_BYTES;
	else
		part->data[part->data_count++] = (struct iovec){ at, PAGE_BYTES };
}

static void divide(const struct spread *spread, struct part *parts, const struct page_range *ranges, size_t count,
		   const struct iovec *data, size_t data_count)
{
	size_t vector = 0, inside = 0;
	for (unsigned pool = 0; pool < spread->count; pool++)
		parts[pool].range_count = parts[pool].data_count = 0;
	for (size_t i = 0; i < count; i++)
		for (uint64_t page = 0; page < ranges[i].pages; page++) {
			while (vector < data_count && inside == data[vector].iov_len) {
				vector++;
				inside = 0;
			}
			uint64_t pgno = ranges[i].pgno + page;
			add_page(&parts[spread_place(pgno, spread->count)], pgno, (uint8_t *)data[vector].iov_base + inside);
			inside += PAGE_BYTES;
		}
}

static int put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	       size_t data_count, uint64_t cookie)
{
	struct spread *spread = of(source);
	struct part parts[MIRROR_MEMBERS];
	struct call *call;
	uint64_t pages = 0;
	uint8_t pools = 0;
	for (size_t i = 0; i < count; i++)
		pages += ranges[i].pages;
	int ret = pages > PUT_PAGES ? -EINVAL : begin(spread, space, cookie, &call);
	if (ret)
		return ret;
	divide(spread, parts, ranges, count, data, data_count);
	for (unsigned i = 0; i < spread->count; i++)
		pools |= (uint8_t)((parts[i].range_count != 0) << i);
	note_change(spread, pools, 0, false);
	for (unsigned i = 0; i < spread->count; i++) {
		const struct part *part = &parts[i];
		if (!part->range_count || !begin_part(spread, i))
			continue;
		link_put(spread->share[i].link, call->space, part->ranges, part->range_count, part->data, part->data_count,
			 cookie_of(spread, call));
		note_asked(call);
	}
	end_change(spread, call);
	return 0;
}

static uint8_t all_pools(const struct spread *spread)
{
	return (uint8_t)((1u << spread->count) - 1);
}

static int drop(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	struct spread *spread = of(source);
	struct call *call;
	int ret = begin(spread, space, cookie, &call);
	if (ret)
		return ret;
	note_change(spread, all_pools(spread), 0, false);
	for (unsigned i = 0; i < spread->count; i++) {
		if (!begin_part(spread, i))
			continue;
		link_drop(spread->share[i].link, call->space, ranges, count, cookie_of(spread, call));
		note_asked(call);
	}
	end_change(spread, call);
	return 0;
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	struct spread *spread = of(source);
	struct call *call;
	int ret = begin(spread, space, cookie, &call);
	if (ret)
		return ret;
	note_change(spread, all_pools(spread), 0, true);
	for (unsigned i = 0; i < spread->count; i++) {
		if (!begin_part(spread, i))
			continue;
		link_move(spread->share[i].link, call->space, from_pgno, to_pgno, pages, cookie_of(spread, call));
		note_asked(call);
	}
	/* Made again after a crash for a pool that lacks it: elsewhere its pages may have been written again, or have gone. */
	if (!is_followed(spread, spread->next)) {
		call->waiting++; /* the pages that change their pool */
		spread->move = call;
		spread->move_from = from_pgno;
		spread->move_to = to_pgno;
		spread->move_pages = pages;
		spread->move_at = 0;
	}
	end_change(spread, call);
	return 0;
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	struct spread *spread = of(source);
	const struct spread_change *begun = change_at(spread, spread->next);
	struct call *call;
	uint32_t number = space_numbers_choose(&spread->numbers, *child);
	/* Some may have it since before a crash: the number that was chosen then. */
	if (!*child && begun->number == spread->next && begun->child)
		number = begun->child;
	if (!number)
		return -EOVERFLOW;
	int ret = begin(spread, parent, cookie, &call);
	if (ret)
		return ret;
	spread->saved->highest_space = DP_MAX(spread->saved->highest_space, number);
	note_change(spread, all_pools(spread), number, false);
	for (unsigned i = 0; i < spread->count; i++) {
		if (!begin_part(spread, i))
			continue;
		link_fork(spread->share[i].link, call->space, number, cookie_of(spread, call));
		note_asked(call);
	}
	*child = space_numbers_take(&spread->numbers, number);
	end_change(spread, call);
	return 0;
}

static int space_free(struct source *source, uint64_t space, uint64_t cookie)
{
	struct spread *spread = of(source);
	struct call *call;
	int ret = begin(spread, space, cookie, &call);
	if (ret)
		return ret;
	note_change(spread, all_pools(spread), 0, false);
	for (unsigned i = 0; i < spread->count; i++) {
		if (!begin_part(spread, i))
			continue;
		link_space_free(spread->share[i].link, call->space, cookie_of(spread, call));
		note_asked(call);
	}
	space_numbers_free(&spread->numbers, space_number_of(space));
	end_change(spread, call);
	return 0;
}

/* ---- pages that change their pool ---- */

static void finish_call(struct spread *spread, struct call *call)
{
	if (--call->waiting)
		return;
	call->used = false;
	spread->source.handler.on_done(spread->source.handler.context, call->cookie, call->result);
}

/* The next run of pages from move_at on that one pool took along and another is to have; at most FIX_PAGES. false: there is
 * none. */
static bool next_fix(struct spread *spread, struct fix *fix)
{
	while (spread->move_at < spread->move_pages) {
		uint64_t old = spread->move_from + spread->move_at, new = spread->move_to + spread->move_at;
		uint64_t run = DP_MIN(SPREAD_CHUNK_PAGES - old % SPREAD_CHUNK_PAGES,
				      SPREAD_CHUNK_PAGES - new % SPREAD_CHUNK_PAGES);
		fix->from = spread_place(old, spread->count);
		fix->to = spread_place(new, spread->count);
		run = DP_MIN(run, spread->move_pages - spread->move_at);
		if (fix->from != fix->to)
			run = DP_MIN(run, FIX_PAGES);
		spread->move_at += run;
		fix->range = (struct page_range){ new, run };
		if (fix->from != fix->to)
			return true;
	}
	return false;
}

/* The pages are here: into their own pool. */
static void put_fix(struct spread *spread, struct fix *fix)
{
	struct page_range puts[FIX_PAGES], drops[FIX_PAGES];
	struct iovec data[FIX_PAGES];
	size_t put_count = 0, drop_count = 0;
	struct link *link = spread->share[fix->to].link;
	fix->ready = !link_has_room(link);
	if (fix->ready)
		return;
	uint64_t cookie = COOKIE_FIX | (uint64_t)(fix - spread->fix);
	for (uint64_t i = 0; i < fix->range.pages; i++) {
		if (fix->zeros >> i & 1) {
			drops[drop_count++] = (struct page_range){ fix->range.pgno + i, 1 };
		} else {
			data[put_count] = (struct iovec){ fix->pages + i * PAGE_BYTES, PAGE_BYTES };
			puts[put_count++] = (struct page_range){ fix->range.pgno + i, 1 };
		}
	}
	int ret = 0;
	if (put_count && !(ret = link_put(link, spread->move->space, puts, put_count, data, put_count, cookie)))
		fix->writes++;
	if (!ret && drop_count && !(ret = link_drop(link, spread->move->space, drops, drop_count, cookie)))
		fix->writes++;
	if (ret && !spread->failure) { /* the link has ended */
		spread->failure = ret;
		snprintf(spread->why, sizeof(spread->why), "pages could not be moved from one pool to another");
	}
}

static void go_on_moving(struct spread *spread)
{
	bool under_way = false;
	for (unsigned i = 0; spread->move && i < FIXES; i++) {
		struct fix *fix = &spread->fix[i];
		struct share *share;
		if (!fix->used) {
			if (!next_fix(spread, fix))
				continue;
			fix->zeros = fix->writes = 0;
			fix->used = true;
			fix->ready = false;
			share = &spread->share[fix->from];
			struct client_handler handler = handler_of(share);
			if (link_get(share->link, &handler, CLASS_DEMAND, spread->move->space, &fix->range, 1, COOKIE_FIX | i)) {
				fix->used = false; /* tried again */
				spread->move_at = fix->range.pgno - spread->move_to;
				under_way = true;
				break;
			}
		}
		if (fix->used && fix->ready)
			put_fix(spread, fix);
		under_way |= fix->used;
	}
	if (spread->move && !under_way && spread->move_at >= spread->move_pages) {
		struct call *call = spread->move;
		spread->move = NULL;
		finish_call(spread, call);
	}
}

static void fix_pages(struct spread *spread, struct fix *fix, struct page_range range, const void *data, bool last)
{
	uint64_t at = range.pgno - fix->range.pgno;
	for (uint64_t i = 0; i < range.pages; i++) {
		if (data)
			memcpy(fix->pages + (at + i) * PAGE_BYTES, (const uint8_t *)data + i * PAGE_BYTES, PAGE_BYTES);
		else
			fix->zeros |= UINT64_C(1) << (at + i);
	}
	if (last)
		put_fix(spread, fix);
}

/* ---- answers ---- */

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct spread *spread = ((struct share *)context)->spread;
	if (cookie & COOKIE_FIX) {
		fix_pages(spread, &spread->fix[cookie & 0xff], range, data, last);
		return;
	}
	struct call *call = call_of(spread, cookie);
	if (!call)
		return;
	call->waiting -= last;
	bool end = !call->waiting;
	uint64_t own = call->cookie;
	call->used = !end;
	spread->source.handler.on_pages(spread->source.handler.context, own, range, data, end);
}

static void on_done(void *context, uint64_t cookie, int result)
{
	struct spread *spread = ((struct share *)context)->spread;
	if (cookie & COOKIE_FIX) {
		struct fix *fix = &spread->fix[cookie & 0xff];
		if (result < 0 && spread->move && !spread->move->result)
			spread->move->result = result;
		fix->used = fix->writes && --fix->writes;
		return;
	}
	struct call *call = call_of(spread, cookie);
	if (!call)
		return;
	if (result < 0 && !call->result)
		call->result = result;
	finish_call(spread, call);
}

static int receive(struct source *source)
{
	struct spread *spread = of(source);
	int calls = 0;
	for (unsigned i = 0; i < spread->count && !spread->failure; i++) {
		struct client_handler handler = handler_of(&spread->share[i]);
		int ret = link_receive(spread->share[i].link, &handler);
		if (ret < 0 && !spread->failure) {
			spread->failure = ret;
			snprintf(spread->why, sizeof(spread->why), "%s", link_why(spread->share[i].link));
		}
		calls += DP_MAX(ret, 0);
	}
	for (size_t i = 0; i < CALLS && !spread->failure; i++)
		if (spread->calls[i].used && spread->calls[i].owed)
			ask_owed(spread, &spread->calls[i]);
	if (!spread->failure)
		go_on_moving(spread);
	for (unsigned i = 0; i < spread->count; i++)
		link_watch_update(&spread->share[i].watch);
	return spread->failure ? spread->failure : calls;
}

static uint64_t work(struct source *source)
{
	struct spread *spread = of(source);
	uint64_t until_ns = spread->move ? WORK_NS : UINT64_MAX;
	for (unsigned i = 0; i < spread->count; i++) {
		struct share *share = &spread->share[i];
		until_ns = DP_MIN(until_ns, link_watch_work(&share->watch));
		link_watch_update(&share->watch);
	}
	if (spread->move)
		go_on_moving(spread);
	return until_ns;
}

static void health(const struct source *source, struct source_health *state)
{
	const struct spread *spread = of(source);
	state->pools = spread->count;
	state->why = spread->why;
	for (unsigned i = 0; i < spread->count; i++) {
		struct link_state link;
		link_state(spread->share[i].link, &link);
		state->reconnects += link.reconnects;
		state->pools_there += link.attached;
		if (link.waiting_since_ns && (!state->waiting_since_ns || link.waiting_since_ns < state->waiting_since_ns))
			state->waiting_since_ns = link.waiting_since_ns;
		if (!link.attached && !*state->why)
			state->why = link_why(spread->share[i].link);
	}
}

static int find_space(struct source *source, int vpid, uint64_t *space, struct dp_err *err)
{
	return space_numbers_find(&of(source)->numbers, vpid, space, err);
}

static int fd(const struct source *source)
{
	return of(source)->epoll_fd;
}

static bool wants_write(const struct source *source)
{
	(void)source;
	return false; /* the links' own descriptors are watched for it */
}

static void bytes(const struct source *source, uint64_t *in, uint64_t *out)
{
	*in = *out = 0;
	for (unsigned i = 0; i < of(source)->count; i++) {
		struct link_state state;
		link_state(of(source)->share[i].link, &state);
		*in += state.bytes_in;
		*out += state.bytes_out;
	}
}

static void spread_free(struct source *source)
{
	struct spread *spread = of(source);
	for (unsigned i = 0; i < spread->count; i++)
		link_free(spread->share[i].link);
	for (unsigned i = 0; i < FIXES; i++)
		free(spread->fix[i].pages);
	if (spread->saved_is_ours)
		munmap(spread->saved, sizeof(*spread->saved));
	dp_close_fd(&spread->epoll_fd);
	space_numbers_done(&spread->numbers);
	free(spread->calls);
	free(spread);
}

/* ---- after a crash ---- */

static void keep(struct source *source, void *memory)
{
	struct spread *spread = of(source);
	struct spread_saved *saved = memory;
	bool left = saved->magic == SAVED_MAGIC;
	if (spread->saved_is_ours)
		munmap(spread->saved, sizeof(*spread->saved));
	spread->saved_is_ours = false;
	spread->saved = saved;
	if (left) {
		space_numbers_skip(&spread->numbers, saved->highest_space);
		return;
	}
	saved->highest_space = spread->numbers.next - 1;
	in_order();
	saved->magic = SAVED_MAGIC;
}

/* What a pool has not applied, it was not told. */
static void settle(struct spread *spread)
{
	for (unsigned pool = 0; pool < spread->count; pool++) {
		struct link_state state;
		link_state(spread->share[pool].link, &state);
		for (unsigned i = 0; i < CALLS; i++)
			if (spread->saved->change[i].sequence[pool] >= state.next_sequence)
				spread->saved->change[i].sequence[pool] = 0;
	}
}

static bool all_settled(const struct spread *spread)
{
	for (unsigned i = 0; i < spread->count; i++) {
		struct link_state state;
		link_state(spread->share[i].link, &state);
		if (!state.settled)
			return false;
	}
	return true;
}

/* By all. A move is also made when its pages are in place; else they are fetched again from where they were taken along to. */
static bool is_made(struct spread *spread, uint64_t number)
{
	const struct spread_change *change = change_at(spread, number);
	if (change->number != number || (change->is_move && !is_followed(spread, number)))
		return false;
	for (unsigned i = 0; i < spread->count; i++)
		if (change->pools >> i & 1 && !change->sequence[i])
			return false;
	return true;
}

static int resume(struct source *source, struct source_resume *resume)
{
	struct spread *spread = of(source);
	space_numbers_skip(&spread->numbers, resume->highest_child);
	while (!all_settled(spread)) {
		work(source);
		int ret = source_resume_wait(resume, spread->epoll_fd, POLLIN);
		if (!ret)
			ret = receive(source);
		if (ret < 0)
			return ret;
	}
	settle(spread);
	resume->applied = resume->answered;
	while (resume->applied < resume->last && is_made(spread, resume->applied + 1))
		resume->applied++;
	spread->next = resume->applied + 1;
	return 0;
}

static const struct source_ops spread_ops = {
	.find_space = find_space,
	.get = get_pages,
	.put = put,
	.drop = drop,
	.move = move,
	.fork = fork_space,
	.space_free = space_free,
	.keep = keep,
	.resume = resume,
	.receive = receive,
	.work = work,
	.health = health,
	.fd = fd,
	.wants_write = wants_write,
	.bytes = bytes,
	.free = spread_free,
};

static int prepare(struct spread *spread, const struct client_attached *first, struct dp_err *err)
{
	spread->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	spread->calls = calloc(CALLS, sizeof(*spread->calls));
	bool good = !space_numbers_init(&spread->numbers, first);
	for (unsigned i = 0; i < FIXES; i++)
		good &= (spread->fix[i].pages = malloc((size_t)FIX_PAGES * PAGE_BYTES)) != NULL;
	spread->saved = mmap(NULL, sizeof(*spread->saved), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	spread->saved_is_ours = spread->saved != MAP_FAILED;
	spread->next = 1;
	if (!spread->saved_is_ours || spread->epoll_fd < 0 || !spread->calls || !good)
		return dp_fail(err, ENOMEM, "room for pages of several pools");
	return 0;
}

int source_spread_new(struct source **source, const struct mirror_member *members, size_t count, struct dp_err *err)
{
	struct spread *spread = calloc(1, sizeof(*spread));
	if (!spread)
		return dp_fail(err, ENOMEM, "out of memory");
	spread->source = (struct source){ .ops = &spread_ops, .writable = true };
	int ret = prepare(spread, &members[0].attached, err);
	for (size_t i = 0; i < count && !ret; i++) {
		struct link_config config = members[i].config;
		struct share *share = &spread->share[i];
		if (members[i].attached.space_count != members[0].attached.space_count)
			ret = dp_fail(err, EINVAL, "pool %zu has another snapshot under this name: copy it, then restore again",
				      i + 1);
		*share = (struct share){ .spread = spread };
		config.keep_all = true;
		if (!ret && config.near && members[i].client)
			client_read_near(members[i].client);
		if (!ret)
			ret = members[i].client ? link_new(&share->link, &config, members[i].client, &members[i].attached, err)
						: link_new_lost(&share->link, &config, &members[i].attached, err);
		spread->count += !ret;
		if (!ret)
			share->watch = link_watch(share->link, spread->epoll_fd);
	}
	if (ret) {
		for (unsigned i = 0; i < spread->count; i++)
			link_disown(spread->share[i].link);
		spread_free(&spread->source);
		return ret;
	}
	*source = &spread->source;
	return 0;
}

bool source_is_spread(const struct source *source)
{
	return source->ops == &spread_ops;
}

size_t source_spread_instances(const struct source *source, uint64_t *instances, uint64_t *epochs)
{
	if (!source_is_spread(source))
		return 0;
	for (unsigned i = 0; i < of(source)->count; i++) {
		struct link_state state;
		link_state(of(source)->share[i].link, &state);
		instances[i] = state.instance;
		epochs[i] = state.epoch;
	}
	return of(source)->count;
}
