/* The receiver of CRIU's page stream against any bytes: it ends with an error or in good order, hands on only pages that lie in
 * ascending order within user memory, and never more than were sent. Corpus: corpus/page-stream. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/base.h"
#include "checkpoint/page_receiver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct seen {
	bool open;
	uint64_t next_pgno, pages;
};

static int see_open(void *context, bool shared_memory, uint32_t id, struct dp_err *err)
{
	struct seen *seen = context;
	assert(id != 0);
	seen->open = true;
	seen->next_pgno = 0;
	return 0;
}

static int see_pages(void *context, bool lazy, uint64_t pgno, uint64_t pages, const void *bytes, struct dp_err *err)
{
	struct seen *seen = context;
	assert(seen->open && pages > 0 && pages <= PAGE_CHUNK_PAGES && pgno >= seen->next_pgno &&
	       pgno + pages <= UINT64_C(1) << 35);
	seen->next_pgno = pgno + pages;
	seen->pages += pages;
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int pair[2];
	if (size > 65536) /* must fit into the socket, nobody reads meanwhile */
		return 0;
	signal(SIGPIPE, SIG_IGN);
	/* Nonblocking: nobody reads the answers either, and thousands of them do not fit. Then it ends as where its peer is
	 * gone. */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	if (size > 0 && io_write_full(pair[1], data, size) < 0)
		abort();
	shutdown(pair[1], SHUT_WR);
	struct seen seen = {0};
	const struct page_sink sink = {.context = &seen, .open = see_open, .pages = see_pages};
	int rc = page_receiver_run(pair[0], &sink, NULL);
	assert(rc == 0 || rc == -ECANCELED || rc == -EPROTO);
	assert(seen.pages * PAGE_BYTES <= size);
	close(pair[0]);
	close(pair[1]);
	return 0;
}
