/* heat_map: which pages of an instance are hot, warm and cold, gathered for `stats --heat`; and drawn. Only for this room.
 *
 * Evidence, the strongest first: the kernel's idle-page bitmap where there is one; the pager's own of each page (heat.h); the
 * kernel's Referenced of the area for resident pages about which the pager knows nothing. Sampling is done here, in the caller's
 * process: it costs the pager nothing but the export's pieces. */
#ifndef DP_CLI_HEAT_MAP_H
#define DP_CLI_HEAT_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "instance/instance.h"
#include "pager/heat.h"

struct heat_options {
	struct heat_rule rule;
	uint64_t cold_after_ns, sample_ns;
	bool pages;       /* JSON: the hot pages too */
	const char *plot; /* file, or NULL */
};

#define HEAT_CELLS 48u /* of an area's bar */

struct heat_cell {
	uint32_t pages[HEAT_CLASSES];
};

struct heat_area {
	uint64_t start, end; /* bytes */
	char name[32];
	uint64_t resident_bytes, referenced_bytes; /* kernel's, of the sample */
	uint64_t local_pages, remote_pages, class_pages[HEAT_CLASSES];
	uint64_t asked_pages, unknown_pages; /* local ones that were touched in staging lately, and not */
	bool speaks;            /* these are hot by the area's evidence */
	bool *used;             /* by page, from the idle bitmap, or NULL */
	struct heat_cell cell[HEAT_CELLS];
};

struct heat_process {
	pid_t pid;
	struct heat_area *areas;
	size_t area_count;
	struct heat_leaf *leaves; /* ascending; ranges behind the leaves */
	size_t leaf_count, range_count;
};

struct heat_map {
	const struct heat_options *options;
	struct heat_process *processes;
	size_t process_count;
	bool by_area, by_idle_bitmap; /* which of the kernel's evidence was there */
};

/* Samples, exports, classifies. Blocks for options->sample_ns and a little. -errno with err set. */
int heat_map_take(struct heat_map *map, const struct instance *instance, const struct heat_options *options, struct dp_err *err);
void heat_map_done(struct heat_map *map);
/* Neighbours of one class. */
struct heat_run {
	uint64_t pgno, pages;
	bool local;
	enum heat_class class;
};
/* Calls `each` for every tracked page of the process; those that were ever touched first, ascending, then the rest. */
void heat_map_each(const struct heat_map *map, const struct heat_process *process,
		   void (*each)(void *context, struct heat_area *area, const struct heat_run *run), void *context);

/* ---- heat_show.c ---- */
void heat_show_text(const struct heat_map *map, const struct instance *instance);
void heat_show_json(const struct heat_map *map, const struct instance *instance);
/* Draws options->plot by gnuplot: PNG, or SVG by the file's name. -errno. */
int heat_show_plot(const struct heat_map *map, const struct instance *instance, struct dp_err *err);

#endif
