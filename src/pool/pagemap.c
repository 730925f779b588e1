#include "pool/pagemap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

#define WAY_BITS 9
#define WAYS (1u << WAY_BITS)
#define TOP_LEVEL 3 /* level 0: leaves; 4 levels * 9 bits = 36 */

struct pagemap_node {
	uint32_t references;
	uint16_t level;
	uint16_t present; /* ways in use */
	uint64_t pages;   /* slots below */
	union {
		struct pagemap_node *child[WAYS];
		uint64_t slot[WAYS];
	};
};

/* Pages below one way of a node of this level, and below the node. */
static uint64_t way_pages(unsigned level)
{
	return UINT64_C(1) << (WAY_BITS * level);
}
static uint64_t node_pages(unsigned level)
{
	return UINT64_C(1) << (WAY_BITS * (level + 1));
}
static unsigned way_of(uint64_t pgno, unsigned level)
{
	return (unsigned)(pgno >> (WAY_BITS * level)) & (WAYS - 1);
}

static struct pagemap_node *node_new(unsigned level)
{
	struct pagemap_node *node = calloc(1, sizeof(*node));

	if (node) {
		node->references = 1;
		node->level = (uint16_t)level;
	}
	return node;
}

static void node_release(struct slots *slots, struct pagemap_node *node)
{
	if (!node || --node->references > 0)
		return;
	for (unsigned way = 0; way < WAYS && node->present; way++) {
		if (node->level == 0 && node->slot[way]) {
			slots_release(slots, node->slot[way]);
			node->present--;
		} else if (node->level > 0 && node->child[way]) {
			node_release(slots, node->child[way]);
			node->present--;
		}
	}
	free(node);
}

/* Makes *link a node that only it refers to: M1. */
static int node_own(struct slots *slots, struct pagemap_node **link)
{
	struct pagemap_node *node = *link;

	if (node->references == 1)
		return 0;
	struct pagemap_node *copy = malloc(sizeof(*copy));

	if (!copy)
		return -ENOMEM;
	*copy = *node;
	copy->references = 1;
	for (unsigned way = 0; way < WAYS; way++) {
		if (copy->level == 0 && copy->slot[way])
			slots_take(slots, copy->slot[way]);
		else if (copy->level > 0 && copy->child[way])
			copy->child[way]->references++;
	}
	node->references--;
	*link = copy;
	return 0;
}

void pagemap_init(struct pagemap *map, struct slots *slots)
{
	*map = (struct pagemap){ .slots = slots };
}

void pagemap_clear(struct pagemap *map)
{
	node_release(map->slots, map->root);
	map->root = NULL;
}

void pagemap_clone(struct pagemap *map, const struct pagemap *source)
{
	assert(!map->root && map->slots == source->slots);
	map->root = source->root;
	if (map->root)
		map->root->references++;
}

uint64_t pagemap_pages(const struct pagemap *map)
{
	return map->root ? map->root->pages : 0;
}

static const struct pagemap_node *find_leaf(const struct pagemap *map, uint64_t pgno)
{
	const struct pagemap_node *node = map->root;

	while (node && node->level > 0)
		node = node->child[way_of(pgno, node->level)];
	return node;
}

void pagemap_read(const struct pagemap *map, uint64_t pgno, uint64_t *slots, size_t count)
{
	while (count) {
		const struct pagemap_node *leaf = find_leaf(map, pgno);
		unsigned way = way_of(pgno, 0);
		size_t part = DP_MIN(count, (size_t)(WAYS - way));

		if (leaf)
			memcpy(slots, leaf->slot + way, part * sizeof(*slots));
		else
			memset(slots, 0, part * sizeof(*slots));
		slots += part;
		pgno += part;
		count -= part;
	}
}

uint64_t pagemap_own_slot(const struct pagemap *map, uint64_t pgno)
{
	const struct pagemap_node *node = map->root;

	while (node && node->references == 1 && node->level > 0)
		node = node->child[way_of(pgno, node->level)];
	if (!node || node->references > 1)
		return 0;
	uint64_t slot = node->slot[way_of(pgno, 0)];

	return slot && map->slots->references[slot] == 1 ? slot : 0;
}

/* Takes away nodes on the way to pgno that hold nothing: what a failed or emptying change leaves (M3). */
static void prune(struct pagemap_node **link, uint64_t pgno)
{
	struct pagemap_node *node = *link;

	if (!node || node->references > 1)
		return;
	if (node->level > 0) {
		struct pagemap_node **child = &node->child[way_of(pgno, node->level)];

		if (*child) {
			prune(child, pgno);
			if (!*child)
				node->present--;
		}
	}
	if (node->present == 0) {
		free(node);
		*link = NULL;
	}
}

/* Walks down to the node of `level` over pgno, making and owning nodes on the way; path[l] is the node of level l. */
static int own_path(struct pagemap *map, uint64_t pgno, unsigned level, struct pagemap_node *path[TOP_LEVEL + 1])
{
	struct pagemap_node **link = &map->root;

	for (unsigned at = TOP_LEVEL;; at--) {
		if (!*link) {
			*link = node_new(at);
			if (*link && at < TOP_LEVEL)
				path[at + 1]->present++;
		} else if (node_own(map->slots, link) < 0) {
			link = NULL;
		}
		if (!link || !*link) {
			prune(&map->root, pgno);
			return -ENOMEM;
		}
		path[at] = *link;
		if (at == level)
			return 0;
		link = &path[at]->child[way_of(pgno, at)];
	}
}

int pagemap_set(struct pagemap *map, uint64_t pgno, uint64_t slot)
{
	struct pagemap_node *path[TOP_LEVEL + 1];
	int result = own_path(map, pgno, 0, path);

	if (result < 0)
		return result;
	uint64_t *place = &path[0]->slot[way_of(pgno, 0)];

	if (*place) {
		slots_release(map->slots, *place);
	} else {
		path[0]->present++;
		for (unsigned level = 0; level <= TOP_LEVEL; level++)
			path[level]->pages++;
	}
	*place = slot;
	return 0;
}

int pagemap_fill(struct pagemap *map, uint64_t pgno, uint64_t slot, uint64_t pages)
{
	struct pagemap_node *path[TOP_LEVEL + 1];

	while (pages) {
		unsigned way = way_of(pgno, 0);
		uint64_t part = DP_MIN(pages, (uint64_t)(WAYS - way));
		int result = own_path(map, pgno, 0, path);

		if (result < 0)
			return result;
		for (unsigned i = 0; i < part; i++) {
			assert(!path[0]->slot[way + i]);
			path[0]->slot[way + i] = slot + i;
		}
		path[0]->present += (uint16_t)part;
		for (unsigned level = 0; level <= TOP_LEVEL; level++)
			path[level]->pages += part;
		pgno += part;
		slot += part;
		pages -= part;
	}
	return 0;
}

/* Drops what lies in [from, end) below *link, whose first page is base. Adds to *dropped, also on failure. */
static int drop_below(struct slots *slots, struct pagemap_node **link, uint64_t base, uint64_t from, uint64_t end,
		      uint64_t *dropped)
{
	struct pagemap_node *node = *link;
	unsigned level = node->level;
	uint64_t before = *dropped;
	int result = 0;

	if (from <= base && base + node_pages(level) <= end) {
		*dropped += node->pages;
		node_release(slots, node);
		*link = NULL;
		return 0;
	}
	uint64_t low = DP_MAX(from, base), high = DP_MIN(end, base + node_pages(level));

	for (unsigned way = way_of(low, level); way <= way_of(high - 1, level) && result == 0; way++) {
		if (level == 0 ? !(*link)->slot[way] : !(*link)->child[way])
			continue;
		result = node_own(slots, link);
		if (result < 0)
			break;
		node = *link;
		if (level == 0) {
			slots_release(slots, node->slot[way]);
			node->slot[way] = 0;
			node->present--;
			++*dropped;
			continue;
		}
		result = drop_below(slots, &node->child[way], base + way * way_pages(level), from, end, dropped);
		if (!node->child[way])
			node->present--;
	}
	(*link)->pages -= *dropped - before;
	if ((*link)->present == 0) {
		node_release(slots, *link);
		*link = NULL;
	}
	return result;
}

int pagemap_drop(struct pagemap *map, uint64_t pgno, uint64_t pages)
{
	uint64_t dropped = 0;

	assert(pages <= PGNO_END && pgno <= PGNO_END - pages);
	if (!map->root || pages == 0)
		return 0;
	return drop_below(map->slots, &map->root, 0, pgno, pgno + pages, &dropped);
}

/* Puts a whole subtree of another map at `to`, which is aligned to it. */
static int graft(struct pagemap *map, struct pagemap_node *tree, uint64_t to)
{
	struct pagemap_node *path[TOP_LEVEL + 1], **place = &map->root;

	if (tree->level < TOP_LEVEL) {
		int result = own_path(map, to, tree->level + 1u, path);

		if (result < 0)
			return result;
		place = &path[tree->level + 1]->child[way_of(to, tree->level + 1u)];
		uint64_t before = *place ? (*place)->pages : 0;

		if (!*place)
			path[tree->level + 1]->present++;
		for (unsigned level = tree->level + 1u; level <= TOP_LEVEL; level++)
			path[level]->pages += tree->pages - before;
	}
	tree->references++;
	node_release(map->slots, *place);
	*place = tree;
	return 0;
}

struct copy {
	struct pagemap *map;
	uint64_t from, end; /* in the source */
	uint64_t shift;     /* to - from, modulo 2^64 */
};

static int copy_below(const struct copy *copy, struct pagemap_node *node, uint64_t base)
{
	uint64_t span = node_pages(node->level);
	uint64_t low = DP_MAX(copy->from, base), high = DP_MIN(copy->end, base + span);
	int result = 0;

	/* A graft replaces all that map has there; with the destination dropped first, or pages in both, that must not lose
	 * any. */
	if (low == base && high == base + span && copy->shift % span == 0) {
		const struct pagemap_node *there = copy->map->root;
		uint64_t to = base + copy->shift;

		while (there && there->level > node->level)
			there = there->child[way_of(to, there->level)];
		if (!there)
			return graft(copy->map, node, to);
	}
	for (unsigned way = way_of(low, node->level); way <= way_of(high - 1, node->level) && result == 0; way++) {
		if (node->level > 0) {
			if (node->child[way])
				result = copy_below(copy, node->child[way], base + way * way_pages(node->level));
		} else if (node->slot[way]) {
			slots_take(copy->map->slots, node->slot[way]);
			result = pagemap_set(copy->map, base + way + copy->shift, node->slot[way]);
			if (result < 0)
				slots_release(copy->map->slots, node->slot[way]);
		}
	}
	return result;
}

int pagemap_copy(struct pagemap *map, const struct pagemap *source, uint64_t from, uint64_t to, uint64_t pages)
{
	struct copy copy = { .map = map, .from = from, .end = from + pages, .shift = to - from };

	assert(map->slots == source->slots && map != source);
	assert(pages <= PGNO_END && from <= PGNO_END - pages && to <= PGNO_END - pages);
	if (!source->root || pages == 0)
		return 0;
	return copy_below(&copy, source->root, 0);
}

int pagemap_move(struct pagemap *map, uint64_t from, uint64_t to, uint64_t pages)
{
	struct pagemap before;
	int result;

	if (from == to)
		return 0;
	/* The state before is kept aside, shared: overlaps need no thought, and a failure can be undone. */
	pagemap_init(&before, map->slots);
	pagemap_clone(&before, map);
	result = pagemap_drop(map, from, pages);
	if (result == 0)
		result = pagemap_drop(map, to, pages);
	if (result == 0)
		result = pagemap_copy(map, &before, from, to, pages);
	if (result < 0) {
		pagemap_clear(map);
		pagemap_clone(map, &before);
	}
	pagemap_clear(&before);
	return result;
}

static int walk_below(const struct pagemap_node *node, uint64_t base, pagemap_visit visit, void *context)
{
	int result = 0;

	for (unsigned way = 0; way < WAYS && result >= 0; way++) {
		if (node->level == 0 && node->slot[way])
			result = visit(context, base + way, node->slot[way]);
		else if (node->level > 0 && node->child[way])
			result = walk_below(node->child[way], base + way * way_pages(node->level), visit, context);
	}
	return result;
}

int pagemap_walk(const struct pagemap *map, pagemap_visit visit, void *context)
{
	int result = map->root ? walk_below(map->root, 0, visit, context) : 0;

	return result < 0 ? result : 0;
}

static uint64_t own_pages_below(const struct slots *slots, const struct pagemap_node *node)
{
	uint64_t pages = 0;

	if (node->references > 1)
		return 0;
	for (unsigned way = 0; way < WAYS; way++) {
		if (node->level == 0)
			pages += node->slot[way] && slots->references[node->slot[way]] == 1;
		else if (node->child[way])
			pages += own_pages_below(slots, node->child[way]);
	}
	return pages;
}

uint64_t pagemap_own_pages(const struct pagemap *map)
{
	return map->root ? own_pages_below(map->slots, map->root) : 0;
}

static uint64_t own_bytes_below(const struct pagemap_node *node)
{
	uint64_t bytes = sizeof(*node);

	if (node->references > 1)
		return 0;
	for (unsigned way = 0; way < WAYS && node->level > 0; way++)
		if (node->child[way])
			bytes += own_bytes_below(node->child[way]);
	return bytes;
}

uint64_t pagemap_own_bytes(const struct pagemap *map)
{
	return map->root ? own_bytes_below(map->root) : 0;
}

static bool consistent_below(const struct slots *slots, const struct pagemap_node *node, unsigned level, uint64_t *pages)
{
	uint64_t below = 0;
	unsigned present = 0;

	if (node->level != level || node->references == 0)
		return false;
	for (unsigned way = 0; way < WAYS; way++) {
		if (level == 0 && node->slot[way]) {
			if (node->slot[way] >= slots->count || slots->references[node->slot[way]] == 0)
				return false;
			present++;
			below++;
		} else if (level > 0 && node->child[way]) {
			if (!consistent_below(slots, node->child[way], level - 1, &below))
				return false;
			present++;
		}
	}
	*pages += below;
	return present == node->present && below == node->pages && present > 0;
}

bool pagemap_consistent(const struct pagemap *map)
{
	uint64_t pages = 0;

	return !map->root || consistent_below(map->slots, map->root, TOP_LEVEL, &pages);
}
