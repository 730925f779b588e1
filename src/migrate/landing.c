#include "migrate/landing.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include "base/base.h"
#include "base/log.h"
#include "client/client.h"
#include "migrate/arriving_store.h"
#include "migrate/pull.h"
#include "pool/access.h"
#include "pool/pool.h"
#include "pool/server.h"
#include "restore/processes.h"
#include "sys/proc.h"
#include "sys/sandbox.h"
#include "transport/endpoint.h"

#define IDLE_EXIT_NS (UINT64_C(2) * 1000000000)
#define LINK_LOOK_NS 20000000 /* for what is due by the clock */
#define META_BYTES_LIMIT 65536u
#define ALLOC_PAGES 256u

struct command {
	char uri[1400], name[256];
};

struct reply {
	int result;
	struct dp_err err;
	char uri[256];
};

struct process {
	int control_fd, watch_fd, timer_fd, watched_fd; /* watched: the pull's, as it is in watch_fd; -1 */
	struct store *store;
	struct pool *pool;
	struct server *server;
	struct pull *pull;
};

static const char owner; /* of the draft: its address is nobody else's */

/* ---- the draft and the offer become one ---- */

struct taking {
	struct process *process;
	struct client *client;
	struct endpoint endpoint;
	struct snapshot_info info;
	struct object *draft;
	struct landing_run *left;
	size_t left_count;
};

static struct object *find_draft(const struct pool *pool, const char *name)
{
	for (struct object *object = pool->all; object; object = object->next)
		if (object->kind == OBJECT_DRAFT && !strcmp(object->name, name) && !object->committing)
			return object;
	return NULL;
}

static int take_file(void *context, size_t index, const void *content, uint64_t bytes, struct dp_err *err)
{
	struct taking *taking = context;
	const char *name = taking->info.files[index].name;
	if (strcmp(name, LANDING_LEFT_FILE) != 0)
		return pool_snapshot_file(taking->process->pool, &owner, taking->draft->id, name, bytes, 0, content, bytes, err);
	if (bytes % sizeof(*taking->left) || taking->left)
		return dp_fail(err, EBADMSG, "the source's list of pages is damaged");
	taking->left = malloc(bytes + 1);
	if (!taking->left)
		return dp_fail_errno(err, ENOMEM, "take the list of pages");
	memcpy(taking->left, content, bytes);
	taking->left_count = bytes / sizeof(*taking->left);
	return 0;
}

static struct space *space_of(const struct object *draft, uint64_t label)
{
	for (struct space *space = draft->spaces; space; space = space->next)
		if (space->label == label)
			return space;
	return NULL;
}

/* As many slots as fit at once, which nobody had before (LA1). */
static int expect_part(struct taking *taking, struct space *space, uint64_t pgno, uint64_t pages, struct dp_err *err)
{
	struct pool *pool = taking->process->pool;
	uint64_t there[ALLOC_PAGES], slots[ALLOC_PAGES];
	pagemap_read(&space->map, pgno, there, pages);
	for (uint64_t i = 0; i < pages; i++)
		if (there[i])
			return dp_fail(err, EBADMSG, "page 0x%llx of task %llu is in two places",
				       (unsigned long long)(pgno + i) << PAGE_SHIFT, (unsigned long long)space->label);
	int ret = slots_alloc(&pool->slots, slots, pages);
	if (!ret)
		ret = pull_add(taking->process->pull, space->label, pgno, slots, pages);
	for (uint64_t i = 0; i < pages && !ret; i++)
		ret = pagemap_set(&space->map, pgno + i, slots[i]);
	return ret < 0 ? dp_fail_errno(err, -ret, "room for the pages that are to come") : 0;
}

static int expect_pages(struct taking *taking, struct dp_err *err)
{
	int ret = taking->left ? 0 : dp_fail(err, EBADMSG, "the source does not say which pages it has");
	for (size_t i = 0; i < taking->left_count && !ret; i++) {
		const struct landing_run *run = &taking->left[i];
		struct space *space = space_of(taking->draft, run->label);
		if (!space || !run->pages || run->pgno >= PGNO_END || run->pages > PGNO_END - run->pgno)
			return dp_fail(err, EBADMSG, "the source's list of pages is damaged");
		for (uint64_t at = 0; at < run->pages && !ret; at += ALLOC_PAGES)
			ret = expect_part(taking, space, run->pgno + at, DP_MIN(run->pages - at, (uint64_t)ALLOC_PAGES), err);
	}
	return ret;
}

/* Processes that were forked at last have no space in the draft yet. */
static int make_spaces(struct taking *taking, struct dp_err *err)
{
	int ret = 0;
	for (size_t i = 0; i < taking->info.space_count && !ret; i++) {
		uint64_t id, label = taking->info.spaces[i].label;
		if (!space_of(taking->draft, label))
			ret = pool_snapshot_space(taking->process->pool, &owner, taking->draft->id, label, &id, err);
	}
	return ret;
}

static int take_all(struct taking *taking, const struct command *command, struct dp_err *err)
{
	struct process *process = taking->process;
	struct snapshot_info *info = &taking->info;
	int ret = endpoint_parse(&taking->endpoint, command->uri, err);
	if (!ret)
		ret = client_open(&taking->client, &taking->endpoint, 0, err);
	if (!ret)
		ret = client_snapshot_open(taking->client, command->name, info, err);
	taking->draft = find_draft(process->pool, command->name);
	if (!ret && !taking->draft)
		ret = dp_fail(err, ENOENT, "what was sent ahead is not here: its connection was lost");
	if (ret)
		return ret;
	taking->draft->owner = &owner; /* from here on the source's connection may end */
	if (!ret)
		ret = client_files_get(taking->client, info->id, info->files, info->file_count, take_file, taking, err);
	if (!ret)
		ret = make_spaces(taking, err);
	if (!ret)
		ret = expect_pages(taking, err);
	if (!ret)
		ret = pull_begin(process->pull, taking->client, &taking->endpoint, command->name, err);
	if (ret)
		return ret;
	taking->client = NULL;
	size_t meta_bytes = DP_MIN(strlen(info->meta_json), (size_t)META_BYTES_LIMIT);
	ret = pool_snapshot_commit_begin(process->pool, &owner, taking->draft->id, info->meta_json, (uint32_t)meta_bytes, err);
	return ret ? ret : pool_snapshot_commit_finish(process->pool, &owner, taking->draft->id, 0, err);
}

static int take(struct process *process, const struct command *command, struct dp_err *err)
{
	struct taking taking = { .process = process };
	int ret = take_all(&taking, command, err);
	client_close(taking.client);
	client_snapshot_info_done(&taking.info);
	free(taking.left);
	pool_flush(process->pool);
	return ret;
}

/* ---- the process ---- */

static void watch_pull(struct process *process)
{
	int fd = pull_fd(process->pull);
	if (fd == process->watched_fd)
		return;
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
	if (process->watched_fd >= 0) /* one that was closed is not in it any more */
		epoll_ctl(process->watch_fd, EPOLL_CTL_DEL, process->watched_fd, NULL);
	process->watched_fd = fd >= 0 && !epoll_ctl(process->watch_fd, EPOLL_CTL_ADD, fd, &event) ? fd : -1;
}

static void set_timer(struct process *process, long interval_ns)
{
	const struct itimerspec each = { .it_interval.tv_nsec = interval_ns, .it_value.tv_nsec = interval_ns };
	timerfd_settime(process->timer_fd, 0, &each, NULL);
}

static void work(struct process *process)
{
	pull_work(process->pull);
	watch_pull(process);
	if (pull_fd(process->pull) < 0)
		set_timer(process, 0);
}

static void hear(struct process *process)
{
	struct command command;
	struct reply reply = { 0 };
	ssize_t got = recv(process->control_fd, &command, sizeof(command), MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got != sizeof(command)) { /* the ferry is gone */
		epoll_ctl(process->watch_fd, EPOLL_CTL_DEL, process->control_fd, NULL);
		server_set_idle_exit(process->server, IDLE_EXIT_NS);
		return;
	}
	reply.result = take(process, &command, &reply.err);
	if (send(process->control_fd, &reply, sizeof(reply), MSG_NOSIGNAL) < 0)
		log_warn("the ferry does not hear: %s", strerror(errno));
	if (!reply.result) {
		set_timer(process, LINK_LOOK_NS);
		work(process);
	}
}

static int watched(void *context)
{
	struct process *process = context;
	struct epoll_event events[4];
	int count = epoll_wait(process->watch_fd, events, ARRAY_LENGTH(events), 0);
	for (int i = 0; i < count; i++) {
		uint64_t ticks;
		if (events[i].data.fd == process->control_fd)
			hear(process);
		else if (events[i].data.fd == process->timer_fd && read(process->timer_fd, &ticks, sizeof(ticks)) > 0)
			work(process);
		else
			work(process);
	}
	return 0;
}

static int watch(struct process *process, struct dp_err *err)
{
	struct epoll_event control = { .events = EPOLLIN, .data.fd = process->control_fd };
	process->watch_fd = epoll_create1(EPOLL_CLOEXEC);
	process->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	struct epoll_event timer = { .events = EPOLLIN, .data.fd = process->timer_fd };
	if (process->watch_fd < 0 || process->timer_fd < 0 ||
	    epoll_ctl(process->watch_fd, EPOLL_CTL_ADD, process->control_fd, &control) < 0 ||
	    epoll_ctl(process->watch_fd, EPOLL_CTL_ADD, process->timer_fd, &timer) < 0)
		return dp_fail_errno(err, errno, "watch the ferry");
	int ret = server_watch(process->server, process->watch_fd, watched, process);
	return ret < 0 ? dp_fail_errno(err, -ret, "watch the ferry") : 0;
}

/* The store is made before the pull, which it calls. */
static void fetch(void *context, uint64_t slot)
{
	struct process *process = context;
	pull_fetch(process->pull, slot);
}

static int serve_at(struct process *process, const char *listen, bool allow_plaintext, const struct endpoint **in_use,
		    struct dp_err *err)
{
	struct endpoint endpoint;
	int ret = endpoint_parse(&endpoint, listen, err);
	return ret ? ret : server_listen(process->server, &endpoint, allow_plaintext, in_use, err);
}

/* Its snapshots are one migration's, and that is one source's. */
static int let_in(struct process *process, const char *identity, struct dp_err *err)
{
	struct access *access;
	if (!identity)
		return 0;
	cleanup_free char *rules = format_text("%s read,write,admin migration/*\n", identity);
	if (!rules)
		return dp_fail_errno(err, ENOMEM, "let the source in");
	for (size_t i = 0; i < strlen(identity); i++)
		if (strchr(" \t*[\\", rules[i]))
			rules[i] = '?'; /* of a name with such letters: those that differ only there */
	int ret = access_parse(&access, rules, err);
	if (!ret)
		server_set_access(process->server, access);
	return ret;
}

static int set_up(struct process *process, const struct landing_place *place, struct reply *reply)
{
	const struct endpoint *in_use = NULL;
	char local[PATH_MAX + 16];
	snprintf(local, sizeof(local), "unix://%s", place->socket_path);
	int ret = arriving_store_open(&process->store, fetch, process, &reply->err);
	if (!ret)
		ret = pool_open(&process->pool, process->store, &reply->err);
	if (!ret)
		ret = pull_open(&process->pull, process->store, &process->pool->slots, &reply->err);
	if (!ret)
		ret = server_open(&process->server, process->pool, &reply->err);
	if (!ret)
		ret = let_in(process, place->identity, &reply->err);
	if (!ret)
		ret = serve_at(process, local, true, NULL, &reply->err);
	if (!ret)
		ret = serve_at(process, place->listen, place->allow_plaintext, &in_use, &reply->err);
	if (!ret)
		ret = watch(process, &reply->err);
	if (!ret)
		endpoint_pool_text(in_use, reply->uri, sizeof(reply->uri));
	return reply->result = ret;
}

/* What listens to strangers keeps nothing but what it has open. */
static void give_up_rights(void)
{
	struct dp_err err;
	int ret = sandbox_drop_capabilities(0, &err);
	if (!ret)
		ret = sandbox_filter(SANDBOX_POOL, &err);
	if (ret)
		log_warn("not all was given up that is not needed: %s", err.text);
}

static void run(int control_fd, const struct landing_place *place) __attribute__((noreturn));
static void run(int control_fd, const struct landing_place *place)
{
	struct process process = { .control_fd = control_fd, .watch_fd = -1, .timer_fd = -1, .watched_fd = -1 };
	struct reply reply = { 0 };
	setsid();
	prctl(PR_SET_NAME, "dp-landing");
	signal(SIGPIPE, SIG_IGN);
	set_up(&process, place, &reply);
	ssize_t told = send(control_fd, &reply, sizeof(reply), MSG_NOSIGNAL);
	if (reply.result || told < 0)
		_exit(1);
	give_up_rights();
	_exit(server_run(process.server) < 0);
}

/* ---- the caller ---- */

static int hear_reply(const struct landing *landing, struct reply *reply, struct dp_err *err)
{
	ssize_t got;
	while ((got = recv(landing->control_fd, reply, sizeof(*reply), 0)) < 0 && errno == EINTR)
		;
	if (got != sizeof(*reply))
		return dp_fail(err, ECHILD, "the process for pages that come ahead is gone");
	return reply->result < 0 ? dp_fail(err, -reply->result, "%s", reply->err.text) : 0;
}

int landing_start(struct landing *landing, const struct landing_place *place, struct dp_err *err)
{
	struct reply reply;
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return dp_fail_errno(err, errno, "make a control socket");
	landing->pid = fork();
	if (landing->pid == 0) {
		close_all_but(&pair[1], 1);
		run(pair[1], place);
	}
	close(pair[1]);
	landing->control_fd = pair[0];
	if (landing->pid < 0) {
		landing->pid = 0;
		return dp_fail_errno(err, errno, "start the process for pages that come ahead");
	}
	landing->pidfd = proc_pidfd_open(landing->pid);
	if (landing->pidfd < 0)
		return dp_fail_errno(err, -landing->pidfd, "watch the process for pages that come ahead");
	int ret = hear_reply(landing, &reply, err);
	if (!ret)
		memcpy(landing->uri, reply.uri, sizeof(landing->uri));
	return ret;
}

int landing_take(struct landing *landing, const char *uri, const char *name, struct dp_err *err)
{
	struct command command = { .uri = "" };
	struct reply reply;
	if (strlen(uri) >= sizeof(command.uri) || strlen(name) >= sizeof(command.name))
		return dp_fail(err, E2BIG, "the source names a pool of more than %zu characters", sizeof(command.uri));
	strcpy(command.uri, uri);
	strcpy(command.name, name);
	if (send(landing->control_fd, &command, sizeof(command), MSG_NOSIGNAL) < 0)
		return dp_fail(err, ECHILD, "the process for pages that come ahead is gone");
	return hear_reply(landing, &reply, err);
}

bool landing_has_ended(const struct landing *landing)
{
	return landing->pidfd >= 0 && proc_pidfd_has_ended(landing->pidfd);
}

void landing_end(struct landing *landing)
{
	if (landing->pid > 0) {
		kill(landing->pid, SIGKILL);
		waitpid(landing->pid, NULL, 0);
	}
	dp_close_fd(&landing->pidfd);
	dp_close_fd(&landing->control_fd);
	*landing = LANDING_NONE;
}
