/* uffd: thin wrappers over the userfaultfd ioctls, Linux 6.8 or later (Documentation/admin-guide/mm/userfaultfd.rst).
 *
 * Every function works on the mm that the descriptor belongs to, from any process. Addresses and lengths are bytes and
 * page-aligned. They never block. Common errors: -EAGAIN an event (fork, remap, remove, unmap) has not been read yet, or its
 * thread has not yet noticed that it was: read the descriptor, then try again; -ESRCH the mm is gone; -ENOENT the range is
 * not (any longer) one registered area; -EEXIST a page is there already. */
#ifndef DP_SYS_UFFD_H
#define DP_SYS_UFFD_H

#include <stdbool.h>
#include <stdint.h>

#include "sys/uffd_abi.h"

/* Installs `bytes` of content at `to`, protected from writing where asked; pages that wait are woken. Returns the bytes
 * installed; if not all could be,
 * *error says why the first missing one was not (a negative errno), else it is 0. */
uint64_t uffd_copy(int uffd, uint64_t to, const void *from, uint64_t bytes, bool protect, int *error);
/* Maps zero pages. Same results. */
uint64_t uffd_zero(int uffd, uint64_t start, uint64_t bytes, int *error);
/* Wakes whoever waits in the range; they fault again if the page is still missing. */
int uffd_wake(int uffd, uint64_t start, uint64_t bytes);
/* Registers for missing faults, and for writes to pages that are protected. -EBUSY: another descriptor has it. */
int uffd_register(int uffd, uint64_t start, uint64_t bytes, bool protects);
/* Pages that are there are protected from writing, or no longer, and whoever waits is woken. */
int uffd_protect(int uffd, uint64_t start, uint64_t bytes, bool protect);
int uffd_unregister(int uffd, uint64_t start, uint64_t bytes);
/* Whoever touches a missing page of the range gets SIGBUS, also after the descriptor was closed. Stops at the first present
 * page. */
int uffd_poison(int uffd, uint64_t start, uint64_t bytes);

#endif
