#include "restore/processes.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "sys/proc.h"

union control {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(sizeof(int))];
};

int send_with_fd(int socket_fd, const void *message, size_t bytes, int fd)
{
	const struct iovec part = { (void *)(uintptr_t)message, bytes };
	return io_send_with_fd(socket_fd, &part, 1, fd, 0);
}

ssize_t receive_with_fd(int socket_fd, void *message, size_t bytes, int *fd)
{
	union control control;
	struct iovec part = { message, bytes };
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t got;
	*fd = -1;
	do
		got = recvmsg(socket_fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return errno == ECONNRESET ? 0 : -errno;
	struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
	if (rights && rights->cmsg_level == SOL_SOCKET && rights->cmsg_type == SCM_RIGHTS &&
	    rights->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(rights), sizeof(*fd));
	return got;
}

static int ascending(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

void close_all_but(const int *keep, size_t count)
{
	cleanup_free int *kept = calloc(count + 1, sizeof(*kept));
	size_t kept_count = kept ? count : 0;
	if (kept)
		memcpy(kept, keep, kept_count * sizeof(*kept));
	qsort(kept, kept_count, sizeof(*kept), ascending);
	unsigned next = 3;
	for (size_t i = 0; i < kept_count; i++) {
		if (kept[i] < (int)next)
			continue;
		if ((unsigned)kept[i] > next)
			close_range(next, (unsigned)kept[i] - 1, 0);
		next = (unsigned)kept[i] + 1;
	}
	close_range(next, UINT_MAX, 0);
}

/* Descendants of `spare` are few (a pager has none), so they are just listed and left out. */
static bool is_in(const pid_t *pids, ssize_t count, pid_t pid)
{
	for (ssize_t i = 0; i < count; i++)
		if (pids[i] == pid)
			return true;
	return false;
}

void kill_descendants(pid_t spare)
{
	for (;;) {
		cleanup_free pid_t *all = NULL;
		cleanup_free pid_t *spared = NULL;
		ssize_t count = proc_tree(getpid(), &all);
		ssize_t spared_count = spare ? proc_tree(spare, &spared) : 0;
		pid_t first = 0;
		for (ssize_t i = 1; i < count; i++) {
			if (all[i] == spare || is_in(spared, spared_count, all[i]))
				continue;
			kill(all[i], SIGKILL);
			if (!first)
				first = all[i];
		}
		if (!first)
			return;
		/* Children come before grandchildren in the list, so the first is a child of ours. */
		waitpid(first, NULL, __WALL);
	}
}
