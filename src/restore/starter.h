/* starter: one start in a process of its own. restore_start blocks and wants a process with one thread; whoever starts many, or
 * has other things to do meanwhile, lets a child do it and takes what came of it: the instance, and its session's socket.
 *
 * If whoever waits dies first, the child's word reaches nobody, and what it started ends with it unless it runs already.
 * Inside src/restore only. Thread rule: single-threaded processes (this forks without exec). */
#ifndef DP_RESTORE_STARTER_H
#define DP_RESTORE_STARTER_H

#include "restore/many.h"

struct starter {
	pid_t pid; /* 0: none */
	int fd;    /* readable when it has ended or said what came of it */
};

/* Begins. `spare`: one that waits is taken, where there is one. */
int starter_begin(struct starter *starter, const struct restore_options *options, bool spare, struct dp_err *err);
/* What came of it; waits for the child, which ends at once. *report_fd is the session's, or -1. */
void starter_end(struct starter *starter, struct many_start *start, int *report_fd);
/* It is not wanted any more: what it has under way ends too. */
void starter_cancel(struct starter *starter);

#endif
