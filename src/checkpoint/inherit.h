/* inherit: which pages of an instance a checkpoint takes from the pool because CRIU cannot see them. Pure functions.
 *
 * CRIU dumps what is in local memory and drops, without a word, every page that is not (criu.md 1.8). The pager's export names
 * those. The rule: a page that CRIU sent is the page; any other that is not local is the pool's copy, and any other that is local
 * is zero. It holds because the export is taken while the tree is frozen and the pager evicts nothing. The copies that the pool
 * has of local pages only save sending those whose content is the same. */
#ifndef DP_CHECKPOINT_INHERIT_H
#define DP_CHECKPOINT_INHERIT_H

#include <stddef.h>
#include <stdint.h>

#include "image/images.h"
#include "pager/control.h"

/* A growing list of runs; runs that touch are joined where they are added one after the other. */
struct page_list {
	struct page_range *ranges;
	size_t count, room;
	uint64_t pages;
};
/* 0 or -ENOMEM. */
int page_list_add(struct page_list *list, uint64_t pgno, uint64_t pages);
void page_list_done(struct page_list *list);

/* Appends to `missing`, ascending, the exported pages that are not local and not in `sent` (ascending). 0 or -ENOMEM. */
int inherit_missing(const struct control_space *space, const struct page_list *sent, struct page_list *missing);

/* The copy of a page that the export names, or NULL. *cursor makes ascending look-ups cheap; start with 0. */
const struct control_copy *inherit_find_copy(const struct control_space *space, uint64_t pgno, size_t *cursor);

/* Splits pages by the areas they lie in: those that a lazy restore can fetch go to `lazy`; those in no area at all are
 * dropped (they were unmapped). -ENOTSUP where one lies in an area that CRIU restores eagerly; *at names its page then. */
int inherit_within_areas(const struct page_list *pages, const struct image_vma *vmas, size_t vma_count, struct page_list *lazy,
			 uint64_t *at);

/* Page map from runs and lists of lazy pages, all disjoint, in any order: sorted and joined. Frees nothing. 0 or -ENOMEM. */
int inherit_merge_runs(struct image_pagemap *pagemap, const struct page_list *lazy);

#endif
