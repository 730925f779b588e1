#include "wire/message.h"

#include <assert.h>
#include <errno.h>
#define XXH_STATIC_LINKING_ONLY /* the state lies on the stack */
#include <xxhash.h>

#include "base/base.h"
#include "wire/bytes.h"

static const struct {
	uint16_t type;
	const char *name;
} types[] = {
	{ MESSAGE_HELLO, "hello" },
	{ MESSAGE_OK, "ok" },
	{ MESSAGE_ERROR, "error" },
	{ MESSAGE_GET, "get" },
	{ MESSAGE_DATA, "data" },
	{ MESSAGE_PUT, "put" },
	{ MESSAGE_DROP, "drop" },
	{ MESSAGE_MOVE, "move" },
	{ MESSAGE_FORK, "fork" },
	{ MESSAGE_SPACE_FREE, "space-free" },
	{ MESSAGE_LOCATE, "locate" },
	{ MESSAGE_PLACES, "places" },
	{ MESSAGE_NEAR, "near" },
	{ MESSAGE_SNAPSHOT_BEGIN, "snapshot-begin" },
	{ MESSAGE_SNAPSHOT_SPACE, "snapshot-space" },
	{ MESSAGE_SNAPSHOT_INHERIT, "snapshot-inherit" },
	{ MESSAGE_SNAPSHOT_FILE, "snapshot-file" },
	{ MESSAGE_SNAPSHOT_COMMIT, "snapshot-commit" },
	{ MESSAGE_SNAPSHOT_ABORT, "snapshot-abort" },
	{ MESSAGE_SNAPSHOT_OPEN, "snapshot-open" },
	{ MESSAGE_SNAPSHOT_INFO, "snapshot-info" },
	{ MESSAGE_FILE_GET, "file-get" },
	{ MESSAGE_FILE_BYTES, "file-bytes" },
	{ MESSAGE_LIST, "list" },
	{ MESSAGE_REMOVE, "remove" },
	{ MESSAGE_STATUS, "status" },
	{ MESSAGE_ORDER_PUT, "order-put" },
	{ MESSAGE_ORDER_GET, "order-get" },
	{ MESSAGE_ORDER, "order" },
	{ MESSAGE_INSTANCE_CREATE, "instance-create" },
	{ MESSAGE_INSTANCE_INFO, "instance-info" },
	{ MESSAGE_INSTANCE_END, "instance-end" },
	{ MESSAGE_LEASE_TAKE, "lease-take" },
	{ MESSAGE_ATTACH, "attach" },
	{ MESSAGE_ATTACHED, "attached" },
	{ MESSAGE_NOTE, "note" },
	{ MESSAGE_SCRUB, "scrub" },
	{ MESSAGE_SCRUBBED, "scrubbed" },
	{ MESSAGE_FIND, "find" },
	{ MESSAGE_FOUND, "found" },
	{ MESSAGE_REPAIR, "repair" },
};

const char *message_type_name(unsigned type)
{
	for (size_t i = 0; i < ARRAY_LENGTH(types); i++)
		if (types[i].type == type)
			return types[i].name;
	return "unknown";
}

static bool type_known(unsigned type)
{
	for (size_t i = 0; i < ARRAY_LENGTH(types); i++)
		if (types[i].type == type)
			return true;
	return false;
}

void message_header_encode(uint8_t bytes[static MESSAGE_HEADER_BYTES], const struct message_header *header)
{
	struct bytes_writer out = bytes_writer(bytes, MESSAGE_HEADER_BYTES);

	bytes_put_u32(&out, header->length);
	bytes_put_u16(&out, header->type);
	bytes_put(&out, &header->version, 1);
	bytes_put(&out, &header->class, 1);
	bytes_put_u64(&out, header->request);
	bytes_put_u64(&out, header->object);
	bytes_put_u64(&out, header->epoch);
	bytes_put_u32(&out, header->check);
	bytes_put_u32(&out, header->plain);
}

/* XXH3 of the payload, seeded with that of the header. */
uint32_t message_check(const struct message_header *header, const struct iovec *pieces, size_t count)
{
	uint8_t bytes[MESSAGE_HEADER_BYTES];
	struct message_header fields = *header;
	size_t left = header->length - header->plain;
	uint64_t hash;

	fields.check = 0;
	message_header_encode(bytes, &fields);
	hash = XXH3_64bits(bytes, sizeof(bytes));
	while (count && pieces->iov_len == 0) {
		pieces++;
		count--;
	}
	if (left && pieces->iov_len >= left) {
		hash = XXH3_64bits_withSeed(pieces->iov_base, left, hash);
	} else if (left) {
		XXH3_state_t state;

		XXH3_INITSTATE(&state);
		XXH3_64bits_reset_withSeed(&state, hash);
		for (; left; pieces++) {
			size_t part = DP_MIN(left, pieces->iov_len);

			XXH3_64bits_update(&state, pieces->iov_base, part);
			left -= part;
		}
		hash = XXH3_64bits_digest(&state);
	}
	return (uint32_t)(hash ^ hash >> 32);
}

bool message_check_good(const struct message_header *header, const uint8_t *payload)
{
	return message_check(header, &(const struct iovec){ (void *)payload, header->length }, 1) == header->check;
}

void message_seal(uint8_t *message)
{
	struct message_header header;

	message_header_decode(message, &header);
	header.check = message_check(&header, &(const struct iovec){ message + MESSAGE_HEADER_BYTES, header.length }, 1);
	message_header_encode(message, &header);
}

int message_header_decode(const uint8_t bytes[static MESSAGE_HEADER_BYTES], struct message_header *header)
{
	*header = (struct message_header){
		.length = bytes_load_u32(bytes),
		.type = bytes_load_u16(bytes + 4),
		.version = bytes[6],
		.class = bytes[7],
		.request = bytes_load_u64(bytes + 8),
		.object = bytes_load_u64(bytes + 16),
		.epoch = bytes_load_u64(bytes + 24),
		.check = bytes_load_u32(bytes + 32),
		.plain = bytes_load_u32(bytes + 36),
	};
	if (header->version != MESSAGE_VERSION)
		return -EPROTONOSUPPORT;
	if (!type_known(header->type) || header->length > MESSAGE_PAYLOAD_LIMIT ||
	    (header->class & MESSAGE_CLASS_MASK) > CLASS_WRITE_BACK || header->plain > header->length ||
	    (header->plain && header->type != MESSAGE_PUT && header->type != MESSAGE_DATA))
		return -EBADMSG;
	return 0;
}

static struct bytes_reader reader_of(const uint8_t *bytes, size_t length)
{
	return (struct bytes_reader){ .at = bytes, .end = bytes + length };
}

static int written(const struct bytes_writer *out)
{
	return out->bad ? -EMSGSIZE : (int)(out->at - out->start);
}

static int complete(const struct bytes_reader *in)
{
	return bytes_complete(in) ? 0 : -EBADMSG;
}

static void put_text(struct bytes_writer *out, struct message_text text)
{
	bytes_put_u16(out, (uint16_t)text.length);
	bytes_put(out, text.at, text.length);
	if (text.length > UINT16_MAX)
		out->bad = true;
}

/* A text of at most limit bytes without NUL. */
static struct message_text get_text(struct bytes_reader *in, uint32_t limit)
{
	struct message_text text = { .length = bytes_get_u16(in) };

	if (text.length > limit)
		in->bad = true;
	text.at = (const char *)bytes_take(in, text.length);
	if (!text.at || memchr(text.at, 0, text.length))
		in->bad = true;
	return text;
}

void message_text_copy(struct message_text text, char *buffer, size_t size)
{
	assert(text.length < size);
	if (text.length)
		memcpy(buffer, text.at, text.length);
	buffer[text.length] = 0;
}

int message_hello_encode(uint8_t *bytes, size_t size, const struct message_hello *hello)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u32(&out, MESSAGE_MAGIC);
	bytes_put_u16(&out, hello->lowest);
	bytes_put_u16(&out, hello->highest);
	bytes_put_u32(&out, hello->features);
	return written(&out);
}

int message_hello_decode(const uint8_t *bytes, size_t length, struct message_hello *hello)
{
	struct bytes_reader in = reader_of(bytes, length);

	if (bytes_get_u32(&in) != MESSAGE_MAGIC)
		in.bad = true;
	hello->lowest = bytes_get_u16(&in);
	hello->highest = bytes_get_u16(&in);
	hello->features = bytes_get_u32(&in);
	if (hello->lowest > hello->highest)
		in.bad = true;
	return complete(&in);
}

int message_error_encode(uint8_t *bytes, size_t size, const struct message_error *error)
{
	struct bytes_writer out = bytes_writer(bytes, size);
	struct message_text text = { .at = error->text.at, .length = DP_MIN(error->text.length, (uint32_t)ERROR_TEXT_LIMIT) };

	bytes_put_u32(&out, message_error_number(error->error));
	put_text(&out, text);
	return written(&out);
}

int message_error_decode(const uint8_t *bytes, size_t length, struct message_error *error)
{
	struct bytes_reader in = reader_of(bytes, length);

	error->error = message_error_errno(bytes_get_u32(&in));
	error->text = get_text(&in, ERROR_TEXT_LIMIT);
	return complete(&in);
}

/* ---- pages ---- */

struct page_range message_range_at(const struct message_ranges *ranges, uint32_t index)
{
	const uint8_t *at = ranges->at + (size_t)index * 16;

	return (struct page_range){ .pgno = bytes_load_u64(at), .pages = bytes_load_u64(at + 8) };
}

static void put_ranges(struct bytes_writer *out, const struct page_range *ranges, size_t count)
{
	bytes_put_u32(out, (uint32_t)count);
	bytes_put_u32(out, 0);
	for (size_t i = 0; i < count; i++) {
		bytes_put_u64(out, ranges[i].pgno);
		bytes_put_u64(out, ranges[i].pages);
	}
}

static bool range_good(struct page_range range)
{
	return range.pages > 0 && range.pages <= PGNO_END && range.pgno <= PGNO_END - range.pages;
}

static void get_ranges(struct bytes_reader *in, uint32_t count_limit, uint64_t pages_limit, struct message_ranges *ranges)
{
	*ranges = (struct message_ranges){ .count = bytes_get_u32(in) };
	if (bytes_get_u32(in) != 0 || ranges->count == 0 || ranges->count > count_limit)
		in->bad = true;
	ranges->at = bytes_take(in, (uint64_t)ranges->count * 16);
	/* No overflow: at most 4096 ranges of at most 2^36 pages. */
	for (uint32_t i = 0; !in->bad && i < ranges->count; i++) {
		struct page_range range = message_range_at(ranges, i);

		if (!range_good(range))
			in->bad = true;
		else
			ranges->pages += range.pages;
	}
	if (ranges->pages > pages_limit)
		in->bad = true;
}

int message_ranges_encode(uint8_t *bytes, size_t size, const struct page_range *ranges, size_t count)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	put_ranges(&out, ranges, count);
	return written(&out);
}

int message_get_decode(const uint8_t *bytes, size_t length, struct message_ranges *ranges)
{
	struct bytes_reader in = reader_of(bytes, length);

	get_ranges(&in, GET_RANGES_LIMIT, GET_PAGES_LIMIT, ranges);
	return complete(&in);
}

int message_drop_decode(const uint8_t *bytes, size_t length, struct message_ranges *ranges)
{
	struct bytes_reader in = reader_of(bytes, length);

	get_ranges(&in, DROP_RANGES_LIMIT, UINT64_MAX, ranges);
	return complete(&in);
}

int message_digests_encode(uint8_t *bytes, size_t size, const struct page_digest *digests, size_t count)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	for (size_t i = 0; i < count; i++) {
		bytes_put_u64(&out, digests[i].low);
		bytes_put_u64(&out, digests[i].high);
	}
	return written(&out);
}

struct page_digest message_digest_at(const uint8_t *digests, uint64_t index)
{
	const uint8_t *at = digests + index * DIGEST_BYTES;

	return (struct page_digest){ bytes_load_u64(at), bytes_load_u64(at + 8) };
}

/* Ranges and digests: a writer knows what it writes, so none of these may be unknown. */
static struct bytes_reader get_put(const uint8_t *bytes, size_t length, struct message_put *put)
{
	struct bytes_reader in = reader_of(bytes, length);

	*put = (struct message_put){ 0 };
	get_ranges(&in, PUT_RANGES_LIMIT, PUT_PAGES_LIMIT, &put->ranges);
	put->digests = bytes_take(&in, in.bad ? 0 : put->ranges.pages * DIGEST_BYTES);
	for (uint64_t i = 0; !in.bad && i < put->ranges.pages; i++)
		if (!page_digest_known(message_digest_at(put->digests, i)))
			in.bad = true;
	return in;
}

int message_put_decode(const uint8_t *bytes, size_t length, struct message_put *put)
{
	struct bytes_reader in = get_put(bytes, length, put);

	put->pages = bytes_take(&in, in.bad ? 0 : put->ranges.pages * PAGE_BYTES);
	return complete(&in);
}

int message_put_decode_packed(const uint8_t *bytes, size_t length, struct message_put *put, struct packed_pages *packed)
{
	struct bytes_reader in = get_put(bytes, length, put);

	return in.bad ? -EBADMSG : pack_decode(in.at, (size_t)(in.end - in.at), (uint32_t)put->ranges.pages, packed);
}

#define RUN_ZERO 1u
#define RUN_DAMAGED 2u

struct message_run message_run_at(const struct message_data *data, uint32_t index)
{
	const uint8_t *at = data->at + (size_t)index * 16;

	return (struct message_run){ .pgno = bytes_load_u64(at),
				     .pages = bytes_load_u32(at + 8),
				     .zero = bytes_load_u32(at + 12) == RUN_ZERO,
				     .damaged = bytes_load_u32(at + 12) == RUN_DAMAGED };
}

int message_data_encode(uint8_t *bytes, size_t size, const struct message_run *runs, size_t count)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u32(&out, (uint32_t)count);
	bytes_put_u32(&out, 0);
	for (size_t i = 0; i < count; i++) {
		bytes_put_u64(&out, runs[i].pgno);
		bytes_put_u32(&out, runs[i].pages);
		bytes_put_u32(&out, runs[i].zero ? RUN_ZERO : runs[i].damaged ? RUN_DAMAGED : 0);
	}
	return written(&out);
}

static void get_runs(struct bytes_reader *in, struct message_data *data)
{
	*data = (struct message_data){ .count = bytes_get_u32(in) };
	if (bytes_get_u32(in) != 0 || data->count == 0 || data->count > DATA_RUNS_LIMIT)
		in->bad = true;
	data->at = bytes_take(in, (uint64_t)data->count * 16);
	for (uint32_t i = 0; !in->bad && i < data->count; i++) {
		struct message_run run = message_run_at(data, i);

		if (!range_good((struct page_range){ run.pgno, run.pages }) || run.pages > GET_PAGES_LIMIT ||
		    bytes_load_u32(data->at + (size_t)i * 16 + 12) > RUN_DAMAGED)
			in->bad = true;
		else if (!run.zero && !run.damaged)
			data->data_pages += run.pages; /* <= 128 * 1024 */
	}
	if (data->data_pages > DATA_PAGES_LIMIT)
		in->bad = true;
	data->digests = bytes_take(in, in->bad ? 0 : (uint64_t)data->data_pages * DIGEST_BYTES);
}

int message_data_decode(const uint8_t *bytes, size_t length, struct message_data *data)
{
	struct bytes_reader in = reader_of(bytes, length);

	get_runs(&in, data);
	data->pages = bytes_take(&in, in.bad ? 0 : (uint64_t)data->data_pages * PAGE_BYTES);
	return complete(&in);
}

int message_data_decode_packed(const uint8_t *bytes, size_t length, struct message_data *data, struct packed_pages *packed)
{
	struct bytes_reader in = reader_of(bytes, length);

	get_runs(&in, data);
	return in.bad ? -EBADMSG : pack_decode(in.at, (size_t)(in.end - in.at), data->data_pages, packed);
}

int message_move_encode(uint8_t *bytes, size_t size, const struct message_move *move)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, move->from_pgno);
	bytes_put_u64(&out, move->to_pgno);
	bytes_put_u64(&out, move->pages);
	return written(&out);
}

int message_move_decode(const uint8_t *bytes, size_t length, struct message_move *move)
{
	struct bytes_reader in = reader_of(bytes, length);

	move->from_pgno = bytes_get_u64(&in);
	move->to_pgno = bytes_get_u64(&in);
	move->pages = bytes_get_u64(&in);
	if (!range_good((struct page_range){ move->from_pgno, move->pages }) ||
	    !range_good((struct page_range){ move->to_pgno, move->pages }))
		in.bad = true;
	return complete(&in);
}

int message_number_encode(uint8_t *bytes, size_t size, uint64_t number)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, number);
	return written(&out);
}

int message_number_decode(const uint8_t *bytes, size_t length, uint64_t *number)
{
	struct bytes_reader in = reader_of(bytes, length);

	*number = bytes_get_u64(&in);
	return complete(&in);
}

/* ---- snapshots ---- */

int message_name_encode(uint8_t *bytes, size_t size, const struct message_name *name)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u32(&out, name->flags);
	put_text(&out, name->name);
	return written(&out);
}

int message_name_decode(const uint8_t *bytes, size_t length, struct message_name *name)
{
	struct bytes_reader in = reader_of(bytes, length);

	name->flags = bytes_get_u32(&in);
	name->name = get_text(&in, NAME_LIMIT);
	if (name->flags > 1)
		in.bad = true;
	return complete(&in);
}

int message_inherit_encode(uint8_t *bytes, size_t size, uint64_t source, const struct page_range *ranges, size_t count)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, source);
	put_ranges(&out, ranges, count);
	return written(&out);
}

int message_inherit_decode(const uint8_t *bytes, size_t length, struct message_inherit *inherit)
{
	struct bytes_reader in = reader_of(bytes, length);

	inherit->source = bytes_get_u64(&in);
	get_ranges(&in, DROP_RANGES_LIMIT, UINT64_MAX, &inherit->ranges);
	return complete(&in);
}

int message_file_encode(uint8_t *bytes, size_t size, const struct message_file *file)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, file->total);
	bytes_put_u64(&out, file->offset);
	put_text(&out, file->name);
	bytes_put(&out, file->content.at, file->content.length);
	return written(&out);
}

int message_file_decode(const uint8_t *bytes, size_t length, struct message_file *file)
{
	struct bytes_reader in = reader_of(bytes, length);

	file->total = bytes_get_u64(&in);
	file->offset = bytes_get_u64(&in);
	file->name = get_text(&in, FILE_NAME_LIMIT);
	file->content.length = in.bad ? 0 : (uint64_t)(in.end - in.at);
	file->content.at = bytes_take(&in, file->content.length);
	if (file->name.length == 0 || file->offset > file->total || file->content.length > file->total - file->offset)
		in.bad = true;
	return complete(&in);
}

int message_file_get_encode(uint8_t *bytes, size_t size, const struct message_file_get *get)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, get->offset);
	bytes_put_u64(&out, get->bytes);
	put_text(&out, get->name);
	return written(&out);
}

int message_file_get_decode(const uint8_t *bytes, size_t length, struct message_file_get *get)
{
	struct bytes_reader in = reader_of(bytes, length);

	get->offset = bytes_get_u64(&in);
	get->bytes = bytes_get_u64(&in);
	get->name = get_text(&in, FILE_NAME_LIMIT);
	if (get->bytes > FILE_PART_LIMIT || get->offset > INT64_MAX)
		in.bad = true;
	return complete(&in);
}

int message_info_encode(uint8_t *bytes, size_t size, const struct message_info *info)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, info->created_unix_ns);
	bytes_put_u64(&out, info->stored_pages);
	bytes_put_u64(&out, info->own_pages);
	bytes_put_u64(&out, info->stored_bytes);
	bytes_put_u32(&out, info->instances);
	bytes_put_u32(&out, info->file_count);
	bytes_put_u32(&out, info->space_count);
	bytes_put_u32(&out, info->list_count);
	put_text(&out, info->name);
	bytes_put_u32(&out, info->meta.length);
	bytes_put(&out, info->meta.at, info->meta.length);
	return written(&out);
}

int message_info_file_encode(uint8_t *bytes, size_t size, struct message_text name, uint64_t file_bytes)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	put_text(&out, name);
	bytes_put_u64(&out, file_bytes);
	return written(&out);
}

int message_info_space_encode(uint8_t *bytes, size_t size, const struct message_info_space *space)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, space->label);
	bytes_put_u64(&out, space->space);
	bytes_put_u64(&out, space->pages);
	return written(&out);
}

int message_info_instance_encode(uint8_t *bytes, size_t size, const struct message_info_instance *instance)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u64(&out, instance->id);
	bytes_put_u64(&out, instance->epoch);
	bytes_put_u64(&out, instance->own_pages);
	put_text(&out, instance->name);
	return written(&out);
}

int message_info_decode(const uint8_t *bytes, size_t length, struct message_info *info)
{
	struct bytes_reader in = reader_of(bytes, length);

	info->created_unix_ns = bytes_get_u64(&in);
	info->stored_pages = bytes_get_u64(&in);
	info->own_pages = bytes_get_u64(&in);
	info->stored_bytes = bytes_get_u64(&in);
	info->instances = bytes_get_u32(&in);
	info->file_count = bytes_get_u32(&in);
	info->space_count = bytes_get_u32(&in);
	info->list_count = bytes_get_u32(&in);
	info->name = get_text(&in, NAME_LIMIT);
	info->meta.length = bytes_get_u32(&in);
	if (info->meta.length > META_LIMIT)
		in.bad = true;
	info->meta.at = (const char *)bytes_take(&in, info->meta.length);
	if (info->meta.at && memchr(info->meta.at, 0, info->meta.length))
		in.bad = true;
	info->files = in.at;
	for (uint32_t i = 0; !in.bad && i < info->file_count; i++) {
		get_text(&in, FILE_NAME_LIMIT);
		bytes_get_u64(&in);
	}
	info->spaces = bytes_take(&in, (uint64_t)info->space_count * 24);
	info->list = in.at;
	for (uint32_t i = 0; !in.bad && i < info->list_count; i++) {
		bytes_take(&in, 24);
		get_text(&in, NAME_LIMIT);
	}
	return complete(&in);
}

void message_info_file(const uint8_t **at, struct message_text *name, uint64_t *file_bytes)
{
	name->length = bytes_load_u16(*at);
	name->at = (const char *)*at + 2;
	*file_bytes = bytes_load_u64(*at + 2 + name->length);
	*at += 2 + name->length + 8;
}

void message_info_instance(const uint8_t **at, struct message_info_instance *instance)
{
	instance->id = bytes_load_u64(*at);
	instance->epoch = bytes_load_u64(*at + 8);
	instance->own_pages = bytes_load_u64(*at + 16);
	instance->name.length = bytes_load_u16(*at + 24);
	instance->name.at = (const char *)*at + 26;
	*at += 26 + instance->name.length;
}

struct message_info_space message_info_space_at(const uint8_t *spaces, uint32_t index)
{
	const uint8_t *at = spaces + (size_t)index * 24;

	return (struct message_info_space){ .label = bytes_load_u64(at),
					    .space = bytes_load_u64(at + 8),
					    .pages = bytes_load_u64(at + 16) };
}

/* Eleven counters in the order of docs/protocol.md. */
int message_status_encode(uint8_t *bytes, size_t size, const struct message_status *status)
{
	struct bytes_writer out = bytes_writer(bytes, size);
	const uint64_t fields[] = { status->page_slots_used, status->page_slots_free, status->snapshots, status->instances,
				    status->spaces,          status->connections,     status->bytes_in,  status->bytes_out,
				    status->requests,        status->uptime_ns,       status->stored_bytes };

	for (size_t i = 0; i < ARRAY_LENGTH(fields); i++)
		bytes_put_u64(&out, fields[i]);
	return written(&out);
}

int message_status_decode(const uint8_t *bytes, size_t length, struct message_status *status)
{
	struct bytes_reader in = reader_of(bytes, length);
	uint64_t *fields[] = { &status->page_slots_used, &status->page_slots_free, &status->snapshots, &status->instances,
			       &status->spaces,          &status->connections,     &status->bytes_in,  &status->bytes_out,
			       &status->requests,        &status->uptime_ns,       &status->stored_bytes };

	for (size_t i = 0; i < ARRAY_LENGTH(fields); i++)
		*fields[i] = bytes_get_u64(&in);
	return complete(&in);
}

/* ---- instances ---- */

int message_instance_create_encode(uint8_t *bytes, size_t size, const struct message_instance_create *create)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u32(&out, create->flags);
	put_text(&out, create->snapshot);
	put_text(&out, create->name);
	return written(&out);
}

int message_instance_create_decode(const uint8_t *bytes, size_t length, struct message_instance_create *create)
{
	struct bytes_reader in = reader_of(bytes, length);

	create->flags = bytes_get_u32(&in);
	create->snapshot = get_text(&in, NAME_LIMIT);
	create->name = get_text(&in, NAME_LIMIT);
	if (create->flags & ~(INSTANCE_FLAG_KEEP | INSTANCE_FLAG_RESUME))
		in.bad = true;
	return complete(&in);
}

int message_instance_info_encode(uint8_t *bytes, size_t size, const struct message_info_space *spaces, size_t count)
{
	struct bytes_writer out = bytes_writer(bytes, size);

	bytes_put_u32(&out, (uint32_t)count);
	bytes_put_u32(&out, 0);
	for (size_t i = 0; i < count; i++) {
		bytes_put_u64(&out, spaces[i].label);
		bytes_put_u64(&out, spaces[i].space);
		bytes_put_u64(&out, spaces[i].pages);
	}
	return written(&out);
}

int message_instance_info_decode(const uint8_t *bytes, size_t length, struct message_instance_info *info)
{
	struct bytes_reader in = reader_of(bytes, length);

	info->space_count = bytes_get_u32(&in);
	if (bytes_get_u32(&in) != 0)
		in.bad = true;
	info->spaces = bytes_take(&in, (uint64_t)info->space_count * 24);
	return complete(&in);
}
