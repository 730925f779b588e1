/* Frames: slots of the store below, cut into pieces. */
#include <errno.h>
#include <string.h>

#include "store/packed.h"

const struct packed_class packed_classes[PACKED_CLASSES] = {
	{ 1, 16, 256 },  { 1, 12, 341 },  { 1, 8, 512 },  { 1, 6, 682 },  { 1, 5, 819 },  { 1, 4, 1024 },
	{ 1, 3, 1365 },  { 2, 5, 1638 },  { 1, 2, 2048 }, { 2, 3, 2730 }, { 3, 4, 3072 }, { 1, 1, 4096 },
};

static int push(struct packed_slots *slots, uint64_t slot)
{
	if (slots->count == slots->room) {
		size_t room = slots->room ? slots->room * 2 : 64;
		uint64_t *wider = reallocarray(slots->at, room, sizeof(*wider));

		if (!wider)
			return -ENOMEM;
		slots->at = wider;
		slots->room = room;
	}
	slots->at[slots->count++] = slot;
	return 0;
}

static int reserve_frames(struct packed_store *packed, uint64_t end)
{
	if (end <= packed->frame_count)
		return 0;
	uint64_t count = DP_MAX(end, packed->frame_count + packed->frame_count / 2);
	struct packed_frame *frames = reallocarray(packed->frames, count, sizeof(*frames));

	if (!frames)
		return -ENOMEM;
	memset(frames + packed->frame_count, 0, (count - packed->frame_count) * sizeof(*frames));
	packed->frames = frames;
	packed->frame_count = count;
	return 0;
}

static uint16_t all_pieces(unsigned class)
{
	return (uint16_t)((1u << packed_classes[class].pieces) - 1);
}

static int compare_ascending(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

static int compare_descending(const void *left, const void *right)
{
	return compare_ascending(right, left);
}

static void forget_image(struct packed_image *image)
{
	image->slot = 0;
	image->dirty = false;
}

/* More slots from below: a batch, or as few as there are. */
static int refill(struct packed_store *packed, size_t wanted)
{
	uint64_t slots[PACKED_RESERVE];
	size_t count = PACKED_RESERVE;
	int result = packed->lower->ops->alloc(packed->lower, slots, count);

	if (result == -ENOSPC) {
		count = wanted;
		result = packed->lower->ops->alloc(packed->lower, slots, count);
	}
	for (size_t i = 0; i < count && result == 0; i++) {
		result = reserve_frames(packed, slots[i] + PACKED_FRAME_SLOTS);
		if (result == 0)
			result = push(&packed->reserve, slots[i]);
		if (result < 0)
			packed->lower->ops->free(packed->lower, slots + i, count - i);
	}
	qsort(packed->reserve.at, packed->reserve.count, sizeof(uint64_t), compare_descending);
	return result;
}

/* Takes `count` slots that follow one another out of the reserve; the lowest at its end. */
static bool take_run(struct packed_store *packed, unsigned count, uint64_t *first)
{
	struct packed_slots *reserve = &packed->reserve;

	for (size_t end = reserve->count; end >= count; end--) {
		size_t start = end - count;

		if (reserve->at[start] - reserve->at[end - 1] != count - 1)
			continue;
		*first = reserve->at[end - 1];
		memmove(reserve->at + start, reserve->at + end, (reserve->count - end) * sizeof(uint64_t));
		reserve->count -= count;
		return true;
	}
	return false;
}

static int new_frame(struct packed_store *packed, unsigned class, uint64_t *slot)
{
	unsigned slots = packed_classes[class].slots;

	/* Slots come mostly in a row, so two batches hold a run. */
	for (unsigned attempt = 0; !take_run(packed, slots, slot); attempt++) {
		if (attempt == 2)
			return -ENOSPC;
		int result = refill(packed, slots);

		if (result < 0)
			return result;
	}
	packed->frames[*slot] = (struct packed_frame){ .class = (uint8_t)class };
	for (unsigned i = 1; i < slots; i++)
		packed->frames[*slot + i] = (struct packed_frame){ .inside = true };
	return 0;
}

/* A frame with room, from the list; frames that were freed or filled since are taken off it. 0: none. */
static uint64_t find_room(struct packed_store *packed, unsigned class)
{
	struct packed_slots *list = &packed->with_room[class];

	while (list->count) {
		uint64_t slot = list->at[list->count - 1];
		struct packed_frame *frame = &packed->frames[slot];

		if (frame->listed && frame->class == class && frame->used && frame->used != all_pieces(class))
			return slot;
		if (frame->class == class)
			frame->listed = false;
		list->count--;
	}
	return 0;
}

int packed_take_piece(struct packed_store *packed, unsigned class, struct packed_entry *entry)
{
	uint64_t slot = find_room(packed, class);

	if (!slot) {
		int result = new_frame(packed, class, &slot);

		if (result < 0)
			return result;
		/* Not on the list, where memory is out: its other pieces are wasted until it is freed. */
		packed->frames[slot].listed = packed_classes[class].pieces > 1 && push(&packed->with_room[class], slot) == 0;
	}
	struct packed_frame *frame = &packed->frames[slot];

	entry->slot = slot;
	entry->class = class & 15;
	entry->piece = (uint8_t)__builtin_ctz(~(unsigned)frame->used);
	frame->used |= (uint16_t)(1u << entry->piece);
	return 0;
}

void packed_release_piece(struct packed_store *packed, const struct packed_entry *entry)
{
	struct packed_frame *frame = &packed->frames[entry->slot];
	unsigned class = entry->class, slots = packed_classes[class].slots;

	frame->used &= (uint16_t)~(1u << entry->piece);
	if (frame->used) {
		if (!frame->listed)
			frame->listed = push(&packed->with_room[class], entry->slot) == 0;
		return;
	}
	if (packed->images[class].slot == entry->slot)
		forget_image(&packed->images[class]);
	for (unsigned i = 0; i < slots; i++) {
		uint64_t slot = entry->slot + i;

		packed->frames[slot] = (struct packed_frame){ 0 };
		/* Where memory is out: at once, alone. */
		if (push(&packed->freed, slot) < 0)
			packed->lower->ops->free(packed->lower, &slot, 1);
	}
}

void packed_give_back(struct packed_store *packed)
{
	if (packed->freed.count == 0)
		return;
	qsort(packed->freed.at, packed->freed.count, sizeof(uint64_t), compare_ascending);
	packed->lower->ops->free(packed->lower, packed->freed.at, packed->freed.count);
	packed->freed.count = 0;
}

void packed_release_reserve(struct packed_store *packed)
{
	packed_give_back(packed);
	if (packed->reserve.count)
		packed->lower->ops->free(packed->lower, packed->reserve.at, packed->reserve.count);
	packed->reserve.count = 0;
}

int packed_adopt_piece(struct packed_store *packed, const struct packed_entry *entry, uint64_t lower_end)
{
	if (entry->slot == 0 || entry->class >= PACKED_CLASSES || entry->codec > CODEC_ZSTD)
		return -EBADMSG;
	const struct packed_class *class = &packed_classes[entry->class];

	if (entry->slot >= lower_end || class->slots > lower_end - entry->slot || entry->piece >= class->pieces ||
	    entry->length == 0 || entry->length > class->bytes || (entry->length == PAGE_BYTES) != (entry->codec == CODEC_NONE))
		return -EBADMSG;
	if (reserve_frames(packed, entry->slot + PACKED_FRAME_SLOTS) < 0)
		return -ENOMEM;
	struct packed_frame *frame = &packed->frames[entry->slot];

	/* The first of its frame's pieces claims the frame's slots, none of which may be another's. */
	if (frame->used == 0) {
		for (unsigned i = 0; i < class->slots; i++)
			if (packed_slot_used(packed, entry->slot + i))
				return -EBADMSG;
		frame->class = entry->class;
		for (unsigned i = 1; i < class->slots; i++)
			frame[i].inside = true;
	}
	if (frame->class != entry->class || frame->used >> entry->piece & 1)
		return -EBADMSG;
	frame->used |= (uint16_t)(1u << entry->piece);
	if (!frame->listed && class->pieces > 1)
		frame->listed = push(&packed->with_room[entry->class], entry->slot) == 0;
	return 0;
}

bool packed_slot_used(const struct packed_store *packed, uint64_t slot)
{
	return slot < packed->frame_count && (packed->frames[slot].used || packed->frames[slot].inside);
}

/* ---- bytes ---- */

static int read_slot(struct packed_store *packed, uint64_t slot, uint8_t *bytes, const uint8_t **page)
{
	void *pages[] = { bytes };

	*page = packed->lower->ops->page(packed->lower, slot);
	if (*page)
		return 0;
	*page = bytes;
	return packed->lower->ops->read(packed->lower, &slot, pages, 1);
}

static int flush_image(struct packed_store *packed, unsigned class)
{
	struct packed_image *image = &packed->images[class];
	uint64_t slots[PACKED_FRAME_SLOTS];
	const void *pages[PACKED_FRAME_SLOTS];

	if (!image->dirty)
		return 0;
	for (unsigned i = 0; i < packed_classes[class].slots; i++) {
		slots[i] = image->slot + i;
		pages[i] = image->bytes + (size_t)i * PAGE_BYTES;
	}
	int result = packed->lower->ops->write(packed->lower, slots, pages, packed_classes[class].slots);

	if (result == 0)
		image->dirty = false;
	return result;
}

/* The frame as it is: what other pieces hold must be written back with it. */
static int load_image(struct packed_store *packed, unsigned class, uint64_t slot)
{
	struct packed_image *image = &packed->images[class];

	image->slot = 0;
	for (unsigned i = 0; i < packed_classes[class].slots; i++) {
		uint8_t *place = image->bytes + (size_t)i * PAGE_BYTES;
		const uint8_t *page;
		int result = read_slot(packed, slot + i, place, &page);

		if (result < 0)
			return result;
		if (page != place)
			memcpy(place, page, PAGE_BYTES);
	}
	image->slot = slot;
	return 0;
}

int packed_write_piece(struct packed_store *packed, const struct packed_entry *entry, const void *bytes)
{
	unsigned class = entry->class;
	struct packed_image *image = &packed->images[class];
	const struct packed_frame *frame = &packed->frames[entry->slot];

	if (image->slot != entry->slot) {
		int result = flush_image(packed, class);

		if (result == 0 && frame->used == 1u << entry->piece) {
			memset(image->bytes, 0, sizeof(image->bytes));
			image->slot = entry->slot;
		} else if (result == 0) {
			result = load_image(packed, class, entry->slot);
		}
		if (result < 0)
			return result;
	}
	memcpy(image->bytes + (size_t)entry->piece * packed_classes[class].bytes, bytes, entry->length);
	image->dirty = true;
	return 0;
}

int packed_flush(struct packed_store *packed)
{
	int result = 0;

	for (unsigned class = 0; class < PACKED_CLASSES && result == 0; class++)
		result = flush_image(packed, class);
	return result;
}

void packed_drop_images(struct packed_store *packed)
{
	for (unsigned class = 0; class < PACKED_CLASSES; class++)
		forget_image(&packed->images[class]);
}

int packed_read_piece(struct packed_store *packed, const struct packed_entry *entry, uint8_t *bytes)
{
	uint64_t offset = (uint64_t)entry->piece * packed_classes[entry->class].bytes;
	size_t left = entry->length;

	while (left) {
		uint8_t buffer[PAGE_BYTES];
		const uint8_t *page;
		size_t part = DP_MIN(left, (size_t)(PAGE_BYTES - offset % PAGE_BYTES));
		int result = read_slot(packed, entry->slot + offset / PAGE_BYTES, buffer, &page);

		if (result < 0)
			return result;
		memcpy(bytes, page + offset % PAGE_BYTES, part);
		bytes += part;
		offset += part;
		left -= part;
	}
	return 0;
}
