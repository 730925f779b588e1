/* Names of pools, taken apart. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "transport/endpoint.h"

static void endpoint_parse__every_form__is_taken_apart(void **state)
{
	static const struct {
		const char *uri;
		enum endpoint_kind kind;
		const char *host;
		unsigned port;
		const char *path, *name, *pool;
	} cases[] = {
		{ "dp://pool.example:7401/redis:prod", ENDPOINT_TCP, "pool.example", 7401, "", "redis:prod",
		  "dp://pool.example:7401" },
		{ "dp://10.0.0.2/team/app", ENDPOINT_TCP, "10.0.0.2", 7400, "", "team/app:latest", "dp://10.0.0.2:7400" },
		{ "dp://[::1]:99/a:B_9.x", ENDPOINT_TCP, "::1", 99, "", "a:B_9.x", "dp://[::1]:99" },
		{ "dp://[fe80::1%eth0]", ENDPOINT_TCP, "fe80::1%eth0", 7400, "", "", "dp://[fe80::1%eth0]:7400" },
		{ "dp://h", ENDPOINT_TCP, "h", 7400, "", "", "dp://h:7400" },
		{ "dp://h/", ENDPOINT_TCP, "h", 7400, "", "", "dp://h:7400" },
		{ "tcp://127.0.0.1:0", ENDPOINT_TCP, "127.0.0.1", 0, "", "", "dp://127.0.0.1:0" },
		{ "dp+unix:///run/p.sock#a", ENDPOINT_UNIX, "", 0, "/run/p.sock", "a:latest", "dp+unix:///run/p.sock" },
		{ "unix:///run/p.sock", ENDPOINT_UNIX, "", 0, "/run/p.sock", "", "dp+unix:///run/p.sock" },
		{ "dir:/var/lib/pool/#r:t", ENDPOINT_DIR, "", 0, "/var/lib/pool", "r:t", "dir:/var/lib/pool" },
		{ "dir:/var/lib/pool?compress=zstd#r:t", ENDPOINT_DIR, "", 0, "/var/lib/pool", "r:t", "dir:/var/lib/pool" },
		{ "file:/x/y?compress=lz4", ENDPOINT_FILE, "", 0, "/x/y", "", "file:/x/y" },
		{ "dir:/x?compress=other", ENDPOINT_DIR, "", 0, "/x?compress=other", "", "dir:/x?compress=other" },
		{ "unix:///x?compress=lz4", ENDPOINT_UNIX, "", 0, "/x?compress=lz4", "", "dp+unix:///x?compress=lz4" },
		{ "file:/x/y.pool#r:t", ENDPOINT_FILE, "", 0, "/x/y.pool", "r:t", "file:/x/y.pool" },
	};

	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct endpoint endpoint;
		struct dp_err err = { "" };
		char text[1400];

		if (endpoint_parse(&endpoint, cases[i].uri, &err) < 0)
			fail_msg("%s: %s", cases[i].uri, err.text);
		assert_int_equal(endpoint.kind, cases[i].kind);
		assert_string_equal(endpoint.host, cases[i].host);
		assert_int_equal(endpoint.port, cases[i].port);
		assert_string_equal(endpoint.path, cases[i].path);
		assert_string_equal(endpoint.name, cases[i].name);
		assert_string_equal(endpoint_pool_text(&endpoint, text, sizeof(text)), cases[i].pool);
	}
}

static void endpoint_parse__wrong__says_what(void **state)
{
	static const char *const wrong[] = {
		"",		     "redis:prod",	     "http://x/y",	   "dp://",		  "dp:///a:b",
		"dp://h:/a",	     "dp://h:65536/a",	     "dp://h:12x/a",	   "dp://[::1/a",	  "dp://[::1]7/a",
		"dp://h/UPPER",	     "dp://h/a:b:c",	     "dp://h/a/../b",	   "dp://h/..",		  "dp://h/a:",
		"dp://h/a:.x",	     "dp://h/a:x..y",	     "dp://h/a b",	   "dp://h /a",		  "dp+unix://relative#a",
		"dp+unix:///p#",     "dir:relative",	     "dir:",		   "dir:/",		  "dir:/x#A",
		"file:",	     "unix://",		     "tcp://",		   "tcp://:80",		  "dp://h/-a",
		"dp://h/\xc3\xa4",  "unix:///run/p#a",
	};

	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
		struct endpoint endpoint;
		struct dp_err err = { "" };

		if (endpoint_parse(&endpoint, wrong[i], &err) != -EINVAL)
			fail_msg("'%s' was taken", wrong[i]);
		assert_true(strlen(err.text) > 10);
	}
}

static void endpoint_name_check__lengths__are_bounded(void **state)
{
	char name[300], normal[256];

	memset(name, 'a', sizeof(name));
	name[128] = 0;
	assert_int_equal(endpoint_name_check(name, normal, NULL), 0);
	assert_int_equal(strlen(normal), 128 + strlen(":latest"));
	name[128] = 'a';
	name[129] = 0;
	assert_int_equal(endpoint_name_check(name, normal, NULL), -EINVAL);
	name[1] = ':';
	name[2 + 64] = 0;
	assert_int_equal(endpoint_name_check(name, normal, NULL), 0);
	name[2 + 64] = 'a';
	name[2 + 65] = 0;
	assert_int_equal(endpoint_name_check(name, normal, NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(endpoint_parse__every_form__is_taken_apart),
		cmocka_unit_test(endpoint_parse__wrong__says_what),
		cmocka_unit_test(endpoint_name_check__lengths__are_bounded),
	};

	return cmocka_run_group_tests_name("endpoint", tests, NULL, NULL);
}
