#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

/* Takes `?KEY=VALUE` (or &KEY=VALUE, and then also before others) out of the URI. A fresh copy of the value, or NULL where there
 * is none or memory is out. */
static char *take_option(char *uri, const char *key)
{
	size_t length = strlen(key);

	for (char *at = strpbrk(uri, "?&"); at; at = strpbrk(at + 1, "?&")) {
		if (strncmp(at + 1, key, length) != 0 || at[1 + length] != '=')
			continue;
		char *value = at + 2 + length;
		size_t value_length = strcspn(value, "&");
		char *copy = strndup(value, value_length);
		char *rest = value + value_length;

		if (*rest)
			memmove(at + 1, rest + 1, strlen(rest + 1) + 1);
		else
			*at = 0;
		return copy;
	}
	return NULL;
}

int store_open(struct store **store, const char *uri, bool create, struct dp_err *err)
{
	cleanup_free char *plain = strdup(uri);

	*store = NULL;
	if (!plain)
		return dp_fail_errno(err, ENOMEM, "open store");
	cleanup_free char *chaos = take_option(plain, "chaos");
	cleanup_free char *codec = take_option(plain, "compress");
	int result = store_open_plain(store, plain, create, err);

	/* Below the packed layer: what a disk does to packed pages, it does to their bytes. */
	if (result == 0 && chaos)
		result = store_chaos_open(store, *store, chaos, err);
	if (result == 0)
		result = store_packed_open(store, *store, codec, err);
	if (result < 0) {
		store_close(*store);
		*store = NULL;
	}
	return result;
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
