/* Signals on alternate stacks hit threads of every kind at any moment, also in the middle of a page fault; their handler
 * checks and writes pages itself. Only handlers take these page locks, and a handler is not interrupted by its own signal, so
 * the holder is always another thread that goes on. */
#include "torture.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIGNAL_PAGES 512

static struct region *target;
static atomic_flag page_held[SIGNAL_PAGES];
static _Atomic uint64_t handler_random;

static void on_signal(int number, siginfo_t *info, void *context)
{
	int saved_errno = errno;
	uint64_t state = atomic_fetch_add(&handler_random, 0x9e3779b97f4a7c15ull);
	uint64_t index = random_below(&state, SIGNAL_PAGES);

	(void)number, (void)info, (void)context;
	while (atomic_flag_test_and_set(&page_held[index]))
		usleep(1); /* the holder waits for a page: let it run */
	if (region_check(target, index))
		region_write(target, index);
	atomic_flag_clear(&page_held[index]);
	atomic_fetch_add(&board->signals, 1);
	errno = saved_errno;
}

static bool signals_start(struct worker *worker)
{
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
	void *memory = NULL;

	/* not registered: handlers write without holding `world`, so a forked child cannot know these versions */
	if (posix_memalign(&memory, PAGE_BYTES, SIGNAL_PAGES * PAGE_BYTES))
		return torture_fail("signals: no memory");
	memset(memory, 0, SIGNAL_PAGES * PAGE_BYTES);
	target = region_wrap("signals", memory, SIGNAL_PAGES);
	if (!target)
		return false;
	if (sigaction(SIGRTMIN, &action, NULL))
		return torture_fail("signals: sigaction: %s", strerror(errno));
	return true;
}

static bool signals_round(struct worker *worker)
{
	for (unsigned i = 0; i < 8 && !board->stop; i++) {
		struct worker *other = &workers[random_below(&worker->random, worker_count)];

		if (pthread_kill(other->thread, SIGRTMIN) == EAGAIN)
			break; /* the queue of pending signals is full: they are slow just now */
		usleep(100);
	}
	return !board->failed;
}

const struct kind kind_signals = {.name = "signals", .what = "signals to all threads, with handlers that write patterned pages",
				  .start = signals_start, .round = signals_round};
