/* A pager is killed, at random and at chosen places, and another goes on: with a real userfaultfd, a target that checks every byte, a real pool,
 * and this program as the supervisor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "base/log.h"
#include "instance/keeper.h"
#include "instance/stats.h"
#include "pager/pager.h"
#include "pager/recover.h"
#include "pager/source_pool.h"
#include "pager_target.h"
#include "pool_fixture.h"
#include "sys/uffd_abi.h"

#define BUDGET (12u << 20)
#define LIMIT_NS (150ull * 1000 * 1000 * 1000) /* for one life of a target: far more than one takes under sanitizers on a busy machine */

/* ---- places to die at ---- */

/* Shared with the pagers. */
struct plan {
	char place[64];       /* "" nowhere */
	uint32_t after;       /* calls of it */
	uint32_t calls, died; /* so far */
	struct client_attached home;
	uint64_t home_instance, home_epoch;
	uint8_t home_identity[16];
};
static struct plan *plan;
static bool is_pager;

static void place(const char *name)
{
	if (!is_pager || strcmp(plan->place, name) || ++plan->calls < plan->after)
		return;
	plan->died++;
	plan->place[0] = 0;
	kill(getpid(), SIGKILL);
	pause();
}

/* A call of the pager's with a place before and one behind it. */
#define PLACE(type, function, parameters, arguments)                                                                                               \
	extern type __real_##function parameters;                                                                                                  \
	type __wrap_##function parameters;                                                                                                         \
	type __wrap_##function parameters                                                                                                          \
	{                                                                                                                                          \
		place("before " #function);                                                                                                        \
		type result = __real_##function arguments;                                                                                         \
		place("after " #function);                                                                                                         \
		return result;                                                                                                                     \
	}
#define PLACE_VOID(function, parameters, arguments)                                                                                                \
	extern void __real_##function parameters;                                                                                                  \
	void __wrap_##function parameters;                                                                                                         \
	void __wrap_##function parameters                                                                                                          \
	{                                                                                                                                          \
		place("before " #function);                                                                                                        \
		__real_##function arguments;                                                                                                       \
		place("after " #function);                                                                                                         \
	}

struct warden;
struct table;
struct link;
PLACE(uint64_t, uffd_copy, (int uffd, uint64_t to, const void *from, uint64_t bytes, int *error), (uffd, to, from, bytes, error))
PLACE(int, warden_move, (struct warden *warden), (warden))
PLACE(int, warden_drop, (struct warden *warden, uint64_t start, uint64_t bytes), (warden, start, bytes))
PLACE(int, warden_unshare, (struct warden *warden), (warden))
PLACE(int, table_relocate_copy, (struct table *table, uint64_t from, uint64_t to, uint64_t pages), (table, from, to, pages))
PLACE(int, table_clear, (struct table *table, uint64_t pgno, uint64_t pages, bool keep), (table, pgno, pages, keep))
PLACE(int, table_fork, (struct table *child, const struct table *parent), (child, parent))
PLACE(int, keeper_send, (int fd, enum keeper_kind kind, uint64_t key, int passed), (fd, kind, key, passed))
PLACE_VOID(recover_follow, (struct tree * tree, uint32_t i), (tree, i))
PLACE_VOID(recover_followed, (struct tree * tree, uint32_t i), (tree, i))
PLACE_VOID(recover_copied, (struct tree * tree), (tree))
PLACE_VOID(recover_save_ranges, (struct space * space, enum saved_kind kind), (space, kind))
PLACE_VOID(recover_space_complete, (struct space * space, uint64_t event), (space, event))
PLACE_VOID(recover_booked_move, (struct space * space), (space))
PLACE_VOID(recover_booked_drop, (struct space * space), (space))
PLACE_VOID(staging_flush, (struct space * space), (space))
PLACE(int, link_put,
      (struct link *link, uint32_t space, const struct page_range *ranges, size_t count, const struct iovec *data, size_t data_count,
       uint64_t cookie),
      (link, space, ranges, count, data, data_count, cookie))
PLACE(int, link_drop, (struct link *link, uint32_t space, const struct page_range *ranges, size_t count, uint64_t cookie),
      (link, space, ranges, count, cookie))
PLACE(int, link_move, (struct link *link, uint32_t space, uint64_t from, uint64_t to, uint64_t pages, uint64_t cookie),
      (link, space, from, to, pages, cookie))
PLACE(int, link_fork, (struct link *link, uint32_t parent, uint32_t child, uint64_t cookie), (link, parent, child, cookie))
PLACE(int, link_space_free, (struct link *link, uint32_t space, uint64_t cookie), (link, space, cookie))

/* ---- the world ---- */

struct world {
	struct pool_fixture *pool; /* shared with the process that it runs in: no other may inherit a server's descriptors */
	pid_t pool_process;
	char directory[64], stats[128];
	int listener;
	struct keeper keeper;
	pid_t target, pager, init; /* init: the reaper, 0: none */
	unsigned kills, early; /* of them, before they had begun to take over */
	uint32_t restarts;     /* seen at the last kill */
};

static void make_target_snapshot(struct world *world)
{
	struct client *client = fixture_connect(world->pool);
	uint64_t draft, space = 0;
	struct results results = { 0 };
	static uint8_t content[64][PAGE_BYTES];
	assert_int_equal(client_snapshot_begin(client, "target:one", false, &draft, NULL), 0);
	assert_int_equal(client_snapshot_space(client, draft, 4711, &space, NULL), 0);
	for (uint64_t i = 0; i < TARGET_PAGES; i += 64) {
		for (uint64_t page = 0; page < 64; page++)
			target_fill(content[page], i + page, 0);
		struct page_range range = { (TARGET_BASE >> PAGE_SHIFT) + i, 64 };
		struct iovec data = { content, sizeof(content) };
		assert_int_equal(client_put(client, space, 0, &range, 1, &data, 1, i), 0);
		assert_int_equal(results_wait(client, &results, (unsigned)(i / 64 + 1)), 0);
	}
	assert_int_equal(client_snapshot_file(client, draft, "pstree.img", "tree", 4, NULL), 0);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", NULL), 0);
	client_close(client);
}

static void start_pool(struct world *world)
{
	int ready[2];
	char byte;
	world->pool = mmap(NULL, sizeof(*world->pool), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(pipe(ready), 0);
	world->pool_process = fork();
	if (world->pool_process == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fixture_start(world->pool, "memory:");
		make_target_snapshot(world);
		if (write(ready[1], "", 1) == 1)
			for (;;)
				pause();
		_exit(1);
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
}

static int open_source(struct world *world, bool again, struct source **source, struct dp_err *err)
{
	struct client *client;
	struct client_attached attached;
	struct link_config config = { .endpoint = &world->pool->endpoint, .near = true };
	int ret = client_open(&client, &world->pool->endpoint, 0, err);
	if (!ret && !again)
		ret = client_instance_create_resumable(client, "target:one", "test", &attached, err);
	else if (!ret)
		ret = client_attach(client, plan->home_instance, plan->home_epoch, 0, plan->home_identity, 5000, &attached, err);
	if (ret)
		return ret;
	plan->home_instance = attached.instance;
	plan->home_epoch = attached.epoch;
	memcpy(plan->home_identity, attached.identity, sizeof(plan->home_identity));
	return source_pool_new(source, &config, client, &attached, err);
}

static void pager_main(struct world *world, int keeper_fd, bool again) __attribute__((noreturn));
static void pager_main(struct world *world, int keeper_fd, bool again)
{
	struct dp_err err = { "" };
	struct source *source;
	struct pager_inheritance inherited = { world->keeper.kept, world->keeper.count };
	is_pager = true;
	if (world->keeper.socket_fd >= 0)
		close(world->keeper.socket_fd);
	if (open_source(world, again, &source, &err)) {
		fprintf(stderr, "%s\n", err.text);
		_exit(3);
	}
	struct pager_config config = {
		.images_dir = world->directory, .source = source, .listen_fd = world->listener, .control_fd = -1, .keeper_fd = keeper_fd,
		.stats_path = world->stats, .budget_bytes = BUDGET, .init_pid = world->init, .inherited = again ? &inherited : NULL,
	};
	int ret = pager_run(&config, &err);
	if (ret)
		fprintf(stderr, "pager: %s\n", err.text);
	_exit(ret ? 1 : 0);
}

static void start_pager(struct world *world, bool again)
{
	int keeper_fd;
	assert_int_equal(again ? keeper_renew(&world->keeper, &keeper_fd, NULL) : keeper_init(&world->keeper, &keeper_fd, NULL), 0);
	world->pager = fork();
	if (world->pager == 0)
		pager_main(world, keeper_fd, again);
	close(keeper_fd);
}

static void begin(struct world *world, enum target_scene scene)
{
	*world = (struct world){ .listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) };
	strcpy(world->directory, "/tmp/dp-test-recover-XXXXXX");
	assert_non_null(mkdtemp(world->directory));
	target_write_images(world->directory);
	start_pool(world);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/lazy-pages.socket", world->directory);
	snprintf(world->stats, sizeof(world->stats), "%s/stats", world->directory);
	int one = 1;
	setsockopt(world->listener, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one));
	setsockopt(world->listener, SOL_SOCKET, SO_PASSPIDFD, &one, sizeof(one));
	assert_int_equal(bind(world->listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(world->listener, 1), 0);
	world->target = fork();
	if (world->target == 0) {
		char number[8];
		snprintf(number, sizeof(number), "%d", scene);
		execl("/proc/self/exe", "test_recover", "--target", number, address.sun_path, NULL);
		_exit(11);
	}
	world->init = scene == SCENE_SHARER ? world->target : 0;
	start_pager(world, false);
}

static uint32_t restarts_of(const struct world *world)
{
	struct pager_stats *stats = stats_map(world->stats, STATS_READ, NULL);
	uint32_t restarts = stats ? (uint32_t)stats->pager_restarts : 0;
	stats_unmap(stats);
	return restarts;
}

/* The pager has been killed: another goes on. */
static void follow(struct world *world)
{
	int status;
	assert_int_equal(waitpid(world->pager, &status, 0), world->pager);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail_msg("a pager ended by itself: %#x", status);
	world->kills++;
	world->early += world->kills > 1 && restarts_of(world) == world->restarts;
	world->restarts = restarts_of(world);
	keeper_receive(&world->keeper); /* no end of file: the holder has the other end too */
	start_pager(world, true);
}

/* CRIU's part is over, and so many pagers have taken over (one that is killed before it begins to is not counted). */
static bool handed_over(const struct world *world, unsigned restarts)
{
	for (size_t i = 0; i < world->keeper.count; i++)
		if (world->keeper.kept[i].kind == KEEPER_STATE && world->keeper.kept[i].key == 0) {
			struct {
				uint64_t magic;
				uint32_t finished, space_numbers, restarts;
			} head = { 0 };
			return pread(world->keeper.kept[i].fd, &head, sizeof(head), 0) == (ssize_t)sizeof(head) && head.finished &&
			       head.restarts + world->early >= restarts;
		}
	return false;
}

/* Until the target ends; a pager that is alive for `patience_us` is killed, 0: not. Returns the target's status. */
static int watch(struct world *world, unsigned patience_us, unsigned kills)
{
	uint64_t until_ns = clock_now_ns() + LIMIT_NS;
	int status;
	uint64_t kill_at_ns = UINT64_MAX;
	bool armed = false;
	while (waitpid(world->target, &status, WNOHANG) == 0) {
		if (clock_now_ns() > until_ns) {
			kill(world->target, SIGKILL);
			fail_msg("a target hangs after %u kills", world->kills);
		}
		keeper_receive(&world->keeper);
		if (!armed && patience_us && world->kills < kills && handed_over(world, rand() % 4 ? world->kills : 0)) {
			kill_at_ns = clock_now_ns() + (uint64_t)(rand() % (int)patience_us) * 1000;
			armed = true;
		}
		if (clock_now_ns() > kill_at_ns) {
			kill(world->pager, SIGKILL);
			kill_at_ns = UINT64_MAX;
		}
		siginfo_t info = { 0 };
		if (!waitid(P_PID, (id_t)world->pager, &info, WEXITED | WNOWAIT | WNOHANG) && info.si_pid && info.si_code == CLD_KILLED) {
			follow(world);
			armed = false;
		}
		usleep(200);
	}
	return status;
}

static unsigned kills_wanted(void);

static void end(struct world *world, bool restarted)
{
	int status;
	uint64_t until_ns = clock_now_ns() + LIMIT_NS;
	while (waitpid(world->pager, &status, WNOHANG) == 0) {
		keeper_receive(&world->keeper);
		usleep(500);
		if (clock_now_ns() > until_ns)
			fail_msg("the last pager hangs");
	}
	assert_int_equal(status, 0);
	struct pager_stats *stats = stats_map(world->stats, STATS_READ, NULL);
	assert_non_null(stats);
	print_message("%u kills; %lu remote, %lu staged, %lu zero; evicted %lu, written back %lu, forks %lu, remaps %lu\n", world->kills,
		      stats->faults[FAULT_REMOTE], stats->faults[FAULT_STAGED], stats->faults[FAULT_ZERO], stats->evicted_pages,
		      stats->written_back_pages, stats->events_fork, stats->events_remap);
	assert_true((stats->pager_restarts > 0) == restarted && stats->pager_restarts <= world->kills);
	stats_unmap(stats);
	keeper_receive(&world->keeper);
	keeper_done(&world->keeper);
	close(world->listener);
	kill(world->pool_process, SIGKILL);
	waitpid(world->pool_process, NULL, 0);
	remove_tree(world->pool->directory);
	munmap(world->pool, sizeof(*world->pool));
	remove_tree(world->directory);
	while (waitpid(-1, &status, WNOHANG) > 0)
		;
}

/* A warden is killed now and then, `pagers`: its pager at the same moment. */
static void kill_wardens(enum target_scene scene, bool pagers)
{
	struct world world;
	int status;
	unsigned killed = 0;
	plan->place[0] = 0;
	begin(&world, scene);
	uint64_t until_ns = clock_now_ns() + LIMIT_NS, next_ns = 0;
	while (waitpid(world.target, &status, WNOHANG) == 0) {
		if (clock_now_ns() > until_ns) {
			kill(world.target, SIGKILL);
			fail_msg("a target hangs after %u wardens", killed);
		}
		keeper_receive(&world.keeper);
		for (size_t i = 0; i < world.keeper.count && killed < kills_wanted() && clock_now_ns() > next_ns; i++)
			if (world.keeper.kept[i].kind == KEEPER_WARDEN && !pidfd_send_signal(world.keeper.kept[i].fd, SIGKILL, NULL, 0)) {
				killed++;
				next_ns = clock_now_ns() + 20000000u;
				if (!pagers)
					continue;
				kill(world.pager, SIGKILL);
				follow(&world);
			}
		siginfo_t info = { 0 };
		if (!waitid(P_PID, (id_t)world.pager, &info, WEXITED | WNOWAIT | WNOHANG) && info.si_pid && info.si_code == CLD_KILLED)
			follow(&world); /* it found its warden dead */
		usleep(200);
	}
	assert_int_equal(status, 0);
	assert_true(killed > 0);
	struct pager_stats *stats = stats_map(world.stats, STATS_READ, NULL);
	print_message("%u wardens killed, %lu replaced\n", killed, stats->warden_restarts);
	assert_true(stats->warden_restarts > 0);
	stats_unmap(stats);
	end(&world, true);
}

static unsigned kills_wanted(void)
{
	const char *text = getenv("DP_KILLS");
	return text ? (unsigned)atoi(text) : 8;
}

static void kill_at_random(enum target_scene scene, int expected)
{
	struct world world;
	plan->place[0] = 0;
	begin(&world, scene);
	assert_int_equal(watch(&world, 30000, kills_wanted()), expected);
	end(&world, true);
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
	log_setup(2, getenv("DP_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, "pager");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (getenv("DP_TEST"))
		cmocka_set_test_filter(getenv("DP_TEST"));
	signal(SIGPIPE, SIG_IGN);
	srand(getenv("DP_SEED") ? (unsigned)atoi(getenv("DP_SEED")) : (unsigned)clock_now_ns());
	plan = mmap(NULL, sizeof(*plan), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
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
