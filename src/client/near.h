/* client/near: pages of a pool on this host, read straight from its memory.
 *
 * A page that travels over a Unix socket is copied twice and wakes two processes. Where the kernel lets us read the pool's memory
 * (process_vm_readv(2): same user or root, same PID namespace), the pool is asked only where pages lie, 64 neighbours at once,
 * and the places are kept: most faults then need no message at all.
 *
 * Why that is right: a space of an instance is changed by its one writer, over this connection, and what a snapshot has never
 * changes. So a place holds until we ourselves change the page: near_forget is called for every change that is sent (N1), and an
 * answer that was asked for before a change is used once and not kept (N2). The pool keeps a slot in place while anything refers
 * to it. Whoever answers under the pool's pid is the pool: it is proven by a random number at the start, and after each read by
 * the pages' digests or, where one is not known, by its pidfd (N3).
 * Thread rule: the client's thread. */
#ifndef DP_CLIENT_NEAR_H
#define DP_CLIENT_NEAR_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/message.h"

struct near;

/* Proves that the memory can be read. NULL: it cannot, pages travel as messages. */
struct near *near_open(const struct message_near *pool);
/* Takes NULL. */
void near_close(struct near *near);

/* Where the pages lie, if all are known, and what they must be there; address 0: zero. */
bool near_find(const struct near *near, uint64_t space, struct page_range range, struct page_place *places);
/* Counts changes: an answer may be kept if this is what it was when it was asked for. */
uint64_t near_changes(const struct near *near);
/* Keeps places of whole blocks of NEAR_BLOCK_PAGES. */
#define NEAR_BLOCK_PAGES 64u
void near_keep(struct near *near, uint64_t space, uint64_t first_pgno, const struct page_place *places, uint64_t pages);
/* These pages are about to change, or the space begins or ends (pages: UINT64_MAX). */
void near_forget(struct near *near, uint64_t space, uint64_t pgno, uint64_t pages);
/* Copies pages (none of them zero) into `to`; `proven`: the caller compares them with digests. 0, or -ECONNRESET where the pool
 * has gone. */
int near_read(struct near *near, const uint64_t *places, uint64_t pages, bool proven, void *to);

#endif
