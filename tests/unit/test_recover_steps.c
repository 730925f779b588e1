/* Each window of recover.h, R1 to R17: the pager dies in it, exactly there, and the next in the next one, also while it takes
 * over. The target checks every byte of its memory. Where an event is followed, all windows of a scene are gone through within
 * one life. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "checkpoint/push.h"
#include "pager/control.h"
#include "recover_world.h"

static void begin_steps(struct world *world, enum target_scene scene, const struct step *steps, uint32_t count)
{
	plan_steps(steps, count);
	world_begin(world, scene);
}

static void end_steps(struct world *world)
{
	assert_int_equal(world_watch(world, 0, 0), 0);
	if (plan->at < plan->count)
		fail_msg("the pager never came to '%s'", plan->step[plan->at].place);
	assert_int_equal(world->kills, plan->count);
	world_end(world, true);
}

static void die_at(enum target_scene scene, const struct step *steps, uint32_t count)
{
	struct world world;
	begin_steps(&world, scene, steps, count);
	end_steps(&world);
}

static void eviction_and_install__pager_dies_at_each_step__every_byte_right(void **state)
{
	(void)state;
	static const struct step steps[] = {
		{ "before warden_begin", 1 }, /* R14: the injector goes on without us */
		{ "after warden_begin", 1 },
		{ "before recover_save_warden", 1 },
		{ "after recover_save_warden", 1 },
		{ "before warden_move", 2 }, /* R5: announced, not posted; done, not booked; half booked; under way */
		{ "after warden_move", 2 },
		{ "before recover_booked_move", 2 },
		{ "after recover_booked_move", 2 },
		{ "during warden_move", 2 },
		{ "before oplog_next_put", 2 }, /* R8: the new hashes are there, the source has not the content */
		{ "before link_put", 2 },	/* R9: in the log, not sent; sent, not answered */
		{ "after link_put", 2 },
		{ "before warden_drop", 2 }, /* R6: announced, not posted; under way; done, not booked */
		{ "after warden_drop", 2 },
		{ "before recover_booked_drop", 2 },
		{ "after recover_booked_drop", 2 },
		{ "before staging_release", 2 }, /* R7: put back, not booked */
		{ "after staging_release", 2 },
		{ "before link_get", 5 }, /* R12: faults that were read, not asked for; asked for, not answered */
		{ "after link_get", 5 },
		{ "before uffd_copy", 5 }, /* R10: come, not installed; installed, not booked */
		{ "after uffd_copy", 5 },
		{ "after uffd_copy", 500 },
	};
	die_at(SCENE_RANDOM, steps, ARRAY_LENGTH(steps));
}

static void fork__pager_dies_at_each_step__both_see_their_own(void **state)
{
	(void)state;
	static const struct step steps[] = {
		{ "before recover_follow", 1 }, /* R1, R2: the message alone has the userfaultfd's number */
		{ "after recover_follow", 1 },
		{ "before keeper_send s", 1 }, /* R4 */
		{ "before keeper_send u", 1 },
		{ "after keeper_send u", 1 },
		{ "before table_fork", 1 },
		{ "after table_fork", 1 },
		{ "before link_fork", 1 },
		{ "after link_fork", 1 },
		{ "before recover_space_complete", 1 },
		{ "after recover_space_complete", 1 },
		{ "before recover_followed", 1 },
		{ "after recover_followed", 1 },
		{ "before staging_flush", 1 },
		{ "after staging_flush", 1 },
		{ "before link_space_free", 1 }, /* R17: neither, only the source, both were told */
		{ "after link_space_free", 1 },
		{ "before keeper_send r", 1 },
		{ "after keeper_send r", 1 },
		{ "after warden_unshare", 1 },
	};
	die_at(SCENE_FORK, steps, ARRAY_LENGTH(steps));
}

static void remap__pager_dies_at_each_step__pages_follow(void **state)
{
	(void)state;
	static const struct step steps[] = {
		{ "before recover_follow", 3 }, /* R2 */
		{ "before staging_flush", 1 },	/* R3: nothing, the copy, the source's half, and what is cleared */
		{ "after staging_flush", 1 },
		{ "before table_relocate_copy", 1 },
		{ "after table_relocate_copy", 1 },
		{ "before link_move", 1 },
		{ "after link_move", 1 },
		{ "before recover_copied", 1 },
		{ "after recover_copied", 1 },
		{ "before table_clear", 1 },
		{ "after table_clear", 1 },
		{ "before recover_save_ranges", 1 },
		{ "after recover_save_ranges", 1 },
		{ "before recover_followed", 1 },
		{ "after recover_followed", 1 },
	};
	die_at(SCENE_REMAP, steps, ARRAY_LENGTH(steps));
}

static void give_up__pager_dies_at_each_step__reads_zero(void **state)
{
	(void)state;
	static const struct step steps[] = {
		{ "before recover_follow", 1 }, /* R2 */
		{ "after rangeset_remove", 1 }, /* R13: `initial` and leaves, the first changed, and saved, before the others */
		{ "before initial is saved", 1 },
		{ "after initial is saved", 1 },
		{ "before link_drop", 1 }, /* R9 */
		{ "after link_drop", 1 },
		{ "before doubt_note", 1 }, /* R11: the thread that gives the range up may not have done it yet */
		{ "after doubt_note", 1 },
		{ "before recover_followed", 1 },
		{ "after recover_followed", 1 },
		{ "after doubt_note", 40 },
		{ "after link_drop", 20 },
	};
	die_at(SCENE_MADVISE, steps, ARRAY_LENGTH(steps));
}

/* ---- what a commit does to a pager ---- */

static void freeze_and_thaw(const char *path)
{
	struct dp_err err;
	int connection = control_connect(path, &err);
	if (connection < 0)
		return;
	if (!control_freeze(connection, &err))
		control_thaw(connection, &err);
	close(connection);
}

static void push_and_freeze(const struct world *world) __attribute__((noreturn));
static void push_and_freeze(const struct world *world)
{
	struct push push;
	struct dp_err err;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		int connection = control_connect(world->control_path, &err);
		if (connection >= 0 && !push_open(&push, connection, &err)) {
			push_round(&push, UINT64_MAX, NULL, &err);
			push_close(&push);
		}
		freeze_and_thaw(world->control_path);
		usleep(2000);
	}
}

static void commit__pager_dies_at_each_step__every_byte_right(void **state)
{
	(void)state;
	static const struct step steps[] = {
		{ "before link_put of a push", 1 }, /* R16: the hash is the new content's, the source has not got it, or has */
		{ "after link_put of a push", 1 },
		{ "before recover_retiring", 1 }, /* R15: staging is empty, and is forgotten before it goes */
		{ "after recover_retiring", 1 },
		{ "after link_put of a push", 5 },
		{ "after recover_retiring", 1 },
	};
	struct world world;
	begin_steps(&world, SCENE_RANDOM, steps, ARRAY_LENGTH(steps));
	pid_t committer = fork();
	if (committer == 0)
		push_and_freeze(&world);
	end_steps(&world);
	kill(committer, SIGKILL);
	waitpid(committer, NULL, 0);
}

/* R14: a thread that has registers of ours must not run on with them. */
static void injector__dies_in_the_middle__target_is_killed(void **state)
{
	(void)state;
	static const struct step steps[] = { { "before inject_clone", 1 } };
	struct world world;
	begin_steps(&world, SCENE_RANDOM, steps, ARRAY_LENGTH(steps));
	int status = world_watch(&world, 0, 0);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
	assert_int_equal(plan->at, 1);
	world_end(&world, false);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "--target"))
		return target_live(argv[2], argv[3]);
	world_set_up();
	setenv("DP_TARGET_PART", "8", 0);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(eviction_and_install__pager_dies_at_each_step__every_byte_right),
		cmocka_unit_test(fork__pager_dies_at_each_step__both_see_their_own),
		cmocka_unit_test(remap__pager_dies_at_each_step__pages_follow),
		cmocka_unit_test(give_up__pager_dies_at_each_step__reads_zero),
		cmocka_unit_test(commit__pager_dies_at_each_step__every_byte_right),
		cmocka_unit_test(injector__dies_in_the_middle__target_is_killed),
	};
	return cmocka_run_group_tests_name("recover-steps", tests, NULL, NULL);
}
