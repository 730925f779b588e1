/* address: an IPv4 or IPv6 address that moves from host to host with a tree, so that open connections survive.
 *
 * The source removes it once the tree stands still, the destination adds it before CRIU makes the sockets (which want it to be
 * there), and tells the neighbours when the tree may run (gratuitous ARP, RFC 5227 section 3; a neighbour advertisement that
 * nobody asked for, RFC 4861 section 7.2.6). In between, packets for it would meet a host without the sockets, which answers
 * with a reset: so the destination closes the address (a table of nftables that drops them, and forgets by itself after a minute
 * should we die) until the source has granted. CRIU opens its own locks at the same step, before it takes the sockets out of
 * repair mode.
 * Linux: rtnetlink(7), packet(7); nf_tables' netlink for the one message that is part of the gap.
 * Thread rule: none, no state. */
#ifndef DP_MIGRATE_ADDRESS_H
#define DP_MIGRATE_ADDRESS_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct address {
	uint8_t bytes[16]; /* IPv4: four of them */
	bool six;
	unsigned prefix;
	char device[IFNAMSIZ];
};

/* "10.0.0.5/24@eth0", "fd00::5/64@eth0". -EINVAL. */
int address_parse(struct address *address, const char *text, struct dp_err *err);
const char *address_text(const struct address *address, char *buffer, unsigned size);
static inline unsigned address_bytes(const struct address *address)
{
	return address->six ? 16 : 4;
}
/* Is there such a device, and (on it) the address? -ENODEV. */
int address_find(const struct address *address, bool *there, struct dp_err *err);
/* -EADDRINUSE where this connection has it for its own end. */
int address_refuse_local(const struct address *address, int socket_fd, struct dp_err *err);
/* 0 also where it is there, or gone, already. */
int address_add(const struct address *address, struct dp_err *err);
int address_remove(const struct address *address, struct dp_err *err);
/* -ENOPKG where there is no nft. */
int address_close(const struct address *address, struct dp_err *err);
void address_open(const struct address *address);
/* A table of the family inet; one that is not there is no error. */
void address_drop_table(const char *name);
/* Opened beforehand (or -1), since closing such a socket waits for all processors; for address_announce. */
int address_announcer(void);
/* Tells the neighbours whose the address is now. announcer: or -1, then one is opened for it. */
int address_announce(const struct address *address, int announcer, struct dp_err *err);

#endif
