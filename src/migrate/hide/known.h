/* known: the areas of a frozen task with their flags, from what was read of them before it was frozen.
 *
 * The kernel looks at every page of a process for its smaps, 17 ms a gigabyte, and CRIU wants nothing of it but each area's
 * flags. These were read while the task ran (area_flags.h); which areas there are is read anew, from maps, which costs
 * nothing. An area that may have grown or shrunk has the flags of the one that it overlaps. That no flag has changed since is
 * proven later, by reading the frozen task's smaps in full while nobody waits for it. Thread rule: none, no state. */
#ifndef DP_MIGRATE_HIDE_KNOWN_H
#define DP_MIGRATE_HIDE_KNOWN_H

/* before: what area_flags_read wrote. maps: the task's, now. A text like smaps', fresh, of each area's first line and its flags;
 * NULL where an area is new or was made anew, the task is not known, or memory is out: then smaps has to be read. */
char *known_smaps(const char *before, int vpid, const char *maps);

#endif
