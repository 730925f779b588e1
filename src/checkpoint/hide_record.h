/* What the library that is preloaded into CRIU (migrate/hide/hide.c) and who started CRIU (migrate/offerer.c, hidden.c) tell
 * each other. Both are of one build.
 *
 * The environment variable names descriptors and the mode: RECORDS,FDS,LIFE,MODE[,AREAS]. RECORDS is a memory file to which the
 * library appends hide_records; FDS a socket on which it sends, for each process, a hide_fds with descriptors; LIFE is
 * the writing end of a pipe that only CRIU is to hold. MODE is 0 or HIDE_COPY. AREAS: what was read of the areas before
 * (migrate/area_flags.h), or missing. */
#ifndef DP_CHECKPOINT_HIDE_RECORD_H
#define DP_CHECKPOINT_HIDE_RECORD_H

#include <stdint.h>

#define HIDE_ENVIRONMENT "DISTRI_PROC_HIDE"
#define HIDE_COPY 1 /* the tree is to go on: what its fork would not have is not hidden; shadows are made */

enum hide_kind {
	HIDE_STOPPED = 1, /* start: CLOCK_MONOTONIC in ns when the first thread was stopped */
	HIDE_RANGE,       /* pages of [start, end) of the task were not shown to CRIU */
	HIDE_LET_GO,      /* start: CLOCK_MONOTONIC in ns when a thread was let go; the last counts */
};
struct hide_record {
	uint32_t kind;
	int32_t vpid; /* the task's innermost pid, as in the names of its images */
	uint64_t start, end; /* bytes */
};

#define HIDE_FDS 3
struct hide_fds { /* with /proc/PID/mem, /proc/PID/pagemap and /proc/PID/smaps, unless error or known_areas */
	int32_t vpid;
	int32_t error; /* -errno: it could not be forked */
	uint32_t known_areas; /* 1: with one descriptor, of what CRIU got for the task's smaps: it was made of AREAS */
};
#define HIDE_ALL_LET_GO 0 /* for a vpid, without descriptors: no thread is held any more (HIDE_COPY) */
/* HIDE_COPY: a byte that the offerer sends on FDS before it lets CRIU go on: shadows are to be made. CRIU ends when it has let go
 * the tree and the offerer has closed its end; the shadows end with it. */
#define HIDE_GO "g"

#endif
