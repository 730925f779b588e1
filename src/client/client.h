/* client: one connection to a pool. Control calls block and are meant for the command line and for set-up; page calls
 * are asynchronous and pipelined, and are what the pager lives on.
 *
 * How it works: requests carry an id and go out in order; the pool handles the requests of one connection in the order
 * in which it got them (so PUT, then FORK, then GET need no waiting in between), and answers in any order. Received bytes
 * land in one ring of memory that is set up at open; nothing is allocated on the page path after that.
 * A space of an instance is written under its lease's epoch; the pool answers ESTALE to any other.
 *
 * Answers to page requests that come while a control call waits are kept and delivered by the next client_receive: after a
 * control call that was made with page requests in flight, call client_receive before polling.
 *
 * Pages carry digests from whoever wrote them, and each is compared when it comes, over a connection or from near memory. One
 * that is not what it should be is asked for once more, and the pool looks at it then; what is damaged still is told by
 * on_damaged.
 *
 * Invariants: C1 a page of a DATA reply is handed over exactly once or its request fails; C2 an answer that names an unknown
 * request, a page that was not asked for, or a length beyond the limits ends the connection with -EPROTO.
 * Thread rule: one thread per client. Errors: -errno of the pool as it sent it, or -ECONNRESET/-EPIPE/-ETIMEDOUT/-EPROTO,
 * or -EBADMSG where a message (not a page) came damaged: connect again. */
#ifndef DP_CLIENT_CLIENT_H
#define DP_CLIENT_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "transport/endpoint.h"
#include "wire/order.h"
#include "wire/page_range.h" /* struct page_range, enum request_class */

struct client;

/* Connects and says hello. For dir:/file: endpoints the captive pool of that path is found or started; -ENOENT where the path
 * holds no store. Blocks, at most timeout_ms (0: 10 s). */
int client_open(struct client **client, const struct endpoint *endpoint, unsigned timeout_ms, struct dp_err *err);
/* The same for a caller that is going to write: the store of a dir:/file: endpoint is created where it is absent. */
int client_open_for_writing(struct client **client, const struct endpoint *endpoint, unsigned timeout_ms, struct dp_err *err);
void client_close(struct client *client);
/* For poll/epoll; readable means client_receive has work. Borrowed. */
int client_fd(const struct client *client);
/* Pages may travel packed by LZ4. auto (as it opens): where that makes the link carry more, found by trying (client/compress.h);
 * never on a Unix socket. Call it before the first page request. -ENOMEM. */
enum client_compress { CLIENT_COMPRESS_AUTO, CLIENT_COMPRESS_OFF, CLIENT_COMPRESS_LZ4 };
int client_set_compress(struct client *client, enum client_compress mode);
/* `auto`, `off`, `lz4`. -EINVAL. */
int client_compress_parse(const char *text, enum client_compress *mode);
/* Would the next GET and PUT be packed? */
void client_packs(const struct client *client, bool *get, bool *put);
uint64_t client_bytes_sent(const struct client *client);
uint64_t client_bytes_received(const struct client *client);
/* Pages that came damaged so far, whether or not they came right when they were asked for again. */
uint64_t client_damaged_pages(const struct client *client);

/* ---- writing a snapshot (blocking; the draft vanishes with the connection unless committed) ---- */
/* -EEXIST where the name is taken and !replace. *draft is the object id for the calls below. */
int client_snapshot_begin(struct client *client, const char *name, bool replace, uint64_t *draft, struct dp_err *err);
/* A space of the draft; label is the vpid of the task it belongs to. *space can be written by client_put with epoch 0. */
int client_snapshot_space(struct client *client, uint64_t draft, uint64_t label, uint64_t *space, struct dp_err *err);
/* Pages of the draft's space that are what `source` (a space of an instance or snapshot) has there: shared, not copied. */
int client_snapshot_inherit(struct client *client, uint64_t draft_space, uint64_t source, const struct page_range *ranges,
			    size_t count, struct dp_err *err);
/* A file of the skeleton, whole. */
int client_snapshot_file(struct client *client, uint64_t draft, const char *name, const void *content, uint64_t bytes,
			 struct dp_err *err);
/* Many of them, in as few round trips as it takes. After an error of the pool's the client is of no more use. */
struct client_file {
	const char *name;
	const void *content;
	uint64_t bytes;
};
int client_snapshot_files(struct client *client, uint64_t draft, const struct client_file *files, size_t count,
			  struct dp_err *err);
/* Makes it visible under its name, durably as the store does it; meta_json is kept as it is (<= 64 KiB). Waits for all
 * writes before it. -ENOSPC where the store is full: nothing is visible then. */
int client_snapshot_commit(struct client *client, uint64_t draft, const char *meta_json, struct dp_err *err);
int client_snapshot_abort(struct client *client, uint64_t draft, struct dp_err *err);

/* ---- reading snapshots (blocking) ---- */
struct snapshot_file {
	char name[128];
	uint64_t bytes;
};
struct snapshot_space {
	uint64_t label; /* vpid */
	uint64_t space; /* id, readable by client_get with epoch 0 */
	uint64_t pages; /* pages stored */
};
struct snapshot_instance {
	uint64_t id, epoch;
	uint64_t own_pages; /* that nothing else shares: what the instance costs */
	char name[256];
};
struct snapshot_info {
	uint64_t id;
	char name[256];
	uint64_t created_unix_ns;
	uint64_t stored_pages; /* pages of all spaces */
	uint64_t stored_bytes; /* what they take in the pool's store, packed or not; UINT64_MAX where not counted */
	uint64_t own_pages;    /* of them, not shared with any other snapshot or instance; UINT64_MAX where not counted */
	uint32_t instances;    /* live instances */
	char *meta_json;
	struct snapshot_file *files;
	size_t file_count;
	struct snapshot_space *spaces;
	size_t space_count;
	struct snapshot_instance *instance_list; /* client_snapshot_inspect only */
	size_t instance_list_count;
};
/* Fills info (client_snapshot_info_done frees what it holds). -ENOENT. */
int client_snapshot_open(struct client *client, const char *name, struct snapshot_info *info, struct dp_err *err);
/* The same with own_pages counted and live instances listed. The pool looks at every page: for people, not for restores. */
int client_snapshot_inspect(struct client *client, const char *name, struct snapshot_info *info, struct dp_err *err);
void client_snapshot_info_done(struct snapshot_info *info);
/* Reads a whole file of the skeleton into a fresh buffer (caller frees). */
int client_file_get(struct client *client, uint64_t snapshot, const char *name, uint64_t bytes, void **content,
		    struct dp_err *err);
/* The same for many files at once, with few round trips: `on_file` is called once a file, in any order, with its index and its
 * content, which is valid during the call. An error of its, or of the pool, ends the client. */
typedef int client_on_file(void *context, size_t index, const void *content, uint64_t bytes, struct dp_err *err);
int client_files_get(struct client *client, uint64_t snapshot, const struct snapshot_file *files, size_t count,
		     client_on_file *on_file, void *context, struct dp_err *err);
/* All snapshots, without files and spaces; the caller frees each by client_snapshot_info_done, and the array. */
int client_list(struct client *client, struct snapshot_info **list, size_t *count, struct dp_err *err);
/* -EBUSY where live instances use it and !force (their pages stay until they end either way). */
int client_remove(struct client *client, const char *name, bool force, struct dp_err *err);

struct pool_status {
	uint64_t page_slots_used; /* pages stored, each once */
	uint64_t page_slots_free; /* UINT64_MAX where the store knows no bound */
	uint64_t snapshots, instances, spaces, connections;
	uint64_t bytes_in, bytes_out, requests;
	uint64_t uptime_ns;
	uint64_t stored_bytes; /* what the pages take, packed or not */
};
int client_status(struct client *client, struct pool_status *status, struct dp_err *err);

/* The order in which an earlier run wanted the pages of a snapshot (or of an instance's snapshot); fresh array. -ENOENT: none. */
int client_order_get(struct client *client, uint64_t object, struct order_run **runs, size_t *count, struct dp_err *err);

/* ---- instances (blocking) ---- */
struct instance_info {
	uint64_t id;
	uint64_t epoch;
	struct snapshot_space *spaces; /* the instance's own, same labels as the snapshot's; freed by the caller */
	size_t space_count;
};
/* A new instance of a snapshot: overlay over its pages, lease with epoch 1. `name` is for people (`pool inspect`). The
 * instance ends with client_instance_end, or, unless kept, when this connection is lost. */
int client_instance_create(struct client *client, const char *snapshot, const char *name, bool keep, struct instance_info *info,
			   struct dp_err *err);
int client_instance_end(struct client *client, uint64_t instance, uint64_t epoch, struct dp_err *err);
/* Takes the lease: *epoch is the new, higher one; writes under any older epoch answer ESTALE from now on. */
int client_lease_take(struct client *client, uint64_t instance, uint64_t *epoch, struct dp_err *err);

/* ---- instances that outlive their connection (attach.c; link.h is built on it) ---- */
struct message_failure;
/* What is known of an instance to whom is attached to it. */
struct client_attached {
	uint64_t instance, epoch;
	uint8_t identity[16]; /* of the pool, or of its store where that keeps */
	uint64_t applied;     /* the last operation of the instance's sequence that was handled; the next one is applied + 1 */
	struct message_failure *failures; /* those of the last SEQUENCE_WINDOW operations that failed */
	uint32_t failure_count;
	struct snapshot_space *spaces;
	size_t space_count;
	uint8_t note[1000]; /* the last client_note */
	uint32_t note_bytes;
};
bool client_can_resume(const struct client *client);
/* A new instance that, when its connection is lost, waits for somebody to attach. This connection is attached to it. */
int client_instance_create_resumable(struct client *client, const char *snapshot, const char *name,
				     struct client_attached *attached, struct dp_err *err);
/* This connection is the one that writes the instance from now on. `epoch` must be that of the lease. step: the lease is taken,
 * the epoch rises by so much, and operations that others still have under way get ESTALE; 0: not. identity: 16 bytes, the pool
 * that must answer, or NULL. Operations carry numbers from here on: client_set_sequence before each. -ESTALE: taken by another.
 * -ENOENT: the instance has ended. -ENXIO: another pool, or one that was restarted without a store that keeps.
 * client_attached_done frees what came. */
int client_attach(struct client *client, uint64_t instance, uint64_t epoch, uint32_t step, const uint8_t *identity,
		  unsigned timeout_ms, struct client_attached *attached, struct dp_err *err);
void client_attached_done(struct client_attached *attached);
/* A lease as it is kept where it outlives who holds it. */
struct client_lease {
	uint64_t instance, epoch;
	uint64_t next; /* the epoch to which it was being raised, when that began; 0: none */
	uint8_t identity[16];
};
/* Saves it. 0 or -errno. */
typedef int client_note_lease(void *context, const struct client_lease *lease);
/* Attaches, and raises the epoch, so that nothing which the holder before still has under way is applied. Who dies in between, or
 * does not hear the answer, does it again by what `note` saved: it is called with the lease after each change of it, and before
 * the pool is asked. No other chooses that epoch, as the step is random, and nobody takes a lease back that another has taken. As
 * client_attach, or what `note` returned. */
int client_take_over(struct client *client, struct client_lease *lease, client_note_lease *note, void *context,
		     unsigned timeout_ms, struct client_attached *attached, struct dp_err *err);
/* The next operation (put, drop, move, fork, space_free, note) has this place in the sequence: it is applied once however often
 * it is sent. 0: none. A call that returns -EAGAIN has not used it. */
void client_set_sequence(struct client *client, uint64_t sequence);
/* GETs of the instance's spaces say under which lease they are made, and get ESTALE when it was taken by another. 0: they do
 * not. */
void client_set_read_epoch(struct client *client, uint64_t epoch);
/* At most 1000 bytes that are kept with the instance and given to whoever attaches. Asynchronous, as the calls below. */
int client_note(struct client *client, uint64_t instance, uint64_t epoch, const void *note, uint32_t bytes, uint64_t cookie);

/* ---- pages (asynchronous) ----
 * Each call queues one request and tries to send at once. They return 0, -EAGAIN where the send queue is full (call
 * client_receive or wait for POLLOUT, then again), or the connection's error. Buffers are borrowed until the call returns. */
/* Asks for runs of pages. Every page of the runs is answered by on_pages in one or more parts, as data or as zero. A request
 * asks for at most 1024 pages and 64 ranges. `cookie` comes back with each part. */
int client_get(struct client *client, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count,
	       uint64_t cookie);
/* Stores pages; `data` holds the ranges' pages one after another; at most 1024 pages and 256 ranges, which
 * do not overlap. */
int client_put(struct client *client, uint64_t space, uint64_t epoch, const struct page_range *ranges, size_t count,
	       const struct iovec *data, size_t data_count, uint64_t cookie);
/* These pages are gone: read as zero from now on, their storage is given back. Ranges may be of any length; at most 256
 * ranges. */
int client_drop(struct client *client, uint64_t space, uint64_t epoch, const struct page_range *ranges, size_t count,
		uint64_t cookie);
/* mremap: pages from..from+pages now live at to..; what was there before is dropped. */
int client_move(struct client *client, uint64_t space, uint64_t epoch, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages,
		uint64_t cookie);
/* fork: a new space of the same instance with the pages `parent` has at this point of the request stream. The caller
 * picks its id: any not in use in this instance (one that was freed may be used again) with the same upper 44 bits as the
 * parent's id. */
int client_fork(struct client *client, uint64_t parent, uint64_t epoch, uint64_t child, uint64_t cookie);
int client_space_free(struct client *client, uint64_t space, uint64_t epoch, uint64_t cookie);
/* Gives the instance's snapshot a recorded order, in place of the one it has; labels are the snapshot's. At most ORDER_RUNS_LIMIT
 * runs. Answered by on_done: -ENOENT where the snapshot was removed meanwhile. */
int client_order_put(struct client *client, uint64_t instance, uint64_t epoch, const struct order_run *runs, size_t count,
		     uint64_t cookie);

struct client_handler {
	void *context;
	/* A run of a GET's pages: data points at pages * 4096 bytes (any alignment, valid during the call), or NULL: all zero.
	 * `last` is set on the part that completes the request. */
	void (*on_pages)(void *context, uint64_t cookie, struct page_range range, const void *data, bool last);
	/* The answer to put, drop, move, fork, space_free (0 or -errno), or the failure of a get. */
	void (*on_done)(void *context, uint64_t cookie, int result);
	/* A run of a GET's pages that this pool cannot give: what it has is not what was stored. Like on_pages, without data.
	 * NULL: such a page ends the client with -EIO. */
	void (*on_damaged)(void *context, uint64_t cookie, struct page_range range, bool last);
};

/* From now on pages are read from the pool's memory where the pool is on this host, has pages in memory and lets us (near.h). */
bool client_read_near(struct client *client);
/* Hands over pages at once whose places are known. 0: ask for them by client_get; else as client_receive. */
int client_get_near(struct client *client, const struct client_handler *handler, uint64_t space, const struct page_range *ranges,
		    size_t count, uint64_t cookie);
/* Reads what is there and calls the handler for each complete part; never blocks. Returns the number of calls made, 0 where
 * nothing complete was there, or the connection's error (no handler is called after an error). Also sends what is queued. */
int client_receive(struct client *client, const struct client_handler *handler);
/* true while bytes wait to be sent: poll for POLLOUT too. */
bool client_wants_write(const struct client *client);

#endif
