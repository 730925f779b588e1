/* What the runtime's wrapper reads: command lines, annotations, runtime.conf; and what it is about: control groups. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/base.h"
#include "oci/annotations.h"
#include "oci/arguments.h"
#include "oci/runtimes.h"
#include "residency/residency.h"
#include "sys/cgroup.h"

static struct oci_arguments read_line(int argc, char *const *argv)
{
	struct oci_arguments arguments;
	oci_arguments_read(argc, argv, &arguments);
	return arguments;
}
#define READ(...) read_line(ARRAY_LENGTH(((char *[]){ __VA_ARGS__ })), (char *[]){ __VA_ARGS__ })

static void arguments__as_podman_writes_them__taken_apart(void **state)
{
	struct oci_arguments arguments = READ("runc", "--log-format", "json", "--log=/l", "restore", "--bundle", "/b", "--pid-file",
					      "/p", "--detach", "--image-path", "/i", "--work-path", "/w", "name");
	assert_int_equal(arguments.command, 4);
	assert_int_equal(arguments.id, 14);
	assert_string_equal(arguments.images, "/i");
	assert_string_equal(arguments.work, "/w");
	assert_string_equal(arguments.bundle, "/b");
	assert_string_equal(arguments.log, "/l");
	assert_string_equal(arguments.log_format, "json");
}

static void arguments__one_dash_and_equals__the_same(void **state)
{
	struct oci_arguments arguments = READ("runc", "-root", "/r", "checkpoint", "-image-path=/i", "--leave-running=false", "-b",
					      "/b", "name");
	assert_int_equal(arguments.command, 3);
	assert_int_equal(arguments.id, 8);
	assert_string_equal(arguments.images, "/i");
	assert_string_equal(arguments.bundle, "/b");
	assert_false(arguments.leave_running);
}

static void arguments__value_is_missing__no_read_behind_the_end(void **state)
{
	struct oci_arguments arguments = READ("runc", "checkpoint", "--image-path");
	assert_null(arguments.images);
	assert_int_equal(arguments.id, 0);
	assert_int_equal(READ("runc").command, 0);
	assert_true(READ("runc", "checkpoint", "--help").help);
}

static int parse(const char *annotations, struct oci_wishes *wishes, struct dp_err *err)
{
	cleanup_free char *config = format_text("{\"ociVersion\":\"1.0.2\",\"annotations\":%s}", annotations);
	return oci_wishes_parse(config, wishes, err);
}

static void annotations__all_of_them__taken(void **state)
{
	struct oci_wishes wishes;
	struct dp_err err = { "" };
	assert_int_equal(parse("{\"distri-proc.io/enabled\":\"true\",\"distri-proc.io/memory-policy\":\"hot-local\",\"other\":\"x\","
			       "\"distri-proc.io/remote-memory\":\"50%\",\"distri-proc.io/pool\":\"dp://h\","
			       "\"distri-proc.io/prefetch\":\"stream\"}",
			       &wishes, &err),
			 0);
	assert_true(wishes.enabled);
	assert_int_equal(wishes.policy, OCI_HOT_LOCAL);
	assert_string_equal(wishes.remote_memory, "50%");
	assert_string_equal(wishes.pool, "dp://h");
	assert_string_equal(wishes.prefetch, "stream");
}

static void annotations__none__nothing_is_wished(void **state)
{
	struct oci_wishes wishes;
	assert_int_equal(oci_wishes_parse("{}", &wishes, NULL), 0);
	assert_false(wishes.enabled);
	assert_int_equal(parse("{\"distri-proc.io/enabled\":\"false\"}", &wishes, NULL), 0);
	assert_false(wishes.enabled);
}

static void annotations__wrong__said_which(void **state)
{
	struct oci_wishes wishes;
	struct dp_err err;
	assert_int_equal(parse("{\"distri-proc.io/enabled\":\"maybe\"}", &wishes, &err), -EINVAL);
	assert_non_null(strstr(err.text, "enabled"));
	assert_int_equal(parse("{\"distri-proc.io/memory-policy\":\"warm\"}", &wishes, &err), -EINVAL);
	assert_non_null(strstr(err.text, "hot-local"));
	assert_int_equal(parse("{\"distri-proc.io/remote-memroy\":\"1\"}", &wishes, &err), -EINVAL);
	assert_non_null(strstr(err.text, "remote-memroy"));
	assert_int_equal(oci_wishes_parse("[1", &wishes, &err), -EBADMSG);
}

static char was_set[256];
static int note_set(const char *name, const char *value, int overwrite)
{
	snprintf(was_set, sizeof(was_set), "%s=%s", name, value);
	return overwrite; /* the environment goes before the file */
}

static void host_file__settings_and_comments__taken(void **state)
{
	struct oci_host host = { .runtime = "runc" };
	struct dp_err err;
	assert_int_equal(oci_host_parse("# of this host\n\n runtime = /usr/bin/crun # another\npool=dps://memory:7400\n"
					"psk-file = /etc/key\n",
					&host, note_set, &err),
			 0);
	assert_string_equal(host.runtime, "/usr/bin/crun");
	assert_int_equal(oci_host_parse("runtimes = /opt/a, /opt/b\n", &host, note_set, &err), 0);
	assert_int_equal(oci_runtime_check(&host, "runc", &err), 0);
	assert_int_equal(oci_runtime_check(&host, "/usr/bin/crun", &err), 0);
	assert_int_equal(oci_runtime_check(&host, "/opt/b", &err), 0);
	static const char *const others[] = { "", "/opt", "/opt/", "b", "../opt/b", "/opt/a, /opt/b" };
	for (size_t i = 0; i < ARRAY_LENGTH(others); i++)
		assert_int_equal(oci_runtime_check(&host, others[i], &err), -EPERM);
	assert_string_equal(host.pool, "dps://memory:7400");
	assert_string_equal(was_set, "DISTRI_PROC_PSK_FILE=/etc/key");
	assert_int_equal(oci_host_parse("pool = x\nrun time = y\n", &host, note_set, &err), -EINVAL);
	assert_non_null(strstr(err.text, "line 2"));
	assert_int_equal(oci_host_parse("nonsense\n", &host, note_set, &err), -EINVAL);
}

static const char mounts_1[] = "25 21 0:23 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
			       "26 21 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
			       "27 21 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
static const char mounts_2[] = "30 21 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

static void cgroup__version_1_beside_a_bare_2__the_one_with_the_controller(void **state)
{
	struct cgroup cgroup;
	assert_int_equal(cgroup_parse("5:cpu,cpuacct:/a\n4:memory:/pod/box\n0::/x\n", mounts_1, &cgroup), 0);
	assert_int_equal(cgroup.version, 1);
	assert_string_equal(cgroup.path, "/sys/fs/cgroup/memory/pod/box");
}

static void cgroup__version_2__its_path(void **state)
{
	struct cgroup cgroup;
	assert_int_equal(cgroup_parse("0::/kubepods.slice/box\n", mounts_2, &cgroup), 0);
	assert_int_equal(cgroup.version, 2);
	assert_string_equal(cgroup.path, "/sys/fs/cgroup/kubepods.slice/box");
	assert_int_equal(cgroup_parse("0::/\n", mounts_2, &cgroup), 0);
	assert_string_equal(cgroup.path, "/sys/fs/cgroup");
}

static void cgroup__out_of_sight_or_none__no_path(void **state)
{
	struct cgroup cgroup;
	assert_int_not_equal(cgroup_parse("0::/../other\n", mounts_2, &cgroup), 0);
	assert_int_equal(cgroup_parse("", mounts_2, &cgroup), 0);
	assert_int_equal(cgroup.version, 0);
	assert_int_equal(cgroup_parse("0::/a\n", "", &cgroup), 0);
	assert_int_equal(cgroup.version, 0);
}

static void write_number(const char *directory, const char *name, const char *text)
{
	cleanup_free char *path = format_text("%s/%s", directory, name);
	assert_int_equal(io_write_file(path, text, strlen(text), 0600), 0);
}

/* Version 2 as its files are; in a directory, since this kernel may have its controllers in version 1. */
static void cgroup__limits_on_the_way_up__the_least_counts(void **state)
{
	char top[] = "/tmp/dp-cgroup-XXXXXX";
	struct cgroup cgroup = { .version = 2 };
	uint64_t limit;
	assert_non_null(mkdtemp(top));
	snprintf(cgroup.mount, sizeof(cgroup.mount), "%s", top);
	snprintf(cgroup.path, sizeof(cgroup.path), "%s/pod", top);
	assert_int_equal(mkdir(cgroup.path, 0700), 0);
	write_number(cgroup.path, "memory.max", "100000000\n");
	write_number(cgroup.path, "memory.high", "max\n");
	strcat(cgroup.path, "/box");
	assert_int_equal(mkdir(cgroup.path, 0700), 0);
	write_number(cgroup.path, "memory.max", "max\n");
	write_number(cgroup.path, "memory.high", "max\n");
	assert_int_equal(cgroup_limit(&cgroup, &limit), 0);
	assert_int_equal(limit, 100000000);
	write_number(cgroup.path, "memory.high", "50000000\n");
	assert_int_equal(cgroup_limit(&cgroup, &limit), 0);
	assert_int_equal(limit, 50000000);
	write_number(cgroup.path, "memory.current", "1234\n");
	assert_int_equal(cgroup_usage(&cgroup, &limit), 0);
	assert_int_equal(limit, 1234);
	remove_tree(top);
	assert_int_equal(cgroup_limit(&cgroup, &limit), -ENOENT);
}

static void residency__of_a_limit__leaves_room_for_the_reserve(void **state)
{
	static const uint64_t limits[] = { 0, 1u << 20, 48u << 20, 128u << 20, 1ull << 30, 1ull << 40, UINT64_MAX };
	for (size_t i = 0; i < ARRAY_LENGTH(limits); i++) {
		struct residency_budget plan;
		uint64_t bytes = residency_of_limit(limits[i], 2);
		residency_plan(&plan, bytes);
		bool least = bytes == residency_minimum_bytes(2);
		assert_true(least || bytes + plan.reserve_pages * PAGE_BYTES <= limits[i]);
		assert_true(bytes >= residency_minimum_bytes(2));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arguments__as_podman_writes_them__taken_apart),
		cmocka_unit_test(arguments__one_dash_and_equals__the_same),
		cmocka_unit_test(arguments__value_is_missing__no_read_behind_the_end),
		cmocka_unit_test(annotations__all_of_them__taken),
		cmocka_unit_test(annotations__none__nothing_is_wished),
		cmocka_unit_test(annotations__wrong__said_which),
		cmocka_unit_test(host_file__settings_and_comments__taken),
		cmocka_unit_test(cgroup__version_1_beside_a_bare_2__the_one_with_the_controller),
		cmocka_unit_test(cgroup__version_2__its_path),
		cmocka_unit_test(cgroup__out_of_sight_or_none__no_path),
		cmocka_unit_test(cgroup__limits_on_the_way_up__the_least_counts),
		cmocka_unit_test(residency__of_a_limit__leaves_room_for_the_reserve),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
