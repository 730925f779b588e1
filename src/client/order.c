/* Recorded orders: one blocking call for set-up and people, one asynchronous for the pager. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "client/connection.h"

int client_order_get(struct client *client, uint64_t object, struct order_run **runs, size_t *count, struct dp_err *err)
{
	struct message_header request = { .type = MESSAGE_ORDER_GET, .object = object }, answer;
	struct message_order order;
	const uint8_t *payload;
	int result = control_call(client, &request, NULL, 0, NULL, 0, MESSAGE_ORDER, CONTROL_TIMEOUT_MS, &answer, &payload, err);

	if (result < 0)
		return result;
	if (message_order_decode(payload, answer.length, &order) < 0)
		return dp_fail(err, EPROTO, "pool %s: the recorded order is malformed", client->text);
	*runs = calloc(order.count, sizeof(**runs));
	if (!*runs)
		return dp_fail(err, ENOMEM, "out of memory");
	for (uint32_t i = 0; i < order.count; i++)
		(*runs)[i] = order_run_at(&order, i);
	*count = order.count;
	return 0;
}
