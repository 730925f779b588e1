#include "base/pageset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

#define WORD_BITS 64u

void pageset_done(struct pageset *set)
{
	free(set->chunks);
	*set = (struct pageset){ 0 };
}

/* Index of the first chunk whose number is not below. */
static size_t find(const struct pageset *set, uint64_t number)
{
	size_t low = 0, high = set->count;
	if (high && set->chunks[high - 1].number < number)
		return high;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (set->chunks[middle].number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static struct pageset_chunk *make(struct pageset *set, uint64_t number)
{
	size_t at = find(set, number);
	if (at < set->count && set->chunks[at].number == number)
		return &set->chunks[at];
	if (set->count == set->room) {
		size_t room = set->room ? set->room * 2 : 8;
		struct pageset_chunk *wider = reallocarray(set->chunks, room, sizeof(*wider));
		if (!wider)
			return NULL;
		set->chunks = wider;
		set->room = room;
	}
	memmove(&set->chunks[at + 1], &set->chunks[at], (set->count - at) * sizeof(*set->chunks));
	set->chunks[at] = (struct pageset_chunk){ .number = number };
	set->count++;
	return &set->chunks[at];
}

/* The bits of a word that stand for pages first..end of a chunk. */
static uint64_t mask_of(uint64_t word, uint64_t first, uint64_t end)
{
	uint64_t from = DP_MAX(first, word * WORD_BITS), to = DP_MIN(end, (word + 1) * WORD_BITS);
	uint64_t count = to - from;
	return (count == WORD_BITS ? ~UINT64_C(0) : (UINT64_C(1) << count) - 1) << (from % WORD_BITS);
}

static void set_bits(struct pageset *set, struct pageset_chunk *chunk, uint64_t first, uint64_t end)
{
	for (uint64_t word = first / WORD_BITS; word * WORD_BITS < end; word++) {
		uint64_t mask = mask_of(word, first, end);
		set->pages += (uint64_t)__builtin_popcountll(mask & ~chunk->bits[word]);
		chunk->bits[word] |= mask;
	}
}

static void clear_bits(struct pageset *set, struct pageset_chunk *chunk, uint64_t first, uint64_t end)
{
	for (uint64_t word = first / WORD_BITS; word * WORD_BITS < end; word++) {
		uint64_t mask = mask_of(word, first, end);
		set->pages -= (uint64_t)__builtin_popcountll(mask & chunk->bits[word]);
		chunk->bits[word] &= ~mask;
	}
}

int pageset_add(struct pageset *set, uint64_t pgno, uint64_t pages)
{
	while (pages) {
		uint64_t first = pgno % PAGESET_CHUNK_PAGES, count = DP_MIN(pages, PAGESET_CHUNK_PAGES - first);
		struct pageset_chunk *chunk = make(set, pgno / PAGESET_CHUNK_PAGES);
		if (!chunk)
			return -ENOMEM;
		set_bits(set, chunk, first, first + count);
		pgno += count;
		pages -= count;
	}
	return 0;
}

void pageset_remove(struct pageset *set, uint64_t pgno, uint64_t pages)
{
	uint64_t end = pgno + pages;
	for (size_t at = find(set, pgno / PAGESET_CHUNK_PAGES); at < set->count; at++) {
		struct pageset_chunk *chunk = &set->chunks[at];
		uint64_t start = chunk->number * PAGESET_CHUNK_PAGES;
		if (start >= end)
			return;
		clear_bits(set, chunk, pgno > start ? pgno - start : 0, DP_MIN(end - start, (uint64_t)PAGESET_CHUNK_PAGES));
	}
}

bool pageset_has(const struct pageset *set, uint64_t pgno)
{
	uint64_t number = pgno / PAGESET_CHUNK_PAGES, bit = pgno % PAGESET_CHUNK_PAGES;
	size_t at = find(set, number);
	if (at == set->count || set->chunks[at].number != number)
		return false;
	return set->chunks[at].bits[bit / WORD_BITS] >> bit % WORD_BITS & 1;
}

/* The first page of the chunk at or after `from` that is in it (or, with in = false, is not); the chunk's end where none is. */
static uint64_t next_bit(const struct pageset_chunk *chunk, uint64_t from, bool in)
{
	for (uint64_t word = from / WORD_BITS; word < PAGESET_CHUNK_PAGES / WORD_BITS; word++) {
		uint64_t bits = in ? chunk->bits[word] : ~chunk->bits[word];
		if (word == from / WORD_BITS)
			bits &= ~UINT64_C(0) << from % WORD_BITS;
		if (bits)
			return word * WORD_BITS + (uint64_t)__builtin_ctzll(bits);
	}
	return PAGESET_CHUNK_PAGES;
}

uint64_t pageset_next(const struct pageset *set, uint64_t *pgno)
{
	for (size_t at = find(set, *pgno / PAGESET_CHUNK_PAGES); at < set->count; at++) {
		const struct pageset_chunk *chunk = &set->chunks[at];
		uint64_t start = chunk->number * PAGESET_CHUNK_PAGES;
		uint64_t first = next_bit(chunk, *pgno > start ? *pgno - start : 0, true);
		if (first == PAGESET_CHUNK_PAGES)
			continue;
		*pgno = start + first;
		return next_bit(chunk, first, false) - first;
	}
	return 0;
}
