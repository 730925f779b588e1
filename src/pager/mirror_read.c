/* Reading from a mirror: from a member that is in and there; where that is lost meanwhile, the rest of the answer from
 * another. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "pager/mirror.h"

struct member *mirror_reader(struct mirror *mirror, uint8_t but)
{
	struct member *waits = NULL;
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		if (member->saved->state != MEMBER_IN || but & member_bit(member)) /* M3 */
			continue;
		if (member_link(member).attached)
			return member;
		waits = waits ? waits : member;
	}
	return waits;
}

struct client_handler mirror_handler(struct member *member)
{
	return (struct client_handler){ member, mirror_on_pages, mirror_on_done, mirror_on_damaged };
}

static int ask_rest(struct mirror *mirror, struct mirror_get *get, struct member *from)
{
	struct client_handler handler = mirror_handler(from);
	struct page_range ranges[64];
	size_t count = get->count - get->at;
	memcpy(ranges, get->ranges + get->at, count * sizeof(*ranges));
	ranges[0].pgno += get->page_at;
	ranges[0].pages -= get->page_at;
	get->member = (uint8_t)member_index(from);
	uint32_t generation = ++get->generation;
	get->asked = true;
	int ret = link_get(from->link, &handler, (enum request_class)get->class, get->space, ranges, count,
			   COOKIE_MIRROR_GET | (uint64_t)generation << 16 | (uint64_t)(get - mirror->gets));
	if (ret) /* nothing of it was answered: else it is over, or another's */
		get->asked = false;
	return ret;
}

int mirror_ask(struct mirror *mirror, struct member *from, enum request_class class, uint32_t space,
	       const struct page_range *ranges, size_t count, uint64_t cookie)
{
	struct mirror_get *get = NULL;
	for (size_t i = 0; i < MIRROR_GETS && !get; i++)
		get = mirror->gets[i].used ? NULL : &mirror->gets[i];
	if (!get)
		return -EAGAIN;
	uint32_t generation = get->generation;
	*get = (struct mirror_get){ .used = true,
				    .class = (uint8_t) class,
				    .generation = generation,
				    .count = (uint32_t)count,
				    .space = space,
				    .cookie = cookie };
	memcpy(get->ranges, ranges, count * sizeof(*ranges));
	int ret = ask_rest(mirror, get, from);
	if (ret)
		get->used = false;
	return ret;
}

int mirror_get_pages(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges,
		     size_t count, uint64_t cookie)
{
	struct mirror *mirror = mirror_of(source);
	if (mirror->failure)
		return mirror->failure;
	struct member *from = mirror_reader(mirror, 0);
	return from ? mirror_ask(mirror, from, class, space_number_of(space), ranges, count, cookie) : -EAGAIN;
}

/* The request that an answer of this member is for; NULL: it was asked of another meanwhile. */
static struct mirror_get *get_of(struct member *member, uint64_t cookie)
{
	struct mirror_get *get = &member->mirror->gets[cookie & 0xffff];
	return get->used && get->generation == (uint32_t)(cookie >> 16) && get->member == member_index(member) ? get : NULL;
}

static void deliver(struct mirror *mirror, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	if (cookie & COOKIE_COPY)
		catch_up_on_pages(mirror, &mirror->member[cookie >> 48 & 0xff], cookie, range, data, last);
	else
		mirror->source.handler.on_pages(mirror->source.handler.context, cookie, range, data, last);
}

void mirror_on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
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
		catch_up_on_failure(mirror, &mirror->member[get->cookie >> 48 & 0xff], get->cookie, result);
	else
		mirror->source.handler.on_done(mirror->source.handler.context, get->cookie, result);
}

/* What one cannot give is asked of the others. The answer's other parts are then nobody's. */
void mirror_on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	struct member *member = context;
	struct mirror *mirror = member->mirror;
	struct mirror_get *get = get_of(member, cookie);
	(void)range;
	(void)last;
	if (!get)
		return;
	get->tried |= member_bit(member);
	struct member *other = mirror_reader(mirror, get->tried);
	log_warn("pool %u of the mirror has a damaged page%s", member_index(member), other ? ": it is fetched from another" : "");
	if (!other)
		get_failed(mirror, get, -EIO);
	else
		ask_rest(mirror, get, other); /* where it cannot be taken now, fail_over tries again */
}

void mirror_on_get_failed(struct member *member, uint64_t cookie, int result)
{
	struct mirror *mirror = member->mirror;
	struct mirror_get *get = get_of(member, cookie);
	if (!get)
		return;
	get->tried |= member_bit(member);
	struct member *other = mirror_reader(mirror, get->tried);
	if (!other)
		get_failed(mirror, get, result);
	else
		ask_rest(mirror, get, other);
}

void mirror_fail_over(struct mirror *mirror)
{
	for (size_t i = 0; i < MIRROR_GETS && !mirror->failure; i++) {
		struct mirror_get *get = &mirror->gets[i];
		struct member *from = get->used ? &mirror->member[get->member] : NULL;
		if (!from || (get->asked && from->saved->state == MEMBER_IN && member_link(from).attached))
			continue;
		struct member *other = mirror_reader(mirror, get->asked ? (uint8_t)(get->tried | member_bit(from)) : get->tried);
		if (other && member_link(other).attached)
			ask_rest(mirror, get, other); /* where that cannot be taken now, it is tried again */
	}
}

