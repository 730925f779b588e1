#include "wire/order.h"

#include <errno.h>

#include "base/base.h"
#include "wire/bytes.h"
#include "wire/page_range.h"

int message_order_encode(uint8_t *bytes, size_t size, const struct order_run *runs, size_t count)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	if (!count || count > ORDER_RUNS_LIMIT)
		return -EMSGSIZE;
	bytes_put_u32(&out, (uint32_t)count);
	bytes_put_u32(&out, 0);
	for (size_t i = 0; i < count; i++) {
		bytes_put_u64(&out, runs[i].label);
		bytes_put_u64(&out, runs[i].pgno);
		bytes_put_u64(&out, runs[i].pages);
	}
	return out.bad ? -EMSGSIZE : (int)(out.at - out.start);
}

struct order_run order_run_at(const struct message_order *order, uint32_t index)
{
	const uint8_t *at = order->at + (size_t)index * 24;

	return (struct order_run){ bytes_load_u64(at), bytes_load_u64(at + 8), bytes_load_u64(at + 16) };
}

int message_order_decode(const uint8_t *bytes, size_t length, struct message_order *order)
{
	struct bytes_reader in = { .at = bytes, .end = bytes + length };
	uint32_t zero;

	order->count = bytes_get_u32(&in);
	zero = bytes_get_u32(&in);
	order->pages = 0;
	if (in.bad || zero || !order->count || order->count > ORDER_RUNS_LIMIT)
		return -EBADMSG;
	order->at = bytes_take(&in, (uint64_t)order->count * 24);
	if (!bytes_complete(&in))
		return -EBADMSG;
	for (uint32_t i = 0; i < order->count; i++) {
		struct order_run run = order_run_at(order, i);

		if (!run.pages || run.pages > PGNO_END || run.pgno > PGNO_END - run.pages)
			return -EBADMSG;
		order->pages += run.pages;
	}
	return 0;
}
