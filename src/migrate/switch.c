#include "migrate/switch.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "base/base.h"

/* ---- the source's side ---- */

void switch_source_init(struct switch_source *source, uint64_t lease_ns, uint64_t margin_ns, uint64_t now_ns)
{
	*source = (struct switch_source){ SWITCH_FROZEN, lease_ns, margin_ns, now_ns + SWITCH_PREPARE_NS };
}

void switch_source_inherit(struct switch_source *source, enum switch_state recorded, uint64_t lease_ns, uint64_t margin_ns,
			   uint64_t now_ns)
{
	/* Without a record nothing was answered, so nothing can run elsewhere. */
	enum switch_state state = recorded == SWITCH_FROZEN ? SWITCH_RESUMED : recorded;
	*source = (struct switch_source){ state, lease_ns, margin_ns, now_ns + lease_ns + margin_ns };
}

enum switch_state switch_source_tick(struct switch_source *source, uint64_t now_ns)
{
	bool open = source->state == SWITCH_FROZEN || source->state == SWITCH_GRANTED;
	if (open && now_ns >= source->until_ns)
		source->state = SWITCH_RESUMED;
	return source->state;
}

enum switch_answer switch_source_ask(struct switch_source *source, enum switch_ask ask, uint64_t now_ns)
{
	switch_source_tick(source, now_ns);
	if (source->state == SWITCH_RELEASED)
		return ANSWER_RELEASED;
	if (source->state == SWITCH_RESUMED)
		return ANSWER_RESUMED;
	if (ask == ASK_DEAD) {
		source->state = SWITCH_RESUMED;
		return ANSWER_RESUMED;
	}
	if (source->state == SWITCH_FROZEN && ask != ASK_GRANT)
		return ANSWER_REFUSED; /* nobody who was granted nothing has anything to renew */
	if (ask == ASK_RELEASE) {
		source->state = SWITCH_RELEASED;
		return ANSWER_RELEASED;
	}
	source->state = SWITCH_GRANTED;
	source->until_ns = now_ns + source->lease_ns + source->margin_ns;
	return ANSWER_GRANTED;
}

enum switch_state switch_source_give_up(struct switch_source *source)
{
	if (source->state == SWITCH_FROZEN)
		source->state = SWITCH_RESUMED;
	return source->state;
}

/* ---- the destination's side ---- */

void switch_destination_init(struct switch_destination *destination, uint64_t lease_ns)
{
	*destination = (struct switch_destination){ .place = PLACE_WAITING, .lease_ns = lease_ns };
}

void switch_destination_inherit(struct switch_destination *destination, uint64_t lease_ns)
{
	*destination = (struct switch_destination){ .place = PLACE_STOPPED, .lease_ns = lease_ns, .granted = true };
}

enum switch_place switch_destination_tick(struct switch_destination *destination, uint64_t now_ns)
{
	if (destination->place == PLACE_RUNNING && now_ns >= destination->until_ns)
		destination->place = PLACE_STOPPED;
	return destination->place;
}

enum switch_place switch_destination_answer(struct switch_destination *destination, enum switch_answer answer, uint64_t asked_ns,
					    uint64_t now_ns)
{
	assert(asked_ns <= now_ns);
	if (destination->place == PLACE_DEAD || destination->place == PLACE_FREE)
		return destination->place;
	switch (answer) {
	case ANSWER_GRANTED:
		destination->granted = true;
		destination->until_ns = DP_MAX(destination->until_ns, asked_ns + destination->lease_ns);
		if (now_ns < destination->until_ns) /* an answer that took too long lets nobody run */
			destination->place = PLACE_RUNNING;
		break;
	case ANSWER_RELEASED: destination->place = PLACE_FREE; break;
	case ANSWER_RESUMED: destination->place = PLACE_DEAD; break;
	case ANSWER_REFUSED: break;
	}
	return switch_destination_tick(destination, now_ns);
}

void switch_destination_dead(struct switch_destination *destination)
{
	destination->place = PLACE_DEAD;
}

enum switch_place switch_destination_lost_source(struct switch_destination *destination, bool whole)
{
	if (destination->place != PLACE_DEAD && destination->place != PLACE_FREE)
		destination->place = whole && destination->granted ? PLACE_FREE : PLACE_DEAD;
	return destination->place;
}

/* ---- words ---- */

static const char *const states[] = { [SWITCH_FROZEN] = "frozen", [SWITCH_GRANTED] = "granted", [SWITCH_RELEASED] = "released",
				      [SWITCH_RESUMED] = "resumed" };
static const char *const asks[] = { [ASK_GRANT] = "grant", [ASK_RENEW] = "renew", [ASK_RELEASE] = "release",
				    [ASK_DEAD] = "dead" };
static const char *const answers[] = { [ANSWER_GRANTED] = "granted", [ANSWER_RELEASED] = "released",
				       [ANSWER_RESUMED] = "resumed", [ANSWER_REFUSED] = "refused" };

static int find(const char *const *names, size_t count, const char *name)
{
	for (size_t i = 0; name && i < count; i++)
		if (!strcmp(names[i], name))
			return (int)i;
	return -1;
}

const char *switch_state_name(enum switch_state state)
{
	return states[state];
}

const char *switch_ask_name(enum switch_ask ask)
{
	return asks[ask];
}

const char *switch_answer_name(enum switch_answer answer)
{
	return answers[answer];
}

int switch_state_parse(const char *name)
{
	return find(states, ARRAY_LENGTH(states), name);
}

int switch_ask_parse(const char *name)
{
	return find(asks, ARRAY_LENGTH(asks), name);
}

int switch_answer_parse(const char *name)
{
	return find(answers, ARRAY_LENGTH(answers), name);
}

uint64_t switch_clock_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
