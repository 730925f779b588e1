/* The warden's side: what runs inside the target's memory, and the page that it shares with the pager.
 *
 * The warden is a process made by clone(CLONE_VM) in the target: same memory, own descriptors. It waits for a command in the
 * shared ring, runs it and says so. Being in the mm it may move pages (UFFDIO_MOVE), give staging back (MADV_DONTNEED) and
 * touch a page without changing it. warden_loop is position-independent and refers to nothing outside itself: no constants
 * elsewhere, no library, no stack protector, no sanitizer; a test checks that its object has no relocations. */
#ifndef DP_PAGER_WARDEN_CODE_H
#define DP_PAGER_WARDEN_CODE_H

#include <stdint.h>

enum warden_command { WARDEN_MOVE = 1, WARDEN_UNSHARE, WARDEN_DROP, WARDEN_QUIT };

#define WARDEN_RUNS 512

/* At most 64 neighbouring pages. Bit i of a mask: page i of the run. */
struct warden_run {
	uint64_t from, to; /* addresses; `to` only for MOVE */
	uint32_t pages;
	int32_t error;     /* MOVE: the errno (positive) that ended the command early, else 0 */
	uint64_t done;     /* moved, or unshared */
	uint64_t missing;  /* not there (given up by the process) */
	uint64_t busy;     /* shared by fork or pinned */
	uint64_t unable;   /* of an area that nothing moves out of: locked, or not to be written to */
};

struct warden_ring {
	uint32_t posted; /* futex: the pager counts it up to post a command */
	uint32_t done;   /* futex: the warden sets it to `posted` when the command is done */
	uint32_t command;
	uint32_t run_count;
	uint64_t drop_start, drop_bytes;
	int32_t drop_error;
	uint32_t runs_tried;
	struct warden_run run[WARDEN_RUNS];
};

struct warden_arguments {
	uint64_t uffd, event_fd; /* numbers in the warden's descriptor table */
};

void warden_loop(struct warden_ring *ring, const struct warden_arguments *arguments);

/* The code's bytes in this program, to be copied into the target; warden_loop begins at its first byte plus warden_entry. */
extern const char __start_dp_warden[], __stop_dp_warden[];

#endif
