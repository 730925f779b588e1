/* run_many: `run --count` and `restore --count`: many instances of one snapshot, a line about how far it is, and a summary. */
#ifndef DP_CLI_RUN_MANY_H
#define DP_CLI_RUN_MANY_H

#include <stdbool.h>

#include "restore/restore.h"

struct run_many {
	const struct restore_options *restore;
	const char *name;        /* of the group; NULL: after the snapshot */
	unsigned count, parallel;
	bool all_or_none, wait, json;
};

/* Returns the exit code: EXIT_PARTIAL where some run and others do not; that of the first failure where none does. With wait,
 * when all have ended: EXIT_FAILED where one of them failed. */
int run_many(const struct run_many *run);

#endif
