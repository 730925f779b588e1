#include "instance/keeper.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>

#include "base/base.h"

struct keeper_header {
	uint8_t kind;
	uint8_t zero[7];
	uint64_t key;
};

union keeper_control {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(sizeof(int))];
};

static int send_message(int socket_fd, enum keeper_kind kind, uint64_t key, int fd, const char *text)
{
	struct keeper_header header = { .kind = (uint8_t)kind, .key = key };
	const struct iovec parts[2] = {
		{ .iov_base = &header, .iov_len = sizeof(header) },
		{ .iov_base = (void *)(uintptr_t)text, .iov_len = text ? strlen(text) : 0 },
	};
	int ret = io_send_with_fd(socket_fd, parts, text ? 2 : 1, fd, 0);
	return ret == -ECONNRESET ? -EPIPE : ret;
}

int keeper_send(int socket_fd, enum keeper_kind kind, uint64_t key, int fd)
{
	return send_message(socket_fd, kind, key, fd, NULL);
}

int keeper_send_text(int socket_fd, const char *text)
{
	return send_message(socket_fd, KEEPER_TEXT, 0, -1, text);
}

bool keeper_is_there(int socket_fd)
{
	struct pollfd gone = { .fd = socket_fd };
	return socket_fd >= 0 && poll(&gone, 1, 0) == 0;
}

int keeper_init(struct keeper *keeper, int *pager_end, struct dp_err *err)
{
	*keeper = (struct keeper){ .socket_fd = -1 };
	return keeper_renew(keeper, pager_end, err);
}

int keeper_renew(struct keeper *keeper, int *pager_end, struct dp_err *err)
{
	int pair[2];
	if (keeper->socket_fd >= 0)
		close(keeper->socket_fd);
	keeper->socket_fd = -1;
	keeper->text[0] = 0;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return dp_fail_errno(err, errno, "socket pair for the pager");
	keeper->socket_fd = pair[0];
	*pager_end = pair[1];
	return 0;
}

static int keep(struct keeper *keeper, enum keeper_kind kind, uint64_t key, int fd)
{
	for (size_t i = 0; i < keeper->count; i++)
		if (keeper->kept[i].kind == kind && keeper->kept[i].key == key) {
			close(keeper->kept[i].fd);
			keeper->kept[i].fd = fd;
			return 0;
		}
	if (keeper->count == keeper->room) {
		size_t room = keeper->room ? keeper->room * 2 : 64;
		struct kept *larger = reallocarray(keeper->kept, room, sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		keeper->kept = larger;
		keeper->room = room;
	}
	keeper->kept[keeper->count++] = (struct kept){ .kind = kind, .key = key, .fd = fd };
	return 0;
}

static void release(struct keeper *keeper, uint64_t key)
{
	size_t left = 0;
	for (size_t i = 0; i < keeper->count; i++) {
		if (keeper->kept[i].key == key)
			close(keeper->kept[i].fd);
		else
			keeper->kept[left++] = keeper->kept[i];
	}
	keeper->count = left;
}

/* The one descriptor of a message, or -1. The room for one has padding into which the kernel puts a second: neither is kept. */
static int message_fd(struct msghdr *message)
{
	struct cmsghdr *rights = CMSG_FIRSTHDR(message);
	int fd[2];
	if (!rights || rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS)
		return -1;
	size_t bytes = DP_MIN(rights->cmsg_len - CMSG_LEN(0), sizeof(fd));
	memcpy(fd, CMSG_DATA(rights), bytes);
	if (bytes == sizeof(fd[0]))
		return fd[0];
	for (size_t i = 0; i < bytes / sizeof(fd[0]); i++)
		close(fd[i]);
	return -1;
}

static int take_message(struct keeper *keeper, const struct keeper_header *header, int fd, const char *text)
{
	switch (header->kind) {
	case KEEPER_UFFD:
	case KEEPER_PIDFD:
	case KEEPER_STATE:
	case KEEPER_HOLDER:
	case KEEPER_RING:
	case KEEPER_EVENT:
	case KEEPER_WARDEN:
		return fd < 0 ? -EBADMSG : keep(keeper, header->kind, header->key, fd);
	case KEEPER_RELEASE:
		if (fd >= 0)
			close(fd);
		release(keeper, header->key);
		return 0;
	case KEEPER_LOST:
		if (fd >= 0)
			close(fd);
		keeper->lost = true;
		return 0;
	case KEEPER_TEXT:
		if (fd >= 0)
			close(fd);
		snprintf(keeper->text, sizeof(keeper->text), "%s", text);
		return 0;
	default:
		if (fd >= 0)
			close(fd);
		return -EBADMSG;
	}
}

int keeper_receive(struct keeper *keeper)
{
	while (keeper->socket_fd >= 0) {
		struct keeper_header header;
		char text[sizeof(keeper->text)];
		struct iovec parts[2] = { { &header, sizeof(header) }, { text, sizeof(text) - 1 } };
		union keeper_control control;
		struct msghdr message = {
			.msg_iov = parts, .msg_iovlen = 2, .msg_control = &control, .msg_controllen = sizeof(control)
		};
		ssize_t got = recvmsg(keeper->socket_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			return 0;
		int code = got < 0 && errno != ECONNRESET ? -errno : -EPIPE;
		int fd = got < 0 ? -1 : message_fd(&message);
		if (got <= 0) {
			dp_close_fd(&fd); /* an empty message looks like the end, and may have brought one */
			close(keeper->socket_fd);
			keeper->socket_fd = -1;
			return code;
		}
		if ((size_t)got < sizeof(header)) {
			if (fd >= 0)
				close(fd);
			return -EBADMSG;
		}
		text[(size_t)got - sizeof(header)] = 0;
		code = take_message(keeper, &header, fd, text);
		if (code < 0)
			return code; /* a descriptor that could not be listed stays open on purpose: K1 */
	}
	return -EPIPE;
}

void keeper_kill(const struct keeper *keeper)
{
	for (size_t i = 0; i < keeper->count; i++)
		if (keeper->kept[i].kind == KEEPER_PIDFD)
			pidfd_send_signal(keeper->kept[i].fd, SIGKILL, NULL, 0);
}

void keeper_done(struct keeper *keeper)
{
	for (size_t i = 0; i < keeper->count; i++)
		close(keeper->kept[i].fd);
	free(keeper->kept);
	if (keeper->socket_fd >= 0)
		close(keeper->socket_fd);
	*keeper = (struct keeper){ .socket_fd = -1 };
}
