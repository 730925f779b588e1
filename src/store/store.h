/* store: where a pool keeps bytes. Two kinds of things: page slots (4096 bytes, numbered, rewritten in place) and named
 * blobs (small, whole, put atomically). Everything about snapshots is in the pool; a store knows neither names nor spaces.
 *
 * A store is a table of functions. Engines keep bytes (memory:, dir:/path, file:/path); layers are stores over a store
 * (?chaos=..., ?compress=zstd, later dedup, mirror). All page calls are batches.
 *
 * Invariants: T1 slot 0 is never handed out; T2 a slot's bytes are what was last written to it, until it is freed; T3 after
 * blob_put returned 0 the blob and all pages written before the last `sync` survive a crash, before that the old blob does;
 * T4 allocation is not recorded: who opens a persistent store says which slots its blobs refer to (adopt).
 * Thread rule: one thread. Errors: -errno; -ENOSPC where the store is full (nothing has changed then), -EIO. */
#ifndef DP_STORE_STORE_H
#define DP_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define BLOB_NAME_LIMIT 220

struct store;

struct store_capacity {
	uint64_t used_pages;
	uint64_t free_pages; /* UINT64_MAX where no bound is known */
	uint64_t stored_bytes; /* what used_pages take, packed or not */
	uint64_t end_slot;   /* persistent: slots below this were there when the store was opened */
};

typedef int (*store_blob_visit)(void *context, const char *name, uint64_t bytes);

struct store_ops {
	const char *name;
	/* All or none. */
	int (*alloc)(struct store *store, uint64_t *slots, size_t count);
	void (*free)(struct store *store, const uint64_t *slots, size_t count);
	int (*write)(struct store *store, const uint64_t *slots, const void *const *pages, size_t count);
	int (*read)(struct store *store, const uint64_t *slots, void *const *pages, size_t count);
	/* The page that the slot had, written again in its place, where what is there is damaged. NULL: as write. -EOPNOTSUPP: it
	 * does not fit there. */
	int (*write_again)(struct store *store, uint64_t slot, const void *page);
	/* The slot's bytes in memory, readable until the slot is freed; NULL where this store must be read. */
	const void *(*page)(struct store *store, uint64_t slot);
	/* What the slot's page takes; NULL: 4096, all of them. */
	uint32_t (*stored_bytes)(struct store *store, uint64_t slot);
	/* Pages written so far are durable when it returns. The one call that may be made from another thread, at any time. */
	int (*sync)(struct store *store);
	/* Creates or replaces: atomic and durable. Names: [A-Za-z0-9._:%-]{1,220}, no dot in front. */
	int (*blob_put)(struct store *store, const char *name, const void *bytes, uint64_t length);
	/* Fresh buffer, the caller frees it. -ENOENT, -EFBIG beyond limit, -EBADMSG where damaged. */
	int (*blob_get)(struct store *store, const char *name, void **bytes, uint64_t *length, uint64_t limit);
	/* Calls visit for each; stops at a negative result and returns it. visit must not change the store. */
	int (*blob_list)(struct store *store, store_blob_visit visit, void *context);
	/* Durably. -ENOENT. */
	int (*blob_delete)(struct store *store, const char *name);
	/* Once, after open and before the first alloc: which of the slots below end_slot are in use. */
	/* -EBADMSG where one of them cannot be. */
	int (*adopt)(struct store *store, bool (*used)(void *context, uint64_t slot), void *context);
	void (*capacity)(struct store *store, struct store_capacity *capacity);
	void (*close)(struct store *store);
};

struct store {
	const struct store_ops *ops;
	bool persistent; /* blobs and pages outlive the process */
	bool digests_late; /* nobody has looked at its pages yet: each gets its digest when it is read first */
	/* owned; a directory of this host beside the store, for what belongs to it, where what was written is in the kernel's
	 * hands when write returns; NULL: there is none */
	char *beside;
};

/* `memory:`, `memory:SIZE`, either with `?ready=SIZE`, `dir:/path`, `file:/path`; behind each
 * `?compress=zstd` or `?compress=lz4`: pages are packed (packed.h), and `?chaos=OPTIONS`: calls fail on purpose (chaos.c); a
 * second option is joined by `&`. A packed store is known as one. Directory and file stores are created where they
 * are absent if create, and locked: -EBUSY where another pool has the store open. */
int store_open(struct store **store, const char *uri, bool create, struct dp_err *err);
/* The same without a packed layer: for layers that are to lie below it. */
int store_open_plain(struct store **store, const char *uri, bool create, struct dp_err *err);
/* Takes NULL. */
void store_close(struct store *store);
bool store_blob_name_good(const char *name);
/* Makes the name of a new file or directory durable: syncs the directory that it is in. */
int store_sync_parent(const char *path);

/* The engines; store_open is how they are reached. */
int store_memory_open(struct store **store, const char *size_text, struct dp_err *err);
int store_dir_open(struct store **store, const char *path, bool create, struct dp_err *err);
int store_file_open(struct store **store, const char *path, bool create, struct dp_err *err);
/* Over `lower`, if it is a packed store or, with codec `zstd` or `lz4`, is new. *store is what is to be closed, also on
 * failure. */
int store_packed_open(struct store **store, struct store *lower, const char *codec, struct dp_err *err);
/* Over `lower`; *store is what is to be closed, also on failure. */
int store_chaos_open(struct store **store, struct store *lower, const char *options, struct dp_err *err);

#endif
