#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/heat_map.h"

#define ROWS 40u      /* areas shown in the text map: the largest */
#define PLOT_WIDTH 96u
#define PLOT_HEIGHT 64u

static uint64_t area_pages(const struct heat_area *area)
{
	return area->local_pages + area->remote_pages;
}

/* The marks of a bar, from nothing to hot. */
static char mark_of(const struct heat_cell *cell)
{
	uint64_t hot = cell->pages[HEAT_HOT], warm = cell->pages[HEAT_WARM], all = hot + warm + cell->pages[HEAT_COLD];
	if (!all)
		return ' ';
	if (hot * 2 >= all)
		return '#';
	if (hot * 8 >= all)
		return '+';
	return (hot + warm) * 2 >= all ? '-' : '.';
}

/* Size, and the shares of it that are local, hot, warm, cold. */
static void print_shares(const struct heat_area *area)
{
	char size[32];
	double all = (double)DP_MAX(area_pages(area), 1u) / 100;
	printf("%10s  %4.0f", format_size(area_pages(area) * PAGE_BYTES, size, sizeof(size)), (double)area->local_pages / all);
	for (int class = 0; class < HEAT_CLASSES; class++)
		printf("  %4.0f", (double)area->class_pages[class] / all);
}

static void print_row(const struct heat_area *area)
{
	char bar[HEAT_CELLS + 1];
	for (unsigned i = 0; i < HEAT_CELLS; i++)
		bar[i] = mark_of(&area->cell[i]);
	bar[HEAT_CELLS] = 0;
	printf("%012lx  ", area->start);
	print_shares(area);
	printf("  |%s|  %s\n", bar, area->name);
}

static int larger_first(const void *first, const void *second)
{
	uint64_t a = *(const uint64_t *)first, b = *(const uint64_t *)second;
	return a > b ? -1 : a < b;
}

/* An area with less than this is summed up with the others of its kind. */
static uint64_t least_shown(const struct heat_process *process)
{
	cleanup_free uint64_t *sizes = calloc(process->area_count + 1, sizeof(*sizes));
	if (!sizes || process->area_count <= ROWS)
		return 1;
	for (size_t i = 0; i < process->area_count; i++)
		sizes[i] = area_pages(&process->areas[i]);
	qsort(sizes, process->area_count, sizeof(*sizes), larger_first);
	return DP_MAX(sizes[ROWS - 1], 1u);
}

static void add_up(struct heat_area *sum, const struct heat_area *area)
{
	sum->local_pages += area->local_pages;
	sum->remote_pages += area->remote_pages;
	for (int class = 0; class < HEAT_CLASSES; class++)
		sum->class_pages[class] += area->class_pages[class];
}

static void print_process(const struct heat_process *process)
{
	struct heat_area rest = { .start = 0 }, all = { .start = 0 };
	uint64_t least = least_shown(process);
	size_t others = 0;
	printf("process %d\n  address           size  loc%%  hot%%  wrm%%  cld%%\n", process->pid);
	for (size_t i = 0; i < process->area_count; i++) {
		const struct heat_area *area = &process->areas[i];
		add_up(&all, area);
		if (area_pages(area) >= least)
			print_row(area);
		else if (area_pages(area))
			add_up(&rest, area), others++;
	}
	if (others) {
		printf("%4zu smaller  ", others);
		print_shares(&rest);
		printf("\n");
	}
	printf("in all        ");
	print_shares(&all);
	printf("\n");
}

static const char *evidence_text(const struct heat_map *map)
{
	if (map->by_idle_bitmap)
		return "faults, staging, idle-page bitmap, referenced areas";
	return map->by_area ? "faults, staging, referenced areas" : "faults, staging";
}

void heat_show_text(const struct heat_map *map, const struct instance *instance)
{
	printf("%s (%s)   hot: touched %u times in staging   cold: not used for %.0f s   evidence: %s\n", instance->id,
	       instance->name, map->options->rule.hot_uses, (double)map->options->cold_after_ns / 1e9, evidence_text(map));
	for (size_t i = 0; i < map->process_count; i++)
		print_process(&map->processes[i]);
	printf("bar: # half or more of it hot   + an eighth hot   - warm   . cold\n");
	fflush(stdout);
}

/* ---- JSON ---- */

struct hot_runs {
	json_object *list, *last;
	uint64_t next;
};

static void add_hot(void *context, struct heat_area *area, const struct heat_run *run)
{
	struct hot_runs *runs = context;
	(void)area;
	if (run->class != HEAT_HOT)
		return;
	if (runs->last && runs->next == run->pgno) {
		json_object *length = json_object_array_get_idx(runs->last, 1);
		json_object_set_uint64(length, json_object_get_uint64(length) + run->pages);
	} else {
		runs->last = json_object_new_array();
		json_object_array_add(runs->last, json_object_new_uint64(run->pgno));
		json_object_array_add(runs->last, json_object_new_uint64(run->pages));
		json_object_array_add(runs->list, runs->last);
	}
	runs->next = run->pgno + run->pages;
}

static json_object *area_json(const struct heat_area *area)
{
	json_object *object = json_object_new_object(), *cells = json_object_new_array();
	json_object_object_add(object, "start", json_object_new_uint64(area->start));
	json_object_object_add(object, "end", json_object_new_uint64(area->end));
	json_object_object_add(object, "name", json_object_new_string(area->name));
	json_object_object_add(object, "local_pages", json_object_new_uint64(area->local_pages));
	json_object_object_add(object, "remote_pages", json_object_new_uint64(area->remote_pages));
	json_object_object_add(object, "hot_pages", json_object_new_uint64(area->class_pages[HEAT_HOT]));
	json_object_object_add(object, "warm_pages", json_object_new_uint64(area->class_pages[HEAT_WARM]));
	json_object_object_add(object, "cold_pages", json_object_new_uint64(area->class_pages[HEAT_COLD]));
	json_object_object_add(object, "referenced_bytes", json_object_new_uint64(area->referenced_bytes));
	for (unsigned i = 0; i < HEAT_CELLS; i++) {
		json_object *cell = json_object_new_array();
		for (int class = 0; class < HEAT_CLASSES; class++)
			json_object_array_add(cell, json_object_new_uint64(area->cell[i].pages[class]));
		json_object_array_add(cells, cell);
	}
	json_object_object_add(object, "cells", cells);
	return object;
}

void heat_show_json(const struct heat_map *map, const struct instance *instance)
{
	json_object *object = json_object_new_object(), *processes = json_object_new_array();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.heat/1"));
	json_object_object_add(object, "id", json_object_new_string(instance->id));
	json_object_object_add(object, "name", json_object_new_string(instance->name));
	json_object_object_add(object, "hot_after", json_object_new_int((int)map->options->rule.hot_uses));
	json_object_object_add(object, "cold_after_ns", json_object_new_uint64(map->options->cold_after_ns));
	json_object_object_add(object, "sample_ns", json_object_new_uint64(map->options->sample_ns));
	json_object_object_add(object, "evidence", json_object_new_string(evidence_text(map)));
	json_object_object_add(object, "processes", processes);
	for (size_t p = 0; p < map->process_count; p++) {
		const struct heat_process *from = &map->processes[p];
		json_object *process = json_object_new_object(), *areas = json_object_new_array();
		json_object_object_add(process, "pid", json_object_new_int(from->pid));
		json_object_object_add(process, "areas", areas);
		for (size_t i = 0; i < from->area_count; i++)
			if (area_pages(&from->areas[i]))
				json_object_array_add(areas, area_json(&from->areas[i]));
		if (map->options->pages) {
			struct hot_runs runs = { .list = json_object_new_array() };
			heat_map_each(map, from, add_hot, &runs);
			json_object_object_add(process, "hot", runs.list);
		}
		json_object_array_add(processes, process);
	}
	cli_print_json(object);
	fflush(stdout);
}

/* ---- plot ---- */

/* All tracked pages of the tree in the order of their addresses, row by row; a cell holds the mean heat of its pages. */
struct raster {
	uint64_t at, pages_a_cell;
	double sum[PLOT_WIDTH * PLOT_HEIGHT];
	uint64_t count[PLOT_WIDTH * PLOT_HEIGHT];
};

static void add_to_raster(void *context, struct heat_area *area, const struct heat_run *run)
{
	struct raster *raster = context;
	double heat = run->class == HEAT_HOT ? 3 : run->class == HEAT_WARM ? 2 : run->local ? 1 : 0;
	(void)area;
	for (uint64_t done = 0; done < run->pages;) {
		uint64_t cell = raster->at / raster->pages_a_cell, next = (cell + 1) * raster->pages_a_cell - raster->at;
		if (cell >= PLOT_WIDTH * PLOT_HEIGHT)
			return;
		next = DP_MIN(next, run->pages - done);
		raster->sum[cell] += heat * (double)next;
		raster->count[cell] += next;
		raster->at += next;
		done += next;
	}
}

static void write_plot(FILE *out, const char *path, const char *name, const struct raster *raster, uint64_t rows)
{
	const char *dot = strrchr(path, '.');
	char cell[32];
	bool svg = dot && !strcmp(dot, ".svg");
	fprintf(out, "set terminal %s size 960,600 font 'sans,%d'\nset output '", svg ? "svg" : "pngcairo", svg ? 12 : 11);
	for (const char *at = path; *at; at++)
		fprintf(out, *at == '\'' ? "''" : "%c", *at);
	format_size(raster->pages_a_cell * PAGE_BYTES, cell, sizeof(cell));
	fprintf(out, "'\nset title \"%s: heat of %lu pages, in the order of their addresses (a cell is %s)\" noenhanced\n", name,
		raster->at, cell);
	fprintf(out, "set palette defined (0 '#e8eef4', 1 '#8fb4d9', 2 '#f6c667', 3 '#c8302c')\nset cbrange [0:3]\n"
		     "set cbtics ('remote, cold' 0, 'local, cold' 1, 'warm' 2, 'hot' 3)\nset rmargin 18\n"
		     "set xrange [-0.5:%u.5]\nset yrange [%lu.5:-0.5]\nset xlabel 'address, row by row'\n"
		     "unset ytics\nset xtics format ''\nplot '-' matrix with image notitle\n", PLOT_WIDTH - 1, rows - 1);
	for (uint64_t y = 0; y < rows; y++) {
		for (unsigned x = 0; x < PLOT_WIDTH; x++) {
			uint64_t i = y * PLOT_WIDTH + x;
			if (raster->count[i])
				fprintf(out, "%.3f ", raster->sum[i] / (double)raster->count[i]);
			else
				fprintf(out, "nan ");
		}
		fprintf(out, "\n");
	}
	fprintf(out, "e\n");
}

int heat_show_plot(const struct heat_map *map, const struct instance *instance, struct dp_err *err)
{
	uint64_t pages = 0;
	cleanup_free struct raster *raster = calloc(1, sizeof(*raster));
	if (!raster)
		return dp_fail(err, ENOMEM, "out of memory");
	for (size_t p = 0; p < map->process_count; p++)
		for (size_t i = 0; i < map->processes[p].area_count; i++)
			pages += area_pages(&map->processes[p].areas[i]);
	raster->pages_a_cell = DP_MAX((pages + PLOT_WIDTH * PLOT_HEIGHT - 1) / (PLOT_WIDTH * PLOT_HEIGHT), 1u);
	for (size_t p = 0; p < map->process_count; p++)
		heat_map_each(map, &map->processes[p], add_to_raster, raster);
	uint64_t cells = (raster->at + raster->pages_a_cell - 1) / raster->pages_a_cell;
	FILE *gnuplot = popen("gnuplot", "we");
	if (!gnuplot)
		return dp_fail_errno(err, errno, "start gnuplot");
	write_plot(gnuplot, map->options->plot, instance->name, raster, DP_MAX((cells + PLOT_WIDTH - 1) / PLOT_WIDTH, 1u));
	int status = pclose(gnuplot);
	if (status)
		return dp_fail(err, EIO, "gnuplot could not draw %s; is it installed, and the file's folder there?",
			       map->options->plot);
	return 0;
}
