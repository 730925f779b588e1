/* criu_libraries: CRIU starts without the libraries that a restore does not call.
 *
 * Stand-ins (lazy/forward.c) are preloaded under those libraries' names and load the real ones should CRIU call them after all.
 * Whether they have all that this CRIU wants of the libraries is tried once a boot and kept below /dev/shm; where they have not,
 * or anything else is amiss, CRIU starts as it always does. */
#ifndef DP_RESTORE_CRIU_LIBRARIES_H
#define DP_RESTORE_CRIU_LIBRARIES_H

#include <stddef.h>

/* What LD_PRELOAD is to be for this CRIU, "" for nothing. Forks where it has to be tried (~10 ms); blocks. */
void criu_libraries_prepare(const char *criu_path, char *preload, size_t size);

#endif
