/* area_flags: the flags of a tree's memory areas, read before the tree is frozen, and the proof that they still held then.
 *
 * /proc/PID/smaps is where the kernel tells an area's flags (locked, not for forks, huge pages), and it looks at every page for
 * the counts beside them: 17 ms a gigabyte. So it is read while the tree runs; the library in CRIU (hide/known.h) gives CRIU what
 * was read then, with the areas that there are now; and it is read once more from the frozen processes, while the destination
 * restores, and compared: a tree in which a flag changed in between does not leave.
 * Thread rule: no state; area_flags_same may be called by any thread. */
#ifndef DP_MIGRATE_AREA_FLAGS_H
#define DP_MIGRATE_AREA_FLAGS_H

#include <stdbool.h>
#include <sys/types.h>

/* Of every process of the tree: "= VPID", then two lines for each area, as smaps has them. A memory file's descriptor (fresh), or
 * -errno. A process that ends meanwhile is left out. */
int area_flags_read(pid_t root);
/* Does the smaps that is open as smaps_fd (at its start) say of every area what known_fd's text says? shadow: it is of a fork,
 * which has not got what is not for forks, nor locks. Whether pages are soft-dirty is not compared. 1, 0 or -errno. */
int area_flags_same(int smaps_fd, int known_fd, bool shadow);

#endif
