/* Logs of the long-lived processes (pool, pager, init) and the drop-in daemon.
 *
 * A line is `2026-11-21T10:00:00.123Z level who: text`, written with one write(2) to one fd. Command-line front ends do
 * not log, they return errors. Thread rule: any thread; set up once at start. Never called on the fault path. */
#ifndef DP_BASE_LOG_H
#define DP_BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR = 0, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* fd is borrowed and must outlive the process's logging; default: fd 2, level WARN, no name. `who` is copied. */
void log_setup(int fd, enum log_level level, const char *who);
enum log_level log_get_level(void);
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
