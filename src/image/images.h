/* images: reads and writes the few CRIU images that paging concerns: pstree, mm, pagemap, inventory, files.
 *
 * Framing and fields: see the .proto files of CRIU (MIT). Field numbers are in criu.proto beside this file, packed and unpacked
 * by protobuf-c. Codecs work on bytes; the *_read functions load a file of an images directory first. Everything in an image is
 * untrusted: lengths, counts and addresses are checked (addresses page-aligned, below 2^47, ascending where the format says so).
 * Errors: -EBADMSG with the file's name and what is wrong, -ENOENT, -ENOMEM. Thread rule: none, no state. */
#ifndef DP_IMAGE_IMAGES_H
#define DP_IMAGE_IMAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct image_task {
	int pid, ppid, pgid, sid; /* as in the image: virtual */
	size_t threads;
};
/* Fresh array (the caller frees it); tasks[0] is the root. */
int images_read_pstree(int images_fd, struct image_task **tasks, size_t *count, struct dp_err *err);

struct image_vma {
	uint64_t start, end; /* bytes */
	uint32_t prot, flags, status; /* PROT_*, MAP_*, CRIU's status bits */
	uint64_t madv;                /* bit n: madvise(n) is in force */
};
#define VMA_STATUS_GUARD (1u << 16)
/* Fresh array, without the GUARD pseudo areas, ascending. */
int images_read_mm(int images_fd, int pid, struct image_vma **vmas, size_t *count, struct dp_err *err);
/* May CRIU register this area with userfaultfd on a lazy restore? (criu.md 1.5) */
bool image_vma_may_be_lazy(const struct image_vma *vma);

#define PAGEMAP_PARENT 1u
#define PAGEMAP_LAZY 2u
#define PAGEMAP_PRESENT 4u
struct image_run {
	uint64_t pgno, pages;
	uint32_t flags;      /* PAGEMAP_* */
	uint64_t file_page;  /* first page's index in pages-<id>.img; meaningful with PRESENT */
};
struct image_pagemap {
	uint32_t pages_id;
	struct image_run *runs; /* ascending */
	size_t count;
};
/* name: "pagemap-123.img" or "pagemap-shmem-5.img". */
int images_read_pagemap(int images_fd, const char *name, struct image_pagemap *pagemap, struct dp_err *err);
/* Encodes a whole pagemap image in CRIU 4.2's form (nr_pages in field 5) into a fresh buffer. */
int images_encode_pagemap(const struct image_pagemap *pagemap, void **bytes, size_t *length, struct dp_err *err);
/* The same into a new file: of the task `id`, or of that shared memory. */
int images_write_pagemap(int images_fd, uint32_t id, bool shared_memory, const struct image_pagemap *pagemap, struct dp_err *err);
/* Calls each for the name of every file there, until it fails. */
int images_each(int images_fd, int (*each)(void *context, int images_fd, const char *name, struct dp_err *err), void *context,
		struct dp_err *err);
void image_pagemap_done(struct image_pagemap *pagemap);

/* A regular file that the snapshot has open or mapped. */
struct image_file {
	char *path;
	uint64_t size_bytes; /* UINT64_MAX where not recorded */
	unsigned char build_id[32];
	size_t build_id_bytes; /* 0 where not recorded */
};
int images_read_files(int images_fd, struct image_file **files, size_t *count, struct dp_err *err);
void image_files_free(struct image_file *files, size_t count);
/* Compares each with this host (below root_fd, or AT_FDCWD for "/"): exists, size, build id. Returns how many differ and a text
 * that names each of them, one line each with the reason, in *report (fresh; NULL where none). */
int images_check_files(int root_fd, const struct image_file *files, size_t count, char **report);

/* true in *pid_namespace/... where the snapshot's root task has its own namespace of the kind (from inventory/ids images). */
struct image_namespaces {
	bool pid, mnt, net, user, uts, ipc;
};
int images_read_namespaces(int images_fd, const char *inventory_name, struct image_namespaces *own, struct dp_err *err);

#endif
