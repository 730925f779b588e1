#include "pager/source_criu.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/base.h"
#include "image/images.h"
#include "pager/lazy_spaces.h"

#define COMMAND_MASK 0xffffu
#define COMMAND_ADD 6u
#define COMMAND_GET 7u
#define COMMAND_CLOSE 0x1023u
#define FLAGS_SHIFT 16
#define ASKS 2048u            /* power of two; GETs on the wire or waiting to be sent */
#define GETS 256u             /* calls of get() under way */
#define BUFFER_BYTES (1u << 20)
#define TURN_BYTES (4u << 20) /* read at most, before the pager looks at its faults again */
#define END_WITHIN_MS 20000

struct criu_header {
	uint32_t command, pad;
	uint64_t pages, address, task;
};
_Static_assert(sizeof(struct criu_header) == 32, "CRIU 4.2's struct page_server_iov");

/* One GET on its way, in the order of the answers. */
struct ask {
	uint32_t get;
	int vpid;
	uint64_t pgno, image_pgno, pages;
};

struct get_state {
	uint64_t cookie, pages; /* not answered yet; 0: free */
};

struct source_criu {
	struct source source;
	struct stream *stream;
	struct lazy_spaces spaces;
	struct ask ask[ASKS];
	uint64_t ask_head, ask_tail;  /* counted without end; head is answered next */
	uint64_t ask_sent_bytes;      /* of all headers since the first ask */
	uint64_t reply_pages;         /* of the answer under way, not come yet */
	struct get_state gets[GETS];
	uint32_t get_free[GETS], get_free_count;
	uint8_t *buffer;
	size_t filled;
	uint64_t bytes_in, bytes_out;
	bool deaf;                    /* the session ends: what comes is thrown away */
	int failure;
};

static struct source_criu *of(const struct source *source)
{
	return (struct source_criu *)source;
}

/* ---- sending ---- */

/* The asks are their own send queue: each is 32 bytes of the stream. */
static int flush(struct source_criu *criu)
{
	while (criu->ask_sent_bytes < criu->ask_tail * sizeof(struct criu_header)) {
		struct criu_header headers[64];
		uint64_t first = criu->ask_sent_bytes / sizeof(struct criu_header), count = DP_MIN(criu->ask_tail - first, 64);
		for (uint64_t i = 0; i < count; i++) {
			const struct ask *ask = &criu->ask[(first + i) % ASKS];
			headers[i] = (struct criu_header){ COMMAND_GET, 0, ask->pages, ask->image_pgno << PAGE_SHIFT,
							   (uint64_t)ask->vpid };
		}
		size_t skip = criu->ask_sent_bytes % sizeof(struct criu_header);
		struct iovec part = { (uint8_t *)headers + skip, count * sizeof(struct criu_header) - skip };
		ssize_t sent = stream_sendv(criu->stream, &part, 1);
		if (sent == -EAGAIN)
			return 0;
		if (sent < 0)
			return (int)sent;
		criu->ask_sent_bytes += (uint64_t)sent;
		criu->bytes_out += (uint64_t)sent;
	}
	return 0;
}

static void push(struct source_criu *criu, struct ask ask)
{
	assert(criu->ask_tail - criu->ask_head < ASKS);
	criu->ask[criu->ask_tail++ % ASKS] = ask;
}

static int get(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count,
	       uint64_t cookie)
{
	struct source_criu *criu = of(source);
	uint64_t tail = criu->ask_tail, pages = 0;
	int ret = criu->failure;
	if (!ret && !criu->get_free_count)
		ret = -EAGAIN;
	uint32_t number = ret ? 0 : criu->get_free[criu->get_free_count - 1];
	for (size_t i = 0; !ret && i < count; i++) {
		struct page_range left = ranges[i];
		while (!ret && left.pages) {
			struct lazy_piece piece;
			ret = lazy_spaces_find(&criu->spaces, space, left, &piece);
			if (!ret && criu->ask_tail - criu->ask_head >= ASKS - 1)
				/* one stays free for the rest of a short answer, whose own ask leaves only afterwards */
				ret = -EAGAIN;
			if (ret)
				break;
			push(criu, (struct ask){ number, piece.task->vpid, piece.pgno, piece.image_pgno, piece.pages });
			left.pgno += piece.pages;
			left.pages -= piece.pages;
			pages += piece.pages;
		}
	}
	if (ret || !pages) {
		criu->ask_tail = tail;
		return ret;
	}
	criu->get_free_count--;
	criu->gets[number] = (struct get_state){ cookie, pages };
	return flush(criu);
}

/* ---- receiving ---- */

static int take_header(struct source_criu *criu, const struct criu_header *header)
{
	if (criu->ask_head == criu->ask_tail)
		return -EPROTO;
	struct ask *ask = &criu->ask[criu->ask_head % ASKS];
	bool present = header->command >> FLAGS_SHIFT & PAGEMAP_PRESENT;
	if ((header->command & COMMAND_MASK) != COMMAND_ADD || !present || header->address != ask->image_pgno << PAGE_SHIFT ||
	    header->task != (uint64_t)ask->vpid || !header->pages || header->pages > ask->pages)
		return -EPROTO;
	criu->reply_pages = header->pages;
	if (header->pages == ask->pages)
		return 0;
	/* The server's piece ends here. There is room: see get(). */
	struct ask rest = *ask;
	rest.pgno += header->pages;
	rest.image_pgno += header->pages;
	rest.pages -= header->pages;
	ask->pages = header->pages;
	push(criu, rest);
	return 0;
}

static void take_pages(struct source_criu *criu, const uint8_t *data, uint64_t pages)
{
	struct ask *ask = &criu->ask[criu->ask_head % ASKS];
	struct get_state *state = &criu->gets[ask->get];
	struct page_range range = { ask->pgno, pages };
	uint64_t cookie = state->cookie;
	state->pages -= pages;
	bool last = !state->pages;
	if (last)
		criu->get_free[criu->get_free_count++] = ask->get;
	ask->pgno += pages;
	criu->reply_pages -= pages;
	if (!criu->reply_pages)
		criu->ask_head++;
	if (!criu->deaf)
		criu->source.handler.on_pages(criu->source.handler.context, cookie, range, data, last);
}

/* Hands over what is complete in the buffer. Calls made, or an error. */
static int parse(struct source_criu *criu)
{
	size_t at = 0;
	int calls = 0;
	for (;;) {
		size_t left = criu->filled - at;
		if (!criu->reply_pages) {
			struct criu_header header;
			if (left < sizeof(header))
				break;
			memcpy(&header, criu->buffer + at, sizeof(header));
			int ret = take_header(criu, &header);
			if (ret)
				return ret;
			at += sizeof(header);
			continue;
		}
		uint64_t pages = DP_MIN(left / PAGE_BYTES, criu->reply_pages);
		if (!pages)
			break;
		take_pages(criu, criu->buffer + at, pages);
		at += pages * PAGE_BYTES;
		calls++;
	}
	criu->filled -= at;
	memmove(criu->buffer, criu->buffer + at, criu->filled);
	return calls;
}

static int receive(struct source *source)
{
	struct source_criu *criu = of(source);
	int calls = 0, ret = criu->failure ? criu->failure : flush(criu);
	for (size_t read_bytes = 0; !ret && read_bytes < TURN_BYTES;) {
		ssize_t got = stream_receive(criu->stream, criu->buffer + criu->filled, BUFFER_BYTES - criu->filled);
		if (got == -EAGAIN)
			break;
		if (got <= 0) {
			ret = got ? (int)got : -ECONNRESET;
			break;
		}
		criu->filled += (size_t)got;
		criu->bytes_in += (uint64_t)got;
		read_bytes += (size_t)got;
		int made = parse(criu);
		if (made < 0)
			ret = made;
		else
			calls += made;
	}
	if (!ret)
		ret = flush(criu); /* the rests */
	criu->failure = ret;
	return ret ? ret : calls;
}

/* ---- the rest of the source ---- */

static int find_space(struct source *source, int vpid, uint64_t *space, struct dp_err *err)
{
	return lazy_spaces_open(&of(source)->spaces, vpid, space, err);
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	return lazy_spaces_move(&of(source)->spaces, space, from_pgno, to_pgno, pages);
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	return lazy_spaces_fork(&of(source)->spaces, parent, child);
}

static int space_free(struct source *source, uint64_t space, uint64_t cookie)
{
	lazy_spaces_free(&of(source)->spaces, space);
	return 0;
}

static int fd(const struct source *source)
{
	return of(source)->stream->fd;
}

static bool wants_write(const struct source *source)
{
	return of(source)->ask_sent_bytes < of(source)->ask_tail * sizeof(struct criu_header);
}

static void bytes(const struct source *source, uint64_t *in, uint64_t *out)
{
	*in = of(source)->bytes_in;
	*out = of(source)->bytes_out;
}

static void source_free(struct source *source)
{
	struct source_criu *criu = of(source);
	stream_close(criu->stream);
	lazy_spaces_done(&criu->spaces);
	free(criu->buffer);
	free(criu);
}

static const struct source_ops criu_ops = {
	.find_space = find_space,
	.get = get,
	.move = move,
	.fork = fork_space,
	.space_free = space_free,
	.receive = receive,
	.fd = fd,
	.wants_write = wants_write,
	.bytes = bytes,
	.free = source_free,
};

static int add_run(void *context, struct lazy_task *task, const struct image_pagemap *map, const struct image_run *run,
		   struct dp_err *err)
{
	return lazy_task_add(task, run->pgno, run->pages, NULL);
}

static void set_reset_on_close(int socket_fd, bool reset)
{
	struct linger linger = { .l_onoff = reset, .l_linger = 0 };
	setsockopt(socket_fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

int source_criu_new(struct source **source, int images_fd, struct stream *stream, struct dp_err *err)
{
	struct source_criu *criu = calloc(1, sizeof(*criu));
	set_reset_on_close(stream->fd, true);
	if (criu)
		criu->buffer = malloc(BUFFER_BYTES);
	if (!criu || !criu->buffer) {
		free(criu);
		stream_close(stream);
		return dp_fail(err, ENOMEM, "out of memory");
	}
	criu->source.ops = &criu_ops;
	criu->stream = stream;
	for (uint32_t i = 0; i < GETS; i++)
		criu->get_free[criu->get_free_count++] = GETS - 1 - i;
	int ret = lazy_spaces_load(&criu->spaces, images_fd, add_run, NULL, err);
	if (ret) {
		source_free(&criu->source);
		return ret;
	}
	*source = &criu->source;
	return 0;
}

/* ---- the end of the session ---- */

static int wait_socket(struct source_criu *criu, short events, uint64_t deadline_ns)
{
	uint64_t now = clock_now_ns();
	struct pollfd wait = { .fd = criu->stream->fd, .events = events };
	if (now >= deadline_ns)
		return -ETIMEDOUT;
	int ret = poll(&wait, 1, (int)((deadline_ns - now) / 1000000u) + 1);
	return ret < 0 && errno != EINTR ? -errno : 0;
}

/* Reads what was asked for and is wanted no longer. */
static int drain(struct source_criu *criu, uint64_t deadline_ns)
{
	while (criu->ask_head < criu->ask_tail) {
		int ret = receive(&criu->source);
		if (ret < 0)
			return ret;
		if (!ret && criu->ask_head < criu->ask_tail)
			ret = wait_socket(criu, POLLIN | (wants_write(&criu->source) ? POLLOUT : 0), deadline_ns);
		if (ret < 0)
			return ret;
	}
	return 0;
}

static int send_command(struct source_criu *criu, uint32_t command, uint64_t deadline_ns)
{
	struct criu_header header = { .command = command };
	size_t done = 0;
	while (done < sizeof(header)) {
		struct iovec part = { (uint8_t *)&header + done, sizeof(header) - done };
		ssize_t sent = stream_sendv(criu->stream, &part, 1);
		if (sent < 0 && sent != -EAGAIN)
			return (int)sent;
		done += sent > 0 ? (size_t)sent : 0;
		int ret = sent == -EAGAIN ? wait_socket(criu, POLLOUT, deadline_ns) : 0;
		if (ret)
			return ret;
	}
	return 0;
}

static int read_status(struct source_criu *criu, uint64_t deadline_ns)
{
	int32_t status;
	if (criu->filled > sizeof(status))
		return -EPROTO;
	while (criu->filled < sizeof(status)) {
		ssize_t got = stream_receive(criu->stream, criu->buffer + criu->filled, sizeof(status) - criu->filled);
		if (got == 0 || (got < 0 && got != -EAGAIN))
			return got ? (int)got : -ECONNRESET;
		int ret = got == -EAGAIN ? wait_socket(criu, POLLIN, deadline_ns) : 0;
		if (ret)
			return ret;
		criu->filled += got > 0 ? (size_t)got : 0;
	}
	memcpy(&status, criu->buffer, sizeof(status));
	return status ? -EPROTO : 0;
}

int source_criu_end(struct source *source, struct dp_err *err)
{
	struct source_criu *criu = of(source);
	uint64_t deadline_ns = clock_now_ns() + END_WITHIN_MS * 1000000ull;
	criu->deaf = true;
	int ret = criu->failure ? criu->failure : drain(criu, deadline_ns);
	if (!ret)
		ret = send_command(criu, COMMAND_CLOSE, deadline_ns);
	if (!ret)
		ret = read_status(criu, deadline_ns);
	if (ret)
		return dp_fail_errno(err, -ret, "tell the page server that all pages have come");
	set_reset_on_close(criu->stream->fd, false);
	return 0;
}
