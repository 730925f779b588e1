#include "checkpoint/push.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"

#define READ_PAGES 64u
#define TRIES 200u /* of a push that the pager puts off, a millisecond apart */

/* One round's state. */
struct round {
	struct push *push;
	struct list_piece piece;
	uint8_t content[READ_PAGES * PAGE_BYTES];
	int64_t pushed;
	uint64_t started_ns;
	pid_t opened; /* of which pagemap_fd is */
	int pagemap_fd;
};

void push_pace_init(struct push_pace *pace)
{
	*pace = (struct push_pace){ .pages = PUSH_LEAST_PAGES };
}

void push_pace_note(struct push_pace *pace, uint32_t pages, uint64_t took_ns)
{
	unsigned level = 0;
	if (pages < pace->pages)
		return; /* a window that was not full says nothing */
	while (level + 1 < PUSH_LEVELS && PUSH_LEAST_PAGES << level < pages)
		level++;
	uint64_t *smooth = &pace->page_ns[level], page_ns = took_ns / pages + 1;
	*smooth = *smooth ? (*smooth * 3 + page_ns) / 4 : page_ns;
	for (level = 0; level + 1 < PUSH_LEVELS && pace->page_ns[level]; level++)
		if (pace->page_ns[level + 1] && pace->page_ns[level + 1] * 5 > pace->page_ns[level] * 4)
			break;
	pace->pages = PUSH_LEAST_PAGES << level;
}

int push_open(struct push *push, int connection, struct dp_err *err)
{
	*push = (struct push){ .connection = connection };
	push_pace_init(&push->pace);
	push->window = propagate_open(connection, err);
	if (push->window)
		return 0;
	close(connection);
	push->connection = -1;
	return -EPROTO;
}

void push_close(struct push *push)
{
	propagate_close(push->window);
	if (push->connection >= 0)
		close(push->connection);
	*push = (struct push){ .connection = -1 };
}

static void sleep_ns(uint64_t ns)
{
	struct timespec time = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
	nanosleep(&time, NULL);
}

static int flush(struct round *round, struct dp_err *err)
{
	struct push *push = round->push;
	uint32_t count = (uint32_t)push->window->count;
	int ret = -EAGAIN;
	if (!count)
		return 0;
	for (unsigned try = 0; ret == -EAGAIN && try < TRIES; try++) {
		uint64_t before = clock_now_ns();
		ret = propagate_push(push->connection, err);
		if (ret == -EAGAIN)
			sleep_ns(1000000);
		else if (!ret)
			push_pace_note(&push->pace, count, clock_now_ns() - before);
	}
	push->window->count = 0;
	if (ret == -EAGAIN)
		return dp_fail(err, EAGAIN, "the pager takes no pages: another checkpoint is under way");
	if (ret)
		return ret;
	push->pushed_pages += count;
	round->pushed += count;
	if (push->rate_bytes) {
		uint64_t due_ns = (uint64_t)((double)round->pushed * PAGE_BYTES * 1e9 / (double)push->rate_bytes);
		uint64_t used_ns = clock_now_ns() - round->started_ns;
		if (due_ns > used_ns)
			sleep_ns(due_ns - used_ns);
	}
	return 0;
}

static int offer(struct round *round, const struct list_page *page, const uint8_t *content, struct dp_err *err)
{
	struct push_window *window = round->push->window;
	round->push->looked_pages++;
	if (page_is_zero(content) || (page->has_copy && page->hash == page_hash(content)))
		return 0;
	/* Ascending within a window: the pool takes a request's pages in that order. */
	bool behind = window->count && page->pgno > window->pgno[window->count - 1] && window->space == round->piece.space;
	int ret = window->count && !behind ? flush(round, err) : 0;
	if (ret)
		return ret;
	window->space = round->piece.space;
	window->pgno[window->count] = page->pgno;
	memcpy(window->content[window->count], content, PAGE_BYTES);
	window->count++;
	return window->count >= round->push->pace.pages ? flush(round, err) : 0;
}

/* Keeps the pages that are still there: reading one that has just been evicted would bring it back, and push another one out.
 * Where it cannot be told, all are. */
static size_t keep_present(const struct round *round, struct list_page *pages, size_t count)
{
	uint64_t entries[READ_PAGES];
	size_t kept = 0;
	for (size_t at = 0, run; at < count; at += run) {
		for (run = 1; at + run < count && pages[at + run].pgno == pages[at].pgno + run;)
			run++;
		ssize_t got = pread(round->pagemap_fd, entries, run * 8, (off_t)(pages[at].pgno * 8));
		if (got != (ssize_t)(run * 8))
			return count;
		for (size_t i = 0; i < run; i++)
			if (entries[i] >> 62) /* present or swapped out */
				pages[kept++] = pages[at + i];
	}
	return kept;
}

/* Reads pages of the list and offers them; those that are gone meanwhile are passed over. */
static int take_pages(struct round *round, struct list_page *pages, size_t count, struct dp_err *err)
{
	count = keep_present(round, pages, count);
	struct iovec local = { round->content, count * PAGE_BYTES }, remote[READ_PAGES];
	for (size_t i = 0; i < count; i++)
		remote[i] = (struct iovec){ (void *)(pages[i].pgno << PAGE_SHIFT), PAGE_BYTES };
	for (size_t done = 0; done < count;) {
		local = (struct iovec){ round->content + done * PAGE_BYTES, (count - done) * PAGE_BYTES };
		ssize_t got = process_vm_readv((pid_t)round->piece.pid, &local, 1, remote + done, count - done, 0);
		if (got < 0 && errno != EFAULT)
			return errno == ESRCH ? 0
					      : dp_fail_errno(err, errno, "read pages of process %ld", (long)round->piece.pid);
		size_t read = got < 0 ? 0 : (size_t)got / PAGE_BYTES;
		for (size_t i = done; i < done + read; i++) {
			int ret = offer(round, &pages[i], round->content + i * PAGE_BYTES, err);
			if (ret)
				return ret;
		}
		done += read + (read < count - done); /* the one that stopped it is not there */
	}
	return 0;
}

static int by_pgno(const void *first, const void *second)
{
	uint64_t a = ((const struct list_page *)first)->pgno, b = ((const struct list_page *)second)->pgno;
	return a < b ? -1 : a > b;
}

static int take_piece(struct round *round, struct dp_err *err)
{
	struct list_piece *piece = &round->piece;
	if (piece->pid <= 0 || !piece->count)
		return 0;
	if (round->opened != piece->pid) {
		char path[64];
		dp_close_fd(&round->pagemap_fd);
		snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)piece->pid);
		round->pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
		round->opened = (pid_t)piece->pid;
	}
	qsort(piece->page, piece->count, sizeof(piece->page[0]), by_pgno);
	int ret = 0;
	for (uint64_t at = 0; !ret && at < piece->count; at += READ_PAGES)
		ret = take_pages(round, piece->page + at, DP_MIN(piece->count - at, (uint64_t)READ_PAGES), err);
	return ret;
}

int64_t push_round(struct push *push, uint64_t until_ns, const volatile bool *stop, struct dp_err *err)
{
	struct round *round = calloc(1, sizeof(*round));
	int ret = 0;
	if (!round)
		return dp_fail(err, ENOMEM, "out of memory");
	round->push = push;
	round->started_ns = clock_now_ns();
	round->pagemap_fd = -1;
	push->window->count = 0;
	for (uint64_t space = UINT64_MAX, at = 0; space && !ret; space = round->piece.next_space, at = round->piece.next_at) {
		if ((stop && *stop) || clock_now_ns() > until_ns)
			ret = dp_fail(err, EINTR, "stopped");
		if (!ret)
			ret = propagate_list(push->connection, space, at, &round->piece, err);
		if (!ret)
			ret = take_piece(round, err);
	}
	if (!ret)
		ret = flush(round, err);
	int64_t pushed = round->pushed;
	dp_close_fd(&round->pagemap_fd);
	free(round);
	return ret ? ret : pushed;
}
