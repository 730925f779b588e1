/* committer: the process that `restore --propagate back:INTERVAL` keeps beside an instance: `distri-proc commit --every
 * INTERVAL`, or with `through`: `distri-proc commit --through`, a child of the supervisor. It ends by itself when the tree does,
 * also where the supervisor was killed; one that failed is started again.
 * Thread rule: the supervisor's one thread; forks. */
#ifndef DP_RESTORE_COMMITTER_H
#define DP_RESTORE_COMMITTER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "instance/instance.h"
#include "restore/restore.h"

struct committer_process {
	pid_t pid;        /* 0: none runs */
	uint64_t start_at_ns; /* 0: none is to be started */
};

bool committer_is_needed(const struct restore_options *options);
/* The tree runs: one is to be started, if the options ask for it. */
void committer_wanted(struct committer_process *committer, const struct restore_options *options);
/* Starts it if it is time. Returns ms until then, -1: never. */
int committer_work(struct committer_process *committer, const struct restore_options *options, const struct instance *instance);
/* A child has ended: was it this one? */
bool committer_ended(struct committer_process *committer, pid_t pid, int status);
void committer_kill(struct committer_process *committer);

#endif
