/* space_numbers: the spaces of an instance by number, which is the lower 20 bits of an id: those that the snapshot has, found by
 * their task, and those that are made by fork. The number of a space that was freed is given again: the pool has forgotten it
 * when it gets the next request. */
#ifndef DP_PAGER_SPACE_NUMBERS_H
#define DP_PAGER_SPACE_NUMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/client.h"

#define SPACE_BITS 20

struct space_numbers {
	uint64_t anchor; /* the upper bits of every id */
	struct snapshot_space *spaces;
	size_t count;
	uint64_t next; /* number of the next forked space, unless one was freed */
	uint32_t *freed;
	size_t freed_count, freed_room;
};

static inline uint32_t space_number_of(uint64_t space)
{
	return (uint32_t)(space & ((1u << SPACE_BITS) - 1));
}

/* The spaces are copied. -ENOMEM. */
int space_numbers_init(struct space_numbers *numbers, const struct client_attached *attached);
void space_numbers_done(struct space_numbers *numbers);
/* The id of the space of the task with this vpid. -ENOENT. */
int space_numbers_find(const struct space_numbers *numbers, int vpid, uint64_t *space, struct dp_err *err);
/* The number for a forked space: that of `given`, an id, or where that is 0 one that is free. 0: a million are alive. */
uint32_t space_numbers_choose(const struct space_numbers *numbers, uint64_t given);
/* It is in use now: chosen, or given (a dead pager had chosen it). Its id. */
uint64_t space_numbers_take(struct space_numbers *numbers, uint32_t number);
void space_numbers_free(struct space_numbers *numbers, uint32_t number);
/* Numbers are chosen above that of this id from now on. */
void space_numbers_skip(struct space_numbers *numbers, uint64_t highest);

#endif
