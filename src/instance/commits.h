/* commits: what this host knows of the restorable states that its instances have left in their pools: one small file an instance,
 * ROOT/.commits/ID.json, replaced atomically after each commit. It outlives the instance, so that `restore --last-commit ID`
 * finds the pool after a crash, and tells `ps` and `stats` the last commit's age, bytes and frozen time. The pool's own list is
 * what counts; this is a note. Beyond COMMIT_NOTES files the oldest go. Thread rule: none, no state. */
#ifndef DP_INSTANCE_COMMITS_H
#define DP_INSTANCE_COMMITS_H

#include <stdint.h>

#include "base/err.h"
#include "instance/instance.h"

#define COMMIT_NOTES 200

struct commit_note {
	char id[INSTANCE_ID_BYTES];   /* of the instance; of a plain process protect's own */
	char name[INSTANCE_ID_BYTES]; /* the instance's */
	char pool[1400];
	char lineage[256];  /* the snapshot that it all began with */
	char kind[16];      /* commit or protect */
	char series[256];
	char snapshot[256]; /* the newest complete state, repo:tag */
	uint64_t unix_ns;   /* when the tree stood still for it */
	uint64_t bytes;     /* that travelled for it */
	uint64_t frozen_ns, total_ns;
	uint64_t count, failures; /* since the committer began */
	uint64_t interval_ns;     /* 0: on request */
	char error[256];          /* of the last try; "" if it succeeded */
};

/* ROOT/.commits/FILE; the directory is made where it is not there. */
const char *commits_path(const char *root, const char *file, char *buffer, size_t size);
int commits_save(const char *root, const struct commit_note *note, struct dp_err *err);
/* A note's text. -EBADMSG. */
int commits_decode(const char *text, struct commit_note *note);
/* -ENOENT, -EBADMSG. */
int commits_load(const char *root, const char *id, struct commit_note *note);
/* The newest whose id, name, lineage or series is `key`. -ENOENT. */
int commits_find(const char *root, const char *key, struct commit_note *note);
/* Age of the state in ns by the wall clock; 0 where the clock was set back. */
uint64_t commits_age_ns(const struct commit_note *note);

#endif
