/* restore: what it decides before it starts anything, and its way of ending processes. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/base.h"
#include "restore/plan.h"
#include "restore/processes.h"

static void pid_gap__behind_the_last__is_taken(void **state)
{
	static const pid_t pids[] = { 5, 1000, 1001 };
	(void)state;
	assert_int_equal(plan_pid_gap(pids, ARRAY_LENGTH(pids), 32768, 256), 1001);
}

static void pid_gap__end_is_full__lies_between(void **state)
{
	static const pid_t pids[] = { 700, 1000, 32700 };
	(void)state;
	assert_int_equal(plan_pid_gap(pids, ARRAY_LENGTH(pids), 32768, 256), 1000);
}

static void pid_gap__only_below_the_first__is_found(void **state)
{
	static const pid_t pids[] = { 500, 600 };
	(void)state;
	assert_int_equal(plan_pid_gap(pids, ARRAY_LENGTH(pids), 700, 256), 1);
	assert_int_equal(plan_pid_gap(pids, ARRAY_LENGTH(pids), 700, 600), 0);
	assert_int_equal(plan_pid_gap(pids, 0, 32768, 256), 1);
}

static void gap__any_pid_in_it__is_not_free(void **state)
{
	static const pid_t pids[] = { 5, 1000, 1257, 2000 };
	(void)state;
	assert_true(plan_gap_is_free(pids, ARRAY_LENGTH(pids), 1000, 256));
	assert_false(plan_gap_is_free(pids, ARRAY_LENGTH(pids), 1000, 257));
	assert_false(plan_gap_is_free(pids, ARRAY_LENGTH(pids), 1999, 256));
	assert_true(plan_gap_is_free(pids, ARRAY_LENGTH(pids), 2000, 256));
	assert_true(plan_gap_is_free(NULL, 0, 1, 256));
}

/* What CRIU does at the gate: plain open, read to the end. Tells by its exit code whether it got the image. */
static pid_t start_reader(const char *directory)
{
	pid_t child = fork();
	if (child == 0) {
		char path[PATH_MAX], text[32] = "";
		close_all_but((const int[]){ -1 }, 1); /* who holds the gate open waits for itself */
		snprintf(path, sizeof(path), "%s/images/" GATED_IMAGE, directory);
		int fd = open(path, O_RDONLY);
		size_t used = 0;
		for (ssize_t got = 1; got > 0; used += (size_t)DP_MAX(got, 0))
			got = read(fd, text + used, sizeof(text) - 1 - used);
		_exit(strcmp(text, "the image") ? 1 : 0);
	}
	return child;
}

static int code_of(pid_t child)
{
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

static void gate__opened__hands_the_image_to_early_and_late(void **state)
{
	struct instance instance = { .directory = "/tmp/test-restore-XXXXXX" };
	char path[PATH_MAX];
	(void)state;
	assert_non_null(mkdtemp(instance.directory));
	assert_int_equal(mkdir(instance_path(&instance, "images", path, sizeof(path)), 0700), 0);
	int gate_fd = gate_make(&instance, NULL);
	assert_true(gate_fd >= 0);
	pid_t early = start_reader(instance.directory);
	assert_int_equal(io_write_file(instance_path(&instance, "images/" GATE_IMAGE, path, sizeof(path)), "the image", 9, 0600),
			 0);
	assert_int_equal(waitpid(early, NULL, WNOHANG), 0);
	assert_int_equal(gate_open(&instance, gate_fd, NULL), 0);
	assert_int_equal(code_of(early), 0);
	assert_int_equal(code_of(start_reader(instance.directory)), 0);
	assert_int_equal(remove_tree(instance.directory), 0);
}

static void gate__no_image__is_an_error(void **state)
{
	struct instance instance = { .directory = "/tmp/test-restore-XXXXXX" };
	struct dp_err err;
	char path[PATH_MAX];
	(void)state;
	assert_non_null(mkdtemp(instance.directory));
	assert_int_equal(mkdir(instance_path(&instance, "images", path, sizeof(path)), 0700), 0);
	int gate_fd = gate_make(&instance, NULL);
	assert_int_equal(gate_open(&instance, gate_fd, &err), -ENOENT);
	assert_non_null(strstr(err.text, GATED_IMAGE));
	assert_int_equal(remove_tree(instance.directory), 0);
}

static void used_pids__one_in_use__is_named(void **state)
{
	struct dp_err err;
	char number[32];
	pid_t pids[] = { getpid() };
	(void)state;
	snprintf(number, sizeof(number), "%d", (int)getpid());
	assert_int_equal(plan_refuse_used_pids(pids, 1, &err), -EEXIST);
	assert_non_null(strstr(err.text, number));
	assert_int_equal(plan_refuse_used_pids(pids, 0, &err), 0);
}

static void pids__core_images_and_sessions__are_all_found(void **state)
{
	char directory[] = "/tmp/test-restore-XXXXXX";
	static const char *const names[] = { "core-12.img", "core-14.img", "core-13.img", "core-x.img", "core-9.img.bak",
					     "mm-3.img" };
	const struct image_task tasks[] = { { .pid = 12, .sid = 12, .pgid = 11 }, { .pid = 13, .sid = 0, .pgid = 12 } };
	static const pid_t expected[] = { 11, 12, 13, 14 };
	cleanup_free pid_t *pids = NULL;
	size_t count;
	(void)state;
	assert_non_null(mkdtemp(directory));
	cleanup_fd int fd = open(directory, O_DIRECTORY | O_CLOEXEC);
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		close(openat(fd, names[i], O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	assert_int_equal(plan_read_pids(fd, tasks, ARRAY_LENGTH(tasks), &pids, &count, NULL), 0);
	assert_int_equal(count, ARRAY_LENGTH(expected));
	assert_memory_equal(pids, expected, sizeof(expected));
	assert_int_equal(remove_tree(directory), 0);
}

static void budget__share_and_size__are_bytes(void **state)
{
	uint64_t bytes;
	(void)state;
	assert_int_equal(restore_budget(NULL, 1000000, 1, &bytes, NULL), 0);
	assert_int_equal(bytes, 0);
	assert_int_equal(restore_budget("50%", 1000000, 1, &bytes, NULL), 0);
	assert_int_equal(bytes, 500000ull * PAGE_BYTES);
	assert_int_equal(restore_budget("2G", 1000000, 1, &bytes, NULL), 0);
	assert_int_equal(bytes, 2ull << 30);
}

static void budget__wrong_or_too_small__says_what_would_do(void **state)
{
	static const char *const wrong[] = { "", "%", "0%", "101%", "-5%", "half", "0", "50 %x", "nan%", "inf%" };
	struct dp_err err;
	uint64_t bytes;
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++)
		assert_int_equal(restore_budget(wrong[i], 1000000, 1, &bytes, &err), -EINVAL);
	assert_int_equal(restore_budget("4K", 1000000, 3, &bytes, &err), -EINVAL);
	assert_non_null(strstr(err.text, "give at least"));
	assert_non_null(strstr(err.text, "3 processes"));
}

static void criu_log__several_errors__last_that_says_something(void **state)
{
	char log[] = "(00.000001) Version: 4.2.1\n"
		     "(00.001000) Warn  (criu/kerndat.c:1): Stale\n"
		     "(00.002000) Error (criu/first.c:10): first\n"
		     "(00.003000)   1234: Error (criu/files-reg.c:2171): Can't open file var/x on restore: No such file\n"
		     "(00.004000) Error (criu/cr-restore.c:1480): 1234 exited, status=1\n"
		     "(00.005000) Error (criu/cr-restore.c:2560): Restoring FAILED.\n";
	char text[128];
	(void)state;
	assert_true(criu_text_last_error(log, text, sizeof(text)));
	assert_string_equal(text, "Can't open file var/x on restore: No such file");
	char only[] = "(00.005000) Error (criu/cr-restore.c:2560): Restoring FAILED.\n";
	assert_true(criu_text_last_error(only, text, sizeof(text)));
	assert_string_equal(text, "Restoring FAILED.");
	char none[] = "all well\n";
	assert_false(criu_text_last_error(none, text, sizeof(text)));
}

/* A child that has a child of its own, both waiting for ever; returns when both are there. */
static pid_t start_two(void)
{
	int ready[2];
	char byte;
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	pid_t child = fork();
	if (child == 0) {
		pid_t grandchild = fork();
		if (grandchild == 0 && write(ready[1], "x", 1) == 1)
			for (;;)
				pause();
		for (;;)
			pause();
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
	return child;
}

static void kill_descendants__all_but_one__spares_that_one(void **state)
{
	(void)state;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	pid_t spare = start_two();
	pid_t other = start_two();
	kill_descendants(spare);
	assert_int_equal(kill(other, 0), -1);
	assert_int_equal(kill(spare, 0), 0);
	kill_descendants(0);
	assert_int_equal(waitpid(-1, NULL, 0), -1);
	assert_int_equal(errno, ECHILD);
}

static void close_all_but__list_in_any_order__keeps_just_those(void **state)
{
	(void)state;
	pid_t child = fork();
	if (child == 0) {
		int first = open("/dev/null", O_RDWR), second = open("/dev/null", O_RDWR), third = open("/dev/null", O_RDWR);
		const int keep[] = { third, -1, first, 2 };
		close_all_but(keep, ARRAY_LENGTH(keep));
		_exit(fcntl(first, F_GETFD) >= 0 && fcntl(second, F_GETFD) < 0 && fcntl(third, F_GETFD) >= 0 &&
		      fcntl(third + 1, F_GETFD) < 0 ? 0 : 1);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pid_gap__behind_the_last__is_taken),
		cmocka_unit_test(pid_gap__end_is_full__lies_between),
		cmocka_unit_test(pid_gap__only_below_the_first__is_found),
		cmocka_unit_test(gap__any_pid_in_it__is_not_free),
		cmocka_unit_test(gate__opened__hands_the_image_to_early_and_late),
		cmocka_unit_test(gate__no_image__is_an_error),
		cmocka_unit_test(used_pids__one_in_use__is_named),
		cmocka_unit_test(pids__core_images_and_sessions__are_all_found),
		cmocka_unit_test(budget__share_and_size__are_bytes),
		cmocka_unit_test(budget__wrong_or_too_small__says_what_would_do),
		cmocka_unit_test(criu_log__several_errors__last_that_says_something),
		cmocka_unit_test(kill_descendants__all_but_one__spares_that_one),
		cmocka_unit_test(close_all_but__list_in_any_order__keeps_just_those),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
