#include "sys/uffd.h"

#include <errno.h>
#include <sys/ioctl.h>

#include "base/base.h"

uint64_t uffd_copy(int uffd, uint64_t to, const void *from, uint64_t bytes, bool protect, int *error)
{
	uint64_t done = 0;
	*error = 0;
	while (done < bytes) {
		struct uffdio_copy copy = { .dst = to + done, .src = (uint64_t)(uintptr_t)from + done, .len = bytes - done,
					    .mode = protect ? UFFDIO_COPY_MODE_WP : 0 };
		if (!ioctl(uffd, UFFDIO_COPY, &copy))
			return bytes;
		int failure = errno;
		if (copy.copy > 0)
			done += (uint64_t)copy.copy;
		else if (copy.copy < 0)
			failure = (int)-copy.copy;
		/* A part was copied: the reason for the rest shows when the rest is tried alone. */
		if (copy.copy > 0)
			continue;
		*error = -failure;
		return done;
	}
	return done;
}

uint64_t uffd_zero(int uffd, uint64_t start, uint64_t bytes, int *error)
{
	uint64_t done = 0;
	*error = 0;
	while (done < bytes) {
		struct uffdio_zeropage zero = { .range = { .start = start + done, .len = bytes - done } };
		if (!ioctl(uffd, UFFDIO_ZEROPAGE, &zero))
			return bytes;
		int failure = errno;
		if (zero.zeropage > 0) {
			done += (uint64_t)zero.zeropage;
			continue;
		}
		if (zero.zeropage < 0)
			failure = (int)-zero.zeropage;
		*error = -failure;
		return done;
	}
	return done;
}

int uffd_wake(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = { .start = start, .len = bytes };
	return ioctl(uffd, UFFDIO_WAKE, &range) ? -errno : 0;
}

int uffd_register(int uffd, uint64_t start, uint64_t bytes, bool protects)
{
	struct uffdio_register area = { .range = { .start = start, .len = bytes },
					.mode = UFFDIO_REGISTER_MODE_MISSING | (protects ? UFFDIO_REGISTER_MODE_WP : 0) };
	return ioctl(uffd, UFFDIO_REGISTER, &area) ? -errno : 0;
}

int uffd_protect(int uffd, uint64_t start, uint64_t bytes, bool protect)
{
	struct uffdio_writeprotect area = { .range = { .start = start, .len = bytes },
					    .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };
	return ioctl(uffd, UFFDIO_WRITEPROTECT, &area) ? -errno : 0;
}

int uffd_unregister(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = { .start = start, .len = bytes };
	return ioctl(uffd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

int uffd_poison(int uffd, uint64_t start, uint64_t bytes)
{
	for (uint64_t done = 0; done < bytes;) {
		struct uffdio_poison poison = { .range = { .start = start + done, .len = bytes - done } };
		if (!ioctl(uffd, UFFDIO_POISON, &poison))
			return 0;
		if (poison.updated <= 0)
			return -errno;
		done += (uint64_t)poison.updated;
	}
	return 0;
}
