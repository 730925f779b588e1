/* Deep recursion with a pattern in every frame, verified on the way back. The main thread's stack grows down by faults. */
#include "torture.h"

#define FRAME_WORDS 640
#define MOST_FRAMES 500 /* times 5 KiB, well below the usual 8 MiB limit */

__attribute__((noinline)) static bool descend(uint64_t seed, unsigned depth)
{
	volatile uint64_t frame[FRAME_WORDS];
	uint64_t state = seed + depth;

	for (unsigned i = 0; i < FRAME_WORDS; i++)
		frame[i] = random_next(&state);
	if (depth && !descend(seed, depth - 1))
		return false;
	state = seed + depth;
	for (unsigned i = 0; i < FRAME_WORDS; i++)
		if (frame[i] != random_next(&state))
			return torture_fail("WRONG stack frame %u at %p word %u: found %016llx", depth,
					    (const volatile void *)frame, i, (unsigned long long)frame[i]);
	return true;
}

static bool stack_start(struct worker *worker)
{
	return true;
}

static bool stack_round(struct worker *worker)
{
	unsigned depth = worker->round % 8 ? 32 : MOST_FRAMES;

	return descend(random_next(&worker->random), (unsigned)random_below(&worker->random, depth));
}

const struct kind kind_stack = {
	.name = "stack", .what = "deep recursion, in the main thread and in another", .start = stack_start, .round = stack_round
};
