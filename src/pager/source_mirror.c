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

/* Gets every change as it is made. */
static bool is_fed(const struct member *member)
{
	uint32_t state = member->saved->state;
	return state == MEMBER_IN || state == MEMBER_COPIES || state == MEMBER_JOINING;
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

/* Is it safe now? */
static bool is_acknowledged(const struct mirror *mirror, const struct mirrored *operation, bool any)
{
	return !operation->waiting || (mirror->ack_one && any && !(operation->waiting & MIRROR_MAKING));
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
static void release_duty(struct mirror *mirror, struct member *member)
{
	member->release_owed = false;
	for (uint64_t number = mirror->next > MIRROR_OPERATIONS ? mirror->next - MIRROR_OPERATIONS : 1; number < mirror->next;
	     number++) {
		struct mirrored *operation = mirror_operation(mirror, number);
		if (!operation->used || !(operation->waiting & member_bit(member)))
			continue;
		operation->waiting &= (uint8_t)~member_bit(member);
		settle(mirror, operation, false);
	}
}

static void release_owed(struct mirror *mirror)
{
	for (unsigned i = 0; i < mirror->count; i++)
		if (mirror->member[i].release_owed)
			release_duty(mirror, &mirror->member[i]);
}

/* ---- who is in: the note ---- */

static int write_note(const struct mirror *mirror, uint8_t *bytes, size_t size)
{
	struct bytes_writer out = bytes_writer(bytes, size);
	bytes_put_u32(&out, NOTE_MAGIC);
	bytes_put_u32(&out, mirror->count);
	bytes_put_u64(&out, mirror->saved->generation);
	for (unsigned i = 0; i < mirror->count; i++) {
		struct link_state state;
		link_state(mirror->member[i].link, &state);
		bytes_put_u64(&out, state.instance);
		bytes_put_u32(&out,
			      mirror->member[i].saved->state == MEMBER_IN || mirror->member[i].saved->state == MEMBER_JOINING);
		bytes_put_u32(&out, 0);
	}
	return out.bad ? -EMSGSIZE : (int)(out.at - out.start);
}

void mirror_begin_note(struct mirror *mirror)
{
	mirror->saved->generation++;
	mirror->noting = true;
	mirror->note_waits = 0;
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		member->note_owed = member->saved->state == MEMBER_IN || member->saved->state == MEMBER_JOINING;
		if (member->note_owed)
			mirror->note_waits |= member_bit(member);
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
		if (link_note(member->link, note, (uint32_t)bytes, COOKIE_MIRROR_NOTE | mirror->saved->generation) == 0)
			member->note_owed = false;
	}
}

/* All that are named have it (M1): who leaves is out, who joins is in. */
static void noted(struct mirror *mirror)
{
	mirror->noting = false;
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		if (member->saved->state == MEMBER_LEAVING) {
			member->saved->state = member->saved->spoiled ? MEMBER_GONE : MEMBER_OUT;
			log_warn("pool %u of the mirror is out: %s", i, link_why(member->link));
			release_duty(mirror, member);
		} else if (member->saved->state == MEMBER_JOINING) {
			member->saved->state = MEMBER_IN;
			log_info("pool %u of the mirror is in again", i);
		}
	}
}

static unsigned count_in(const struct mirror *mirror)
{
	unsigned in = 0;
	for (unsigned i = 0; i < mirror->count; i++)
		in += mirror->member[i].saved->state == MEMBER_IN;
	return in;
}

/* Has it answered all that was acknowledged? With ack_one another may have done so alone. */
static bool has_acknowledged(struct mirror *mirror, const struct member *member)
{
	for (uint32_t i = 0; i < MIRROR_OPERATIONS; i++) {
		const struct mirrored *operation = &mirror->saved->operation[i];
		if (operation->used && operation->told && operation->number < mirror->next &&
		    operation->waiting & member_bit(member))
			return false;
	}
	return true;
}

/* Is another in that has all which was acknowledged? */
static bool can_do_without(struct mirror *mirror, const struct member *member)
{
	for (unsigned i = 0; i < mirror->count; i++) {
		const struct member *other = &mirror->member[i];
		if (other != member && other->saved->state == MEMBER_IN && has_acknowledged(mirror, other))
			return true;
	}
	return false;
}

/* It does not answer. The last one is waited for: nobody could be told that it is out. What it has not answered is missed from
 * now on (M7), though its own link may still bring it there. */
static void leave(struct mirror *mirror, struct member *member)
{
	switch ((enum member_state)member->saved->state) {
	case MEMBER_IN:
		if (!can_do_without(mirror, member))
			return;
		missed_unanswered(mirror, member);
		mirror_in_order();
		member->saved->state = MEMBER_LEAVING;
		mirror_begin_note(mirror);
		break;
	case MEMBER_JOINING: /* the note that names it may be with some: one that does not must follow */
		missed_unanswered(mirror, member);
		mirror_in_order();
		member->saved->state = MEMBER_LEAVING;
		mirror_begin_note(mirror);
		break;
	case MEMBER_COPIES:
		missed_unanswered(mirror, member);
		catch_up_put_back(mirror, member);
		if (member->saved->state == MEMBER_COPIES) /* not too much */
			member->saved->state = MEMBER_OUT;
		member->release_owed = true;
		break;
	case MEMBER_REPLAYS:
		member->saved->state = MEMBER_OUT;
		break;
	case MEMBER_LEAVING:
	case MEMBER_OUT:
	case MEMBER_GONE:
		break;
	}
}

void mirror_give_up(struct mirror *mirror, struct member *member)
{
	uint32_t state = member->saved->state;
	(void)mirror;
	member->saved->spoiled = 1;
	catch_up_forget(member);
	if (state == MEMBER_IN || state == MEMBER_LEAVING || state == MEMBER_JOINING)
		return; /* it has a duty, which ends with a note */
	member->saved->state = MEMBER_GONE;
	member->release_owed = true;
}

/* ---- changes ---- */

static bool has_room(struct mirror *mirror)
{
	const struct mirrored *place = mirror_operation(mirror, mirror->next);
	if (place->used && place->number != mirror->next)
		return false;
	for (unsigned i = 0; i < mirror->count; i++)
		if (is_fed(&mirror->member[i]) && !link_has_room(mirror->member[i].link))
			return false;
	return true;
}

struct change {
	struct missed structure; /* or, where ranges is not NULL, a put or a drop */
	const struct page_range *ranges;
	size_t count;
	const struct iovec *data;
	size_t data_count;
};

static int feed(struct member *member, const struct change *change, uint64_t cookie)
{
	const struct missed *what = &change->structure;
	switch ((enum missed_kind)what->kind) {
	case MISSED_PUT:
		return link_put(member->link, what->space, change->ranges, change->count, change->data, change->data_count,
				cookie);
	case MISSED_DROP:
		return link_drop(member->link, what->space, change->ranges, change->count, cookie);
	case MISSED_MOVE:
		return link_move(member->link, what->space, what->a, what->b, what->pages, cookie);
	case MISSED_FORK:
		return link_fork(member->link, what->space, (uint32_t)what->a, cookie);
	case MISSED_FREE:
		return link_space_free(member->link, what->space, cookie);
	}
	return -EINVAL;
}

/* Into the ring (M5). One that a dead pager had begun is there already, as it was then; some have it. */
static void note_operation(struct mirror *mirror, const struct change *change, uint64_t cookie)
{
	struct mirrored *operation = mirror_operation(mirror, mirror->next);
	if (operation->number != mirror->next) {
		operation->number = 0;
		mirror_in_order();
		memset(operation->sequence, 0, sizeof(operation->sequence));
		operation->what = change->structure;
		operation->count = (uint32_t)change->count;
		if (change->count)
			memcpy(operation->ranges, change->ranges, change->count * sizeof(*change->ranges));
	}
	operation->waiting = MIRROR_MAKING;
	operation->told = false;
	operation->result = 0;
	operation->cookie = cookie;
	operation->used = true;
	mirror_in_order();
	operation->number = mirror->next;
}

/* Who gets it, and who misses it: all of them before any is told (M7). */
static uint8_t prepare(struct mirror *mirror, struct mirrored *operation)
{
	uint8_t to = 0;
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		if (operation->sequence[i] || member->saved->state == MEMBER_GONE)
			continue; /* it has it since before a crash */
		if (is_fed(member)) {
			to |= member_bit(member);
			operation->waiting |= member_bit(member);
			continue;
		}
		if (member->saved->state == MEMBER_LEAVING)
			operation->waiting |= member_bit(member);
		missed_note(mirror, member, operation, 0);
	}
	return to;
}

static int make(struct mirror *mirror, const struct change *change, uint64_t cookie)
{
	if (mirror->failure)
		return mirror->failure;
	if (!has_room(mirror))
		return -EAGAIN;
	if (change->count > MIRROR_RANGES)
		return -EINVAL;
	struct mirrored *operation = mirror_operation(mirror, mirror->next);
	note_operation(mirror, change, cookie);
	uint8_t to = prepare(mirror, operation);
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		if (!(to & member_bit(member)))
			continue;
		operation->sequence[i] = member_link(member).next_sequence;
		mirror_in_order();
		int ret = feed(member, change, mirror->next);
		if (ret)
			operation->sequence[i] = 0;
		if (ret == -EINVAL) { /* for all of them */
			operation->used = false;
			operation->number = 0;
			return ret;
		}
		if (ret)
			leave(mirror, member);
		if (ret && member->saved->state == MEMBER_IN) /* its link has ended, and it is the last */
			return mirror_end(mirror, ret, link_why(member->link));
		if (member->saved->state == MEMBER_COPIES)
			copies_follow(mirror, member, operation);
	}
	mirror->next++;
	operation->waiting &= (uint8_t)~MIRROR_MAKING;
	if (!operation->waiting)
		settle(mirror, operation, true);
	return 0;
}

static int put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	       size_t data_count, uint64_t cookie)
{
	struct change change = { { .kind = MISSED_PUT, .space = space_number_of(space) }, ranges, count, data, data_count };
	return make(mirror_of(source), &change, cookie);
}

static int drop(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	struct change change = { { .kind = MISSED_DROP, .space = space_number_of(space) }, ranges, count, NULL, 0 };
	return make(mirror_of(source), &change, cookie);
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	struct change change = { .structure = { .kind = MISSED_MOVE,
						.space = space_number_of(space),
						.a = from_pgno,
						.b = to_pgno,
						.pages = pages } };
	return make(mirror_of(source), &change, cookie);
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	struct mirror *mirror = mirror_of(source);
	const struct mirrored *begun = mirror_operation(mirror, mirror->next);
	uint32_t number = space_numbers_choose(&mirror->numbers, *child);
	/* Some may have it since before a crash: the number that was chosen then. */
	if (!*child && begun->number == mirror->next && begun->what.kind == MISSED_FORK)
		number = (uint32_t)begun->what.a;
	if (!number)
		return -EOVERFLOW;
	mirror->saved->highest_space = DP_MAX(mirror->saved->highest_space, number);
	struct change change = { .structure = { .kind = MISSED_FORK, .space = space_number_of(parent), .a = number } };
	int ret = make(mirror, &change, cookie);
	if (!ret)
		*child = space_numbers_take(&mirror->numbers, number);
	return ret;
}

static int space_free(struct source *source, uint64_t space, uint64_t cookie)
{
	struct mirror *mirror = mirror_of(source);
	struct change change = { .structure = { .kind = MISSED_FREE, .space = space_number_of(space) } };
	int ret = make(mirror, &change, cookie);
	if (!ret)
		space_numbers_free(&mirror->numbers, space_number_of(space));
	return ret;
}

static void operation_done(struct mirror *mirror, struct member *member, uint64_t number, int result)
{
	struct mirrored *operation = mirror_operation(mirror, number);
	if (!operation->used || operation->number != number || !(operation->waiting & member_bit(member)))
		return;
	operation->waiting &= (uint8_t)~member_bit(member);
	if (result && !operation->result)
		operation->result = result;
	settle(mirror, operation, member->saved->state == MEMBER_IN);
}

void mirror_on_done(void *context, uint64_t cookie, int result)
{
	struct member *member = context;
	struct mirror *mirror = member->mirror;
	if (cookie & COOKIE_MIRROR_NOTE) {
		if (mirror->noting && (cookie & ~COOKIE_MIRROR_NOTE) == mirror->saved->generation) {
			mirror->note_waits &= (uint8_t)~member_bit(member);
			if (!mirror->note_waits)
				noted(mirror);
		}
	} else if (cookie & COOKIE_NOBODY) {
		/* such as a full store: not now */
		if (result < 0 && result != -ENOENT && member->saved->state >= MEMBER_REPLAYS) {
			log_warn("pool %u of the mirror cannot catch up: %s", member_index(member), strerror(-result));
			mirror_give_up(mirror, member);
		}
	} else if (cookie & COOKIE_MIRROR_ORDER) {
		mirror->source.handler.on_done(mirror->source.handler.context, mirror->order_cookie, result);
	} else if (cookie & COOKIE_MIRROR_GET) {
		mirror_on_get_failed(member, cookie, result);
	} else {
		operation_done(mirror, member, cookie, result);
	}
}

static int order_put(struct source *source, const struct order_run *runs, size_t count, uint64_t cookie)
{
	struct mirror *mirror = mirror_of(source);
	struct member *member = mirror_reader(mirror, 0);
	if (!member)
		return -ENOTCONN;
	mirror->order_cookie = cookie;
	return link_order_put(member->link, runs, count, COOKIE_MIRROR_ORDER);
}

/* ---- coming and going ---- */

static void member_failed(struct mirror *mirror, struct member *member, int error)
{
	if (error == -ESTALE) {
		mirror_end(mirror, error, link_why(member->link));
		return;
	}
	if (member->saved->state == MEMBER_GONE)
		return;
	if (member->saved->state == MEMBER_IN && count_in(mirror) == 1) {
		mirror_end(mirror, error, link_why(member->link));
		return;
	}
	leave(mirror, member);
	if (member->saved->state == MEMBER_IN)
		return; /* another is to have all first */
	if (member->saved->state != MEMBER_LEAVING) {
		mirror_give_up(mirror, member);
		log_warn("pool %u of the mirror has gone for good: %s", member_index(member), link_why(member->link));
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
	struct link_state state = member_link(member);
	if (is_fed(member) && impatient(member, now_ns))
		leave(mirror, member);
	if (member->saved->state == MEMBER_REPLAYS && !state.attached)
		member->saved->state = MEMBER_OUT;
	mirror_settle(member);
	/* What was under way when it was lost has arrived: it goes on from there. */
	if (member->saved->state == MEMBER_OUT && state.attached && state.settled &&
	    state.first_unanswered == state.next_sequence && mirror->next > mirror->held && !member->release_owed) {
		log_info("pool %u of the mirror is back: %llu changes and %llu pages were missed", member_index(member),
			 (unsigned long long)member->saved->missed_count, (unsigned long long)catch_up_behind_pages(member));
		member->saved->state = MEMBER_REPLAYS;
	}
	catch_up_work(mirror, member);
	if (member->saved->state == MEMBER_JOINING && state.first_unanswered >= member->join_at && !mirror->noting)
		mirror_begin_note(mirror);
}

int mirror_receive(struct source *source)
{
	struct mirror *mirror = mirror_of(source);
	int calls = 0;
	bool lost = false;
	for (unsigned i = 0; i < mirror->count && !mirror->failure; i++) {
		struct member *member = &mirror->member[i];
		struct client_handler handler = mirror_handler(member);
		bool there = member_link(member).attached;
		if (member->saved->state == MEMBER_GONE)
			continue;
		int ret = link_receive(member->link, &handler);
		if (ret < 0)
			member_failed(mirror, member, ret);
		calls += DP_MAX(ret, 0);
		lost |= there && !member_link(member).attached;
		mirror_settle(member);
		catch_up_work(mirror, member);
		link_watch_update(&member->watch);
	}
	release_owed(mirror);
	push_notes(mirror);
	if (lost)
		mirror_fail_over(mirror);
	return mirror->failure ? mirror->failure : calls;
}

uint64_t mirror_work(struct source *source)
{
	struct mirror *mirror = mirror_of(source);
	uint64_t until_ns = UINT64_MAX, now_ns = clock_now_ns();
	for (unsigned i = 0; i < mirror->count && !mirror->failure; i++) {
		struct member *member = &mirror->member[i];
		if (member->saved->state == MEMBER_GONE)
			continue;
		until_ns = DP_MIN(until_ns, link_watch_work(&member->watch));
		look(mirror, member, now_ns);
		if (member->saved->state != MEMBER_IN)
			until_ns = DP_MIN(until_ns, WORK_NS);
		link_watch_update(&member->watch);
	}
	release_owed(mirror);
	push_notes(mirror);
	if (now_ns >= mirror->next_fail_over_ns) {
		mirror_fail_over(mirror);
		mirror->next_fail_over_ns = now_ns + WORK_NS;
	}
	return until_ns;
}

static void health(const struct source *source, struct source_health *state)
{
	const struct mirror *mirror = mirror_of(source);
	state->pools = mirror->count;
	state->why = mirror->why;
	for (unsigned i = 0; i < mirror->count; i++) {
		const struct member *member = &mirror->member[i];
		struct link_state link;
		link_state(member->link, &link);
		state->reconnects += link.reconnects;
		state->pools_there += member->saved->state == MEMBER_IN && link.attached;
		state->behind_pages += catch_up_behind_pages(member);
		if (member->saved->state != MEMBER_IN)
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
	return space_numbers_find(&mirror_of(source)->numbers, vpid, space, err);
}

static int fd(const struct source *source)
{
	return mirror_of(source)->epoll_fd;
}

static bool wants_write(const struct source *source)
{
	(void)source;
	return false; /* the links' own descriptors are watched for it */
}

static void bytes(const struct source *source, uint64_t *in, uint64_t *out)
{
	*in = *out = 0;
	for (unsigned i = 0; i < mirror_of(source)->count; i++) {
		struct link_state state;
		link_state(mirror_of(source)->member[i].link, &state);
		*in += state.bytes_in;
		*out += state.bytes_out;
	}
}

static void mirror_free(struct source *source)
{
	struct mirror *mirror = mirror_of(source);
	for (unsigned i = 0; i < mirror->count; i++) {
		link_free(mirror->member[i].link);
		catch_up_done(&mirror->member[i]);
	}
	mirror_saved_free(mirror);
	dp_close_fd(&mirror->epoll_fd);
	space_numbers_done(&mirror->numbers);
	free(mirror->gets);
	free(mirror);
}

static const struct source_ops mirror_ops = {
	.find_space = find_space,
	.get = mirror_get_pages,
	.put = put,
	.drop = drop,
	.move = move,
	.fork = fork_space,
	.space_free = space_free,
	.order_put = order_put,
	.keep = mirror_keep,
	.resume = mirror_resume,
	.receive = mirror_receive,
	.work = mirror_work,
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
		if (a->spaces[i].label != b->spaces[i].label ||
		    space_number_of(a->spaces[i].space) != space_number_of(b->spaces[i].space))
			return false;
	return true;
}

static int mirror_prepare(struct mirror *mirror, const struct client_attached *first, struct dp_err *err)
{
	mirror->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	mirror->saved = mirror_saved_new();
	mirror->saved_is_ours = true;
	mirror->gets = calloc(MIRROR_GETS, sizeof(*mirror->gets));
	int ret = space_numbers_init(&mirror->numbers, first);
	if (mirror->epoll_fd < 0 || !mirror->saved || !mirror->gets || ret)
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
			ret = dp_fail(err, EINVAL,
				      "pool %zu of the mirror has another snapshot under this name: copy it, then restore again",
				      i + 1);
			break;
		}
		*member = (struct member){ .mirror = mirror, .saved = &mirror->saved->member[i], .settled = members[i].client };
		catch_up_adopt(mirror, member);
		config.keep_all = true;
		config.silence_ns[CLASS_DEMAND] = config.silence_ns[CLASS_DEMAND] ? config.silence_ns[CLASS_DEMAND] : 1000000000u;
		if (config.near && members[i].client)
			client_read_near(members[i].client);
		ret = members[i].client ? link_new(&member->link, &config, members[i].client, &members[i].attached, err)
					: link_new_lost(&member->link, &config, &members[i].attached, err);
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
	if (members[0].client) {
		mirror_begin_note(mirror);
		push_notes(mirror);
	}
	*source = &mirror->source;
	return 0;
}

size_t source_mirror_instances(const struct source *source, uint64_t *instances, uint64_t *epochs, bool *there, bool *whole)
{
	if (source->ops != &mirror_ops)
		return 0;
	for (unsigned i = 0; i < mirror_of(source)->count; i++) {
		struct link_state state;
		link_state(mirror_of(source)->member[i].link, &state);
		instances[i] = state.instance;
		epochs[i] = state.epoch;
		there[i] = mirror_of(source)->member[i].saved->state == MEMBER_IN && state.attached;
		whole[i] = there[i] && !state.pending_operations;
	}
	return mirror_of(source)->count;
}
