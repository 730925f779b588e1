/* The protocol's codec: round trips, every truncation, hostile counts. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "wire/bytes.h"
#include "wire/message.h"

typedef int (*decoder)(const uint8_t *bytes, size_t length);

#define DECODER(name, type)                                             \
	static int decode_##name(const uint8_t *bytes, size_t length)   \
	{                                                               \
		struct type out;                                        \
		return message_##name##_decode(bytes, length, &out);    \
	}
DECODER(hello, message_hello)
DECODER(error, message_error)
DECODER(get, message_ranges)
DECODER(drop, message_ranges)
DECODER(data, message_data)
DECODER(move, message_move)
DECODER(name, message_name)
DECODER(inherit, message_inherit)
DECODER(file_get, message_file_get)
DECODER(info, message_info)
DECODER(status, message_status)
DECODER(instance_create, message_instance_create)
DECODER(instance_info, message_instance_info)

static int decode_number(const uint8_t *bytes, size_t length)
{
	uint64_t number;

	return message_number_decode(bytes, length, &number);
}

static int decode_put(const uint8_t *bytes, size_t length)
{
	struct message_put put;

	return message_put_decode(bytes, length, &put);
}

static struct message_text text(const char *at)
{
	return (struct message_text){ at, (uint32_t)strlen(at) };
}

/* Whole it is good; every shorter and every longer form is refused. Each is decoded from a buffer of just its size, so that
 * a sanitizer sees a read beyond it. */
static void check_truncations(decoder decode, const uint8_t *bytes, int length)
{
	assert_true(length > 0);
	for (size_t cut = 0; cut <= (size_t)length + 1; cut++) {
		uint8_t *exact = malloc(cut ? cut : 1);

		memset(exact, 0, cut);
		memcpy(exact, bytes, DP_MIN(cut, (size_t)length));
		assert_int_equal(decode(exact, cut), cut == (size_t)length ? 0 : -EBADMSG);
		free(exact);
	}
}

static uint8_t buffer[65536];

static void header__round_trip__keeps_every_field(void **state)
{
	const struct message_header header = { .length = 123456,
					       .type = MESSAGE_PUT,
					       .version = MESSAGE_VERSION,
					       .class = CLASS_WRITE_BACK | MESSAGE_MORE,
					       .request = 0x1122334455667788,
					       .object = 0x99aabbccddeeff00,
					       .epoch = 7,
					       .check = 0x01020304,
					       .plain = 4096 };
	static const uint8_t expected[MESSAGE_HEADER_BYTES] = { 0x40, 0xe2, 0x01, 0x00, 18,   0,    2,    0x82, 0x88, 0x77, 0x66,
								0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb,
								0xaa, 0x99, 7,    0,    0,    0,    0,    0,    0,    0,
								4,    3,    2,    1,    0,    16,   0,    0 };
	struct message_header back;

	message_header_encode(buffer, &header);
	assert_memory_equal(buffer, expected, sizeof(expected));
	assert_int_equal(message_header_decode(buffer, &back), 0);
	assert_memory_equal(&back, &header, sizeof(header));
}

static void header__wrong_version_type_class_or_length__is_refused(void **state)
{
	const struct message_header good = { .type = MESSAGE_GET, .version = MESSAGE_VERSION };
	struct message_header bad, back;

	bad = good;
	bad.version = 1;
	message_header_encode(buffer, &bad);
	assert_int_equal(message_header_decode(buffer, &back), -EPROTONOSUPPORT);
	bad = good;
	bad.type = 9999;
	message_header_encode(buffer, &bad);
	assert_int_equal(message_header_decode(buffer, &back), -EBADMSG);
	bad = good;
	bad.class = 3;
	message_header_encode(buffer, &bad);
	assert_int_equal(message_header_decode(buffer, &back), -EBADMSG);
	bad = good;
	bad.length = MESSAGE_PAYLOAD_LIMIT + 1;
	message_header_encode(buffer, &bad);
	assert_int_equal(message_header_decode(buffer, &back), -EBADMSG);
	bad = good;
	bad.length = 100;
	bad.plain = 10; /* a GET carries no pages */
	message_header_encode(buffer, &bad);
	assert_int_equal(message_header_decode(buffer, &back), -EBADMSG);
	bad.type = MESSAGE_PUT;
	bad.plain = 101;
	message_header_encode(buffer, &bad);
	assert_int_equal(message_header_decode(buffer, &back), -EBADMSG);
}

static void check__any_bit_flipped__is_noticed_but_for_pages(void **state)
{
	struct message_header header = {
		.type = MESSAGE_PUT, .version = MESSAGE_VERSION, .length = 100, .plain = 60, .object = 5
	};
	unsigned noticed = 0;

	memset(buffer, 0x5a, 200);
	message_header_encode(buffer, &header);
	message_seal(buffer);
	for (unsigned bit = 0; bit < (MESSAGE_HEADER_BYTES + 100) * 8; bit++) {
		buffer[bit / 8] ^= (uint8_t)(1u << bit % 8);
		/* Refused by its header, or by its check; a length that was flipped would be noticed once as many bytes have
		 * come. */
		if (message_header_decode(buffer, &header) < 0 || header.length > 160 ||
		    !message_check_good(&header, buffer + MESSAGE_HEADER_BYTES))
			noticed++;
		buffer[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_int_equal(noticed, (MESSAGE_HEADER_BYTES + 40) * 8);
	message_header_decode(buffer, &header);
	assert_true(message_check_good(&header, buffer + MESSAGE_HEADER_BYTES));
}

static void digest__of_any_page__begins_with_its_hash_and_is_known(void **state)
{
	static uint8_t page[PAGE_BYTES];

	for (unsigned round = 0; round < 1000; round++) {
		struct page_digest digest = page_digest(page);

		assert_true(page_digest_known(digest));
		assert_int_equal(digest.low, page_hash(page));
		page[round * 37 % PAGE_BYTES] ^= (uint8_t)(round % 255 + 1);
		assert_false(page_digest_same(digest, page_digest(page)));
	}
}

static void payloads__cut_or_longer_anywhere__are_refused(void **state)
{
	const struct page_range ranges[] = { { 5, 3 }, { 100, 1 } };
	const struct message_run runs[] = { { 5, 2, false }, { 7, 90, true } };
	const struct message_info_space space = { 12, 34, 56 };
	const struct message_info info = { .created_unix_ns = 1,
					   .stored_pages = 2,
					   .own_pages = 3,
					   .instances = 4,
					   .file_count = 1,
					   .space_count = 1,
					   .list_count = 1,
					   .name = text("redis:prod"),
					   .meta = text("{}") };
	int length;

	check_truncations(decode_hello, buffer,
			  message_hello_encode(buffer, sizeof(buffer), &(struct message_hello){ 1, 3, HELLO_FEATURE_LZ4 }));
	check_truncations(decode_error, buffer,
			  message_error_encode(buffer, sizeof(buffer), &(struct message_error){ ENOSPC, text("full") }));
	check_truncations(decode_get, buffer, message_ranges_encode(buffer, sizeof(buffer), ranges, 2));
	check_truncations(decode_drop, buffer, message_ranges_encode(buffer, sizeof(buffer), ranges, 2));
	length = message_ranges_encode(buffer, sizeof(buffer), ranges, 2);
	memset(buffer + length, 1, 4 * DIGEST_BYTES);
	check_truncations(decode_put, buffer, length + 4 * (int)(DIGEST_BYTES + PAGE_BYTES));
	memset(buffer + length + DIGEST_BYTES, 0, DIGEST_BYTES); /* a writer that does not know what it wrote */
	assert_int_equal(decode_put(buffer, (size_t)length + 4 * (DIGEST_BYTES + PAGE_BYTES)), -EBADMSG);
	length = message_data_encode(buffer, sizeof(buffer), runs, 2);
	check_truncations(decode_data, buffer, length + 2 * (int)(DIGEST_BYTES + PAGE_BYTES));
	check_truncations(decode_move, buffer, message_move_encode(buffer, sizeof(buffer), &(struct message_move){ 1, 2, 3 }));
	check_truncations(decode_number, buffer, message_number_encode(buffer, sizeof(buffer), 42));
	check_truncations(decode_name, buffer,
			  message_name_encode(buffer, sizeof(buffer), &(struct message_name){ 1, text("a:b") }));
	check_truncations(decode_inherit, buffer, message_inherit_encode(buffer, sizeof(buffer), 9, ranges, 2));
	check_truncations(decode_file_get, buffer,
			  message_file_get_encode(buffer, sizeof(buffer), &(struct message_file_get){ 0, 10, text("mm-1.img") }));
	length = message_info_encode(buffer, sizeof(buffer), &info);
	length += message_info_file_encode(buffer + length, 100, text("pstree.img"), 99);
	length += message_info_space_encode(buffer + length, 100, &space);
	length += message_info_instance_encode(buffer + length, 100, &(struct message_info_instance){ 1, 2, 3, text("web-1") });
	check_truncations(decode_info, buffer, length);
	check_truncations(decode_status, buffer, message_status_encode(buffer, sizeof(buffer), &(struct message_status){ 1, 2 }));
	check_truncations(decode_instance_create, buffer,
			  message_instance_create_encode(buffer, sizeof(buffer),
							 &(struct message_instance_create){ 1, text("a:b"), text("me") }));
	check_truncations(decode_instance_info, buffer, message_instance_info_encode(buffer, sizeof(buffer), &space, 1));
}

static void ranges__round_trip__keep_order_and_sum(void **state)
{
	const struct page_range ranges[] = { { 5, 3 }, { 0, 1 }, { PGNO_END - 7, 7 } };
	struct message_ranges back;
	int length = message_ranges_encode(buffer, sizeof(buffer), ranges, 3);

	assert_int_equal(message_get_decode(buffer, (size_t)length, &back), 0);
	assert_int_equal(back.count, 3);
	assert_int_equal(back.pages, 11);
	for (uint32_t i = 0; i < 3; i++) {
		struct page_range range = message_range_at(&back, i);

		assert_int_equal(range.pgno, ranges[i].pgno);
		assert_int_equal(range.pages, ranges[i].pages);
	}
}

static void ranges__empty_beyond_the_end_or_too_many__are_refused(void **state)
{
	static const struct page_range bad[] = { { 5, 0 },
						 { PGNO_END, 1 },
						 { PGNO_END - 1, 2 },
						 { 0, PGNO_END + 1 },
						 { UINT64_MAX, 2 },
						 { 1, UINT64_MAX },
						 { 0, GET_PAGES_LIMIT + 1 } };
	struct page_range many[GET_RANGES_LIMIT + 1];
	struct message_ranges back;
	int length;

	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		length = message_ranges_encode(buffer, sizeof(buffer), &bad[i], 1);
		assert_int_equal(message_get_decode(buffer, (size_t)length, &back), -EBADMSG);
	}
	/* Of any length for DROP. */
	length = message_ranges_encode(buffer, sizeof(buffer), &(struct page_range){ 0, PGNO_END }, 1);
	assert_int_equal(message_drop_decode(buffer, (size_t)length, &back), 0);
	for (size_t i = 0; i < ARRAY_LENGTH(many); i++)
		many[i] = (struct page_range){ i, 1 };
	length = message_ranges_encode(buffer, sizeof(buffer), many, ARRAY_LENGTH(many));
	assert_int_equal(message_get_decode(buffer, (size_t)length, &back), -EBADMSG);
	length = message_ranges_encode(buffer, sizeof(buffer), many, 0);
	assert_int_equal(message_get_decode(buffer, (size_t)length, &back), -EBADMSG);
	/* A count that the bytes do not bear out. */
	length = message_ranges_encode(buffer, sizeof(buffer), many, 1);
	memcpy(buffer, &(uint32_t){ UINT32_MAX }, 4);
	assert_int_equal(message_drop_decode(buffer, (size_t)length, &back), -EBADMSG);
	/* The payload's limit and PUT's own agree: the largest PUT fits. */
	assert_true(8 + PUT_RANGES_LIMIT * 16 + PUT_PAGES_LIMIT * (DIGEST_BYTES + PAGE_BYTES) <= MESSAGE_PAYLOAD_LIMIT);
}

static void data__runs_that_claim_more_than_is_there__are_refused(void **state)
{
	const struct message_run runs[] = { { 5, DATA_PAGES_LIMIT, false }, { 500, 1, false } };
	struct message_data back;
	int length = message_data_encode(buffer, sizeof(buffer), runs, 2);
	const size_t whole = 24 + DATA_PAGES_LIMIT * (size_t)(DIGEST_BYTES + PAGE_BYTES);
	uint8_t *bytes = calloc(1, whole + 16 + DIGEST_BYTES + PAGE_BYTES);

	memcpy(bytes, buffer, (size_t)length);
	assert_int_equal(message_data_decode(bytes, whole + 16 + DIGEST_BYTES + PAGE_BYTES, &back), -EBADMSG);
	bytes[0] = 1;
	assert_int_equal(message_data_decode(bytes, whole, &back), 0);
	assert_int_equal(back.data_pages, DATA_PAGES_LIMIT);
	assert_ptr_equal(back.digests, bytes + 24);
	assert_ptr_equal(back.pages, bytes + 24 + DATA_PAGES_LIMIT * DIGEST_BYTES);
	bytes[8 + 12] = 3; /* an unknown flag */
	assert_int_equal(message_data_decode(bytes, whole, &back), -EBADMSG);
	bytes[8 + 12] = 2; /* damaged: nothing follows */
	assert_int_equal(message_data_decode(bytes, 24, &back), 0);
	assert_true(message_run_at(&back, 0).damaged);
	assert_int_equal(back.data_pages, 0);
	free(bytes);
}

static void file__part_beyond_the_total__is_refused(void **state)
{
	struct message_file file = { .total = 10, .offset = 8, .name = text("a"), .content = { "xyz", 3 } }, back;
	int length = message_file_encode(buffer, sizeof(buffer), &file);

	assert_int_equal(message_file_decode(buffer, (size_t)length, &back), -EBADMSG);
	file.content.length = 2;
	length = message_file_encode(buffer, sizeof(buffer), &file);
	assert_int_equal(message_file_decode(buffer, (size_t)length, &back), 0);
	assert_int_equal(back.content.length, 2);
	assert_memory_equal(back.content.at, "xy", 2);
	file.name = text("");
	length = message_file_encode(buffer, sizeof(buffer), &file);
	assert_int_equal(message_file_decode(buffer, (size_t)length, &back), -EBADMSG);
}

static void texts__with_NUL_or_too_long__are_refused(void **state)
{
	char longer[NAME_LIMIT + 2];
	struct message_name back;
	int length = message_name_encode(buffer, sizeof(buffer), &(struct message_name){ 0, { "a\0b", 3 } });

	assert_int_equal(message_name_decode(buffer, (size_t)length, &back), -EBADMSG);
	memset(longer, 'a', sizeof(longer));
	length = message_name_encode(buffer, sizeof(buffer), &(struct message_name){ 0, { longer, NAME_LIMIT + 1 } });
	assert_int_equal(message_name_decode(buffer, (size_t)length, &back), -EBADMSG);
	length = message_name_encode(buffer, sizeof(buffer), &(struct message_name){ 0, { longer, NAME_LIMIT } });
	assert_int_equal(message_name_decode(buffer, (size_t)length, &back), 0);
}

static void info__hostile_counts__are_refused(void **state)
{
	struct message_info info = { .name = text("a:b"), .meta = text("") }, back;
	int length = message_info_encode(buffer, sizeof(buffer), &info);

	assert_int_equal(message_info_decode(buffer, (size_t)length, &back), 0);
	info.file_count = UINT32_MAX;
	length = message_info_encode(buffer, sizeof(buffer), &info);
	assert_int_equal(message_info_decode(buffer, (size_t)length, &back), -EBADMSG);
	info.file_count = 0;
	info.list_count = UINT32_MAX;
	length = message_info_encode(buffer, sizeof(buffer), &info);
	assert_int_equal(message_info_decode(buffer, (size_t)length, &back), -EBADMSG);
	info.list_count = 0;
	info.space_count = UINT32_MAX;
	length = message_info_encode(buffer, sizeof(buffer), &info);
	assert_int_equal(message_info_decode(buffer, (size_t)length, &back), -EBADMSG);
}

static void order__round_trip_and_nonsense__is_kept_and_refused(void **state)
{
	const struct order_run runs[] = { { 1, 0x400, 3 }, { 77, PGNO_END - 1, 1 }, { 1, 0, PGNO_END } };
	struct message_order order;
	int length = message_order_encode(buffer, sizeof(buffer), runs, 3);

	assert_int_equal(length, 8 + 3 * 24);
	assert_int_equal(message_order_decode(buffer, (size_t)length, &order), 0);
	assert_int_equal(order.count, 3);
	assert_int_equal(order.pages, 4 + PGNO_END);
	for (uint32_t i = 0; i < 3; i++) {
		struct order_run back = order_run_at(&order, i);

		assert_memory_equal(&back, &runs[i], sizeof(back));
	}
	for (int cut = 0; cut < length; cut++)
		assert_int_equal(message_order_decode(buffer, (size_t)cut, &order), -EBADMSG);
	assert_int_equal(message_order_decode(buffer, (size_t)length + 1, &order), -EBADMSG);
	for (size_t at = 8; at < (size_t)length; at += 24) { /* no pages; beyond the end */
		uint8_t kept[24];

		memcpy(kept, buffer + at, 24);
		memset(buffer + at + 16, 0, 8);
		assert_int_equal(message_order_decode(buffer, (size_t)length, &order), -EBADMSG);
		memset(buffer + at + 8, 0xff, 16);
		assert_int_equal(message_order_decode(buffer, (size_t)length, &order), -EBADMSG);
		memcpy(buffer + at, kept, 24);
	}
	buffer[3] = 0xff;
	assert_int_equal(message_order_decode(buffer, (size_t)length, &order), -EBADMSG);
	assert_int_equal(message_order_encode(buffer, sizeof(buffer), runs, 0), -EMSGSIZE);
	assert_int_equal(message_order_encode(buffer, 79, runs, 3), -EMSGSIZE);
}

static void encoders__buffer_too_small__say_so(void **state)
{
	const struct page_range range = { 1, 1 };

	for (size_t size = 0; size < 24; size++)
		assert_int_equal(message_ranges_encode(buffer, size, &range, 1), -EMSGSIZE);
	assert_int_equal(message_ranges_encode(buffer, 24, &range, 1), 24);
}

static void errors__through_the_wire__keep_their_meaning(void **state)
{
	static const int known[] = { EPERM, ENOENT, EIO, ENOMEM, EBUSY, EEXIST, EINVAL, ENOSPC, EROFS, ESTALE, EPROTO };
	struct message_error back;

	for (size_t i = 0; i < ARRAY_LENGTH(known); i++) {
		int length = message_error_encode(buffer, sizeof(buffer), &(struct message_error){ known[i], text("x") });

		assert_int_equal(message_error_decode(buffer, (size_t)length, &back), 0);
		assert_int_equal(back.error, known[i]);
	}
	assert_int_equal(message_error_number(ESTALE), 116);
	assert_int_equal(message_error_errno(4711), EIO);
	assert_int_equal(message_error_number(ECHILD), 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(header__round_trip__keeps_every_field),
		cmocka_unit_test(header__wrong_version_type_class_or_length__is_refused),
		cmocka_unit_test(check__any_bit_flipped__is_noticed_but_for_pages),
		cmocka_unit_test(digest__of_any_page__begins_with_its_hash_and_is_known),
		cmocka_unit_test(payloads__cut_or_longer_anywhere__are_refused),
		cmocka_unit_test(ranges__round_trip__keep_order_and_sum),
		cmocka_unit_test(ranges__empty_beyond_the_end_or_too_many__are_refused),
		cmocka_unit_test(data__runs_that_claim_more_than_is_there__are_refused),
		cmocka_unit_test(file__part_beyond_the_total__is_refused),
		cmocka_unit_test(texts__with_NUL_or_too_long__are_refused),
		cmocka_unit_test(info__hostile_counts__are_refused),
		cmocka_unit_test(order__round_trip_and_nonsense__is_kept_and_refused),
		cmocka_unit_test(encoders__buffer_too_small__say_so),
		cmocka_unit_test(errors__through_the_wire__keep_their_meaning),
	};

	return cmocka_run_group_tests_name("message", tests, NULL, NULL);
}
