/* pool/pagemap: which slot holds each page of a space: a radix tree over 36-bit page numbers, 512-way, four levels deep, whose
 * nodes are shared between maps and copied when written (a persistent tree, as in Driscoll et al. 1989, by path copying).
 *
 * A clone shares the root, whatever its size: snapshots, instances and forks cost what they change. Each node counts its
 * referrers; a leaf holds one reference on each of its slots, so a copied leaf takes them again, a freed one releases them.
 * Each node knows how many pages are below it, so a shared subtree is counted, grafted or dropped without being walked.
 * Metadata: 8 bytes a page in full leaves, and 4 for the slot's reference count.
 *
 * Invariants: M1 a node with more than one referrer is never changed; M2 node->pages is the number of slots below it; M3 a node
 * below which nothing is stored is not kept; M4 slot 0 means absent.
 * Errors: -ENOMEM; the map is then whole, the change may be done in part. Thread rule: one thread. */
#ifndef DP_POOL_PAGEMAP_H
#define DP_POOL_PAGEMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pool/slots.h"
#include "wire/page_range.h"

struct pagemap_node;

struct pagemap {
	struct slots *slots; /* borrowed */
	struct pagemap_node *root;
};

void pagemap_init(struct pagemap *map, struct slots *slots);
/* Releases everything; the map is empty then. */
void pagemap_clear(struct pagemap *map);
/* Makes the empty `map` the same as `source`. O(1), cannot fail. */
void pagemap_clone(struct pagemap *map, const struct pagemap *source);
uint64_t pagemap_pages(const struct pagemap *map);

/* The slots of `count` pages from pgno on; 0 where absent. Takes no references. */
void pagemap_read(const struct pagemap *map, uint64_t pgno, uint64_t *slots, size_t count);
/* The slot of a page if this map alone refers to it, so that it may be written in place; else 0. */
uint64_t pagemap_own_slot(const struct pagemap *map, uint64_t pgno);
/* Takes the caller's reference on the slot (on success); what was there is released. */
int pagemap_set(struct pagemap *map, uint64_t pgno, uint64_t slot);
/* `pages` fresh slots from `slot` on (slots_adopt) where the map has nothing: as pagemap_set for each, and far quicker. */
int pagemap_fill(struct pagemap *map, uint64_t pgno, uint64_t slot, uint64_t pages);
int pagemap_drop(struct pagemap *map, uint64_t pgno, uint64_t pages);
/* The pages from..from+pages of source appear at to..; what map has there is replaced where source has a page and stays where
 * it has none (drop first for an exact copy). source is another map over the same slots. */
int pagemap_copy(struct pagemap *map, const struct pagemap *source, uint64_t from, uint64_t to, uint64_t pages);
/* mremap: pages at from.. are at to.. afterwards, from.. is absent (where to.. does not cover it). Ranges may overlap. */
int pagemap_move(struct pagemap *map, uint64_t from, uint64_t to, uint64_t pages);

typedef int (*pagemap_visit)(void *context, uint64_t pgno, uint64_t slot);
/* Calls visit for each page, ascending; stops at a negative result and returns it. visit must not change the map. */
int pagemap_walk(const struct pagemap *map, pagemap_visit visit, void *context);
/* Pages that nothing else refers to. Walks what is not shared as a whole. */
uint64_t pagemap_own_pages(const struct pagemap *map);
/* Bytes of the nodes of this map alone (shared ones excluded). */
uint64_t pagemap_own_bytes(const struct pagemap *map);
/* Checks M1-M4 below this map; for tests. */
bool pagemap_consistent(const struct pagemap *map);

#endif
