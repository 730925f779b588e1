/* What a dead pager left of a mirror (pager/mirror.h), taken by the next: whatever lies there, it is refused, or gone on with in
 * such a way that nothing beyond an array is touched, no pool is told what cannot be, and it comes to an end. The links are
 * answered for here: they take what they are given, and answer when they are asked to receive. Time passes by being looked at,
 * and whoever waits for a link is told at once that it has something to say. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "base/base.h"
#include "base/log.h"
#include "input.h"
#include "pager/mirror.h"

#define NO_FILE 0x40000000
#define WAITING 32u
#define ROUNDS 24u
#define TICK_NS UINT64_C(100000000)

/* ---- time, and links ---- */

struct asked {
	uint64_t cookie;
	uint32_t pages; /* of a GET, 0: another request */
	uint64_t pgno;
	bool operation;
};

struct far {
	bool attached, settled, silent, note_waits;
	uint8_t failure; /* every so many answers; 0: none */
	uint64_t next, answers;
	struct asked asked[WAITING];
	unsigned count, operations;
};

static struct far far[MIRROR_MEMBERS];
static unsigned far_count;
static uint64_t now_ns;

uint64_t __wrap_clock_now_ns(void);
uint64_t __wrap_clock_now_ns(void)
{
	return now_ns += TICK_NS;
}

static struct far *far_of(const struct link *link)
{
	return (struct far *)link;
}

int __wrap_link_new_lost(struct link **link, const struct link_config *config, const struct client_attached *attached,
			 struct dp_err *err);
int __wrap_link_new_lost(struct link **link, const struct link_config *config, const struct client_attached *attached,
			 struct dp_err *err)
{
	*link = (struct link *)&far[far_count++];
	return 0;
}

void __wrap_link_free(struct link *link);
void __wrap_link_free(struct link *link)
{
}

static int ask(struct link *link, uint64_t cookie, bool operation, struct page_range range)
{
	struct far *to = far_of(link);

	if (to->count == WAITING || !to->settled)
		return -EAGAIN;
	to->asked[to->count++] = (struct asked){ cookie, (uint32_t)range.pages, range.pgno, operation };
	to->next += operation;
	to->operations += operation;
	return 0;
}

static int change(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	assert(space >> SPACE_BITS == 0 && count <= MIRROR_RANGES);
	for (size_t i = 0; i < count; i++)
		assert(ranges[i].pages <= PGNO_END && ranges[i].pgno <= PGNO_END - ranges[i].pages);
	return ask(link, cookie, true, (struct page_range){ 0, 0 });
}

int __wrap_link_put(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
		    size_t data_count, uint64_t cookie);
int __wrap_link_put(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
		    size_t data_count, uint64_t cookie)
{
	uint64_t pages = 0, bytes = 0;

	for (size_t i = 0; i < count; i++)
		pages += ranges[i].pages;
	for (size_t i = 0; i < data_count; i++)
		bytes += data[i].iov_len;
	assert(bytes == pages * PAGE_BYTES);
	return change(link, space, ranges, count, cookie);
}

int __wrap_link_drop(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, uint64_t cookie);
int __wrap_link_drop(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	return change(link, space, ranges, count, cookie);
}

int __wrap_link_move(struct link *link, uint32_t space, uint64_t from, uint64_t to, uint64_t pages, uint64_t cookie);
int __wrap_link_move(struct link *link, uint32_t space, uint64_t from, uint64_t to, uint64_t pages, uint64_t cookie)
{
	return change(link, space, (const struct page_range[]){ { from, pages }, { to, pages } }, 2, cookie);
}

int __wrap_link_fork(struct link *link, uint32_t parent, uint32_t child, uint64_t cookie);
int __wrap_link_fork(struct link *link, uint32_t parent, uint32_t child, uint64_t cookie)
{
	assert(child >> SPACE_BITS == 0);
	return change(link, parent, NULL, 0, cookie);
}

int __wrap_link_space_free(struct link *link, uint32_t space, uint64_t cookie);
int __wrap_link_space_free(struct link *link, uint32_t space, uint64_t cookie)
{
	return change(link, space, NULL, 0, cookie);
}

int __wrap_link_note(struct link *link, const void *note, uint32_t bytes, uint64_t cookie);
int __wrap_link_note(struct link *link, const void *note, uint32_t bytes, uint64_t cookie)
{
	struct far *to = far_of(link);
	int ret = to->note_waits ? -EAGAIN : ask(link, cookie, false, (struct page_range){ 0, 0 });

	assert(bytes && bytes <= 1000);
	to->note_waits |= !ret;
	return ret;
}

int __wrap_link_get(struct link *link, const struct client_handler *handler, enum request_class class, uint32_t space,
		    const struct page_range *ranges, size_t count, uint64_t cookie);
int __wrap_link_get(struct link *link, const struct client_handler *handler, enum request_class class, uint32_t space,
		    const struct page_range *ranges, size_t count, uint64_t cookie)
{
	assert(space >> SPACE_BITS == 0 && count == 1 && ranges->pages && ranges->pages <= MIRROR_BLOCK_PAGES);
	assert(ranges->pgno <= PGNO_END - ranges->pages);
	return ask(link, cookie, false, *ranges);
}

bool __wrap_link_has_room(const struct link *link);
bool __wrap_link_has_room(const struct link *link)
{
	return far_of(link)->count < WAITING;
}

static void answer(struct far *from, const struct client_handler *handler)
{
	static const uint8_t pages[MIRROR_BLOCK_PAGES * PAGE_BYTES];
	struct asked asked = from->asked[0];
	bool fails = from->failure && ++from->answers % from->failure == 0;

	memmove(from->asked, from->asked + 1, --from->count * sizeof(*from->asked));
	from->operations -= asked.operation;
	if (!asked.pages) {
		from->note_waits &= !(asked.cookie & COOKIE_MIRROR_NOTE);
		handler->on_done(handler->context, asked.cookie, fails && asked.operation ? -ENOSPC : 0);
	} else if (fails) {
		handler->on_damaged(handler->context, asked.cookie, (struct page_range){ asked.pgno, asked.pages }, true);
	} else {
		struct page_range first = { asked.pgno, asked.pages / 2 };
		struct page_range rest = { asked.pgno + first.pages, asked.pages - first.pages };

		if (first.pages)
			handler->on_pages(handler->context, asked.cookie, first, pages, false);
		handler->on_pages(handler->context, asked.cookie, rest, NULL, true);
	}
}

int __wrap_link_receive(struct link *link, const struct client_handler *handler);
int __wrap_link_receive(struct link *link, const struct client_handler *handler)
{
	struct far *from = far_of(link);
	unsigned count = from->attached && !from->silent ? from->count : 0;

	for (unsigned i = 0; i < count; i++)
		answer(from, handler);
	return (int)count;
}

uint64_t __wrap_link_work(struct link *link);
uint64_t __wrap_link_work(struct link *link)
{
	return UINT64_MAX;
}

int __wrap_link_fd(const struct link *link);
int __wrap_link_fd(const struct link *link)
{
	return 0;
}

int __wrap_epoll_create1(int flags);
int __wrap_epoll_create1(int flags)
{
	return NO_FILE;
}

int __wrap_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event);
int __wrap_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event)
{
	assert(epoll_fd == NO_FILE);
	return 0;
}

bool __wrap_link_wants_write(const struct link *link);
bool __wrap_link_wants_write(const struct link *link)
{
	return false;
}

const char *__wrap_link_why(const struct link *link);
const char *__wrap_link_why(const struct link *link)
{
	return "";
}

void __wrap_link_state(const struct link *link, struct link_state *state);
void __wrap_link_state(const struct link *link, struct link_state *state)
{
	const struct far *of = far_of(link);

	*state = (struct link_state){ .attached = of->attached,
				      .settled = of->settled,
				      .waiting_since_ns = of->count ? now_ns - (of->silent ? 2 * MIRROR_PATIENCE_NS : 0) : 0,
				      .pending_operations = of->operations,
				      .instance = 1,
				      .epoch = 1,
				      .next_sequence = of->next,
				      .first_unanswered = of->next - of->operations };
}

/* ---- the input ---- */

static void write_change(struct input *input, struct missed *change)
{
	change->kind = next_byte(input) % 8;
	change->space = (uint32_t)next_number(input);
	change->a = next_number(input);
	change->b = next_number(input);
	change->pages = next_number(input);
	change->number = next_number(input);
	change->sequence = next_number(input);
}

static void write_operation(struct input *input, struct mirror_saved *saved)
{
	uint64_t number = next_number(input);
	struct mirrored *operation = &saved->operation[number % MIRROR_OPERATIONS];

	operation->number = number;
	write_change(input, &operation->what);
	for (unsigned i = 0; i < MIRROR_MEMBERS; i++)
		operation->sequence[i] = next_number(input);
	operation->count = (uint32_t)next_number(input);
	operation->waiting = next_byte(input);
	operation->used = next_byte(input) & 1;
	for (uint32_t i = 0; i < operation->count && i < 3; i++)
		operation->ranges[i] = (struct page_range){ next_number(input), next_number(input) };
}

static void write_member(struct input *input, struct member_saved *saved)
{
	uint8_t what = next_byte(input);

	switch (what % 4) {
	case 0:
		saved->state = next_byte(input) % (MEMBER_GONE + 2);
		saved->spoiled = what >> 7;
		saved->missed_done = next_number(input);
		break;
	case 1: {
		uint8_t add = next_byte(input) % 4;

		for (unsigned i = 0; i < add && saved->missed_count < MIRROR_MISSED_LIMIT; i++)
			write_change(input, &saved->missed[saved->missed_count++]);
		if (what & 0x80)
			saved->missed_count = next_number(input);
		break;
	}
	case 2:
		saved->copy[what >> 2 & 7].used = 1;
		saved->copy[what >> 2 & 7].space = (uint32_t)next_number(input);
		saved->copy[what >> 2 & 7].block = next_number(input);
		break;
	default: {
		uint8_t size = next_byte(input), count = next_byte(input);
		uint64_t room = size & 0x20 ? 1 : (uint64_t)(MIRROR_KEYS_FIRST / 2) << size % 4;

		saved->table = (size & 0x80 ? room + 1 : room) << 1 | (size >> 6 & 1);
		for (unsigned i = 0; i < count && i < MIRROR_KEYS; i++) {
			uint64_t key = next_number(input);

			if (key && !(what & 0x80))
				key = UINT64_C(1) << 40 | (key + 2);
			saved->key[saved->table & 1][((what >> 2) + i) % MIRROR_KEYS] = key;
		}
	}
	}
}

static void write_saved(struct input *input, struct mirror_saved *saved)
{
	uint8_t records = next_byte(input) % 32;

	for (unsigned i = 0; i < records && input->at < input->end; i++) {
		uint8_t what = next_byte(input);

		if (what % 4 == 3) {
			saved->highest_space = next_number(input);
			saved->generation = next_number(input);
		} else if (what % 4) {
			write_member(input, &saved->member[(what >> 2) % MIRROR_MEMBERS]);
		} else {
			write_operation(input, saved);
		}
	}
}

/* ---- the pager's side ---- */

static uint64_t told;

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
}

static void on_done(void *context, uint64_t cookie, int result)
{
	told++;
}

static void on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
}

static struct source *new_mirror(unsigned count, bool ack_one)
{
	struct client_attached attached = { .instance = 1, .epoch = 1, .applied = LINK_UNSETTLED };
	struct mirror_member members[MIRROR_MEMBERS];
	struct source *source;

	for (unsigned i = 0; i < count; i++)
		members[i] = (struct mirror_member){ .attached = attached };
	far_count = 0;
	if (source_mirror_new(&source, members, count, ack_one, NULL) < 0)
		abort();
	source->handler = (struct source_handler){ NULL, on_pages, on_done, on_damaged };
	return source;
}

/* One of the calls that a pager makes. */
static int call(struct source *source, struct input *input, uint64_t cookie)
{
	static uint8_t page[PAGE_BYTES];
	const struct iovec data = { page, sizeof(page) };
	struct page_range range = { next_byte(input), 1 };
	uint64_t child = 0, space = 1 + next_byte(input) % 4;

	switch (next_byte(input) % 6) {
	case 0:
		return source->ops->put(source, space, &range, 1, &data, 1, cookie);
	case 1:
		return source->ops->drop(source, space, &range, 1, cookie);
	case 2:
		return source->ops->move(source, space, range.pgno, range.pgno + 300, 70, cookie);
	case 3:
		return source->ops->fork(source, space, &child, cookie);
	case 4:
		return source->ops->space_free(source, space, cookie);
	default:
		return source->ops->get(source, CLASS_DEMAND, space, &range, 1, cookie);
	}
}

static void go_on(struct source *source, struct input *input)
{
	struct source_health health = { 0 };
	uint64_t calls = 0;

	told = 0;
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint8_t what = next_byte(input);
		struct far *one = &far[what % far_count];

		if (what & 0x80)
			calls += call(source, input, round + 1) == 0;
		if ((what & 0x70) == 0x70)
			one->attached = !one->attached;
		if ((what & 0x70) == 0x60)
			one->silent = !one->silent;
		one->settled |= one->attached;
		if (source->ops->receive(source) < 0)
			break;
		source->ops->work(source);
	}
	source->ops->health(source, &health);
	assert(told <= calls + MIRROR_OPERATIONS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, data + size };
	uint8_t how = next_byte(&input);
	unsigned count = 2 + how % (MIRROR_MEMBERS - 1);
	struct source_resume resume = { .patience_ns = 3 * MIRROR_PATIENCE_NS, .ended_fd = -1 };
	struct mirror_saved *saved = mmap(NULL, sizeof(*saved), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (saved == MAP_FAILED)
		abort();
	log_setup(2, LOG_LEVEL_ERROR, "");
	memset(far, 0, sizeof(far));
	now_ns = UINT64_C(1) << 40;
	resume.began_ns = now_ns;
	struct source *dead = new_mirror(count, how & 0x80); /* makes what another can take */

	dead->ops->keep(dead, saved);
	dead->ops->free(dead);
	for (unsigned i = 0; i < count; i++) {
		uint8_t byte = next_byte(&input);

		far[i] = (struct far){ .attached = !(byte & 1), .settled = !(byte & 3), .silent = (byte & 0x1c) == 0x1c,
				       .failure = byte >> 5, .next = 1 + next_byte(&input) };
	}
	resume.answered = next_number(&input);
	resume.last = resume.answered + next_byte(&input) % 16;
	resume.answered = DP_MIN(resume.answered, resume.last);
	resume.highest_child = next_byte(&input);
	write_saved(&input, saved);
	struct source *source = new_mirror(count, how & 0x80);

	source->ops->keep(source, saved);
	if (source->ops->resume(source, &resume) == 0) {
		assert(resume.applied >= resume.answered);
		go_on(source, &input);
	}
	source->ops->free(source);
	munmap(saved, sizeof(*saved));
	return 0;
}
