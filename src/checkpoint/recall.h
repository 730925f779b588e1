/* recall: which pages the state before has, by hash, so that a checkpoint of a process without a pager sends only what changed
 * since.
 * Kept by who takes one state after the other; filled by capture from what it stored or shared. Space ids are looked up anew by
 * the snapshot's name each time (a pool that was started again has others). Thread rule: one thread. */
#ifndef DP_CHECKPOINT_RECALL_H
#define DP_CHECKPOINT_RECALL_H

#include <stddef.h>
#include <stdint.h>

#include "client/client.h"
#include "pager/control.h"

struct recall {
	char snapshot[256];
	uint64_t created_unix_ns; /* 0: not looked up yet */
	struct control_space *spaces; /* hints_only; copies ascending */
	size_t *room;
	size_t count;
};

struct recall *recall_new(void);
/* Takes NULL. */
void recall_free(struct recall *recall);
/* A page of the task: part of the state. Pages of one task ascend. 0 or -ENOMEM. */
int recall_add(struct recall *recall, int vpid, uint64_t pgno, uint64_t hash);
/* Finds the state's spaces in the pool. false: it is not there any more (as it was): nothing can be shared with it. */
bool recall_find(struct recall *recall, struct client *client);
/* The task's pages, or NULL. */
const struct control_space *recall_space(const struct recall *recall, int vpid);

#endif
