/* offer_kept: an offer of an instance that has pages in a pool, and keeps it: what it changed goes there, most of it while it
 * runs
 * (checkpoint/push.h), the rest while it is frozen, and the snapshot shares all else with the instance. It is restored from that
 * pool, so nothing is asked for from here, and the source can be released as soon as the copy runs.
 *
 * How it works: a checkpoint (checkpoint.h) that ends with the caller's word. When the snapshot is in the pool, and CRIU waits
 * with the tree frozen, the facts are told and commands are awaited: release lets CRIU kill the tree, all else makes the
 * checkpoint fail, and the tree runs on as if nothing had been. The pager of the instance evicts nothing meanwhile, and holds its
 * lease; it is the destination that takes that away once the switch is final (ferry_in.c), so that the old epoch never writes
 * again.
 * Invariants: those of offer.h (F2) and of checkpoint.h. OK1 the snapshot's name is free again in the end: its pages live with
 * the instances.
 * Thread rule: the offerer's one thread. */
#ifndef DP_MIGRATE_OFFER_KEPT_H
#define DP_MIGRATE_OFFER_KEPT_H

#include "migrate/offer.h"

/* The offerer's main for options with kept_pool. Does not return. control_fd is taken. */
void offer_kept_main(const struct offer_options *options, int control_fd) __attribute__((noreturn));

#endif
