/* A target process for a pager under test: it takes CRIU's place, hands its userfaultfd over as a restored task does, does to its
 * memory what the pager must follow, checks every byte, and says by its exit status whether all was right. */
#ifndef DP_TESTS_PAGER_TARGET_H
#define DP_TESTS_PAGER_TARGET_H

#include <stdint.h>

#define TARGET_BASE 0x200000000000ull
#define TARGET_PAGES 8192u /* 32 MiB */

enum target_scene { SCENE_RANDOM, SCENE_FORK, SCENE_MADVISE, SCENE_REMAP, SCENE_EXEC, SCENE_KILLED, SCENE_AREAS, SCENE_LEADER,
		    SCENE_SHARER /* below a reaper: the process that was started */, SCENE_SMALL_AREAS };

/* The content of a page; before the target runs, each has version 0. */
void target_fill(uint8_t *page, uint64_t number, uint32_t version);
/* What CRIU would have written of it. */
void target_write_images(const char *directory);
/* Is the target: main's arguments behind --target. Does not return before its end. DP_TARGET_PART=N: touches an Nth as much.
 * DP_TARGET_UNTIL=FILE: SCENE_RANDOM does so until the file is there. */
int target_live(const char *scene, const char *socket_path);

#endif
