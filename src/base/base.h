/* Small things that every room uses: page constants, clock, cleanup attributes, whole reads and writes, sizes as people
 * write them. Nothing here keeps state; every function may be called from any thread. */
#ifndef DP_BASE_BASE_H
#define DP_BASE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/err.h"

#define PAGE_BYTES 4096u
#define PAGE_SHIFT 12

#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))
#define DP_MIN(a, b) ((a) < (b) ? (a) : (b))
#define DP_MAX(a, b) ((a) > (b) ? (a) : (b))

/* Locals with these attributes are released when they go out of scope; an unset fd is -1. */
static inline void dp_close_fd(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
static inline void dp_free_pointer(void *pointer)
{
	free(*(void **)pointer);
}
static inline void dp_close_file(FILE **file)
{
	if (*file)
		fclose(*file);
}
#define cleanup_fd __attribute__((cleanup(dp_close_fd)))
#define cleanup_free __attribute__((cleanup(dp_free_pointer)))
#define cleanup_file __attribute__((cleanup(dp_close_file)))

/* CLOCK_MONOTONIC in ns. */
uint64_t clock_now_ns(void);

/* Whole transfers; EINTR is retried. They return 0, -EPIPE at an early end of file (read), or -errno. They block. */
int io_read_full(int fd, void *buffer, size_t bytes);
int io_write_full(int fd, const void *buffer, size_t bytes);
int io_pwrite_full(int fd, const void *buffer, size_t bytes, uint64_t offset);

/* One message of these parts over a socket, with a duplicate of fd beside it (SCM_RIGHTS; -1: none). flags as for sendmsg;
 * MSG_NOSIGNAL goes without saying. EINTR is retried. 0 or -errno. */
struct iovec;
int io_send_with_fd(int socket_fd, const struct iovec *parts, size_t count, int fd, int flags);

/* Reads a whole small file into a fresh NUL-terminated buffer (the caller frees it). Returns its length or -errno;
 * -EFBIG where it is longer than limit_bytes. */
ssize_t io_read_file(const char *path, char **content, size_t limit_bytes);
ssize_t io_read_file_at(int directory_fd, const char *path, char **content, size_t limit_bytes);
/* Creates or replaces a file with the content; not atomic, not synced. */
int io_write_file(const char *path, const void *content, size_t bytes, mode_t mode);

/* readdir that tells an end from a failure: 1 with the next entry, 0 at the end, -errno. A list that is taken for whole when it
 * is not loses what it lacks. */
struct dirent;
int io_next_entry(void *directory, struct dirent **entry);

/* `512M`, `1GiB`, `4096`, `1.5G` -> bytes (K, M, G, T are powers of 1024). -EINVAL, -ERANGE. */
int parse_size(const char *text, uint64_t *bytes);
/* 1610612736 -> "1.5 GiB"; returns buffer. */
const char *format_size(uint64_t bytes, char *buffer, size_t size);
/* `250ms`, `2s`, `5m` -> ns; a bare number is seconds. */
int parse_duration(const char *text, uint64_t *ns);

/* A page that holds nothing but zero bytes. */
bool page_is_zero(const void *page);

/* 64-bit content hash of one page (XXH3). */
uint64_t page_hash(const void *page);
/* 128-bit content hash of one page (XXH3), by which a page that was damaged on a disk, in memory or on the way is known. `low` is
 * page_hash() of the same page: who has the one need not compute the other. All zero: not known. */
struct page_digest {
	uint64_t low, high;
};
struct page_digest page_digest(const void *page);
static inline bool page_digest_known(struct page_digest digest)
{
	return digest.low || digest.high;
}
static inline bool page_digest_same(struct page_digest a, struct page_digest b)
{
	return a.low == b.low && a.high == b.high;
}

/* Fresh formatted string, or NULL where memory is out. */
char *format_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* rm -rf below and including path; symbolic links are removed, never followed. 0 or -errno; a path that is not there is 0. */
int remove_tree(const char *path);

#endif
