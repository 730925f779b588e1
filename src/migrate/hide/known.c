#include "migrate/hide/known.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLAGS "VmFlags:"

struct known_area {
	unsigned long long start, end, offset, inode;
	char rights[8], device[16];
};

static bool parse(const char *line, struct known_area *area)
{
	return sscanf(line, "%llx-%llx %7s %llx %15s %llu", &area->start, &area->end, area->rights, &area->offset, area->device,
		      &area->inode) == 6;
}

/* One that overlaps another may be the same area, larger or smaller: of the same kind, and a file's at the same place. */
static bool same_kind(const struct known_area *old, const struct known_area *now)
{
	bool file = now->inode != 0;
	return !strcmp(old->rights, now->rights) && !strcmp(old->device, now->device) && old->inode == now->inode &&
	       (!file || old->start - old->offset == now->start - now->offset);
}

static const char *next_line(const char *line)
{
	const char *end = strchr(line, '\n');
	return end ? end + 1 : line + strlen(line);
}

static size_t line_length(const char *line)
{
	return (size_t)(next_line(line) - line);
}

/* The task's part of `before`: behind "= VPID". */
static const char *find_task(const char *before, int vpid)
{
	int found;
	for (; *before; before = next_line(before))
		if (*before == '=' && sscanf(before, "= %d", &found) == 1 && found == vpid)
			return next_line(before);
	return NULL;
}

/* The line of flags of an area; NULL where none is known, or several. *at: where the areas begin that may overlap it; for the
 * next area it is moved on. */
static const char *find_flags(const char **at, const struct known_area *now)
{
	const char *flags = NULL;
	struct known_area old;
	for (const char *line = *at; *line && *line != '='; line = next_line(next_line(line))) {
		const char *its = next_line(line);
		if (!parse(line, &old) || strncmp(its, FLAGS, strlen(FLAGS)) != 0)
			return NULL;
		if (old.end <= now->start) {
			*at = next_line(its);
			continue;
		}
		if (old.start >= now->end)
			break;
		if (!same_kind(&old, now))
			continue;
		if (flags && (line_length(flags) != line_length(its) || memcmp(flags, its, line_length(its)) != 0))
			return NULL;
		flags = its;
	}
	return flags;
}

/* How much longer than `maps` the answer can be: each line gets one of flags, of which the longest counts. */
static size_t room_for(const char *before, const char *maps)
{
	size_t lines = 1, longest = 0;
	for (const char *line = maps; *line; line = next_line(line))
		lines++;
	for (const char *line = before; *line; line = next_line(line))
		if (*line == *FLAGS && line_length(line) > longest)
			longest = line_length(line);
	return strlen(maps) + lines * longest + 1;
}

char *known_smaps(const char *before, int vpid, const char *maps)
{
	const char *at = find_task(before, vpid);
	char *text = at ? malloc(room_for(at, maps)) : NULL;
	size_t used = 0;
	for (const char *line = maps; text && *line; line = next_line(line)) {
		struct known_area now;
		const char *flags = parse(line, &now) ? find_flags(&at, &now) : NULL;
		if (!flags || !strchr(line, '\n')) {
			free(text);
			return NULL;
		}
		memcpy(text + used, line, line_length(line));
		used += line_length(line);
		memcpy(text + used, flags, line_length(flags));
		used += line_length(flags);
	}
	if (text)
		text[used] = 0;
	return text;
}
