#include "pager/source_mirror.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/log.h"
#include "pager/mirror.h"
#include "wire/bytes.h"
#include "wire/message.h"

#define WORK_NS UINT64_C(20000000)
#define NOTE_MAGIC 0x524d5044u /* "DPMR" */

static struct mirror *of(const struct source *source)
{
	return (struct mirror *)source;
}

static unsigned index_of(const struct member *member)
{
	return (unsigned)(member - member->mirror->member);
}

static uint8_t bit_of(const struct member *member)
{
	return (uint8_t)(1u << index_of(member));
}

/* Gets every change as it is made. */
static bool is_fed(const struct member *member)
{
	return member->state == MEMBER_IN || member->state == MEMBER_COPIES || member->state == MEMBER_JOINING;
}

/* Nothing is acknowledged without it: one that leaves gets no changes any more, but they wait until all others know that it is out (M1). */
static bool is_bound(const struct member *member)
{
	return member->state <= MEMBER_LEAVING || member->state == MEMBER_JOINING;
}

static bool is_there(const struct member *member)
{
	struct link_state state;
	link_state(member->link, &state);
	return state.attached;
}

int mirror_end(struct mirror *mirror, int error, const char *why)
{
	if (!mirror->failure) {
		mirror->failure = error;
		snprintf(mirror->why, sizeof(mirror->why), "%s", why);
	}
	return mirror->failure;
}

/* ---- acknowledgements ---- */

static struct mirrored *operation_at(struct mirror *mirror, uint64_t number)
{
	return &mirror->operations[number % MIRROR_OPERATIONS];
}

/* Is it safe now? */
static bool is_acknowledged(const struct mirror *mirror, const struct mirrored *operation, bool any)
{
	return !operation->waiting || (mirror->ack_one && any);
}

static void settle(struct mirror *mirror, struct mirrored *operation, bool any)
{
	if (!operation->told && is_acknowledged(mirror, operation, any)) {
		operation->told = true;
		mirror->source.handler.on_done(mirror->source.handler.context, operation->cookie, operation->result);
	}
	operation->used = !(operation->told && !operation->waiting);
}

/* The member's duty ends: what waits for it alone is safe. */
static void release_duty(struct mirror *mirror, const struct member *member)
{
	for (uint64_t number = mirror->next > MIRROR_OPERATIONS ? mirror->next - MIRROR_OPERATIONS : 1; number < mirror->next; number++) {
		struct mirrored *operation = operation_at(mirror, number);
		if (!operation->used || !(operation->waiting & bit_of(member)))
			continue;
		operation->waiting &= (uint8_t)~bit_of(member);
		settle(mirror, operation, false);
	}
}

/* ---- who is in: the note ---- */

static int write_note(const struct mirror *mirror, uint8_t *bytes, size_t size)
{
	struct bytes_writer out = bytes_writer(bytes, size);
	bytes_put_u32(&out, NOTE_MAGIC);
	bytes_put_u32(&out, mirror->count);
	bytes_put_u64(&out, mirror->generation);
	for (unsigned i = 0; i < mirror->count; i++) {
		struct link_state state;
		link_state(mirror->member[i].link, &state);
		bytes_put_u64(&out, state.instance);
		bytes_put_u32(&out, mirror->member[i].state == MEMBER_IN || mirror->member[i].state == MEMBER_JOINING);
		bytes_put_u32(&out, 0);
	}
	return out.bad ? -EMSGSIZE : (int)(out.at - out.start);
}

/* Tells all that are in, and those that are to be, who is. */
static void begin_note(struct mirror *mirror)
{
	mirror->generation++;
	mirror->noting = true;
	mirror->note_waits = 0;
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		member->note_owed = member->state == MEMBER_IN || member->state == MEMBER_JOINING;
		if (member->note_owed)
			mirror->note_waits |= bit_of(member);
	}
}

static void push_notes(struct mirror *mirror)
{
	uint8_t note[NOTE_LIMIT];
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		if (!member->note_owed)
			continue;
		int bytes = write_note(mirror, note, sizeof(note));
		if (link_note(member->link, note, (uint32_t)bytes, COOKIE_MIRROR_NOTE | mirror->generation) == 0)
			member->note_owed = false;
	}
}

/* All that are named have it (M1): who leaves is out, who joins is in. */
static void noted(struct mirror *mirror)
{
	mirror->noting = false;
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		if (member->state == MEMBER_LEAVING) {
			member->state = MEMBER_OUT;
			log_warn("pool %u of the mirror is out: %s", i, link_why(member->link));
			release_duty(mirror, member);
		} else if (member->state == MEMBER_JOINING) {
			member->state = MEMBER_IN;
			log_info("pool %u of the mirror is in again", i);
		}
	}
}

static unsigned count_in(const struct mirror *mirror)
{
	unsigned in = 0;
	for (unsigned i = 0; i < mirror->count; i++)
		in += mirror->member[i].state == MEMBER_IN;
	return in;
}

/* It does not answer. The last one is waited for: nobody could be told that it is out. */
static void leave(struct mirror *mirror, struct member *member)
{
	switch (member->state) {
	case MEMBER_IN:
		if (count_in(mirror) == 1)
			return;
		member->state = MEMBER_LEAVING;
		begin_note(mirror);
		break;
	case MEMBER_JOINING: /* the note that names it may be with some: one that does not must follow */
		member->state = MEMBER_LEAVING;
		begin_note(mirror);
		break;
	case MEMBER_REPLAYS:
	case MEMBER_COPIES:
		catch_up_put_back(mirror, member);
		member->state = MEMBER_OUT;
		break;
	case MEMBER_LEAVING:
	case MEMBER_OUT:
	case MEMBER_GONE:
		break;
	}
}

/* ---- changes ---- */

static bool has_room(const struct mirror *mirror)
{
	if (operation_at((struct mirror *)mirror, mirror->next)->used)
		return false;
	for (unsigned i = 0; i < mirror->count; i++)
		if (is_fed(&mirror->member[i]) && !link_has_room(mirror->member[i].link))
			return false;
	return true;
}

struct change {
	struct missed structure; /* or, where ranges is not NULL, a put */
	const struct page_range *ranges;
	size_t count;
	const struct iovec *data;
	size_t data_count;
};

static int feed(struct member *member, const struct change *change, uint64_t cookie)
{
	const struct missed *what = &change->structure;
	if (change->ranges && change->data)
		return link_put(member->link, what->space, change->ranges, change->count, change->data, change->data_count, cookie);
	if (change->ranges)
		return link_drop(member->link, what->space, change->ranges, change->count, cookie);
	if (what->kind == MISSED_MOVE)
		return link_move(member->link, what->space, what->a, what->b, what->pages, cookie);
	if (what->kind == MISSED_FORK)
		return link_fork(member->link, what->space, (uint32_t)what->a, cookie);
	return link_space_free(member->link, what->space, cookie);
}

/* For one that is out, or still lacks something. */
static void remember(struct mirror *mirror, struct member *member, const struct change *change)
{
	void (*note)(struct mirror *, struct member *, const struct missed *) = member->state == MEMBER_COPIES ? copies_follow : missed_structure;
	if (member->state == MEMBER_GONE)
		return;
	if (change->ranges && change->data && member->state == MEMBER_COPIES)
		copies_touched(member, change->structure.space, change->ranges, change->count);
	else if (change->ranges && change->data)
		missed_put(mirror, member, change->structure.space, change->ranges, change->count);
	else if (change->ranges)
		for (size_t i = 0; i < change->count; i++)
			note(mirror, member, &(struct missed){ MISSED_DROP, change->structure.space, change->ranges[i].pgno, 0,
							       change->ranges[i].pages });
	else
		note(mirror, member, &change->structure);
}

static int make(struct mirror *mirror, const struct change *change, uint64_t cookie)
{
	if (mirror->failure)
		return mirror->failure;
	if (!has_room(mirror))
		return -EAGAIN;
	struct mirrored *operation = operation_at(mirror, mirror->next);
	*operation = (struct mirrored){ .number = mirror->next, .cookie = cookie, .used = true };
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		if (is_fed(member)) {
			int ret = feed(member, change, mirror->next);
			if (ret == -EINVAL) { /* for all of them */
				operation->used = false;
				return ret;
			}
			if (ret)
				leave(mirror, member);
			if (ret && member->state == MEMBER_IN) /* its link has ended, and it is the last */
				return mirror_end(mirror, ret, link_why(member->link));
		}
		if (is_bound(member))
			operation->waiting |= bit_of(member);
		if (!is_fed(member) || member->state == MEMBER_COPIES)
			remember(mirror, member, change);
	}
	mirror->next++;
	return 0;
}

static int put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	       size_t data_count, uint64_t cookie)
{
	struct change change = { { .space = space_number_of(space) }, ranges, count, data, data_count };
	return make(of(source), &change, cookie);
}

static int drop(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	struct change change = { { .space = space_number_of(space) }, ranges, count, NULL, 0 };
	return make(of(source), &change, cookie);
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	struct change change = { .structure = { MISSED_MOVE, space_number_of(space), from_pgno, to_pgno, pages } };
	return make(of(source), &change, cookie);
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	struct mirror *mirror = of(source);
	uint32_t number = space_numbers_choose(&mirror->numbers, *child);
	if (!number)
		return -EOVERFLOW;
	struct change change = { .structure = { .kind = MISSED_FORK, .space = space_number_of(parent), .a = number } };
	int ret = make(mirror, &change, cookie);
	if (!ret)
		*child = space_numbers_take(&mirror->numbers, number);
	return ret;
}

static int space_free(struct source *source, uint64_t space, uint64_t cookie)
{
	struct mirror *mirror = of(source);
	struct change change = { .structure = { .kind = MISSED_FREE, .space = space_number_of(space) } };
	int ret = make(mirror, &change, cookie);
	if (!ret)
		space_numbers_free(&mirror->numbers, space_number_of(space));
	return ret;
}

/* ---- reading ---- */

struct member *mirror_reader(struct mirror *mirror, uint8_t but)
{
	struct member *waits = NULL;
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		if (member->state != MEMBER_IN || but & bit_of(member)) /* M3 */
			continue;
		if (is_there(member))
			return member;
		waits = waits ? waits : member;
	}
	return waits;
}

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last);
static void on_done(void *context, uint64_t cookie, int result);
static void on_damaged(void *context, uint64_t cookie, struct page_range range, bool last);

static struct client_handler handler_of(struct member *member)
{
	return (struct client_handler){ member, on_pages, on_done, on_damaged };
}

static int ask_rest(struct mirror *mirror, struct mirror_get *get, struct member *from)
{
	struct client_handler handler = handler_of(from);
	struct page_range ranges[64];
	size_t count = get->count - get->at;
	memcpy(ranges, get->ranges + get->at, count * sizeof(*ranges));
	ranges[0].pgno += get->page_at;
	ranges[0].pages -= get->page_at;
	get->member = (uint8_t)index_of(from);
	uint32_t generation = ++get->generation;
	get->asked = true;
	int ret = link_get(from->link, &handler, (enum request_class)get->class, get->space, ranges, count,
			   COOKIE_MIRROR_GET | (uint64_t)generation << 16 | (uint64_t)(get - mirror->gets));
	if (ret) /* nothing of it was answered: else it is over, or another's */
		get->asked = false;
	return ret;
}

int mirror_ask(struct mirror *mirror, struct member *from, enum request_class class, uint32_t space, const struct page_range *ranges,
	       size_t count, uint64_t cookie)
{
	struct mirror_get *get = NULL;
	for (size_t i = 0; i < MIRROR_GETS && !get; i++)
		get = mirror->gets[i].used ? NULL : &mirror->gets[i];
	if (!get)
		return -EAGAIN;
	uint32_t generation = get->generation;
	*get = (struct mirror_get){ .used = true, .class = (uint8_t)class, .generation = generation, .count = (uint32_t)count, .space = space,
				    .cookie = cookie };
	memcpy(get->ranges, ranges, count * sizeof(*ranges));
	int ret = ask_rest(mirror, get, from);
	if (ret)
		get->used = false;
	return ret;
}

static int get_pages(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count,
		     uint64_t cookie)
{
	struct mirror *mirror = of(source);
	if (mirror->failure)
		return mirror->failure;
	struct member *from = mirror_reader(mirror, 0);
	return from ? mirror_ask(mirror, from, class, space_number_of(space), ranges, count, cookie) : -EAGAIN;
}

/* The request that an answer of this member is for; NULL: it was asked of another meanwhile. */
static struct mirror_get *get_of(struct member *member, uint64_t cookie)
{
	struct mirror_get *get = &member->mirror->gets[cookie & 0xffff];
	return get->used && get->generation == (uint32_t)(cookie >> 16) && get->member == index_of(member) ? get : NULL;
}

static void deliver(struct mirror *mirror, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	if (cookie & COOKIE_COPY)
		catch_up_on_pages(mirror, &mirror->member[cookie >> 48 & 0xff], cookie, range, data, last);
	else
		mirror->source.handler.on_pages(mirror->source.handler.context, cookie, range, data, last);
}

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct member *member = context;
	struct mirror_get *get = get_of(member, cookie);
	if (!get)
		return;
	get->page_at += range.pages;
	if (get->page_at == get->ranges[get->at].pages) {
		get->at++;
		get->page_at = 0;
	}
	uint64_t own = get->cookie;
	get->used = !last;
	deliver(member->mirror, own, range, data, last);
}

static void get_failed(struct mirror *mirror, struct mirror_get *get, int result)
{
	get->used = false;
	if (get->cookie & COOKIE_COPY)
		catch_up_on_failure(&mirror->member[get->cookie >> 48 & 0xff], get->cookie, result);
	else
		mirror->source.handler.on_done(mirror->source.handler.context, get->cookie, result);
}

/* What one cannot give is asked of the others. The answer's other parts are then nobody's. */
static void on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	struct member *member = context;
	struct mirror *mirror = member->mirror;
	struct mirror_get *get = get_of(member, cookie);
	(void)range;
	(void)last;
	if (!get)
		return;
	get->tried |= bit_of(member);
	struct member *other = mirror_reader(mirror, get->tried);
	log_warn("pool %u of the mirror has a damaged page%s", index_of(member), other ? ": it is fetched from another" : "");
	if (!other)
		get_failed(mirror, get, -EIO);
	else
		ask_rest(mirror, get, other); /* where it cannot be taken now, fail_over tries again */
}

static void operation_done(struct mirror *mirror, struct member *member, uint64_t number, int result)
{
	struct mirrored *operation = operation_at(mirror, number);
	if (!operation->used || operation->number != number || !(operation->waiting & bit_of(member)))
		return;
	operation->waiting &= (uint8_t)~bit_of(member);
	if (result && !operation->result)
		operation->result = result;
	settle(mirror, operation, true);
}

static void on_done(void *context, uint64_t cookie, int result)
{
	struct member *member = context;
	struct mirror *mirror = member->mirror;
	if (cookie & COOKIE_MIRROR_NOTE) {
		if (mirror->noting && (cookie & ~COOKIE_MIRROR_NOTE) == mirror->generation) {
			mirror->note_waits &= (uint8_t)~bit_of(member);
			if (!mirror->note_waits)
				noted(mirror);
		}
	} else if (cookie & COOKIE_NOBODY) {
		if (result < 0 && result != -ENOENT && member->state >= MEMBER_REPLAYS) { /* such as a full store: not now */
			log_warn("pool %u of the mirror cannot catch up: %s", index_of(member), strerror(-result));
			member->state = MEMBER_GONE;
			catch_up_forget(member);
		}
	} else if (cookie & COOKIE_MIRROR_ORDER) {
		mirror->source.handler.on_done(mirror->source.handler.context, mirror->order_cookie, result);
	} else if (cookie & COOKIE_MIRROR_GET) {
		struct mirror_get *get = get_of(member, cookie);
		struct member *other = NULL;
		if (!get)
			return;
		get->tried |= bit_of(member);
		other = mirror_reader(mirror, get->tried);
		if (!other)
			get_failed(mirror, get, result);
		else
			ask_rest(mirror, get, other);
	} else {
		operation_done(mirror, member, cookie, result);
	}
}

static int order_put(struct source *source, const struct order_run *runs, size_t count, uint64_t cookie)
{
	struct mirror *mirror = of(source);
	struct member *member = mirror_reader(mirror, 0);
	if (!member)
		return -ENOTCONN;
	mirror->order_cookie = cookie;
	return link_order_put(member->link, runs, count, COOKIE_MIRROR_ORDER);
}

/* ---- coming and going ---- */

/* What was asked of one that is not there, or may not be read any more, is asked of another. */
static void fail_over(struct mirror *mirror)
{
	for (size_t i = 0; i < MIRROR_GETS && !mirror->failure; i++) {
		struct mirror_get *get = &mirror->gets[i];
		struct member *from = get->used ? &mirror->member[get->member] : NULL;
		if (!from || (get->asked && from->state == MEMBER_IN && is_there(from)))
			continue;
		struct member *other = mirror_reader(mirror, get->asked ? (uint8_t)(get->tried | bit_of(from)) : get->tried);
		if (other && is_there(other))
			ask_rest(mirror, get, other); /* where that cannot be taken now, it is tried again */
	}
}

static void member_failed(struct mirror *mirror, struct member *member, int error)
{
	if (error == -ESTALE) {
		mirror_end(mirror, error, link_why(member->link));
		return;
	}
	if (member->state == MEMBER_GONE)
		return;
	if (member->state == MEMBER_IN && count_in(mirror) == 1) {
		mirror_end(mirror, error, link_why(member->link));
		return;
	}
	leave(mirror, member);
	if (member->state != MEMBER_LEAVING) {
		member->state = MEMBER_GONE;
		catch_up_forget(member);
		log_warn("pool %u of the mirror has gone for good: %s", index_of(member), link_why(member->link));
	}
}

static bool impatient(const struct member *member, uint64_t now_ns)
{
	struct link_state state;
	link_state(member->link, &state);
	return state.waiting_since_ns && now_ns > state.waiting_since_ns && now_ns - state.waiting_since_ns > MIRROR_PATIENCE_NS;
}

static void look(struct mirror *mirror, struct member *member, uint64_t now_ns)
{
	struct link_state state;
	link_state(member->link, &state);
	if (is_fed(member) && impatient(member, now_ns))
		leave(mirror, member);
	if (member->state == MEMBER_REPLAYS && !state.attached)
		member->state = MEMBER_OUT;
	/* What was under way when it was lost has arrived: it goes on from there. */
	if (member->state == MEMBER_OUT && state.attached && state.first_unanswered == state.next_sequence) {
		log_info("pool %u of the mirror is back: %zu changes and %llu pages were missed", index_of(member),
			 member->missed_count, (unsigned long long)catch_up_behind_pages(member));
		member->state = MEMBER_REPLAYS;
	}
	catch_up_work(mirror, member);
	if (member->state == MEMBER_JOINING && state.first_unanswered >= member->join_at && !mirror->noting)
		begin_note(mirror);
}

static int receive(struct source *source)
{
	struct mirror *mirror = of(source);
	int calls = 0;
	bool lost = false;
	for (unsigned i = 0; i < mirror->count && !mirror->failure; i++) {
		struct member *member = &mirror->member[i];
		struct client_handler handler = handler_of(member);
		bool there = is_there(member);
		if (member->state == MEMBER_GONE)
			continue;
		int ret = link_receive(member->link, &handler);
		if (ret < 0)
			member_failed(mirror, member, ret);
		calls += DP_MAX(ret, 0);
		lost |= there && !is_there(member);
		catch_up_work(mirror, member);
		link_watch_update(&member->watch);
	}
	push_notes(mirror);
	if (lost)
		fail_over(mirror);
	return mirror->failure ? mirror->failure : calls;
}

static uint64_t work(struct source *source)
{
	struct mirror *mirror = of(source);
	uint64_t until_ns = UINT64_MAX, now_ns = clock_now_ns();
	for (unsigned i = 0; i < mirror->count && !mirror->failure; i++) {
		struct member *member = &mirror->member[i];
		if (member->state == MEMBER_GONE)
			continue;
		until_ns = DP_MIN(until_ns, link_watch_work(&member->watch));
		look(mirror, member, now_ns);
		if (member->state != MEMBER_IN)
			until_ns = DP_MIN(until_ns, WORK_NS);
		link_watch_update(&member->watch);
	}
	push_notes(mirror);
	if (now_ns >= mirror->next_fail_over_ns) {
		fail_over(mirror);
		mirror->next_fail_over_ns = now_ns + WORK_NS;
	}
	return until_ns;
}

static void health(const struct source *source, struct source_health *state)
{
	const struct mirror *mirror = of(source);
	state->pools = mirror->count;
	state->why = mirror->why;
	for (unsigned i = 0; i < mirror->count; i++) {
		const struct member *member = &mirror->member[i];
		struct link_state link;
		link_state(member->link, &link);
		state->reconnects += link.reconnects;
		state->pools_there += member->state == MEMBER_IN && link.attached;
		state->behind_pages += catch_up_behind_pages(member);
		if (member->state != MEMBER_IN)
			continue;
		/* The pager waits as long as the slowest that it has to wait for. */
		if (link.waiting_since_ns && (!state->waiting_since_ns || link.waiting_since_ns < state->waiting_since_ns))
			state->waiting_since_ns = link.waiting_since_ns;
		if (!link.attached)
			state->why = link_why(member->link);
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
		link_state(of(source)->member[i].link, &state);
		*in += state.bytes_in;
		*out += state.bytes_out;
	}
}

static void mirror_free(struct source *source)
{
	struct mirror *mirror = of(source);
	for (unsigned i = 0; i < mirror->count; i++) {
		link_free(mirror->member[i].link);
		catch_up_forget(&mirror->member[i]);
	}
	dp_close_fd(&mirror->epoll_fd);
	space_numbers_done(&mirror->numbers);
	free(mirror->operations);
	free(mirror->gets);
	free(mirror);
}

static const struct source_ops mirror_ops = {
	.find_space = find_space,
	.get = get_pages,
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
	.free = mirror_free,
};

static bool same_spaces(const struct client_attached *a, const struct client_attached *b)
{
	if (a->space_count != b->space_count)
		return false;
	for (size_t i = 0; i < a->space_count; i++)
		if (a->spaces[i].label != b->spaces[i].label || space_number_of(a->spaces[i].space) != space_number_of(b->spaces[i].space))
			return false;
	return true;
}

static int mirror_prepare(struct mirror *mirror, const struct client_attached *first, struct dp_err *err)
{
	mirror->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	mirror->operations = calloc(MIRROR_OPERATIONS, sizeof(*mirror->operations));
	mirror->gets = calloc(MIRROR_GETS, sizeof(*mirror->gets));
	int ret = space_numbers_init(&mirror->numbers, first);
	if (mirror->epoll_fd < 0 || !mirror->operations || !mirror->gets || ret)
		return dp_fail(err, ENOMEM, "room for a mirror");
	mirror->next = 1;
	return 0;
}

int source_mirror_new(struct source **source, const struct mirror_member *members, size_t count, bool ack_one, struct dp_err *err)
{
	struct mirror *mirror = calloc(1, sizeof(*mirror));
	if (!mirror)
		return dp_fail(err, ENOMEM, "out of memory");
	mirror->source = (struct source){ .ops = &mirror_ops, .writable = true };
	mirror->ack_one = ack_one;
	int ret = mirror_prepare(mirror, &members[0].attached, err);
	for (size_t i = 0; i < count && !ret; i++) {
		struct link_config config = members[i].config;
		struct member *member = &mirror->member[i];
		if (!same_spaces(&members[0].attached, &members[i].attached)) {
			ret = dp_fail(err, EINVAL, "pool %zu of the mirror has another snapshot under this name: copy it, then restore again", i + 1);
			break;
		}
		*member = (struct member){ .mirror = mirror, .state = MEMBER_IN };
		config.keep_all = true;
		config.silence_ns[CLASS_DEMAND] = config.silence_ns[CLASS_DEMAND] ? config.silence_ns[CLASS_DEMAND] : 1000000000u;
		if (config.near)
			client_read_near(members[i].client);
		ret = link_new(&member->link, &config, members[i].client, &members[i].attached, err);
		mirror->count += !ret;
		if (!ret)
			member->watch = link_watch(member->link, mirror->epoll_fd);
	}
	if (ret) {
		for (unsigned i = 0; i < mirror->count; i++)
			link_disown(mirror->member[i].link);
		mirror_free(&mirror->source);
		return ret;
	}
	begin_note(mirror);
	push_notes(mirror);
	*source = &mirror->source;
	return 0;
}

size_t source_mirror_instances(const struct source *source, uint64_t *instances, uint64_t *epochs, bool *in)
{
	if (source->ops != &mirror_ops)
		return 0;
	for (unsigned i = 0; i < of(source)->count; i++) {
		struct link_state state;
		link_state(of(source)->member[i].link, &state);
		instances[i] = state.instance;
		epochs[i] = state.epoch;
		in[i] = of(source)->member[i].state == MEMBER_IN;
	}
	return of(source)->count;
}
