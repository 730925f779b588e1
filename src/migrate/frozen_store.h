/* frozen_store: a pool's store whose first pages lie in the memory of processes that stand still.
 *
 * How it works: slots 1..N are places in frozen processes, numbered run by run while they are found; each is read through the
 * process's /proc/PID/mem when it is asked for. That descriptor is bound to the memory, not to the pid: it never reads another
 * process's, and nothing once the memory is gone; and it reads pages that the process itself may not (PROT_NONE), for which a
 * right is needed only when it is opened. What is written later (pages that come back from a restored tree) lies in memory of
 * ours, in slots behind N. Nothing here lasts.
 *
 * Invariants: F1 (offer.h) bytes are handed on only where `life` was whole after they were read; F4 (offer.h) what cannot be read
 * is -EIO. Z1 all frozen slots are added before the first is allocated.
 * Thread rule: the server's thread. */
#ifndef DP_MIGRATE_FROZEN_STORE_H
#define DP_MIGRATE_FROZEN_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

/* life_fd: reading end of a pipe (borrowed) that hangs up before the processes may run again; -1: they never will. -ENOMEM. */
int frozen_store_open(struct store **store, int life_fd, struct dp_err *err);
/* A process's memory, by its open /proc/PID/mem (taken, also on failure). Its number, or -ENOMEM. */
int frozen_store_add_memory(struct store *store, int mem_fd);
/* Pages of it become slots, which nobody refers to yet; *first is the first one's. -ENOMEM. */
int frozen_store_add_pages(struct store *store, int memory, uint64_t pgno, uint64_t pages, uint64_t *first);
uint64_t frozen_store_pages(const struct store *store);
/* Frozen slots that were read at least once; and those that are neither read nor written over nor free. */
uint64_t frozen_store_read_pages(const struct store *store);
uint64_t frozen_store_left_pages(const struct store *store);
/* Is it a frozen slot that nobody has read yet? */
bool frozen_store_is_left(const struct store *store, uint64_t slot);
/* The processes go on or end now: from here on frozen slots cannot be read. */
void frozen_store_end(struct store *store);
/* Copies every frozen slot that is not free into our own memory. -EIO, -ENOMEM: what is copied stays so. */
int frozen_store_keep(struct store *store);

#endif
