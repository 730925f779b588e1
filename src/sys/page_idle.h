/* page_idle: the kernel's own evidence of use, page by page, where it was built with CONFIG_IDLE_PAGE_TRACKING
 * (Documentation/admin-guide/mm/idle_page_tracking.rst). Pages are marked idle; what is not idle later was used meanwhile.
 * Works by page frame numbers, so it needs CAP_SYS_ADMIN. No state; blocks as procfs and sysfs do. */
#ifndef DP_SYS_PAGE_IDLE_H
#define DP_SYS_PAGE_IDLE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Opens the bitmap; -ENOENT where the kernel has none, -EACCES. */
int page_idle_open(void);
/* Marks the present pages of [start, end) bytes of the process idle. 0 or -errno. */
int page_idle_mark(int bitmap_fd, pid_t pid, uint64_t start, uint64_t end);
/* Sets used[i] for each page i of the range that is present and was used since it was marked. 0 or -errno. */
int page_idle_read(int bitmap_fd, pid_t pid, uint64_t start, uint64_t end, bool *used);

#endif
