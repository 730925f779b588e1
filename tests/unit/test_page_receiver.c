/* The page stream against a sink in memory: whole streams, cut ones, odd ones. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/base.h"
#include "checkpoint/criu_dump.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/page_receiver.h"

#define TASK(id) ((uint64_t)(id) << 8 | 1)
#define SEGMENT(id) ((uint64_t)(id) << 8 | 2)
#define ADD_LAZY (6u | 6u << 16)
#define ADD_EAGER (6u | 4u << 16)

struct raw {
	uint32_t command, pad;
	uint64_t pages, address, id;
};

/* What CRIU would send, as one block of bytes. */
struct stream {
	unsigned char *bytes;
	size_t length;
};

static void put(struct stream *stream, const void *bytes, size_t size)
{
	stream->bytes = realloc(stream->bytes, stream->length + size);
	memcpy(stream->bytes + stream->length, bytes, size);
	stream->length += size;
}

static void put_header(struct stream *stream, uint32_t command, uint64_t pages, uint64_t address, uint64_t id)
{
	struct raw raw = {.command = command, .pages = pages, .address = address, .id = id};
	put(stream, &raw, sizeof(raw));
}

static void put_pages(struct stream *stream, uint32_t command, uint64_t pages, uint64_t address)
{
	unsigned char page[PAGE_BYTES];
	put_header(stream, command, pages, address, 0);
	for (uint64_t i = 0; i < pages; i++) {
		memset(page, (int)((address >> PAGE_SHIFT) + i), sizeof(page));
		put(stream, page, sizeof(page));
	}
}

/* The sink: counts, and compares every byte with the page's number. */
struct counter {
	unsigned tasks, segments, chunks;
	uint64_t lazy, eager, last_id;
	int fail_at_chunk; /* 0: never */
	int failure;
};

static int count_open(void *context, bool shared_memory, uint32_t id, struct dp_err *err)
{
	struct counter *counter = context;
	counter->last_id = id;
	shared_memory ? counter->segments++ : counter->tasks++;
	return 0;
}

static int count_pages(void *context, bool lazy, uint64_t pgno, uint64_t pages, const void *data, struct dp_err *err)
{
	struct counter *counter = context;
	assert_true(pages > 0 && pages <= PAGE_CHUNK_PAGES);
	for (uint64_t i = 0; i < pages; i++)
		assert_int_equal(((const unsigned char *)data)[i * PAGE_BYTES + 77], (unsigned char)(pgno + i));
	counter->chunks++;
	*(lazy ? &counter->lazy : &counter->eager) += pages;
	return counter->fail_at_chunk == (int)counter->chunks ? counter->failure : 0;
}

/* A child writes the stream and reads the answers; returns the receiver's result. `answers` gets how many bytes came back. */
static int run(const struct stream *stream, struct counter *counter, size_t *answers, struct dp_err *err)
{
	int pair[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	pid_t child = fork();
	if (child == 0) {
		char byte;
		size_t got = 0;
		close(pair[0]);
		int rc = stream->length ? io_write_full(pair[1], stream->bytes, stream->length) : 0;
		shutdown(pair[1], SHUT_WR);
		while (rc == 0 && read(pair[1], &byte, 1) == 1)
			got++;
		_exit((int)got);
	}
	close(pair[1]);
	struct page_sink sink = {.context = counter, .open = count_open, .pages = count_pages};
	int rc = page_receiver_run(pair[0], &sink, err), status;
	close(pair[0]);
	assert_int_equal(waitpid(child, &status, 0), child);
	if (answers)
		*answers = WIFEXITED(status) ? (size_t)WEXITSTATUS(status) : 0;
	return rc;
}

static void whole_stream(struct stream *stream)
{
	put_header(stream, 4, 0, 0, TASK(42));
	put_pages(stream, ADD_EAGER, 1, 0x400000);
	put_pages(stream, ADD_LAZY, 600, 0x500000);
	put_header(stream, 4, 0, 0, SEGMENT(7));
	put_pages(stream, ADD_EAGER, 3, 0);
	put_header(stream, 0x1024, 0, 0, 0);
}

static void stream__whole__every_page_arrives_once(void **state)
{
	struct stream stream = {0};
	struct counter counter = {0};
	size_t answers;
	whole_stream(&stream);
	assert_int_equal(run(&stream, &counter, &answers, NULL), 0);
	assert_int_equal(counter.tasks, 1);
	assert_int_equal(counter.segments, 1);
	assert_int_equal(counter.lazy, 600);
	assert_int_equal(counter.eager, 4);
	assert_int_equal(counter.last_id, 7);
	assert_int_equal(answers, 1 + 1 + 4);
	free(stream.bytes);
}

static void stream__cut_anywhere__is_criu_giving_up(void **state)
{
	struct stream stream = {0};
	whole_stream(&stream);
	const size_t cuts[] = {0, 1, 23, 24, 31, 32, 33, 64, 64 + 100, 64 + PAGE_BYTES, stream.length - 32, stream.length - 1};
	for (size_t i = 0; i < ARRAY_LENGTH(cuts); i++) {
		struct stream cut = {.bytes = stream.bytes, .length = cuts[i]};
		struct counter counter = {0};
		assert_int_equal(run(&cut, &counter, NULL, NULL), -ECANCELED);
	}
	free(stream.bytes);
}

static void sink__fails__its_error_is_returned(void **state)
{
	struct stream stream = {0};
	struct counter counter = {.fail_at_chunk = 2, .failure = -ENOSPC};
	whole_stream(&stream);
	assert_int_equal(run(&stream, &counter, NULL, NULL), -ENOSPC);
	assert_int_equal(counter.chunks, 2);
	free(stream.bytes);
}

static void stream__pages_out_of_order__is_refused(void **state)
{
	struct stream stream = {0};
	struct counter counter = {0};
	put_header(&stream, 4, 0, 0, TASK(1));
	put_pages(&stream, ADD_LAZY, 4, 0x10000);
	put_pages(&stream, ADD_LAZY, 1, 0x13000);
	assert_int_equal(run(&stream, &counter, NULL, NULL), -EPROTO);
	free(stream.bytes);
}

static void stream__pages_before_any_map__is_refused(void **state)
{
	struct stream stream = {0};
	struct counter counter = {0};
	put_pages(&stream, ADD_LAZY, 1, 0x10000);
	assert_int_equal(run(&stream, &counter, NULL, NULL), -EPROTO);
	free(stream.bytes);
}

static void stream__of_criu_4_1__is_told_apart(void **state)
{
	struct stream stream = {0};
	struct counter counter = {0};
	struct dp_err err = {""};
	const struct {
		uint32_t command, pages;
		uint64_t address, id;
	} old = {4, 0, 0, TASK(42)};
	put(&stream, &old, sizeof(old));
	assert_int_equal(sizeof(old), 24);
	assert_int_equal(run(&stream, &counter, NULL, &err), -EPROTO);
	assert_non_null(strstr(err.text, "4.1"));
	free(stream.bytes);
}

static void header__impossible__is_refused(void **state)
{
	static const struct raw bad[] = {
		{99, 0, 0, 0, 0},                             /* no such command */
		{4, 0, 0, 0, 42 << 8 | 3},                    /* neither task nor segment */
		{4, 0, 0, 0, 1},                              /* task 0 */
		{6, 0, 1, 0x1000, 0},                         /* not present */
		{6 | 1 << 16, 0, 1, 0x1000, 0},               /* in a parent image */
		{6 | 12 << 16, 0, 1, 0x1000, 0},              /* a flag we do not know */
		{ADD_LAZY, 0, 0, 0x1000, 0},                  /* no pages */
		{ADD_LAZY, 0, 1, 0x1001, 0},                  /* not aligned */
		{ADD_LAZY, 0, UINT64_MAX, 0x1000, 0},         /* wraps */
		{ADD_LAZY, 0, 1, UINT64_C(1) << 47, 0},       /* beyond user memory */
		{0x1024 | 1 << 16, 0, 0, 0, 0},               /* flags where none belong */
	};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		struct page_header header;
		assert_int_equal(page_header_decode((const unsigned char *)&bad[i], &header, NULL), -EPROTO);
	}
}

/* ---- CRIU's log and options ---- */

static void criu_log__failure__its_last_telling_error_is_found(void **state)
{
	char log[] =
		"(00.000100) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
		"(00.010000) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.\n"
		"(00.020000) Error (criu/cr-dump.c:1638): Dump files (pid: 7) failed with -1\n"
		"(00.030000) Error (criu/cr-dump.c:1975): Dumping FAILED.\n";
	char text[200];
	assert_true(criu_dump_last_error(log, text, sizeof(text)));
	assert_string_equal(text, "inet: Connected TCP socket, consider using --tcp-established option.");
	char empty[] = "(00.1) Warn  (criu/x.c:1): nothing bad\n";
	assert_false(criu_dump_last_error(empty, text, sizeof(text)));
	char only_end[] = "(00.1) Error (criu/cr-dump.c:1975): Dumping FAILED.";
	assert_true(criu_dump_last_error(only_end, text, sizeof(text)));
	assert_string_equal(text, "Dumping FAILED.");
}

static void criu_option__of_our_own__is_refused(void **state)
{
	assert_int_equal(checkpoint_check_option("--cpu-cap=ins", NULL), 0);
	assert_int_equal(checkpoint_check_option("--images-dir", NULL), -EINVAL);
	assert_int_equal(checkpoint_check_option("--images-dir=/x", NULL), -EINVAL);
	assert_int_equal(checkpoint_check_option("-D", NULL), -EINVAL);
	assert_int_equal(checkpoint_check_option("shell-job", NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stream__whole__every_page_arrives_once),
		cmocka_unit_test(stream__cut_anywhere__is_criu_giving_up),
		cmocka_unit_test(sink__fails__its_error_is_returned),
		cmocka_unit_test(stream__pages_out_of_order__is_refused),
		cmocka_unit_test(stream__pages_before_any_map__is_refused),
		cmocka_unit_test(stream__of_criu_4_1__is_told_apart),
		cmocka_unit_test(header__impossible__is_refused),
		cmocka_unit_test(criu_log__failure__its_last_telling_error_is_found),
		cmocka_unit_test(criu_option__of_our_own__is_refused),
	};
	signal(SIGPIPE, SIG_IGN); /* as in the program */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
