/* What a pager hands its supervisor: messages of any kind, key and length, with descriptors and without. Whatever comes, nothing
 * that is kept is lost without a release, nothing is kept twice, and no descriptor is left open that is not kept. The socket is
 * answered for here. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/base.h"
#include "descriptors.h"
#include "input.h"
#include "instance/keeper.h"

#define MESSAGES 64u

static uint8_t sent[2048];
static size_t sent_bytes;
static unsigned passed;
static bool waits, closed;

int __wrap_socketpair(int domain, int type, int protocol, int pair[2]);
int __wrap_socketpair(int domain, int type, int protocol, int pair[2])
{
	pair[0] = descriptor_open();
	pair[1] = descriptor_open();
	return 0;
}

/* As the kernel does: as many descriptors as there is room for, and room is counted without padding. */
static void pass(struct msghdr *message)
{
	size_t room = (message->msg_controllen - sizeof(struct cmsghdr)) / sizeof(int), count = DP_MIN(passed, room);
	struct cmsghdr *header = message->msg_control;

	for (size_t i = 0; i < count; i++) {
		int fd = descriptor_open();

		memcpy(CMSG_DATA(header) + i * sizeof(fd), &fd, sizeof(fd));
	}
	if (count)
		*header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET,
					    .cmsg_type = SCM_RIGHTS };
	message->msg_controllen = count ? DP_MIN(CMSG_SPACE(count * sizeof(int)), message->msg_controllen) : 0;
	message->msg_flags = passed > count ? MSG_CTRUNC : 0;
}

ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
	size_t at = 0;

	descriptor_check(fd);
	if (!waits) {
		message->msg_controllen = 0;
		errno = EAGAIN;
		return closed ? 0 : -1;
	}
	waits = false;
	for (size_t i = 0; i < message->msg_iovlen; i++) {
		size_t part = DP_MIN(message->msg_iov[i].iov_len, sent_bytes - at);

		memcpy(message->msg_iov[i].iov_base, sent + at, part);
		at += part;
	}
	pass(message);
	return (ssize_t)at;
}

static void check(const struct keeper *keeper)
{
	for (size_t i = 0; i < keeper->count; i++) {
		descriptor_check(keeper->kept[i].fd);
		for (size_t k = 0; k < i; k++)
			assert(keeper->kept[k].key != keeper->kept[i].key || keeper->kept[k].kind != keeper->kept[i].kind);
	}
	assert(memchr(keeper->text, 0, sizeof(keeper->text)));
}

/* A message is a byte (lower half: its length in quarters of a header, upper: descriptors), then its bytes. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, data + size };
	struct keeper keeper;
	int pager_end;

	waits = closed = false;
	if (keeper_init(&keeper, &pager_end, NULL) < 0)
		abort();
	for (unsigned messages = 0; input.at < input.end && messages < MESSAGES; messages++) {
		uint8_t how = next_byte(&input);

		sent_bytes = (how & 15) == 15 ? sizeof(sent) : (size_t)(how & 15) * 4;
		memset(sent, 'x', sizeof(sent));
		size_t there = DP_MIN(sent_bytes, (size_t)(input.end - input.at));

		next(&input, sent, there);
		passed = (how >> 4) % 3;
		waits = true;
		if (keeper_receive(&keeper) == -EPIPE)
			break;
		assert(!waits);
		check(&keeper);
	}
	close(pager_end);
	closed = true;
	assert(keeper.socket_fd < 0 || keeper_receive(&keeper) == -EPIPE);
	assert(keeper.socket_fd < 0);
	check(&keeper);
	keeper_done(&keeper);
	descriptors_forget();
	return 0;
}
