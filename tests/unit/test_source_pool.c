/* Numbers of forked spaces, as a pager that takes over gives them: what the one before it had given is done again first. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/base.h"
#include "pager/source_pool.h"
#include "pool_fixture.h"

static unsigned answers;

static void on_done(void *context, uint64_t cookie, int result)
{
	assert_int_equal(result, 0);
	answers++;
}

static void wait_for_answers(struct source *source, unsigned count)
{
	while (answers < count) {
		struct pollfd wait = { .fd = source->ops->fd(source), .events = POLLIN };

		assert_true(poll(&wait, 1, 10000) > 0);
		assert_int_equal(DP_MIN(source->ops->receive(source), 0), 0);
	}
}

static void source_pool__forks_done_again_with_their_numbers__are_not_given_to_others(void **state)
{
	struct pool_fixture fixture = { 0 };
	struct source *source;
	struct client_attached attached;
	struct dp_err err;
	struct source_resume resume = { 0 };
	uint64_t child[6] = { 0 };

	fixture_start(&fixture, "memory:");
	struct client *client = fixture_connect(&fixture);

	make_snapshot(client, "a:b", 4);
	assert_int_equal(client_instance_create_resumable(client, "a:b", "test", &attached, &err), 0);
	const struct link_config config = { .endpoint = &fixture.endpoint };
	uint64_t parent = attached.spaces[0].space;

	assert_int_equal(source_pool_new(&source, &config, client, &attached, &err), 0);
	client_attached_done(&attached);
	source->handler = (struct source_handler){ .on_done = on_done };
	assert_int_equal(source->ops->resume(source, &resume), 0);
	assert_int_equal(source->ops->fork(source, parent, &child[0], 1), 0);
	/* What a dead pager had under way: a space freed, and its number used again; another, beyond all that are known here. */
	assert_int_equal(source->ops->space_free(source, child[0], 2), 0);
	child[1] = child[0];
	assert_int_equal(source->ops->fork(source, parent, &child[1], 3), 0);
	child[2] = child[0] + 1;
	assert_int_equal(source->ops->fork(source, parent, &child[2], 4), 0);
	for (unsigned i = 3; i < ARRAY_LENGTH(child); i++)
		assert_int_equal(source->ops->fork(source, parent, &child[i], 2 + i), 0);
	wait_for_answers(source, 7); /* none of them EEXIST */
	for (unsigned i = 1; i < ARRAY_LENGTH(child); i++)
		for (unsigned other = 1; other < i; other++)
			assert_true(child[i] != child[other]);
	source->ops->free(source);
	fixture_end(&fixture);
	remove_tree(fixture.directory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(source_pool__forks_done_again_with_their_numbers__are_not_given_to_others),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
