/* plan: everything a restore decides before it starts anything, and the messages between its processes. Only for this
 * room. */
#ifndef DP_RESTORE_PLAN_H
#define DP_RESTORE_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "image/images.h"
#include "restore/restore.h"

struct restore_plan {
	const struct restore_options *options;
	struct instance instance;
	bool own_pid_namespace; /* we make it; false also where CRIU makes the snapshot's own */
	bool nested;            /* the snapshot's root has its own PID namespace: CRIU makes that */
	bool own_mounts;        /* the snapshot has a mount namespace of its own */
	pid_t last_pid;         /* what ns_last_pid is set to before CRIU starts: its helpers' pids are none of the tree's */
	pid_t highest_pid;      /* of the tree; its next ones come after it */
	bool early;             /* CRIU starts before the skeleton is here, and waits at the gate for it (gate.c) */
	int stdio[3];           /* the caller's, for a tree with a terminal; -1: none */
	int report_fd;          /* supervisor's end */
	uint64_t start_ns;      /* when the caller began */
};

/* ---- fetch.c ---- */
/* Makes the instance directory, and guesses what the skeleton will say: most trees get a PID namespace from us and have no
 * namespaces of their own. */
int plan_begin(const struct restore_options *options, struct restore_plan *plan, struct dp_err *err);
/* Opens the snapshot, loads the skeleton, and checks all that can be checked (R2). What was guessed is set right. */
int plan_make(struct restore_plan *plan, struct restore_times *times, struct dp_err *err);
/* Whether a CRIU that was started by `guess` is what `plan` needs. */
bool plan_was_guessed(const struct restore_plan *guess, const struct restore_plan *plan);

/* ---- gate.c ---- */
#define CRIU_PID_ROOM 256 /* pids that CRIU and its helpers may use up while they restore */
/* In the place of the first image that CRIU reads there is a FIFO. Returns its descriptor; CRIU waits at it until... */
int gate_make(const struct instance *instance, struct dp_err *err);
/* ... the image, which lies under the name GATE_IMAGE, is put in its place and through the FIFO. Closes the descriptor. */
#define GATE_IMAGE ".inventory.img"
#define GATED_IMAGE "inventory.img"
int gate_open(const struct instance *instance, int gate_fd, struct dp_err *err);

/* ---- working_set.c ---- */
#define WORKING_SET_ACTION "working-set-gate" /* file of the instance's directory: CRIU's action script */
/* The tree is resumed when its working set is there, and (hold) when hold_release says so. */
int working_set_prepare(const struct instance *instance, bool working_set, bool hold, struct dp_err *err);
/* The pager's end of the FIFO, or -1. */
int working_set_open(const struct instance *instance);
/* The supervisor's: readable when the tree waits. */
struct hold {
	int held_fd, go_fd; /* -1: closed */
};
int hold_open(const struct instance *instance, struct hold *hold, struct dp_err *err);
/* Has it come to the gate? Closes held_fd then. */
bool hold_reached(struct hold *hold);
/* Through. 0 or -errno. */
int hold_release(struct hold *hold);

/* ---- pids.c ---- */
/* Pids and thread ids that CRIU will claim, ascending, fresh array: the images core-*.img name each, pstree its sessions. */
int plan_read_pids(int images_fd, const struct image_task *tasks, size_t task_count, pid_t **pids, size_t *count,
		   struct dp_err *err);
/* A value for ns_last_pid so that the `room` pids after it are none of these. 0 where there is no such gap below pid_max. */
pid_t plan_pid_gap(const pid_t *pids, size_t count, pid_t pid_max, pid_t room);
/* Is none of the (ascending) pids among the `room` after last_pid? */
bool plan_gap_is_free(const pid_t *pids, size_t count, pid_t last_pid, pid_t room);
/* -EEXIST with the first of the pids that is in use on this host. */
int plan_refuse_used_pids(const pid_t *pids, size_t count, struct dp_err *err);

/* ---- messages: supervisor -> caller ---- */
enum report_kind { REPORT_RUNNING = 1, REPORT_FAILED, REPORT_ENDED, REPORT_HELD, REPORT_READY };
struct report {
	uint32_t kind;
	int32_t code; /* FAILED: positive errno; ENDED: exit code of the root */
	struct instance instance;
	uint64_t criu_started_ns, criu_done_ns;
	char text[1024]; /* FAILED; ENDED: why we ended it, or "" */
};
/* ---- messages: caller -> supervisor ---- */
/* Once: what the skeleton says, or that it cannot be had; then one int32_t at a time, a signal's number for the root. */
struct verdict {
	bool cancelled;
	struct endpoint late; /* options->late, which is known now */
	struct restore_plan plan; /* pointers and descriptors in it mean nothing */
};

/* Once, to one that is held: it may run. */
struct go {
	char name[INSTANCE_ID_BYTES], group[INSTANCE_ID_BYTES]; /* "": as they were */
	uint64_t start_ns;                                      /* when it was wanted */
	bool foreground;
};

/* ---- messages: supervisor -> init ---- */
/* Once, when there is a pager; carries its pidfd. */
struct init_order {
	pid_t highest_pid;
};

/* ---- messages: init -> supervisor ---- */
enum init_kind { INIT_RUNNING = 1, INIT_FAILED };
struct init_message {
	uint32_t kind; /* INIT_RUNNING carries the root's pidfd */
	int32_t status; /* FAILED: wait status of criu, or -errno of ours before it */
	uint64_t criu_started_ns, criu_done_ns;
	char text[256]; /* FAILED: what of ours failed */
};

/* ---- supervisor.c ---- */
/* Becomes the supervisor; never returns. */
void supervisor_main(struct restore_plan *plan) __attribute__((noreturn));

/* ---- criu_command.c ---- */
struct criu_command {
	char **argv;            /* of `criu restore`, ready to exec; fresh, for a process that execs or exits */
	char kdat[PATH_MAX];    /* the cache to lend it, see criu_cache_prepare */
	char preload[PATH_MAX]; /* what is preloaded, see criu_libraries_prepare */
};
int criu_command_make(const struct restore_plan *plan, struct criu_command *command, struct dp_err *err);
/* The last Error line of a CRIU log that says something, without its prefix; false where there is none. */
bool criu_log_last_error(const char *log_path, char *text, size_t size);
/* The same on a text (it is changed). */
bool criu_text_last_error(char *log, char *text, size_t size);

/* ---- init.c ---- */
struct init_config {
	const struct restore_plan *plan;
	const struct criu_command *command;
	int channel_fd;          /* to the supervisor, SEQPACKET */
	int gate_fd, root_pidfd, guard_fd; /* for a container's watcher; -1: none */
	int log_fd;              /* criu's stdout and stderr */
};
/* Becomes init; never returns; exits with the root's code. */
void init_main(const struct init_config *config) __attribute__((noreturn));

#endif
