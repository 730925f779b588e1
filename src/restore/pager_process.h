/* pager_process: the sockets a pager needs and the process it lives in. Inside src/restore only. */
#ifndef DP_RESTORE_PAGER_PROCESS_H
#define DP_RESTORE_PAGER_PROCESS_H

#include <sys/types.h>

#include "restore/plan.h"

/* A listening Unix socket FILE in the instance's directory; type SOCK_STREAM or SOCK_SEQPACKET. Peers' pidfds and credentials
 * come with what they send. The fd (CLOEXEC), or -errno. */
int pager_listen(const struct instance *instance, const char *file, int type, struct dp_err *err);

/* Forks the pager. All three descriptors stay the caller's. The pid, or -errno. */
pid_t pager_start(const struct restore_plan *plan, int listen_fd, int control_fd, int keeper_fd, struct dp_err *err);

#endif
