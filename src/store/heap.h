/* store/heap: numbered page slots in slabs of 64 MiB, each mapped, with a bitmap of what is in use. The memory, directory and
 * file stores are this over anonymous memory or over a file.
 *
 * Slots are handed out in ascending order behind the last one given (next fit), so that pages written together lie together:
 * manifests stay small, reads sequential. Slabs with nothing in them give their memory or disk space back, but for what is to be
 * kept ready. File-backed slots
 * are written with pwrite, never through the mapping: a full disk is then ENOSPC, not SIGBUS.
 * Thread rule: one thread. */
#ifndef DP_STORE_HEAP_H
#define DP_STORE_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HEAP_SLAB_SLOTS 16384u
#define HEAP_SLAB_WORDS (HEAP_SLAB_SLOTS / 64)

struct heap_slab {
	uint8_t *memory;
	uint32_t used;
	bool touched; /* nothing is in it, yet its memory is kept, or being touched */
	uint64_t bits[HEAP_SLAB_WORDS]; /* 1: in use */
};

struct heap {
	int fd; /* backing file, slot n at n * 4096; -1: anonymous memory. Borrowed */
	struct heap_slab **slabs;
	size_t slab_count;
	uint64_t limit_slots; /* UINT64_MAX: none */
	uint64_t used_slots;  /* without the reserved ones */
	uint64_t reserved;    /* slots below this are never handed out */
	uint64_t cursor;      /* where the next search begins */
	uint64_t file_end;    /* the file may not grow beyond this slot (RLIMIT_FSIZE), as was found out; UINT64_MAX: not known */
	struct ready *ready;        /* touches slabs ahead of need; NULL: none is kept */
	uint64_t ready_slabs;       /* so many empty slabs are kept touched */
	uint64_t touched_slabs;     /* so many are */
	uint64_t found_end;   /* slots that the file held when it was opened; a file cut short must not read as zeros */
};

/* Opens over fd (-1: memory). The first `reserved` slots (>= 1) are kept. A file's present length is mapped and taken as
 * wholly free until heap_mark. 0, -ENOMEM or -errno. */
int heap_init(struct heap *heap, int fd, uint64_t reserved, uint64_t limit_slots);
void heap_done(struct heap *heap);
/* Memory only: keeps so much memory touched ahead of need, and when it was freed. The tests' pools have none. -ENOMEM. */
int heap_keep_ready(struct heap *heap, uint64_t bytes);
/* Slots there is room for without growing. */
uint64_t heap_end(const struct heap *heap);
/* Declares a slot in use (at open). false where it is beyond the end or was marked already. */
bool heap_mark(struct heap *heap, uint64_t slot);
int heap_alloc(struct heap *heap, uint64_t *slots, size_t count);
/* `count` consecutive slots; *first. They are freed like any others. */
int heap_alloc_run(struct heap *heap, uint64_t count, uint64_t *first);
void heap_free(struct heap *heap, const uint64_t *slots, size_t count);
void heap_free_run(struct heap *heap, uint64_t first, uint64_t count);
int heap_write(struct heap *heap, const uint64_t *slots, const void *const *pages, size_t count);
/* The slot's bytes; writable only for memory. */
uint8_t *heap_page(const struct heap *heap, uint64_t slot);

#endif
