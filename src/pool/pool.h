/* pool: the home of snapshots and instances. What requests mean is here; how they arrive is in server.h.
 *
 * Snapshots, drafts (snapshots being written) and instances are objects: each has a 44-bit id and spaces, whose ids are the
 * object's in the upper 44 bits and a number of their own in the lower 20. A space is a page map (pagemap.h). An instance
 * starts as clones of its snapshot's maps, so base pages are stored once and an instance costs what it changed.
 *
 * Invariants: P1 a snapshot never changes; P2 an instance is written only under its present epoch; P3 a draft is written and
 * committed only by the connection that began it, and vanishes with it; P4 a page of zeros is never stored; P5 on a
 * persistent store slots are given back only after the manifest that named them is durably gone.
 * `owner` in the calls below is the connection, as an opaque token.
 * Thread rule: one thread. Calls do not block but for the store's own disk accesses. */
#ifndef DP_POOL_POOL_H
#define DP_POOL_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "pool/idmap.h"
#include "pool/pagemap.h"
#include "pool/slots.h"
#include "store/store.h"
#include "wire/message.h"
#include "wire/page_range.h"

#define SPACE_NUMBER_BITS 20
#define ID_MASK ((UINT64_C(1) << (64 - SPACE_NUMBER_BITS)) - 1) /* of objects */
/* What a peer can make us keep besides pages, which quotas are for. */
#define DRAFTS_PER_OWNER_LIMIT 64
#define SNAPSHOTS_LIMIT 65536
#define INSTANCES_LIMIT 65536
#define SPACES_PER_OBJECT_LIMIT 65536
#define FILES_PER_DRAFT_LIMIT 8192
#define FILE_BYTES_PER_DRAFT_LIMIT (UINT64_C(16) << 30)

enum object_kind { OBJECT_DRAFT, OBJECT_SNAPSHOT, OBJECT_INSTANCE };

struct space {
	struct space *next; /* of the same object, in order of creation */
	struct object *object;
	uint64_t id, label;
	struct pagemap map;
};

struct pool_file {
	char name[128];
	uint8_t *content;
	uint64_t total, filled;
};

struct object {
	struct object *next, *previous; /* all objects */
	struct object *next_name;       /* snapshots, by name */
	enum object_kind kind;
	uint64_t id;
	char name[256];
	uint64_t created_unix_ns;
	uint16_t account;  /* of who made it; 0: not known */
	uint64_t file_bytes; /* what it is charged with for its files */
	const void *owner; /* drafts; instances: who holds the lease; NULL once that connection is gone */
	struct space *spaces, **last_space;
	uint32_t space_count, next_number;
	/* snapshots and drafts */
	struct pool_file *files;
	size_t file_count;
	char *meta;
	uint32_t meta_length;
	bool replace;
	int failed; /* a write to the draft failed with this: it cannot be committed */
	bool committing; /* no more writes */
	bool unverified; /* its manifest, of an earlier version, does not say what its pages must be */
	uint32_t instances;
	uint8_t *order; /* snapshots: the recorded order as it came (wire/order.h), or NULL */
	uint32_t order_bytes;
	/* instances */
	uint64_t epoch;
	uint64_t base; /* the snapshot's id */
	bool keep;
	bool resume;      /* it outlives its connection for a while, */
	bool attached;    /* once somebody has attached: before, nobody knows it */
	uint64_t lost_ns; /* when that was lost; 0: it is there */
	uint64_t applied; /* the last operation of its sequence that was handled */
	struct message_failure *failures; /* of the operations of the window, those that failed, ascending */
	uint32_t failure_count;
	uint8_t *note; /* the writer's own */
	uint32_t note_bytes;
	struct journal *journal; /* NULL: it ends with the pool */
};

struct pool {
	struct store *store; /* owned */
	struct slots slots;
	struct idmap objects, spaces;
	struct object *all;
	struct object *by_name; /* snapshots, sorted */
	uint64_t next_id;
	uint64_t ids_kept; /* the store says that those below have been given out */
	uint64_t snapshot_count, instance_count;
	bool identity_kept;
	uint8_t identity[IDENTITY_BYTES]; /* of the store where it keeps, else of this process */
	uint64_t lost_count;              /* instances that may be waiting; pool_expire counts them */
	uint64_t keep_lost_ns;            /* how long an instance waits for somebody to attach; 0: for ever */
	uint64_t damaged_pages; /* found so far: pages that are not what was stored */
	/* NULL, or told of an instance that its writer ends, while its maps are there still. */
	void (*on_instance_end)(void *context, const struct object *instance);
	void *on_instance_end_context;
};

/* Takes the store and loads the snapshots in it. -EBADMSG where one of them is damaged (named in the text). The store is closed
 * on failure too. */
int pool_open(struct pool **pool, struct store *store, struct dp_err *err);
/* Takes NULL. What is committed stays in a persistent store. */
void pool_close(struct pool *pool);
/* The end of each request: slots no longer used go back to the store. */
void pool_flush(struct pool *pool);
/* The connection is gone: its drafts vanish, its instances that are not kept end. */
void pool_owner_gone(struct pool *pool, const void *owner);

/* Instances that waited too long end. Returns how many still wait. */
uint64_t pool_expire(struct pool *pool);
#define POOL_KEEP_LOST_NS (UINT64_C(300) * 1000000000)

/* ---- pages ---- */
struct space *pool_space(const struct pool *pool, uint64_t id);
/* `pages` holds the ranges' pages, one after another, `digests` what the writer says of each (message_digest_at), or NULL.
 * -EBADMSG where a page is not what its digest says: nothing has changed. -ENOENT, -ESTALE, -EROFS, -EPERM, -ENOSPC, -EIO,
 * -ENOMEM. */
int pool_put(struct pool *pool, const void *owner, uint64_t space, uint64_t epoch, const struct page_range *ranges, size_t count,
	     const uint8_t *pages, const uint8_t *digests);
int pool_drop(struct pool *pool, const void *owner, uint64_t space, uint64_t epoch, struct page_range range);
int pool_move(struct pool *pool, const void *owner, uint64_t space, uint64_t epoch, uint64_t from, uint64_t to, uint64_t pages);
int pool_fork(struct pool *pool, const void *owner, uint64_t parent, uint64_t epoch, uint64_t child);
int pool_space_free(struct pool *pool, const void *owner, uint64_t space, uint64_t epoch);

/* The slot's page is not what was stored: counts it and says so in the log, the first times. */
void pool_note_damage(struct pool *pool, uint64_t slot, uint64_t pgno, uint64_t space);

/* ---- snapshots ---- */
/* Names are normalised: "repo:tag". */
struct object *pool_snapshot(const struct pool *pool, const char *name);
struct object *pool_object(const struct pool *pool, uint64_t id, enum object_kind kind);
int pool_snapshot_begin(struct pool *pool, const void *owner, const char *name, bool replace, uint64_t *draft,
			struct dp_err *err);
int pool_snapshot_space(struct pool *pool, const void *owner, uint64_t draft, uint64_t label, uint64_t *space,
			struct dp_err *err);
int pool_snapshot_inherit(struct pool *pool, const void *owner, uint64_t draft_space, uint64_t source, struct page_range range,
			  struct dp_err *err);
/* Parts of a file come in order; offset 0 starts it (anew). */
int pool_snapshot_file(struct pool *pool, const void *owner, uint64_t draft, const char *name, uint64_t total, uint64_t offset,
		       const void *content, uint64_t bytes, struct dp_err *err);
/* A commit has three steps: begin checks and forbids further writes; then the caller syncs the store (from any thread), if it is
 * persistent; finish makes the snapshot visible. A failed finish leaves the draft to be aborted. */
int pool_snapshot_commit_begin(struct pool *pool, const void *owner, uint64_t draft, const char *meta, uint32_t meta_length,
			       struct dp_err *err);
int pool_snapshot_commit_finish(struct pool *pool, const void *owner, uint64_t draft, int sync_result, struct dp_err *err);
int pool_snapshot_abort(struct pool *pool, const void *owner, uint64_t draft, struct dp_err *err);
int pool_snapshot_remove(struct pool *pool, const char *name, bool force, struct dp_err *err);
const struct pool_file *pool_file_find(const struct object *snapshot, const char *name);
uint64_t object_pages(const struct object *object);
uint64_t object_own_pages(const struct object *object);
/* What its pages take in the store. Walks them all where the store packs. */
uint64_t object_stored_bytes(const struct pool *pool, const struct object *object);

/* ---- recorded orders (order.c) ---- */
/* Of an instance's snapshot; `bytes` have been checked. Durable where the store is. -ENOENT, -ESTALE, -ENOMEM, or the store's. */
int pool_order_put(struct pool *pool, uint64_t instance, uint64_t epoch, const uint8_t *bytes, uint32_t length,
		   struct dp_err *err);
/* The snapshot, of itself or of an instance, if it has an order; else NULL. */
const struct object *pool_order_get(const struct pool *pool, uint64_t id);

/* ---- instances ---- */
/* flags: INSTANCE_FLAG_KEEP, INSTANCE_FLAG_RESUME. */
int pool_instance_create(struct pool *pool, const void *owner, const char *snapshot, const char *name, uint32_t flags,
			 struct object **instance, struct dp_err *err);
int pool_instance_end(struct pool *pool, uint64_t instance, uint64_t epoch, struct dp_err *err);
int pool_lease_take(struct pool *pool, const void *owner, uint64_t instance, uint32_t step, uint64_t *epoch, struct dp_err *err);

/* ---- attach.c ---- */
/* The writer's note, given back to whoever attaches. -ENOENT, -ESTALE, -ENOMEM. */
int pool_note(struct pool *pool, uint64_t instance, uint64_t epoch, const void *note, uint32_t bytes);
/* An operation was handled, with this result. `failures` is there. */
void pool_applied(struct object *instance, uint64_t sequence, int result);

/* ---- inside the room (object.c, persist.c) ---- */
struct object *object_new(struct pool *pool, enum object_kind kind, const char *name, const void *owner);
void object_free(struct pool *pool, struct object *object);
/* number 0: the next one. NULL where memory is out or the number is taken. */
struct space *object_add_space(struct pool *pool, struct object *object, uint64_t number, uint64_t label);
void object_remove_space(struct pool *pool, struct space *space);
/* The store says who it is from now on, and that the ids given out so far are used; persistent stores only. */
int pool_keep_identity(struct pool *pool);
void pool_publish(struct pool *pool, struct object *snapshot);
int persist_load(struct pool *pool, struct dp_err *err);
/* The pages must have been synced before (T3). */
int persist_save(struct pool *pool, const struct object *snapshot, struct dp_err *err);
int persist_remove(struct pool *pool, const char *name, struct dp_err *err);
/* The blob in which something of a snapshot lies: its name without slashes, and a suffix that says what. */
#define POOL_BLOB_NAME_LIMIT (BLOB_NAME_LIMIT + 64)
void pool_blob_name(const char *name, const char *suffix, char blob[static POOL_BLOB_NAME_LIMIT]);
/* Who stored a snapshot (owner.c). The number of his account; 0: not known. */
int owner_save(struct pool *pool, const struct object *snapshot);
uint16_t owner_load(struct pool *pool, const char *name, uint64_t created_unix_ns);
void owner_remove(struct pool *pool, const char *name);
/* Orders are advice: one that is damaged or of another snapshot of that name is dropped. */
int order_save(struct pool *pool, const struct object *snapshot, struct dp_err *err);
void order_load(struct pool *pool, struct object *snapshot);
void order_remove(struct pool *pool, const char *name);

#endif
