/* A link's changes: the journal of those that were not answered yet, notes, advice. */
#include <errno.h>
#include <string.h>

#include "client/link_inside.h"

/* ---- the journal ---- */

static bool take_blocks(struct link *link, struct operation *operation, uint64_t pages, size_t ranges)
{
	uint64_t count = DP_MAX((pages + BLOCK_PAGES - 1) / BLOCK_PAGES,
				ranges > FEW_RANGES ? (ranges + BLOCK_PAGES - 1) / BLOCK_PAGES : 0);

	if (count > link->free_blocks || count > OPERATION_BLOCKS)
		return false;
	operation->block_count = (uint16_t)count;
	for (uint64_t i = 0; i < count; i++)
		operation->block[i] = link->free_block[--link->free_blocks];
	return true;
}

void link_give_blocks(struct link *link, struct operation *operation)
{
	while (operation->block_count)
		link->free_block[link->free_blocks++] = operation->block[--operation->block_count];
}

static void keep_ranges(struct link *link, struct operation *operation, const struct page_range *ranges, size_t count)
{
	operation->range_count = (uint32_t)count;
	if (count <= FEW_RANGES) {
		for (size_t i = 0; i < count; i++)
			operation->few[i] = ranges[i];
		return;
	}
	for (size_t i = 0; i < count; i++)
		link->blocks[operation->block[i / BLOCK_PAGES]].ranges[i % BLOCK_PAGES] = ranges[i];
}

static void kept_ranges(const struct link *link, const struct operation *operation, struct page_range *ranges)
{
	if (operation->range_count <= FEW_RANGES) {
		memcpy(ranges, operation->few, operation->range_count * sizeof(*ranges));
		return;
	}
	for (size_t i = 0; i < operation->range_count; i++)
		ranges[i] = link->blocks[operation->block[i / BLOCK_PAGES]].ranges[i % BLOCK_PAGES];
}

static void keep_pages(struct link *link, struct operation *operation, const struct iovec *data, size_t count)
{
	uint64_t at = 0; /* bytes */

	for (size_t i = 0; i < count; i++) {
		const uint8_t *from = data[i].iov_base;

		for (size_t left = data[i].iov_len; left;) {
			uint64_t inside = at % (BLOCK_PAGES * PAGE_BYTES);
			size_t part = DP_MIN(left, BLOCK_PAGES * PAGE_BYTES - inside);

			memcpy(link->blocks[operation->block[at / (BLOCK_PAGES * PAGE_BYTES)]].pages + inside, from, part);
			from += part;
			at += part;
			left -= part;
		}
	}
}

static size_t kept_pages(const struct link *link, const struct operation *operation, struct iovec *data)
{
	uint64_t left = operation->number[0] * PAGE_BYTES;
	size_t count = 0;

	for (; left; count++) {
		uint64_t part = DP_MIN(left, (uint64_t)BLOCK_PAGES * PAGE_BYTES);

		data[count] = (struct iovec){ link->blocks[operation->block[count]].pages, part };
		left -= part;
	}
	return count;
}

/* Sends one operation, from the journal or, where `data` is given, straight from its caller. */
static int send_operation(struct link *link, uint64_t number, const struct operation *operation, const struct page_range *ranges,
			  const struct iovec *data, size_t data_count)
{
	uint64_t space = link_space_id(link, operation->space), cookie = COOKIE_OPERATION | number, epoch = link->epoch;
	int result = -EINVAL;

	client_set_sequence(link->client, number);
	switch ((enum kind)operation->kind) {
	case KIND_PUT:
		result = client_put(link->client, space, epoch, ranges, operation->range_count, data, data_count, cookie);
		break;
	case KIND_DROP:
		result = client_drop(link->client, space, epoch, ranges, operation->range_count, cookie);
		break;
	case KIND_MOVE:
		result = client_move(link->client, space, epoch, operation->number[0], operation->number[1], operation->number[2],
				     cookie);
		break;
	case KIND_FORK:
		result = client_fork(link->client, space, epoch, link_space_id(link, (uint32_t)operation->number[0]), cookie);
		break;
	case KIND_SPACE_FREE:
		result = client_space_free(link->client, space, epoch, cookie);
		break;
	}
	client_set_sequence(link->client, 0);
	return result;
}

int link_send_kept(struct link *link, uint64_t number)
{
	struct operation *operation = link_operation(link, number);
	struct page_range ranges[OPERATION_RANGES];
	struct iovec data[OPERATION_BLOCKS] = { { NULL, 0 } };
	size_t count = 0;

	kept_ranges(link, operation, ranges);
	if (operation->kind == KIND_PUT)
		count = kept_pages(link, operation, data);
	return send_operation(link, number, operation, ranges, data, count);
}

/* One new operation: into the journal, and on its way if everything before it is. */
static int append(struct link *link, struct operation *fresh, const struct page_range *ranges, size_t range_count,
		  const struct iovec *data, size_t data_count, uint64_t pages)
{
	struct operation *operation = link_operation(link, link->next);

	if (link->failure)
		return link->failure;
	if (range_count > OPERATION_RANGES || pages > PUT_PAGES_LIMIT)
		return -EINVAL;
	if (link->unsettled || link->next - link->base >= SEQUENCE_WINDOW || !take_blocks(link, fresh, pages, range_count))
		return -EAGAIN;
	fresh->range_count = (uint32_t)range_count;
	fresh->asked_ns = link_now(link);
	if (link->base == link->next && !link->gets_used)
		link->heard_ns = fresh->asked_ns; /* silence begins with what waits */
	if (link_is_usable(link) && link->sent == link->next) {
		int result = send_operation(link, link->next, fresh, ranges, data, data_count);

		if ((result == -EAGAIN && !link->config.keep_all) || result == -EINVAL || result == -EMSGSIZE ||
		    result == -ENOMEM) {
			link_give_blocks(link, fresh);
			return result;
		}
		if (result == 0)
			link->sent++;
		else if (result != -EAGAIN)
			link_lost(link, result, NULL);
	}
	*operation = *fresh;
	keep_ranges(link, operation, ranges, range_count);
	keep_pages(link, operation, data, data_count);
	link->next++;
	return 0;
}

int link_put(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	     size_t data_count, uint64_t cookie)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < data_count; i++)
		bytes += data[i].iov_len;
	struct operation operation = { .kind = KIND_PUT, .space = space, .number = { bytes / PAGE_BYTES }, .cookie = cookie };

	return bytes % PAGE_BYTES ? -EINVAL : append(link, &operation, ranges, count, data, data_count, bytes / PAGE_BYTES);
}

int link_drop(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, uint64_t cookie)
{
	struct operation operation = { .kind = KIND_DROP, .space = space, .cookie = cookie };

	return append(link, &operation, ranges, count, NULL, 0, 0);
}

int link_move(struct link *link, uint32_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	struct operation operation = {
		.kind = KIND_MOVE, .space = space, .number = { from_pgno, to_pgno, pages }, .cookie = cookie
	};

	return append(link, &operation, NULL, 0, NULL, 0, 0);
}

int link_fork(struct link *link, uint32_t parent, uint32_t child, uint64_t cookie)
{
	struct operation operation = { .kind = KIND_FORK, .space = parent, .number = { child }, .cookie = cookie };

	return append(link, &operation, NULL, 0, NULL, 0, 0);
}

int link_space_free(struct link *link, uint32_t space, uint64_t cookie)
{
	struct operation operation = { .kind = KIND_SPACE_FREE, .space = space, .cookie = cookie };
	int result = append(link, &operation, NULL, 0, NULL, 0, 0);

	for (uint32_t i = 0; result == 0 && i < GETS; i++)
		if (link->gets[i].used && link->gets[i].space == space)
			link->gets[i].dead = true;
	return result;
}

int link_note(struct link *link, const void *note, uint32_t bytes, uint64_t cookie)
{
	if (link->failure)
		return link->failure;
	if (bytes > NOTE_LIMIT)
		return -EMSGSIZE;
	if (link->note_waits)
		return -EAGAIN;
	if (bytes)
		memcpy(link->note, note, bytes);
	link->note_bytes = bytes;
	link->note_cookie = cookie;
	link->note_waits = true;
	link->note_sent = false;
	link->note_asked_ns = link_now(link);
	return 0;
}

bool link_has_room(const struct link *link)
{
	return !link->failure && !link->unsettled && link->next - link->base < SEQUENCE_WINDOW &&
	       link->free_blocks >= OPERATION_BLOCKS;
}

int link_order_put(struct link *link, const struct order_run *runs, size_t count, uint64_t cookie)
{
	uint32_t free_place = 0;

	while (free_place < ADVICES && link->advice[free_place])
		free_place++;
	if (!link_is_usable(link) || free_place == ADVICES || link->lost_advices)
		return -ENOTCONN;
	int result = client_order_put(link->client, link->instance, link->epoch, runs, count, COOKIE_ADVICE | free_place);

	if (result == 0)
		link->advice[free_place] = cookie;
	return result;
}
