/* connections: has a tree open TCP connections? CRIU refuses those that it was not told to take along, but only once everything
 * stands still; this looks before. Linux: proc_pid_net(5). Thread rule: none, no state. */
#ifndef DP_MIGRATE_CONNECTIONS_H
#define DP_MIGRATE_CONNECTIONS_H

#include <sys/types.h>

#include "base/err.h"

/* -EISCONN: it has one, which is named; -ESRCH. One that is made while we look may be missed. */
int connections_refuse(pid_t root, struct dp_err *err);

#endif
