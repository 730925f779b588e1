#include "base/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <xxhash.h>

uint64_t clock_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int io_read_full(int fd, void *buffer, size_t bytes)
{
	char *at = buffer;
	while (bytes > 0) {
		ssize_t got = read(fd, at, bytes);
		if (got < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (got == 0)
			return -EPIPE;
		at += got;
		bytes -= (size_t)got;
	}
	return 0;
}

int io_write_full(int fd, const void *buffer, size_t bytes)
{
	const char *at = buffer;
	while (bytes > 0) {
		ssize_t done = write(fd, at, bytes);
		if (done < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		at += done;
		bytes -= (size_t)done;
	}
	return 0;
}

int io_pwrite_full(int fd, const void *buffer, size_t bytes, uint64_t offset)
{
	const char *at = buffer;
	while (bytes > 0) {
		ssize_t done = pwrite(fd, at, bytes, (off_t)offset);
		if (done < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		at += done;
		offset += (uint64_t)done;
		bytes -= (size_t)done;
	}
	return 0;
}

int io_send_with_fd(int socket_fd, const struct iovec *parts, size_t count, int fd, int flags)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct msghdr message = { .msg_iov = (struct iovec *)(uintptr_t)parts, .msg_iovlen = count };
	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
	}
	while (sendmsg(socket_fd, &message, flags | MSG_NOSIGNAL) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

ssize_t io_read_file_at(int directory_fd, const char *path, char **content, size_t limit_bytes)
{
	cleanup_fd int fd = openat(directory_fd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	size_t room = 4096, used = 0;
	cleanup_free char *buffer = malloc(room + 1);
	if (!buffer)
		return -ENOMEM;
	for (;;) {
		ssize_t got = read(fd, buffer + used, room - used);
		if (got < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (got == 0)
			break;
		used += (size_t)got;
		if (used > limit_bytes)
			return -EFBIG;
		if (used == room) {
			char *larger = realloc(buffer, room * 2 + 1);
			if (!larger)
				return -ENOMEM;
			buffer = larger;
			room *= 2;
		}
	}
	buffer[used] = 0;
	*content = buffer;
	buffer = NULL;
	return (ssize_t)used;
}

ssize_t io_read_file(const char *path, char **content, size_t limit_bytes)
{
	return io_read_file_at(AT_FDCWD, path, content, limit_bytes);
}

int io_next_entry(void *directory, struct dirent **entry)
{
	errno = 0;
	*entry = readdir(directory);
	return *entry ? 1 : -errno;
}

int io_write_file(const char *path, const void *content, size_t bytes, mode_t mode)
{
	cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	if (fd < 0)
		return -errno;
	return io_write_full(fd, content, bytes);
}

int parse_size(const char *text, uint64_t *bytes)
{
	char *end;
	errno = 0;
	double value = strtod(text, &end);
	if (end == text || errno || !isfinite(value) || value < 0)
		return -EINVAL;
	static const char letters[] = "KMGT";
	double scale = 1;
	if (*end) {
		char letter = *end >= 'a' && *end <= 'z' ? (char)(*end - 'a' + 'A') : *end;
		const char *at = strchr(letters, letter);
		if (at && letter) {
			for (int i = 0; i <= at - letters; i++)
				scale *= 1024;
			end++;
		}
		if (!strcmp(end, "iB") || !strcmp(end, "B") || !strcmp(end, "b"))
			end += strlen(end);
	}
	if (*end)
		return -EINVAL;
	if (value * scale >= 9.2e18)
		return -ERANGE;
	*bytes = (uint64_t)(value * scale);
	return 0;
}

const char *format_size(uint64_t bytes, char *buffer, size_t size)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
	double value = (double)bytes;
	size_t unit = 0;
	while (value >= 1024 && unit + 1 < ARRAY_LENGTH(units)) {
		value /= 1024;
		unit++;
	}
	snprintf(buffer, size, unit == 0 ? "%.0f %s" : value < 100 ? "%.1f %s" : "%.0f %s", value, units[unit]);
	return buffer;
}

int parse_duration(const char *text, uint64_t *ns)
{
	char *end;
	errno = 0;
	double value = strtod(text, &end);
	if (end == text || errno || !isfinite(value) || value < 0)
		return -EINVAL;
	double scale;
	if (!*end || !strcmp(end, "s"))
		scale = 1e9;
	else if (!strcmp(end, "ms"))
		scale = 1e6;
	else if (!strcmp(end, "us"))
		scale = 1e3;
	else if (!strcmp(end, "m"))
		scale = 60e9;
	else if (!strcmp(end, "h"))
		scale = 3600e9;
	else
		return -EINVAL;
	if (value * scale >= 9.2e18)
		return -ERANGE;
	*ns = (uint64_t)(value * scale);
	return 0;
}

bool page_is_zero(const void *page)
{
	typedef uint64_t word __attribute__((aligned(1), may_alias));
	const word *words = page;
	if (words[0] | words[1] | words[63] | words[511])
		return false;
	uint64_t any = 0;
	for (size_t i = 0; i < PAGE_BYTES / 8; i += 8) {
		any |= words[i] | words[i + 1] | words[i + 2] | words[i + 3];
		any |= words[i + 4] | words[i + 5] | words[i + 6] | words[i + 7];
		if (any)
			return false;
	}
	return true;
}

uint64_t page_hash(const void *page)
{
	return XXH3_64bits(page, PAGE_BYTES);
}

struct page_digest page_digest(const void *page)
{
	XXH128_hash_t hash = XXH3_128bits(page, PAGE_BYTES);

	/* Zero means unknown. */
	if (hash.low64 == 0 && hash.high64 == 0)
		hash.high64 = 1;
	return (struct page_digest){ hash.low64, hash.high64 };
}

char *format_text(const char *format, ...)
{
	char *text = NULL;
	va_list args;
	va_start(args, format);
	int length = vasprintf(&text, format, args);
	va_end(args);
	return length < 0 ? NULL : text;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
	(void)info;
	(void)kind;
	(void)where;
	return remove(path) && errno != ENOENT ? errno : 0;
}

int remove_tree(const char *path)
{
	int ret = nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
	if (ret < 0)
		return errno == ENOENT ? 0 : -errno;
	return -ret;
}
