/* Commits: their names and meta texts, how a state is found by a key, the pace of pushing, notes on this host, what a state
 * before has. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "checkpoint/commit.h"
#include "checkpoint/commit_loop.h"
#include "checkpoint/push.h"
#include "checkpoint/recall.h"
#include "instance/commits.h"
#include "transport/endpoint.h"

/* ---- names ---- */

static void name__of_an_instance__is_one_of_the_pool(void **state)
{
	char series[256], name[256], normal[256];
	commit_default_series("commit", "redis-1A2b", series, sizeof(series));
	assert_string_equal(series, "commits/redis-1a2b");
	commit_name(series, "team/redis:prod", false, 1763721060123, name);
	assert_string_equal(name, "commits/redis-1a2b/team/redis:prod.1763721060123");
	assert_int_equal(endpoint_name_check(name, normal, NULL), 0);
	commit_name("redis-safe", "team/redis:prod", true, 1763721060123, name);
	assert_string_equal(name, "redis-safe:1763721060123");
}

static void name__of_the_longest_parts__fits_the_limits(void **state)
{
	char series[256], lineage[256], name[256], normal[256], id[64];
	memset(id, 'i', 63);
	id[63] = 0;
	memset(lineage, 'r', 128);
	lineage[128] = ':';
	memset(lineage + 129, 't', 64);
	lineage[193] = 0;
	commit_default_series("protect", id, series, sizeof(series));
	commit_name(series, lineage, false, 1763721060123, name);
	assert_int_equal(endpoint_name_check(name, normal, NULL), 0);
	assert_string_equal(name + strlen(name) - 14, ".1763721060123");
}

static void lineage__of_a_commit_of_a_commit__is_what_it_all_began_with(void **state)
{
	char lineage[256];
	commit_lineage("redis:prod", lineage, sizeof(lineage));
	assert_string_equal(lineage, "redis:prod");
	commit_lineage("commits/redis-1a2b/team/redis:v1.2.1763721060123", lineage, sizeof(lineage));
	assert_string_equal(lineage, "team/redis:v1.2");
	commit_lineage("protected/redis-1a2b/redis:prod.1763721060123", lineage, sizeof(lineage));
	assert_string_equal(lineage, "redis:prod");
	/* Names of that look which are no commit's. */
	commit_lineage("commits/redis:prod", lineage, sizeof(lineage));
	assert_string_equal(lineage, "commits/redis:prod");
	commit_lineage("commits/a/redis:prod", lineage, sizeof(lineage));
	assert_string_equal(lineage, "commits/a/redis:prod");
}

/* ---- meta ---- */

#define META(kind)                                                                                                               \
	"{\"pages\":1,\"commit\":{\"kind\":\"" kind "\",\"series\":\"commits/redis-1a2b\",\"instance\":\"redis-1a2b\","          \
	"\"name\":\"web\",\"lineage\":\"redis:prod\"}}"

static void meta__of_a_commit__is_read_and_nothing_else_is(void **state)
{
	struct commit_state found;
	assert_true(commit_read_meta(META("commit"), &found));
	assert_string_equal(found.series, "commits/redis-1a2b");
	assert_string_equal(found.name, "web");
	static const char *const others[] = { "", "{", "[]", "3", "{\"pages\":1}", "{\"commit\":3}", "{\"commit\":{}}",
					      "{\"commit\":{\"kind\":\"commit\"}}" };
	for (size_t i = 0; i < ARRAY_LENGTH(others); i++)
		assert_false(commit_read_meta(others[i], &found));
	assert_false(commit_read_meta(NULL, &found));
	/* A text of somebody else's that is too long for its place. */
	cleanup_free char *text = malloc(70000);
	memset(text, 'x', 60000);
	snprintf(text + 60000, 10000, "\"}}");
	memcpy(text, "{\"commit\":{\"kind\":\"", 19);
	assert_false(commit_read_meta(text, &found));
}

static void key__of_instance_name_lineage_or_series__fits(void **state)
{
	struct commit_state found;
	static const char *const keys[] = { "redis-1a2b", "redis-1a2b:latest", "web",
					    "web:latest", "redis:prod",	       "commits/redis-1a2b" };
	assert_true(commit_read_meta(META("commit"), &found));
	for (size_t i = 0; i < ARRAY_LENGTH(keys); i++) {
		assert_true(commit_fits(&found, keys[i], false));
		assert_false(commit_fits(&found, keys[i], true));
	}
	static const char *const others[] = { "redis", "redis:latest", "redis-1a2", "we", "", ":latest", "redis:prod2" };
	for (size_t i = 0; i < ARRAY_LENGTH(others); i++)
		assert_false(commit_fits(&found, others[i], false));
	assert_true(commit_read_meta(META("protect"), &found));
	assert_true(commit_fits(&found, "web", true));
	assert_true(commit_fits(&found, "web", false));
}

/* ---- pushing ---- */

static void windows__of_a_long_way__grow_to_the_most(void **state)
{
	struct push_pace pace;
	push_pace_init(&pace);
	for (int i = 0; i < 10; i++) /* 20 ms there and back, 1 GB/s */
		push_pace_note(&pace, pace.pages, 20000000 + pace.pages * 4096ull);
	assert_int_equal(pace.pages, PUSH_PAGES);
}

static void windows__of_a_thin_link__stay_small(void **state)
{
	struct push_pace pace;
	push_pace_init(&pace);
	for (int i = 0; i < 10; i++) /* 0.1 ms, 100 MB/s */
		push_pace_note(&pace, pace.pages, 100000 + pace.pages * 40960ull);
	assert_true(pace.pages <= 2 * PUSH_LEAST_PAGES);
}

static void windows__of_a_link_that_became_slow__shrink(void **state)
{
	struct push_pace pace;
	push_pace_init(&pace);
	for (int i = 0; i < 10; i++)
		push_pace_note(&pace, pace.pages, 1000000);
	assert_int_equal(pace.pages, PUSH_PAGES);
	push_pace_note(&pace, 3, 90000000); /* a rest that says nothing */
	assert_int_equal(pace.pages, PUSH_PAGES);
	for (int i = 0; i < 100; i++)
		push_pace_note(&pace, pace.pages, pace.pages * 350000ull);
	assert_true(pace.pages <= 2 * PUSH_LEAST_PAGES);
}

static void pushing__begins_before_the_commit_by_what_it_takes(void **state)
{
	assert_int_equal(commit_push_at_ns(10000, 5000, 1000), 8500);
	assert_int_equal(commit_push_at_ns(10000, 5000, 100000), 7500); /* at most half an interval */
	assert_int_equal(commit_push_at_ns(100, 5000, 100000), 0);
}

/* ---- notes ---- */

static void notes__are_found_by_each_name_and_the_newest_wins(void **state)
{
	char root[] = "/tmp/dp-commits-XXXXXX", path[512];
	struct commit_note note = { .id = "redis-1a2b",
				    .name = "web",
				    .pool = "dp://host:7400",
				    .lineage = "redis:prod",
				    .kind = "commit",
				    .series = "commits/redis-1a2b",
				    .snapshot = "commits/redis-1a2b/redis:prod.1",
				    .unix_ns = 1000,
				    .bytes = 7,
				    .frozen_ns = 8,
				    .total_ns = 9,
				    .count = 3,
				    .failures = 2,
				    .interval_ns = 5,
				    .error = "a \"quote\"\n" };
	struct commit_note found;
	assert_non_null(mkdtemp(root));
	assert_int_equal(commits_find(root, "web", &found), -ENOENT);
	assert_int_equal(commits_save(root, &note, NULL), 0);
	assert_int_equal(commits_load(root, "redis-1a2b", &found), 0);
	assert_memory_equal(&found, &note, sizeof(note));
	strcpy(note.id, "redis-2c3d");
	strcpy(note.snapshot, "commits/redis-2c3d/redis:prod.2");
	note.unix_ns = 2000;
	assert_int_equal(commits_save(root, &note, NULL), 0);
	static const char *const keys[] = { "web", "redis:prod", "commits/redis-1a2b", "redis-2c3d" };
	for (size_t i = 0; i < ARRAY_LENGTH(keys); i++) {
		assert_int_equal(commits_find(root, keys[i], &found), 0);
		assert_int_equal(found.unix_ns, 2000);
	}
	assert_int_equal(commits_find(root, "redis-1a2b", &found), 0);
	assert_int_equal(found.unix_ns, 1000);
	/* One without a state is none to go on from, and a damaged one is passed over. */
	strcpy(note.id, "redis-4e5f");
	note.snapshot[0] = 0;
	assert_int_equal(commits_save(root, &note, NULL), 0);
	assert_int_equal(commits_find(root, "redis-4e5f", &found), -ENOENT);
	assert_int_equal(io_write_file(commits_path(root, "redis-2c3d.json", path, sizeof(path)), "{\"id\":3}", 8, 0600), 0);
	assert_int_equal(commits_load(root, "redis-2c3d", &found), -EBADMSG);
	assert_int_equal(commits_find(root, "web", &found), 0);
	assert_int_equal(found.unix_ns, 1000);
	assert_int_equal(remove_tree(root), 0);
}

static void notes__beyond_the_limit__the_oldest_go(void **state)
{
	char root[] = "/tmp/dp-commits-XXXXXX";
	struct commit_note note = { .snapshot = "a:b" }, found;
	unsigned there = 0;
	assert_non_null(mkdtemp(root));
	for (unsigned i = 0; i < COMMIT_NOTES + 3; i++) {
		snprintf(note.id, sizeof(note.id), "i-%u", i);
		assert_int_equal(commits_save(root, &note, NULL), 0);
	}
	for (unsigned i = 0; i < COMMIT_NOTES + 3; i++) {
		snprintf(note.id, sizeof(note.id), "i-%u", i);
		there += !commits_load(root, note.id, &found);
	}
	assert_int_equal(there, COMMIT_NOTES);
	assert_int_equal(remove_tree(root), 0);
}

/* ---- what a state before has ---- */

static void recall__of_tasks_one_after_the_other__keeps_each_apart(void **state)
{
	struct recall *recall = recall_new();
	assert_null(recall_space(NULL, 3));
	for (uint64_t i = 0; i < 5000; i++)
		assert_int_equal(recall_add(recall, 3, 100 + i, i), 0);
	assert_int_equal(recall_add(recall, 4, 7, 70), 0);
	assert_null(recall_space(recall, 5));
	assert_int_equal(recall_space(recall, 3)->copy_count, 5000);
	assert_int_equal(recall_space(recall, 3)->copies[4999].hash, 4999);
	assert_int_equal(recall_space(recall, 4)->copies[0].pgno, 7);
	assert_true(recall_space(recall, 4)->hints_only);
	recall_free(recall);
	recall_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(name__of_an_instance__is_one_of_the_pool),
		cmocka_unit_test(name__of_the_longest_parts__fits_the_limits),
		cmocka_unit_test(lineage__of_a_commit_of_a_commit__is_what_it_all_began_with),
		cmocka_unit_test(meta__of_a_commit__is_read_and_nothing_else_is),
		cmocka_unit_test(key__of_instance_name_lineage_or_series__fits),
		cmocka_unit_test(windows__of_a_long_way__grow_to_the_most),
		cmocka_unit_test(windows__of_a_thin_link__stay_small),
		cmocka_unit_test(windows__of_a_link_that_became_slow__shrink),
		cmocka_unit_test(pushing__begins_before_the_commit_by_what_it_takes),
		cmocka_unit_test(notes__are_found_by_each_name_and_the_newest_wins),
		cmocka_unit_test(notes__beyond_the_limit__the_oldest_go),
		cmocka_unit_test(recall__of_tasks_one_after_the_other__keeps_each_apart),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
