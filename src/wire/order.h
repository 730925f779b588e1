/* wire/order: the order in which a snapshot's pages were wanted by an earlier run, as bytes (ORDER_PUT, ORDER). Same rules as
 * message.h: no I/O, no allocation, everything checked. */
#ifndef DP_WIRE_ORDER_H
#define DP_WIRE_ORDER_H

#include <stddef.h>
#include <stdint.h>

#define ORDER_RUNS_LIMIT 65536u
#define ORDER_BYTES_LIMIT (8u + ORDER_RUNS_LIMIT * 24u)

/* Neighbouring pages that were wanted one after the other, of the space with this label. */
struct order_run {
	uint64_t label, pgno, pages;
};

/* Decoded: walk with order_run_at. */
struct message_order {
	const uint8_t *at;
	uint32_t count;
	uint64_t pages; /* of all runs */
};

int message_order_encode(uint8_t *bytes, size_t size, const struct order_run *runs, size_t count);
int message_order_decode(const uint8_t *bytes, size_t length, struct message_order *order);
struct order_run order_run_at(const struct message_order *order, uint32_t index);

#endif
