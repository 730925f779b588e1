/* store/ready: memory that is touched before it is needed, by a thread of its own, so that who stores a page does not wait until
 * the kernel (or the hypervisor below it, which costs ten times as much) has found and cleared one.
 * Thread rule: one thread calls; the other is inside. */
#ifndef DP_STORE_READY_H
#define DP_STORE_READY_H

#include <stdint.h>

struct ready;

int ready_new(struct ready **ready);
/* Waits for what is being touched; forgets the rest. Takes NULL. */
void ready_free(struct ready *ready);
/* Touches these pages some time soon. Their content stays as it is. Forgotten where too much waits already. */
void ready_touch(struct ready *ready, void *memory, uint64_t bytes);

#endif
