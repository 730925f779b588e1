/* takeover: the other half of recover.h: what a pager does that follows a dead one. */
#ifndef DP_PAGER_TAKEOVER_H
#define DP_PAGER_TAKEOVER_H

#include "pager/recover.h"

#define RECOVER_MAGIC 0x3176745344504444ull /* "DDPDStv1": of this layout; both pagers are of one program */

/* Maps the tree's saved state. -errno with the tree's err set. */
int takeover_tree(struct tree *tree);
/* Makes every space from what was saved, has the source make what it has not made, follows the events that were read, wakes who
 * waits.
 * Failures end the tree (tree_fail). */
void takeover_spaces(struct tree *tree);

/* recover.c */
struct tree_saved *recover_map_tree(int fd);
int recover_space_take(struct space *space, int fd);
/* From here on nothing is lost of what this pager reads. One that takes over starts it when it has followed what the dead one
 * read: until then the numbers in those messages are of the table that the dead one's holder has, also for a third. */
void recover_start_holder(struct tree *tree);

#endif
