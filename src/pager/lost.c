/* A source that does not answer. Who faults waits meanwhile, nothing else: never a zero, never an old page. When the oldest
 * request has waited for longer than the stall timeout, the tree is stopped, killed, or left waiting, as was asked for; the
 * source goes on trying to find its pools, and the tree goes on when it has. */
#include "pager/tree.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "instance/keeper.h"
#include "sys/proc.h"

#define LOOK_NS UINT64_C(100000000)
#define TELL_NS UINT64_C(500000000)  /* between two words to the supervisor that a pool is not reached */
#define STOPPED_NS 2000000          /* a stopped tree needs no quicker pager */
#define STOP_PASSES 4 /* each finds what was forked during the one before */

static bool is_warden(const struct tree *tree, pid_t pid)
{
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (space->warden.pid == pid)
			return true;
	return false;
}

static bool is_noted(const struct lost *lost, pid_t pid)
{
	for (size_t i = 0; i < lost->stopped_count; i++)
		if (lost->stopped[i] == pid)
			return true;
	return false;
}

/* A signal to the process goes to one thread, and that may wait for a page within a system call, where it stops for nobody: then
 * none would. So each gets its own; SIGCONT takes them all back. */
static int stop_thread(void *pid, pid_t thread)
{
	tgkill(*(const pid_t *)pid, thread, SIGSTOP);
	return 0;
}

static bool note(struct lost *lost, pid_t pid)
{
	pid_t *larger = reallocarray(lost->stopped, lost->stopped_count + 1, sizeof(*larger));
	if (!larger)
		return false;
	lost->stopped = larger;
	lost->stopped[lost->stopped_count++] = pid;
	return true;
}

/* One that somebody else has stopped already is not ours to continue. */
static bool stop_one(struct lost *lost, pid_t pid)
{
	if (proc_state(pid) == 'T' || !note(lost, pid))
		return false;
	if (kill(pid, SIGSTOP)) {
		lost->stopped_count--;
		return false;
	}
	proc_each_thread(pid, stop_thread, &pid);
	return true;
}

static int has_stopped(void *context, pid_t thread)
{
	(void)context;
	return proc_state(thread) == 'T';
}

/* Whether the dead pager stopped it, or somebody else did, is not known any more. A thread that waits for a page within a system
 * call has not stopped yet, and it may be the first: so any counts. */
static bool inherit_one(struct lost *lost, pid_t pid)
{
	return proc_each_thread(pid, has_stopped, NULL) > 0 && note(lost, pid);
}

static bool each_below(struct tree *tree, pid_t root, bool itself, bool (*each)(struct lost *lost, pid_t pid))
{
	cleanup_free pid_t *pids = NULL;
	ssize_t count = root > 0 ? proc_tree(root, &pids) : 0;
	bool any = false;
	for (ssize_t i = itself ? 0 : 1; i < count; i++)
		if (pids[i] > 1 && pids[i] != getpid() && !is_warden(tree, pids[i]) && !is_noted(&tree->lost, pids[i]))
			any |= each(&tree->lost, pids[i]);
	return any;
}

static bool each_of_tree(struct tree *tree, bool (*each)(struct lost *lost, pid_t pid))
{
	bool any = each_below(tree, tree->config->init_pid, false, each);
	for (const struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed)
			any |= each_below(tree, space->pid, true, each);
	return any;
}

static void stop_tree(struct tree *tree)
{
	for (int pass = 0; pass < STOP_PASSES && each_of_tree(tree, stop_one); pass++)
		;
}

void lost_inherit(struct tree *tree)
{
	if (!tree->stats->lost_since_ns)
		return;
	tree->lost.given_up = true;
	tree->lost.inherited = true;
	if (tree->config->on_lost == ON_LOST_STOP)
		each_of_tree(tree, inherit_one);
}

static void continue_tree(struct tree *tree)
{
	struct lost *lost = &tree->lost;
	for (size_t i = 0; i < lost->stopped_count; i++)
		kill(lost->stopped[i], SIGCONT);
	lost->stopped_count = 0;
}

static void give_up(struct tree *tree, const struct source_health *health, uint64_t now_ns)
{
	double seconds = (double)(now_ns - health->waiting_since_ns) / 1e9;
	const char *why = health->why && *health->why ? health->why : "no answer";
	tree->lost.given_up = true;
	tree->stats->lost_since_ns = health->waiting_since_ns;
	switch (tree->config->on_lost) {
	case ON_LOST_STOP:
		stop_tree(tree);
		log_error("the pool has not answered for %.1f s (%s): %zu processes are stopped until it is back", seconds, why,
			  tree->lost.stopped_count);
		break;
	case ON_LOST_KILL:
		tree_fail(tree, -ETIMEDOUT, "the pool has not answered for %.1f s (%s)", seconds, why);
		break;
	case ON_LOST_FREEZE:
		log_error("the pool has not answered for %.1f s (%s): what needs it waits until it is back", seconds, why);
		break;
	}
}

static void look(struct tree *tree, uint64_t now_ns)
{
	struct lost *lost = &tree->lost;
	struct source_health health = { .why = "" };
	uint64_t limit_ns = tree->config->stall_timeout_ns ? tree->config->stall_timeout_ns : STALL_TIMEOUT_NS;
	tree->source->ops->health(tree->source, &health);
	tree->stats->pool_reconnects = health.reconnects;
	tree->stats->pools = health.pools;
	tree->stats->pools_there = health.pools_there;
	tree->stats->mirror_behind_pages = health.behind_pages;
	if (health.pools_there < health.pools && tree->keeper_fd >= 0 && now_ns >= lost->next_tell_ns) {
		keeper_send(tree->keeper_fd, KEEPER_LOST, 0, -1); /* it may be able to start it; without a supervisor nobody is */
		lost->next_tell_ns = now_ns + TELL_NS;
	}
	bool late = health.waiting_since_ns && now_ns > health.waiting_since_ns && now_ns - health.waiting_since_ns > limit_ns;
	if (late && !lost->given_up)
		give_up(tree, &health, now_ns);
	/* What the dead pager waited for is not known: it is late again soon if it is not there. */
	if (!late && lost->given_up && !(lost->inherited && health.pools && !health.pools_there)) {
		lost->given_up = lost->inherited = false;
		tree->stats->lost_since_ns = 0;
		log_info("the pool is back: %zu processes go on", lost->stopped_count);
		continue_tree(tree);
	}
}

uint64_t lost_work(struct tree *tree, uint64_t now_ns)
{
	const struct source_ops *ops = tree->source->ops;
	if (!ops->work)
		return UINT64_MAX;
	int before = ops->fd(tree->source);
	uint64_t until_ns = ops->work(tree->source);
	tree->lost.changed |= ops->fd(tree->source) != before;
	if (ops->health && now_ns >= tree->lost.next_look_ns) {
		look(tree, now_ns);
		tree->lost.next_look_ns = now_ns + LOOK_NS;
	}
	/* A thread that is to stop and waits for a page within a system call asks again and again, as fast as it is heard. */
	if (tree->lost.stopped_count)
		nanosleep(&(const struct timespec){ .tv_nsec = STOPPED_NS }, NULL);
	/* While nothing waits there is nothing to look at; what begins to wait is seen by the turn in which it does. */
	return until_ns;
}

void lost_fail(struct tree *tree, int error)
{
	struct source_health health = { .why = "" };
	if (tree->source->ops->health)
		tree->source->ops->health(tree->source, &health);
	if (health.why && *health.why)
		tree_fail(tree, error, "the pages' source: %s", health.why);
	else
		tree_fail(tree, error, "the connection to the pages' source");
}

int lost_receive(struct tree *tree)
{
	struct source *source = tree->source;
	int ret = source->ops->receive(source);
	if (ret < 0)
		lost_fail(tree, ret);
	if (ret)
		return ret;
	struct pollfd wait = { .fd = source->ops->fd(source), .events = POLLIN };
	if (source->ops->wants_write(source))
		wait.events |= POLLOUT;
	if (source->ops->work) {
		poll(&wait, 1, 1);
		lost_work(tree, clock_now_ns());
	}
	return tree->failure;
}

void lost_done(struct tree *tree)
{
	continue_tree(tree);
	free(tree->lost.stopped);
	tree->lost.stopped = NULL;
}
