/* instance: registry, keeper, statistics. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/base.h"
#include "instance/instance.h"
#include "instance/keeper.h"
#include "instance/process.h"
#include "instance/stats.h"

static int make_root(void **state)
{
	char *root = strdup("/tmp/test-instance-XXXXXX");
	*state = mkdtemp(root);
	return !*state;
}

/* Instances' directories may be in memory, linked to. */
static int remove_root(void **state)
{
	DIR *directory = opendir(*state);
	for (struct dirent *entry = directory ? readdir(directory) : NULL; entry; entry = readdir(directory)) {
		struct instance instance = { 0 };
		snprintf(instance.directory, sizeof(instance.directory), "%s/%s", (char *)*state, entry->d_name);
		if (entry->d_name[0] != '.')
			instance_remove(&instance, NULL);
	}
	if (directory)
		closedir(directory);
	int ret = remove_tree(*state);
	free(*state);
	return ret;
}

/* An instance whose every process is this one. */
static void make_live(const char *root, const char *snapshot, const char *name, struct instance *instance)
{
	struct dp_err err = { "" };
	assert_int_equal(instance_create_dir(root, snapshot, name, instance, &err), 0);
	struct instance_process here = { getpid(), process_start_time(getpid()) };
	instance->root = instance->init = instance->pager = instance->supervisor = here;
	instance->running = true;
	instance->budget_bytes = UINT64_MAX / 2;
	assert_int_equal(instance_save(instance, &err), 0);
}

static void state__written_and_read__is_the_same(void **state)
{
	struct instance made, read;
	make_live(*state, "team/redis:prod", "shop", &made);
	assert_int_equal(instance_load(*state, made.id, &read, NULL), 0);
	assert_memory_equal(&read.root, &made.root, sizeof(made.root));
	assert_string_equal(read.name, "shop");
	assert_string_equal(read.snapshot, "team/redis:prod");
	assert_string_equal(read.directory, made.directory);
	assert_int_equal(read.budget_bytes, made.budget_bytes);
	assert_true(read.running);
	assert_int_equal(strncmp(made.id, "redis-", 6), 0);
	assert_int_equal(instance_remove(&made, NULL), 0);
	assert_int_equal(access(made.directory, F_OK), -1);
}

static void state__damaged__is_refused(void **state)
{
	static const char *const damaged[] = {
		"", "{", "[]", "{\"schema\":\"distriproc.instance/2\"}", "{\"schema\":\"distriproc.instance/1\",\"id\":7}",
		"{\"schema\":\"distriproc.instance/1\",\"id\":\"a\"}", "null",
	};
	struct instance instance;
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(damaged); i++)
		assert_int_equal(instance_decode(&instance, damaged[i], NULL), -EBADMSG);
	/* Every prefix of a right one, too. */
	struct instance right = { .id = "a-1", .name = "b", .snapshot = "c:d", .pool = "dir:/e" };
	cleanup_free char *text = instance_encode(&right);
	assert_int_equal(instance_decode(&instance, text, NULL), 0);
	for (size_t length = strlen(text) - 2; length > 0; length--) {
		text[length] = 0;
		assert_int_equal(instance_decode(&instance, text, NULL), -EBADMSG);
	}
}

static void find__by_id_name_prefix_and_pid__fits(void **state)
{
	struct instance first, second, found;
	struct dp_err err;
	make_live(*state, "redis:a", "shop", &first);
	make_live(*state, "redis:b", "shed", &second);
	assert_int_equal(instance_find(*state, first.id, &found, &err), 0);
	assert_string_equal(found.id, first.id);
	assert_int_equal(instance_find(*state, "shed", &found, &err), 0);
	assert_string_equal(found.id, second.id);
	assert_int_equal(instance_find(*state, "sho", &found, &err), 0);
	assert_string_equal(found.id, first.id);
	assert_int_equal(instance_find(*state, "sh", &found, &err), -EEXIST);
	assert_int_equal(instance_find(*state, "redis-", &found, &err), -EEXIST);
	assert_int_equal(instance_find(*state, "", &found, &err), -ENOENT);
	assert_int_equal(instance_find(*state, "nobody", &found, &err), -ENOENT);
	assert_int_equal(instance_find_by_pid(*state, getpid(), &found, &err), 0);
	assert_int_equal(instance_find_by_pid(*state, getppid(), &found, &err), -ENOENT);
}

static void create__name_of_a_live_instance__is_refused(void **state)
{
	struct instance first, second;
	struct dp_err err;
	make_live(*state, "redis:a", "shop", &first);
	assert_int_equal(instance_create_dir(*state, "redis:a", "shop", &second, &err), -EEXIST);
	assert_non_null(strstr(err.text, "shop"));
	static const char *const improper[] = { "", "../x", "a/b", ".hidden", "logs", "with space" };
	for (size_t i = 0; i < ARRAY_LENGTH(improper); i++)
		assert_int_equal(instance_create_dir(*state, "redis:a", improper[i], &second, &err), -EINVAL);
}

static void list__supervisor_and_init_dead__is_swept(void **state)
{
	struct instance instance;
	struct instance *list;
	size_t count;
	make_live(*state, "redis:a", NULL, &instance);
	pid_t child = fork();
	if (child == 0)
		_exit(0);
	/* A zombie counts as dead, and a pid with another start time is somebody else. */
	siginfo_t info;
	waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
	instance.supervisor = (struct instance_process){ child, 1 };
	instance.init = (struct instance_process){ getpid(), 1 };
	assert_int_equal(instance_save(&instance, NULL), 0);
	assert_int_equal(instance_list(*state, &list, &count, NULL), 0);
	assert_int_equal(count, 0);
	free(list);
	assert_int_equal(access(instance.directory, F_OK), -1);
	waitpid(child, NULL, 0);
}

static void sweep__registry_is_gone__memory_is_given_back(void **state)
{
	struct instance instance;
	char target[PATH_MAX] = "";
	make_live(*state, "redis:a", NULL, &instance);
	instance.supervisor.start_time = instance.init.start_time = 1;
	assert_int_equal(instance_save(&instance, NULL), 0);
	if (readlink(instance.directory, target, sizeof(target) - 1) < 0)
		skip(); /* /tmp is in memory here: nothing lies elsewhere */
	assert_int_equal(unlink(instance.directory), 0);
	instance_sweep_memory();
	assert_int_equal(access(target, F_OK), 0); /* its own registry might want its last words */
	char seen[PATH_MAX + 16];
	snprintf(seen, sizeof(seen), "%s/" INSTANCE_SEEN_DEAD, target);
	const struct timespec long_ago[2] = { { .tv_sec = 1 }, { .tv_sec = 1 } };
	assert_int_equal(utimensat(AT_FDCWD, seen, long_ago, 0), 0);
	instance_sweep_memory();
	assert_int_equal(access(target, F_OK), -1);
}

static void list__root_missing__is_empty(void **state)
{
	struct instance *list;
	size_t count;
	(void)state;
	assert_int_equal(instance_list("/tmp/test-instance-is-not-there", &list, &count, NULL), 0);
	assert_int_equal(count, 0);
}

static void remove__link_elsewhere__is_not_followed(void **state)
{
	cleanup_free char *target = format_text("%s/precious", (char *)*state);
	struct instance instance = { .id = "x-1" };
	assert_int_equal(mkdir(target, 0700), 0);
	snprintf(instance.directory, sizeof(instance.directory), "%s/x-1", (char *)*state);
	assert_int_equal(symlink(target, instance.directory), 0);
	assert_int_equal(instance_remove(&instance, NULL), 0);
	assert_int_equal(access(target, F_OK), 0);
}

static void keep_logs__many_failures__stay_bounded(void **state)
{
	char kept[PATH_MAX], path[PATH_MAX];
	for (int i = 0; i < INSTANCE_LOG_FILES + 10; i++) {
		struct instance instance;
		assert_int_equal(instance_create_dir(*state, "redis:a", NULL, &instance, NULL), 0);
		assert_int_equal(io_write_file(instance_path(&instance, "restore.log", path, sizeof(path)), "x", 1, 0600), 0);
		instance_keep_logs(&instance, kept, sizeof(kept));
		assert_int_equal(access(kept, F_OK), 0);
		assert_int_equal(instance_remove(&instance, NULL), 0);
	}
	cleanup_free char *logs = format_text("%s/logs", (char *)*state);
	int files = 0;
	DIR *directory = opendir(logs);
	assert_non_null(directory);
	for (struct dirent *entry = readdir(directory); entry; entry = readdir(directory))
		files += entry->d_name[0] != '.';
	closedir(directory);
	assert_int_equal(files, INSTANCE_LOG_FILES);
}

static void keeper__pager_dies_after_sending__descriptors_stay(void **state)
{
	struct keeper keeper;
	int pager_end, pipe_fds[2];
	(void)state;
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	assert_int_equal(keeper_init(&keeper, &pager_end, NULL), 0);
	assert_int_equal(keeper_send(pager_end, KEEPER_UFFD, 7, pipe_fds[1]), 0);
	assert_int_equal(keeper_send(pager_end, KEEPER_UFFD, 8, pipe_fds[1]), 0);
	assert_int_equal(keeper_send_text(pager_end, "pool went away"), 0);
	close(pager_end);
	close(pipe_fds[1]);
	assert_int_equal(keeper_receive(&keeper), -EPIPE);
	assert_int_equal(keeper.count, 2);
	assert_string_equal(keeper.text, "pool went away");
	/* The write end lives in the keeper only. */
	assert_int_equal(write(keeper.kept[0].fd, "x", 1), 1);
	char byte;
	assert_int_equal(read(pipe_fds[0], &byte, 1), 1);
	keeper_done(&keeper);
	assert_int_equal(read(pipe_fds[0], &byte, 1), 0);
	close(pipe_fds[0]);
}

static void keeper__release__drops_only_that_space(void **state)
{
	struct keeper keeper;
	int pager_end;
	(void)state;
	cleanup_fd int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_int_equal(keeper_init(&keeper, &pager_end, NULL), 0);
	for (uint64_t key = 0; key < 200; key++) {
		assert_int_equal(keeper_send(pager_end, KEEPER_UFFD, key, null_fd), 0);
		assert_int_equal(keeper_receive(&keeper), 0);
	}
	assert_int_equal(keeper_send(pager_end, KEEPER_RELEASE, 5, -1), 0);
	assert_int_equal(keeper_receive(&keeper), 0);
	assert_int_equal(keeper.count, 199);
	for (size_t i = 0; i < keeper.count; i++)
		assert_int_not_equal(keeper.kept[i].key, 5);
	close(pager_end);
	keeper_done(&keeper);
}

static void keeper__message_without_descriptor_or_short__is_refused(void **state)
{
	struct keeper keeper;
	int pager_end;
	(void)state;
	assert_int_equal(keeper_init(&keeper, &pager_end, NULL), 0);
	assert_int_equal(keeper_send(pager_end, KEEPER_UFFD, 1, -1), 0);
	assert_int_equal(keeper_receive(&keeper), -EBADMSG);
	assert_int_equal(write(pager_end, "u", 1), 1);
	assert_int_equal(keeper_receive(&keeper), -EBADMSG);
	assert_int_equal(keeper.count, 0);
	close(pager_end);
	keeper_done(&keeper);
}

/* The second fits into the padding of the room for one. */
static void keeper__message_with_two_descriptors__leaves_none_open(void **state)
{
	struct keeper keeper;
	int pager_end, pipe_fds[2];
	char header[16] = "u", byte;
	union {
		char bytes[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr header;
	} control = { .header = { CMSG_LEN(2 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec part = { header, sizeof(header) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	(void)state;
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	assert_int_equal(keeper_init(&keeper, &pager_end, NULL), 0);
	memcpy(CMSG_DATA(&control.header), (int[]){ pipe_fds[1], pipe_fds[1] }, 2 * sizeof(int));
	assert_int_equal(sendmsg(pager_end, &message, 0), sizeof(header));
	close(pipe_fds[1]);
	assert_int_equal(keeper_receive(&keeper), -EBADMSG);
	assert_int_equal(read(pipe_fds[0], &byte, 1), 0);
	close(pipe_fds[0]);
	close(pager_end);
	keeper_done(&keeper);
}

static void histogram__quantiles__bound_the_values(void **state)
{
	struct histogram histogram = { 0 };
	(void)state;
	assert_int_equal(histogram_quantile_ns(&histogram, 0.5), 0);
	for (uint64_t ns = 1; ns <= 1000; ns++)
		histogram_add(&histogram, ns * 1000);
	assert_int_equal(histogram.count, 1000);
	assert_int_equal(histogram.max_ns, 1000000);
	/* Four steps to a power of two: never more than a quarter above, never below. */
	for (double share = 0.1; share < 1; share += 0.1) {
		uint64_t exact = (uint64_t)(share * 1000) * 1000, quantile = histogram_quantile_ns(&histogram, share);
		assert_in_range(quantile, exact, exact + exact / 4 + 1);
	}
	assert_int_equal(histogram_quantile_ns(&histogram, 1), 1000000);
}

static void histogram__extreme_values__have_a_bucket(void **state)
{
	static const uint64_t values[] = { 0, 1, 3, 4, 7, 8, UINT32_MAX, 1ull << 41, UINT64_MAX };
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(values); i++) {
		struct histogram histogram = { 0 };
		histogram_add(&histogram, values[i]);
		assert_int_equal(histogram_quantile_ns(&histogram, 0.5), values[i]);
	}
}

static void stats__mapped_twice__reader_sees_the_writer(void **state)
{
	cleanup_free char *path = format_text("%s/stats", (char *)*state);
	struct dp_err err;
	assert_null(stats_map(path, 0, &err));
	struct pager_stats *writer = stats_map(path, 1, &err);
	struct pager_stats *reader = stats_map(path, 0, &err);
	assert_non_null(writer);
	assert_non_null(reader);
	writer->resident_pages = 77;
	assert_int_equal(reader->resident_pages, 77);
	assert_int_equal(reader->size, sizeof(*reader));
	stats_unmap(reader);
	stats_unmap(writer);
	assert_int_equal(io_write_file(path, "short", 5, 0600), 0);
	assert_null(stats_map(path, 0, &err));
}

int main(void)
{
#define WITH_ROOT(test) cmocka_unit_test_setup_teardown(test, make_root, remove_root)
	const struct CMUnitTest tests[] = {
		WITH_ROOT(state__written_and_read__is_the_same),
		WITH_ROOT(state__damaged__is_refused),
		WITH_ROOT(find__by_id_name_prefix_and_pid__fits),
		WITH_ROOT(create__name_of_a_live_instance__is_refused),
		WITH_ROOT(list__supervisor_and_init_dead__is_swept),
		WITH_ROOT(sweep__registry_is_gone__memory_is_given_back),
		WITH_ROOT(list__root_missing__is_empty),
		WITH_ROOT(remove__link_elsewhere__is_not_followed),
		WITH_ROOT(keep_logs__many_failures__stay_bounded),
		cmocka_unit_test(keeper__pager_dies_after_sending__descriptors_stay),
		cmocka_unit_test(keeper__release__drops_only_that_space),
		cmocka_unit_test(keeper__message_without_descriptor_or_short__is_refused),
		cmocka_unit_test(keeper__message_with_two_descriptors__leaves_none_open),
		cmocka_unit_test(histogram__quantiles__bound_the_values),
		cmocka_unit_test(histogram__extreme_values__have_a_bucket),
		WITH_ROOT(stats__mapped_twice__reader_sees_the_writer),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
