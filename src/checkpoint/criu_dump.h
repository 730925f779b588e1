/* criu_dump: one run of `criu dump`: its command line, its namespaces, its action script, what its log says.
 *
 * How it works: criu is a child (in a process group of its own: an interrupt at the terminal ends us, and criu then finds its
 * page stream closed and lets the tasks go on; that it is killed itself in the middle would be worse). Its pages come over one
 * end of a socket pair. Its action script is `distri-proc criu-hook`, which in the post-dump step asks us over `hook.sock` in the
 * work directory: all images are complete then, the page stream is closed, and the tree is still frozen. Only the byte 'y' makes
 * the hook succeed; an end of file, a kill of the hook, anything else makes criu thaw the tree (tried with each).
 * A target in another PID namespace in which it is not the first process is dumped from inside its namespaces.
 * Thread rule: one thread. */
#ifndef DP_CHECKPOINT_CRIU_DUMP_H
#define DP_CHECKPOINT_CRIU_DUMP_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"
#include "checkpoint/workspace.h"

struct hidden;

struct criu_dump_options {
	const char *criu;         /* path */
	pid_t pid;                /* as this process sees it */
	bool leave_running;
	bool verbose;
	char *const *arguments;   /* further ones for criu; borrowed */
	size_t argument_count;
	const struct hidden *hidden; /* NULL, or the pages of private memory are kept from criu; borrowed until it has ended */
};

struct criu_dump {
	pid_t child;
	int pidfd;
	int pages_fd; /* the page stream, for page_receiver_run */
	int hook_listen_fd;
	int hook_fd;  /* the hook that waits for our answer, or -1 */
};

#define CRIU_DUMP_LOG "dump.log"

/* Where a target has to be dumped from. */
struct criu_target {
	pid_t pid;     /* to give to criu */
	bool entering; /* from inside the target's PID and mount namespaces */
};
int criu_dump_target(pid_t pid, struct criu_target *target, struct dp_err *err);

/* -E2BIG, -ENOMEM, or of fork and sockets. That criu cannot be run is told by criu_dump_wait. */
int criu_dump_start(struct criu_dump *dump, const struct criu_dump_options *options, const struct workspace *workspace,
		    struct dp_err *err);
/* Blocks: 1 the images are complete and the hook waits; 0 criu has ended without. */
int criu_dump_wait_hook(struct criu_dump *dump, struct dp_err *err);
/* Tells the hook, and so criu, whether to finish (kill the tree or let it run, as asked) or to thaw the tree and fail. */
int criu_dump_answer(struct criu_dump *dump, bool good, struct dp_err *err);
/* Ends the page stream if it is open still, and waits. Returns criu's exit code, 127 where it could not be run, 128 + signal. */
int criu_dump_wait(struct criu_dump *dump);

/* Why criu failed: the last error line of its log that says something. false: none. */
bool criu_dump_reason(const struct workspace *workspace, char *text, size_t size);
/* The same from a log's text, which is cut to pieces. */
bool criu_dump_last_error(char *log, char *text, size_t size);

/* The action script's end of it: `distri-proc criu-hook`, started by criu in its work directory. Returns the exit code. */
int criu_dump_hook(void);

#endif
