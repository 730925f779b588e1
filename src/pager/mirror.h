/* mirror: the inside of a mirror: source_mirror.c (changes, reads, who is in) and mirror_catch_up.c (what a member missed). */
#ifndef DP_PAGER_MIRROR_H
#define DP_PAGER_MIRROR_H

#include "base/base.h"
#include "pager/link_watch.h"
#include "pager/source_mirror.h"
#include "pager/space_numbers.h"

#define MIRROR_OPERATIONS 1024u
#define MIRROR_GETS 256u
#define MIRROR_COPIES 4u         /* blocks on their way to a member that catches up */
#define MIRROR_BLOCK_PAGES 64u
#define MIRROR_MISSED_LIMIT 65536u /* changes of structure; more, and it does not come back in this run */
#define MIRROR_PATIENCE_NS UINT64_C(2000000000) /* without an answer, and a member is put out */

enum member_state {
	MEMBER_IN,
	MEMBER_LEAVING,  /* its duty ends when the others have the note */
	MEMBER_OUT,
	MEMBER_REPLAYS,  /* it is there, and gets the changes of structure that it missed */
	MEMBER_COPIES,   /* it gets new changes too, and the blocks that it missed */
	MEMBER_JOINING,  /* it has all, acknowledges too, and is noted as in */
	MEMBER_GONE,     /* it has ended, or missed too much */
};

enum missed_kind { MISSED_DROP, MISSED_MOVE, MISSED_FORK, MISSED_FREE };

struct missed {
	uint8_t kind;
	uint32_t space;
	uint64_t a, b, pages; /* drop: a, pages; move: from a to b; fork: child a */
};

/* A set of (space, block): open addressing, no deletion but by marking. */
struct block_set {
	uint64_t *key; /* 0: free; 1: was deleted; else space << 40 | block + 2 */
	size_t room, used, count;
	size_t at; /* where the next one is looked for */
};

struct block_copy {
	bool used, overtaken; /* something has changed it since it was asked for */
	uint32_t space, generation;
	uint64_t block;
	uint64_t seen;
	uint8_t *pages; /* [MIRROR_BLOCK_PAGES] */
	uint64_t zeros; /* bit i: page i is zero */
};

struct member {
	struct mirror *mirror;
	struct link *link;
	enum member_state state;
	struct missed *missed;
	size_t missed_count, missed_room, missed_at;
	struct block_set blocks;
	struct block_copy copy[MIRROR_COPIES];
	uint64_t join_at; /* JOINING: its operations before this number are from before */
	bool note_owed;
	struct link_watch watch;
};

struct mirrored { /* an operation */
	uint64_t number;
	uint64_t cookie;
	uint8_t waiting; /* members that owe an answer */
	bool told, used;
	int result;
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
	struct member member[MIRROR_MEMBERS];
	unsigned count;
	bool ack_one;
	int epoll_fd, failure;
	char why[256];
	struct space_numbers numbers;
	uint64_t next;   /* operation */
	uint64_t order_cookie, next_fail_over_ns;
	struct mirrored *operations; /* [MIRROR_OPERATIONS] */
	struct mirror_get *gets;     /* [MIRROR_GETS] */
	uint64_t generation; /* of the note */
	bool noting;         /* the note of this generation is not with all yet */
	uint8_t note_waits;  /* members that owe an answer to it */
};

int mirror_end(struct mirror *mirror, int error, const char *why);
/* Asks a member for pages. */
int mirror_ask(struct mirror *mirror, struct member *from, enum request_class class, uint32_t space, const struct page_range *ranges,
	       size_t count, uint64_t cookie);
/* A member to read from, none of the mask `but`; NULL: none is there now. */
struct member *mirror_reader(struct mirror *mirror, uint8_t but);

/* ---- mirror_catch_up.c ---- */
/* A change that the member does not get, because it is out. */
void missed_put(struct mirror *mirror, struct member *member, uint32_t space, const struct page_range *ranges, size_t count);
void missed_structure(struct mirror *mirror, struct member *member, const struct missed *change);
/* The same change goes to it, while it catches up: what it still has to get is seen to. */
void copies_touched(struct member *member, uint32_t space, const struct page_range *ranges, size_t count);
void copies_follow(struct mirror *mirror, struct member *member, const struct missed *change);
/* Goes on with what it misses. */
void catch_up_work(struct mirror *mirror, struct member *member);
void catch_up_on_pages(struct mirror *mirror, struct member *member, uint64_t cookie, struct page_range range, const void *data, bool last);
void catch_up_on_failure(struct member *member, uint64_t cookie, int result);
/* Blocks on their way are missed again. */
void catch_up_put_back(struct mirror *mirror, struct member *member);
uint64_t catch_up_behind_pages(const struct member *member);
void catch_up_forget(struct member *member);
#define COOKIE_COPY (UINT64_C(1) << 60)
#define COOKIE_NOBODY (UINT64_C(1) << 59) /* operations that the pager knows nothing of */
#define COOKIE_MIRROR_GET (UINT64_C(1) << 57)
#define COOKIE_MIRROR_ORDER (UINT64_C(1) << 56)
#define COOKIE_MIRROR_NOTE (UINT64_C(1) << 58)

#endif
