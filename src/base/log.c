#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static int log_fd = 2;
static enum log_level log_limit = LOG_LEVEL_WARN;
static char log_who[64];

void log_setup(int fd, enum log_level level, const char *who)
{
	log_fd = fd;
	log_limit = level;
	snprintf(log_who, sizeof(log_who), "%s", who ? who : "");
}

enum log_level log_get_level(void)
{
	return log_limit;
}

void log_write(enum log_level level, const char *format, ...)
{
	static const char *const names[] = { "error", "warn", "info", "debug" };
	if (level > log_limit)
		return;
	char line[1200];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	struct tm utc;
	gmtime_r(&now.tv_sec, &utc);
	size_t used = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &utc);
	int more = snprintf(line + used, sizeof(line) - used, ".%03ldZ %s %s: ", now.tv_nsec / 1000000, names[level], log_who);
	used += more > 0 ? (size_t)more : 0;
	va_list args;
	va_start(args, format);
	more = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
	va_end(args);
	if (more > 0)
		used += (size_t)more;
	if (used > sizeof(line) - 2)
		used = sizeof(line) - 2;
	line[used++] = '\n';
	ssize_t ignored = write(log_fd, line, used);
	(void)ignored;
}
