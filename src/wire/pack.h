/* wire/pack: pages packed by LZ4, each by itself, with a table of their lengths, as packed PUT and DATA messages carry them.
 *
 * A table entry is { u32 length, u32 check }: the length of the page's bytes, which follow one another behind the table, and the
 * low half of the page's content hash. A page that does not shrink by an eighth is left as it is, with length 4096.
 * Unpacking never writes beyond the pages asked for and never trusts a length: what does not give exactly one page with the
 * hash it was sent with is -EBADMSG. No I/O, no allocation. Thread rule: none, no state. */
#ifndef DP_WIRE_PACK_H
#define DP_WIRE_PACK_H

#include <stddef.h>
#include <stdint.h>

#define PACK_ENTRY_BYTES 8u
#define PACK_LENGTH_LIMIT 3584u /* a page longer than this is sent as it is */

/* Pages as they came: the lengths are checked against the bytes in hand, the contents are not. */
struct packed_pages {
	const uint8_t *table;
	const uint8_t *bytes;
	uint32_t count;
};

/* Room that pack_pages needs at most: table and pages. */
#define PACK_ROOM(pages) ((size_t)(pages) * (PACK_ENTRY_BYTES + 4096u))

/* Packs pages into bytes, which has PACK_ROOM(count): the table, then the pages. Returns the bytes used. */
size_t pack_pages(uint8_t *bytes, const void *const *pages, size_t count);
/* Looks at a table and the bytes behind it, which it must use up exactly. 0 or -EBADMSG. */
int pack_decode(const uint8_t *bytes, size_t length, uint32_t count, struct packed_pages *packed);
/* Writes count * 4096 bytes. -EBADMSG where one of them is damaged; what was written then is nonsense. `damaged`: NULL, or a bit
 * for each page, set where it is damaged; the others are right. */
int pack_unpack(const struct packed_pages *packed, uint8_t *pages, uint64_t *damaged);

#endif
