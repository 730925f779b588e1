/* What the tests of recover.h live in: a real userfaultfd, a target that checks every byte, a real pool in a process of its own,
 * pagers in processes of their own, and the test's program as their supervisor. And places in the pager's code at which it is
 * killed, one after the other. */
#ifndef DP_TESTS_RECOVER_WORLD_H
#define DP_TESTS_RECOVER_WORLD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/client.h"
#include "instance/keeper.h"
#include "pager_target.h"

#define STEPS 32u
#define LIMIT_NS                                                                                                                 \
	(150ull * 1000 * 1000 * 1000) /* for one life of a target: far more than one takes under sanitizers on a busy machine */

/* "before FUNCTION", "after FUNCTION" (recover_world.c has the list), and the call of it at which the pager dies: 0 and 1 are the
 * first. */
struct step {
	char place[48];
	uint32_t after;
};

/* Shared with the pagers. */
struct plan {
	struct step step[STEPS];
	uint32_t count, at; /* steps, and those that were reached */
	uint32_t calls;     /* of the present one's place */
	uint64_t home_instance, home_epoch;
	uint8_t home_identity[16];
};
extern struct plan *plan;
void plan_steps(const struct step *steps, uint32_t count);

struct pool_fixture;
struct world {
	struct pool_fixture *pool; /* shared with the process that it runs in: no other may inherit a server's descriptors */
	pid_t pool_process;
	char directory[64], stats[128];
	int listener, control;
	char control_path[96], enough[96]; /* enough: a file that is made when every step was reached */
	struct keeper keeper;
	pid_t target, pager, init; /* init: the reaper, 0: none */
	unsigned kills, early; /* of them, before they had begun to take over */
	uint32_t restarts;     /* seen at the last kill */
};

void world_begin(struct world *world, enum target_scene scene);
/* The pager has been killed: another goes on. */
void world_follow(struct world *world);
/* Until the target ends; a pager that is alive for `patience_us` is killed, 0: not, and `kills` of them at most. Returns the
 * target's status. */
int world_watch(struct world *world, unsigned patience_us, unsigned kills);
/* The last pager ends well. `restarted`: others did before. */
void world_end(struct world *world, bool restarted);

/* main's part of each test program: what the log says, the plan, the random numbers. */
void world_set_up(void);

#endif
