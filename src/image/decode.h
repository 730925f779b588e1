/* decode: the codecs behind images.h, on bytes: for the *_read functions, for unit tests and for the fuzzer.
 * `name` is the file's name for messages. Results and errors as in images.h. */
#ifndef DP_IMAGE_DECODE_H
#define DP_IMAGE_DECODE_H

#include "image/images.h"

int image_decode_pstree(const void *bytes, size_t length, const char *name, struct image_task **tasks, size_t *count,
			struct dp_err *err);
int image_decode_mm(const void *bytes, size_t length, const char *name, struct image_vma **vmas, size_t *count,
		    struct dp_err *err);
int image_decode_pagemap(const void *bytes, size_t length, const char *name, struct image_pagemap *pagemap, struct dp_err *err);
/* `remaps` (may be NULL) are the bytes of remap-fpath.img: files that were deleted while open are left out. */
int image_decode_files(const void *bytes, size_t length, const void *remaps, size_t remaps_length, struct image_file **files,
		       size_t *count, struct dp_err *err);
/* pid, net, ipc, uts, mnt, user; 0 where not recorded */
struct image_kobj_ids {
	uint32_t id[6];
};
int image_decode_inventory(const void *bytes, size_t length, struct image_kobj_ids *ids, struct dp_err *err);
int image_decode_ids(const void *bytes, size_t length, const char *name, struct image_kobj_ids *ids, struct dp_err *err);
int image_decode_stats(const void *bytes, size_t length, uint64_t *frozen_ns, struct dp_err *err);

/* Build id of an ELF file's first bytes: 1 and the id, 0 where it has none in these bytes, or -EBADMSG where this is no
 * 64-bit ELF file of this byte order. */
int image_elf_build_id(const void *bytes, size_t length, unsigned char id[static 32], size_t *id_bytes);

#endif
