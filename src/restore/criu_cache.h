/* criu_cache: lends CRIU its cache of kernel features where it cannot keep one itself.
 *
 * CRIU probes the kernel at every start, 11-25 ms, unless it finds /run/criu.kdat, which it writes only where /run is tmpfs.
 * Where it is not, we let CRIU write one once a boot, in a mount namespace whose /run is tmpfs, keep it below /dev/shm, and
 * bind that file over /run/criu.kdat in the restored tree's mount namespace while CRIU starts. A bind mount needs a file
 * below it: an empty one, which any CRIU takes for stale and ignores; it is removed when no restore needs it.
 * Whoever lends holds a shared lock on the kept file, whoever removes the empty one an exclusive lock.
 * Nothing here is needed for a restore to be right: every failure means only that CRIU probes again. */
#ifndef DP_RESTORE_CRIU_CACHE_H
#define DP_RESTORE_CRIU_CACHE_H

#include <stddef.h>

/* Where things about CRIU are kept that hold for a boot, or NULL where there is no such place. */
const char *criu_cache_directory(void);
/* The kept file for this CRIU, made if it is not there yet (~40 ms).
 * `path` gets "" where there is none to lend. Forks; blocks. */
void criu_cache_prepare(const char *criu_path, char *path, size_t size);
/* In a mount namespace of the caller's own: puts it where CRIU looks. Returns the lock to give back, or -1. */
int criu_cache_lend(const char *path);
void criu_cache_take_back(const char *path, int lock_fd);

#endif
