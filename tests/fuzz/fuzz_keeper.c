/* What a pager hands its supervisor: messages of any kind, key and length, with descriptors and without. Whatever comes, nothing
 * that is kept is lost without a release, and nothing is kept twice. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/base.h"
#include "instance/keeper.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void say(int socket_fd, const void *bytes, size_t count, int passed, unsigned passed_count)
{
	union {
		char bytes[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	const int both[2] = { passed, passed };
	struct iovec part = { (void *)bytes, count };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	if (passed_count) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(passed_count * sizeof(int));
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);

		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(passed_count * sizeof(int));
		memcpy(CMSG_DATA(header), both, passed_count * sizeof(int));
	}
	sendmsg(socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void check(const struct keeper *keeper)
{
	for (size_t i = 0; i < keeper->count; i++) {
		assert(fcntl(keeper->kept[i].fd, F_GETFD) >= 0);
		for (size_t k = 0; k < i; k++)
			assert(keeper->kept[k].key != keeper->kept[i].key || keeper->kept[k].kind != keeper->kept[i].kind);
	}
	assert(memchr(keeper->text, 0, sizeof(keeper->text)));
}

/* A message is a byte (lower half: its length in quarters of a header, upper: descriptors), then its bytes. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int passed = -1;
	static uint8_t bytes[2048];
	struct keeper keeper;
	int pager_end;

	if (passed < 0)
		passed = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (passed < 0 || keeper_init(&keeper, &pager_end, NULL) < 0)
		abort();
	for (unsigned messages = 0; size && messages < 64; messages++) {
		uint8_t how = *data++;
		size_t length = (how & 15) == 15 ? sizeof(bytes) : (size_t)(how & 15) * 4;

		size--;
		size_t there = DP_MIN(length, size);

		memset(bytes, 'x', sizeof(bytes));
		memcpy(bytes, data, there);
		data += there;
		size -= there;
		say(pager_end, bytes, length, passed, (how >> 4) % 3);
		if (keeper_receive(&keeper) == -EPIPE)
			break;
		check(&keeper);
	}
	close(pager_end);
	while (keeper_receive(&keeper) == -EBADMSG)
		;
	assert(keeper.socket_fd < 0);
	check(&keeper);
	keeper_done(&keeper);
	return 0;
}
