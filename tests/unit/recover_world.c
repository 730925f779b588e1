/* See recover_world.h. */
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
#include "places.h"
#include "pool_fixture.h"
#include "recover_world.h"
#include "sys/uffd_abi.h"

#define BUDGET (12u << 20)

/* ---- places to die at ---- */

struct plan *plan;
static bool is_pager;

static bool place_is(const char *name)
{
	const struct step *step = &plan->step[plan->at];
	if (!is_pager || plan->at == plan->count || strcmp(step->place, name) || ++plan->calls < step->after)
		return false;
	plan->calls = 0;
	plan->at++;
	return true;
}

static void place(const char *name)
{
	if (!place_is(name))
		return;
	kill(getpid(), SIGKILL);
	pause();
}

void plan_steps(const struct step *steps, uint32_t count)
{
	assert_true(count <= STEPS);
	plan->at = plan->calls = 0;
	plan->count = count;
	if (count)
		memcpy(plan->step, steps, count * sizeof(*steps));
}

#define DIE_AT(text) place(text)
struct link;
struct control_peer;
PLACE(uint64_t, uffd_copy, (int uffd, uint64_t to, const void *from, uint64_t bytes, int *error), (uffd, to, from, bytes, error))
PLACE(int, warden_begin,
	(struct warden *warden, enum job_kind kind, pid_t thread, int uffd, uint64_t staging_bytes, struct dp_err *err),
	(warden, kind, thread, uffd, staging_bytes, err))
PLACE(pid_t, inject_clone, (struct injection * injection, uint64_t flags, uint64_t stack_top, pid_t *own_pid),
	(injection, flags, stack_top, own_pid))
PLACE(int, warden_drop, (struct warden *warden, uint64_t start, uint64_t bytes), (warden, start, bytes))
PLACE(int, warden_unshare, (struct warden *warden), (warden))
PLACE(int, table_relocate_copy, (struct table *table, uint64_t from, uint64_t to, uint64_t pages), (table, from, to, pages))
PLACE(int, table_clear, (struct table *table, uint64_t pgno, uint64_t pages, bool keep), (table, pgno, pages, keep))
PLACE(int, table_fork, (struct table *child, const struct table *parent), (child, parent))
PLACE_VOID(recover_follow, (struct tree * tree, uint32_t i), (tree, i))
PLACE_VOID(recover_followed, (struct tree * tree, uint32_t i), (tree, i))
PLACE_VOID(recover_copied, (struct tree * tree), (tree))
PLACE_VOID(recover_save_ranges, (struct space * space, enum saved_kind kind), (space, kind))
PLACE_VOID(recover_space_complete, (struct space * space, uint64_t event), (space, event))
PLACE_VOID(recover_booked_move, (struct space * space), (space))
PLACE_VOID(recover_booked_drop, (struct space * space), (space))
PLACE_VOID(recover_save_warden, (struct space * space), (space))
PLACE_VOID(recover_retiring, (struct space * space), (space))
PLACE_VOID(doubt_note, (struct space * space, uint64_t start, uint64_t end, bool removed), (space, start, end, removed))
PLACE_VOID(staging_flush, (struct space * space), (space))
PLACE_VOID(staging_release, (struct space * space, uint32_t page, enum page_state state), (space, page, state))
PLACE_VOID(oplog_next_put, (struct source * source, uint32_t space_number, const struct op_page *pages, size_t count),
	   (source, space_number, pages, count))
PLACE(int, rangeset_remove, (struct rangeset * set, uint64_t start, uint64_t end), (set, start, end))
PLACE(int, link_drop, (struct link *link, uint32_t space, const struct page_range *ranges, size_t count, uint64_t cookie),
	(link, space, ranges, count, cookie))
PLACE(int, link_move, (struct link *link, uint32_t space, uint64_t from, uint64_t to, uint64_t pages, uint64_t cookie),
	(link, space, from, to, pages, cookie))
PLACE(int, link_fork, (struct link *link, uint32_t parent, uint32_t child, uint64_t cookie), (link, parent, child, cookie))
PLACE(int, link_space_free, (struct link *link, uint32_t space, uint64_t cookie), (link, space, cookie))

PLACE(int, link_get,
	(struct link * link, const struct client_handler *handler, enum request_class class, uint32_t space,
	const struct page_range *ranges, size_t count, uint64_t cookie),
	(link, handler, class, space, ranges, count, cookie))

/* Those that are told apart by what they are about. */
static bool in_push;
extern bool __real_propagate_serve(struct tree *tree, struct control_peer *peer, const char *request);
bool __wrap_propagate_serve(struct tree *tree, struct control_peer *peer, const char *request);
bool __wrap_propagate_serve(struct tree *tree, struct control_peer *peer, const char *request)
{
	in_push = true;
	bool known = __real_propagate_serve(tree, peer, request);
	in_push = false;
	return known;
}

extern int __real_link_put(struct link *link, uint32_t space, const struct page_range *ranges, size_t count,
			   const struct iovec *data, size_t data_count, uint64_t cookie);
int __wrap_link_put(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
		    size_t data_count, uint64_t cookie);
int __wrap_link_put(struct link *link, uint32_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
		    size_t data_count, uint64_t cookie)
{
	place(in_push ? "before link_put of a push" : "before link_put");
	int ret = __real_link_put(link, space, ranges, count, data, data_count, cookie);
	place(in_push ? "after link_put of a push" : "after link_put");
	return ret;
}

extern int __real_keeper_send(int fd, enum keeper_kind kind, uint64_t key, int passed);
int __wrap_keeper_send(int fd, enum keeper_kind kind, uint64_t key, int passed);
int __wrap_keeper_send(int fd, enum keeper_kind kind, uint64_t key, int passed)
{
	char name[32];
	snprintf(name, sizeof(name), "before keeper_send %c", kind);
	place(name);
	int ret = __real_keeper_send(fd, kind, key, passed);
	snprintf(name, sizeof(name), "after keeper_send %c", kind);
	place(name);
	return ret;
}

/* The MOVE is under way when the pager dies: its warden stands still meanwhile. */
static void die_during_move(const struct warden *warden)
{
	pid_t pager = getpid(), self;
	if (!place_is("during warden_move") || kill(warden->pid, SIGSTOP))
		return;
	self = fork();
	if (self)
		return;
	usleep(3000);
	kill(pager, SIGKILL);
	usleep(20000);
	kill(warden->pid, SIGCONT);
	_exit(0);
}

extern int __real_warden_move(struct warden *warden);
int __wrap_warden_move(struct warden *warden);
int __wrap_warden_move(struct warden *warden)
{
	place("before warden_move");
	die_during_move(warden);
	int ret = __real_warden_move(warden);
	place("after warden_move");
	return ret;
}

/* `initial` of a table is saved through a pointer. */
static void (*save_initial)(void *context);
static void save_initial_here(void *context)
{
	place("before initial is saved");
	save_initial(context);
	place("after initial is saved");
}

extern int __real_table_init_at(struct table *table, void *leaves, uint32_t *saved_top, void (*initial_changed)(void *context),
				void *context);
int __wrap_table_init_at(struct table *table, void *leaves, uint32_t *saved_top, void (*initial_changed)(void *context),
			 void *context);
int __wrap_table_init_at(struct table *table, void *leaves, uint32_t *saved_top, void (*initial_changed)(void *context),
			 void *context)
{
	save_initial = initial_changed;
	return __real_table_init_at(table, leaves, saved_top, save_initial_here, context);
}

/* ---- the world ---- */

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
		.images_dir = world->directory,
		.source = source,
		.listen_fd = world->listener,
		.control_fd = world->control,
		.keeper_fd = keeper_fd,
		.stats_path = world->stats,
		.budget_bytes = BUDGET,
		.init_pid = world->init,
		.init_pidfd = pidfd_open(world->target, 0),
		.inherited = again ? &inherited : NULL,
	};
	int ret = pager_run(&config, &err);
	if (ret)
		fprintf(stderr, "pager: %s\n", err.text);
	_exit(ret ? 1 : 0);
}

static void start_pager(struct world *world, bool again)
{
	int keeper_fd;
	assert_int_equal(again ? keeper_renew(&world->keeper, &keeper_fd, NULL) : keeper_init(&world->keeper, &keeper_fd, NULL),
			 0);
	world->pager = fork();
	if (world->pager == 0)
		pager_main(world, keeper_fd, again);
	close(keeper_fd);
}

void world_begin(struct world *world, enum target_scene scene)
{
	*world = (struct world){
		.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
		.control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
	};
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
	snprintf(world->control_path, sizeof(world->control_path), "%s/control.sock", world->directory);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", world->control_path);
	assert_int_equal(bind(world->control, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(world->control, 8), 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/lazy-pages.socket", world->directory);
	snprintf(world->enough, sizeof(world->enough), "%s/enough", world->directory);
	world->target = fork();
	if (world->target == 0) {
		if (plan->count) /* it lives until the pager has come to every step */
			setenv("DP_TARGET_UNTIL", world->enough, 1);
		char number[8];
		snprintf(number, sizeof(number), "%d", scene);
		execl("/proc/self/exe", "test", "--target", number, address.sun_path, NULL);
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
void world_follow(struct world *world)
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
			return pread(world->keeper.kept[i].fd, &head, sizeof(head), 0) == (ssize_t)sizeof(head) &&
			       head.finished && head.restarts + world->early >= restarts;
		}
	return false;
}

static bool pager_was_killed(const struct world *world)
{
	siginfo_t info = { 0 };
	return !waitid(P_PID, (id_t)world->pager, &info, WEXITED | WNOWAIT | WNOHANG) && info.si_pid &&
	       info.si_code == CLD_KILLED;
}

/* Until the target ends; a pager that is alive for `patience_us` is killed, 0: not. Returns the target's status. */
int world_watch(struct world *world, unsigned patience_us, unsigned kills)
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
		if (plan->count && plan->at == plan->count)
			io_write_file(world->enough, "", 0, 0600);
		if (!armed && patience_us && world->kills < kills && handed_over(world, rand() % 4 ? world->kills : 0)) {
			kill_at_ns = clock_now_ns() + (uint64_t)(rand() % (int)patience_us) * 1000;
			armed = true;
		}
		if (clock_now_ns() > kill_at_ns) {
			kill(world->pager, SIGKILL);
			kill_at_ns = UINT64_MAX;
		}
		if (pager_was_killed(world)) {
			world_follow(world);
			armed = false;
		}
		usleep(200);
	}
	return status;
}

void world_end(struct world *world, bool restarted)
{
	int status;
	uint64_t until_ns = clock_now_ns() + LIMIT_NS;
	while (pager_was_killed(world) || waitpid(world->pager, &status, WNOHANG) == 0) {
		keeper_receive(&world->keeper);
		if (pager_was_killed(world)) /* by itself: somebody still reads the memory of a target that has ended */
			world_follow(world);
		usleep(500);
		if (clock_now_ns() > until_ns)
			fail_msg("the last pager hangs");
	}
	if (status)
		fail_msg("the last pager ended with status %#x", status);
	struct pager_stats *stats = stats_map(world->stats, STATS_READ, NULL);
	assert_non_null(stats);
	print_message("%u kills; %lu remote, %lu staged, %lu zero; evicted %lu, written back %lu, forks %lu, remaps %lu\n",
		      world->kills, stats->faults[FAULT_REMOTE], stats->faults[FAULT_STAGED], stats->faults[FAULT_ZERO],
		      stats->evicted_pages, stats->written_back_pages, stats->events_fork, stats->events_remap);
	assert_true((stats->pager_restarts > 0) == restarted && stats->pager_restarts <= world->kills);
	stats_unmap(stats);
	keeper_receive(&world->keeper);
	keeper_done(&world->keeper);
	close(world->listener);
	close(world->control);
	kill(world->pool_process, SIGKILL);
	waitpid(world->pool_process, NULL, 0);
	remove_tree(world->pool->directory);
	munmap(world->pool, sizeof(*world->pool));
	remove_tree(world->directory);
	while (waitpid(-1, &status, WNOHANG) > 0)
		;
}


void world_set_up(void)
{
	log_setup(2, getenv("DP_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, "pager");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (getenv("DP_TEST"))
		cmocka_set_test_filter(getenv("DP_TEST"));
	signal(SIGPIPE, SIG_IGN);
	srand(getenv("DP_SEED") ? (unsigned)atoi(getenv("DP_SEED")) : (unsigned)clock_now_ns());
	plan = mmap(NULL, sizeof(*plan), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}
