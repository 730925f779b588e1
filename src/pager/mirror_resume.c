/* What of a mirror outlives the pager, and how another goes on with it. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "pager/mirror.h"

#define SAVED_MAGIC 0x31726f7272694d44ull /* "DMirror1": of this layout; both pagers are of one program */

struct mirror_saved *mirror_saved_new(void)
{
	void *memory = mmap(NULL, sizeof(struct mirror_saved), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return memory == MAP_FAILED ? NULL : memory;
}

void mirror_saved_free(struct mirror *mirror)
{
	if (mirror->saved_is_ours && mirror->saved)
		munmap(mirror->saved, sizeof(*mirror->saved));
	mirror->saved = NULL;
}

/* Nothing has been changed, read or lost yet but the note begun. */
static void keep_new(struct mirror *mirror, struct mirror_saved *saved)
{
	saved->generation = mirror->saved->generation;
	saved->highest_space = mirror->numbers.next - 1;
	mirror_in_order();
	saved->magic = SAVED_MAGIC;
}

/* ---- can a pager have left this? ---- */

static bool has_range(uint64_t pgno, uint64_t pages)
{
	return pages <= PGNO_END && pgno <= PGNO_END - pages;
}

static bool has_block(uint64_t space, uint64_t block)
{
	return space >> SPACE_BITS == 0 && block < PGNO_END / MIRROR_BLOCK_PAGES;
}

static bool is_sound_change(const struct missed *change)
{
	if (change->kind > MISSED_PUT || change->space >> SPACE_BITS)
		return false;
	if (change->kind == MISSED_FORK)
		return change->a >> SPACE_BITS == 0;
	return has_range(change->a, change->pages) && has_range(change->b, change->pages);
}

/* One without a number was being written, and is nobody's. */
static bool is_sound_operation(const struct mirror *mirror, const struct mirrored *operation, uint32_t place)
{
	if (!operation->number)
		return true;
	if (operation->number % MIRROR_OPERATIONS != place || operation->number >= MIRROR_NUMBERS ||
	    operation->count > MIRROR_RANGES || operation->waiting & ~(MIRROR_MAKING | ((1u << mirror->count) - 1)))
		return false;
	for (uint32_t i = 0; i < operation->count; i++)
		if (!has_range(operation->ranges[i].pgno, operation->ranges[i].pages))
			return false;
	return is_sound_change(&operation->what);
}

static bool is_sound_set(const struct member_saved *saved)
{
	uint64_t room = saved->table >> 1, used = 0;
	/* One of a single place could fill without being found to be half full. */
	if (room > MIRROR_KEYS || room & (room - 1) || (room && room < MIRROR_KEYS_FIRST))
		return false;
	for (uint64_t i = 0; i < room; i++) {
		uint64_t key = saved->key[saved->table & 1][i];
		used += key != 0;
		if (key > 1 && !has_block((key - 2) >> 40, (key - 2) & ((UINT64_C(1) << 40) - 1)))
			return false;
	}
	return used * 2 <= room; /* a full one would be searched for ever */
}

static bool is_sound_member(const struct member_saved *saved)
{
	if (saved->state > MEMBER_GONE || saved->missed_count > MIRROR_MISSED_LIMIT || !is_sound_set(saved))
		return false;
	for (uint64_t i = 0; i < saved->missed_count; i++)
		if (saved->missed[i].kind == MISSED_PUT || !is_sound_change(&saved->missed[i]))
			return false;
	for (uint32_t i = 0; i < MIRROR_COPIES; i++)
		if (saved->copy[i].used && !has_block(saved->copy[i].space, saved->copy[i].block))
			return false;
	return true;
}

static bool is_sound(const struct mirror *mirror, const struct mirror_saved *saved)
{
	for (uint32_t i = 0; i < MIRROR_OPERATIONS; i++)
		if (!is_sound_operation(mirror, &saved->operation[i], i))
			return false;
	for (uint32_t i = 0; i < MIRROR_MEMBERS; i++)
		if (!is_sound_member(&saved->member[i]))
			return false;
	return saved->highest_space >> SPACE_BITS == 0;
}

/* ---- taking it ---- */

/* Who was on the way in or out is out (M6). One that is in misses nothing: what is noted is of a pager that died before it had
 * put it out, and would be made twice when the member is out one day. */
static void adopt_member(struct mirror *mirror, struct member *member)
{
	struct member_saved *saved = member->saved;
	uint32_t state = saved->state;
	if (state == MEMBER_IN) {
		catch_up_forget(member);
		saved->spoiled = 0;
	}
	if (state == MEMBER_IN || state == MEMBER_GONE)
		return;
	if (state == MEMBER_COPIES || state == MEMBER_JOINING)
		missed_unanswered(mirror, member);
	mirror_in_order();
	if (saved->state != MEMBER_GONE)
		saved->state = state == MEMBER_LEAVING || state == MEMBER_JOINING ? MEMBER_LEAVING : MEMBER_OUT;
}

static void adopt(struct mirror *mirror)
{
	for (uint32_t i = 0; i < MIRROR_OPERATIONS; i++) {
		struct mirrored *operation = &mirror->saved->operation[i];
		operation->told = true; /* there is nobody to tell */
		operation->waiting &= (uint8_t)~MIRROR_MAKING;
		mirror->next = DP_MAX(mirror->next, operation->number);
	}
	space_numbers_skip(&mirror->numbers, mirror->saved->highest_space);
	for (unsigned i = 0; i < mirror->count; i++)
		adopt_member(mirror, &mirror->member[i]);
}

void mirror_keep(struct source *source, void *memory)
{
	struct mirror *mirror = mirror_of(source);
	struct mirror_saved *saved = memory;
	bool left = saved->magic == SAVED_MAGIC;
	if (left && !is_sound(mirror, saved)) {
		mirror_end(mirror, -EBADMSG, "what a pager that died left of the mirror cannot be right");
		return; /* resume says so */
	}
	if (!left)
		keep_new(mirror, saved);
	mirror_saved_free(mirror);
	mirror->saved_is_ours = false;
	mirror->saved = saved;
	for (unsigned i = 0; i < mirror->count; i++) {
		mirror->member[i].saved = &saved->member[i];
		catch_up_adopt(mirror, &mirror->member[i]);
	}
	if (left)
		adopt(mirror);
}

void mirror_settle(struct member *member)
{
	struct link_state state = member_link(member);
	unsigned index = member_index(member);
	if (member->settled || !state.settled)
		return;
	member->settled = true;
	for (uint32_t i = 0; i < MIRROR_OPERATIONS; i++) {
		uint64_t *sequence = &member->mirror->saved->operation[i].sequence[index];
		if (*sequence >= state.next_sequence && *sequence != MIRROR_CAUGHT_UP)
			*sequence = 0;
	}
	for (uint64_t i = 0; i < member->saved->missed_count; i++)
		if (member->saved->missed[i].sequence >= state.next_sequence)
			member->saved->missed[i].sequence = 0;
}

/* ---- who can be gone on with ---- */

/* Does it have all that was acknowledged? With ack_one another may have had it alone. */
static bool is_complete(struct mirror *mirror, const struct member *member, uint64_t answered)
{
	for (uint32_t i = 0; i < MIRROR_OPERATIONS; i++) {
		const struct mirrored *operation = &mirror->saved->operation[i];
		if (operation->used && operation->number && operation->number <= answered &&
		    operation->waiting & member_bit(member) && !operation->sequence[member_index(member)])
			return false;
	}
	return true;
}

static bool is_usable(struct mirror *mirror, struct member *member, uint64_t answered)
{
	return member->saved->state == MEMBER_IN && member->settled && is_complete(mirror, member, answered);
}

struct present {
	unsigned in, usable;
};

static struct present look(struct mirror *mirror, uint64_t answered)
{
	struct present present = { 0, 0 };
	for (unsigned i = 0; i < mirror->count; i++) {
		present.in += mirror->member[i].saved->state == MEMBER_IN;
		present.usable += is_usable(mirror, &mirror->member[i], answered);
	}
	return present;
}

/* One round of what the links have to do. */
static int wait_a_little(struct mirror *mirror, const struct source_resume *resume)
{
	mirror_work(&mirror->source);
	int ret = source_resume_wait(resume, mirror->epoll_fd, POLLIN);
	return ret ? ret : DP_MIN(mirror_receive(&mirror->source), 0);
}

/* Until all that are in are there; or one, and the others do not come. */
static int wait_for_members(struct mirror *mirror, const struct source_resume *resume)
{
	uint64_t began_ns = clock_now_ns();
	for (;;) {
		struct present present = look(mirror, resume->answered);
		if (present.in && present.usable == present.in)
			return 0;
		if (present.usable && clock_now_ns() - began_ns > MIRROR_PATIENCE_NS)
			return 0;
		int ret = wait_a_little(mirror, resume);
		if (ret)
			return ret;
	}
}

/* ---- from where it goes on ---- */

/* The last of the changes up to which it has all. */
static uint64_t made_by(struct mirror *mirror, const struct member *member, uint64_t answered)
{
	uint64_t number = answered;
	for (;;) {
		const struct mirrored *next = mirror_operation(mirror, number + 1);
		if (next->number != number + 1 || !next->sequence[member_index(member)])
			return number;
		number++;
	}
}

static void put_out_others(struct mirror *mirror, uint64_t answered)
{
	for (unsigned i = 0; i < mirror->count; i++) {
		struct member *member = &mirror->member[i];
		if (member->saved->state != MEMBER_IN || is_usable(mirror, member, answered))
			continue;
		missed_unanswered(mirror, member);
		mirror_in_order();
		member->saved->state = MEMBER_LEAVING;
	}
}

/* What is to be made again will be made by those that lack it, unless this pager dies too and one of them is put out then. */
static void forget_answers(struct mirror *mirror, uint64_t applied)
{
	for (uint32_t i = 0; i < MIRROR_OPERATIONS; i++) {
		struct mirrored *operation = &mirror->saved->operation[i];
		uint8_t lack = 0;
		for (unsigned m = 0; m < mirror->count && operation->number > applied; m++)
			if (mirror->member[m].saved->state == MEMBER_IN && !operation->sequence[m])
				lack |= member_bit(&mirror->member[m]);
		operation->waiting = lack;
		operation->used = lack;
	}
}

int mirror_resume(struct source *source, struct source_resume *resume)
{
	struct mirror *mirror = mirror_of(source);
	uint64_t applied = UINT64_MAX;
	if (mirror->failure)
		return mirror->failure;
	if (resume->last >= MIRROR_NUMBERS)
		return mirror_end(mirror, -EBADMSG, "what a pager that died left of its changes cannot be right");
	space_numbers_skip(&mirror->numbers, resume->highest_child);
	mirror->held = UINT64_MAX;
	int ret = wait_for_members(mirror, resume);
	if (ret)
		return ret;
	put_out_others(mirror, resume->answered);
	for (unsigned i = 0; i < mirror->count; i++)
		if (mirror->member[i].saved->state == MEMBER_IN)
			applied = DP_MIN(applied, made_by(mirror, &mirror->member[i], resume->answered));
	forget_answers(mirror, applied);
	mirror->next = applied + 1;
	mirror->held = resume->last;
	/* All that is not made again is acknowledged with our return: by then it is known who is not in (M1). */
	mirror_begin_note(mirror);
	while (!ret && mirror->noting)
		ret = wait_a_little(mirror, resume);
	resume->applied = applied;
	return ret;
}
