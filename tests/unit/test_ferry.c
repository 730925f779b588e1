/* The small parts of a migration: lines over a stream, addresses, checksums of packets that are sent on, records, ids. */
#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/base.h"
#include "migrate/address.h"
#include "migrate/ferry.h"
#include "migrate/forward.h"
#include "migrate/lines.h"
#include "migrate/record.h"

static void make_pair(struct lines *lines, int *other)
{
	int pair[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	lines_init(lines, stream_from_socket(pair[0]));
	*other = pair[1];
}

static void lines__come_in_pieces_and_together__each_is_one_object(void **state)
{
	(void)state;
	struct lines lines;
	json_object *object;
	int other;
	make_pair(&lines, &other);
	assert_int_equal(lines_receive(&lines, &object, 0), -EAGAIN);
	io_write_full(other, "{\"op\":\"a", 8);
	assert_int_equal(lines_receive(&lines, &object, 0), -EAGAIN);
	io_write_full(other, "\"}\n{\"n\":7,\"f\":true}\n", 20);
	assert_int_equal(lines_receive(&lines, &object, 0), 0);
	assert_string_equal(line_text(object, "op"), "a");
	assert_null(line_text(object, "n"));
	json_object_put(object);
	assert_int_equal(lines_receive(&lines, &object, 0), 0);
	assert_int_equal(line_number(object, "n"), 7);
	assert_true(line_flag(object, "f"));
	assert_false(line_flag(object, "n"));
	json_object_put(object);
	close(other);
	assert_int_equal(lines_receive(&lines, &object, 0), -EPIPE);
	lines_done(&lines);
}

static void lines__no_object__refused(void **state)
{
	(void)state;
	static const char *const bad[] = { "hello\n", "[1,2]\n", "7\n", "\n", "{\"a\":\n" };
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		struct lines lines;
		json_object *object;
		int other;
		make_pair(&lines, &other);
		io_write_full(other, bad[i], strlen(bad[i]));
		assert_int_equal(lines_receive(&lines, &object, 0), -EBADMSG);
		assert_null(object);
		lines_done(&lines);
		close(other);
	}
}

static void lines__longer_than_the_limit__refused(void **state)
{
	(void)state;
	struct lines lines;
	json_object *object;
	int other, ret = -EAGAIN;
	char some[4096];
	make_pair(&lines, &other);
	memset(some, ' ', sizeof(some));
	for (unsigned i = 0; i <= LINES_LIMIT_BYTES / sizeof(some) && ret == -EAGAIN; i++) {
		io_write_full(other, some, sizeof(some));
		ret = lines_receive(&lines, &object, 0);
	}
	assert_int_equal(ret, -EBADMSG);
	lines_done(&lines);
	close(other);
}

static void address__as_people_write_it__parsed(void **state)
{
	(void)state;
	struct address address;
	char text[64];
	assert_int_equal(address_parse(&address, "10.0.0.5/32@eth0", NULL), 0);
	assert_int_equal(address.prefix, 32);
	assert_string_equal(address.device, "eth0");
	assert_string_equal(address_text(&address, text, sizeof(text)), "10.0.0.5/32@eth0");
	assert_int_equal(address_parse(&address, "fd00::0:5/128@eth0", NULL), 0);
	assert_true(address.six);
	assert_string_equal(address_text(&address, text, sizeof(text)), "fd00::5/128@eth0");
	static const char *const bad[] = { "", "10.0.0.5", "10.0.0.5/32", "10.0.0.5@eth0", "10.0.0/24@eth0", "10.0.0.5/0@eth0", "10.0.0.5/33@eth0",
					   "10.0.0.5/x@eth0", "10.0.0.5/24@", "fd00::1/129@eth0", "fe80::1/64@eth0", "::ffff:10.0.0.5/96@eth0", "10.0.0.5/24@a-name-that-is-too-long",
					   "10.0.0.5/24 @eth0", "@/", "/@" };
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
		assert_int_equal(address_parse(&address, bad[i], NULL), -EINVAL);
}

/* From RFC 1071's rule: the sum over pseudo header and segment, with the checksum in it, is all ones. */
static uint32_t whole_sum(const uint8_t *packet)
{
	uint32_t total = (uint32_t)(packet[2] << 8 | packet[3]), length = total - 20, sum = packet[9] + length;
	for (uint32_t i = 12; i < 20; i += 2)
		sum += (uint32_t)(packet[i] << 8 | packet[i + 1]);
	for (uint32_t i = 20; i < total; i += 2)
		sum += (uint32_t)(packet[i] << 8 | (i + 1 < total ? packet[i + 1] : 0));
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static void forward__packets__get_a_checksum_that_holds(void **state)
{
	(void)state;
	for (uint32_t bytes = 40; bytes < 90; bytes++) {
		uint8_t packet[128] = { 0x45 };
		for (uint32_t i = 12; i < bytes; i++)
			packet[i] = (uint8_t)(i * 37 + bytes);
		packet[3] = (uint8_t)bytes;
		packet[9] = bytes % 2 ? IPPROTO_TCP : IPPROTO_UDP;
		assert_true(forward_set_checksum(packet, bytes));
		assert_int_equal(whole_sum(packet), 0xffff);
	}
}

/* The same of IPv6: RFC 8200 section 8.1. */
static void forward__packets_of_ipv6__get_a_checksum_that_holds(void **state)
{
	(void)state;
	for (uint32_t bytes = 60; bytes < 110; bytes++) {
		uint8_t packet[128] = { 0x60 };
		for (uint32_t i = 8; i < bytes; i++)
			packet[i] = (uint8_t)(i * 41 + bytes);
		packet[5] = (uint8_t)(bytes - 40);
		packet[6] = bytes % 2 ? IPPROTO_TCP : IPPROTO_UDP;
		assert_true(forward_set_checksum(packet, bytes));
		uint32_t sum = packet[6] + bytes - 40;
		for (uint32_t i = 8; i < bytes; i += 2)
			sum += (uint32_t)(packet[i] << 8 | (i + 1 < bytes ? packet[i + 1] : 0));
		while (sum >> 16)
			sum = (sum & 0xffff) + (sum >> 16);
		assert_int_equal(sum, 0xffff);
		assert_false(forward_set_checksum(packet, bytes - 1)); /* cut off */
		packet[6] = 44;                                        /* a fragment's header comes first */
		assert_false(forward_set_checksum(packet, bytes));
	}
}

static void forward__what_is_not_whole__left_alone(void **state)
{
	(void)state;
	uint8_t packet[64] = { 0x45, 0, 0, 40, 0, 0, 0, 0, 64, IPPROTO_TCP };
	assert_true(forward_set_checksum(packet, 40));
	for (uint32_t bytes = 0; bytes < 40; bytes++)
		assert_false(forward_set_checksum(packet, bytes));
	packet[6] = 0x20; /* more fragments */
	assert_false(forward_set_checksum(packet, 40));
	packet[6] = 0;
	packet[0] = 0x4f; /* a header longer than the packet */
	assert_false(forward_set_checksum(packet, 40));
	packet[0] = 0x65;
	assert_false(forward_set_checksum(packet, 40));
	packet[0] = 0x45;
	packet[9] = IPPROTO_ICMP;
	assert_false(forward_set_checksum(packet, 40));
}

static void record__written__read_back_and_followed_by_an_heir(void **state)
{
	(void)state;
	char path[] = "/tmp/dp-record-XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	struct switch_record record = { SWITCH_GRANTED, 40000000, 10000000, true }, read = { 0 };
	assert_int_equal(switch_record_write(path, &record, NULL), 0);
	assert_int_equal(switch_record_read(path, &read, NULL), 0);
	assert_int_equal(read.state, SWITCH_GRANTED);
	assert_int_equal(read.lease_ns, 40000000);
	assert_true(read.this_boot);
	uint64_t before = switch_clock_ns();
	assert_false(switch_heir(path)); /* waits the lease out, */
	assert_true(switch_clock_ns() - before >= 50000000);
	assert_int_equal(switch_record_read(path, &read, NULL), 0);
	assert_int_equal(read.state, SWITCH_RESUMED); /* and says so */
	record.state = SWITCH_RELEASED;
	assert_int_equal(switch_record_write(path, &record, NULL), 0);
	assert_true(switch_heir(path));
	assert_int_equal(io_write_file(path, "{}", 2, 0600), 0);
	assert_int_equal(switch_record_read(path, &read, NULL), -EBADMSG);
	unlink(path);
	assert_int_equal(switch_record_read(path, &read, NULL), 0);
	assert_int_equal(read.state, SWITCH_FROZEN);
	assert_false(switch_heir(path));
	unlink(path);
}

static void ferry__ids__only_proper_ones(void **state)
{
	(void)state;
	char id[FERRY_ID_BYTES], other[FERRY_ID_BYTES];
	ferry_make_id(id);
	ferry_make_id(other);
	assert_true(ferry_id_is_proper(id));
	assert_string_not_equal(id, other);
	assert_false(ferry_id_is_proper(NULL));
	assert_false(ferry_id_is_proper("../../../../../../../../etc/pass"));
	assert_false(ferry_id_is_proper("0123"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lines__come_in_pieces_and_together__each_is_one_object),
		cmocka_unit_test(lines__no_object__refused),
		cmocka_unit_test(lines__longer_than_the_limit__refused),
		cmocka_unit_test(address__as_people_write_it__parsed),
		cmocka_unit_test(forward__packets__get_a_checksum_that_holds),
		cmocka_unit_test(forward__packets_of_ipv6__get_a_checksum_that_holds),
		cmocka_unit_test(forward__what_is_not_whole__left_alone),
		cmocka_unit_test(record__written__read_back_and_followed_by_an_heir),
		cmocka_unit_test(ferry__ids__only_proper_ones),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
