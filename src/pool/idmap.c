#include "pool/idmap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static size_t start_of(const struct idmap *map, uint64_t id)
{
	return (size_t)((id * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (map->size - 1);
}

static size_t place_of(const struct idmap *map, uint64_t id)
{
	size_t at = start_of(map, id);

	while (map->entries[at].value && map->entries[at].id != id)
		at = (at + 1) & (map->size - 1);
	return at;
}

void *idmap_find(const struct idmap *map, uint64_t id)
{
	return map->size ? map->entries[place_of(map, id)].value : NULL;
}

int idmap_add(struct idmap *map, uint64_t id, void *value)
{
	if (map->count * 2 >= map->size) {
		struct idmap bigger = { .size = map->size ? map->size * 2 : 64, .count = map->count };

		bigger.entries = calloc(bigger.size, sizeof(*bigger.entries));
		if (!bigger.entries)
			return -ENOMEM;
		for (size_t i = 0; i < map->size; i++)
			if (map->entries[i].value)
				bigger.entries[place_of(&bigger, map->entries[i].id)] = map->entries[i];
		free(map->entries);
		*map = bigger;
	}
	size_t at = place_of(map, id);

	assert(!map->entries[at].value);
	map->entries[at] = (struct idmap_entry){ id, value };
	map->count++;
	return 0;
}

void idmap_remove(struct idmap *map, uint64_t id)
{
	if (!map->size)
		return;
	size_t hole = place_of(map, id), at = hole;

	if (!map->entries[hole].value)
		return;
	map->count--;
	/* Entries behind the hole move up where their probing passed it, so that no search stops short. */
	for (;;) {
		map->entries[hole].value = NULL;
		for (;;) {
			at = (at + 1) & (map->size - 1);
			if (!map->entries[at].value)
				return;
			size_t start = start_of(map, map->entries[at].id);

			if (((at - start) & (map->size - 1)) >= ((at - hole) & (map->size - 1)))
				break;
		}
		map->entries[hole] = map->entries[at];
		hole = at;
	}
}

void idmap_done(struct idmap *map)
{
	free(map->entries);
	*map = (struct idmap){ 0 };
}
