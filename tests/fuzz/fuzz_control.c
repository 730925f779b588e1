/* A pager's control socket against callers that say anything, several at once, in any order, and write anything into the memory
 * through which pages are pushed. A step: a byte (lower half: which caller; upper half: what), then what belongs to it.
 * Descriptors are numbers here: none may be left open, closed twice or used when it is closed; time is what the input says. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"
#include "descriptors.h"
#include "input.h"
#include "memory.h"
#include "pager/control.h"
#include "pager/tree.h"

#define CALLERS 3u
#define STEPS 24u
#define PAGEMAP 0x30000000

static int put_result;
static uint64_t puts_made, now_ns;
static volatile uint8_t read_sum;

/* A sanitizer looks at all that is copied. */
static void read_all(const void *bytes, size_t count)
{
	static uint8_t copy[1 << 16];

	assert(count <= sizeof(copy));
	memcpy(copy, bytes, count);
}

/* ---- descriptors, files, time ---- */

static char *exported;
static size_t exported_bytes;
static unsigned exports_left;
static const char *said; /* to whom recv is called for; NULL: it has hung up */
static size_t said_bytes;
static bool deaf;   /* nobody takes an answer */
static bool marked; /* damaged pages have been touched */

int __wrap_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags)
{
	return descriptor_open();
}

int __wrap_ftruncate64(int fd, off_t bytes);
int __wrap_ftruncate64(int fd, off_t bytes)
{
	descriptor_check(fd);
	return 0;
}

int __real_fcntl64(int fd, int command, long argument);
int __wrap_fcntl64(int fd, int command, long argument);
int __wrap_fcntl64(int fd, int command, long argument)
{
	return descriptor_is(fd) ? 0 : __real_fcntl64(fd, command, argument);
}

int __real_dup(int fd);
int __wrap_dup(int fd);
int __wrap_dup(int fd)
{
	if (!descriptor_is(fd))
		return __real_dup(fd);
	descriptor_check(fd);
	return descriptor_open();
}

/* The stream owns its descriptor from now on; what is written to it is the one file that is exported. After some there is no more
 * memory for any: they would be all that an input does. */
FILE *__real_fdopen(int fd, const char *mode);
FILE *__wrap_fdopen(int fd, const char *mode);
FILE *__wrap_fdopen(int fd, const char *mode)
{
	if (!descriptor_is(fd))
		return __real_fdopen(fd, mode);
	if (exports_left-- == 0) {
		exports_left = 0;
		errno = ENOMEM;
		return NULL;
	}
	close(fd);
	free(exported);
	exported = NULL;
	return open_memstream(&exported, &exported_bytes);
}

ssize_t __wrap_recv(int fd, void *buffer, size_t bytes, int flags);
ssize_t __wrap_recv(int fd, void *buffer, size_t bytes, int flags)
{
	size_t part = DP_MIN(bytes, said_bytes);

	descriptor_check(fd);
	if (!said)
		return 0;
	memcpy(buffer, said, part);
	return (ssize_t)part;
}

int __wrap_io_send_with_fd(int socket_fd, const struct iovec *parts, size_t count, int fd, int flags);
int __wrap_io_send_with_fd(int socket_fd, const struct iovec *parts, size_t count, int fd, int flags)
{
	descriptor_check(socket_fd);
	if (fd >= 0)
		descriptor_check(fd);
	for (size_t i = 0; i < count; i++)
		read_all(parts[i].iov_base, parts[i].iov_len);
	if (fd >= 0 && exported)
		read_all(exported, exported_bytes);
	return deaf ? -EAGAIN : 0;
}

/* Whose pid is asked for. */
ssize_t __real_io_read_file(const char *path, char **content, size_t limit_bytes);
ssize_t __wrap_io_read_file(const char *path, char **content, size_t limit_bytes);
ssize_t __wrap_io_read_file(const char *path, char **content, size_t limit_bytes)
{
	if (strncmp(path, "/proc/", 6) != 0)
		return __real_io_read_file(path, content, limit_bytes);
	*content = strdup("Name:\ttarget\nNSpid:\t4711\t12\nThreads:\t1\n");
	return *content ? (ssize_t)strlen(*content) : -ENOMEM;
}

/* The kernel's page map: entries of damaged pages are asked for. */
ssize_t __real_pread64(int fd, void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pread64(int fd, void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pread64(int fd, void *buffer, size_t bytes, off_t offset)
{
	uint64_t entry = marked ? UINT64_C(1) << 63 : 0;

	if (fd != PAGEMAP)
		return __real_pread64(fd, buffer, bytes, offset);
	assert(bytes == sizeof(entry));
	memcpy(buffer, &entry, sizeof(entry));
	return sizeof(entry);
}

uint64_t __wrap_clock_now_ns(void);
uint64_t __wrap_clock_now_ns(void)
{
	return now_ns;
}

/* ---- the pager ---- */

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
	static struct leaf leaves[8];
	struct table *table = &space->table;
	static const uint8_t states[] = { PAGE_REMOTE, PAGE_LOCAL, PAGE_LOCAL, PAGE_IN_FLIGHT, PAGE_DAMAGED, PAGE_ZERO };

	memset(leaves, 0, sizeof(leaves));
	if (table_init_at(table, leaves, NULL, NULL, NULL) < 0 || rangeset_add(&table->initial, 4090, 4110) < 0)
		abort();
	table->counts[PAGE_REMOTE] = 20;
	for (uint64_t pgno = 64; pgno < 64 + 100; pgno++) {
		uint32_t page = table_make(table, pgno);

		assert(page != NO_PAGE);
		table_change(table, page, states[pgno / 2 % ARRAY_LENGTH(states)], pgno % 3 ? 0 : PAGE_HAS_COPY, 0);
	}
}

/* ---- the callers ---- */

static void call(struct tree *tree, unsigned caller)
{
	tree->control[caller].fd = descriptor_open();
}

static void hang_up(struct tree *tree, unsigned caller)
{
	said = NULL;
	control_serve(tree, &tree->control[caller].handle);
	assert(tree->control[caller].fd < 0 && tree->freezer != (int)caller);
}

static void say(struct tree *tree, unsigned caller, const char *text, size_t length)
{
	if (!length)
		return;
	said = text;
	said_bytes = length;
	control_serve(tree, &tree->control[caller].handle);
}

/* Through a mapping of its own, as a committer does. */
static void write_window(struct tree *tree, struct input *input)
{
	struct push_window *window = memory_shared();

	if (!tree->propagation.window)
		return;
	window->space = next_byte(input) % 3;
	uint8_t count = next_byte(input);

	window->count = count == 0xff ? UINT64_MAX : count;
	for (unsigned i = 0; i < PUSH_PAGES && i < count; i++) {
		uint8_t low = next_byte(input);

		window->pgno[i] = low == 0xff ? UINT64_MAX >> next_byte(input) % 64 : 64 + (uint64_t)low;
		window->content[i][0] = next_byte(input);
	}
}

static void say_word(struct tree *tree, unsigned caller, struct input *input)
{
	static const char *const words[] = { "freeze", "export", "thaw", "pools", "push-window", "push", "migrate-stop" };
	static const char *const calls[] = { "heat", "list", "migrate" };
	uint8_t which = next_byte(input) % (ARRAY_LENGTH(words) + ARRAY_LENGTH(calls));
	char text[100];

	if (which < ARRAY_LENGTH(words)) {
		say(tree, caller, words[which], strlen(words[which]));
		return;
	}
	uint64_t first = next_number(input), second = next_number(input);
	int length = snprintf(text, sizeof(text), "%s %lu %lu", calls[which - ARRAY_LENGTH(words)], first, second);

	say(tree, caller, text, (size_t)length);
}

/* Exactly its bytes, so that a sanitizer sees who reads beyond them. */
static void say_text(struct tree *tree, unsigned caller, struct input *input)
{
	size_t length = next_byte(input) % 100;

	length = DP_MIN(length, (size_t)(input->end - input->at));
	say(tree, caller, (const char *)input->at, length);
	input->at += length;
}

static void step(struct tree *tree, struct input *input)
{
	uint8_t what = next_byte(input);
	unsigned caller = (what & 15) % CALLERS;
	int freezer = tree->freezer;

	switch (what >> 4) {
	case 0:
		hang_up(tree, caller);
		call(tree, caller);
		break;
	case 1:
		write_window(tree, input);
		break;
	case 2:
		propagate_on_done(tree, what & 1 ? -EIO : 0);
		break;
	case 3:
		put_result = what & 1 ? -EAGAIN : 0;
		deaf = what & 2;
		tree->saved->oplog.head = what >> 2 & 1;
		break;
	case 4:
		now_ns += (uint64_t)next_byte(input) * 100000000;
		marked = what & 1;
		tree->in_flight = what >> 1 & 1;
		break;
	case 5:
	case 6:
		say_text(tree, caller, input);
		break;
	default:
		say_word(tree, caller, input);
	}
	if (tree->freezing)
		control_work(tree);
	/* Nobody but who froze it thaws it. */
	assert(freezer < 0 || tree->freezer == freezer || (int)((what & 15) % CALLERS) == freezer || !tree->frozen);
	assert(tree->freezer < (int)CALLERS && tree->frozen == (tree->freezer >= 0) && (tree->frozen || !tree->freezing));
	assert(!tree->propagation.under_way || puts_made);
}

static void begin(struct tree *tree, struct space *space, struct pager_config *config)
{
	static struct pager_stats stats;
	static struct tree_saved saved;
	static uint8_t buffer[MOVE_PAGES * PAGE_BYTES];

	memset(tree, 0, sizeof(*tree));
	memset(space, 0, sizeof(*space));
	put_result = 0;
	exports_left = 3;
	deaf = marked = false;
	puts_made = 0;
	now_ns = UINT64_C(1) << 40;
	saved.oplog.head = 0;
	tree->config = config;
	tree->source = config->source;
	tree->saved = &saved;
	tree->stats = &stats;
	tree->buffer = buffer;
	tree->running = true;
	tree->spaces = space;
	tree->propagation.peer = -1;
	space->tree = tree;
	space->number = 1;
	space->pid = 4711;
	space->pagemap_fd = PAGEMAP;
	space->source_space = 7;
	control_init(tree);
	fill(space);
	for (unsigned caller = 0; caller < CALLERS; caller++)
		call(tree, caller);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct tree tree;
	static struct space space;
	struct source source = { .ops = &ops, .writable = true };
	struct pager_config config = { .source = &source, .pool_uris = { "dp://127.0.0.1:7400" }, .pool_uri_count = 1 };
	struct input input = { data, data + size };

	log_setup(2, LOG_LEVEL_ERROR, "");
	begin(&tree, &space, &config);
	for (unsigned steps = 0; steps < STEPS && input.at < input.end; steps++)
		step(&tree, &input);
	for (unsigned caller = 0; caller < CALLERS; caller++)
		hang_up(&tree, caller);
	assert(!tree.frozen && !tree.failure);
	propagate_done(&tree);
	table_done(&space.table);
	memory_forget();
	descriptors_forget();
	return 0;
}
