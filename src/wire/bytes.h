/* wire/bytes: a reader and a writer over bytes in hand, little-endian. A step beyond the end sets `bad` and does nothing, so
 * that a codec may take all its fields and look once. Shared by the protocol and the manifest. No I/O, no allocation. */
#ifndef DP_WIRE_BYTES_H
#define DP_WIRE_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct bytes_reader {
	const uint8_t *at, *end;
	bool bad;
};

static inline const uint8_t *bytes_take(struct bytes_reader *reader, uint64_t length)
{
	if (reader->bad || length > (uint64_t)(reader->end - reader->at)) {
		reader->bad = true;
		return NULL;
	}
	const uint8_t *at = reader->at;

	reader->at += length;
	return at;
}
static inline uint16_t bytes_load_u16(const uint8_t *at)
{
	uint16_t value;

	memcpy(&value, at, sizeof(value));
	return le16toh(value);
}
static inline uint32_t bytes_load_u32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return le32toh(value);
}
static inline uint64_t bytes_load_u64(const uint8_t *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return le64toh(value);
}
static inline uint16_t bytes_get_u16(struct bytes_reader *reader)
{
	const uint8_t *at = bytes_take(reader, 2);

	return at ? bytes_load_u16(at) : 0;
}
static inline uint32_t bytes_get_u32(struct bytes_reader *reader)
{
	const uint8_t *at = bytes_take(reader, 4);

	return at ? bytes_load_u32(at) : 0;
}
static inline uint64_t bytes_get_u64(struct bytes_reader *reader)
{
	const uint8_t *at = bytes_take(reader, 8);

	return at ? bytes_load_u64(at) : 0;
}
/* All was there and all was taken. */
static inline bool bytes_complete(const struct bytes_reader *reader)
{
	return !reader->bad && reader->at == reader->end;
}

struct bytes_writer {
	uint8_t *start, *at, *end;
	bool bad;
};

static inline struct bytes_writer bytes_writer(void *bytes, size_t size)
{
	return (struct bytes_writer){ .start = bytes, .at = bytes, .end = (uint8_t *)bytes + size };
}
static inline void bytes_put(struct bytes_writer *writer, const void *bytes, uint64_t length)
{
	if (writer->bad || length > (uint64_t)(writer->end - writer->at)) {
		writer->bad = true;
		return;
	}
	if (length)
		memcpy(writer->at, bytes, length);
	writer->at += length;
}
static inline void bytes_put_u16(struct bytes_writer *writer, uint16_t value)
{
	value = htole16(value);
	bytes_put(writer, &value, sizeof(value));
}
static inline void bytes_put_u32(struct bytes_writer *writer, uint32_t value)
{
	value = htole32(value);
	bytes_put(writer, &value, sizeof(value));
}
static inline void bytes_put_u64(struct bytes_writer *writer, uint64_t value)
{
	value = htole64(value);
	bytes_put(writer, &value, sizeof(value));
}

#endif
