/* order: how a recorded order is replayed. Pure functions over numbers.
 *
 * Pages come cheapest in runs, and they were wanted one by one. So the runs of an order are sorted by address in groups, and
 * neighbours joined: small groups first, as the first pages are wanted at once, then larger ones. Thread rule: none, no state. */
#ifndef DP_PREFETCH_ORDER_H
#define DP_PREFETCH_ORDER_H

#include <stddef.h>

#include "wire/order.h"

/* Arranges in place. Returns how many runs are left. Pages that two runs name stay named twice. */
size_t order_arrange(struct order_run *runs, size_t count);

#endif
