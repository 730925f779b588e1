/* proc: what /proc tells about a process that the pager looks after. Linux: proc(5), Documentation/filesystems/proc.rst.
 * All blocking is that of procfs reads. Errors: -ESRCH where the process is gone, else -errno. No state. */
#ifndef DP_SYS_PROC_H
#define DP_SYS_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct proc_area {
	uint64_t start, end; /* bytes */
	bool read, write, execute, shared;
	bool anonymous; /* no file behind it and no special kernel mapping: [heap], [stack] and unnamed areas */
	char name[32];  /* last column, cut */
};
/* Calls `each` for every line of /proc/PID/maps in ascending order until it returns non-zero (which is returned). */
int proc_each_area(pid_t pid, int (*each)(void *context, const struct proc_area *area), void *context);

struct proc_statm {
	uint64_t size_pages, resident_pages, shared_pages; /* shared: file and shmem pages; resident - shared = anonymous */
};
/* statm_fd: an open /proc/PID/statm, read from its start each time. */
int proc_read_statm(int statm_fd, struct proc_statm *statm);

struct proc_pss {
	uint64_t pss_bytes, anonymous_bytes;
};
/* Walks the whole address space: ~10 ms a GiB of resident memory. */
int proc_read_pss(pid_t pid, struct proc_pss *pss);

/* Which pages of a range are present (or swapped out): calls `each` per run. PAGEMAP_SCAN, Linux 6.7.
 * pagemap_fd: an open /proc/PID/pagemap. */
int proc_scan_present(int pagemap_fd, uint64_t start, uint64_t end,
		      void (*each)(void *context, uint64_t start, uint64_t end), void *context);

/* Every descendant of pid, pid first. Fresh array; returns the count or -errno. */
ssize_t proc_tree(pid_t pid, pid_t **pids);

int proc_pidfd_open(pid_t pid);
/* Duplicates descriptor `number` of the process behind pidfd into this one. */
int proc_pidfd_getfd(int pidfd, int number);
int proc_pidfd_kill(int pidfd, int signal_number);
/* The pid behind a pidfd as this process sees it, 0 if it has no pid here, -ESRCH when it is gone. */
pid_t proc_pidfd_pid(int pidfd);
/* 1: both threads have one address space; 0: not, also where one of them ends or has ended, and has none; or -errno. */
int proc_same_memory(pid_t first, pid_t second);
/* Has this thread any? One that ends lets go of it before it is a zombie. */
bool proc_has_memory(pid_t thread);
/* A thread of the process that has its memory, the first one before others; 0: none has any more. The first may have ended long
 * before the others (pthread_exit): by its number, which is the process's, the memory cannot be found then, by theirs it can. */
pid_t proc_live_thread(pid_t pid);
/* Have all its threads ended? (One that a tracer has not let go of counts as not.) Its memory may live on: others may share
 * it. */
bool proc_pidfd_has_ended(int pidfd);
/* Minor faults of all threads so far. -ESRCH. */
int proc_read_minor_faults(pid_t pid, uint64_t *faults);
/* What a thread of the process is waiting in: the number of a system call, -1 for none, PROC_RUNNING where it runs or could; and
 * how long it has run in all. -ESRCH where it has ended, or -errno. */
#define PROC_RUNNING (-2L)
int proc_thread_call(pid_t pid, pid_t thread, long *call, uint64_t *run_ns);
/* Calls each for every thread of the process until it returns something other than 0, which is returned; -ESRCH where the process
 * has ended, or another -errno where not all could be listed. */
int proc_each_thread(pid_t pid, int (*each)(void *context, pid_t thread), void *context);
/* Paths in /proc/PID/mountinfo have \040 for a space, and so on: proc_pid_mountinfo(5). In place. */
void proc_unescape(char *text);
/* State letter of /proc/PID/stat ('R', 'S', 'Z', ...), or -errno. */
int proc_state(pid_t pid);

#endif
