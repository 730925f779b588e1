/* frame: the outside of a CRIU image: [common magic][type's magic] and then records [u32 size][protobuf bytes] until the end.
 * `inventory.img` has only its own magic; `stats-*` has the service magic in place of the common one.
 *
 * Works on bytes, keeps positions only. Every length is checked against what is left. Thread rule: none. */
#ifndef DP_IMAGE_FRAME_H
#define DP_IMAGE_FRAME_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

#define IMAGE_MAGIC_COMMON 0x54564319u
#define IMAGE_MAGIC_SERVICE 0x55105940u
#define IMAGE_MAGIC_INVENTORY 0x58313116u
#define IMAGE_MAGIC_PSTREE 0x50273030u
#define IMAGE_MAGIC_PAGEMAP 0x56084025u
#define IMAGE_MAGIC_MM 0x57492820u
#define IMAGE_MAGIC_IDS 0x54432030u
#define IMAGE_MAGIC_FILES 0x56303138u
#define IMAGE_MAGIC_REMAP 0x59133954u
#define IMAGE_MAGIC_STATS 0x57093306u

struct image_frame {
	const unsigned char *at; /* borrowed */
	size_t left;
	const char *name; /* of the file, for messages; borrowed */
};

/* Checks the magics. -EBADMSG. */
int image_frame_open(struct image_frame *frame, const void *bytes, size_t length, uint32_t magic, const char *name,
		     struct dp_err *err);
/* The next record: 1, or 0 at the end, or -EBADMSG where it is cut. */
int image_frame_next(struct image_frame *frame, const unsigned char **record, size_t *length, struct dp_err *err);
/* "pagemap-7.img: what is wrong" and -EBADMSG. */
int image_frame_bad(const struct image_frame *frame, struct dp_err *err, const char *what);

/* Loads a file of an images directory; the caller frees *bytes. Returns its length or -errno. */
ssize_t image_load(int images_fd, const char *name, char **bytes, struct dp_err *err);

#endif
