#include "checkpoint/inherit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

int page_list_add(struct page_list *list, uint64_t pgno, uint64_t pages)
{
	struct page_range *last = list->count ? &list->ranges[list->count - 1] : NULL;
	if (last && last->pgno + last->pages == pgno) {
		last->pages += pages;
	} else {
		if (list->count == list->room) {
			size_t room = list->room ? list->room * 2 : 64;
			struct page_range *wider = reallocarray(list->ranges, room, sizeof(*wider));
			if (!wider)
				return -ENOMEM;
			list->ranges = wider;
			list->room = room;
		}
		list->ranges[list->count++] = (struct page_range){.pgno = pgno, .pages = pages};
	}
	list->pages += pages;
	return 0;
}

void page_list_done(struct page_list *list)
{
	free(list->ranges);
	*list = (struct page_list){0};
}

static int compare_ranges(const void *left, const void *right)
{
	uint64_t a = ((const struct page_range *)left)->pgno, b = ((const struct page_range *)right)->pgno;
	return (a > b) - (a < b);
}

/* What is not local, sorted; ranges may overlap. A local page that CRIU did not send is none: the process gave it up and found
 * the kernel's page of zeros there, while a push of what it had before was under way (pager/propagate.h). */
static int gather(const struct control_space *space, struct page_list *all)
{
	int rc = 0;
	for (size_t i = 0; i < space->remote_count && rc == 0; i++)
		rc = page_list_add(all, space->remote[i].pgno, space->remote[i].pages);
	if (rc == 0 && all->count > 1)
		qsort(all->ranges, all->count, sizeof(*all->ranges), compare_ranges);
	return rc;
}

int inherit_missing(const struct control_space *space, const struct page_list *sent, struct page_list *missing)
{
	struct page_list all = {0};
	int rc = gather(space, &all);
	uint64_t done = 0; /* pages below this are decided */
	size_t next = 0;   /* first sent run that ends beyond `done` */
	for (size_t i = 0; i < all.count && rc == 0; i++) {
		uint64_t at = DP_MAX(all.ranges[i].pgno, done), end = all.ranges[i].pgno + all.ranges[i].pages;
		while (at < end && rc == 0) {
			while (next < sent->count && sent->ranges[next].pgno + sent->ranges[next].pages <= at)
				next++;
			const struct page_range *sent_run = next < sent->count ? &sent->ranges[next] : NULL;
			if (sent_run && sent_run->pgno <= at) {
				at = DP_MIN(end, sent_run->pgno + sent_run->pages);
				continue;
			}
			uint64_t stop = sent_run ? DP_MIN(end, sent_run->pgno) : end;
			rc = page_list_add(missing, at, stop - at);
			at = stop;
		}
		done = DP_MAX(done, end);
	}
	page_list_done(&all);
	return rc;
}

const struct control_copy *inherit_find_copy(const struct control_space *space, uint64_t pgno, size_t *cursor)
{
	while (*cursor < space->copy_count && space->copies[*cursor].pgno < pgno)
		(*cursor)++;
	return *cursor < space->copy_count && space->copies[*cursor].pgno == pgno ? &space->copies[*cursor] : NULL;
}

int inherit_within_areas(const struct page_list *pages, const struct image_vma *vmas, size_t vma_count, struct page_list *lazy,
			 uint64_t *at)
{
	size_t v = 0;
	for (size_t i = 0; i < pages->count; i++) {
		uint64_t start = pages->ranges[i].pgno, end = start + pages->ranges[i].pages;
		while (v < vma_count && vmas[v].end >> PAGE_SHIFT <= start)
			v++;
		for (size_t w = v; w < vma_count && vmas[w].start >> PAGE_SHIFT < end; w++) {
			uint64_t from = DP_MAX(start, vmas[w].start >> PAGE_SHIFT), to = DP_MIN(end, vmas[w].end >> PAGE_SHIFT);
			if (!image_vma_may_be_lazy(&vmas[w])) {
				*at = from;
				return -ENOTSUP;
			}
			int rc = page_list_add(lazy, from, to - from);
			if (rc < 0)
				return rc;
		}
	}
	return 0;
}

static int compare_runs(const void *left, const void *right)
{
	uint64_t a = ((const struct image_run *)left)->pgno, b = ((const struct image_run *)right)->pgno;
	return (a > b) - (a < b);
}

int inherit_merge_runs(struct image_pagemap *pagemap, const struct page_list *lazy)
{
	if (lazy->count == 0)
		return 0;
	struct image_run *runs = reallocarray(pagemap->runs, pagemap->count + lazy->count, sizeof(*runs));
	if (!runs)
		return -ENOMEM;
	size_t count = pagemap->count;
	for (size_t i = 0; i < lazy->count; i++)
		runs[count++] = (struct image_run){ .pgno = lazy->ranges[i].pgno,
						    .pages = lazy->ranges[i].pages,
						    .flags = PAGEMAP_LAZY };
	qsort(runs, count, sizeof(*runs), compare_runs);
	size_t kept = 0;
	for (size_t i = 0; i < count; i++) {
		struct image_run *last = kept ? &runs[kept - 1] : NULL;
		if (last && last->flags == runs[i].flags && last->pgno + last->pages == runs[i].pgno)
			last->pages += runs[i].pages;
		else
			runs[kept++] = runs[i];
	}
	pagemap->runs = runs;
	pagemap->count = kept;
	return 0;
}
