/* What a member missed, and how it gets it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "pager/mirror.h"

/* ---- a set of blocks ---- */

static uint64_t key_of(uint32_t space, uint64_t block)
{
	return ((uint64_t)space << 40 | block) + 2;
}

static size_t place_of(const struct block_set *set, uint64_t key)
{
	size_t at = (size_t)(key * 0x9e3779b97f4a7c15u >> 20) & (set->room - 1);
	while (set->key[at] && set->key[at] != key)
		at = (at + 1) & (set->room - 1);
	return at;
}

static bool set_grow(struct block_set *set)
{
	struct block_set larger = { .room = set->count * 4 < 1024 ? 1024 : 1 };
	while (larger.room < set->count * 4)
		larger.room *= 2;
	larger.key = calloc(larger.room, sizeof(*larger.key));
	if (!larger.key)
		return false;
	for (size_t i = 0; i < set->room; i++)
		if (set->key[i] > 1) {
			larger.key[place_of(&larger, set->key[i])] = set->key[i];
			larger.used++;
			larger.count++;
		}
	free(set->key);
	*set = larger;
	return true;
}

static bool set_add(struct block_set *set, uint32_t space, uint64_t block)
{
	uint64_t key = key_of(space, block);
	if (set->used * 2 >= set->room && !set_grow(set))
		return false;
	size_t at = place_of(set, key);
	if (!set->key[at]) {
		set->key[at] = key;
		set->used++;
		set->count++;
	}
	return true;
}

static bool set_has(const struct block_set *set, uint32_t space, uint64_t block)
{
	return set->room && set->key[place_of(set, key_of(space, block))];
}

/* Any of them; false: it is empty. */
static bool set_take(struct block_set *set, uint32_t *space, uint64_t *block)
{
	for (size_t looked = 0; set->count && looked < set->room; looked++, set->at++) {
		uint64_t key = set->key[set->at & (set->room - 1)];
		if (key <= 1)
			continue;
		set->key[set->at & (set->room - 1)] = 1;
		set->count--;
		*space = (uint32_t)((key - 2) >> 40);
		*block = (key - 2) & ((UINT64_C(1) << 40) - 1);
		return true;
	}
	return false;
}

static void set_drop_space(struct block_set *set, uint32_t space)
{
	for (size_t i = 0; i < set->room; i++)
		if (set->key[i] > 1 && (uint32_t)((set->key[i] - 2) >> 40) == space) {
			set->key[i] = 1;
			set->count--;
		}
}

/* ---- what is missed ---- */

static void too_much(struct mirror *mirror, struct member *member)
{
	log_warn("pool %u of the mirror missed too much: it does not come back while this tree runs", (unsigned)(member - mirror->member));
	member->state = MEMBER_GONE;
	catch_up_forget(member);
}

void missed_put(struct mirror *mirror, struct member *member, uint32_t space, const struct page_range *ranges, size_t count)
{
	for (size_t i = 0; i < count; i++)
		for (uint64_t block = ranges[i].pgno / MIRROR_BLOCK_PAGES; block * MIRROR_BLOCK_PAGES < ranges[i].pgno + ranges[i].pages; block++)
			if (member->state != MEMBER_GONE && !set_add(&member->blocks, space, block))
				too_much(mirror, member);
}

/* What is still to be copied goes where a move or a fork takes it. */
static void spread(struct mirror *mirror, struct member *member, const struct missed *change)
{
	struct block_set *set = &member->blocks;
	size_t room = set->room;
	cleanup_free uint64_t *keys = NULL;
	size_t count = 0;
	if (change->kind != MISSED_MOVE && change->kind != MISSED_FORK)
		return;
	keys = malloc((set->count + MIRROR_COPIES + 1) * sizeof(*keys));
	if (!keys) {
		too_much(mirror, member);
		return;
	}
	for (size_t i = 0; i < room; i++)
		if (set->key[i] > 1 && (uint32_t)((set->key[i] - 2) >> 40) == change->space)
			keys[count++] = (set->key[i] - 2) & ((UINT64_C(1) << 40) - 1);
	for (size_t i = 0; i < MIRROR_COPIES; i++)
		if (member->copy[i].used && member->copy[i].space == change->space)
			keys[count++] = member->copy[i].block;
	for (size_t i = 0; i < count && member->state != MEMBER_GONE; i++) {
		uint64_t first = keys[i] * MIRROR_BLOCK_PAGES, end = first + MIRROR_BLOCK_PAGES;
		if (change->kind == MISSED_FORK) {
			missed_put(mirror, member, (uint32_t)change->a, &(struct page_range){ first, MIRROR_BLOCK_PAGES }, 1);
			continue;
		}
		first = DP_MAX(first, change->a);
		end = DP_MIN(end, change->a + change->pages);
		if (first < end)
			missed_put(mirror, member, change->space, &(struct page_range){ first - change->a + change->b, end - first }, 1);
	}
}

void missed_structure(struct mirror *mirror, struct member *member, const struct missed *change)
{
	if (member->missed_count == MIRROR_MISSED_LIMIT) {
		too_much(mirror, member);
		return;
	}
	if (member->missed_count == member->missed_room) {
		size_t room = member->missed_room * 2 + 256;
		struct missed *larger = realloc(member->missed, room * sizeof(*larger));
		if (!larger) {
			too_much(mirror, member);
			return;
		}
		member->missed = larger;
		member->missed_room = room;
	}
	member->missed[member->missed_count++] = *change;
	spread(mirror, member, change);
	if (change->kind == MISSED_FREE)
		set_drop_space(&member->blocks, change->space);
}

void copies_touched(struct member *member, uint32_t space, const struct page_range *ranges, size_t count)
{
	for (size_t c = 0; c < MIRROR_COPIES; c++) {
		struct block_copy *copy = &member->copy[c];
		uint64_t first = copy->block * MIRROR_BLOCK_PAGES;
		for (size_t i = 0; copy->used && copy->space == space && i < count; i++)
			if (ranges[i].pgno < first + MIRROR_BLOCK_PAGES && first < ranges[i].pgno + ranges[i].pages)
				copy->overtaken = true;
	}
}

void copies_follow(struct mirror *mirror, struct member *member, const struct missed *change)
{
	spread(mirror, member, change);
	if (change->kind == MISSED_DROP)
		copies_touched(member, change->space, &(struct page_range){ change->a, change->pages }, 1);
	if (change->kind == MISSED_MOVE)
		copies_touched(member, change->space, (const struct page_range[]){ { change->a, change->pages }, { change->b, change->pages } }, 2);
	if (change->kind != MISSED_FREE)
		return;
	set_drop_space(&member->blocks, change->space);
	for (size_t c = 0; c < MIRROR_COPIES; c++)
		if (member->copy[c].used && member->copy[c].space == change->space) {
			member->copy[c].used = false; /* its answer is nobody's */
			member->copy[c].generation++;
		}
}

/* ---- how it gets it ---- */

static void replay(struct member *member)
{
	while (member->missed_at < member->missed_count && link_has_room(member->link)) {
		const struct missed *change = &member->missed[member->missed_at];
		int ret = 0;
		switch ((enum missed_kind)change->kind) {
		case MISSED_DROP:
			ret = link_drop(member->link, change->space, &(struct page_range){ change->a, change->pages }, 1, COOKIE_NOBODY);
			break;
		case MISSED_MOVE:
			ret = link_move(member->link, change->space, change->a, change->b, change->pages, COOKIE_NOBODY);
			break;
		case MISSED_FORK:
			ret = link_fork(member->link, change->space, (uint32_t)change->a, COOKIE_NOBODY);
			break;
		case MISSED_FREE:
			ret = link_space_free(member->link, change->space, COOKIE_NOBODY);
			break;
		}
		if (ret)
			return;
		member->missed_at++;
	}
	if (member->missed_at == member->missed_count) {
		member->missed_at = member->missed_count = 0;
		member->state = MEMBER_COPIES;
	}
}

static void again(struct mirror *mirror, struct member *member, struct block_copy *copy)
{
	copy->used = false;
	copy->generation++;
	if (!set_has(&member->blocks, copy->space, copy->block))
		missed_put(mirror, member, copy->space, &(struct page_range){ copy->block * MIRROR_BLOCK_PAGES, 1 }, 1);
}

static void ask_for_block(struct mirror *mirror, struct member *member, struct block_copy *copy)
{
	struct member *from = mirror_reader(mirror, 0);
	if (!copy->pages)
		copy->pages = malloc((size_t)MIRROR_BLOCK_PAGES * PAGE_BYTES);
	if (!from || !copy->pages || !set_take(&member->blocks, &copy->space, &copy->block))
		return;
	copy->used = true;
	copy->overtaken = false;
	copy->seen = copy->zeros = 0;
	struct page_range range = { copy->block * MIRROR_BLOCK_PAGES, MIRROR_BLOCK_PAGES };
	uint64_t cookie = COOKIE_COPY | (uint64_t)(member - mirror->member) << 48 | (uint64_t)(copy - member->copy) << 40 | copy->generation;
	/* Its answer comes by way of the reader's link, also at once. */
	int ret = mirror_ask(mirror, from, CLASS_PREFETCH, copy->space, &range, 1, cookie);
	if (ret && copy->used)
		again(mirror, member, copy);
}

/* The block is here: what is zero is dropped, the rest is put. */
static void hand_over(struct mirror *mirror, struct member *member, struct block_copy *copy)
{
	struct page_range put[MIRROR_BLOCK_PAGES], drop[MIRROR_BLOCK_PAGES];
	struct iovec data[MIRROR_BLOCK_PAGES];
	size_t puts = 0, drops = 0;
	uint64_t first = copy->block * MIRROR_BLOCK_PAGES;
	for (uint64_t i = 0; i < MIRROR_BLOCK_PAGES; i++) {
		if (copy->zeros >> i & 1) {
			drop[drops++] = (struct page_range){ first + i, 1 };
		} else {
			data[puts] = (struct iovec){ copy->pages + i * PAGE_BYTES, PAGE_BYTES };
			put[puts++] = (struct page_range){ first + i, 1 };
		}
	}
	bool good = !copy->overtaken && link_has_room(member->link);
	if (good && puts)
		good = link_put(member->link, copy->space, put, puts, data, puts, COOKIE_NOBODY) == 0;
	if (good && drops)
		good = link_drop(member->link, copy->space, drop, drops, COOKIE_NOBODY) == 0;
	copy->used = false;
	copy->generation++;
	if (!good)
		missed_put(mirror, member, copy->space, &(struct page_range){ first, 1 }, 1);
}

void catch_up_on_pages(struct mirror *mirror, struct member *member, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct block_copy *copy = &member->copy[cookie >> 40 & 0xff];
	if (!copy->used || copy->generation != (uint32_t)cookie)
		return;
	uint64_t at = range.pgno - copy->block * MIRROR_BLOCK_PAGES;
	for (uint64_t i = 0; i < range.pages; i++) {
		if (data)
			memcpy(copy->pages + (at + i) * PAGE_BYTES, (const uint8_t *)data + i * PAGE_BYTES, PAGE_BYTES);
		else
			copy->zeros |= UINT64_C(1) << (at + i);
	}
	if (!last)
		return;
	if (member->state == MEMBER_COPIES)
		hand_over(mirror, member, copy);
	else
		again(mirror, member, copy);
}

void catch_up_on_failure(struct member *member, uint64_t cookie, int result)
{
	struct block_copy *copy = &member->copy[cookie >> 40 & 0xff];
	if (!copy->used || copy->generation != (uint32_t)cookie)
		return;
	copy->used = false;
	copy->generation++;
	if (result != -ENOENT) /* else its space has gone */
		set_add(&member->blocks, copy->space, copy->block);
}

void catch_up_work(struct mirror *mirror, struct member *member)
{
	bool under_way = false;
	if (member->state == MEMBER_REPLAYS)
		replay(member);
	if (member->state != MEMBER_COPIES)
		return;
	for (size_t i = 0; i < MIRROR_COPIES; i++) {
		if (!member->copy[i].used && member->blocks.count && link_has_room(member->link))
			ask_for_block(mirror, member, &member->copy[i]);
		under_way |= member->copy[i].used;
	}
	if (under_way || member->blocks.count)
		return;
	struct link_state state;
	link_state(member->link, &state);
	member->join_at = state.next_sequence;
	member->state = MEMBER_JOINING;
}

void catch_up_put_back(struct mirror *mirror, struct member *member)
{
	for (size_t i = 0; i < MIRROR_COPIES; i++)
		if (member->copy[i].used)
			again(mirror, member, &member->copy[i]);
}

uint64_t catch_up_behind_pages(const struct member *member)
{
	uint64_t pages = member->blocks.count * MIRROR_BLOCK_PAGES;
	for (size_t i = 0; i < MIRROR_COPIES; i++)
		pages += member->copy[i].used ? MIRROR_BLOCK_PAGES : 0;
	return pages;
}

void catch_up_forget(struct member *member)
{
	free(member->missed);
	free(member->blocks.key);
	for (size_t i = 0; i < MIRROR_COPIES; i++)
		free(member->copy[i].pages);
	member->missed = NULL;
	member->missed_count = member->missed_room = member->missed_at = 0;
	member->blocks = (struct block_set){ NULL };
	memset(member->copy, 0, sizeof(member->copy));
}
