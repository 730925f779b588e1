/* keeper: holds a duplicate of every userfaultfd and pidfd of a tree, so that a pager that dies does not close the last one.
 *
 * How it works: the pager sends each descriptor it gets over a SEQPACKET socket pair; the supervisor's end keeps them in a
 * table. A message is one byte of kind, seven bytes of zero and the pager's 64-bit key of the address space, with at most one
 * descriptor beside it (SCM_RIGHTS); a text message carries the text behind the header. A descriptor in flight is a reference
 * too, so nothing is lost when the pager dies right after sending.
 *
 * Invariants: K1 no userfaultfd is dropped while a task of its address space may run: the supervisor calls keeper_done only
 * after the tree is dead, and the pager sends a release only for an address space that is gone.
 * Thread rule: each end is used by one thread. */
#ifndef DP_INSTANCE_KEEPER_H
#define DP_INSTANCE_KEEPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum keeper_kind {
	KEEPER_UFFD = 'u',    /* a userfaultfd of the space `key` */
	KEEPER_PIDFD = 'p',   /* the pidfd of a task of the space `key` */
	KEEPER_RELEASE = 'r', /* the space `key` is gone: drop what was kept for it */
	KEEPER_TEXT = 't',    /* why the pager ends */
	KEEPER_LOST = 'l',    /* a pool is not reached */
	/* for a pager that takes over (pager/recover.h); one of each for a key, the last */
	KEEPER_STATE = 's',   /* saved state: of the tree with key 0, of a space */
	KEEPER_HOLDER = 'h',  /* pidfd of the process that shares the pager's descriptors; key 0 */
	KEEPER_RING = 'g',    /* of the space's warden: the ring, */
	KEEPER_EVENT = 'e',   /* its eventfd, */
	KEEPER_WARDEN = 'w',  /* and its pidfd */
};

/* ---- the pager's end ---- */
/* Sends a duplicate of fd (borrowed; -1 with KEEPER_RELEASE). 0, or -errno: -EPIPE where the supervisor is gone. Blocks only
 * while the socket's buffer is full; the supervisor never waits for the pager, so not for long. */
int keeper_send(int socket_fd, enum keeper_kind kind, uint64_t key, int fd);
int keeper_send_text(int socket_fd, const char *text);
/* Is the supervisor there? */
bool keeper_is_there(int socket_fd);

/* ---- the supervisor's end ---- */
struct kept {
	enum keeper_kind kind;
	uint64_t key;
	int fd;
};
struct keeper {
	int socket_fd; /* -1 after the pager's end was closed and everything was read */
	struct kept *kept;
	size_t count, room;
	char text[1024]; /* last KEEPER_TEXT, or "" */
	bool lost;       /* KEEPER_LOST came; the supervisor clears it */
};

/* Makes the pair: *pager_end is for the pager (CLOEXEC, the caller closes its copy). -errno with err set. */
int keeper_init(struct keeper *keeper, int *pager_end, struct dp_err *err);
/* Another pair, for a pager that takes over; what is kept stays kept. The old end was read to its end. */
int keeper_renew(struct keeper *keeper, int *pager_end, struct dp_err *err);
/* Reads all messages that wait; never blocks. 0, -EPIPE after the last message of a closed end, -ENOMEM, -EBADMSG. */
int keeper_receive(struct keeper *keeper);
/* Sends SIGKILL through every pidfd kept. */
void keeper_kill(const struct keeper *keeper);
/* Drops everything. Only when the tree is dead (K1). */
void keeper_done(struct keeper *keeper);

#endif
