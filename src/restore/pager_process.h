/* pager_process: the sockets a pager needs and the process it lives in. Inside src/restore only. */
#ifndef DP_RESTORE_PAGER_PROCESS_H
#define DP_RESTORE_PAGER_PROCESS_H

#include <sys/types.h>

#include "instance/keeper.h"
#include "restore/plan.h"

/* A listening Unix socket FILE in the instance's directory; type SOCK_STREAM or SOCK_SEQPACKET. Peers' pidfds and credentials
 * come with what they send. The fd (CLOEXEC), or -errno. */
int pager_listen(const struct instance *instance, const char *file, int type, struct dp_err *err);

/* What a pager is given; all of it stays the caller's. */
struct pager_ends {
	int listen_fd, control_fd, keeper_fd;
	int init_pidfd;             /* -1: none */
	int guard_fd;               /* -1: none; see pager_config */
	const struct keeper *inherited; /* of a pager that died, or NULL */
};
/* Forks the pager. The pid, or -errno. */
pid_t pager_start(const struct restore_plan *plan, const struct pager_ends *ends, struct dp_err *err);

#endif
