#include "transport/stream.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/base.h"
#include "base/log.h"
#include "transport/tls.h"

/* A peer that is gone without a word is noticed within about 20 s, also while we wait for its answer. */
#define KEEPALIVE_IDLE_S 10
#define KEEPALIVE_INTERVAL_S 3
#define KEEPALIVE_PROBES 3
#define USER_TIMEOUT_MS 20000

/* Large enough for a few whole parts of an answer, small enough that an urgent answer does not queue behind much. */
#define SOCKET_BUFFER_BYTES (1 << 20)

static ssize_t socket_sendv(struct stream *stream, const struct iovec *iov, int count)
{
	struct msghdr message = { .msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count };
	ssize_t sent;

	do
		sent = sendmsg(stream->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : sent;
}

static ssize_t socket_receive(struct stream *stream, void *buffer, size_t bytes)
{
	ssize_t got;

	do
		got = recv(stream->fd, buffer, bytes, MSG_DONTWAIT);
	while (got < 0 && errno == EINTR);
	return got < 0 ? -errno : got;
}

static void socket_close(struct stream *stream)
{
	close(stream->fd);
	free(stream);
}

static const struct stream_ops socket_ops = { .sendv = socket_sendv, .receive = socket_receive, .close = socket_close };

bool stream_is_network(const struct stream *stream)
{
	int domain = AF_UNIX;
	socklen_t length = sizeof(domain);

	return getsockopt(stream->fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain != AF_UNIX;
}

static void peer_by_user(int fd, struct stream_peer *peer)
{
	struct ucred user = { .uid = (uid_t)-1 };
	socklen_t length = sizeof(user);

	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &user, &length);
	snprintf(peer->host, sizeof(peer->host), "uid:%u", user.uid);
	snprintf(peer->place, sizeof(peer->place), "uid %u, process %d", user.uid, (int)user.pid);
	snprintf(peer->identity, sizeof(peer->identity), "%s", peer->host);
}

void stream_peer(const struct stream *stream, struct stream_peer *peer)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	char port[8];

	*peer = (struct stream_peer){ .host = "?", .place = "?" };
	snprintf(peer->identity, sizeof(peer->identity), "anonymous");
	if (!stream_is_network(stream)) {
		peer_by_user(stream->fd, peer);
	} else if (getpeername(stream->fd, (struct sockaddr *)&address, &length) == 0 &&
		   getnameinfo((struct sockaddr *)&address, length, peer->host, sizeof(peer->host), port, sizeof(port),
			       NI_NUMERICHOST | NI_NUMERICSERV) == 0) {
		snprintf(peer->place, sizeof(peer->place), strchr(peer->host, ':') ? "[%s]:%s" : "%s:%s", peer->host, port);
	}
	if (stream->ops->identity)
		stream->ops->identity(stream, peer->identity, sizeof(peer->identity));
}

void stream_close(struct stream *stream)
{
	if (stream)
		stream->ops->close(stream);
}

int stream_prepare_socket(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	int domain = AF_UNIX, on = 1;
	socklen_t length = sizeof(domain);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	/* Best effort, all of these: a socket without them works, only slower to notice or to carry. */
	getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
	if (domain == AF_UNIX) {
		int bytes = SOCKET_BUFFER_BYTES;

		if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) < 0)
			setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	} else {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
		setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &(int){ KEEPALIVE_IDLE_S }, sizeof(int));
		setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &(int){ KEEPALIVE_INTERVAL_S }, sizeof(int));
		setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &(int){ KEEPALIVE_PROBES }, sizeof(int));
		setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &(unsigned){ USER_TIMEOUT_MS }, sizeof(unsigned));
	}
	return 0;
}

struct stream *stream_from_socket(int fd)
{
	struct stream *stream = malloc(sizeof(*stream));

	if (!stream || stream_prepare_socket(fd) < 0) {
		free(stream);
		close(fd);
		return NULL;
	}
	*stream = (struct stream){ .ops = &socket_ops, .fd = fd };
	return stream;
}

/* A Unix address for a path of any length: a longer one is reached through its directory, opened as a path.
 * *directory_fd must stay open until the address was used; -1 where it was not needed. */
static int unix_address(const char *path, struct sockaddr_un *address, int *directory_fd)
{
	const char *slash = strrchr(path, '/');

	*directory_fd = -1;
	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) < sizeof(address->sun_path)) {
		memcpy(address->sun_path, path, strlen(path) + 1);
		return 0;
	}
	if (!slash || slash == path)
		return -ENAMETOOLONG;
	cleanup_free char *directory = strndup(path, (size_t)(slash - path));

	if (!directory)
		return -ENOMEM;
	*directory_fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (*directory_fd < 0)
		return -errno;
	int length = snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s", *directory_fd, slash + 1);

	return length >= (int)sizeof(address->sun_path) ? -ENAMETOOLONG : 0;
}

static int connect_unix(const char *path, int *fd)
{
	cleanup_fd int directory_fd = -1;
	cleanup_fd int socket_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un address;
	int result;

	if (socket_fd < 0)
		return -errno;
	result = unix_address(path, &address, &directory_fd);
	if (result < 0)
		return result;
	while (connect(socket_fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		if (errno != EINTR)
			return -errno;
	*fd = socket_fd;
	socket_fd = -1;
	return 0;
}

int stream_connect_unix(struct stream **stream, const char *path, struct dp_err *err)
{
	int fd = -1, result = connect_unix(path, &fd);

	if (result < 0)
		return dp_fail_errno(err, -result, "connect %s", path);
	*stream = stream_from_socket(fd);
	return *stream ? 0 : dp_fail_errno(err, ENOMEM, "connect %s", path);
}

/* Connects one address; -errno. */
static int connect_address(const struct addrinfo *address, uint64_t deadline_ns, int *fd)
{
	cleanup_fd int socket_fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int error = 0;
	socklen_t length = sizeof(error);

	if (socket_fd < 0)
		return -errno;
	if (connect(socket_fd, address->ai_addr, address->ai_addrlen) < 0) {
		if (errno != EINPROGRESS)
			return -errno;
		for (;;) {
			uint64_t now = clock_now_ns();
			struct pollfd poll_fd = { .fd = socket_fd, .events = POLLOUT };

			if (now >= deadline_ns)
				return -ETIMEDOUT;
			int ready = poll(&poll_fd, 1, (int)((deadline_ns - now) / 1000000 + 1));

			if (ready < 0 && errno != EINTR)
				return -errno;
			if (ready > 0)
				break;
		}
		if (getsockopt(socket_fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
			return -errno;
		if (error)
			return -error;
	}
	*fd = socket_fd;
	socket_fd = -1;
	return 0;
}

static int resolve(const struct endpoint *endpoint, bool passive, struct addrinfo **list, struct dp_err *err)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0) };
	char port[8];

	snprintf(port, sizeof(port), "%u", endpoint->port);
	int code = getaddrinfo(endpoint->host, port, &hints, list);

	if (code == EAI_SYSTEM)
		return dp_fail_errno(err, errno, "look up host %s", endpoint->host);
	if (code)
		return dp_fail(err, code == EAI_MEMORY ? ENOMEM : EHOSTUNREACH, "look up host %s: %s", endpoint->host,
			       gai_strerror(code));
	return 0;
}

static bool address_is_loopback(const struct sockaddr *address)
{
	if (address->sa_family == AF_INET)
		return (ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24) == 127;
	if (address->sa_family == AF_INET6)
		return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
	return false;
}

/* Plain TCP that leaves this host shows every page to whoever is in between. */
static int check_plaintext(const struct endpoint *endpoint, const struct addrinfo *list, struct dp_err *err)
{
	struct tls_settings settings;
	char text[1400];

	tls_settings_from_environment(&settings);
	for (; list; list = list->ai_next)
		if (!address_is_loopback(list->ai_addr) && !settings.allow_plaintext)
			return dp_fail(
				err, EACCES,
				"connect %s: refused beyond loopback, because nothing would be encrypted; write dps:// and give "
				"--psk-file or --tls-cert, --tls-key and --tls-ca, or pass --allow-plaintext on a private network",
				endpoint_pool_text(endpoint, text, sizeof(text)));
	return 0;
}

int stream_connect(struct stream **stream, const struct endpoint *endpoint, unsigned timeout_ms, struct dp_err *err)
{
	char text[1400];
	struct addrinfo *list = NULL;
	uint64_t deadline_ns = clock_now_ns() + (uint64_t)timeout_ms * 1000000;
	int fd = -1, result = -EHOSTUNREACH;

	if (endpoint->kind == ENDPOINT_UNIX)
		return stream_connect_unix(stream, endpoint->path, err);
	assert(endpoint->kind == ENDPOINT_TCP);
	result = resolve(endpoint, false, &list, err);
	if (result < 0)
		return result;
	if (!endpoint->tls && (result = check_plaintext(endpoint, list, err)) < 0) {
		freeaddrinfo(list);
		return result;
	}
	result = -EHOSTUNREACH;
	for (struct addrinfo *address = list; address && fd < 0; address = address->ai_next)
		result = connect_address(address, deadline_ns, &fd);
	freeaddrinfo(list);
	endpoint_pool_text(endpoint, text, sizeof(text));
	if (result < 0)
		return dp_fail_errno(err, -result, "connect %s", text);
	if (endpoint->tls)
		return tls_connect(stream, fd, endpoint->host, text, deadline_ns, err);
	*stream = stream_from_socket(fd);
	return *stream ? 0 : dp_fail_errno(err, ENOMEM, "connect %s", text);
}

/* ---- listening ---- */

static int listen_unix(struct listener *listener, struct dp_err *err)
{
	const char *path = listener->endpoint.path;
	cleanup_fd int directory_fd = -1;
	cleanup_fd int socket_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un address;
	struct stat status;
	int probe = -1, result;

	if (socket_fd < 0)
		return dp_fail_errno(err, errno, "socket");
	result = unix_address(path, &address, &directory_fd);
	if (result < 0)
		return dp_fail_errno(err, -result, "listen on %s", path);
	if (lstat(path, &status) == 0) {
		if (!S_ISSOCK(status.st_mode))
			return dp_fail(err, EADDRINUSE, "listen on %s: a file that is not a socket is in the way", path);
		result = connect_unix(path, &probe);
		if (result == 0) {
			close(probe);
			return dp_fail(err, EADDRINUSE, "listen on %s: another server listens there", path);
		}
		if (result == -ECONNREFUSED)
			unlink(path);
	}
	/* Only the owner may connect: pages of processes are at stake. fchmod before bind sets the file's mode without a gap. */
	fchmod(socket_fd, 0600);
	if (bind(socket_fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return dp_fail_errno(err, errno, "listen on %s", path);
	if (listen(socket_fd, SOMAXCONN) < 0)
		return dp_fail_errno(err, errno, "listen on %s", path);
	listener->unlink_path = true;
	listener->fd = socket_fd;
	socket_fd = -1;
	return 0;
}

static int listen_address(struct listener *listener, const struct addrinfo *address, struct dp_err *err)
{
	cleanup_fd int socket_fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_storage bound;
	socklen_t length = sizeof(bound);
	char text[1400];
	int on = 1;

	endpoint_pool_text(&listener->endpoint, text, sizeof(text));
	if (socket_fd < 0)
		return dp_fail_errno(err, errno, "socket");
	setsockopt(socket_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(socket_fd, address->ai_addr, address->ai_addrlen) < 0 || listen(socket_fd, SOMAXCONN) < 0 ||
	    getsockname(socket_fd, (struct sockaddr *)&bound, &length) < 0)
		return dp_fail_errno(err, errno, "listen on %s", text);
	listener->endpoint.port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port :
								      ((struct sockaddr_in *)&bound)->sin_port);
	listener->fd = socket_fd;
	socket_fd = -1;
	return 0;
}

static int listen_tcp(struct listener *listener, bool allow_plaintext, struct dp_err *err)
{
	const struct tls_module *module;
	struct addrinfo *list = NULL;
	char text[1400];
	int result = resolve(&listener->endpoint, true, &list, err);

	if (result < 0)
		return result;
	endpoint_pool_text(&listener->endpoint, text, sizeof(text));
	if (listener->endpoint.tls) {
		result = tls_context(&module, &listener->tls, true, err);
		if (result < 0)
			dp_err_doing(err, "listen on %s", text);
	} else if (!address_is_loopback(list->ai_addr)) {
		if (allow_plaintext)
			log_warn("listening on %s without encryption: whoever reaches it can read and change every page", text);
		else
			result = dp_fail(
				err, EACCES,
				"listen on %s: refused beyond loopback, because nothing would be encrypted; write dps:// and give "
				"--psk-file or --tls-cert, --tls-key and --tls-ca, or pass --allow-plaintext on a private network",
				text);
	}
	if (result == 0)
		result = listen_address(listener, list, err);
	freeaddrinfo(list);
	return result;
}

int listener_open(struct listener *listener, const struct endpoint *endpoint, bool allow_plaintext, struct dp_err *err)
{
	*listener = (struct listener){ .fd = -1, .endpoint = *endpoint };
	return endpoint->kind == ENDPOINT_UNIX ? listen_unix(listener, err) : listen_tcp(listener, allow_plaintext, err);
}

/* The handshake is made while the stream is read from. */
static struct stream *accept_tls(const struct listener *listener, int fd)
{
	const struct tls_module *module;

	if (tls_load(&module, NULL) < 0 || stream_prepare_socket(fd) < 0) {
		close(fd);
		return NULL;
	}
	return module->stream_new(listener->tls, fd, true, NULL);
}

struct stream *listener_accept(struct listener *listener, int *error)
{
	int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	*error = 0;
	if (fd < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			*error = -errno;
		return NULL;
	}
	struct stream *stream = listener->tls ? accept_tls(listener, fd) : stream_from_socket(fd);

	if (!stream)
		*error = -ENOMEM;
	return stream;
}

void listener_close(struct listener *listener)
{
	if (listener->unlink_path)
		unlink(listener->endpoint.path);
	if (listener->fd >= 0)
		close(listener->fd);
	listener->fd = -1;
	listener->unlink_path = false;
}
