/* migrate: pages come in unasked, hot ones first, until everything is local or the budget is full.
 *
 * Order: what lies around the latest faults; then what an earlier run wanted, in its order; then whatever lies beside pages that
 * were touched since the restore, the last touched regions first; then the rest by address. Speed: see pace.h. Demand goes first:
 * little is under way at a time, and each turn of the loop looks at the faults before more is asked for.
 *
 * With a budget the transfer stops at its edge, where eviction would begin to prepare; it never pushes a page out, stays, and
 * goes on when room appears. Without one it can finish: a space of which nothing is missing, staged or on its way is closed, and
 * the process is an ordinary one again (the kernel itself fills what is zero, which is right). When the last is closed the pager
 * notes that in the statistics (`left_ns`) and leaves; supervisor and init read it there.
 * Thread rule: the fault thread. */
#ifndef DP_PAGER_MIGRATE_H
#define DP_PAGER_MIGRATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pager/pace.h"

#define MIGRATE_HINTS 64u
#define MIGRATE_CHUNKS 128u /* one a request */

struct space;
struct tree;

struct migrate_hint {
	uint32_t space; /* number */
	uint32_t step;  /* how many of the leaves around it were looked at */
	uint64_t pgno;
};

struct migration {
	bool on, known;  /* known: pace was set up */
	bool lifted;     /* the budget was taken away: the wardens must go first */
	uint64_t processor_ns; /* used when it began */
	struct pace pace;
	struct pace_chunk chunk[MIGRATE_CHUNKS]; /* by request; bytes 0: not ours */
	uint64_t bytes_under_way;
	struct migrate_hint hint[MIGRATE_HINTS]; /* stack that forgets its oldest */
	uint32_t hint_top, hint_count, faults_seen;
	size_t order_at;     /* run of the recorded order, and so many of its pages, that were looked at */
	uint64_t order_page;
};

/* Begins, or changes the rate (bytes a second, 0: none). */
void migrate_start(struct tree *tree, uint64_t rate_bytes);
/* For a pager that follows a dead one: goes on with its transfer, if it had one, or leaves it stopped, and a lifted budget
 * lifted. */
void migrate_go_on(struct tree *tree);
/* What is under way still comes. */
void migrate_stop(struct tree *tree);
/* Takes the budget away: everything may come, nothing leaves any more. */
void migrate_lift_budget(struct tree *tree);
/* Asks for more where it may. Returns ns until it wants to go on, answers apart. */
uint64_t migrate_work(struct tree *tree);
/* Nothing of the space is anywhere but in its memory, and it may be closed (invariant 1). */
bool migrate_is_whole(const struct space *space);
/* A request has ended; ours or not. */
void migrate_request_ended(struct tree *tree, uint32_t number);

/* A thread waits for this page: its neighbours are wanted next. */
static inline void migrate_note_fault(struct migration *migration, uint32_t space, uint64_t pgno)
{
	migration->hint[migration->hint_top++ % MIGRATE_HINTS] = (struct migrate_hint){ space, 0, pgno };
	migration->hint_count += migration->hint_count < MIGRATE_HINTS;
}

#endif
