#include "checkpoint/recall.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

struct recall *recall_new(void)
{
	return calloc(1, sizeof(struct recall));
}

void recall_free(struct recall *recall)
{
	if (!recall)
		return;
	for (size_t i = 0; i < recall->count; i++)
		free(recall->spaces[i].copies);
	free(recall->spaces);
	free(recall->room);
	free(recall);
}

static int add_space(struct recall *recall, int vpid)
{
	struct control_space *spaces = reallocarray(recall->spaces, recall->count + 1, sizeof(*spaces));
	if (spaces)
		recall->spaces = spaces;
	size_t *room = spaces ? reallocarray(recall->room, recall->count + 1, sizeof(*room)) : NULL;
	if (!room)
		return -ENOMEM;
	recall->room = room;
	recall->room[recall->count] = 0;
	recall->spaces[recall->count++] = (struct control_space){ .vpid = vpid, .hints_only = true };
	return 0;
}

int recall_add(struct recall *recall, int vpid, uint64_t pgno, uint64_t hash)
{
	if (!recall->count || recall->spaces[recall->count - 1].vpid != vpid) /* one task after the other */
		if (add_space(recall, vpid))
			return -ENOMEM;
	struct control_space *space = &recall->spaces[recall->count - 1];
	size_t *room = &recall->room[recall->count - 1];
	if (space->copy_count == *room) {
		size_t wider = *room ? *room * 2 : 1024;
		struct control_copy *copies = reallocarray(space->copies, wider, sizeof(*copies));
		if (!copies)
			return -ENOMEM;
		space->copies = copies;
		*room = wider;
	}
	space->copies[space->copy_count++] = (struct control_copy){ pgno, hash };
	return 0;
}

bool recall_find(struct recall *recall, struct client *client)
{
	struct snapshot_info info = { 0 };
	if (client_snapshot_open(client, recall->snapshot, &info, NULL))
		return false;
	/* The same state still, not another of its name. */
	bool same = !recall->created_unix_ns || recall->created_unix_ns == info.created_unix_ns;
	recall->created_unix_ns = info.created_unix_ns;
	for (size_t i = 0; i < recall->count && same; i++) {
		uint64_t found = 0;
		for (size_t s = 0; s < info.space_count; s++)
			if (info.spaces[s].label == (uint64_t)recall->spaces[i].vpid)
				found = info.spaces[s].space;
		same = found != 0;
		recall->spaces[i].pool_space = found;
	}
	client_snapshot_info_done(&info);
	return same;
}

const struct control_space *recall_space(const struct recall *recall, int vpid)
{
	for (size_t i = 0; recall && i < recall->count; i++)
		if (recall->spaces[i].vpid == vpid)
			return &recall->spaces[i];
	return NULL;
}
