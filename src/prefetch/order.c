#include "prefetch/order.h"

#include <stdlib.h>

#include "base/base.h"

#define FIRST_GROUP 64u
#define LARGEST_GROUP 4096u

static int by_place(const void *first, const void *second)
{
	const struct order_run *a = first, *b = second;
	if (a->label != b->label)
		return a->label < b->label ? -1 : 1;
	return a->pgno < b->pgno ? -1 : a->pgno > b->pgno;
}

size_t order_arrange(struct order_run *runs, size_t count)
{
	size_t kept = 0, group = FIRST_GROUP;
	for (size_t at = 0; at < count; at += group, group = DP_MIN(group * 2, (size_t)LARGEST_GROUP)) {
		size_t end = DP_MIN(at + group, count), begin = kept;
		qsort(runs + at, end - at, sizeof(*runs), by_place);
		for (size_t i = at; i < end; i++) {
			struct order_run *last = kept > begin ? &runs[kept - 1] : NULL;
			if (last && last->label == runs[i].label && last->pgno + last->pages == runs[i].pgno)
				last->pages += runs[i].pages;
			else
				runs[kept++] = runs[i];
		}
		group = end - at;
	}
	return kept;
}
