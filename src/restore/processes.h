/* processes: what supervisor and init both need: descriptors beside messages, closing what was inherited, ending descendants; and
 * what supervisor and pager give up. */
#ifndef DP_RESTORE_PROCESSES_H
#define DP_RESTORE_PROCESSES_H

#include <stddef.h>
#include <sys/types.h>

#include "instance/instance.h"

/* One message with a duplicate of fd (-1: none) over a SEQPACKET socket. 0 or -errno. */
int send_with_fd(int socket_fd, const void *message, size_t bytes, int fd);
/* *fd is -1 where none came. Bytes received, 0 at the end, or -errno. Does not block. */
ssize_t receive_with_fd(int socket_fd, void *message, size_t bytes, int *fd);
/* Closes every descriptor from 3 on that is not in the list (-1 entries are ignored; at most 16). */
void close_all_but(const int *keep, size_t count);
/* SIGKILLs and reaps everything below the calling process but the child `spare` (0: none) and what is below that. Returns when
 * nothing of it is left: a task in the middle of a fault dies like any other. The caller must be a subreaper. */
void kill_descendants(pid_t spare);
/* Gives up the capabilities and system calls that keeping a tree does not need, for this process and its children. For ever:
 * whoever still has to exec must not. A kernel that refuses is only logged. */
void enter_sandbox(const struct instance *instance);

#endif
