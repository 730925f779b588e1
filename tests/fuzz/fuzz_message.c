/* Every payload decoder of the protocol against every input. The input is one message: header and payload. What decodes is
 * encoded again and must be the same bytes. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "wire/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t again[MESSAGE_PAYLOAD_LIMIT];

static void same(const uint8_t *payload, size_t length, int encoded)
{
	assert(encoded == (int)length && memcmp(payload, again, length) == 0);
}

static void check_ranges(const uint8_t *payload, const struct message_ranges *ranges, size_t head)
{
	struct page_range list[DROP_RANGES_LIMIT];
	uint64_t pages = 0;

	assert(ranges->count <= DROP_RANGES_LIMIT);
	for (uint32_t i = 0; i < ranges->count; i++) {
		list[i] = message_range_at(ranges, i);
		assert(list[i].pages && list[i].pgno + list[i].pages <= PGNO_END);
		pages += list[i].pages;
	}
	assert(pages == ranges->pages);
	same(payload + head, 8 + ranges->count * 16u, message_ranges_encode(again, sizeof(again), list, ranges->count));
}

static void check_data(const uint8_t *payload, size_t length)
{
	struct message_data data;
	struct message_run runs[DATA_RUNS_LIMIT];
	uint8_t sum = 0;

	if (message_data_decode(payload, length, &data) < 0)
		return;
	for (uint32_t i = 0; i < data.count; i++)
		runs[i] = message_run_at(&data, i);
	for (size_t i = 0; i < data.data_pages * (size_t)PAGE_BYTES; i++)
		sum ^= data.pages[i];
	(void)sum;
	same(payload, 8 + data.count * 16u, message_data_encode(again, sizeof(again), runs, data.count));
}

static void unpack(const struct packed_pages *packed)
{
	static uint8_t pages[PUT_PAGES_LIMIT * (size_t)PAGE_BYTES + 1];

	assert(packed->count <= PUT_PAGES_LIMIT);
	pages[packed->count * (size_t)PAGE_BYTES] = 0xaa;
	pack_unpack(packed, pages, NULL);
	assert(pages[packed->count * (size_t)PAGE_BYTES] == 0xaa);
}

static void check_packed(unsigned type, const uint8_t *payload, size_t length)
{
	struct message_put put;
	struct message_data data;
	struct packed_pages packed;

	if (type == MESSAGE_PUT && message_put_decode_packed(payload, length, &put, &packed) == 0) {
		assert(packed.count == put.ranges.pages);
		unpack(&packed);
		check_ranges(payload, &put.ranges, 0);
	}
	if (type == MESSAGE_DATA && message_data_decode_packed(payload, length, &data, &packed) == 0) {
		assert(packed.count == data.data_pages);
		unpack(&packed);
	}
}

static void check_info(const uint8_t *payload, size_t length)
{
	struct message_info info;

	if (message_info_decode(payload, length, &info) < 0)
		return;
	int used = message_info_encode(again, sizeof(again), &info);
	const uint8_t *at = info.files;

	for (uint32_t i = 0; i < info.file_count; i++) {
		struct message_text name;
		uint64_t bytes;

		message_info_file(&at, &name, &bytes);
		used += message_info_file_encode(again + used, sizeof(again) - (size_t)used, name, bytes);
	}
	for (uint32_t i = 0; i < info.space_count; i++) {
		struct message_info_space space = message_info_space_at(info.spaces, i);

		used += message_info_space_encode(again + used, sizeof(again) - (size_t)used, &space);
	}
	at = info.list;
	for (uint32_t i = 0; i < info.list_count; i++) {
		struct message_info_instance instance;

		message_info_instance(&at, &instance);
		used += message_info_instance_encode(again + used, sizeof(again) - (size_t)used, &instance);
	}
	same(payload, length, used);
}

static void check_pages(unsigned type, const uint8_t *payload, size_t length)
{
	struct message_ranges ranges;
	struct message_move move;
	struct message_inherit inherit;
	struct message_near near;
	struct page_place places[GET_PAGES_LIMIT];
	struct message_put put;

	if (type == MESSAGE_GET && message_get_decode(payload, length, &ranges) == 0)
		check_ranges(payload, &ranges, 0);
	if (type == MESSAGE_DROP && message_drop_decode(payload, length, &ranges) == 0)
		check_ranges(payload, &ranges, 0);
	if (type == MESSAGE_PUT && message_put_decode(payload, length, &put) == 0) {
		assert(put.pages + put.ranges.pages * PAGE_BYTES == payload + length);
		assert(page_digest_known(message_digest_at(put.digests, put.ranges.pages - 1)));
		check_ranges(payload, &put.ranges, 0);
	}
	if (type == MESSAGE_SNAPSHOT_INHERIT && message_inherit_decode(payload, length, &inherit) == 0)
		check_ranges(payload, &inherit.ranges, 8);
	if (type == MESSAGE_DATA)
		check_data(payload, length);
	if (type == MESSAGE_NEAR && message_near_decode(payload, length, &near) == 0)
		same(payload, length, message_near_encode(again, sizeof(again), &near));
	if (type == MESSAGE_PLACES && length / PLACE_BYTES <= GET_PAGES_LIMIT &&
	    message_places_decode(payload, length, places, length / PLACE_BYTES) == 0)
		same(payload, length, message_places_encode(again, sizeof(again), places, length / PLACE_BYTES));
	if (type == MESSAGE_MOVE && message_move_decode(payload, length, &move) == 0)
		same(payload, length, message_move_encode(again, sizeof(again), &move));
}

static void check_control(unsigned type, const uint8_t *payload, size_t length)
{
	struct message_hello hello;
	struct message_error error;
	struct message_name name;
	struct message_file file;
	struct message_file_get file_get;
	struct message_status status;
	struct message_instance_create create;
	struct message_instance_info instance;
	struct message_order order;
	char text[ERROR_TEXT_LIMIT + 1];

	if (type == MESSAGE_HELLO && message_hello_decode(payload, length, &hello) == 0)
		same(payload, length, message_hello_encode(again, sizeof(again), &hello));
	if (type == MESSAGE_ERROR && message_error_decode(payload, length, &error) == 0)
		message_text_copy(error.text, text, sizeof(text));
	if (type == MESSAGE_SNAPSHOT_BEGIN && message_name_decode(payload, length, &name) == 0)
		same(payload, length, message_name_encode(again, sizeof(again), &name));
	if (type == MESSAGE_SNAPSHOT_FILE && message_file_decode(payload, length, &file) == 0)
		same(payload, length, message_file_encode(again, sizeof(again), &file));
	if (type == MESSAGE_FILE_GET && message_file_get_decode(payload, length, &file_get) == 0)
		same(payload, length, message_file_get_encode(again, sizeof(again), &file_get));
	if (type == MESSAGE_STATUS && message_status_decode(payload, length, &status) == 0)
		same(payload, length, message_status_encode(again, sizeof(again), &status));
	if (type == MESSAGE_INSTANCE_CREATE && message_instance_create_decode(payload, length, &create) == 0)
		same(payload, length, message_instance_create_encode(again, sizeof(again), &create));
	if (type == MESSAGE_ORDER && message_order_decode(payload, length, &order) == 0)
		for (uint32_t i = 0; i < order.count; i++)
			assert(order_run_at(&order, i).pages);
	if (type == MESSAGE_INSTANCE_INFO && message_instance_info_decode(payload, length, &instance) == 0)
		for (uint32_t i = 0; i < instance.space_count; i++)
			message_info_space_at(instance.spaces, i);
	if (type == MESSAGE_SNAPSHOT_INFO)
		check_info(payload, length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct message_header header;
	uint8_t encoded[MESSAGE_HEADER_BYTES];

	if (size < MESSAGE_HEADER_BYTES || size > MESSAGE_HEADER_BYTES + MESSAGE_PAYLOAD_LIMIT ||
	    message_header_decode(data, &header) < 0)
		return 0;
	message_header_encode(encoded, &header);
	assert(memcmp(encoded, data, sizeof(encoded)) == 0);
	if (header.class & MESSAGE_PACKED)
		check_packed(header.type, data + MESSAGE_HEADER_BYTES, size - MESSAGE_HEADER_BYTES);
	else
		check_pages(header.type, data + MESSAGE_HEADER_BYTES, size - MESSAGE_HEADER_BYTES);
	check_control(header.type, data + MESSAGE_HEADER_BYTES, size - MESSAGE_HEADER_BYTES);
	return 0;
}
