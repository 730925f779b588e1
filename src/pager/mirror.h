/* mirror: the inside of a mirror: source_mirror.c (changes, who is in), mirror_read.c (reading, fail-over), mirror_catch_up.c
 * (what a member missed) and mirror_resume.c (what outlives the pager, and how another goes on with it).
 *
 * What outlives a pager is struct mirror_saved. It is written such that a crash between any two stores leaves what is right:
 *   M5  a change is in the ring, with the number that it gets in each member's own sequence, before that member can see it, and
 *       stays until all that get it have answered. So who takes over knows from what each pool says it has applied which changes
 *       it lacks.
 *   M6  who is in is what the saved state says, not what a note says: the notes may be one behind. Whoever is neither in nor gone
 *       is out after a crash. One member that is in, and has all that was acknowledged, is enough; one that cannot be reached is
 *       put out.
 *   M7  what a member misses is saved before any other member is told, and given up only when it has answered. A structural
 *       change is listed and sent once (its own number in the mirror, and in the member's sequence); a block may be copied once
 *       too often. What a member got that way is marked in the ring (MIRROR_CAUGHT_UP) before it joins: a pager that died without
 *       having seen the answers must not have it made there again.
 *   M8  after a crash nobody catches up before all changes of the dead pager are made again: a block must not be copied from a
 *       member that lacks what the other has been told already. */
#ifndef DP_PAGER_MIRROR_H
#define DP_PAGER_MIRROR_H

#include "base/base.h"
#include "pager/link_watch.h"
#include "pager/source_mirror.h"
#include "pager/space_numbers.h"

#ifdef DP_FUZZ /* looking at tables that are empty would be all that a fuzzer does */
#define MIRROR_OPERATIONS 16u
#define MIRROR_MISSED_LIMIT 16u
#define MIRROR_KEYS_FIRST 16u
#define MIRROR_KEYS 64u
#define MIRROR_RANGES 16u
#define MIRROR_GETS 8u
#define MIRROR_BLOCK_PAGES 4u
#else
#define MIRROR_OPERATIONS 1024u
#define MIRROR_MISSED_LIMIT 65536u /* changes of structure; more, and it does not come back in this run */
#define MIRROR_KEYS_FIRST 1024u
#define MIRROR_KEYS (1u << 20)     /* places for missed blocks, of which half may be used */
#define MIRROR_RANGES 256u         /* of one change */
#define MIRROR_GETS 256u
#define MIRROR_BLOCK_PAGES 64u
#endif
#define MIRROR_NUMBERS (UINT64_C(1) << 48) /* of changes: far below the bits that say what a cookie is of */
#define MIRROR_COPIES 8u         /* blocks on their way to a member that catches up */
#define MIRROR_PATIENCE_NS UINT64_C(2000000000) /* without an answer, and a member is put out */
#define MIRROR_MAKING 0x80u        /* in `waiting`: the change is not with all members yet */
#define MIRROR_CAUGHT_UP UINT64_MAX /* in `sequence`: it came with what was missed */

enum member_state {
	MEMBER_IN,
	MEMBER_LEAVING,  /* its duty ends when the others have the note */
	MEMBER_OUT,
	MEMBER_REPLAYS,  /* it is there, and gets the changes of structure that it missed */
	MEMBER_COPIES,   /* it gets new changes too, and the blocks that it missed */
	MEMBER_JOINING,  /* it has all, and is noted as in */
	MEMBER_GONE,     /* it has ended, or missed too much */
};

enum missed_kind { MISSED_DROP, MISSED_MOVE, MISSED_FORK, MISSED_FREE, MISSED_PUT };

struct missed {
	uint8_t kind;
	uint32_t space;
	uint64_t a, b, pages;      /* drop: a, pages; move: from a to b; fork: child a */
	uint64_t number, sequence; /* in the mirror; in the member's own, 0: it was not sent */
};

/* A change, until all have answered that get it. */
struct mirrored {
	uint64_t number;
	uint64_t sequence[MIRROR_MEMBERS]; /* its number there, 0: not sent; or MIRROR_CAUGHT_UP */
	struct missed what;                /* put, drop: a to pages are in ranges */
	uint32_t count;
	uint8_t waiting;                   /* members that owe an answer */
	bool told, used;
	int result;
	uint64_t cookie;
	struct page_range ranges[MIRROR_RANGES];
};

struct member_saved {
	uint32_t state;   /* enum member_state */
	uint32_t spoiled; /* it misses more than can be kept: it goes when its duty ends */
	uint64_t missed_count;
	uint64_t missed_done; /* number of the last change that was ever in the list and is not any more */
	struct missed missed[MIRROR_MISSED_LIMIT];
	struct {
		uint32_t used, space;
		uint64_t block;
	} copy[MIRROR_COPIES];
	uint64_t table;               /* room of the set of blocks, and in bit 0 which of the two it is */
	uint64_t key[2][MIRROR_KEYS]; /* 0: free; 1: was deleted; else space << 40 | block + 2 */
};

struct mirror_saved {
	uint64_t magic;
	uint64_t generation;    /* of the note */
	uint64_t highest_space; /* number that was ever given, also where the call did not return */
	struct mirrored operation[MIRROR_OPERATIONS];
	struct member_saved member[MIRROR_MEMBERS];
};
_Static_assert(sizeof(struct mirror_saved) <= SOURCE_SAVED_BYTES, "a source's memory is too small");

/* A set of (space, block), in the saved memory: open addressing, no deletion but by marking. */
struct block_set {
	struct member_saved *saved;
	uint64_t *key;
	size_t room, used, count;
	size_t at; /* where the next one is looked for */
};

struct block_copy {
	bool used, overtaken; /* something has changed it since it was asked for */
	bool sent;            /* it is free when the member has answered this: */
	uint64_t sequence;
	uint32_t space, generation;
	uint64_t block;
	uint64_t seen;
	uint8_t *pages; /* [MIRROR_BLOCK_PAGES] */
	uint64_t zeros; /* bit i: page i is zero */
};

struct member {
	struct mirror *mirror;
	struct member_saved *saved;
	struct link *link;
	bool settled;     /* it is known which operations it has applied */
	size_t missed_at; /* of the list: those before were sent */
	struct block_set blocks;
	struct block_copy copy[MIRROR_COPIES];
	uint64_t join_at; /* JOINING: its operations before this number are from before */
	bool note_owed, release_owed;
	struct link_watch watch;
};

struct mirror_get {
	bool used, asked; /* asked: of `member`; else it waits for one that takes it */
	uint8_t class, member, tried; /* tried: members that had it damaged */
	uint32_t generation, count, at;
	uint32_t space;
	uint64_t page_at, cookie;
	struct page_range ranges[64];
};

struct mirror {
	struct source source;
	struct mirror_saved *saved;
	bool saved_is_ours; /* nobody has given us memory that outlives us */
	struct member member[MIRROR_MEMBERS];
	unsigned count;
	bool ack_one;
	int epoll_fd, failure;
	char why[256];
	struct space_numbers numbers;
	uint64_t next; /* operation */
	uint64_t held; /* M8: nobody catches up before this operation was made */
	uint64_t order_cookie, next_fail_over_ns;
	struct mirror_get *gets; /* [MIRROR_GETS] */
	bool noting;             /* the note of this generation is not with all yet */
	uint8_t note_waits;      /* members that owe an answer to it */
};

static inline struct mirror *mirror_of(const struct source *source)
{
	return (struct mirror *)source;
}

static inline unsigned member_index(const struct member *member)
{
	return (unsigned)(member - member->mirror->member);
}

static inline uint8_t member_bit(const struct member *member)
{
	return (uint8_t)(1u << member_index(member));
}

static inline struct mirrored *mirror_operation(struct mirror *mirror, uint64_t number)
{
	return &mirror->saved->operation[number % MIRROR_OPERATIONS];
}

/* The saved state's stores are in the order in which they are written. */
static inline void mirror_in_order(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static inline struct link_state member_link(const struct member *member)
{
	struct link_state state;
	link_state(member->link, &state);
	return state;
}

/* ---- source_mirror.c ---- */
int mirror_end(struct mirror *mirror, int error, const char *why);
/* Tells all that are in, and those that are to be, who is. */
void mirror_begin_note(struct mirror *mirror);
/* It missed more than can be kept, or cannot take what it missed. */
void mirror_give_up(struct mirror *mirror, struct member *member);
int mirror_receive(struct source *source);
uint64_t mirror_work(struct source *source);

/* ---- mirror_read.c ---- */
int mirror_get_pages(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges,
		     size_t count, uint64_t cookie);
/* Asks a member for pages. */
int mirror_ask(struct mirror *mirror, struct member *from, enum request_class class, uint32_t space,
	       const struct page_range *ranges, size_t count, uint64_t cookie);
/* A member to read from, none of the mask `but`; NULL: none is there now. */
struct member *mirror_reader(struct mirror *mirror, uint8_t but);
/* What was asked of one that is not there, or may not be read any more, is asked of another. */
void mirror_fail_over(struct mirror *mirror);
void mirror_on_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last);
void mirror_on_damaged(void *context, uint64_t cookie, struct page_range range, bool last);
void mirror_on_get_failed(struct member *member, uint64_t cookie, int result);
struct client_handler mirror_handler(struct member *member);
/* The answer to anything but a page. */
void mirror_on_done(void *context, uint64_t cookie, int result);

/* ---- mirror_catch_up.c ---- */
/* A change that the member does not get, because it is out; or, with `sequence`, of which it is not known whether it got it. */
void missed_note(struct mirror *mirror, struct member *member, const struct mirrored *operation, uint64_t sequence);
/* All changes that it has not answered. */
void missed_unanswered(struct mirror *mirror, struct member *member);
/* The same change goes to it, while it catches up: what it still has to get is seen to. */
void copies_follow(struct mirror *mirror, struct member *member, const struct mirrored *operation);
/* Goes on with what it misses. */
void catch_up_work(struct mirror *mirror, struct member *member);
void catch_up_on_pages(struct mirror *mirror, struct member *member, uint64_t cookie, struct page_range range, const void *data,
		       bool last);
void catch_up_on_failure(struct mirror *mirror, struct member *member, uint64_t cookie, int result);
/* Blocks on their way are missed again. */
void catch_up_put_back(struct mirror *mirror, struct member *member);
/* Takes what is in the saved memory: nothing, or what a dead pager left. */
void catch_up_adopt(struct mirror *mirror, struct member *member);
uint64_t catch_up_behind_pages(const struct member *member);
void catch_up_forget(struct member *member);
void catch_up_done(struct member *member);

/* ---- mirror_resume.c ---- */
/* Memory until a better one is given. NULL: there is none. */
struct mirror_saved *mirror_saved_new(void);
void mirror_saved_free(struct mirror *mirror);
void mirror_keep(struct source *source, void *memory);
int mirror_resume(struct source *source, struct source_resume *resume);
/* It is attached for the first time since a crash: what it has not applied, it was not told. */
void mirror_settle(struct member *member);

#define COOKIE_COPY (UINT64_C(1) << 60)
#define COOKIE_NOBODY (UINT64_C(1) << 59) /* operations that the pager knows nothing of */
#define COOKIE_MIRROR_NOTE (UINT64_C(1) << 58)
#define COOKIE_MIRROR_GET (UINT64_C(1) << 57)
#define COOKIE_MIRROR_ORDER (UINT64_C(1) << 56)

#endif
