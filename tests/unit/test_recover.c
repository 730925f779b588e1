/* A pager is killed at random, and another goes on; and wardens are. test_recover_steps.c kills it at chosen places. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "instance/stats.h"
#include "recover_world.h"

static unsigned kills_wanted(void)
{
	const char *text = getenv("DP_KILLS");
	return text ? (unsigned)atoi(text) : 8;
}

/* A warden is killed now and then, `pagers`: its pager at the same moment. */
static void kill_wardens(enum target_scene scene, bool pagers)
{
	struct world world;
	int status;
	unsigned killed = 0;
	plan_steps(NULL, 0);
	world_begin(&world, scene);
	uint64_t until_ns = clock_now_ns() + LIMIT_NS, next_ns = 0;
	while (waitpid(world.target, &status, WNOHANG) == 0) {
		if (clock_now_ns() > until_ns) {
			kill(world.target, SIGKILL);
			fail_msg("a target hangs after %u wardens", killed);
		}
		keeper_receive(&world.keeper);
		for (size_t i = 0; i < world.keeper.count && killed < kills_wanted() && clock_now_ns() > next_ns; i++)
			if (world.keeper.kept[i].kind == KEEPER_WARDEN &&
			    !pidfd_send_signal(world.keeper.kept[i].fd, SIGKILL, NULL, 0)) {
				killed++;
				next_ns = clock_now_ns() + 20000000u;
				if (!pagers)
					continue;
				kill(world.pager, SIGKILL);
				world_follow(&world);
			}
		siginfo_t info = { 0 };
		if (!waitid(P_PID, (id_t)world.pager, &info, WEXITED | WNOWAIT | WNOHANG) && info.si_pid &&
		    info.si_code == CLD_KILLED)
			world_follow(&world); /* it found its warden dead */
		usleep(200);
	}
	assert_int_equal(status, 0);
	assert_true(killed > 0);
	struct pager_stats *stats = stats_map(world.stats, STATS_READ, NULL);
	print_message("%u wardens killed, %lu replaced\n", killed, stats->warden_restarts);
	assert_true(stats->warden_restarts > 0);
	stats_unmap(stats);
	world_end(&world, true);
}

static void kill_at_random(enum target_scene scene, int expected)
{
	struct world world;
	plan_steps(NULL, 0);
	world_begin(&world, scene);
	assert_int_equal(world_watch(&world, 30000, kills_wanted()), expected);
	world_end(&world, true);
	assert_true(world.kills > 0);
}

static void pager_killed__random_touches__every_byte_right(void **state)
{
	(void)state;
	kill_at_random(SCENE_RANDOM, 0);
}
static void pager_killed__forks__both_see_their_own(void **state)
{
	(void)state;
	kill_at_random(SCENE_FORK, 0);
}
static void pager_killed__madvise__given_up_pages_read_zero(void **state)
{
	(void)state;
	kill_at_random(SCENE_MADVISE, 0);
}
static void pager_killed__mremap_and_munmap__pages_follow(void **state)
{
	(void)state;
	kill_at_random(SCENE_REMAP, 0);
}
static void pager_killed__execve__new_program_alone(void **state)
{
	(void)state;
	kill_at_random(SCENE_EXEC, 0);
}
static void pager_killed__areas_found__nothing_is_lost(void **state)
{
	(void)state;
	kill_at_random(SCENE_AREAS, 0);
}

static void warden_killed__random_touches__another_is_placed(void **state)
{
	(void)state;
	kill_wardens(SCENE_RANDOM, false);
}
static void warden_killed__mremap_and_munmap__another_is_placed(void **state)
{
	(void)state;
	kill_wardens(SCENE_REMAP, false);
}
static void warden_and_pager_killed__random_touches__every_byte_right(void **state)
{
	(void)state;
	kill_wardens(SCENE_RANDOM, true);
}

static void pager_killed__first_thread_ends__others_go_on_right(void **state)
{
	(void)state;
	kill_at_random(SCENE_LEADER, 0);
}
static void pager_killed__process_ends__sharer_goes_on_right(void **state)
{
	(void)state;
	kill_at_random(SCENE_SHARER, 0);
}
static void warden_killed__first_thread_ends__others_go_on_right(void **state)
{
	(void)state;
	kill_wardens(SCENE_LEADER, false);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "--target"))
		return target_live(argv[2], argv[3]);
	world_set_up();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pager_killed__random_touches__every_byte_right),
		cmocka_unit_test(pager_killed__forks__both_see_their_own),
		cmocka_unit_test(pager_killed__madvise__given_up_pages_read_zero),
		cmocka_unit_test(pager_killed__mremap_and_munmap__pages_follow),
		cmocka_unit_test(pager_killed__execve__new_program_alone),
		cmocka_unit_test(pager_killed__areas_found__nothing_is_lost),
		cmocka_unit_test(pager_killed__first_thread_ends__others_go_on_right),
		cmocka_unit_test(pager_killed__process_ends__sharer_goes_on_right),
		cmocka_unit_test(warden_killed__random_touches__another_is_placed),
		cmocka_unit_test(warden_killed__mremap_and_munmap__another_is_placed),
		cmocka_unit_test(warden_killed__first_thread_ends__others_go_on_right),
		cmocka_unit_test(warden_and_pager_killed__random_touches__every_byte_right),
	};
	return cmocka_run_group_tests_name("recover", tests, NULL, NULL);
}
