/* wire/message: the protocol between a client and a pool, as bytes (docs/protocol.md describes every field).
 *
 * A message is a header of 40 bytes and a payload of at most 8 MiB, little-endian, fixed width. The functions here turn
 * structs into bytes and back; they do no I/O and allocate nothing. Encoders write into the caller's buffer and return the
 * payload's length, or -EMSGSIZE where the buffer is too small. Decoders return 0 or -EBADMSG; what they give back points
 * into the bytes in hand. Every length and count is checked against the bytes in hand and the limits below, and a payload
 * must be used up exactly: bytes left over are an error too. Thread rule: none, no state. */
#ifndef DP_WIRE_MESSAGE_H
#define DP_WIRE_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/base.h"
#include "wire/pack.h"
#include "wire/order.h"
#include "wire/page_range.h"

#define MESSAGE_VERSION 2
#define MESSAGE_HEADER_BYTES 40
#define MESSAGE_PAYLOAD_LIMIT (8u << 20)
#define MESSAGE_MAGIC 0x4c4f4f50u /* "POOL" */

#define GET_PAGES_LIMIT 1024
#define GET_RANGES_LIMIT 64
#define PUT_PAGES_LIMIT 1024
#define PUT_RANGES_LIMIT 256
#define DROP_RANGES_LIMIT 4096
#define DATA_PAGES_LIMIT 64 /* pages with bytes in one part of an answer: 256 KiB */
#define DATA_RUNS_LIMIT 192
#define DIGEST_BYTES 16u
#define PLACE_BYTES 24u
#define FILE_PART_LIMIT (4u << 20)
#define NAME_LIMIT 255
#define FILE_NAME_LIMIT 127
#define META_LIMIT (64u << 10)
#define ERROR_TEXT_LIMIT 1000

enum message_type {
	MESSAGE_HELLO = 1,
	MESSAGE_OK = 2,
	MESSAGE_ERROR = 3,
	MESSAGE_GET = 16,
	MESSAGE_DATA = 17,
	MESSAGE_PUT = 18,
	MESSAGE_DROP = 19,
	MESSAGE_MOVE = 20,
	MESSAGE_FORK = 21,
	MESSAGE_SPACE_FREE = 22,
	MESSAGE_LOCATE = 23,
	MESSAGE_PLACES = 24,
	MESSAGE_NEAR = 25,
	MESSAGE_SNAPSHOT_BEGIN = 32,
	MESSAGE_SNAPSHOT_SPACE = 33,
	MESSAGE_SNAPSHOT_INHERIT = 34,
	MESSAGE_SNAPSHOT_FILE = 35,
	MESSAGE_SNAPSHOT_COMMIT = 36,
	MESSAGE_SNAPSHOT_ABORT = 37,
	MESSAGE_SNAPSHOT_OPEN = 38,
	MESSAGE_SNAPSHOT_INFO = 39,
	MESSAGE_FILE_GET = 40,
	MESSAGE_FILE_BYTES = 41,
	MESSAGE_LIST = 42,
	MESSAGE_REMOVE = 43,
	MESSAGE_STATUS = 44,
	MESSAGE_ORDER_PUT = 45,
	MESSAGE_ORDER_GET = 46,
	MESSAGE_ORDER = 47,
	MESSAGE_INSTANCE_CREATE = 48,
	MESSAGE_INSTANCE_INFO = 49,
	MESSAGE_INSTANCE_END = 50,
	MESSAGE_LEASE_TAKE = 51,
	MESSAGE_ATTACH = 52,
	MESSAGE_ATTACHED = 53,
	MESSAGE_NOTE = 54,
	MESSAGE_SCRUB = 60,
	MESSAGE_SCRUBBED = 61,
	MESSAGE_FIND = 62,
	MESSAGE_FOUND = 63,
	MESSAGE_REPAIR = 64,
};

#define MESSAGE_CLASS_MASK 0x1f
#define MESSAGE_CHECKED                                                                                                          \
	0x20 /* in GET: the pool is to compare the pages with their digests before it sends them; it came damaged before */
#define MESSAGE_PACKED 0x40 /* in GET: the answer's pages may come packed; in DATA and PUT: they are (wire/pack.h) */
#define MESSAGE_MORE 0x80   /* in an answer's class byte: more parts of this answer follow */

struct message_header {
	uint32_t length; /* of the payload, bytes */
	uint16_t type;
	uint8_t version;
	uint8_t class; /* enum request_class, with MESSAGE_PACKED, MESSAGE_MORE */
	uint64_t request;
	uint64_t object; /* a space, draft, snapshot or instance */
	uint64_t epoch;
	uint32_t check; /* of this header and of the payload, but for its last `plain` bytes: message_check */
	uint32_t plain; /* bytes of pages, which have digests of their own. PUT and DATA only */
};

void message_header_encode(uint8_t bytes[static MESSAGE_HEADER_BYTES], const struct message_header *header);
/* -EPROTONOSUPPORT: another version. -EBADMSG: unknown type or class, or a payload beyond the limit. */
int message_header_decode(const uint8_t bytes[static MESSAGE_HEADER_BYTES], struct message_header *header);
/* The check of a message whose payload is in pieces, however it is cut; the header's plain bytes, which must be the last, are
 * left out.
 * Against damage on the way, not against attackers: they are TLS's business. */
uint32_t message_check(const struct message_header *header, const struct iovec *pieces, size_t count);
/* Writes the check into a message that lies whole in memory, header first. */
void message_seal(uint8_t *message);
/* Is the message what was sent? */
bool message_check_good(const struct message_header *header, const uint8_t *payload);
/* The type's name for messages and tests, or "unknown". */
const char *message_type_name(unsigned type);

/* Errors travel as the numbers of docs/protocol.md, whatever the numbers of this system are. */
uint32_t message_error_number(int error); /* positive errno -> number */
int message_error_errno(uint32_t number); /* number -> positive errno; EIO where unknown */

struct message_text {
	const char *at; /* not NUL-terminated */
	uint32_t length;
};
struct message_bytes {
	const void *at;
	uint64_t length;
};
/* Copies a text with a NUL behind it; the decoders have made sure that it holds no NUL and is shorter than size. */
void message_text_copy(struct message_text text, char *buffer, size_t size);

#define HELLO_FEATURE_LZ4 1u  /* pages may be packed: MESSAGE_PACKED */
#define HELLO_FEATURE_NEAR 2u /* the pool tells where pages lie in its memory: NEAR, LOCATE */
#define HELLO_FEATURE_RESUME 16u /* instances outlive their connection: ATTACH, NOTE, sequenced operations */
struct message_hello {
	uint16_t lowest, highest; /* versions the sender speaks */
	uint32_t features;        /* the client's: what it can; the pool's: those of them that it can too */
};
int message_hello_encode(uint8_t *bytes, size_t size, const struct message_hello *hello);
int message_hello_decode(const uint8_t *bytes, size_t length, struct message_hello *hello);

struct message_error {
	int error; /* positive errno */
	struct message_text text;
};
int message_error_encode(uint8_t *bytes, size_t size, const struct message_error *error);
int message_error_decode(const uint8_t *bytes, size_t length, struct message_error *error);

/* ---- pages ---- */
/* Ranges, as GET, DROP and PUT carry them: each is not empty and inside 2^36 pages. */
struct message_ranges {
	const uint8_t *at;
	uint32_t count;
	uint64_t pages; /* of all ranges */
};
struct page_range message_range_at(const struct message_ranges *ranges, uint32_t index);
int message_ranges_encode(uint8_t *bytes, size_t size, const struct page_range *ranges, size_t count);
int message_get_decode(const uint8_t *bytes, size_t length, struct message_ranges *ranges);
int message_drop_decode(const uint8_t *bytes, size_t length, struct message_ranges *ranges);
/* What a PUT says of its pages: where they belong, and for each, in order, the digest that the writer computed. */
struct message_put {
	struct message_ranges ranges;
	const uint8_t *digests; /* message_digest_at */
	const uint8_t *pages;   /* ranges.pages * 4096 bytes; NULL where packed */
};
int message_put_decode(const uint8_t *bytes, size_t length, struct message_put *put);
/* A PUT with MESSAGE_PACKED. */
int message_put_decode_packed(const uint8_t *bytes, size_t length, struct message_put *put, struct packed_pages *packed);
/* Digests in a row, as they follow the ranges of a PUT and the runs of a DATA. */
int message_digests_encode(uint8_t *bytes, size_t size, const struct page_digest *digests, size_t count);
struct page_digest message_digest_at(const uint8_t *digests, uint64_t index);

/* A run of a DATA answer. */
struct message_run {
	uint64_t pgno;
	uint32_t pages;
	bool zero;    /* no bytes follow for it */
	bool damaged; /* nor for it: what the pool has of these pages is not what was stored */
};
struct message_data {
	const uint8_t *at;
	uint32_t count;
	uint32_t data_pages; /* pages with bytes */
	const uint8_t *digests; /* of these, in order; where one is not known (page_digest_known) the pool had none */
	const uint8_t *pages;
};
struct message_run message_run_at(const struct message_data *data, uint32_t index);
/* Encodes count and runs; the digests and the pages' bytes come behind. */
int message_data_encode(uint8_t *bytes, size_t size, const struct message_run *runs, size_t count);
int message_data_decode(const uint8_t *bytes, size_t length, struct message_data *data);
/* A DATA with MESSAGE_PACKED; data->pages is NULL, the caller unpacks. */
int message_data_decode_packed(const uint8_t *bytes, size_t length, struct message_data *data, struct packed_pages *packed);

/* PLACES, the answer to LOCATE: for each page asked for, in order, its address in the pool's memory, 0: zero. */
struct page_place {
	uint64_t address;
	struct page_digest digest;
};
int message_places_encode(uint8_t *bytes, size_t size, const struct page_place *places, size_t count);
/* -EBADMSG unless it is exactly that many. */
int message_places_decode(const uint8_t *bytes, size_t length, struct page_place *places, size_t count);

/* NEAR, question and answer: who the pool is, and a number that only its memory shows, at a place in it. */
#define NEAR_PROOF_BYTES 16
struct message_near {
	uint64_t pid, proof_place;
	uint8_t proof[NEAR_PROOF_BYTES];
};
int message_near_encode(uint8_t *bytes, size_t size, const struct message_near *near);
int message_near_decode(const uint8_t *bytes, size_t length, struct message_near *near);

struct message_move {
	uint64_t from_pgno, to_pgno, pages;
};
int message_move_encode(uint8_t *bytes, size_t size, const struct message_move *move);
int message_move_decode(const uint8_t *bytes, size_t length, struct message_move *move);

/* One number: FORK (the child's id), SNAPSHOT_SPACE (the label). */
int message_number_encode(uint8_t *bytes, size_t size, uint64_t number);
int message_number_decode(const uint8_t *bytes, size_t length, uint64_t *number);

/* ---- snapshots ---- */
#define NAME_FLAG_REPLACE 1u /* SNAPSHOT_BEGIN */
#define NAME_FLAG_FORCE 1u   /* REMOVE */
#define NAME_FLAG_SHARING 1u /* SNAPSHOT_OPEN: count own_pages (walks all pages), list instances */
/* A name with flags: SNAPSHOT_BEGIN, SNAPSHOT_OPEN, REMOVE. */
struct message_name {
	uint32_t flags;
	struct message_text name;
};
int message_name_encode(uint8_t *bytes, size_t size, const struct message_name *name);
int message_name_decode(const uint8_t *bytes, size_t length, struct message_name *name);

struct message_inherit {
	uint64_t source;
	struct message_ranges ranges; /* decode only */
};
int message_inherit_encode(uint8_t *bytes, size_t size, uint64_t source, const struct page_range *ranges, size_t count);
int message_inherit_decode(const uint8_t *bytes, size_t length, struct message_inherit *inherit);

/* A part of a file: `total` bytes in all, this part at `offset`. */
struct message_file {
	uint64_t total, offset;
	struct message_text name;
	struct message_bytes content;
};
int message_file_encode(uint8_t *bytes, size_t size, const struct message_file *file);
int message_file_decode(const uint8_t *bytes, size_t length, struct message_file *file);

struct message_file_get {
	uint64_t offset, bytes;
	struct message_text name;
};
int message_file_get_encode(uint8_t *bytes, size_t size, const struct message_file_get *get);
int message_file_get_decode(const uint8_t *bytes, size_t length, struct message_file_get *get);

struct message_info_space {
	uint64_t label, space, pages;
};
struct message_info_instance {
	uint64_t id, epoch, own_pages;
	struct message_text name;
};
struct message_info {
	uint64_t created_unix_ns, stored_pages, own_pages;
	uint64_t stored_bytes; /* what stored_pages take in the store; UINT64_MAX where not counted, as own_pages */
	uint32_t instances;
	uint32_t file_count, space_count, list_count; /* list: live instances, where asked for (NAME_FLAG_SHARING) */
	struct message_text name, meta;
	const uint8_t *files, *spaces, *list; /* decode only: walk with message_info_file, _space_at, _instance */
};
/* Writes everything but the lists; then file_count files, space_count spaces and list_count instances are appended in this
 * order by the three below. */
int message_info_encode(uint8_t *bytes, size_t size, const struct message_info *info);
int message_info_file_encode(uint8_t *bytes, size_t size, struct message_text name, uint64_t file_bytes);
int message_info_space_encode(uint8_t *bytes, size_t size, const struct message_info_space *space);
int message_info_instance_encode(uint8_t *bytes, size_t size, const struct message_info_instance *instance);
int message_info_decode(const uint8_t *bytes, size_t length, struct message_info *info);
/* The file at *at, which starts as info->files and moves on; at most info->file_count calls. */
void message_info_file(const uint8_t **at, struct message_text *name, uint64_t *file_bytes);
/* The same for info->list and info->list_count. */
void message_info_instance(const uint8_t **at, struct message_info_instance *instance);
struct message_info_space message_info_space_at(const uint8_t *spaces, uint32_t index);

struct message_status {
	uint64_t page_slots_used, page_slots_free, snapshots, instances, spaces, connections;
	uint64_t bytes_in, bytes_out, requests, uptime_ns;
	uint64_t stored_bytes; /* what the page slots take, packed or not */
};
int message_status_encode(uint8_t *bytes, size_t size, const struct message_status *status);
int message_status_decode(const uint8_t *bytes, size_t length, struct message_status *status);

/* ---- instances ---- */
#define INSTANCE_FLAG_KEEP 1u   /* until it is ended */
#define INSTANCE_FLAG_RESUME 2u /* when its connection is lost, it waits for somebody to attach */
struct message_instance_create {
	uint32_t flags;
	struct message_text snapshot, name;
};
int message_instance_create_encode(uint8_t *bytes, size_t size, const struct message_instance_create *create);
int message_instance_create_decode(const uint8_t *bytes, size_t length, struct message_instance_create *create);

struct message_instance_info {
	uint32_t space_count;
	const uint8_t *spaces; /* decode only: message_info_space_at */
};
int message_instance_info_encode(uint8_t *bytes, size_t size, const struct message_info_space *spaces, size_t count);
int message_instance_info_decode(const uint8_t *bytes, size_t length, struct message_instance_info *info);

/* ---- attaching to an instance again ---- */
/* The request id of an operation (PUT, DROP, MOVE, FORK, SPACE_FREE, NOTE) that has its place in the instance's sequence: this
 * bit and the sequence number, from 1. */
#define SEQUENCE_BIT (UINT64_C(1) << 62)
#define SEQUENCE_WINDOW 1024u /* operations that may wait for their answers at once */
#define IDENTITY_BYTES 16
#define NOTE_LIMIT 1000

#define ATTACH_FLAG_TAKE 1u /* the lease is taken, the epoch rises */
struct message_attach {
	uint32_t flags;
	/* with TAKE: the epoch rises by so much from the header's, which must be the present one; 0: by one, from whatever it
	 * is */
	uint32_t step;
	uint8_t identity[IDENTITY_BYTES]; /* of the pool that is meant; zeros: whichever answers */
};
int message_attach_encode(uint8_t *bytes, size_t size, const struct message_attach *attach);
int message_attach_decode(const uint8_t *bytes, size_t length, struct message_attach *attach);

struct message_failure {
	uint64_t sequence;
	int error; /* positive errno */
};
struct message_attached {
	uint8_t identity[IDENTITY_BYTES];
	uint64_t applied;      /* the last operation that was handled */
	uint32_t failure_count; /* operations of the window that failed, ascending */
	uint32_t space_count;
	const uint8_t *failures, *spaces; /* decode only: message_failure_at, message_info_space_at */
	struct message_bytes note;
};
/* Writes everything but the two lists, which the caller appends: failures, then spaces (message_info_space_encode), in this
 * order. */
int message_attached_encode(uint8_t *bytes, size_t size, const struct message_attached *attached);
int message_failure_encode(uint8_t *bytes, size_t size, const struct message_failure *failure);
int message_attached_decode(const uint8_t *bytes, size_t length, struct message_attached *attached);
struct message_failure message_failure_at(const uint8_t *failures, uint32_t index);

/* ---- comparing what is stored (scrub.c) ---- */
#define SCRUB_PAGES_LIMIT 4096u
#define SCRUB_DAMAGED_LIMIT 64u
#define SCRUB_FLAG_ADD 1u /* pages without a digest get one: what they are now is taken for right */
struct message_scrub {
	uint64_t from;  /* slot; 0: the first */
	uint32_t pages; /* to be looked at, from 1 to the limit */
	uint32_t flags;
};
int message_scrub_encode(uint8_t *bytes, size_t size, const struct message_scrub *scrub);
int message_scrub_decode(const uint8_t *bytes, size_t length, struct message_scrub *scrub);

struct damaged_page {
	uint64_t slot;
	struct page_digest digest; /* what it must have */
	uint64_t label, pgno;      /* one place where it is used, of the snapshot or instance of that name; "" where none is */
	char name[NAME_LIMIT + 1];
};
struct message_scrubbed {
	uint64_t next, end; /* slots: go on with next, 0: that was all */
	uint64_t checked, unverified, added;
	uint32_t count;
	struct damaged_page damaged[SCRUB_DAMAGED_LIMIT];
};
int message_scrubbed_encode(uint8_t *bytes, size_t size, const struct message_scrubbed *scrubbed);
int message_scrubbed_decode(const uint8_t *bytes, size_t length, struct message_scrubbed *scrubbed);

/* FIND: has the pool whole pages with these digests, of whatever snapshot? At most SCRUB_DAMAGED_LIMIT. FOUND: a bit for each,
 * and the pages that were found, in order. */
int message_find_encode(uint8_t *bytes, size_t size, const struct page_digest *digests, uint32_t count);
int message_find_decode(const uint8_t *bytes, size_t length, struct page_digest *digests, uint32_t *count);
int message_found_decode(const uint8_t *bytes, size_t length, uint32_t count, uint64_t *found, const uint8_t **pages);

struct message_repair {
	uint64_t slot;
	struct page_digest digest; /* that the slot must have, and the page has */
	const uint8_t *page;
};
int message_repair_encode(uint8_t *bytes, size_t size, const struct message_repair *repair);
int message_repair_decode(const uint8_t *bytes, size_t length, struct message_repair *repair);

#endif
