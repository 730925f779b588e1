#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

/* Takes `?compress=CODEC` off the end. NULL where memory is out. */
static char *split_codec(const char *uri, const char **codec)
{
	static const char key[] = "compress=";
	const char *end = strrchr(uri, '?');
	const char *last = strrchr(uri, '&');

	if (!end || (last && last > end))
		end = last;
	*codec = end && strncmp(end + 1, key, strlen(key)) == 0 ? end + 1 + strlen(key) : NULL;
	return *codec ? strndup(uri, (size_t)(end - uri)) : strdup(uri);
}

int store_open(struct store **store, const char *uri, bool create, struct dp_err *err)
{
	const char *codec;
	cleanup_free char *plain = split_codec(uri, &codec);
	struct store *lower;

	*store = NULL;
	if (!plain)
		return dp_fail_errno(err, ENOMEM, "open store");
	int result = store_open_plain(&lower, plain, create, err);

	if (result == 0)
		result = store_packed_open(store, lower, codec, err);
	if (result < 0) {
		store_close(*store);
		*store = NULL;
		return result;
	}
	return 0;
}

int store_open_plain(struct store **store, const char *uri, bool create, struct dp_err *err)
{
	*store = NULL;
	if (strncmp(uri, "memory:", 7) == 0)
		return store_memory_open(store, uri + 7, err);
	if (strncmp(uri, "dir:", 4) == 0)
		return store_dir_open(store, uri + 4, create, err);
	if (strncmp(uri, "file:", 5) == 0)
		return store_file_open(store, uri + 5, create, err);
	if (strncmp(uri, "fault:", 6) == 0)
		return store_faulty_open(store, uri + 6, create, err);
	return dp_fail(err, EINVAL, "'%.200s' is not a store; write memory:, memory:4G, dir:/path or file:/path", uri);
}

void store_close(struct store *store)
{
	if (store)
		store->ops->close(store);
}

bool store_blob_name_good(const char *name)
{
	size_t length = strlen(name);

	if (length == 0 || length > BLOB_NAME_LIMIT || name[0] == '.')
		return false;
	for (size_t i = 0; i < length; i++) {
		char c = name[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("._:%-", c)))
			return false;
	}
	return true;
}

int store_sync_parent(const char *path)
{
	const char *slash = strrchr(path, '/');
	cleanup_free char *parent = slash && slash != path ? strndup(path, (size_t)(slash - path)) : strdup(slash ? "/" : ".");

	if (!parent)
		return -ENOMEM;
	cleanup_fd int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}
