#include "sys/referenced.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"

static int gone(void)
{
	return errno == ENOENT ? -ESRCH : -errno;
}

int referenced_clear(pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	cleanup_file FILE *file = fopen(path, "we");
	if (!file)
		return gone();
	return fputs("1", file) < 0 || fflush(file) ? gone() : 0;
}

int referenced_each(pid_t pid, int (*each)(void *context, const struct referenced_area *area), void *context)
{
	char path[64], line[512];
	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	cleanup_file FILE *file = fopen(path, "re");
	if (!file)
		return gone();
	struct referenced_area area = { .start = 0 };
	int ret = 0;
	while (!ret && fgets(line, sizeof(line), file)) {
		unsigned long start, end, kib;
		int name_at = 0;
		if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", &start, &end, &name_at) == 2) {
			area = (struct referenced_area){ .start = start, .end = end };
			const char *name = name_at ? line + name_at : "";
			memcpy(area.name, name, DP_MIN(strcspn(name, "\n"), sizeof(area.name) - 1));
		} else if (sscanf(line, "Rss: %lu kB", &kib) == 1) {
			area.resident_bytes = (uint64_t)kib * 1024;
		} else if (sscanf(line, "Referenced: %lu kB", &kib) == 1) {
			area.referenced_bytes = (uint64_t)kib * 1024;
		} else if (!strncmp(line, "VmFlags:", 8)) { /* the last line of an area */
			ret = each(context, &area);
		}
	}
	return ret;
}
