#include "cli/heat_map.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "pager/control.h"
#include "sys/page_idle.h"
#include "sys/referenced.h"

/* ---- the pager's part ---- */

static struct heat_process *process_of(struct heat_map *map, pid_t pid)
{
	for (size_t i = 0; i < map->process_count; i++)
		if (map->processes[i].pid == pid)
			return &map->processes[i];
	struct heat_process *larger = reallocarray(map->processes, map->process_count + 1, sizeof(*larger));
	if (!larger)
		return NULL;
	map->processes = larger;
	larger[map->process_count] = (struct heat_process){ .pid = pid };
	return &map->processes[map->process_count++];
}

static int add_piece(struct heat_map *map, const struct heat_piece *piece)
{
	struct heat_process *process = process_of(map, (pid_t)piece->pid);
	size_t have = process ? process->leaf_count : 0;
	struct heat_leaf *larger = process ? reallocarray(process->leaves, have + piece->count + 1, sizeof(*larger)) : NULL;
	if (!larger)
		return -ENOMEM;
	process->leaves = larger;
	memcpy(larger + have, piece->leaf, piece->count * sizeof(*larger));
	process->leaf_count += piece->count;
	return 0;
}

static int by_place(const void *first, const void *second)
{
	const struct heat_leaf *a = first, *b = second;
	if (a->range != b->range)
		return a->range < b->range ? -1 : 1;
	return a->pgno < b->pgno ? -1 : a->pgno > b->pgno;
}

static int export_all(struct heat_map *map, const struct instance *instance, struct dp_err *err)
{
	char path[PATH_MAX];
	cleanup_free struct heat_piece *piece = malloc(sizeof(*piece));
	cleanup_fd int connection = control_connect(instance_path(instance, "control.sock", path, sizeof(path)), err);
	if (connection < 0)
		return connection;
	if (!piece)
		return dp_fail(err, ENOMEM, "out of memory");
	uint64_t space = UINT64_MAX, at = 0;
	do {
		int ret = control_heat(connection, space, at, piece, err);
		if (!ret && piece->space && piece->pid > 0)
			ret = add_piece(map, piece) ? dp_fail(err, ENOMEM, "out of memory") : 0;
		if (ret)
			return ret;
		space = piece->next_space;
		at = piece->next_at;
	} while (space);
	for (size_t i = 0; i < map->process_count; i++) {
		struct heat_process *process = &map->processes[i];
		qsort(process->leaves, process->leaf_count, sizeof(*process->leaves), by_place);
		while (process->leaf_count && process->leaves[process->leaf_count - 1].range) {
			process->leaf_count--;
			process->range_count++;
		}
	}
	return 0;
}

/* ---- the kernel's part ---- */

static int add_area(void *context, const struct referenced_area *area)
{
	struct heat_process *process = context;
	struct heat_area *larger = reallocarray(process->areas, process->area_count + 1, sizeof(*larger));
	if (!larger)
		return -ENOMEM;
	process->areas = larger;
	struct heat_area *to = &larger[process->area_count++];
	*to = (struct heat_area){ .start = area->start, .end = area->end, .resident_bytes = area->resident_bytes,
				  .referenced_bytes = area->referenced_bytes };
	memcpy(to->name, area->name, sizeof(to->name));
	return 0;
}

struct marking {
	int bitmap_fd;
	pid_t pid;
};

static int mark_area(void *context, const struct referenced_area *area)
{
	const struct marking *marking = context;
	if (area->start < area->end && area->end >> 47 == 0)
		page_idle_mark(marking->bitmap_fd, marking->pid, area->start, area->end);
	return 0;
}

static void read_idle(struct heat_map *map, int bitmap_fd)
{
	for (size_t p = 0; p < map->process_count; p++)
		for (size_t i = 0; i < map->processes[p].area_count; i++) {
			struct heat_area *area = &map->processes[p].areas[i];
			if (!area->resident_bytes)
				continue;
			area->used = calloc((area->end - area->start) / PAGE_BYTES, sizeof(bool));
			if (area->used && page_idle_read(bitmap_fd, map->processes[p].pid, area->start, area->end, area->used)) {
				free(area->used);
				area->used = NULL;
			}
		}
}

static void wait_ns(uint64_t ns)
{
	struct timespec left = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

static void begin_sample(struct heat_map *map, const struct instance *instance, int bitmap_fd)
{
	pid_t *pids;
	size_t count;
	if (instance_tasks(instance, &pids, &count))
		return;
	for (size_t i = 0; i < count; i++) {
		map->by_area |= !referenced_clear(pids[i]);
		if (bitmap_fd >= 0)
			referenced_each(pids[i], mark_area, &(struct marking){ bitmap_fd, pids[i] });
	}
	free(pids);
	wait_ns(map->options->sample_ns);
}

/* ---- classes ---- */

static struct heat_area *area_of(const struct heat_process *process, uint64_t pgno, size_t *cursor)
{
	while (*cursor < process->area_count && process->areas[*cursor].end >> PAGE_SHIFT <= pgno)
		++*cursor;
	struct heat_area *area = *cursor < process->area_count ? &process->areas[*cursor] : NULL;
	return area && area->start >> PAGE_SHIFT <= pgno ? area : NULL;
}

static enum heat_class class_of(const struct heat_map *map, const struct heat_area *area, uint64_t pgno, uint8_t heat, bool local)
{
	if (local && area->used) {
		bool used = area->used[pgno - (area->start >> PAGE_SHIFT)];
		enum heat_class own = heat_classify(heat, local, &map->options->rule);
		return used ? HEAT_HOT : own == HEAT_HOT ? HEAT_WARM : own;
	}
	if (local && area->speaks && !heat_uses(heat))
		return HEAT_HOT;
	return heat_classify(heat, local, &map->options->rule);
}

/* Pages of the snapshot's page map that no leaf describes: remote, never touched. */
static uint64_t bare_run(const struct heat_process *process, size_t *leaf, uint64_t *at, uint64_t end)
{
	while (*leaf < process->leaf_count && process->leaves[*leaf].pgno + LEAF_PAGES <= *at)
		++*leaf;
	if (*leaf < process->leaf_count && process->leaves[*leaf].pgno <= *at) {
		*at = process->leaves[*leaf].pgno + LEAF_PAGES;
		return 0;
	}
	uint64_t until = *leaf < process->leaf_count ? DP_MIN(end, process->leaves[*leaf].pgno) : end;
	return until - *at;
}

void heat_map_each(const struct heat_map *map, const struct heat_process *process,
		   void (*each)(void *context, struct heat_area *area, const struct heat_run *run), void *context)
{
	size_t cursor = 0, leaf_cursor = 0;
	struct heat_area *area;
	for (size_t n = 0; n < process->leaf_count; n++) {
		const struct heat_leaf *leaf = &process->leaves[n];
		for (unsigned i = 0; i < LEAF_PAGES; i++) {
			bool local = leaf->local >> i & 1;
			if (!local && !(leaf->remote >> i & 1))
				continue;
			struct heat_run run = { .pgno = leaf->pgno + i, .pages = 1, .local = local };
			if ((area = area_of(process, run.pgno, &cursor))) {
				run.class = class_of(map, area, run.pgno, leaf->heat[i], local);
				each(context, area, &run);
			}
		}
	}
	cursor = 0;
	for (size_t n = 0; n < process->range_count; n++) {
		const struct heat_leaf *range = &process->leaves[process->leaf_count + n];
		uint64_t end = range->pgno + range->pages;
		for (uint64_t at = range->pgno; at < end;) {
			uint64_t pages = bare_run(process, &leaf_cursor, &at, end);
			if (pages && (area = area_of(process, at, &cursor))) {
				pages = DP_MIN(pages, (area->end >> PAGE_SHIFT) - at);
				each(context, area, &(struct heat_run){ at, pages, false, HEAT_COLD });
			}
			at += pages;
		}
	}
}

static unsigned cell_of(const struct heat_area *area, uint64_t pgno)
{
	uint64_t pages = (area->end - area->start) >> PAGE_SHIFT;
	return (unsigned)((pgno - (area->start >> PAGE_SHIFT)) * HEAT_CELLS / pages);
}

static void count_run(void *context, struct heat_area *area, const struct heat_run *run)
{
	(void)context;
	*(run->local ? &area->local_pages : &area->remote_pages) += run->pages;
	area->class_pages[run->class] += run->pages;
	for (uint64_t done = 0; done < run->pages;) {
		/* A long run is spread over the cells it crosses. */
		unsigned cell = cell_of(area, run->pgno + done);
		uint64_t next = 1;
		while (done + next < run->pages && cell_of(area, run->pgno + done + next) == cell)
			next++;
		area->cell[cell].pages[run->class] += (uint32_t)next;
		done += next;
	}
}

static void count_asked(const struct heat_process *process)
{
	size_t cursor = 0;
	for (size_t n = 0; n < process->leaf_count; n++)
		for (unsigned i = 0; i < LEAF_PAGES; i++) {
			const struct heat_leaf *leaf = &process->leaves[n];
			struct heat_area *area = leaf->local >> i & 1 ? area_of(process, leaf->pgno + i, &cursor) : NULL;
			if (area)
				*(heat_uses(leaf->heat[i]) ? &area->asked_pages : &area->unknown_pages) += 1;
		}
}

static void classify(struct heat_map *map, struct heat_process *process)
{
	count_asked(process);
	for (size_t i = 0; i < process->area_count; i++) {
		struct heat_area *area = &process->areas[i];
		uint64_t referenced = area->referenced_bytes / PAGE_BYTES;
		area->speaks = map->by_area && heat_area_speaks(referenced, area->asked_pages, area->unknown_pages);
	}
	heat_map_each(map, process, count_run, NULL);
}

int heat_map_take(struct heat_map *map, const struct instance *instance, const struct heat_options *options, struct dp_err *err)
{
	*map = (struct heat_map){ .options = options };
	cleanup_fd int bitmap_fd = page_idle_open();
	if (options->sample_ns)
		begin_sample(map, instance, bitmap_fd);
	int ret = export_all(map, instance, err);
	for (size_t i = 0; !ret && i < map->process_count; i++) {
		ret = referenced_each(map->processes[i].pid, add_area, &map->processes[i]);
		if (ret == -ESRCH)
			ret = 0; /* it ended meanwhile: it has no areas */
		else if (ret)
			dp_fail_errno(err, -ret, "read the areas of process %d", map->processes[i].pid);
	}
	map->by_idle_bitmap = bitmap_fd >= 0 && options->sample_ns;
	if (!ret && map->by_idle_bitmap)
		read_idle(map, bitmap_fd);
	for (size_t i = 0; !ret && i < map->process_count; i++)
		classify(map, &map->processes[i]);
	if (ret)
		heat_map_done(map);
	return ret;
}

void heat_map_done(struct heat_map *map)
{
	for (size_t p = 0; p < map->process_count; p++) {
		for (size_t i = 0; i < map->processes[p].area_count; i++)
			free(map->processes[p].areas[i].used);
		free(map->processes[p].areas);
		free(map->processes[p].leaves);
	}
	free(map->processes);
	*map = (struct heat_map){ .options = NULL };
}
