/* forward: packets for an address that reach its old host while it moves are kept, and sent after it.
 *
 * While a tree stands still its packets are dropped (CRIU's lock), and what was dropped comes again only when its sender's timer
 * says so: 200 ms later at least, so that would be the gap, however short the tree stood still. A child of the ferry keeps a copy
 * of what arrives for the address (packet(7), before any filter), and when the tree runs there, sends what came since the
 * freeze on to it, and what still comes here until the neighbours have learned. To TCP they are segments that were late, or
 * came twice: it was made for both. Best effort: what it cannot keep or send comes again as if there was no forwarder.
 * The child ends with the ferry. Thread rule: single-threaded processes. */
#ifndef DP_MIGRATE_FORWARD_H
#define DP_MIGRATE_FORWARD_H

#include <stdint.h>
#include <sys/types.h>

#include "migrate/address.h"

struct forwarder {
	pid_t child; /* 0: none */
	int fd;
};

/* Begins to keep. Failing is no harm: then there is none. */
void forward_start(struct forwarder *forwarder, const struct address *address);
/* Sends on what came since then (CLOCK_MONOTONIC), and for a second more what comes. */
void forward_go(struct forwarder *forwarder, uint64_t since_ns);
/* Drops what is kept. */
void forward_end(struct forwarder *forwarder);

/* The checksum of a TCP or UDP packet over IPv4 or IPv6, written into it: a copy that was taken inside a host may have none yet.
 * false: not one of these, not whole, or a fragment. */
bool forward_set_checksum(uint8_t *packet, uint32_t bytes);

#endif
