/* A pager's control socket against callers that say anything, several at once, in any order, and write anything into the memory
 * through which pages are pushed. A step: a byte (lower half: which caller; upper half: what), then what belongs to it. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/base.h"
#include "pager/control.h"
#include "pager/tree.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CALLERS 3u
#define STEPS 200u

static int put_result;
static uint64_t puts_made;
static volatile uint8_t read_sum;

static int put(struct source *source, uint64_t space, const struct page_range *ranges, size_t count, const struct iovec *data,
	       size_t data_count, uint64_t cookie)
{
	uint64_t pages = 0, bytes = 0;

	for (size_t i = 0; i < count; i++) {
		assert(ranges[i].pages && ranges[i].pgno + ranges[i].pages <= PGNO_END);
		assert(i == 0 || ranges[i - 1].pgno + ranges[i - 1].pages < ranges[i].pgno);
		pages += ranges[i].pages;
	}
	for (size_t i = 0; i < data_count; i++) {
		bytes += data[i].iov_len;
		read_sum = ((const uint8_t *)data[i].iov_base)[data[i].iov_len - 1];
	}
	assert(space == 7 && pages && bytes == pages * PAGE_BYTES);
	puts_made += put_result == 0;
	return put_result;
}

static const struct source_ops ops = { .put = put };

/* A space with pages in all the states that a caller may ask about. */
static void fill(struct space *space)
{
	static struct leaf leaves[8]; /* of our own: a sanitizer has to do with each page of what a table reserves */
	struct table *table = &space->table;
	static const uint8_t states[] = { PAGE_REMOTE, PAGE_LOCAL, PAGE_LOCAL, PAGE_IN_FLIGHT, PAGE_DAMAGED, PAGE_ZERO };

	memset(leaves, 0, sizeof(leaves));
	if (table_init_at(table, leaves, NULL, NULL, NULL) < 0 || rangeset_add(&table->initial, 4090, 4110) < 0)
		abort();
	table->counts[PAGE_REMOTE] = 20;
	for (uint64_t pgno = 64; pgno < 64 + 256; pgno++) {
		uint32_t page = table_make(table, pgno);

		assert(page != NO_PAGE);
		table_change(table, page, states[pgno % ARRAY_LENGTH(states)], pgno % 3 ? 0 : PAGE_HAS_COPY, 0);
	}
}

/* What was answered: read, so that nobody waits, with the descriptor beside it closed. */
static void hear(int fd)
{
	static uint8_t answer[sizeof(struct list_piece) + sizeof(struct heat_piece)];
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;

	for (;;) {
		struct iovec part = { answer, sizeof(answer) };
		struct msghdr message = {
			.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
		};
		int passed;

		if (recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0)
			return;
		assert(!(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)));
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);

		if (header) {
			memcpy(&passed, CMSG_DATA(header), sizeof(passed));
			close(passed);
		}
	}
}

static void call(struct tree *tree, int *far, unsigned caller)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	tree->control[caller].fd = pair[0];
	far[caller] = pair[1];
}

static void hang_up(struct tree *tree, int *far, unsigned caller)
{
	dp_close_fd(&far[caller]);
	control_serve(tree, &tree->control[caller].handle);
	assert(tree->control[caller].fd < 0 && tree->freezer != (int)caller);
}

struct input {
	const uint8_t *at, *end;
};

static uint8_t next(struct input *input)
{
	return input->at < input->end ? *input->at++ : 0;
}

/* Through a mapping of its own, as a committer does. */
static void write_window(struct tree *tree, struct input *input)
{
	if (!tree->propagation.window)
		return;
	struct push_window *window = mmap(NULL, sizeof(*window), PROT_READ | PROT_WRITE, MAP_SHARED, tree->propagation.window_fd,
					  0);

	assert(window != MAP_FAILED);
	window->space = next(input) % 3;
	uint8_t count = next(input);

	window->count = count == 0xff ? UINT64_MAX : count;
	for (unsigned i = 0; i < PUSH_PAGES && i < count; i++) {
		uint8_t low = next(input);

		window->pgno[i] = low == 0xff ? UINT64_MAX >> next(input) % 64 : 64 + (uint64_t)low;
		window->content[i][0] = next(input);
	}
	munmap(window, sizeof(*window));
}

static void step(struct tree *tree, int *far, struct input *input)
{
	uint8_t what = next(input);
	unsigned caller = (what & 15) % CALLERS;
	int freezer = tree->freezer;
	char text[100];

	switch (what >> 4) {
	case 0:
		hang_up(tree, far, caller);
		call(tree, far, caller);
		break;
	case 1:
		write_window(tree, input);
		break;
	case 2:
		propagate_on_done(tree, what & 1 ? -EIO : 0);
		break;
	case 3:
		put_result = what & 1 ? -EAGAIN : 0;
		break;
	default: {
		size_t length = next(input) % sizeof(text);

		length = DP_MIN(length, (size_t)(input->end - input->at));

		memcpy(text, input->at, length);
		input->at += length;
		if (!length || send(far[caller], text, length, MSG_NOSIGNAL) < 0)
			break;
		control_serve(tree, &tree->control[caller].handle);
	}
	}
	if (tree->freezing)
		control_work(tree);
	/* Nobody but who froze it thaws it. */
	assert(freezer < 0 || tree->freezer == freezer || (int)((what & 15) % CALLERS) == freezer);
	assert(tree->freezer < (int)CALLERS && tree->frozen == (tree->freezer >= 0) && (tree->frozen || !tree->freezing));
	assert(!tree->propagation.under_way || puts_made);
	for (caller = 0; caller < CALLERS; caller++)
		hear(far[caller]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct tree tree;
	static struct space space;
	static struct pager_stats stats;
	static uint8_t *buffer;
	struct source source = { .ops = &ops, .writable = true };
	struct pager_config config = { .source = &source, .pool_uris = { "dp://127.0.0.1:7400" }, .pool_uri_count = 1 };
	struct input input = { data, data + size };
	int far[CALLERS];

	if (!buffer && !(buffer = malloc((size_t)MOVE_PAGES * PAGE_BYTES)))
		abort();
	memset(&tree, 0, sizeof(tree));
	memset(&space, 0, sizeof(space));
	put_result = 0;
	puts_made = 0;
	tree.config = &config;
	tree.source = &source;
	tree.stats = &stats;
	tree.buffer = buffer;
	tree.running = true;
	tree.spaces = &space;
	tree.propagation.peer = -1;
	space.tree = &tree;
	space.number = 1;
	space.pid = getpid();
	space.source_space = 7;
	control_init(&tree);
	fill(&space);
	for (unsigned caller = 0; caller < CALLERS; caller++)
		call(&tree, far, caller);
	for (unsigned steps = 0; steps < STEPS && input.at < input.end; steps++)
		step(&tree, far, &input);
	for (unsigned caller = 0; caller < CALLERS; caller++)
		hang_up(&tree, far, caller);
	assert(!tree.frozen && !tree.failure);
	propagate_done(&tree);
	table_done(&space.table);
	return 0;
}
