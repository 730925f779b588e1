/* probe: what this host can do, found by doing it once, never by guessing from a version number.
 *
 * How it works: a table of small trials, each in a child process of its own where it could disturb the caller. Features of
 * userfaultfd that cannot be tried in a line or two are read from the answer to UFFDIO_API.
 * Thread rule: one thread at a time (it forks). Blocks: about 100 ms, most of it CRIU's own check. */
#ifndef DP_SYS_PROBE_H
#define DP_SYS_PROBE_H

#include <stdbool.h>
#include <stddef.h>

struct probe_result {
	const char *name;    /* stable, for scripts: "uffd-move" */
	bool required;       /* the main job cannot run without it */
	bool present;
	char detail[400];    /* what was found; where absent, the reason */
	const char *remedy;  /* what to do about an absent one */
};

/* Fills results[0..] in a fixed order; returns how many there are, at most PROBE_MAX. */
#define PROBE_MAX 40
size_t probe_all(struct probe_result results[static PROBE_MAX]);
/* true where everything required is present. */
bool probe_main_job_can_run(const struct probe_result *results, size_t count);

#endif
