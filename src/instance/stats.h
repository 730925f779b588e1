/* stats: what a pager counts, in memory that anybody allowed may look at.
 *
 * The pager maps the file `stats` of its instance directory shared and counts in it; `ps`, `stats` and tests map it read-only.
 * So looking costs the pager nothing, and works also while it is busy or gone. Fields are plain 64-bit counters, each written
 * by one thread; a reader may see them a moment apart. The layout is versioned by `magic` and `size`; append only. */
#ifndef DP_INSTANCE_STATS_H
#define DP_INSTANCE_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define STATS_MAGIC 0x3154535031504444ull /* "DDP1PST1" */

/* Latencies in ns, log2 buckets with four linear steps each: bucket(v) as in histogram_add. Source: the HDR idea. */
#define HISTOGRAM_BUCKETS 160
struct histogram {
	uint64_t count;
	uint64_t sum_ns;
	uint64_t max_ns;
	uint64_t bucket[HISTOGRAM_BUCKETS];
};
void histogram_add(struct histogram *histogram, uint64_t ns);
/* Upper bound of the bucket in which the given share (0..1) lies; 0 where empty. */
uint64_t histogram_quantile_ns(const struct histogram *histogram, double share);

enum migrate_state {
	MIGRATE_NONE,
	MIGRATE_RUNNING,
	MIGRATE_AT_BUDGET, /* the budget is full: goes on when there is room */
	MIGRATE_STOPPED,   /* asked to */
	MIGRATE_DONE,      /* nothing is remote */
};

enum fault_kind {
	FAULT_REMOTE,    /* fetched from the source */
	FAULT_STAGED,    /* taken back from staging: the second chance */
	FAULT_ZERO,      /* never stored: filled with zeros */
	FAULT_IN_FLIGHT, /* already asked for */
	FAULT_SPURIOUS,  /* already there */
	FAULT_KINDS
};

struct pager_stats {
	uint64_t magic;
	uint64_t size;
	uint64_t started_ns; /* CLOCK_MONOTONIC */
	uint64_t pager_pid;
	/* gauges, in pages, over all spaces of the tree */
	uint64_t resident_pages; /* in local memory under the pager's care, staged ones included */
	uint64_t remote_pages;   /* held by the source, not local */
	uint64_t staged_pages;   /* waiting in staging */
	uint64_t zero_pages;     /* dropped because they held only zeros (counted as they leave) */
	uint64_t dirty_pages;    /* local pages of which the source has no copy */
	uint64_t other_pages;    /* resident but not under the pager's care: program text, shared memory (last sample) */
	uint64_t pss_pages;      /* proportional set size of the tree, last sample */
	uint64_t budget_pages;   /* 0: no budget */
	uint64_t reserve_pages;  /* the tree may exceed the budget by this much for a moment */
	uint64_t spaces, tasks, wardens;
	uint64_t table_bytes;    /* page-table metadata */
	uint64_t table_pages;    /* pages that metadata describes */
	/* counters */
	uint64_t faults[FAULT_KINDS];
	uint64_t events_fork, events_remap, events_remove, events_unmap;
	uint64_t bytes_in, bytes_out; /* to and from the source, with headers */
	uint64_t requests;
	uint64_t installed_pages; /* by COPY */
	uint64_t zero_filled_pages;
	uint64_t evicted_pages;      /* left local memory */
	uint64_t moved_pages;        /* into staging */
	uint64_t second_chance_pages; /* came back from staging */
	uint64_t written_back_pages; /* sent because they had changed */
	uint64_t clean_dropped_pages;
	uint64_t busy_pages;   /* could not be moved: pinned or shared */
	uint64_t unshared_pages; /* made exclusive by the warden after a fork */
	uint64_t prefetched_pages, prefetch_used_pages, prefetch_wasted_pages;
	uint64_t stalls;       /* faults that had to wait for room */
	uint64_t copy_retries; /* EAGAIN: an event was unread */
	uint64_t areas_found;  /* new mappings registered */
	struct histogram fault_remote, fault_staged, fault_zero; /* from reading the fault to waking the thread */
	/* background transfer */
	uint64_t migrate_state;        /* enum migrate_state */
	uint64_t migrated_pages;       /* asked for by it, and come */
	uint64_t migrate_from_pages;   /* what that was when it was last begun, */
	uint64_t migrate_started_ns;   /* and when: CLOCK_MONOTONIC */
	uint64_t migrate_rate_bytes;   /* a second; 0: no limit */
	uint64_t migrate_window_bytes; /* may be under way at once */
	uint64_t migrate_share;        /* of the bandwidth that it takes, in 1024ths: less where faults suffer */
	uint64_t migrate_backed_off;   /* times that it became less */
	uint64_t left_ns;              /* the pager left because everything is local: not 0, and its end is no failure */
	uint64_t replayed_pages;     /* fetched in the recorded order of an earlier run; not among the prefetched ones */
	uint64_t prefetched_by[8];   /* of the prefetched pages, by enum prefetch_policy of who advised it */
	uint64_t evict_cpu_ns;       /* processor time that the pager spent on moving pages out; the wardens' is their own */
	uint64_t pushed_pages;       /* sent ahead of a commit, while they stayed local */
	uint64_t pager_restarts;     /* pagers that died and were followed by another */
	uint64_t warden_restarts;    /* wardens that died and were */
	uint64_t pools, pools_there; /* behind the source; reached now */
	uint64_t pool_reconnects;    /* connections that were lost and made again */
	uint64_t lost_since_ns;      /* CLOCK_MONOTONIC; no answer since, and the stall timeout has passed; 0: all is well */
	uint64_t mirror_behind_pages; /* that a mirror which returned does not have yet */
	uint64_t corrupt_pages;      /* where a thread got a bus error: the page came damaged, and nobody has it as it was */
};

/* Maps `path`: to read it; made anew; or to go on counting in it, for a pager that follows another (anew where it is not there).
 * Returns the mapping or NULL with err set; stats_unmap ends it. */
enum stats_mode { STATS_READ, STATS_CREATE, STATS_GO_ON };
struct pager_stats *stats_map(const char *path, enum stats_mode mode, struct dp_err *err);
void stats_unmap(struct pager_stats *stats);
/* Did the pager that wrote this file leave because everything is local? false also where there is no such file. */
bool stats_pager_left(const char *path);

#endif
