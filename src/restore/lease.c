#include "restore/lease.h"

#include <signal.h>
#include <stddef.h>
#include <time.h>

#include "base/base.h"
#include "sys/proc.h"

#define LOOK_MS 100        /* at a lease that nobody has given yet */
#define LOOK_STOPPED_MS 10 /* at one that may be renewed */
#define ROUNDS 100u        /* each finds what was forked during the one before */

/* What was stopped cannot fork; so a round that finds nobody new has found all. */
static void signal_descendants(pid_t root, bool and_root, int number)
{
	ssize_t before = -1;
	for (unsigned round = 0; round < ROUNDS; round++) {
		cleanup_free pid_t *pids = NULL;
		ssize_t count = proc_tree(root, &pids);
		for (ssize_t i = and_root ? 0 : 1; i < count; i++)
			kill(pids[i], number);
		if (count == before)
			return;
		before = count;
	}
}

static void signal_tree(enum lease_tree kind, pid_t root, int number)
{
	if (kind == LEASE_NAMESPACE)
		kill(-1, number); /* all of the namespace but us; no fork gets past it */
	else
		signal_descendants(kind == LEASE_CHILDREN ? getpid() : root, kind == LEASE_ROOT, number);
}

int lease_follow(const struct restore_lease *lease, enum lease_tree kind, pid_t root, bool *stopped)
{
	uint64_t until_ns = lease ? atomic_load(&lease->until_ns) : LEASE_FOR_EVER;
	struct timespec clock;
	clock_gettime(CLOCK_BOOTTIME, &clock);
	uint64_t now_ns = (uint64_t)clock.tv_sec * 1000000000u + (uint64_t)clock.tv_nsec;
	if (until_ns == LEASE_NONE_YET)
		return LOOK_MS;
	bool over = now_ns >= until_ns;
	if (over != *stopped)
		signal_tree(kind, root, over ? SIGSTOP : SIGCONT);
	*stopped = over;
	if (until_ns == LEASE_FOR_EVER)
		return -1;
	return over ? LOOK_STOPPED_MS : (int)DP_MIN((until_ns - now_ns) / 1000000u + 1, 1000u);
}
