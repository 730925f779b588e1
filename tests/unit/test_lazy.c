/* The read-only sources: moves and forks against a model, images on disk with parents, and a page server at the other end of a
 * socket pair that answers short, wrong, or not at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/base.h"
#include "image/frame.h"
#include "image/images.h"
#include "pager/lazy_spaces.h"
#include "pager/source_criu.h"
#include "pager/source_images.h"

#define VPID 77
#define FIRST 0x10000u /* page number of the first lazy page */

/* ---- images ---- */

static char directory[64];

static int open_directory(const char *name)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	int fd = open(path, O_RDONLY | O_DIRECTORY);
	assert_true(fd >= 0);
	return fd;
}

static void write_at(const char *where, const char *name, const void *bytes, size_t length)
{
	char path[192];
	snprintf(path, sizeof(path), "%s/%s/%s", directory, where, name);
	assert_int_equal(io_write_file(path, bytes, length, 0600), 0);
}

static void write_pstree(const char *where)
{
	const uint32_t head[] = { IMAGE_MAGIC_COMMON, IMAGE_MAGIC_PSTREE, 10 };
	const uint8_t record[] = { 0x08, VPID, 0x10, 0, 0x18, VPID, 0x20, VPID, 0x28, VPID };
	uint8_t all[sizeof(head) + sizeof(record)];
	memcpy(all, head, sizeof(head));
	memcpy(all + sizeof(head), record, sizeof(record));
	write_at(where, "pstree.img", all, sizeof(all));
}

static void write_pagemap(const char *where, struct image_run *runs, size_t count)
{
	struct image_pagemap map = { .pages_id = 1, .runs = runs, .count = count };
	void *bytes;
	size_t length;
	assert_int_equal(images_encode_pagemap(&map, &bytes, &length, NULL), 0);
	write_at(where, "pagemap-77.img", bytes, length);
	free(bytes);
}

/* Page i of the file begins with `first` + i. */
static void write_pages(const char *where, uint32_t first, uint32_t pages)
{
	uint8_t *bytes = calloc(pages ? pages : 1, PAGE_BYTES);
	for (uint32_t i = 0; i < pages; i++)
		memcpy(bytes + (size_t)i * PAGE_BYTES, &(uint32_t){ first + i }, sizeof(uint32_t));
	write_at(where, "pages-1.img", bytes, (size_t)pages * PAGE_BYTES);
	free(bytes);
}

static void make_directory(const char *name)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	assert_int_equal(mkdir(path, 0700), 0);
}

static int set_up(void **state)
{
	strcpy(directory, "/tmp/dp-test-lazy-XXXXXX");
	return mkdtemp(directory) ? 0 : -1;
}

static int tear_down(void **state)
{
	return remove_tree(directory);
}

/* ---- what the source answers ---- */

struct answers {
	uint32_t number[8192]; /* of the page, by current page number - FIRST */
	unsigned pages, lasts;
	uint64_t cookie;
};

static void on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct answers *answers = context;
	for (uint64_t i = 0; i < range.pages; i++)
		memcpy(&answers->number[range.pgno + i - FIRST], (const uint8_t *)data + i * PAGE_BYTES, sizeof(uint32_t));
	answers->pages += (unsigned)range.pages;
	answers->lasts += last;
	answers->cookie = cookie;
}

static struct source *open_images(const char *name, struct answers *answers, uint64_t *space)
{
	struct dp_err err = { "" };
	struct source *source;
	int fd = open_directory(name);
	int ret = source_images_new(&source, fd, &err);
	close(fd);
	if (ret)
		fail_msg("%s", err.text);
	memset(answers, 0, sizeof(*answers));
	source->handler = (struct source_handler){ answers, on_pages, NULL };
	assert_int_equal(source->ops->find_space(source, VPID, space, NULL), 0);
	return source;
}

static int fetch(struct source *source, uint64_t space, uint64_t pgno, uint64_t pages)
{
	struct page_range range = { FIRST + pgno, pages };
	return source->ops->get(source, CLASS_DEMAND, space, &range, 1, 5);
}

static void images__pages_of_two_generations__come_from_the_right_one(void **state)
{
	static struct answers answers;
	uint64_t space;
	make_directory("old");
	make_directory("new");
	char path[128];
	snprintf(path, sizeof(path), "%s/new/parent", directory);
	assert_int_equal(symlink("../old", path), 0);
	write_pstree("new");
	write_pagemap("old", (struct image_run[]){ { FIRST, 8, PAGEMAP_PRESENT | PAGEMAP_LAZY, 0 } }, 1);
	write_pages("old", 100, 8);
	write_pagemap("new",
		      (struct image_run[]){ { FIRST, 4, PAGEMAP_PRESENT | PAGEMAP_LAZY, 0 },
					    { FIRST + 4, 2, PAGEMAP_PARENT | PAGEMAP_LAZY, 0 },
					    { FIRST + 6, 1, PAGEMAP_PRESENT, 0 } },
		      3);
	write_pages("new", 200, 5);
	struct source *source = open_images("new", &answers, &space);
	assert_int_equal(fetch(source, space, 0, 6), 0);
	assert_int_equal(answers.pages, 6);
	assert_int_equal(answers.lasts, 1);
	assert_int_equal(answers.cookie, 5);
	assert_int_equal(answers.number[0], 200);
	assert_int_equal(answers.number[3], 203);
	assert_int_equal(answers.number[4], 104);
	assert_int_equal(answers.number[5], 105);
	assert_int_equal(fetch(source, space, 6, 1), -EINVAL); /* not lazy */
	assert_int_equal(source->ops->find_space(source, VPID + 1, &space, NULL), -ENOENT);
	source->ops->free(source);
}

static int open_result(void)
{
	struct source *source;
	struct dp_err err = { "" };
	int fd = open_directory(".");
	int ret = source_images_new(&source, fd, &err);
	close(fd);
	assert_true(ret < 0);
	assert_true(err.text[0]);
	return ret;
}

static void images__that_cannot_be_served__are_refused_before_anything_runs(void **state)
{
	assert_int_equal(open_result(), -ENOENT);
	write_pstree(".");
	write_pagemap(".", (struct image_run[]){ { FIRST, 8, PAGEMAP_PRESENT | PAGEMAP_LAZY, 0 } }, 1);
	assert_int_equal(open_result(), -ENOENT); /* no pages-1.img */
	write_pages(".", 0, 7);
	assert_int_equal(open_result(), -EBADMSG); /* a page short */
	write_pages(".", 0, 0);
	assert_int_equal(open_result(), -EBADMSG);
	write_pagemap(".", (struct image_run[]){ { FIRST, 8, PAGEMAP_LAZY, 0 } }, 1);
	assert_int_equal(open_result(), -ENODATA); /* they stayed with the page server */
	write_pagemap(".", (struct image_run[]){ { FIRST, 8, PAGEMAP_PARENT | PAGEMAP_LAZY, 0 } }, 1);
	assert_int_equal(open_result(), -ENOENT); /* no parent */
	char path[128];
	snprintf(path, sizeof(path), "%s/parent", directory);
	assert_int_equal(symlink(".", path), 0);
	assert_int_equal(open_result(), -EBADMSG); /* a circle */
}

#define MODEL 512u
static uint32_t seed;
static uint32_t next_random(uint32_t limit)
{
	seed = seed * 1664525u + 1013904223u;
	return (seed >> 8) % limit;
}

static void spaces__moved_and_forked_at_random__agree_with_a_model(void **state)
{
	static struct answers answers;
	uint64_t space[8];
	static int32_t model[8][MODEL]; /* image page, or -1 */
	write_pstree(".");
	write_pagemap(".",
		      (struct image_run[]){ { FIRST, 100, PAGEMAP_PRESENT | PAGEMAP_LAZY, 0 },
					    { FIRST + 200, 100, PAGEMAP_PRESENT | PAGEMAP_LAZY, 0 } },
		      2);
	write_pages(".", 0, 200);
	struct source *source = open_images(".", &answers, &space[0]);
	for (unsigned i = 0; i < MODEL; i++)
		model[0][i] = i < 100 ? (int32_t)i : i >= 200 && i < 300 ? (int32_t)i - 100 : -1;
	unsigned spaces = 1;
	for (unsigned round = 0; round < 4000; round++) {
		unsigned at = next_random(spaces), pages = 1 + next_random(60), from = next_random(MODEL - pages),
			 to = next_random(MODEL - pages);
		if (round % 37 == 0 && spaces < 8) {
			assert_int_equal(source->ops->fork(source, space[at], &space[spaces], 0), 0);
			memcpy(model[spaces++], model[at], sizeof(model[at]));
		} else if (from + pages <= to || to + pages <= from) {
			assert_int_equal(source->ops->move(source, space[at], FIRST + from, FIRST + to, pages, 0), 0);
			memcpy(&model[at][to], &model[at][from], pages * sizeof(int32_t));
			memset(&model[at][from], -1, pages * sizeof(int32_t));
		}
		unsigned page = next_random(MODEL), run = 0;
		while (page + run < MODEL && model[at][page + run] >= 0 && run < 64)
			run++;
		assert_int_equal(fetch(source, space[at], page, run ? run : 1), run ? 0 : -EINVAL);
		for (unsigned i = 0; i < run; i++)
			assert_int_equal(answers.number[page + i], model[at][page + i]);
	}
	for (unsigned i = 0; i < spaces; i++)
		source->ops->space_free(source, space[i], 0);
	assert_int_equal(fetch(source, space[0], 0, 1), -EINVAL);
	source->ops->free(source);
}

/* ---- a page server ---- */

struct header {
	uint32_t command, pad;
	uint64_t pages, address, task;
};

static struct source *open_server(struct answers *answers, uint64_t *space, int *server)
{
	int pair[2];
	struct source *source;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	*server = pair[1];
	write_pstree(".");
	write_pagemap(".", (struct image_run[]){ { FIRST, 64, PAGEMAP_LAZY, 0 }, { FIRST + 100, 64, PAGEMAP_LAZY, 0 },
						 { FIRST + 164, 1, PAGEMAP_PRESENT, 0 } }, 3);
	int fd = open_directory(".");
	assert_int_equal(source_criu_new(&source, fd, stream_from_socket(pair[0]), NULL), 0);
	close(fd);
	memset(answers, 0, sizeof(*answers));
	source->handler = (struct source_handler){ answers, on_pages, NULL };
	assert_int_equal(source->ops->find_space(source, VPID, space, NULL), 0);
	return source;
}

static struct header expect_get(int server, uint64_t pgno, uint64_t pages)
{
	struct header header;
	assert_int_equal(io_read_full(server, &header, sizeof(header)), 0);
	assert_int_equal(header.command, 7);
	assert_int_equal(header.address, (FIRST + pgno) << PAGE_SHIFT);
	assert_int_equal(header.pages, pages);
	assert_int_equal(header.task, VPID);
	return header;
}

/* Answers with `pages` pages, whose content is their number. */
static void reply(int server, uint64_t pgno, uint64_t pages)
{
	struct header header = { 0x40006, 0, pages, (FIRST + pgno) << PAGE_SHIFT, VPID };
	uint8_t page[PAGE_BYTES] = { 0 };
	assert_int_equal(io_write_full(server, &header, sizeof(header)), 0);
	for (uint64_t i = 0; i < pages; i++) {
		memcpy(page, &(uint32_t){ (uint32_t)(pgno + i) }, sizeof(uint32_t));
		assert_int_equal(io_write_full(server, page, sizeof(page)), 0);
	}
}

static void server__answers_short__the_rest_is_asked_for_again(void **state)
{
	static struct answers answers;
	uint64_t space;
	int server;
	struct source *source = open_server(&answers, &space, &server);
	assert_int_equal(fetch(source, space, 0, 10), 0);
	assert_int_equal(fetch(source, space, 100, 3), 0);
	expect_get(server, 0, 10);
	expect_get(server, 100, 3);
	reply(server, 0, 4);
	assert_true(source->ops->receive(source) > 0);
	assert_int_equal(answers.pages, 4);
	assert_int_equal(answers.lasts, 0);
	expect_get(server, 4, 6);
	reply(server, 100, 3);
	reply(server, 4, 6);
	assert_true(source->ops->receive(source) > 0);
	assert_int_equal(answers.pages, 13);
	assert_int_equal(answers.lasts, 2);
	for (uint32_t i = 0; i < 10; i++)
		assert_int_equal(answers.number[i], i);
	assert_int_equal(answers.number[102], 102);
	source->ops->free(source);
	close(server);
}

static void server__pages_moved__are_asked_for_where_they_were(void **state)
{
	static struct answers answers;
	uint64_t space;
	int server;
	struct source *source = open_server(&answers, &space, &server);
	assert_int_equal(source->ops->move(source, space, FIRST + 62, FIRST + 1000, 2, 0), 0);
	assert_int_equal(source->ops->move(source, space, FIRST + 100, FIRST + 1002, 2, 0), 0);
	assert_int_equal(fetch(source, space, 1000, 4), 0);
	expect_get(server, 62, 2);
	expect_get(server, 100, 2);
	reply(server, 62, 2);
	reply(server, 100, 2);
	assert_true(source->ops->receive(source) > 0);
	assert_int_equal(answers.lasts, 1);
	assert_int_equal(answers.number[1001], 63);
	assert_int_equal(answers.number[1002], 100);
	source->ops->free(source);
	close(server);
}

static void server__page_that_is_not_lazy__is_never_asked_for(void **state)
{
	static struct answers answers;
	uint64_t space;
	int server;
	char byte;
	struct source *source = open_server(&answers, &space, &server);
	assert_int_equal(fetch(source, space, 164, 1), -EINVAL);
	assert_int_equal(fetch(source, space, 60, 10), -EINVAL);
	assert_int_equal(recv(server, &byte, 1, MSG_DONTWAIT), -1);
	source->ops->free(source);
	close(server);
}

static void wrong_answer(struct header header)
{
	static struct answers answers;
	uint64_t space;
	int server;
	struct source *source = open_server(&answers, &space, &server);
	assert_int_equal(fetch(source, space, 0, 10), 0);
	assert_int_equal(io_write_full(server, &header, sizeof(header)), 0);
	assert_int_equal(source->ops->receive(source), -EPROTO);
	assert_int_equal(fetch(source, space, 0, 10), -EPROTO);
	source->ops->free(source);
	close(server);
}

static void server__answers_what_was_not_asked__ends_the_session(void **state)
{
	const uint64_t address = (uint64_t)FIRST << PAGE_SHIFT;
	wrong_answer((struct header){ 0x40006, 0, 11, address, VPID });
	wrong_answer((struct header){ 0x40006, 0, 0, address, VPID });
	wrong_answer((struct header){ 0x40006, 0, 10, address + PAGE_BYTES, VPID });
	wrong_answer((struct header){ 0x40006, 0, 10, address, VPID + 1 });
	wrong_answer((struct header){ 0x10006, 0, 10, address, VPID });
	wrong_answer((struct header){ 0x40007, 0, 10, address, VPID });
}

static void server__gone__is_an_error(void **state)
{
	static struct answers answers;
	uint64_t space;
	int server;
	struct source *source = open_server(&answers, &space, &server);
	assert_int_equal(fetch(source, space, 0, 1), 0);
	expect_get(server, 0, 1);
	close(server);
	assert_int_equal(source->ops->receive(source), -ECONNRESET);
	assert_true(source_criu_end(source, NULL) < 0);
	source->ops->free(source);
}

static void server__end__answers_are_drained_before_CLOSE(void **state)
{
	static struct answers answers;
	uint64_t space;
	int server;
	struct header header;
	struct source *source = open_server(&answers, &space, &server);
	assert_int_equal(fetch(source, space, 0, 2), 0);
	expect_get(server, 0, 2);
	reply(server, 0, 2);
	assert_int_equal(io_write_full(server, &(int32_t){ 0 }, sizeof(int32_t)), 0);
	assert_int_equal(source_criu_end(source, NULL), 0);
	assert_int_equal(answers.pages, 0); /* nobody wants them any more */
	assert_int_equal(io_read_full(server, &header, sizeof(header)), 0);
	assert_int_equal(header.command, 0x1023);
	source->ops->free(source);
	close(server);
}

static void server__more_than_its_queue__asks_to_come_again(void **state)
{
	static struct answers answers;
	uint64_t space;
	int server, ret = 0;
	unsigned gets = 0;
	struct source *source = open_server(&answers, &space, &server);
	while (gets < 10000 && !(ret = fetch(source, space, gets % 64, 1)))
		gets++;
	assert_int_equal(ret, -EAGAIN);
	for (unsigned i = 0; i < gets; i++) {
		expect_get(server, i % 64, 1);
		reply(server, i % 64, 1);
		assert_true(source->ops->receive(source) > 0);
	}
	assert_int_equal(answers.lasts, gets);
	assert_int_equal(fetch(source, space, 0, 1), 0);
	source->ops->free(source);
	close(server);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(images__pages_of_two_generations__come_from_the_right_one),
		TEST(images__that_cannot_be_served__are_refused_before_anything_runs),
		TEST(spaces__moved_and_forked_at_random__agree_with_a_model),
		TEST(server__answers_short__the_rest_is_asked_for_again),
		TEST(server__pages_moved__are_asked_for_where_they_were),
		TEST(server__page_that_is_not_lazy__is_never_asked_for),
		TEST(server__answers_what_was_not_asked__ends_the_session),
		TEST(server__gone__is_an_error),
		TEST(server__end__answers_are_drained_before_CLOSE),
		TEST(server__more_than_its_queue__asks_to_come_again),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
