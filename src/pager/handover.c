/* Takes the userfaultfds over from an unmodified CRIU, in the place of its lazy-pages daemon.
 *
 * What CRIU sends (criu/uffd.c of CRIU 4.2): for each task 4 bytes of pid and one byte with the descriptor (SCM_RIGHTS), sent by
 * the task itself, so that the kernel tells its real pid beside it; -pid for a zombie, without a descriptor; in the end a
 * magic number, and end of file when CRIU exits. Faults may come at once: they are served from the first descriptor on. */
#include "pager/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/log.h"
#include "image/images.h"
#include "sys/proc.h"
#include "sys/uffd_abi.h"

#define FINISHED 0x52535446

/* The first look at a tree's areas and size waits, while it is far from its budget: what it touches first comes before that. */
#define FIRST_WATCH_NS (25u * 1000 * 1000)
#define FIRST_WATCH_FULL_NS (2u * 1000 * 1000)

static int add_registered(struct space *space, int images_fd, struct dp_err *err)
{
	cleanup_free struct image_vma *vmas = NULL;
	size_t count;
	int ret = images_read_mm(images_fd, space->vpid, &vmas, &count, err);
	for (size_t i = 0; !ret && i < count; i++)
		if (image_vma_may_be_lazy(&vmas[i]))
			ret = rangeset_add(&space->registered, vmas[i].start, vmas[i].end);
	for (size_t i = 0; !ret && i < count; i++)
		if (vmas[i].madv >> MADV_WIPEONFORK & 1)
			ret = rangeset_add(&space->wipe, vmas[i].start, vmas[i].end);
	return ret;
}

/* Pages that CRIU fills. */
static int add_eager(struct space *space, const struct image_run *run)
{
	for (uint64_t pgno = run->pgno; pgno < run->pgno + run->pages; pgno++) {
		if (!rangeset_contains(&space->registered, pgno << PAGE_SHIFT))
			continue;
		uint32_t page = table_make(&space->table, pgno);
		if (page == NO_PAGE)
			return -ENOMEM;
		table_change(&space->table, page, PAGE_LOCAL, 0, 0);
		table_enqueue(&space->table, page, QUEUE_SMALL);
	}
	return 0;
}

/* The page map: lazy pages are remote; the others of watched areas were filled by CRIU. All remote ones are known before the
 * first other is made: with it come its neighbours, as what they are known as by then (zero, where they are not). */
static int add_pages(struct space *space, int images_fd, struct dp_err *err)
{
	char name[64];
	struct image_pagemap map = { 0 };
	snprintf(name, sizeof(name), "pagemap-%d.img", space->vpid);
	int ret = images_read_pagemap(images_fd, name, &map, err);
	for (size_t i = 0; !ret && i < map.count; i++)
		if (map.runs[i].flags & PAGEMAP_LAZY)
			ret = rangeset_add(&space->table.initial, map.runs[i].pgno, map.runs[i].pgno + map.runs[i].pages);
	space->table.counts[PAGE_REMOTE] = space->table.initial.total;
	for (size_t i = 0; !ret && i < map.count; i++)
		if (!(map.runs[i].flags & PAGEMAP_LAZY))
			ret = add_eager(space, &map.runs[i]);
	image_pagemap_done(&map);
	return ret;
}

static void take_over(struct tree *tree, int vpid, int uffd, pid_t pid, int pidfd)
{
	struct dp_err err = { "" };
	cleanup_fd int images_fd = open(tree->config->images_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct space *space = space_new(tree, uffd);
	int ret = space ? 0 : -ENOMEM;
	if (images_fd < 0)
		ret = dp_fail_errno(&err, errno, "open %s", tree->config->images_dir);
	if (!ret) {
		space->vpid = vpid;
		ret = tree->source->ops->find_space(tree->source, vpid, &space->source_space, &err);
	}
	if (!ret)
		ret = add_registered(space, images_fd, &err);
	if (!ret)
		ret = add_pages(space, images_fd, &err);
	if (!ret && pidfd < 0)
		pidfd = proc_pidfd_open(pid);
	if (!ret)
		ret = pidfd < 0 ? pidfd : space_set_pid(space, pid, pidfd);
	if (!ret)
		recover_space_complete(space, 0);
	if (ret) {
		tree_fail(tree, ret, "take over task %d: %s", vpid, err.text);
		return;
	}
	log_info("task %d is process %d: %lu pages remote", vpid, pid, space->table.counts[PAGE_REMOTE]);
}

struct arrival {
	int uffd, pidfd;
	pid_t pid;
};

static void read_control(struct msghdr *message, struct arrival *arrival)
{
	for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
		if (header->cmsg_level != SOL_SOCKET)
			continue;
		if (header->cmsg_type == SCM_RIGHTS)
			memcpy(&arrival->uffd, CMSG_DATA(header), sizeof(int));
		else if (header->cmsg_type == SCM_PIDFD)
			memcpy(&arrival->pidfd, CMSG_DATA(header), sizeof(int));
		else if (header->cmsg_type == SCM_CREDENTIALS) {
			struct ucred credentials;
			memcpy(&credentials, CMSG_DATA(header), sizeof(credentials));
			arrival->pid = credentials.pid;
		}
	}
}

/* Reads exactly `bytes` of the next message part. 1: read; 0: end of file; -EAGAIN. */
static int receive(struct tree *tree, void *buffer, size_t bytes, struct arrival *arrival)
{
	struct iovec data = { buffer, bytes };
	union {
		char bytes[CMSG_SPACE(sizeof(int)) * 2 + CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	*arrival = (struct arrival){ -1, -1, 0 };
	ssize_t got = recvmsg(tree->criu_fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (got < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	read_control(&message, arrival);
	if (got == 0)
		return 0;
	/* Four bytes of a stream that is written in one piece are never split here; if they are, the stream is not CRIU's. */
	return (size_t)got == bytes ? 1 : -EPROTO;
}

int handover_accept(struct tree *tree)
{
	int fd = accept4(tree->config->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return errno == EAGAIN ? 0 : -errno;
	if (tree->criu_fd >= 0 || tree->running) {
		close(fd);
		return 0;
	}
	int one = 1;
	setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_PASSPIDFD, &one, sizeof(one));
	tree->criu_fd = fd;
	return tree_watch_fd(tree, fd, &tree->criu_handle);
}

/* CRIU has gone: from here on the tree's memory is the pager's alone to look after. */
static void end_of_handover(struct tree *tree)
{
	close(tree->criu_fd);
	tree->criu_fd = -1;
	if (!tree->finished) {
		tree_fail(tree, -EPIPE, "CRIU ended before it had restored the tree");
		return;
	}
	tree->running = true;
	for (struct space *space = tree->spaces; space; space = space->next)
		through_protect(space);
	bool far = !tree->budget.budget_pages || tree_used_pages(tree) < tree->budget.budget_pages / 2;
	tree->next_watch_ns = clock_now_ns() + (far ? FIRST_WATCH_NS : FIRST_WATCH_FULL_NS);
	log_info("%zu tasks restored, running", tree->announced);
}

static void read_announcement(struct tree *tree, int32_t number)
{
	if ((uint32_t)number == FINISHED) {
		tree->finished = true;
		tree->saved->finished = 1;
		return;
	}
	tree->announced++;
	if (number > 0)
		tree->pending_vpid = number;
}

void handover_read(struct tree *tree)
{
	while (tree->criu_fd >= 0 && !tree->failure) {
		struct arrival arrival;
		int32_t number;
		char byte;
		bool descriptor = tree->pending_vpid > 0;
		int ret = descriptor ? receive(tree, &byte, 1, &arrival) : receive(tree, &number, sizeof(number), &arrival);
		if (ret == -EAGAIN)
			return;
		if (ret == 1 && descriptor && arrival.uffd >= 0) {
			int vpid = tree->pending_vpid;
			tree->pending_vpid = 0;
			take_over(tree, vpid, arrival.uffd, arrival.pid, arrival.pidfd);
			continue;
		}
		dp_close_fd(&arrival.pidfd);
		dp_close_fd(&arrival.uffd);
		if (ret == 1 && !descriptor)
			read_announcement(tree, number);
		else if (ret == 0 || ret == -ECONNRESET)
			end_of_handover(tree);
		else
			tree_fail(tree, ret < 0 ? ret : -EPROTO, "read CRIU's socket");
	}
}
