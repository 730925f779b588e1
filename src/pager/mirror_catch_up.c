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

/* The other half of the memory becomes the set: at once, by one store. */
static bool set_grow(struct block_set *set)
{
	struct member_saved *saved = set->saved;
	uint64_t half = ~saved->table & 1;
	struct block_set larger = { .saved = saved, .key = saved->key[half], .room = MIRROR_KEYS_FIRST };
	while (larger.room < set->count * 4)
		larger.room *= 2;
	if (larger.room > MIRROR_KEYS)
		return false;
	memset(larger.key, 0, larger.room * sizeof(*larger.key));
	for (size_t i = 0; i < set->room; i++)
		if (set->key[i] > 1) {
			larger.key[place_of(&larger, set->key[i])] = set->key[i];
			larger.used++;
			larger.count++;
		}
	mirror_in_order();
	saved->table = larger.room << 1 | half;
	*set = larger;
	return true;
}

/* As a dead pager left it. */
static void set_adopt(struct block_set *set, struct member_saved *saved)
{
	*set = (struct block_set){ .saved = saved, .key = saved->key[saved->table & 1], .room = saved->table >> 1 };
	for (size_t i = 0; i < set->room; i++) {
		set->used += set->key[i] != 0;
		set->count += set->key[i] > 1;
	}
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

/* Any of them; false: it is empty. It stays there. */
static bool set_next(struct block_set *set, uint32_t *space, uint64_t *block)
{
	for (size_t looked = 0; set->count && looked < set->room; looked++, set->at++) {
		uint64_t key = set->key[set->at & (set->room - 1)];
		if (key <= 1)
			continue;
		*space = (uint32_t)((key - 2) >> 40);
		*block = (key - 2) & ((UINT64_C(1) << 40) - 1);
		return true;
	}
	return false;
}

/* The one that set_next found last. */
static void set_take(struct block_set *set)
{
	set->key[set->at & (set->room - 1)] = 1;
	set->count--;
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
	if (!member->saved->spoiled)
		log_warn("pool %u of the mirror missed too much: it does not come back while this tree runs",
			 member_index(member));
	mirror_give_up(mirror, member);
}

static bool is_kept(const struct member *member)
{
	return member->saved->state != MEMBER_GONE && !member->saved->spoiled;
}

static void missed_put(struct mirror *mirror, struct member *member, uint32_t space, const struct page_range *ranges,
		       size_t count)
{
	for (size_t i = 0; i < count; i++)
		for (uint64_t block = ranges[i].pgno / MIRROR_BLOCK_PAGES;
		     is_kept(member) && block * MIRROR_BLOCK_PAGES < ranges[i].pgno + ranges[i].pages; block++)
			if (!set_add(&member->blocks, space, block))
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
	for (size_t i = 0; i < count && is_kept(member); i++) {
		uint64_t first = keys[i] * MIRROR_BLOCK_PAGES, end = first + MIRROR_BLOCK_PAGES;
		if (change->kind == MISSED_FORK) {
			missed_put(mirror, member, (uint32_t)change->a, &(struct page_range){ first, MIRROR_BLOCK_PAGES }, 1);
			continue;
		}
		first = DP_MAX(first, change->a);
		end = DP_MIN(end, change->a + change->pages);
		if (first < end)
			missed_put(mirror, member, change->space,
				   &(struct page_range){ first - change->a + change->b, end - first }, 1);
	}
}

static void missed_structure(struct mirror *mirror, struct member *member, const struct missed *change)
{
	struct member_saved *saved = member->saved;
	uint64_t last = saved->missed_count ? saved->missed[saved->missed_count - 1].number : 0;
	last = DP_MAX(last, saved->missed_done);
	/* Done again after a crash; a drop has several entries, and may be made twice. */
	if (change->number < last || (change->number == last && change->kind != MISSED_DROP) || !is_kept(member))
		return;
	if (saved->missed_count == MIRROR_MISSED_LIMIT) {
		too_much(mirror, member);
		return;
	}
	spread(mirror, member, change);
	saved->missed[saved->missed_count] = *change;
	mirror_in_order();
	saved->missed_count++;
	/* Of the last change only: behind an older one its number may have been given again, and the blocks are the
	 * successor's. */
	if (change->kind == MISSED_FREE && change->number == mirror->next)
		set_drop_space(&member->blocks, change->space);
}

void missed_note(struct mirror *mirror, struct member *member, const struct mirrored *operation, uint64_t sequence)
{
	struct missed change = operation->what;
	change.number = operation->number;
	change.sequence = sequence;
	if (change.kind == MISSED_PUT) {
		missed_put(mirror, member, change.space, operation->ranges, operation->count);
		return;
	}
	for (uint32_t i = 0; change.kind == MISSED_DROP && i < operation->count; i++) {
		change.a = operation->ranges[i].pgno;
		change.pages = operation->ranges[i].pages;
		missed_structure(mirror, member, &change);
	}
	if (change.kind != MISSED_DROP)
		missed_structure(mirror, member, &change);
}

void missed_unanswered(struct mirror *mirror, struct member *member)
{
	for (uint64_t number = mirror->next > MIRROR_OPERATIONS ? mirror->next - MIRROR_OPERATIONS + 1 : 1;
	     number <= mirror->next; number++) {
		const struct mirrored *operation = mirror_operation(mirror, number);
		if (operation->number == number && operation->used && operation->waiting & member_bit(member))
			missed_note(mirror, member, operation, operation->sequence[member_index(member)]);
	}
}

/* ---- blocks on their way ---- */

static void copy_free(struct member *member, struct block_copy *copy)
{
	copy->used = false;
	copy->generation++;
	mirror_in_order();
	member->saved->copy[copy - member->copy].used = 0;
}

/* What it was to bring is missed again. */
static void copy_again(struct mirror *mirror, struct member *member, struct block_copy *copy)
{
	if (!set_has(&member->blocks, copy->space, copy->block))
		missed_put(mirror, member, copy->space, &(struct page_range){ copy->block * MIRROR_BLOCK_PAGES, 1 }, 1);
	copy_free(member, copy);
}

static void copies_touched(struct member *member, uint32_t space, const struct page_range *ranges, size_t count)
{
	for (size_t c = 0; c < MIRROR_COPIES; c++) {
		struct block_copy *copy = &member->copy[c];
		uint64_t first = copy->block * MIRROR_BLOCK_PAGES;
		for (size_t i = 0; copy->used && copy->space == space && i < count; i++)
			if (ranges[i].pgno < first + MIRROR_BLOCK_PAGES && first < ranges[i].pgno + ranges[i].pages)
				copy->overtaken = true;
	}
}

void copies_follow(struct mirror *mirror, struct member *member, const struct mirrored *operation)
{
	const struct missed *change = &operation->what;
	if (change->kind == MISSED_PUT || change->kind == MISSED_DROP)
		copies_touched(member, change->space, operation->ranges, operation->count);
	if (change->kind == MISSED_MOVE)
		copies_touched(member, change->space,
			       (const struct page_range[]){ { change->a, change->pages }, { change->b, change->pages } }, 2);
	spread(mirror, member, change);
	if (change->kind != MISSED_FREE)
		return;
	set_drop_space(&member->blocks, change->space);
	for (size_t c = 0; c < MIRROR_COPIES; c++)
		if (member->copy[c].used && member->copy[c].space == change->space)
			copy_free(member, &member->copy[c]); /* its answer is nobody's */
}

/* ---- how it gets it ---- */

static int replay_one(struct member *member, struct missed *change)
{
	struct link *link = member->link;
	switch ((enum missed_kind)change->kind) {
	case MISSED_DROP:
		return link_drop(link, change->space, &(struct page_range){ change->a, change->pages }, 1, COOKIE_NOBODY);
	case MISSED_MOVE:
		return link_move(link, change->space, change->a, change->b, change->pages, COOKIE_NOBODY);
	case MISSED_FORK:
		return link_fork(link, change->space, (uint32_t)change->a, COOKIE_NOBODY);
	case MISSED_FREE:
		return link_space_free(link, change->space, COOKIE_NOBODY);
	case MISSED_PUT: /* has blocks, and no place in the list */
		break;
	}
	return 0;
}

/* What is in the list and has a number there was sent: its own link has seen to it. */
static void replay(struct member *member)
{
	struct member_saved *saved = member->saved;
	while (member->missed_at < saved->missed_count && link_has_room(member->link)) {
		struct missed *change = &saved->missed[member->missed_at];
		if (!change->sequence) {
			change->sequence = member_link(member).next_sequence;
			mirror_in_order();
			if (replay_one(member, change)) {
				change->sequence = 0;
				return;
			}
		}
		member->missed_at++;
	}
	if (member->missed_at == saved->missed_count)
		saved->state = MEMBER_COPIES;
}

/* The list has been answered. */
static void forget_list(struct member *member, uint64_t first_unanswered)
{
	struct member_saved *saved = member->saved;
	if (!saved->missed_count || saved->missed[saved->missed_count - 1].sequence >= first_unanswered)
		return;
	saved->missed_done = saved->missed[saved->missed_count - 1].number;
	mirror_in_order();
	saved->missed_count = 0;
	member->missed_at = 0;
}

static void ask_for_block(struct mirror *mirror, struct member *member, struct block_copy *copy)
{
	struct member *from = mirror_reader(mirror, 0);
	size_t index = (size_t)(copy - member->copy);
	if (!copy->pages)
		copy->pages = malloc((size_t)MIRROR_BLOCK_PAGES * PAGE_BYTES);
	if (!from || !copy->pages || !set_next(&member->blocks, &copy->space, &copy->block))
		return;
	member->saved->copy[index].space = copy->space;
	member->saved->copy[index].block = copy->block;
	mirror_in_order();
	member->saved->copy[index].used = 1;
	mirror_in_order();
	set_take(&member->blocks);
	copy->used = true;
	copy->overtaken = copy->sent = false;
	copy->seen = copy->zeros = 0;
	struct page_range range = { copy->block * MIRROR_BLOCK_PAGES, MIRROR_BLOCK_PAGES };
	uint64_t cookie = COOKIE_COPY | (uint64_t)member_index(member) << 48 | (uint64_t)index << 40 | copy->generation;
	uint32_t generation = copy->generation;
	/* Its answer comes by way of the reader's link, also at once. */
	int ret = mirror_ask(mirror, from, CLASS_PREFETCH, copy->space, &range, 1, cookie);
	if (ret && copy->used && copy->generation == generation)
		copy_again(mirror, member, copy);
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
	if (!good) {
		copy_again(mirror, member, copy);
		return;
	}
	copy->sent = true;
	copy->sequence = member_link(member).next_sequence - 1;
}

void catch_up_on_pages(struct mirror *mirror, struct member *member, uint64_t cookie, struct page_range range, const void *data,
		       bool last)
{
	struct block_copy *copy = &member->copy[cookie >> 40 & 0xff];
	if (!copy->used || copy->sent || copy->generation != (uint32_t)cookie)
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
	if (member->saved->state == MEMBER_COPIES)
		hand_over(mirror, member, copy);
	else
		copy_again(mirror, member, copy);
}

void catch_up_on_failure(struct mirror *mirror, struct member *member, uint64_t cookie, int result)
{
	struct block_copy *copy = &member->copy[cookie >> 40 & 0xff];
	if (!copy->used || copy->sent || copy->generation != (uint32_t)cookie)
		return;
	if (result == -ENOENT) /* its space has gone */
		copy_free(member, copy);
	else
		copy_again(mirror, member, copy);
}

/* It has all: also those changes of which the pager may not have seen an answer. Who follows it would have them made twice. */
static void mark_caught_up(struct mirror *mirror, const struct member *member)
{
	for (uint32_t i = 0; i < MIRROR_OPERATIONS; i++) {
		struct mirrored *operation = &mirror->saved->operation[i];
		if (operation->number && operation->number < mirror->next && !operation->sequence[member_index(member)])
			operation->sequence[member_index(member)] = MIRROR_CAUGHT_UP;
	}
	mirror_in_order();
}

void catch_up_work(struct mirror *mirror, struct member *member)
{
	bool under_way = false;
	if (member->saved->state == MEMBER_REPLAYS)
		replay(member);
	if (member->saved->state != MEMBER_COPIES)
		return;
	struct link_state state = member_link(member);
	forget_list(member, state.first_unanswered);
	for (size_t i = 0; i < MIRROR_COPIES; i++) {
		struct block_copy *copy = &member->copy[i];
		if (copy->used && copy->sent && copy->sequence < state.first_unanswered)
			copy_free(member, copy);
		if (!copy->used && member->blocks.count && link_has_room(member->link))
			ask_for_block(mirror, member, copy);
		under_way |= copy->used;
	}
	if (under_way || member->blocks.count || member->saved->missed_count || member->saved->state != MEMBER_COPIES)
		return;
	mark_caught_up(mirror, member);
	member->join_at = member_link(member).next_sequence;
	member->saved->state = MEMBER_JOINING;
}

void catch_up_put_back(struct mirror *mirror, struct member *member)
{
	for (size_t i = 0; i < MIRROR_COPIES; i++)
		if (member->copy[i].used)
			copy_again(mirror, member, &member->copy[i]);
}

void catch_up_adopt(struct mirror *mirror, struct member *member)
{
	set_adopt(&member->blocks, member->saved);
	for (size_t i = 0; i < MIRROR_COPIES; i++)
		if (member->saved->copy[i].used) {
			member->copy[i].space = member->saved->copy[i].space;
			member->copy[i].block = member->saved->copy[i].block;
			copy_again(mirror, member, &member->copy[i]);
		}
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
	struct member_saved *saved = member->saved;
	for (size_t i = 0; i < MIRROR_COPIES; i++)
		if (member->copy[i].used)
			copy_free(member, &member->copy[i]);
	saved->missed_count = 0;
	saved->table = 0;
	member->missed_at = 0;
	set_adopt(&member->blocks, saved);
}

void catch_up_done(struct member *member)
{
	for (size_t i = 0; i < MIRROR_COPIES; i++)
		free(member->copy[i].pages);
}
