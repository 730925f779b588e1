/* gate: CRIU starts while its images are still on their way.
 *
 * Of the ~12 ms that CRIU takes, the first 4 (its libraries, what it asks the kernel again at each start) need nothing of the
 * snapshot. inventory.img is the first image it reads, by plain open and read until the end; so a FIFO in its place holds it up
 * there and nowhere else. We keep the FIFO open for writing, so its open never waits, and its read waits for us. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "restore/plan.h"

#define IMAGE_LIMIT_BYTES 16384 /* it has about 100; what is written at once must fit into a pipe */

static int open_images(const struct instance *instance, struct dp_err *err)
{
	char path[PATH_MAX];
	int fd = open(instance_path(instance, "images", path, sizeof(path)), O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	return fd < 0 ? dp_fail_errno(err, errno, "open %s", path) : fd;
}

int gate_make(const struct instance *instance, struct dp_err *err)
{
	cleanup_fd int images_fd = open_images(instance, err);
	if (images_fd < 0)
		return images_fd;
	int fd = mkfifoat(images_fd, GATED_IMAGE, 0600) ? -1 : openat(images_fd, GATED_IMAGE, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? dp_fail_errno(err, errno, "make a FIFO in %s/images", instance->directory) : fd;
}

int gate_open(const struct instance *instance, int gate_fd, struct dp_err *err)
{
	cleanup_fd int closed_at_last = gate_fd;
	cleanup_free char *image = NULL;
	cleanup_fd int images_fd = open_images(instance, err);
	if (images_fd < 0)
		return images_fd;
	ssize_t length = io_read_file_at(images_fd, GATE_IMAGE, &image, IMAGE_LIMIT_BYTES);
	if (length < 0)
		return dp_fail_errno(err, (int)-length, "read " GATED_IMAGE " of the snapshot");
	/* In this order it does not matter whether CRIU has come to the gate yet: it finds the FIFO filled, or the file. */
	int ret = io_write_full(closed_at_last, image, (size_t)length);
	if (!ret && renameat(images_fd, GATE_IMAGE, images_fd, GATED_IMAGE))
		ret = -errno;
	return ret ? dp_fail_errno(err, -ret, "hand " GATED_IMAGE " to criu") : 0;
}
