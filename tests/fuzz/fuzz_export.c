/* The page maps that a pager hands over its control socket, read by checkpoint: any bytes are refused, or lead to arrays that are
 * all there. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/base.h"
#include "pager/control.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void answer_with(int socket_fd, int file)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec text = { "ok", 2 };
	struct msghdr message = { .msg_iov = &text, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &file, sizeof(int));
	if (sendmsg(socket_fd, &message, MSG_NOSIGNAL) < 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int pair[2] = { -1, -1 };
	struct control_export export;
	struct dp_err err = { "" };
	char request[256];

	if (pair[0] < 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	cleanup_fd int file = memfd_create("export", MFD_CLOEXEC);

	if (file < 0 || io_write_full(file, data, size) < 0)
		abort();
	answer_with(pair[1], file);
	if (control_export(pair[0], &export, &err) == 0) {
		uint64_t sum = 0, bytes = 0;

		assert(export.pool_count <= CONTROL_POOLS);
		for (size_t i = 0; i < export.pool_count; i++)
			assert(memchr(export.pools[i].uri, 0, sizeof(export.pools[i].uri)));
		for (size_t i = 0; i < export.count; i++) {
			for (size_t at = 0; at < export.spaces[i].remote_count; at++)
				sum += export.spaces[i].remote[at].pages;
			for (size_t at = 0; at < export.spaces[i].copy_count; at++)
				sum += export.spaces[i].copies[at].pgno;
			bytes += export.spaces[i].remote_count * sizeof(struct page_range) +
				 export.spaces[i].copy_count * sizeof(struct control_copy);
		}
		assert(bytes <= size);
		(void)sum;
		control_export_done(&export);
	} else {
		assert(err.text[0]);
	}
	if (recv(pair[1], request, sizeof(request), 0) < 0) /* what was asked */
		abort();
	return 0;
}
