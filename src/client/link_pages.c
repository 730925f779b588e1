/* A link's GETs, and its answers. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "client/link_inside.h"

/* ---- GETs ---- */

static struct get *take_get(struct link *link)
{
	if (link->free_get == GETS)
		return NULL;
	struct get *get = &link->gets[link->free_get];

	link->free_get = get->next_free;
	link->gets_used++;
	return get;
}

static uint64_t end_get(struct link *link, struct get *get)
{
	get->used = false;
	get->next_free = (uint16_t)link->free_get;
	link->free_get = (uint32_t)(get - link->gets);
	link->gets_used--;
	return get->cookie;
}

int link_bury(struct link *link, struct get *get)
{
	struct page_range ranges[GET_RANGES_LIMIT];
	size_t count = get->count;
	uint64_t cookie = end_get(link, get);

	memcpy(ranges, get->ranges, count * sizeof(*ranges));

	for (size_t i = 0; i < count; i++)
		link->handler.on_pages(link->handler.context, cookie, ranges[i], NULL, i + 1 == count);
	return (int)count;
}

/* A fresh one, from the pool's memory where it is known where the pages lie. */
static int send_get(struct link *link, const struct client_handler *handler, struct get *get)
{
	uint64_t index = (uint64_t)(get - link->gets), space = link_space_id(link, get->space);
	struct page_range ranges[GET_RANGES_LIMIT]; /* those of get become fewer while pages are handed over */
	size_t count = get->count;
	int result = 0;

	memcpy(ranges, get->ranges, count * sizeof(*ranges));

	link->handler = *handler;
	get->sent = true;
	if (link->config.near) {
		struct client_handler own = link_own_handler(link);

		link->inside++;
		result = client_get_near(link->client, &own, space, ranges, count, index);
		link->inside--;
		if (result > 0) {
			if (link->broken && !link->inside)
				link_lost(link, link->broken, NULL);
			return 0; /* it is answered, and its entry may be another's already */
		}
	}
	if (result == 0)
		result = client_get(link->client, (enum request_class)get->class, space, ranges, count, index);
	if (result == -EAGAIN || result == -EINVAL) {
		end_get(link, get);
		return result;
	}
	if (result < 0) {
		if (link->inside) { /* link_lost() will come later and count it */
			link->broken = result;
			return 0;
		}
		link_lost(link, result, NULL);
	}
	return 0;
}

int link_get(struct link *link, const struct client_handler *handler, enum request_class class, uint32_t space,
	     const struct page_range *ranges, size_t count, uint64_t cookie)
{
	if (link->failure)
		return link->failure;
	if (count == 0 || count > GET_RANGES_LIMIT)
		return -EINVAL;
	bool now = link_is_usable(link) && link->sent == link->next && !link->gets_unsent;
	struct get *get = take_get(link);

	if (!get)
		return -EAGAIN;
	get->used = true;
	get->sent = get->dead = false;
	get->class = (uint8_t)class;
	get->space = space;
	get->count = (uint32_t)count;
	get->cookie = cookie;
	get->asked_ns = link_now(link);
	memcpy(get->ranges, ranges, count * sizeof(*ranges));
	if (link->base == link->next && link->gets_used == 1)
		link->heard_ns = get->asked_ns;
	if (!now) {
		link->gets_unsent++;
		return 0;
	}
	return send_get(link, handler, get);
}

/* ---- answers ---- */

/* Takes what has come off what is still to come; the GET's cookie. Pages come in their order, but for those that came damaged and
 * were asked for again, which come later. */
static uint64_t moved_on(struct link *link, uint64_t cookie, struct page_range range, bool last)
{
	struct get *get = &link->gets[cookie];
	uint32_t at = 0;

	if (last)
		return end_get(link, get);
	while (at < get->count &&
	       (range.pgno < get->ranges[at].pgno || range.pgno - get->ranges[at].pgno >= get->ranges[at].pages))
		at++;
	/* The client looks that nothing comes that was not asked for. */
	assert(at < get->count && range.pages <= get->ranges[at].pages - (range.pgno - get->ranges[at].pgno));
	struct page_range *in = &get->ranges[at];
	const struct page_range behind = { range.pgno + range.pages, in->pgno + in->pages - range.pgno - range.pages };

	in->pages = range.pgno - in->pgno;
	if (in->pages && behind.pages && get->count == GET_RANGES_LIMIT) {
		link_end(link, -EIO, "too many pages came damaged at once");
	} else if (in->pages && behind.pages) {
		memmove(in + 2, in + 1, (get->count++ - at - 1) * sizeof(*in));
		in[1] = behind;
	} else if (behind.pages) {
		*in = behind;
	} else if (!in->pages) {
		memmove(in, in + 1, (--get->count - at) * sizeof(*in));
	}
	return get->cookie;
}

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct link *link = context;
	uint64_t own = moved_on(link, cookie, range, last);

	link->handler.on_pages(link->handler.context, own, range, data, last);
}

static void on_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	struct link *link = context;
	uint64_t own = moved_on(link, cookie, range, last);

	link->handler.on_damaged(link->handler.context, own, range, last);
}

void link_answered(struct link *link, uint64_t number, int result)
{
	struct operation *operation = link_operation(link, number);
	uint64_t cookie = operation->cookie;

	operation->answered = true;
	link_give_blocks(link, operation);
	while (link->base < link->next && link_operation(link, link->base)->answered)
		link->base++;
	link->sent = DP_MAX(link->sent, link->base);
	link->handler.on_done(link->handler.context, cookie, result);
}

static void on_done(void *context, uint64_t cookie, int result)
{
	struct link *link = context;

	if (cookie & COOKIE_OPERATION) {
		/* Damaged on its way, or behind one that was; or an older connection of ours has come late. The pool has not
		 * counted it. */
		if (result == -EBADMSG || result == -EPROTO || result == -EBUSY) {
			link->broken = link->broken ? link->broken : result;
			return;
		}
		if (result == -ESTALE) {
			link_end(link, -ESTALE, "the lease of the instance was taken by another");
			return;
		}
		link_answered(link, cookie & ~COOKIE_OPERATION, result);
	} else if (cookie & COOKIE_NOTE) {
		if (result == -EBUSY || result == -EBADMSG) {
			link->broken = link->broken ? link->broken : result;
		} else if (result == -ESTALE) {
			link_end(link, -ESTALE, "the lease of the instance was taken by another");
		} else {
			link->note_waits = false;
			link->handler.on_done(link->handler.context, link->note_cookie, result);
		}
	} else if (cookie & COOKIE_ADVICE) {
		uint64_t own = link->advice[cookie & 0xff];

		link->advice[cookie & 0xff] = 0;
		link->handler.on_done(link->handler.context, own, result);
	} else if (result == -ESTALE) {
		link_end(link, -ESTALE, "the lease of the instance was taken by another");
	} else {
		link->handler.on_done(link->handler.context, end_get(link, &link->gets[cookie]), result);
	}
}

struct client_handler link_own_handler(struct link *link)
{
	return (struct client_handler){ link, on_pages, on_done, link->handler.on_damaged ? on_damaged : NULL };
}
