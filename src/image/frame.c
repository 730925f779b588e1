#include "image/frame.h"

#include <errno.h>
#include <string.h>

#include "base/base.h"

/* A pagemap of 1 TiB in runs of one page is 5 GiB of image, but CRIU joins runs; nothing real comes near this. */
#define IMAGE_LIMIT_BYTES ((size_t)1 << 30)

static uint32_t take_u32(struct image_frame *frame)
{
	uint32_t value;
	memcpy(&value, frame->at, sizeof(value));
	frame->at += sizeof(value);
	frame->left -= sizeof(value);
	return value;
}

int image_frame_bad(const struct image_frame *frame, struct dp_err *err, const char *what)
{
	return dp_fail(err, EBADMSG, "%s: %s", frame->name, what);
}

int image_frame_open(struct image_frame *frame, const void *bytes, size_t length, uint32_t magic, const char *name,
		     struct dp_err *err)
{
	*frame = (struct image_frame){.at = bytes, .left = length, .name = name};
	if (magic != IMAGE_MAGIC_INVENTORY) {
		uint32_t first = magic == IMAGE_MAGIC_STATS ? IMAGE_MAGIC_SERVICE : IMAGE_MAGIC_COMMON;
		if (frame->left < 4 || take_u32(frame) != first)
			return image_frame_bad(frame, err, "no CRIU image (wrong magic number)");
	}
	if (frame->left < 4)
		return image_frame_bad(frame, err, "cut short within its first bytes");
	if (take_u32(frame) != magic)
		return image_frame_bad(frame, err, "a CRIU image of another kind, or of another format (wrong magic number)");
	return 0;
}

int image_frame_next(struct image_frame *frame, const unsigned char **record, size_t *length, struct dp_err *err)
{
	if (frame->left == 0)
		return 0;
	if (frame->left < 4)
		return image_frame_bad(frame, err, "cut short within the length of a record");
	uint32_t size = take_u32(frame);
	if (size > frame->left)
		return image_frame_bad(frame, err, "cut short within a record");
	*record = frame->at;
	*length = size;
	frame->at += size;
	frame->left -= size;
	return 1;
}

ssize_t image_load(int images_fd, const char *name, char **bytes, struct dp_err *err)
{
	ssize_t length = io_read_file_at(images_fd, name, bytes, IMAGE_LIMIT_BYTES);
	if (length < 0)
		return dp_fail_errno(err, (int)-length, "read image %s", name);
	return length;
}
