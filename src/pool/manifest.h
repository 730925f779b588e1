/* pool/manifest: what a persistent store keeps of a snapshot, as bytes: names, metadata, the skeleton's files, and which slots
 * hold which pages. Pure codec; the reader streams, so it allocates nothing, whatever the bytes say.
 *
 * Layout, little-endian: "DPMANIF1", u64 XXH3 of all that follows, u32 version (2), u32 files, u32 spaces, u64 created (unix
 * ns), u16 + name, u32 + metadata; each file: u16 + name, u64 + content; each space: u64 label, then runs of u64 pgno, u32
 * pages, u64 first slot, and 16 bytes for each page: its digest (zeros: not known), ascending, ended by a run of 0 pages. Nothing
 * may follow. Version 1 had no digests; it is read, never written.
 * Errors: -EBADMSG, -ENOMEM (writer). */
#ifndef DP_POOL_MANIFEST_H
#define DP_POOL_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/bytes.h"
#include "wire/message.h"

struct manifest_writer {
	uint8_t *bytes;
	size_t length, size;
	bool failed;
	uint64_t run_pgno, run_slot; /* the run being gathered */
	uint32_t run_pages;
	size_t run_at; /* where it begins in bytes */
};

struct manifest_head {
	uint64_t created_unix_ns;
	uint32_t file_count, space_count;
	struct message_text name, meta;
};

/* Begin, file_count files, space_count spaces with their pages ascending, end. Failures are kept and told by end. */
void manifest_begin(struct manifest_writer *writer, const struct manifest_head *head);
void manifest_add_file(struct manifest_writer *writer, const char *name, const void *content, uint64_t bytes);
void manifest_add_space(struct manifest_writer *writer, uint64_t label);
void manifest_add_page(struct manifest_writer *writer, uint64_t pgno, uint64_t slot, struct page_digest digest);
void manifest_end_space(struct manifest_writer *writer);
/* Returns 0 with writer->bytes and ->length whole, or -ENOMEM. manifest_writer_done frees in either case. */
int manifest_end(struct manifest_writer *writer);
void manifest_writer_done(struct manifest_writer *writer);

struct manifest_run {
	uint64_t pgno, slot;
	uint32_t pages;
	const uint8_t *digests; /* message_digest_at; NULL in version 1 */
};
struct manifest_reader {
	struct bytes_reader in;
	uint64_t next_pgno; /* runs ascend */
	uint32_t version;
};

/* Checks the frame and the checksum, reads the head. Then head->file_count files, and head->space_count times a space and its
 * runs until 0, in that order; then manifest_finish. All point into the bytes. */
int manifest_open(struct manifest_reader *reader, const void *bytes, uint64_t length, struct manifest_head *head);
int manifest_next_file(struct manifest_reader *reader, struct message_text *name, struct message_bytes *content);
int manifest_next_space(struct manifest_reader *reader, uint64_t *label);
/* 1: a run; 0: the space's end. */
int manifest_next_run(struct manifest_reader *reader, struct manifest_run *run);
int manifest_finish(struct manifest_reader *reader);

#endif
