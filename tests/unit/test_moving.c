/* What goes with a container: its root filesystem made the same elsewhere, whatever was there; and where on a host things lie. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "migrate/clone_source.h"
#include "migrate/tree_copy.h"
#include "oci/moving.h"
#include "pool/access.h"
#include "restore/private_files.h"

/* ---- two directories and a connection ---- */

struct fixture {
	char directory[64], from[80], to[80];
	struct listener listener;
	struct lines peer;
	pid_t child;
	struct tree_sender *sender;
};

static void path_of(const char *base, const char *name, char path[static 200])
{
	snprintf(path, 200, "%s/%s", base, name);
}

static void write_text(const char *base, const char *name, const char *text)
{
	char path[200];
	path_of(base, name, path);
	assert_int_equal(io_write_file(path, text, strlen(text), 0644), 0);
}

static void assert_text(const char *base, const char *name, const char *text)
{
	char path[200];
	cleanup_free char *got = NULL;
	path_of(base, name, path);
	assert_int_equal(io_read_file(path, &got, 1 << 20), strlen(text));
	assert_string_equal(got, text);
}

static void make_directory(const char *base, const char *name)
{
	char path[200];
	path_of(base, name, path);
	assert_int_equal(mkdir(path, 0755), 0);
}

static bool is_there(const char *base, const char *name)
{
	char path[200];
	struct stat info;
	path_of(base, name, path);
	return !lstat(path, &info);
}

/* The other host. */
static void receive(const char *socket_path, const char *root)
{
	struct tree_receiver receiver;
	struct stream *stream;
	struct lines lines;
	struct dp_err err;
	if (tree_receiver_open(&receiver, root, &err) || stream_connect_unix(&stream, socket_path, &err))
		_exit(1);
	lines_init(&lines, stream);
	json_object *line;
	int ret = 0;
	while (!ret && !lines_receive(&lines, &line, 60000)) {
		ret = tree_receive_is(line) ? tree_receive(&receiver, line, &lines, &err) : -1;
		json_object_put(line);
	}
	if (ret) {
		json_object *event = line_event("failed");
		line_add_text(event, "text", err.text);
		lines_send(&lines, event, 1000);
	}
	_exit(0);
}

static int set_up(void **state)
{
	struct fixture *fixture = calloc(1, sizeof(*fixture));
	struct endpoint place = { .kind = ENDPOINT_UNIX };
	int error;
	strcpy(fixture->directory, "/tmp/dp-moving-XXXXXX");
	assert_non_null(mkdtemp(fixture->directory));
	snprintf(fixture->from, sizeof(fixture->from), "%s/from", fixture->directory);
	snprintf(fixture->to, sizeof(fixture->to), "%s/to", fixture->directory);
	assert_int_equal(mkdir(fixture->from, 0755) | mkdir(fixture->to, 0755), 0);
	snprintf(place.path, sizeof(place.path), "%s/socket", fixture->directory);
	assert_int_equal(listener_open(&fixture->listener, &place, false, NULL), 0);
	fixture->child = fork();
	if (fixture->child == 0)
		receive(place.path, fixture->to);
	struct stream *stream = NULL;
	while (!(stream = listener_accept(&fixture->listener, &error)))
		usleep(1000);
	lines_init(&fixture->peer, stream);
	*state = fixture;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *fixture = *state;
	tree_sender_free(fixture->sender);
	lines_done(&fixture->peer);
	waitpid(fixture->child, NULL, 0);
	listener_close(&fixture->listener);
	remove_tree(fixture->directory);
	free(fixture);
	return 0;
}

static void open_sender(struct fixture *fixture, uint64_t limit)
{
	struct dp_err err;
	assert_int_equal(tree_sender_open(&fixture->sender, fixture->from, limit, &err), 0);
}

static int send_it(struct fixture *fixture, bool second, struct dp_err *err)
{
	err->text[0] = 0;
	return tree_send(fixture->sender, &fixture->peer, second ? getpid() : 0, err);
}

/* ---- a tree ---- */

static void tree__other_things_are_there__becomes_the_same(void **state)
{
	struct fixture *fixture = *state;
	struct dp_err err;
	struct stat info;
	char path[200], target[64] = "";
	make_directory(fixture->from, "a");
	make_directory(fixture->from, "a/b");
	write_text(fixture->from, "a/b/file", "content");
	write_text(fixture->from, "was-a-directory", "now a file");
	path_of(fixture->from, "link", path);
	assert_int_equal(symlink("a/b/file", path), 0);
	path_of(fixture->from, "pipe", path);
	assert_int_equal(mkfifo(path, 0600), 0);
	path_of(fixture->from, "a/b/file", path);
	assert_int_equal(chmod(path, 04711), 0);
	make_directory(fixture->to, "was-a-directory");
	write_text(fixture->to, "was-a-directory/inside", "old");
	make_directory(fixture->to, "gone");
	write_text(fixture->to, "gone/file", "old");
	write_text(fixture->to, "a", "was a file");
	open_sender(fixture, TREE_COPY_LIMIT_BYTES);
	assert_int_equal(send_it(fixture, false, &err), 0);
	assert_text(fixture->to, "a/b/file", "content");
	assert_text(fixture->to, "was-a-directory", "now a file");
	assert_false(is_there(fixture->to, "gone"));
	path_of(fixture->to, "link", path);
	assert_int_equal(readlink(path, target, sizeof(target) - 1), 8);
	assert_string_equal(target, "a/b/file");
	path_of(fixture->to, "pipe", path);
	assert_int_equal(stat(path, &info), 0);
	assert_true(S_ISFIFO(info.st_mode));
	path_of(fixture->to, "a/b/file", path);
	assert_int_equal(stat(path, &info), 0);
	assert_int_equal(info.st_mode & 07777, 04711);
}

static void tree__the_same_is_there__nothing_is_sent(void **state)
{
	struct fixture *fixture = *state;
	struct dp_err err;
	write_text(fixture->from, "file", "content");
	open_sender(fixture, TREE_COPY_LIMIT_BYTES);
	assert_int_equal(send_it(fixture, false, &err), 0);
	assert_int_equal(tree_sender_bytes(fixture->sender), 7);
	tree_sender_free(fixture->sender);
	open_sender(fixture, TREE_COPY_LIMIT_BYTES);
	assert_int_equal(send_it(fixture, false, &err), 0);
	assert_int_equal(tree_sender_bytes(fixture->sender), 0);
}

static void tree__changes_after_the_first_pass__arrive_in_the_second(void **state)
{
	struct fixture *fixture = *state;
	struct dp_err err;
	char path[200], other[200];
	write_text(fixture->from, "same", "a large file that did not change");
	write_text(fixture->from, "changed", "one");
	write_text(fixture->from, "mapped", "before");
	write_text(fixture->from, "removed", "x");
	make_directory(fixture->from, "directory");
	write_text(fixture->from, "directory/file", "in it");
	usleep(150000); /* what was written just now counts as changed */
	path_of(fixture->from, "mapped", path);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(map != MAP_FAILED);
	close(fd);
	open_sender(fixture, TREE_COPY_LIMIT_BYTES);
	assert_int_equal(send_it(fixture, false, &err), 0);
	uint64_t before = tree_sender_bytes(fixture->sender);
	write_text(fixture->from, "changed", "two");
	memcpy(map, "after!", 6);
	path_of(fixture->from, "removed", path);
	unlink(path);
	path_of(fixture->from, "directory", path);
	path_of(fixture->from, "renamed", other);
	assert_int_equal(rename(path, other), 0);
	make_directory(fixture->from, "new");
	write_text(fixture->from, "new/file", "new");
	assert_int_equal(send_it(fixture, true, &err), 0);
	assert_text(fixture->to, "changed", "two");
	assert_text(fixture->to, "mapped", "after!");
	assert_false(is_there(fixture->to, "removed"));
	assert_false(is_there(fixture->to, "directory"));
	assert_text(fixture->to, "renamed/file", "in it");
	assert_text(fixture->to, "new/file", "new");
	assert_text(fixture->to, "same", "a large file that did not change");
	assert_int_equal(tree_sender_bytes(fixture->sender) - before, 3 + 6 + 5 + 3);
	munmap(map, 4096);
}

static void tree__more_than_the_limit__is_refused(void **state)
{
	struct fixture *fixture = *state;
	struct dp_err err;
	write_text(fixture->from, "file", "seven b");
	open_sender(fixture, 6);
	assert_int_equal(send_it(fixture, false, &err), -EFBIG);
	assert_non_null(strstr(err.text, "--rootfs-limit"));
	assert_false(is_there(fixture->to, "file"));
}

/* TC1 */
static int say(struct fixture *fixture, const char *text)
{
	struct tree_receiver receiver;
	struct dp_err err;
	struct lines nobody = { 0 };
	json_object *line = json_tokener_parse(text);
	assert_non_null(line);
	assert_int_equal(tree_receiver_open(&receiver, fixture->to, &err), 0);
	int ret = tree_receive(&receiver, line, &nobody, &err);
	tree_receiver_close(&receiver);
	json_object_put(line);
	return ret;
}

static void tree__what_is_said_leads_outside__is_refused(void **state)
{
	struct fixture *fixture = *state;
	char path[200];
	path_of(fixture->to, "way-out", path);
	assert_int_equal(symlink("../from", path), 0);
	write_text(fixture->from, "precious", "x");
	static const char *const lines[] = {
		"{\"op\":\"dir\",\"dir\":\"../from\",\"entries\":[]}",
		"{\"op\":\"dir\",\"dir\":\"/\",\"entries\":[]}",
		"{\"op\":\"dir\",\"dir\":\"way-out\",\"entries\":[]}",
		"{\"op\":\"dir\",\"entries\":[]}",
		"{\"op\":\"dir\",\"dir\":\"\",\"entries\":[{\"name\":\"../evil\",\"type\":\"d\",\"mode\":448}]}",
		"{\"op\":\"dir\",\"dir\":\"\",\"entries\":[{\"name\":\"..\",\"type\":\"d\",\"mode\":448}]}",
		"{\"op\":\"dir\",\"dir\":\"\",\"entries\":[{\"type\":\"d\",\"mode\":448}]}",
		"{\"op\":\"dir\",\"dir\":\"\",\"entries\":[{\"name\":\"x\",\"type\":\"?\",\"mode\":448}]}",
		"{\"op\":\"file\",\"dir\":\"way-out\",\"entry\":{\"name\":\"precious\",\"type\":\"f\",\"mode\":448,\"size\":0}}",
		"{\"op\":\"file\",\"dir\":\"\",\"entry\":{\"name\":\"../evil\",\"type\":\"f\",\"mode\":448,\"size\":0}}",
		"{\"op\":\"file\",\"dir\":\"\",\"entry\":{\"name\":\"x\",\"type\":\"f\",\"mode\":448,\"size\":-1}}",
		"{\"op\":\"file\",\"dir\":\"\"}",
	};
	for (size_t i = 0; i < ARRAY_LENGTH(lines); i++)
		assert_true(say(fixture, lines[i]) < 0);
	assert_text(fixture->from, "precious", "x");
	assert_false(is_there(fixture->directory, "evil"));
}

/* ---- where things lie ---- */

static void overlay__options_of_a_mount__are_found(void **state)
{
	static const char mounts[] = "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
				     "30 22 0:40 / /run/b\\040c/rootfs rw,relatime shared:1 - overlay overlay rw,lowerdir=/l1:/l2,upperdir=/u,workdir=/w\n"
				     "31 22 0:41 / /tmp rw - tmpfs tmpfs rw\n";
	char *lower, *upper, *work;
	(void)state;
	assert_true(oci_overlay_find(mounts, "/run/b c/rootfs", &lower, &upper, &work));
	assert_string_equal(lower, "/l1:/l2");
	assert_string_equal(upper, "/u");
	assert_string_equal(work, "/w");
	free(lower);
	free(upper);
	free(work);
	assert_false(oci_overlay_find(mounts, "/tmp", &lower, &upper, &work));
	assert_false(oci_overlay_find(mounts, "/", &lower, &upper, &work));
	assert_false(oci_overlay_find("damaged", "/", &lower, &upper, &work));
}

static void root__of_a_container__is_found_on_the_host(void **state)
{
	static const char host[] = "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
				   "30 22 8:2 /data /srv rw - ext4 /dev/sdb rw\n"
				   "31 22 0:41 / /merged rw - overlay overlay rw\n";
	char root[PATH_MAX];
	(void)state;
	assert_true(clone_source_root("50 40 8:1 /var/lib/c/rootfs / rw - ext4 /dev/sda rw\n", host, root));
	assert_string_equal(root, "/var/lib/c/rootfs");
	assert_true(clone_source_root("50 40 8:2 /data/c / rw - ext4 /dev/sdb rw\n", host, root));
	assert_string_equal(root, "/srv/c");
	assert_true(clone_source_root("50 40 0:41 / / rw - overlay overlay rw\n51 50 8:1 /v /v rw - ext4 x rw\n", host, root));
	assert_string_equal(root, "/merged");
	assert_false(clone_source_root("50 40 8:2 /database / rw - ext4 /dev/sdb rw\n", host, root));
	assert_false(clone_source_root("50 40 0:99 / / rw - tmpfs tmpfs rw\n", host, root));
}

static void private_files__kinds_of_file_systems__are_told_apart(void **state)
{
	(void)state;
	assert_true(private_files_holds("ext4"));
	assert_true(private_files_holds("tmpfs"));
	assert_true(private_files_holds("nfs4"));
	assert_true(private_files_holds("of another kind"));
	assert_false(private_files_holds("proc"));
	assert_false(private_files_holds("devtmpfs"));
	assert_false(private_files_holds("cgroup2"));
}

/* ---- who may ---- */

static void access__clone__is_had_by_a_rule_only(void **state)
{
	struct access *access;
	struct dp_err err;
	(void)state;
	assert_int_equal(access_parse(&access, "psk:all read,write,admin\npsk:look clone web*\npsk:both read,write,admin\npsk:both clone\n",
				      &err), 0);
	assert_int_equal(access_rights(access, "psk:all", "web1") & RIGHT_CLONE, 0);
	assert_int_equal(access_rights(access, "psk:look", "web1"), RIGHT_CLONE);
	assert_int_equal(access_rights(access, "psk:look", "database"), 0);
	assert_int_equal(access_rights(access, "psk:both", "database"), RIGHTS_KNOWN);
	assert_string_equal(access_right_name(RIGHT_CLONE), "clone");
	access_free(access);
	assert_int_equal(access_rights(NULL, "psk:look", "web1") & RIGHT_CLONE, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(tree__other_things_are_there__becomes_the_same, set_up, tear_down),
		cmocka_unit_test_setup_teardown(tree__the_same_is_there__nothing_is_sent, set_up, tear_down),
		cmocka_unit_test_setup_teardown(tree__changes_after_the_first_pass__arrive_in_the_second, set_up, tear_down),
		cmocka_unit_test_setup_teardown(tree__more_than_the_limit__is_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(tree__what_is_said_leads_outside__is_refused, set_up, tear_down),
		cmocka_unit_test(overlay__options_of_a_mount__are_found),
		cmocka_unit_test(root__of_a_container__is_found_on_the_host),
		cmocka_unit_test(private_files__kinds_of_file_systems__are_told_apart),
		cmocka_unit_test(access__clone__is_had_by_a_rule_only),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
