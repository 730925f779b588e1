/* hidden: keeps CRIU from reading the pages that are sent by somebody else, so that a dump takes as long for a gigabyte as for
 * nothing. The library migrate/hide/hide.c is preloaded into `criu dump`; it answers CRIU's question for the pages of private
 * anonymous areas with none, and notes what it did. Whether it was right is looked up in CRIU's own images (hidden_pages).
 * Thread rule: one thread. */
#ifndef DP_CHECKPOINT_HIDDEN_H
#define DP_CHECKPOINT_HIDDEN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "checkpoint/inherit.h"

struct hidden {
	int records_fd, fds[2]; /* -1 */
	char environment[64], library[1200];
};

/* Where the library is: where this program was built, or where it was installed. -ENOPKG: at neither; -EINVAL: at a
 * path that LD_PRELOAD cannot name. */
int hidden_library(char *path, size_t size, struct dp_err *err);
/* Finds the library and makes what it tells us by. */
int hidden_open(struct hidden *hidden, struct dp_err *err);
void hidden_close(struct hidden *hidden);
/* In the process that is about to become CRIU (or whoever starts it): the library is preloaded there. 0 or -errno. */
int hidden_environment(const struct hidden *hidden);
/* The pages of a task that CRIU did not see, appended to `pages`, ascending, once CRIU has written its images. -ENOTSUP where
 * one lies in an area that CRIU would not restore lazily; -EIO where the records are damaged. */
int hidden_pages(const struct hidden *hidden, uint32_t vpid, int images_fd, struct page_list *pages, struct dp_err *err);

#endif
