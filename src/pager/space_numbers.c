#include "pager/space_numbers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

int space_numbers_init(struct space_numbers *numbers, const struct client_attached *attached)
{
	*numbers = (struct space_numbers){ .anchor = attached->instance << SPACE_BITS, .next = 1 };
	numbers->spaces = calloc(attached->space_count + 1, sizeof(*numbers->spaces));
	if (!numbers->spaces)
		return -ENOMEM;
	numbers->count = attached->space_count;
	if (numbers->count)
		memcpy(numbers->spaces, attached->spaces, numbers->count * sizeof(*numbers->spaces));
	for (size_t i = 0; i < numbers->count; i++)
		space_numbers_skip(numbers, numbers->spaces[i].space);
	return 0;
}

void space_numbers_done(struct space_numbers *numbers)
{
	free(numbers->spaces);
	free(numbers->freed);
	*numbers = (struct space_numbers){ 0 };
}

int space_numbers_find(const struct space_numbers *numbers, int vpid, uint64_t *space, struct dp_err *err)
{
	for (size_t i = 0; i < numbers->count; i++)
		if (numbers->spaces[i].label == (uint64_t)vpid) {
			*space = numbers->anchor | space_number_of(numbers->spaces[i].space);
			return 0;
		}
	return dp_fail(err, ENOENT, "the snapshot has no pages of task %d", vpid);
}

uint32_t space_numbers_choose(const struct space_numbers *numbers, uint64_t given)
{
	if (given)
		return space_number_of(given);
	if (numbers->freed_count)
		return numbers->freed[numbers->freed_count - 1];
	return numbers->next >> SPACE_BITS ? 0 : (uint32_t)numbers->next;
}

uint64_t space_numbers_take(struct space_numbers *numbers, uint32_t number)
{
	space_numbers_skip(numbers, number);
	for (size_t i = numbers->freed_count; i-- > 0;)
		if (numbers->freed[i] == number)
			numbers->freed[i] = numbers->freed[--numbers->freed_count];
	return numbers->anchor | number;
}

void space_numbers_free(struct space_numbers *numbers, uint32_t number)
{
	if (numbers->freed_count == numbers->freed_room) {
		size_t room = numbers->freed_room * 2 + 64;
		uint32_t *larger = realloc(numbers->freed, room * sizeof(*larger));
		if (!larger)
			return; /* this number is not used again, that is all */
		numbers->freed = larger;
		numbers->freed_room = room;
	}
	numbers->freed[numbers->freed_count++] = number;
}

void space_numbers_skip(struct space_numbers *numbers, uint64_t highest)
{
	numbers->next = DP_MAX(numbers->next, (uint64_t)space_number_of(highest) + 1);
}
