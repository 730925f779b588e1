/* store/packed: a layer that keeps pages packed (LZ4 or Zstandard) in another store; reached by `?compress=zstd` behind its URI,
 * and by itself where a store was made so.
 *
 * The pool's slots are numbers in an index, which says where each page's bytes are. Packed pages lie in pieces of twelve sizes,
 * cut from frames of one to three slots of the store below; a page that does not shrink by a quarter has a slot of its own, as it
 * is.
 * Each entry holds half of the page's content hash: what does not unpack to one page with that hash is an error, never a page.
 *
 * A write takes new pieces, writes them, and only then lets go of the old ones: all of its pages are new, or none. Where a frame
 * holds pages of a snapshot already, their bytes are written again as they are.
 * Crashes: the index is kept in blobs of 65536 entries, the changed ones written before each blob of the pool's. An entry that a
 * snapshot refers to never changes while it does, so an index newer than the snapshots says the same about their pages; entries
 * that none refers to are forgotten at open (adopt). The layer adds nothing to be recovered.
 * Memory: 16 bytes a page. Inside src/store only. Thread rule: one thread, but for sync. */
#ifndef DP_STORE_PACKED_H
#define DP_STORE_PACKED_H

#include "base/base.h"
#include "store/store.h"

#define PACKED_CLASSES 12
#define PACKED_RAW_CLASS (PACKED_CLASSES - 1)
#define PACKED_FRAME_SLOTS 3u /* at most */
#define PACKED_CHUNK_ENTRIES 65536u
#define PACKED_RESERVE 64

enum packed_codec { CODEC_NONE, CODEC_LZ4, CODEC_ZSTD };

struct packed_class {
	uint8_t slots, pieces; /* of a frame */
	uint16_t bytes;        /* of a piece */
};
extern const struct packed_class packed_classes[PACKED_CLASSES];

/* Where a page is. slot 0: nowhere. */
struct packed_entry {
	uint64_t slot; /* the frame's first, in the store below */
	uint16_t length;
	uint8_t class : 4, codec : 4;
	uint8_t piece;
	uint32_t check;
};

/* By the number of its first slot; `used` is 0 where none begins there. */
struct packed_frame {
	uint16_t used; /* a bit a piece */
	uint8_t class;
	bool listed;   /* among those with room */
	bool inside;   /* a later slot of the frame before it */
};

struct packed_slots {
	uint64_t *at;
	size_t count, room;
};

/* The frame of a class that was written last: the next piece is likely to go there. */
struct packed_image {
	uint64_t slot; /* 0: none */
	bool dirty;
	uint8_t bytes[PACKED_FRAME_SLOTS * PAGE_BYTES];
};

struct packed_store {
	struct store store; /* first: the functions cast */
	struct store *lower;
	enum packed_codec codec;
	void *zstd_compressor, *zstd_decompressor;
	/* the index */
	struct packed_entry *entries;
	uint64_t *used; /* a bit an entry */
	uint64_t entry_count, used_count, cursor, found_end;
	uint8_t *dirty; /* a byte a chunk */
	/* frames */
	struct packed_frame *frames;
	uint64_t frame_count;
	struct packed_slots with_room[PACKED_CLASSES];
	struct packed_slots reserve; /* slots of the store below that nothing is in yet, descending */
	struct packed_slots freed;   /* to be given back to the store below */
	struct packed_image images[PACKED_CLASSES];
};

/* ---- frames (packed_frames.c) ---- */
/* A piece of a class; entry's slot, class and piece are set. -ENOSPC, -ENOMEM. */
int packed_take_piece(struct packed_store *packed, unsigned class, struct packed_entry *entry);
void packed_release_piece(struct packed_store *packed, const struct packed_entry *entry);
/* At open: this entry is in use. -EBADMSG where that cannot be. */
int packed_adopt_piece(struct packed_store *packed, const struct packed_entry *entry, uint64_t lower_end);
bool packed_slot_used(const struct packed_store *packed, uint64_t slot);
/* Gives freed slots back to the store below, in order, so that holes can be made of them. */
void packed_give_back(struct packed_store *packed);
/* The reserve too. */
void packed_release_reserve(struct packed_store *packed);
int packed_write_piece(struct packed_store *packed, const struct packed_entry *entry, const void *bytes);
/* Writes what packed_write_piece has left in the images. */
int packed_flush(struct packed_store *packed);
/* Forgets what was not flushed. */
void packed_drop_images(struct packed_store *packed);
/* entry->length bytes. */
int packed_read_piece(struct packed_store *packed, const struct packed_entry *entry, uint8_t *bytes);

/* ---- the index (packed_index.c) ---- */
int packed_index_reserve(struct packed_store *packed, uint64_t end);
int packed_index_save(struct packed_store *packed);
int packed_index_load(struct packed_store *packed, struct dp_err *err);
bool packed_is_index(const char *blob);

#endif
