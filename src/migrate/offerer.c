#include "migrate/offerer.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "base/base.h"
#include "base/log.h"
#include "checkpoint/criu_dump.h"
#include "checkpoint/hidden.h"
#include "checkpoint/hide_record.h"
#include "checkpoint/target.h"
#include "checkpoint/workspace.h"
#include "instance/instance.h"
#include "instance/stats.h"
#include "migrate/area_flags.h"
#include "migrate/connections.h"
#include "migrate/frozen_store.h"
#include "migrate/frozen_tree.h"
#include "migrate/offer_ahead.h"
#include "migrate/offer_kept.h"
#include "migrate/offer_runtime.h"
#include "migrate/offered_snapshot.h"
#include "migrate/record.h"
#include "pool/server.h"
#include "sys/criu.h"
#include "sys/proc.h"
#include "sys/sandbox.h"
#include "transport/endpoint.h"

#define IDLE_EXIT_NS (UINT64_C(2) * 1000000000)
#define END_WAIT_MS 10000 /* for CRIU's end, and the tree's behind it, once it was told */
#define FDS_BUFFER_BYTES (4 << 20)
#define MAP_BYTES_A_PAGE 9u         /* of a page map's leaves (pool/pagemap.h) */
#define MAP_BYTES_MORE (4u << 20)   /* for those that are not full, and what else is allocated while the tree stands still */

enum state { STATE_FROZEN, STATE_RELEASED, STATE_DETACHED, STATE_RESUMED, STATE_LOST };

/* frozen_tree_prove, in a thread: pages are served meanwhile. */
struct proof {
	pthread_t thread;
	bool started, asked; /* asked: by OFFERER_CONFIRM, which is to be answered */
	int fd[2];           /* [1] is written to when it is over */
	int result;
	struct dp_err err;
};

struct offerer {
	const struct offer_options *options;
	int control_fd; /* -1: the caller is gone */
	enum state state;
	char criu[256];
	struct criu_version version;
	char *arguments[OFFER_ARGUMENTS]; /* for CRIU; borrowed texts */
	size_t argument_count;
	struct workspace workspace;
	struct criu_dump dump;
	struct frozen_tree tree;
	struct store *store; /* the pool's */
	struct pool *pool;
	struct server *server;
	struct offer_ahead ahead;
	char pool_uri[1400];
	int areas_fd; /* as area_flags_read wrote it, or -1 */
	struct proof proof;
	int records_fd, fds_fd[2], life_fd[2]; /* [1]: CRIU's ends, closed here once it runs */
	int root_pidfd, watch_fd, heir_fd[2];
	char *command_line;
	uint64_t dumped_at_ns;
	bool complete;
	volatile bool abandoned; /* the caller is gone before there is an offer */
	struct offerer_reply reply;
};

/* ---- before ---- */

/* Was CRIU told so itself? */
static bool takes_connections(const struct offer_options *options)
{
	bool told = false;
	for (size_t i = 0; i < options->criu_argument_count; i++)
		told |= !strncmp(options->criu_arguments[i], "--tcp-", 6);
	return told;
}

static int check_tree(struct offerer *offerer, struct dp_err *err)
{
	const struct offer_options *options = offerer->options;
	struct instance instance;
	char path[1024];
	int rc = target_check(options->pid, err);
	if (rc == 0 && !options->tcp_established && !options->tcp_close && !takes_connections(options))
		rc = connections_refuse(options->pid, err);
	if (rc < 0)
		return rc;
	rc = instance_find_by_pid(instance_root(options->registry), options->pid, &instance, err);
	if (rc == -ENOENT)
		return 0;
	if (rc < 0)
		return rc;
	if (stats_pager_left(instance_path(&instance, "stats", path, sizeof(path))))
		return 0; /* everything is local: a process like any other */
	return dp_fail(err, EOPNOTSUPP,
		       "process %d is instance %s, which has pages in a pool: bring them here first (distri-proc migrate-in "
		       "--lift-budget %s), or restore it elsewhere from a checkpoint into that pool",
		       options->pid, instance.id, instance.id);
}

static int open_channels(struct offerer *offerer, struct dp_err *err)
{
	int size = FDS_BUFFER_BYTES;
	offerer->records_fd = memfd_create("distri-proc-hidden", MFD_CLOEXEC);
	if (offerer->records_fd < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, offerer->fds_fd) < 0 ||
	    pipe2(offerer->life_fd, O_CLOEXEC) < 0)
		return dp_fail_errno(err, errno, "make what criu's library tells us by");
	if (setsockopt(offerer->fds_fd[1], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
		setsockopt(offerer->fds_fd[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	return 0;
}

static int open_pool(struct offerer *offerer, struct dp_err *err)
{
	const struct offer_options *options = offerer->options;
	struct endpoint endpoint;
	const struct endpoint *in_use;
	struct access *access = NULL;
	int rc = endpoint_parse(&endpoint, options->listen, err);
	if (rc == 0 && ((endpoint.kind != ENDPOINT_TCP && endpoint.kind != ENDPOINT_UNIX) || endpoint.name[0]))
		rc = dp_fail(err, EINVAL, "cannot listen at '%s'; write dps://0.0.0.0:0, tcp://127.0.0.1:0 or unix:///run/offer.sock",
			     options->listen);
	if (rc == 0)
		rc = frozen_store_open(&offerer->store, offerer->life_fd[0], err);
	if (rc == 0)
		rc = pool_open(&offerer->pool, offerer->store, err);
	if (rc == 0)
		rc = server_open(&offerer->server, offerer->pool, err);
	if (rc == 0 && options->access_file)
		rc = access_read(&access, options->access_file, err);
	if (rc < 0)
		return rc;
	server_set_access(offerer->server, access);
	rc = server_listen(offerer->server, &endpoint, options->allow_plaintext, &in_use, err);
	if (rc == 0)
		endpoint_pool_text(in_use, offerer->pool_uri, sizeof(offerer->pool_uri));
	return rc;
}

/* Memory for so many small allocations, which cost no page faults then. Without it they do. */
static void warm_heap(size_t bytes)
{
	mallopt(M_TRIM_THRESHOLD, INT_MAX);
	mallopt(M_MMAP_MAX, 0); /* it is to be of the heap, and to stay there */
	volatile char *room = malloc(bytes);
	for (size_t at = 0; room && at < bytes; at += PAGE_BYTES)
		room[at] = 1;
	free((void *)(uintptr_t)room);
	mallopt(M_MMAP_MAX, 65536); /* malloc's default */
}

/* What grows with the tree is touched before it is frozen, as far as its size is known by now. */
static void make_room(struct offerer *offerer)
{
	uint64_t pages = target_resident_pages(offerer->options->pid);
	struct slots *slots = &offerer->pool->slots;
	if (slots_reserve(slots, pages + pages / 16 + 1) == 0)
		memset(slots->payer, 0, slots->count * sizeof(*slots->payer));
	warm_heap((pages + pages / 16) * MAP_BYTES_A_PAGE + MAP_BYTES_MORE);
}

static void tell_round(void *context, unsigned round, uint64_t pages, uint64_t pages_left)
{
	struct offerer *offerer = context;
	struct offerer_reply reply = { .result = OFFERER_ROUND, .round = { round, pages, pages_left } };
	/* Nobody wants it any more: it need not be frozen. */
	offerer->abandoned = send(offerer->control_fd, &reply, sizeof(reply), MSG_NOSIGNAL) < 0;
}

static int send_ahead(struct offerer *offerer, struct dp_err *err)
{
	struct precopy_limits limits = offerer->options->ahead_limits;
	limits.on_round = tell_round;
	limits.context = offerer;
	return offer_ahead_start(&offerer->ahead, offerer->options, &limits, &offerer->abandoned, err);
}

int offer_arguments(const struct offer_options *options, char **list, size_t *count, struct dp_err *err)
{
	if (options->criu_argument_count + 2 > OFFER_ARGUMENTS)
		return dp_fail(err, E2BIG, "too many options for CRIU");
	for (size_t i = 0; i < options->criu_argument_count; i++)
		list[(*count)++] = options->criu_arguments[i];
	if (options->tcp_established)
		list[(*count)++] = (char *)(uintptr_t)"--tcp-established";
	if (options->tcp_close)
		list[(*count)++] = (char *)(uintptr_t)"--tcp-close";
	return 0;
}

static int prepare(struct offerer *offerer, struct dp_err *err)
{
	int rc = check_tree(offerer, err);
	if (rc == 0)
		rc = offer_arguments(offerer->options, offerer->arguments, &offerer->argument_count, err);
	if (rc == 0)
		rc = criu_find(offerer->criu, err);
	if (rc == 0)
		rc = criu_check_version(offerer->criu, &offerer->version, err);
	if (rc == 0)
		rc = open_channels(offerer, err);
	if (rc == 0)
		rc = open_pool(offerer, err);
	if (rc == 0)
		rc = (offerer->options->container ? offer_runtime_open : workspace_open)(&offerer->workspace, err);
	if (rc < 0)
		return rc;
	offerer->root_pidfd = proc_pidfd_open(offerer->options->pid);
	if (offerer->root_pidfd < 0)
		return dp_fail_errno(err, -offerer->root_pidfd, "open process %d", offerer->options->pid);
	offerer->command_line = target_command_line(offerer->options->pid);
	if (offerer->options->ahead_pool)
		return send_ahead(offerer, err);
	make_room(offerer);
	return 0;
}

/* ---- frozen ---- */

static int start_criu(struct offerer *offerer, struct dp_err *err)
{
	char library[1200], orders[96];
	const struct criu_dump_options options = { .criu = offerer->criu,
						   .pid = offerer->options->pid,
						   .leave_running = offerer->options->copy,
						   .verbose = offerer->options->verbose,
						   .arguments = offerer->arguments,
						   .argument_count = offerer->argument_count };
	int given[] = { offerer->records_fd, offerer->fds_fd[1], offerer->life_fd[1], offerer->areas_fd };
	const char *mark = offerer->options->container ? "f" : ""; /* of a descriptor that is handed over (criu_launch.h) */
	int rc = hidden_library(library, sizeof(library), err);
	if (rc < 0)
		return rc;
	snprintf(orders, sizeof(orders), "%s%d,%s%d,%s%d,%d,%s%d", mark, given[0], mark, given[1], mark, given[2],
		 offerer->options->copy ? HIDE_COPY : 0, mark, given[3]);
	if (offerer->options->record)
		setenv(OFFERER_RECORD, offerer->options->record, 1);
	else
		unsetenv(OFFERER_RECORD);
	if (offerer->options->container) {
		rc = offer_runtime_start(&offerer->dump, offerer->options, offerer->criu, &offerer->workspace, library, orders,
					 err);
	} else {
		for (size_t i = 0; i < ARRAY_LENGTH(given); i++)
			fcntl(given[i], F_SETFD, 0);
		setenv("LD_PRELOAD", library, 1);
		setenv(HIDE_ENVIRONMENT, orders, 1);
		rc = criu_dump_start(&offerer->dump, &options, &offerer->workspace, err);
		unsetenv("LD_PRELOAD");
		unsetenv(HIDE_ENVIRONMENT);
	}
	fcntl(offerer->records_fd, F_SETFD, FD_CLOEXEC);
	dp_close_fd(&offerer->areas_fd);
	offerer->areas_fd = -1;
	dp_close_fd(&offerer->fds_fd[1]);
	dp_close_fd(&offerer->life_fd[1]); /* the pipe's life is CRIU's now */
	offerer->fds_fd[1] = offerer->life_fd[1] = -1;
	return rc;
}

/* Puts criu's reason and the place of its log into err. */
static int explain(struct offerer *offerer, struct dp_err *err)
{
	char reason[600] = "", kept[300];
	bool told = criu_dump_reason(&offerer->workspace, reason, sizeof(reason));
	workspace_keep_log(&offerer->workspace, CRIU_DUMP_LOG, offerer->options->pid, kept, sizeof(kept));
	return dp_fail(err, ECANCELED, "criu: %s%s%s", told ? reason : "it gave up", kept[0] ? "; its log: " : "", kept);
}

/* A copy: the tree goes on, and its shadows stay. */
static int let_go(struct offerer *offerer, struct dp_err *err)
{
	if (send(offerer->fds_fd[0], HIDE_GO, 1, MSG_NOSIGNAL) != 1)
		return dp_fail_errno(err, errno, "let the tree go on");
	int rc = criu_dump_answer(&offerer->dump, true, err);
	return rc < 0 ? rc : frozen_tree_let_go(&offerer->tree, offerer->fds_fd[0], offerer->dump.pidfd, err);
}

/* Which pages stay where they are. Of a tree that stands still they are found while CRIU's hook starts. */
static int find_pages(struct offerer *offerer, struct dp_err *err)
{
	struct offer_ahead *ahead = offerer->options->ahead_pool ? &offerer->ahead : NULL;
	int rc = frozen_tree_collect(&offerer->tree, offerer->records_fd, offerer->fds_fd[0], err);
	if (rc == 0 && ahead)
		rc = precopy_frozen(ahead->precopy, err);
	return rc < 0 ? rc : frozen_tree_scan(&offerer->tree, ahead ? offer_ahead_pages : NULL, ahead, err);
}

/* From CRIU's start to where it waits for our word, the tree frozen. */
static int freeze(struct offerer *offerer, struct dp_err *err)
{
	offerer->areas_fd = area_flags_read(offerer->options->pid); /* failed: CRIU takes longer */
	int rc = start_criu(offerer, err);
	if (rc < 0)
		return rc == -ECANCELED ? explain(offerer, err) : rc;
	frozen_tree_init(&offerer->tree, offerer->workspace.images_fd);
	rc = page_receiver_run(offerer->dump.pages_fd, &offerer->tree.sink, err);
	if (rc == 0 && !offerer->options->copy)
		rc = find_pages(offerer, err);
	if (rc == 0) {
		rc = criu_dump_wait_hook(&offerer->dump, err);
		if (rc == 0)
			rc = -ECANCELED; /* it has ended without */
	}
	if (rc == -ECANCELED) {
		criu_dump_wait(&offerer->dump);
		return explain(offerer, err);
	}
	if (rc < 0)
		return rc;
	offerer->dumped_at_ns = clock_now_ns();
	return offerer->options->copy ? let_go(offerer, err) : 0;
}

/* ---- what CRIU was told of the areas ---- */

static void *prove(void *context)
{
	struct offerer *offerer = context;
	struct proof *proof = &offerer->proof;
	proof->result = frozen_tree_prove(&offerer->tree, offerer->options->copy, &proof->err);
	ssize_t ignored = write(proof->fd[1], "", 1);
	(void)ignored;
	return NULL;
}

static int start_proof(struct offerer *offerer, struct dp_err *err)
{
	struct proof *proof = &offerer->proof;
	if (pipe2(proof->fd, O_CLOEXEC | O_NONBLOCK) < 0)
		return dp_fail_errno(err, errno, "pipe");
	int code = pthread_create(&proof->thread, NULL, prove, offerer);
	proof->started = code == 0;
	return code ? dp_fail_errno(err, code, "start a thread") : 0;
}

/* Blocks until the proof is there. */
static int end_proof(struct offerer *offerer, struct dp_err *err)
{
	struct proof *proof = &offerer->proof;
	if (proof->started)
		pthread_join(proof->thread, NULL);
	proof->started = false;
	if (proof->result < 0 && err)
		*err = proof->err;
	return proof->result;
}

static int take_snapshot(struct offerer *offerer, struct dp_err *err)
{
	const struct offer_options *options = offerer->options;
	struct offer_facts *facts = &offerer->reply.facts;
	const struct checkpoint_options meta_options = { .leave_running = options->copy,
							 .criu_arguments = offerer->arguments,
							 .criu_argument_count = offerer->argument_count };
	struct offer_ahead *ahead = options->ahead_pool && !options->rest_stays ? &offerer->ahead : NULL;
	int rc = options->copy ? find_pages(offerer, err) : 0;
	if (rc == 0 && options->rest_stays)
		rc = offer_ahead_leave(&offerer->ahead, &offerer->tree, facts, err);
	if (rc < 0)
		return rc;
	const struct capture_totals totals = { .stored_pages = offerer->tree.pages, .eager_pages = offerer->tree.eager_pages };
	struct skeleton_facts skeleton = { .options = &meta_options,
					   .totals = &totals,
					   .criu_version = offerer->version.text,
					   .command_line = offerer->command_line ? offerer->command_line : "" };
	rc = ahead ? offer_ahead_publish(ahead, &offerer->tree, &skeleton, facts, err) :
		     offered_snapshot_make(offerer->pool, &offerer->tree, options->name, options->rest_stays, &skeleton,
					   &facts->skeleton_bytes, err);
	if (rc < 0)
		return rc;
	if (!ahead)
		snprintf(facts->uri, sizeof(facts->uri), strncmp(offerer->pool_uri, "dp+unix:", 8) ? "%s/%s" : "%s#%s",
			 offerer->pool_uri, options->name);
	criu_locks_name(offerer->workspace.images_fd, facts->locks);
	snprintf(facts->criu, sizeof(facts->criu), "%s", offerer->version.text);
	snprintf(facts->command_line, sizeof(facts->command_line), "%s", skeleton.command_line);
	facts->tasks = skeleton.tasks;
	facts->threads = skeleton.threads;
	facts->known_tasks = offerer->tree.known_count;
	facts->pages = offerer->tree.pages;
	facts->eager_pages = offerer->tree.eager_pages;
	facts->frozen_at_ns = offerer->tree.stopped_at_ns;
	facts->dumped_ns = offerer->dumped_at_ns - facts->frozen_at_ns;
	facts->ready_ns = clock_now_ns() - facts->frozen_at_ns;
	if (options->copy)
		facts->stopped_ns = offerer->tree.let_go_at_ns - facts->frozen_at_ns;
	return 0;
}

/* ---- the end of a frozen tree ---- */

static bool wait_end(int pidfd, int timeout_ms)
{
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };
	while (poll(&ended, 1, timeout_ms) < 0)
		if (errno != EINTR)
			return false;
	return ended.revents != 0;
}

/* A descriptor that shows CRIU's end: of a container's, which is the runtime's child, the pipe that it holds (F1). */
static int criu_end_fd(const struct offerer *offerer)
{
	return offerer->options->container ? offerer->life_fd[0] : offerer->dump.pidfd;
}

/* And that of the runtime, which then sees to what it knows of the container. */
static bool wait_criu_end(const struct offerer *offerer)
{
	return wait_end(criu_end_fd(offerer), END_WAIT_MS) && wait_end(offerer->dump.pidfd, END_WAIT_MS);
}

/* CRIU, which is their tracer, ends when nobody is at the other end any more, and the shadows with it. */
static int drop_shadows(struct offerer *offerer, struct dp_err *err)
{
	dp_close_fd(&offerer->fds_fd[0]);
	offerer->fds_fd[0] = -1;
	return wait_criu_end(offerer) ? 0 : dp_fail(err, ETIMEDOUT, "criu has not ended, and holds the shadows");
}

/* F2: the only place where CRIU is told to kill. */
static int kill_tree(struct offerer *offerer, struct dp_err *err)
{
	int rc = criu_dump_answer(&offerer->dump, true, err);
	if (rc == 0 && (!wait_criu_end(offerer) || !wait_end(offerer->root_pidfd, END_WAIT_MS)))
		rc = dp_fail(err, ETIMEDOUT, "criu was told to kill the tree, and it is still there");
	return rc;
}

static int release(struct offerer *offerer, bool keep_pages, struct dp_err *err)
{
	int rc = keep_pages ? frozen_store_keep(offerer->store) : 0;
	if (rc < 0)
		return dp_fail_errno(err, -rc, "copy the pages that were not asked for yet");
	rc = end_proof(offerer, err); /* F5: it was asked for long ago */
	if (rc < 0)
		return rc;
	frozen_store_end(offerer->store);
	rc = offerer->options->copy ? drop_shadows(offerer, err) : kill_tree(offerer, err);
	offerer->state = STATE_RELEASED;
	offer_ahead_remove(&offerer->ahead);
	server_set_idle_exit(offerer->server, IDLE_EXIT_NS);
	return rc;
}

/* The server is closed already (F3), or never served. */
static int resume(struct offerer *offerer, struct dp_err *err)
{
	offerer->state = STATE_RESUMED;
	offer_ahead_remove(&offerer->ahead);
	if (offerer->options->copy && offerer->dump.hook_fd < 0)
		return drop_shadows(offerer, err);
	int rc = criu_dump_answer(&offerer->dump, false, err);
	if (!wait_criu_end(offerer))
		return dp_fail(err, ETIMEDOUT, "criu was told to let the tree go on, and has not ended");
	return proc_pidfd_has_ended(offerer->root_pidfd) ? dp_fail(err, ECANCELED, "the tree is dead") : rc;
}

/* ---- commands ---- */

static void answer(struct offerer *offerer)
{
	if (offerer->control_fd >= 0 &&
	    send(offerer->control_fd, &offerer->reply, sizeof(offerer->reply), MSG_NOSIGNAL) < 0)
		log_warn("the caller does not hear: %s", strerror(errno));
}

static int is_left(void *context, uint64_t pgno, uint64_t slot)
{
	return frozen_store_is_left(context, slot) ? -EAGAIN : 0;
}

/* Does the tree that was restored as this instance need us no more? What it gave up unread is in its maps no more. */
static void instance_ends(void *context, const struct object *instance)
{
	struct offerer *offerer = context;
	bool all = true;
	for (const struct space *space = instance->spaces; space && all; space = space->next)
		all = pagemap_walk(&space->map, is_left, offerer->store) == 0;
	offerer->complete = offerer->complete || all;
}

static void progress(struct offerer *offerer)
{
	offerer->reply.progress = (struct offer_progress){ .complete = offerer->complete,
							   .pages_left = frozen_store_left_pages(offerer->store),
							   .pages_served = frozen_store_read_pages(offerer->store),
							   .connections = server_connections(offerer->server),
							   .instances = (uint32_t)offerer->pool->instance_count,
							   .lost = (uint32_t)offerer->pool->lost_count };
}

static void *wait_for_heir(void *context)
{
	struct offerer *offerer = context;
	bool kill_it = switch_heir(offerer->options->record);
	ssize_t ignored = write(offerer->heir_fd[1], kill_it ? "y" : "n", 1);
	(void)ignored;
	return NULL;
}

/* The proof is there: whoever waits for it hears. */
static void proven(struct offerer *offerer)
{
	struct offerer_reply *reply = &offerer->reply;
	reply->result = end_proof(offerer, &reply->err);
	offerer->proof.asked = false;
	answer(offerer);
}

static int take_proof(struct offerer *offerer)
{
	epoll_ctl(offerer->watch_fd, EPOLL_CTL_DEL, offerer->proof.fd[0], NULL);
	end_proof(offerer, NULL);
	if (offerer->proof.asked)
		proven(offerer);
	return 0;
}

/* The caller is gone. 0 where serving goes on. */
static int orphaned(struct offerer *offerer)
{
	pthread_t thread;
	struct epoll_event event = { .events = EPOLLIN, .data.fd = offerer->heir_fd[0] };
	epoll_ctl(offerer->watch_fd, EPOLL_CTL_DEL, offerer->control_fd, NULL);
	dp_close_fd(&offerer->control_fd);
	offerer->control_fd = -1;
	if (offerer->state != STATE_FROZEN)
		return 0;
	if (!offerer->options->record)
		return -ECANCELED;
	if (epoll_ctl(offerer->watch_fd, EPOLL_CTL_ADD, offerer->heir_fd[0], &event) < 0 ||
	    pthread_create(&thread, NULL, wait_for_heir, offerer))
		return switch_heir(offerer->options->record) ? release(offerer, false, NULL) : -ECANCELED;
	pthread_detach(thread);
	return 0;
}

static int detach(struct offerer *offerer)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || dup2(null, STDERR_FILENO) < 0) /* the caller's, whose reader waits for its end */
		return dp_fail_errno(&offerer->reply.err, errno, "leave the terminal");
	close(null);
	offerer->state = STATE_DETACHED;
	server_set_idle_exit(offerer->server, IDLE_EXIT_NS);
	return 0;
}

static int take_command(struct offerer *offerer)
{
	struct offerer_command command;
	struct offerer_reply *reply = &offerer->reply;
	ssize_t got = recv(offerer->control_fd, &command, sizeof(command), MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (got != sizeof(command))
		return orphaned(offerer);
	if (command.verb == OFFERER_RESUME && offerer->state == STATE_FROZEN)
		return -ECANCELED; /* answered when the server is closed */
	if (command.verb == OFFERER_CONFIRM && offerer->state == STATE_FROZEN) {
		offerer->proof.asked = true;
		if (!offerer->proof.started)
			proven(offerer);
		return 0;
	}
	if (command.verb == OFFERER_RELEASE && offerer->state == STATE_FROZEN)
		reply->result = release(offerer, command.keep_pages, &reply->err);
	else if (command.verb == OFFERER_DETACH && offerer->state == STATE_FROZEN && offerer->options->copy)
		reply->result = detach(offerer);
	else if (command.verb == OFFERER_PROGRESS)
		reply->result = 0;
	else
		reply->result = dp_fail(&reply->err, ECANCELED, "the tree is not frozen any more");
	progress(offerer);
	answer(offerer);
	return 0;
}

static int take_heir(struct offerer *offerer)
{
	char kill_it = 0;
	if (read(offerer->heir_fd[0], &kill_it, 1) < 0 && errno == EAGAIN)
		return 0;
	if (kill_it != 'y')
		return -ECANCELED;
	epoll_ctl(offerer->watch_fd, EPOLL_CTL_DEL, offerer->heir_fd[0], NULL);
	release(offerer, false, NULL);
	return 0;
}

/* CRIU is gone, and we did not tell it to. */
static int criu_ended(struct offerer *offerer)
{
	epoll_ctl(offerer->watch_fd, EPOLL_CTL_DEL, criu_end_fd(offerer), NULL);
	frozen_store_end(offerer->store);
	if (offerer->state != STATE_FROZEN && offerer->state != STATE_DETACHED)
		return 0;
	offerer->state = STATE_LOST;
	return -ECHILD;
}

static int watched(void *context)
{
	struct offerer *offerer = context;
	struct epoll_event events[4];
	int rc = 0, count = epoll_wait(offerer->watch_fd, events, 4, 0);
	for (int i = 0; i < count && rc == 0; i++) {
		if (events[i].data.fd == criu_end_fd(offerer))
			rc = criu_ended(offerer);
		else if (events[i].data.fd == offerer->heir_fd[0])
			rc = take_heir(offerer);
		else if (events[i].data.fd == offerer->proof.fd[0])
			rc = take_proof(offerer);
		else if (offerer->control_fd >= 0)
			rc = take_command(offerer);
	}
	return rc;
}

static int watch(struct offerer *offerer, struct dp_err *err)
{
	struct epoll_event control = { .events = EPOLLIN, .data.fd = offerer->control_fd };
	struct epoll_event criu = { .events = EPOLLIN, .data.fd = criu_end_fd(offerer) };
	struct epoll_event proof = { .events = EPOLLIN, .data.fd = offerer->proof.fd[0] };
	offerer->watch_fd = epoll_create1(EPOLL_CLOEXEC);
	if (offerer->watch_fd < 0 || pipe2(offerer->heir_fd, O_CLOEXEC | O_NONBLOCK) < 0 ||
	    epoll_ctl(offerer->watch_fd, EPOLL_CTL_ADD, offerer->control_fd, &control) < 0 ||
	    epoll_ctl(offerer->watch_fd, EPOLL_CTL_ADD, criu_end_fd(offerer), &criu) < 0 ||
	    (offerer->proof.started && epoll_ctl(offerer->watch_fd, EPOLL_CTL_ADD, proof.data.fd, &proof) < 0))
		return dp_fail_errno(err, errno, "watch the caller and criu");
	offerer->pool->on_instance_end = instance_ends;
	offerer->pool->on_instance_end_context = offerer;
	int rc = server_watch(offerer->server, offerer->watch_fd, watched, offerer);
	return rc < 0 ? dp_fail_errno(err, -rc, "watch the caller and criu") : 0;
}

/* ---- all of it ---- */

/* What listens to strangers keeps nothing but what it has open. */
static void give_up_rights(void)
{
	struct dp_err err;
	int rc = sandbox_drop_capabilities(0, &err);
	if (rc == 0)
		rc = sandbox_filter(SANDBOX_POOL, &err);
	if (rc < 0)
		log_warn("not all was given up that is not needed: %s", err.text);
}

static int serve(struct offerer *offerer)
{
	struct offerer_reply *reply = &offerer->reply;
	answer(offerer);
	give_up_rights();
	int rc = server_run(offerer->server);
	server_close(offerer->server); /* F3 */
	offerer->server = NULL;
	if (offerer->state == STATE_FROZEN) {
		frozen_store_end(offerer->store);
		reply->result = resume(offerer, &reply->err);
		answer(offerer);
		return rc == -ECANCELED ? 0 : rc;
	}
	if (offerer->state == STATE_DETACHED)
		drop_shadows(offerer, NULL);
	if (offerer->state == STATE_LOST)
		log_error("criu ended by itself: the tree runs on, or was killed by somebody else");
	return rc;
}

static int make(struct offerer *offerer, struct dp_err *err)
{
	int rc = prepare(offerer, err);
	if (rc == 0)
		rc = freeze(offerer, err);
	if (rc == 0)
		rc = start_proof(offerer, err);
	if (rc == 0)
		rc = take_snapshot(offerer, err);
	if (rc == 0 && !offerer->options->confirm_later)
		rc = end_proof(offerer, err);
	if (rc == 0)
		rc = watch(offerer, err);
	return rc;
}

void offerer_main(const struct offer_options *options, int control_fd)
{
	struct offerer offerer = { .options = options,
				   .control_fd = control_fd,
				   .workspace = { .root_fd = -1, .images_fd = -1, .work_fd = -1 },
				   .dump = { .child = -1, .pidfd = -1, .pages_fd = -1, .hook_listen_fd = -1, .hook_fd = -1 },
				   .tree = { .pages_fd = -1 },
				   .areas_fd = -1, .proof.fd = { -1, -1 },
				   .records_fd = -1, .fds_fd = { -1, -1 }, .life_fd = { -1, -1 },
				   .root_pidfd = -1, .watch_fd = -1, .heir_fd = { -1, -1 } };
	struct offerer_reply *reply = &offerer.reply;
	setsid(); /* an interrupt at the terminal is the caller's */
	prctl(PR_SET_NAME, "dp-offerer");
	signal(SIGPIPE, SIG_IGN);
	if (options->kept_pool)
		offer_kept_main(options, control_fd);
	int rc = reply->result = make(&offerer, &reply->err);
	if (rc == 0) {
		rc = serve(&offerer);
	} else {
		server_close(offerer.server);
		if (offerer.dump.pidfd >= 0 && (offerer.dump.hook_fd >= 0 || options->copy))
			resume(&offerer, NULL);
		else
			criu_dump_wait(&offerer.dump);
		answer(&offerer);
	}
	/* Socket files go with server_close; all else goes with the process. */
	end_proof(&offerer, NULL);
	offer_ahead_done(&offerer.ahead);
	frozen_tree_done(&offerer.tree);
	workspace_close(&offerer.workspace);
	_exit(rc < 0 ? 1 : 0);
}
