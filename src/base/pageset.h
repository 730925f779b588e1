/* pageset: a set of page numbers as bitmaps of 4096 pages each, sorted; for sets that are scattered and change often, where a
 * rangeset would move memory at each change. 520 bytes for each 16 MiB of which at least one page was ever in it. Adding in
 * ascending order appends. Thread rule: the owner's. */
#ifndef DP_BASE_PAGESET_H
#define DP_BASE_PAGESET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGESET_CHUNK_PAGES 4096u

struct pageset_chunk {
	uint64_t number; /* pgno / PAGESET_CHUNK_PAGES */
	uint64_t bits[PAGESET_CHUNK_PAGES / 64];
};

struct pageset {
	struct pageset_chunk *chunks; /* ascending */
	size_t count, room;
	uint64_t pages;
};

void pageset_done(struct pageset *set);
/* 0 or -ENOMEM: the pages before the one for which there was no room are in it then. */
int pageset_add(struct pageset *set, uint64_t pgno, uint64_t pages);
void pageset_remove(struct pageset *set, uint64_t pgno, uint64_t pages);
bool pageset_has(const struct pageset *set, uint64_t pgno);
/* The next run at or after *pgno: its start into *pgno, its length as the result; 0: there is none. A run ends with its chunk at
 * the latest. */
uint64_t pageset_next(const struct pageset *set, uint64_t *pgno);

#endif
