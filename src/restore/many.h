/* many: instances of one snapshot, started side by side: as many at a time as the processors allow, each by a process of its own
 * (starter.h). The pool holds what they share once; each has its own namespaces, overlay and directory.
 *
 * Thread rule: single-threaded processes (this forks without exec). Blocks. */
#ifndef DP_RESTORE_MANY_H
#define DP_RESTORE_MANY_H

#include "restore/restore.h"

#define MANY_MOST 10000u

/* What came of one start. */
struct many_start {
	int error;               /* 0: it runs; else -errno, and why in text */
	bool was_spare;          /* it had been prepared (spares.h) */
	uint64_t elapsed_ns;
	struct instance instance;
	char text[1024];
	int report_fd;           /* the session's, with many_options.keep; else -1 */
};

struct many_options {
	const struct restore_options *restore; /* name and group apart */
	const char *group;       /* their names are GROUP-FIRST, GROUP-(FIRST+1), ... */
	unsigned first, count;
	unsigned parallel;       /* at a time; 0: as many as there are processors */
	bool all_or_none;        /* after a failure nothing is left */
	bool keep;               /* the starts' sessions stay open: they end when those are closed */
	bool spares;             /* take those that wait */
	const sigset_t *stop;    /* blocked by the caller; one of them ends what is under way. NULL: none */
	void (*on_start)(void *context, unsigned ended, const struct many_start *start); /* NULL: nobody wants to know */
	void *context;
};

/* The first number of `count` in a row that no live instance of this name has. -EINVAL: no proper name. */
int many_first_number(const char *root, const char *group, unsigned count, struct dp_err *err);
/* Fills starts[count]. Returns how many run, or -errno where nothing could be begun; -EINTR: a signal ended it, what runs by
 * then is in starts. */
int many_begin(const struct many_options *options, struct many_start *starts, struct dp_err *err);
/* SIGTERM to each that runs and has a session, SIGKILL to what is left after the patience; returns when they are gone. */
void many_end(struct many_start *starts, unsigned count, uint64_t patience_ns);

/* Returns when all that run, whose sessions were kept, have ended; signals of `forward` (blocked by the caller) are passed on to
 * each. How many ended with another code than 0, or by a failure of ours. */
unsigned many_wait(struct many_start *starts, unsigned count, const sigset_t *forward);

/* What an instance takes of this host, in bytes: the tree and our processes by their proportional set sizes, files in memory. */
struct many_memory {
	uint64_t tree, ours, files;
	unsigned tasks, our_tasks;
};
/* Adds one instance's. */
void many_add_memory(const struct instance *instance, struct many_memory *memory);

/* One start in the calling process: a spare that waits, if there is one and `spare`, else restore_start. */
int many_start_one(const struct restore_options *options, bool spare, struct restore_session *session, bool *was_spare,
		   struct dp_err *err);

#endif
