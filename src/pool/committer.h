/* pool/committer: waits for disks so that the server's loop need not. A commit of gigabytes may take its disk seconds; meanwhile
 * others' faults go on being answered.
 *
 * How it works: one thread takes jobs (a store to be synced) in order and reports each as done through an eventfd. It calls
 * store->ops->sync and nothing else. Thread rule: the functions below belong to the server's thread. */
#ifndef DP_POOL_COMMITTER_H
#define DP_POOL_COMMITTER_H

#include "store/store.h"

struct committer;

struct commit_job {
	struct commit_job *next;
	int result; /* of the sync */
	/* The submitter's: */
	uint64_t connection_id, request, draft;
};

/* -ENOMEM, -EAGAIN. */
int committer_new(struct committer **committer, struct store *store);
/* Waits for the job under way; those not begun are dropped. Takes NULL. */
void committer_free(struct committer *committer);
/* Readable when a job is done. Borrowed. */
int committer_fd(const struct committer *committer);
/* Takes the job until it comes back through committer_take. */
void committer_submit(struct committer *committer, struct commit_job *job);
/* A job that is done, the caller's again; NULL where none is. */
struct commit_job *committer_take(struct committer *committer);

#endif
