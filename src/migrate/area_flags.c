#include "migrate/area_flags.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "base/base.h"
#include "sys/proc.h"

#define FLAGS "VmFlags:"
#define FLAGS_BYTES 256

/* Of a line of smaps: is it an area's first, or that of its flags? All others begin with other capitals. */
static bool is_area(const char *line)
{
	return (*line >= '0' && *line <= '9') || (*line >= 'a' && *line <= 'f');
}

static bool is_flags(const char *line)
{
	return !strncmp(line, FLAGS, strlen(FLAGS));
}

/* ---- before ---- */

static int innermost_pid(pid_t pid)
{
	char path[64], line[256];
	int inner = 0;
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	cleanup_file FILE *status = fopen(path, "re");
	while (status && !inner && fgets(line, sizeof(line), status))
		if (!strncmp(line, "NSpid:", 6) && strrchr(line, '\t'))
			inner = atoi(strrchr(line, '\t') + 1);
	return inner;
}

static int add_process(FILE *out, pid_t pid)
{
	char path[64];
	cleanup_free char *line = NULL;
	size_t room = 0;
	int inner = innermost_pid(pid);
	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	cleanup_file FILE *smaps = fopen(path, "re");
	if (!smaps || inner <= 0)
		return 0;
	fprintf(out, "= %d\n", inner);
	while (getline(&line, &room, smaps) > 0)
		if (is_area(line) || is_flags(line))
			fputs(line, out);
	return ferror(out) ? -EIO : 0;
}

int area_flags_read(pid_t root)
{
	cleanup_free pid_t *pids = NULL;
	cleanup_free char *text = NULL;
	size_t length = 0;
	cleanup_file FILE *out = open_memstream(&text, &length);
	ssize_t count = out ? proc_tree(root, &pids) : -ENOMEM;
	int rc = count < 0 ? (int)count : 0;
	for (ssize_t i = 0; i < count && rc == 0; i++)
		rc = add_process(out, pids[i]);
	if (rc == 0 && fflush(out))
		rc = -ENOMEM;
	int fd = rc < 0 ? -1 : memfd_create("distri-proc-areas", MFD_CLOEXEC);
	if (rc == 0)
		rc = fd < 0 ? -errno : io_write_full(fd, text, length);
	if (rc < 0)
		dp_close_fd(&fd);
	return rc < 0 ? rc : fd;
}

/* ---- after ---- */

/* The flags that count, in the kernel's order. sd: written since somebody looked. A fork has no locks (lo, lf). */
static void essence(const char *flags, bool shadow, char text[static FLAGS_BYTES])
{
	size_t used = 0;
	for (const char *at = flags + strlen(FLAGS); at[0] == ' ' && at[1] > ' ' && at[2] > ' '; at += 3) {
		bool lock = !strncmp(at, " lo", 3) || !strncmp(at, " lf", 3);
		if (!strncmp(at, " sd", 3) || (shadow && lock) || used + 4 > FLAGS_BYTES)
			continue;
		memcpy(text + used, at, 3);
		used += 3;
	}
	text[used] = 0;
}

struct reader {
	FILE *file;
	char *area, *flags;
	size_t area_room, flags_room;
};

/* The next area and its flags. 1, 0 at the end, -EIO where one has no flags. */
static int next_area(struct reader *reader)
{
	ssize_t got = 0;
	while ((got = getline(&reader->area, &reader->area_room, reader->file)) > 0 && !is_area(reader->area))
		;
	if (got <= 0)
		return ferror(reader->file) ? -EIO : 0;
	while ((got = getline(&reader->flags, &reader->flags_room, reader->file)) > 0 && !is_flags(reader->flags))
		if (is_area(reader->flags))
			return -EIO;
	return got > 0 ? 1 : -EIO;
}

static int compare(struct reader *now, struct reader *known, bool shadow)
{
	char its[FLAGS_BYTES], expected[FLAGS_BYTES];
	for (;;) {
		int more = next_area(now), expects = next_area(known);
		while (shadow && expects > 0 && strstr(known->flags, " dc"))
			expects = next_area(known);
		if (more < 0 || expects < 0)
			return DP_MIN(more, expects);
		if (!more || !expects)
			return more == expects;
		essence(now->flags, shadow, its);
		essence(known->flags, shadow, expected);
		if (strcmp(now->area, known->area) != 0 || strcmp(its, expected) != 0)
			return 0;
	}
}

static int reader_open(struct reader *reader, int fd)
{
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	reader->file = own < 0 || lseek(own, 0, SEEK_SET) < 0 ? NULL : fdopen(own, "r");
	if (!reader->file)
		dp_close_fd(&own);
	return reader->file ? 0 : -errno;
}

static void reader_close(struct reader *reader)
{
	if (reader->file)
		fclose(reader->file);
	free(reader->area);
	free(reader->flags);
}

int area_flags_same(int smaps_fd, int known_fd, bool shadow)
{
	struct reader now = { 0 }, known = { 0 };
	int rc = reader_open(&now, smaps_fd);
	if (rc == 0)
		rc = reader_open(&known, known_fd);
	if (rc == 0)
		rc = compare(&now, &known, shadow);
	reader_close(&now);
	reader_close(&known);
	return rc;
}
