/* Ranges of which it is not known what is in them: mostly given up by madvise, which the kernel tells before it does it.
 *
 * While a range is in doubt nothing of it is moved out (P10): a page in staging would be out of reach of the madvise, and come
 * back with its old content. The doubt ends when all of the range is gone. MADV_FREE leaves pages there for any time; they are
 * the process's as before once nobody can be on the way to take them, and the clock alone does not tell that: on a busy machine a
 * thread may not get to run for seconds. So, after a second, each thread must have been seen elsewhere than in madvise, or have
 * run for long enough. */
#include "pager/tree.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>

#include "sys/proc.h"

#define DOUBT_NS (1000u * 1000 * 1000)
#define RUN_NS (500u * 1000 * 1000) /* of a thread's own time: more than it takes to give up what a machine has */

void doubt_note(struct space *space, uint64_t start, uint64_t end, bool removed)
{
	struct doubt *last = space->doubts ? &space->doubt[space->doubts - 1] : NULL;
	uint64_t now = clock_now_ns();
	if (last && last->removed == removed && last->range.end == start) /* neighbours come one after the other */
		*last = (struct doubt){ { last->range.start, end }, removed, now, now };
	else if (space->doubts < DOUBTS)
		space->doubt[space->doubts++] = (struct doubt){ { start, end }, removed, now, now };
	else if (removed) /* P10 has no exception: rather more pages than were given up stay where they are */
		*last = (struct doubt){ { DP_MIN(last->range.start, start), DP_MAX(last->range.end, end) }, true, now, now };
	else
		space->doubt_all = true;
	space->saved->doubts = space->doubts;
	space->saved->doubt_all |= space->doubt_all;
	/* The thread that gave the range up still has to do it; the next look comes a tick later. */
}

bool doubt_covers(const struct space *space, uint64_t pgno)
{
	uint64_t address = pgno << PAGE_SHIFT;
	for (uint32_t i = 0; i < space->doubts; i++)
		if (space->doubt[i].removed && address >= space->doubt[i].range.start && address < space->doubt[i].range.end)
			return true;
	return false;
}

/* Has this thread been elsewhere since, or run for long enough? */
static bool got_past(pid_t pid, const struct suspect *suspect)
{
	long call;
	uint64_t run_ns;
	int ret = proc_thread_call(pid, suspect->thread, &call, &run_ns);
	if (ret && ret != -ESRCH)
		return false; /* not to be seen now */
	if (ret)
		return true; /* it has ended */
	if (call == PROC_RUNNING)
		return run_ns - suspect->run_ns > RUN_NS;
	return call != SYS_madvise && call != SYS_process_madvise;
}

static int suspect_one(void *context, pid_t thread)
{
	struct space *space = context;
	struct suspect suspect = { .thread = thread };
	long call;
	int ret = proc_thread_call(space->pid, thread, &call, &suspect.run_ns);
	if (ret == -ESRCH || (!ret && got_past(space->pid, &suspect)))
		return 0;
	if (ret || space->suspects == SUSPECTS)
		return -EAGAIN;
	space->suspect[space->suspects++] = suspect;
	return 0;
}

/* Every thread that may be on its way now: looked at until each has got past, or is known not to be. More than there is room for,
 * or not all seen: at another time. */
static void suspect_all(struct space *space, uint64_t now)
{
	space->suspects = 0;
	int ret = proc_each_thread(space->pid, suspect_one, space);
	space->suspected_ns = !ret || ret == -ESRCH ? now : 0;
}

/* May a thread still be about to do what was noted then? */
static bool is_under_way(struct space *space, uint64_t noted_ns, uint64_t now)
{
	uint32_t kept = 0;
	for (uint32_t i = 0; i < space->suspects; i++)
		if (!got_past(space->pid, &space->suspect[i]))
			space->suspect[kept++] = space->suspect[i];
	space->suspects = kept;
	if (!kept && space->suspected_ns <= noted_ns)
		suspect_all(space, now);
	return space->suspects || space->suspected_ns <= noted_ns;
}

static bool settled(struct space *space, const struct doubt *doubt, uint64_t now)
{
	uint64_t pgno = doubt->range.start >> PAGE_SHIFT;
	if (!doubt->removed || !table_next_run(&space->table, PAGE_LOCAL, &pgno, doubt->range.end >> PAGE_SHIFT, 1))
		return true;
	return now - doubt->noted_ns > DOUBT_NS && !is_under_way(space, doubt->noted_ns, now);
}

void doubt_settle(struct space *space, uint64_t now)
{
	uint32_t kept = 0;
	bool done = true;
	for (size_t i = 0; space->doubt_all && i < space->registered.count; i++)
		done &= watch_reconcile(space, space->registered.ranges[i].start, space->registered.ranges[i].end, false);
	if (done)
		space->doubt_all = false;
	for (uint32_t i = 0; i < space->doubts; i++) {
		struct doubt doubt = space->doubt[i];
		if (now >= doubt.next_ns && watch_reconcile(space, doubt.range.start, doubt.range.end, false)) {
			if (settled(space, &doubt, now))
				continue;
			doubt.next_ns = now + (now - doubt.noted_ns); /* less and less often */
		} else if (now >= doubt.next_ns) {
			/* its thread may not have run since, on a busy machine: its time begins when it has */
			doubt.noted_ns = now;
		}
		space->doubt[kept++] = doubt;
	}
	space->doubts = kept;
	space->saved->doubts = kept;
	space->saved->doubt_all = space->doubt_all;
}
