/* process: what /proc says about processes: start times (a pid alone may be somebody else's by now), parents.
 * What is about the inside of a process is in sys/proc.h.
 *
 * Pids are those of the caller's PID namespace. Nothing here blocks or keeps state. */
#ifndef DP_INSTANCE_PROCESS_H
#define DP_INSTANCE_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Start time in clock ticks since boot (field 22 of /proc/PID/stat), 0 where there is no such process or it is a zombie. */
uint64_t process_start_time(pid_t pid);
/* The process that had this start time still runs. A start time of 0 is never alive. */
bool process_is_alive(pid_t pid, uint64_t start_time);
/* 0 where there is no such process. */
pid_t process_parent(pid_t pid);
/* A pidfd of the process, after making sure that it is the one with this start time. -ESRCH. */
int process_open(pid_t pid, uint64_t start_time);

#endif
