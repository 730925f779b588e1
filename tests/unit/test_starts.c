/* starts: names of many instances, which spares fit which start, and the gate before the first instruction. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/base.h"
#include "instance/process.h"
#include "restore/many.h"
#include "restore/plan.h"
#include "restore/spares.h"

static int make_root(void **state)
{
	char name[] = "/tmp/test-starts-XXXXXX";
	*state = strdup(mkdtemp(name));
	return *state ? 0 : -1;
}

static int remove_root(void **state)
{
	int ret = remove_tree(*state);
	free(*state);
	return ret;
}

static void make_live(const char *root, const char *name, const char *group, bool spare, struct instance *instance)
{
	assert_int_equal(instance_create_dir(root, "redis:warm", name, instance, NULL), 0);
	instance->supervisor = (struct instance_process){ getpid(), process_start_time(getpid()) };
	snprintf(instance->group, sizeof(instance->group), "%s", group);
	instance->spare = spare;
	assert_int_equal(instance_save(instance, NULL), 0);
}

static void state__group_and_spare__are_kept(void **state)
{
	struct instance made, plain, read;
	make_live(*state, "shop-1", "shop", true, &made);
	make_live(*state, "alone", "", false, &plain);
	assert_int_equal(instance_load(*state, made.id, &read, NULL), 0);
	assert_string_equal(read.group, "shop");
	assert_true(read.spare);
	assert_int_equal(instance_load(*state, plain.id, &read, NULL), 0);
	assert_string_equal(read.group, "");
	assert_false(read.spare);
	instance_remove(&made, NULL);
	instance_remove(&plain, NULL);
}

static void first_number__others_of_the_name__follows_the_highest(void **state)
{
	static const char *const names[] = { "shop-2", "shop-17", "shopping-40", "shop-x", "shop-3-4" };
	struct instance made[ARRAY_LENGTH(names)];
	struct dp_err err;
	assert_int_equal(many_first_number(*state, "shop", 10, &err), 1);
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		make_live(*state, names[i], "", false, &made[i]);
	assert_int_equal(many_first_number(*state, "shop", 10, &err), 18);
	assert_int_equal(many_first_number(*state, "other", 10, &err), 1);
	assert_int_equal(many_first_number(*state, "no name", 10, &err), -EINVAL);
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		instance_remove(&made[i], NULL);
}

static void spares__any_option_differs__are_others(void **state)
{
	static char *const tcp[] = { (char *)(uintptr_t)"--tcp-close" };
	static const struct endpoint pool = { .kind = ENDPOINT_UNIX, .path = "/p", .name = "redis:warm" };
	static const struct endpoint other = { .kind = ENDPOINT_UNIX, .path = "/p", .name = "redis:cold" };
	const struct restore_options options[] = {
		{ .endpoint = &pool },
		{ .endpoint = &other },
		{ .endpoint = &pool, .network = RESTORE_NETWORK_OWN },
		{ .endpoint = &pool, .local_memory = "50%" },
		{ .endpoint = &pool, .remote_memory = "50%" },
		{ .endpoint = &pool, .migrate = true },
		{ .endpoint = &pool, .prefetch_policy = PREFETCH_NONE },
		{ .endpoint = &pool, .working_set = true },
		{ .endpoint = &pool, .record = RECORD_NEVER },
		{ .endpoint = &pool, .commit_interval_ns = 5 },
		{ .endpoint = &pool, .criu_arguments = tcp, .criu_argument_count = 1 },
		{ .endpoint = &pool, .pools = &pool, .pool_count = 1, .spread = true },
	};
	char *texts[ARRAY_LENGTH(options)];
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(options); i++) {
		texts[i] = spares_text(&options[i]);
		assert_non_null(texts[i]);
		for (size_t j = 0; j < i; j++)
			assert_string_not_equal(texts[i], texts[j]);
	}
	/* Who it is for makes no difference. */
	const struct restore_options named = { .endpoint = &pool, .name = "shop", .group = "g", .foreground = true, .verbose = 2 };
	cleanup_free char *text = spares_text(&named);
	assert_string_equal(text, texts[0]);
	for (size_t i = 0; i < ARRAY_LENGTH(options); i++)
		free(texts[i]);
}

static void spares__shared_network_files_or_pids__do_not_fit(void **state)
{
	static char *const inherit[] = { (char *)(uintptr_t)"--inherit-fd=fd[3]:x" };
	static char *const script[] = { (char *)(uintptr_t)"--action-script=/x" };
#define OWN .network = RESTORE_NETWORK_OWN
	const struct restore_options wrong[] = {
		{ .network = NULL },
		{ .network = "/run/netns/blue" },
		{ OWN, .shell_job = true },
		{ OWN, .host_pid_namespace = true },
		{ OWN, .criu_arguments = inherit, .criu_argument_count = 1 },
		{ OWN, .criu_arguments = script, .criu_argument_count = 1 },
	};
	(void)state;
	assert_true(spares_fit(&(struct restore_options){ OWN, .local_memory = "50%" }));
	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++)
		assert_false(spares_fit(&wrong[i]));
}

static void take__no_keeper__is_not_there(void **state)
{
	const struct endpoint pool = { .kind = ENDPOINT_UNIX, .path = "/p", .name = "redis:warm" };
	const struct restore_options options = { .root = *state, .endpoint = &pool };
	struct restore_session session;
	struct spares_status *list;
	size_t count;
	assert_int_equal(spares_take(&options, &session), -ENOENT);
	assert_int_equal(spares_list(*state, &list, &count, NULL), 0);
	assert_int_equal(count, 0);
	assert_int_equal(spares_end(*state, "0011223344556677", NULL), -ENOENT);
}

/* What CRIU does before it resumes a tree. */
static pid_t start_action(const struct instance *instance)
{
	pid_t child = fork();
	if (child == 0) {
		char name[PATH_MAX];
		setenv("CRTOOLS_SCRIPT_ACTION", "pre-resume", 1);
		_exit(working_set_action((char *)(uintptr_t)instance_path(instance, WORKING_SET_ACTION, name, sizeof(name))));
	}
	return child;
}

static void hold__tree_is_there__waits_until_it_is_released(void **state)
{
	struct instance instance;
	struct hold hold = { -1, -1 };
	int status;
	assert_int_equal(instance_create_dir(*state, "redis:warm", NULL, &instance, NULL), 0);
	assert_int_equal(working_set_prepare(&instance, false, true, NULL), 0);
	assert_int_equal(working_set_prepare(&instance, false, true, NULL), 0); /* CRIU is started a second time */
	assert_int_equal(hold_open(&instance, &hold, NULL), 0);
	assert_false(hold_reached(&hold));
	pid_t child = start_action(&instance);
	struct pollfd held = { .fd = hold.held_fd, .events = POLLIN };
	assert_int_equal(poll(&held, 1, 10000), 1);
	assert_true(hold_reached(&hold));
	assert_int_equal(waitpid(child, &status, WNOHANG), 0);
	assert_int_equal(hold_release(&hold), 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	close(hold.go_fd);
	instance_remove(&instance, NULL);
}

static void hold__supervisor_is_gone__nobody_waits(void **state)
{
	struct instance instance;
	int status;
	assert_int_equal(instance_create_dir(*state, "redis:warm", NULL, &instance, NULL), 0);
	assert_int_equal(working_set_prepare(&instance, false, true, NULL), 0);
	pid_t child = start_action(&instance);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	instance_remove(&instance, NULL);
}

int main(void)
{
#define WITH_ROOT(test) cmocka_unit_test_setup_teardown(test, make_root, remove_root)
	const struct CMUnitTest tests[] = {
		WITH_ROOT(state__group_and_spare__are_kept),
		WITH_ROOT(first_number__others_of_the_name__follows_the_highest),
		cmocka_unit_test(spares__any_option_differs__are_others),
		cmocka_unit_test(spares__shared_network_files_or_pids__do_not_fit),
		WITH_ROOT(take__no_keeper__is_not_there),
		WITH_ROOT(hold__tree_is_there__waits_until_it_is_released),
		WITH_ROOT(hold__supervisor_is_gone__nobody_waits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
