/* pool/journal: what makes instances outlive the pool's process. Each instance of a pool whose store keeps pages has a file of
 * its own beside the store: what it began with, then a frame for each request that changed it, written before the request is
 * answered. After a crash the file is read and the same changes are made again to the page maps; the pages themselves lie in the
 * store, where they were written before the frame was.
 *
 * What it promises: an operation that was answered survives the end of the pool's process, by kill -9 too; the kernel has the
 * bytes. It does not promise that for the end of the machine: a journal of an earlier boot is not read, its instance is gone.
 * A frame carries its length and a hash: what a crash cut off was never answered, and is cut off for good.
 * Base pages are named by the snapshot (name, time of creation) as long as there is that one; before it goes, the journals of its
 * instances are written anew with all of their pages (journal_rewrite). So they are also when they have grown too long.
 *
 * Invariants: J1 no request that changed an instance is answered before its frame was written; where it cannot be written the
 * instance is marked as not kept and its file removed, so that a restart finds no instance rather than an old one. J2 the store's
 * slots named by a journal are in use before the first allocation after a start.
 * Thread rule: the server's thread. */
#ifndef DP_POOL_JOURNAL_H
#define DP_POOL_JOURNAL_H

#include "pool/pool.h"

struct journal;

/* Begins the file of a fresh instance. Without a place for it, or where it cannot be written, the instance is not kept. */
void journal_begin(struct pool *pool, struct object *instance);
/* The changes of a request, noted as they are made. Slots may be 0: the page reads as zero. */
void journal_put(struct object *instance, const struct space *space, const uint64_t *pgnos, const uint64_t *slots, size_t count);
void journal_drop(struct object *instance, const struct space *space, struct page_range range);
void journal_move(struct object *instance, const struct space *space, uint64_t from, uint64_t to, uint64_t pages);
void journal_fork(struct object *instance, const struct space *parent, uint64_t child);
void journal_free(struct object *instance, uint64_t space);
void journal_note(struct object *instance, const void *note, uint32_t bytes);
/* The lease was taken: the new epoch is written. */
void journal_lease(struct pool *pool, struct object *instance);
/* The end of a request: writes its frame. sequence 0: it had none, and nothing is written where nothing was noted. */
void journal_commit(struct pool *pool, struct object *instance, uint64_t sequence, int result);
/* Writes the journal anew: all pages, none by reference to the snapshot. */
int journal_rewrite(struct pool *pool, struct object *instance);
/* The instance ends: so does its file. Takes NULL. */
void journal_end(struct journal *journal);
/* Lets go of the file, which stays: the pool ends. Takes NULL. */
void journal_close(struct journal *journal);
/* Reads what an earlier process of this boot left; instances that waited longer than keep_ns are gone. What cannot be read is
 * removed, with a line in the log. */
int journal_load(struct pool *pool, struct dp_err *err);

#endif
