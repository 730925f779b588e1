/* private_files: a tree that is restored sees the host's files, and what it writes to them stays its own.
 *
 * How it works: in the mount namespace of the tree a root is put together: an overlay over each file system that can be written
 * to, all upper directories in a tmpfs that ends with the namespace; what the kernel makes up (proc, sys, devices) as it is;
 * what cannot be under an overlay (a file that is mounted on a file, say) read-only. So files, names in directories, names of
 * sockets and memory that is shared by name (/dev/shm) are the tree's. What others write to a file later is seen until the
 * tree has written to it, or has opened it to write.
 * Invariant: PF1 of what is mounted nothing that holds files is left writable but by an overlay, and the one directory that is
 * named.
 * Thread rule: a process that is alone in its mount namespace. */
#ifndef DP_RESTORE_PRIVATE_FILES_H
#define DP_RESTORE_PRIVATE_FILES_H

#include <stdbool.h>

#include "base/err.h"

/* The calling process's root becomes that one. keep: a directory that stays the host's, such as an instance's; stage: one that
 * exists and is empty, on which the tmpfs is mounted. -errno, with what failed; then the namespace is of no use. */
int private_files_enter(const char *stage, const char *keep, struct dp_err *err);
/* Does a file system of this type hold files? Pure. */
bool private_files_holds(const char *type);

#endif
