#include "pool/server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include "base/base.h"
#include "base/log.h"
#include "pool/connection.h"
#include "pool/request.h"

#define EVENTS 64
#define TICK_MS 1000
#define PENDING_ROUNDS 8 /* reads of what a stream holds already, before others have their turn */
#define SHRINK_AFTER_NS (UINT64_C(5) * 1000000000)

struct server_listener {
	struct server_listener *next;
	struct listener listener;
	bool watched; /* in the epoll set */
};

struct server {
	struct connection_shared shared;
	int epoll_fd, stop_fd;
	struct server_listener *listeners;
	struct connection *connections;
	uint64_t idle_exit_ns; /* 0: never */
	uint64_t idle_since_ns, ticked_ns;
	unsigned connection_limit, peer_limit;
	unsigned strangers; /* connections that have not said hello */
	bool pending;       /* a connection has bytes that epoll does not tell of */
	bool commits_done; /* the committer has something for us */
	bool stopping;
	int (*watch_ready)(void *context); /* of a descriptor that is not ours, or NULL */
	void *watch_context;
	int watch_result;
};

int server_open(struct server **result, struct pool *pool, struct dp_err *err)
{
	struct server *server = calloc(1, sizeof(*server));

	if (!server)
		return dp_fail_errno(err, ENOMEM, "open server");
	server->shared.pool = pool;
	awake_init(&server->shared.awake, true);
	server->connection_limit = SERVER_CONNECTIONS;
	server->peer_limit = SERVER_CONNECTIONS_PER_PEER;
	server->shared.started_ns = server->idle_since_ns = clock_now_ns();
	server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	server->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = &server->stop_fd };

	int code = 0;

	if (server->epoll_fd < 0 || server->stop_fd < 0 ||
	    epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->stop_fd, &event) < 0)
		code = -errno;
	if (code == 0 && pool->store->persistent)
		code = committer_new(&server->shared.committer, pool->store);
	if (code == 0 && server->shared.committer) {
		event.data.ptr = &server->commits_done;
		if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, committer_fd(server->shared.committer), &event) < 0)
			code = -errno;
	}
	if (code < 0) {
		server_close(server);
		return dp_fail_errno(err, -code, "open server");
	}
	*result = server;
	return 0;
}

int server_watch(struct server *server, int fd, int (*ready)(void *context), void *context)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = &server->watch_ready };

	server->watch_ready = ready;
	server->watch_context = context;
	return epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

unsigned server_connections(const struct server *server)
{
	unsigned count = 0;

	for (const struct connection *connection = server->connections; connection; connection = connection->next)
		count++;
	return count;
}

static int watch_listener(struct server *server, struct server_listener *entry)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = entry };

	if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, entry->listener.fd, &event) < 0)
		return -errno;
	entry->watched = true;
	return 0;
}

int server_listen(struct server *server, const struct endpoint *endpoint, bool allow_plaintext, const struct endpoint **in_use,
		  struct dp_err *err)
{
	struct server_listener *entry = calloc(1, sizeof(*entry));

	if (!entry)
		return dp_fail_errno(err, ENOMEM, "listen");
	int result = listener_open(&entry->listener, endpoint, allow_plaintext, err);

	/* Users that the rights name must reach the socket; each is asked who he is (SO_PEERCRED). */
	if (result == 0 && endpoint->kind == ENDPOINT_UNIX && access_names_users(server->shared.access, geteuid()) &&
	    chmod(endpoint->path, 0666) < 0)
		log_warn("%s: other users cannot connect: %s", endpoint->path, strerror(errno));
	if (result == 0) {
		result = watch_listener(server, entry);
		if (result < 0) {
			dp_fail_errno(err, -result, "listen");
			listener_close(&entry->listener);
		}
	}
	if (result < 0) {
		free(entry);
		return result;
	}
	entry->next = server->listeners;
	server->listeners = entry;
	if (in_use)
		*in_use = &entry->listener.endpoint;
	return 0;
}

void server_let_sleep(struct server *server)
{
	awake_done(&server->shared.awake);
}

void server_set_access(struct server *server, struct access *access)
{
	server->shared.access = access;
}

void server_set_connection_limits(struct server *server, unsigned connections, unsigned per_peer)
{
	server->connection_limit = connections;
	server->peer_limit = per_peer;
}

void server_set_idle_exit(struct server *server, uint64_t idle_ns)
{
	server->idle_exit_ns = idle_ns;
}

void server_stop(struct server *server)
{
	uint64_t one = 1;
	ssize_t ignored = write(server->stop_fd, &one, sizeof(one));

	(void)ignored; /* full means that it was said already */
}

/* ---- connections ---- */

/* Is there room for one more of this peer? Logs where there is none. */
static bool admits(struct server *server, const struct connection *fresh)
{
	unsigned same = 0, same_strangers = 0;
	const char *why = NULL;

	for (const struct connection *connection = server->connections; connection; connection = connection->next) {
		bool is_same = strcmp(connection->peer.host, fresh->peer.host) == 0;

		same += is_same;
		same_strangers += is_same && !connection->hello;
	}
	if (server->shared.connections > server->connection_limit)
		why = "as many connections as --max-connections allows";
	else if (same >= server->peer_limit)
		why = "as many connections of this peer as --max-connections-per-peer allows";
	else if (server->strangers >= SERVER_STRANGERS || same_strangers >= SERVER_STRANGERS_PER_PEER)
		why = "too many connections that have not said who they are";
	if (why && refusal_may_be_logged(&server->shared))
		log_warn("refused %s: there are %s", fresh->peer.place, why);
	return !why;
}

/* A peer that went before it said hello: what the handshake came to, or that there was none. */
static void log_stranger(struct server *server, const struct connection *connection, int result)
{
	const char *why = stream_why(connection->stream);

	if (connection->hello || connection->broken || (result == -EPIPE && !*why && !connection->stream->ops->why) ||
	    !refusal_may_be_logged(&server->shared))
		return;
	log_warn("refused %s: %s", connection->peer.place,
		 *why			? why
		 : result == -ETIMEDOUT ? "it did not say hello in time"
		 : result == -EPIPE	? "it left in the handshake"
					: strerror(-result));
}

static void drop_connection(struct server *server, struct connection *connection)
{
	server->strangers -= !connection->hello;
	if (connection->previous)
		connection->previous->next = connection->next;
	else
		server->connections = connection->next;
	if (connection->next)
		connection->next->previous = connection->previous;
	/* Closing the fd takes it out of the epoll set. */
	connection_free(connection);
	server->idle_since_ns = clock_now_ns();
	/* A descriptor is free again: listeners that were set aside may go on. */
	for (struct server_listener *entry = server->listeners; entry; entry = entry->next)
		if (!entry->watched)
			watch_listener(server, entry);
}

/* Tells epoll what the connection waits for now. */
static int update_events(struct server *server, struct connection *connection)
{
	uint32_t wanted = (connection_wants_read(connection) ? EPOLLIN : 0u) |
			  (connection_wants_write(connection) ? EPOLLOUT : 0u);
	struct epoll_event event = { .events = wanted, .data.ptr = connection };

	if (wanted == connection->events)
		return 0;
	if (epoll_ctl(server->epoll_fd, connection->events == UINT32_MAX ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, connection->stream->fd,
		      &event) < 0)
		return -errno;
	connection->events = wanted;
	return 0;
}

static void accept_all(struct server *server, struct server_listener *entry)
{
	int error = 0;
	struct stream *stream;

	while ((stream = listener_accept(&entry->listener, &error))) {
		struct connection *connection = connection_new(&server->shared, stream);

		if (!connection) {
			error = -ENOMEM;
			break;
		}
		if (!admits(server, connection)) {
			connection_free(connection);
			continue;
		}
		server->strangers++;
		connection->events = UINT32_MAX;
		connection->next = server->connections;
		if (server->connections)
			server->connections->previous = connection;
		server->connections = connection;
		if (update_events(server, connection) < 0)
			drop_connection(server, connection);
	}
	if (error) {
		/* Out of descriptors or memory: whoever waits goes on waiting, and we do not spin on him. */
		log_warn("cannot accept a connection: %s", strerror(-error));
		epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, entry->listener.fd, NULL);
		entry->watched = false;
	}
}

static void serve_connection(struct server *server, struct connection *connection, uint32_t events)
{
	bool hello = connection->hello;
	int result = 0;

	if (events & EPOLLOUT)
		result = connection_writable(connection);
	if (result == 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
		/* A peer that is gone while we wait to send to it: reading would not be tried, so take the event's word. */
		if (!connection_wants_read(connection) && (events & (EPOLLHUP | EPOLLERR)))
			result = -EPIPE;
		else if (connection_wants_read(connection))
			result = connection_readable(connection);
	}
	/* What the stream has already read; also what it had when we stopped reading for want of room for answers. */
	for (int i = 0;
	     i < PENDING_ROUNDS && result == 0 && connection_wants_read(connection) && stream_pending(connection->stream); i++)
		result = connection_readable(connection);
	server->strangers -= connection->hello && !hello;
	server->pending = server->pending ||
			  (result == 0 && connection_wants_read(connection) && stream_pending(connection->stream));
	if (result == 0)
		result = update_events(server, connection);
	if (result < 0) {
		log_stranger(server, connection, result);
		drop_connection(server, connection);
	}
}

/* One peer that sends without end must not keep the others from their turn: it goes on here, behind their events. */
static void serve_pending(struct server *server)
{
	struct connection *next;

	server->pending = false;
	for (struct connection *connection = server->connections; connection; connection = next) {
		next = connection->next;
		if (connection_wants_read(connection) && stream_pending(connection->stream))
			serve_connection(server, connection, EPOLLIN);
	}
}

/* Those that said no hello in time. */
static void drop_strangers(struct server *server, uint64_t now)
{
	struct connection *next;

	for (struct connection *connection = server->connections; connection; connection = next) {
		next = connection->next;
		if (!connection->hello && now - connection->accepted_ns > SERVER_HELLO_NS) {
			log_stranger(server, connection, -ETIMEDOUT);
			drop_connection(server, connection);
		}
	}
}

static void finish_commits(struct server *server)
{
	struct commit_job *job;

	server->commits_done = false;
	while ((job = committer_take(server->shared.committer))) {
		struct connection *connection = server->connections;

		/* Gone meanwhile: so is its draft. */
		while (connection && connection->id != job->connection_id)
			connection = connection->next;
		if (connection) {
			int result = connection_committed(connection, job);

			if (result == 0)
				result = update_events(server, connection);
			if (result < 0)
				drop_connection(server, connection);
		}
		free(job);
	}
}

/* ---- the loop ---- */

/* Instances that wait for somebody to attach are on the store's journal: whoever comes back starts a server that has them. */
static bool idle(const struct server *server)
{
	if (server->connections)
		return false;
	for (const struct object *object = server->shared.pool->all; object; object = object->next)
		if (object->kind == OBJECT_INSTANCE && !(object->lost_ns && object->journal))
			return false;
	return true;
}

static int loop_timeout_ms(const struct server *server)
{
	if (server->idle_exit_ns && idle(server)) {
		uint64_t now = clock_now_ns(), end = server->idle_since_ns + server->idle_exit_ns;

		return now >= end ? 0 : (int)((end - now) / 1000000 + 1);
	}
	if (server->pending)
		return 0;
	for (const struct server_listener *entry = server->listeners; entry; entry = entry->next)
		if (!entry->watched)
			return TICK_MS;
	if (server->shared.pool->lost_count || server->strangers)
		return TICK_MS;
	for (const struct connection *connection = server->connections; connection; connection = connection->next)
		if (connection->input_size > INPUT_SMALL_BYTES)
			return TICK_MS;
	return -1;
}

static int awake_timeout_ms(struct server *server, int timeout_ms)
{
	uint64_t rest_ns = awake_rest(&server->shared.awake, clock_now_ns());
	int rest_ms = rest_ns == UINT64_MAX ? -1 : (int)(rest_ns / 1000000 + 1);

	return rest_ms >= 0 && (timeout_ms < 0 || rest_ms < timeout_ms) ? rest_ms : timeout_ms;
}

static void tick(struct server *server)
{
	uint64_t now = clock_now_ns();

	server->ticked_ns = now;
	if (server->strangers)
		drop_strangers(server, now);
	if (server->shared.pool->lost_count)
		pool_expire(server->shared.pool);
	for (struct connection *connection = server->connections; connection; connection = connection->next)
		if (now - connection->last_active_ns > SHRINK_AFTER_NS)
			connection_shrink(connection);
	for (struct server_listener *entry = server->listeners; entry; entry = entry->next)
		if (!entry->watched)
			watch_listener(server, entry);
}

static void dispatch(struct server *server, const struct epoll_event *event)
{
	/* An event's data points at stop_fd, commits_done, watch_ready, a listener or a connection. */
	if (event->data.ptr == &server->stop_fd) {
		server->stopping = true;
		return;
	}
	if (event->data.ptr == &server->commits_done) {
		server->commits_done = true;
		return;
	}
	if (event->data.ptr == &server->watch_ready) {
		server->watch_result = server->watch_ready(server->watch_context);
		return;
	}
	for (struct server_listener *entry = server->listeners; entry; entry = entry->next) {
		if (event->data.ptr == entry) {
			accept_all(server, entry);
			return;
		}
	}
	serve_connection(server, event->data.ptr, event->events);
}

int server_run(struct server *server)
{
	struct epoll_event events[EVENTS];

	while (!server->stopping) {
		int timeout_ms = awake_timeout_ms(server, loop_timeout_ms(server));
		int count = epoll_wait(server->epoll_fd, events, EVENTS, timeout_ms);

		if (count < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < count; i++)
			dispatch(server, &events[i]);
		if (server->watch_result < 0)
			return server->watch_result;
		/* Behind the others: this may close connections that the others are about. */
		if (server->commits_done)
			finish_commits(server);
		if (server->pending)
			serve_pending(server);
		bool late = (server->shared.pool->lost_count || server->strangers) &&
			    clock_now_ns() - server->ticked_ns > TICK_MS * UINT64_C(1000000);

		if (count <= 0 || late)
			tick(server);
		if (server->idle_exit_ns && idle(server) && clock_now_ns() - server->idle_since_ns >= server->idle_exit_ns)
			return 0;
	}
	return 0;
}

void server_close(struct server *server)
{
	if (!server)
		return;
	/* Socket files go first: whoever connects from now on is to find nobody rather than a closing door. */
	while (server->listeners) {
		struct server_listener *entry = server->listeners;

		server->listeners = entry->next;
		listener_close(&entry->listener);
		free(entry);
	}
	while (server->connections)
		drop_connection(server, server->connections);
	committer_free(server->shared.committer);
	connection_shared_done(&server->shared);
	awake_done(&server->shared.awake);
	dp_close_fd(&server->epoll_fd);
	dp_close_fd(&server->stop_fd);
	free(server);
}
