/* Files of rights and of pre-shared keys; accounts and quotas of a pool. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "pool/access.h"
#include "pool_fixture.h"
#include "transport/psk.h"
#include "transport/tls.h"

static const char rules[] = "# who may do what\n"
			    "cn:node1.example.org  read,write  redis/* web quota=1M\n"
			    "\n"
			    "  psk:edge-*  read\n"
			    "psk:edge-2   write  mine\r\n"
			    "uid:1000\tadmin,write,read\n"
			    "anonymous none *\n"
			    "*  none  quota=4K\n";

static void access_rights__rules_that_match__add_up(void **state)
{
	static const struct {
		const char *identity, *repository;
		unsigned rights;
	} cases[] = {
		{ "cn:node1.example.org", "redis/a:prod", RIGHT_READ | RIGHT_WRITE },
		{ "cn:node1.example.org", "redis/a/b", RIGHT_READ | RIGHT_WRITE },
		{ "cn:node1.example.org", "web:latest", RIGHT_READ | RIGHT_WRITE },
		{ "cn:node1.example.org", "webs", 0 },
		{ "cn:node1.example.org", "redis", 0 },
		{ "psk:edge-1", "whatever:x", RIGHT_READ },
		{ "psk:edge-2", "whatever:x", RIGHT_READ },
		{ "psk:edge-2", "mine:x", RIGHT_READ | RIGHT_WRITE },
		{ "uid:1000", "a", RIGHTS_ALL },
		{ "uid:100", "a", 0 },
		{ "psk:node1.example.org", "web", 0 }, /* a key's name is no certificate's */
		{ "anonymous", "web", 0 },
	};
	struct access *access;

	assert_int_equal(access_parse(&access, rules, NULL), 0);
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
		if (access_rights(access, cases[i].identity, cases[i].repository) != cases[i].rights)
			fail_msg("%s on %s: %u", cases[i].identity, cases[i].repository,
				 access_rights(access, cases[i].identity, cases[i].repository));
	assert_true(access_knows(access, "psk:edge-9"));
	assert_false(access_knows(access, "anonymous"));
	assert_false(access_knows(access, "cn:nobody"));
	assert_int_equal(access_quota_bytes(access, "cn:node1.example.org"), 1 << 20);
	assert_int_equal(access_quota_bytes(access, "psk:edge-1"), 4096);
	assert_true(access_names_users(access, 0));
	assert_false(access_names_users(access, 1000));
	access_free(access);
}

static void access_rights__no_file__gives_all(void **state)
{
	assert_int_equal(access_rights(NULL, "anonymous", "web"), RIGHTS_ALL);
	assert_true(access_knows(NULL, "anonymous"));
	assert_true(access_quota_bytes(NULL, "anonymous") == NO_QUOTA);
}

static void access_parse__wrong__says_the_line(void **state)
{
	static const char *const wrong[] = { "node1 read\n",
					     "cn: read\n",
					     "psk:a\n",
					     "psk:a reed\n",
					     "psk:a read,\n",
					     "psk:a read quota=x\n",
					     "uid:0 read *\npsk:a root\n" };
	struct access *access;
	struct dp_err err;

	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
		assert_int_equal(access_parse(&access, wrong[i], &err), -EINVAL);
		assert_non_null(strstr(err.text, strchr(wrong[i], '\n')[1] ? "line 2" : "line 1"));
	}
}

#define KEY_A "00112233445566778899aabbccddeeff"
#define KEY_B "FFEEDDCCBBAA99887766554433221100ffeeddccbbaa99887766554433221100"

static void psk_parse__good_lines__are_keys(void **state)
{
	struct psk_list list;

	assert_int_equal(psk_parse(&list, "# keys\n\nedge-1:" KEY_A "\r\nnode@b.c:" KEY_B, NULL), 0);
	assert_int_equal(list.count, 2);
	assert_string_equal(list.keys[0].identity, "edge-1");
	assert_int_equal(list.keys[0].key_bytes, 16);
	assert_int_equal(list.keys[0].key[15], 0xff);
	assert_string_equal(list.keys[1].identity, "node@b.c");
	assert_int_equal(list.keys[1].key_bytes, 32);
	assert_int_equal(list.keys[1].key[0], 0xff);
	psk_list_done(&list);
}

static void psk_parse__wrong__is_refused_and_shows_no_key(void **state)
{
	static const char *const wrong[] = {
		"",
		"# nothing\n",
		"edge-1\n",
		":" KEY_A "\n",
		"edge 1:" KEY_A "\n",
		"edge-1:" KEY_A "0\n",
		"edge-1:00112233\n",
		"edge-1:zz112233445566778899aabbccddeeff\n",
		"a:" KEY_A "\na:" KEY_B "\n",
	};
	struct psk_list list;
	struct dp_err err;

	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
		assert_int_equal(psk_parse(&list, wrong[i], &err), -EINVAL);
		assert_null(list.keys);
		assert_null(strstr(err.text, "112233"));
	}
}

static void psk_read__others_may_read_it__is_refused(void **state)
{
	char path[] = "/tmp/dp-test-XXXXXX";
	int fd = mkstemp(path);
	struct psk_list list;

	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, "a:" KEY_A "\n", 35), 0);
	fchmod(fd, 0640);
	assert_int_equal(psk_read(&list, path, NULL), -EACCES);
	fchmod(fd, 0600);
	assert_int_equal(psk_read(&list, path, NULL), 0);
	psk_list_done(&list);
	close(fd);
	unlink(path);
	assert_int_equal(psk_read(&list, path, NULL), -ENOENT);
}

/* ---- quotas ---- */

static struct pool_fixture fixture;

static int set_up(void **state)
{
	fixture_start(&fixture, "memory:");
	return 0;
}

static int tear_down(void **state)
{
	fixture_end(&fixture);
	return 0;
}

static uint64_t bytes_stored(void)
{
	return fixture.pool->slots.accounts.list[0]->bytes;
}

static void quota__reached__refuses_whole_and_goes_on(void **state)
{
	struct instance_info info;
	struct dp_err err;
	uint64_t draft, space = 0;

	fixture.pool->slots.accounts.list[0]->quota_bytes = 100 * PAGE_BYTES + 4; /* before anybody is connected */
	struct client *client = fixture_connect(&fixture);

	make_snapshot(client, "a", 60); /* and four bytes of a file */
	assert_int_equal(client_instance_create(client, "a", "x", false, &info, &err), 0);
	space = info.spaces[0].space;
	assert_int_equal(put_pages(client, space, info.epoch, 0, 30, 2), 0);
	/* Eleven more do not fit: none of them is there. */
	assert_int_equal(put_pages(client, space, info.epoch, 30, 11, 2), -EDQUOT);
	expect_pages(client, space, 0, 30, 2);
	expect_pages(client, space, 30, 30, 1);
	/* What is there already may be written again, and what is given back is free for others. */
	assert_int_equal(put_pages(client, space, info.epoch, 0, 30, 3), 0);
	assert_int_equal(put_pages(client, space, info.epoch, 0, 30, 0), 0);
	assert_int_equal(put_pages(client, space, info.epoch, 30, 11, 2), 0);
	expect_pages(client, space, 30, 11, 2);
	free(info.spaces);
	/* A snapshot that does not fit is not made. */
	assert_int_equal(client_snapshot_begin(client, "b", false, &draft, &err), 0);
	assert_int_equal(client_snapshot_space(client, draft, 1, &space, &err), 0);
	assert_int_equal(put_pages(client, space, 0, 0, 60, 1), -EDQUOT);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), -EDQUOT);
	assert_int_equal(client_snapshot_abort(client, draft, &err), 0);
	struct snapshot_info *list;
	size_t count;

	assert_int_equal(client_list(client, &list, &count, &err), 0);
	assert_int_equal(count, 1);
	client_snapshot_info_done(&list[0]);
	free(list);
	client_close(client);
	fixture_stop(&fixture);
	assert_int_equal(bytes_stored(), 60 * PAGE_BYTES + 4);
}

static void quota__of_files__counts_them_once(void **state)
{
	char content[5000] = { 0 };
	struct dp_err err;
	uint64_t draft;

	fixture.pool->slots.accounts.list[0]->quota_bytes = 6000;
	struct client *client = fixture_connect(&fixture);

	assert_int_equal(client_snapshot_begin(client, "a", false, &draft, &err), 0);
	assert_int_equal(client_snapshot_file(client, draft, "one", content, 5000, &err), 0);
	assert_int_equal(client_snapshot_file(client, draft, "one", content, 5000, &err), 0); /* replaces */
	assert_int_equal(client_snapshot_file(client, draft, "two", content, 2000, &err), -EDQUOT);
	assert_int_equal(client_snapshot_commit(client, draft, "{}", &err), -EDQUOT);
	client_close(client);
	fixture_stop(&fixture);
	assert_int_equal(bytes_stored(), 0);
}

static void server__too_many_of_one_peer__are_closed(void **state)
{
	struct client *clients[3];
	struct dp_err err;

	server_set_connection_limits(fixture.server, 100, 3); /* nobody is connected */
	for (size_t i = 0; i < ARRAY_LENGTH(clients); i++)
		clients[i] = fixture_connect(&fixture);
	struct client *fourth = NULL;
	int result = client_open(&fourth, &fixture.endpoint, 2000, &err);

	assert_true(result == -ECONNRESET || result == -EPIPE);
	client_close(clients[0]);
	for (int tries = 0; tries < 500 && client_open(&clients[0], &fixture.endpoint, 2000, &err) < 0; tries++)
		usleep(2000); /* the server sees the end of the first one in its own time */
	for (size_t i = 0; i < ARRAY_LENGTH(clients); i++)
		client_close(clients[i]);
}

/* ---- TLS ---- */

static void tls__streams_over_a_slow_socket__carry_every_byte(void **state)
{
	const struct tls_module *module;
	struct psk_list keys;
	struct tls_settings settings = { 0 };
	struct dp_err err;
	void *contexts[2];
	int sockets[2], small = 4096;

	if (tls_load(&module, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(psk_parse(&keys, "a:" KEY_B "\n", NULL), 0);
	for (int server = 0; server < 2; server++)
		assert_int_equal(module->context_new(&contexts[server], &settings, &keys, server, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets), 0);
	setsockopt(sockets[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	setsockopt(sockets[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	struct stream *client = module->stream_new(contexts[0], sockets[0], false, "localhost");
	struct stream *server = module->stream_new(contexts[1], sockets[1], true, NULL);
	static uint8_t sent[1 << 20], received[1 << 20];
	size_t out = 0, in = 0, parts = 0;
	struct stream_peer peer;

	for (size_t i = 0; i < sizeof(sent); i++)
		sent[i] = (uint8_t)(i * 2654435761u >> 13);
	/* Nobody polls: each side is asked again and again, and every call may do a little. */
	for (unsigned turn = 0; in < sizeof(sent) && turn < 1000000; turn++) {
		struct iovec pieces[3] = { { sent + out, DP_MIN(sizeof(sent) - out, (size_t)(turn * 37 % 9000)) } };

		pieces[1] = (struct iovec){ sent + out + pieces[0].iov_len,
					    DP_MIN(sizeof(sent) - out - pieces[0].iov_len, (size_t)30000) };
		pieces[2] = (struct iovec){ sent, 0 };
		ssize_t result = out < sizeof(sent) ? stream_sendv(client, pieces, 3) : stream_flush(client);

		assert_true(result >= 0 || result == -EAGAIN);
		out += out < sizeof(sent) && result > 0 ? (size_t)result : 0;
		result = stream_receive(server, received + in, DP_MIN(sizeof(received) - in, (size_t)(1 + turn * 91 % 20000)));
		assert_true(result > 0 || result == -EAGAIN);
		in += result > 0 ? (size_t)result : 0;
		parts += stream_holds(client);
		result = stream_receive(client, &(uint8_t){ 0 }, 1);
		if (result != -EAGAIN)
			fail_msg("%zd %s %s", result, stream_why(client), stream_why(server));
		stream_flush(server);
	}
	assert_int_equal(in, sizeof(sent));
	assert_memory_equal(sent, received, sizeof(sent));
	assert_true(parts > 0); /* the small socket was full at times */
	stream_peer(server, &peer);
	assert_string_equal(peer.identity, "psk:a");
	stream_close(client);
	assert_int_equal(stream_receive(server, received, 1), 0);
	stream_close(server);
	module->context_free(contexts[0]);
	module->context_free(contexts[1]);
	psk_list_done(&keys);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(access_rights__rules_that_match__add_up),
		cmocka_unit_test(access_rights__no_file__gives_all),
		cmocka_unit_test(access_parse__wrong__says_the_line),
		cmocka_unit_test(psk_parse__good_lines__are_keys),
		cmocka_unit_test(psk_parse__wrong__is_refused_and_shows_no_key),
		cmocka_unit_test(psk_read__others_may_read_it__is_refused),
		cmocka_unit_test_setup_teardown(quota__reached__refuses_whole_and_goes_on, set_up, tear_down),
		cmocka_unit_test_setup_teardown(quota__of_files__counts_them_once, set_up, tear_down),
		cmocka_unit_test_setup_teardown(server__too_many_of_one_peer__are_closed, set_up, tear_down),
		cmocka_unit_test(tls__streams_over_a_slow_socket__carry_every_byte),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
