/* pool/idmap: 64-bit id -> pointer, open addressing with linear probing. Thread rule: one thread. */
#ifndef DP_POOL_IDMAP_H
#define DP_POOL_IDMAP_H

#include <stddef.h>
#include <stdint.h>

struct idmap_entry {
	uint64_t id;
	void *value; /* NULL: empty */
};

struct idmap {
	struct idmap_entry *entries;
	size_t size; /* power of two, or 0 */
	size_t count;
};

void *idmap_find(const struct idmap *map, uint64_t id);
/* The id must not be there. -ENOMEM. */
int idmap_add(struct idmap *map, uint64_t id, void *value);
void idmap_remove(struct idmap *map, uint64_t id);
void idmap_done(struct idmap *map);

#endif
