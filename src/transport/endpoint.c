#include "transport/endpoint.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"

#define DEFAULT_PORT 7400
#define EXAMPLES                                                                                                                 \
	"write it like dp://127.0.0.1:7400/redis:prod, dp+unix:///run/pool.sock#redis:prod or dir:/var/lib/pool#redis:prod"

static bool is_lower_or_digit(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool is_word(char c)
{
	return is_lower_or_digit(c) || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool repository_good(const char *at, size_t length)
{
	if (length == 0 || length > 128 || !is_lower_or_digit(at[0]))
		return false;
	for (size_t i = 0; i < length; i++) {
		if (!is_lower_or_digit(at[i]) && !strchr("._/-", at[i]))
			return false;
		if (i > 0 && at[i] == '.' && at[i - 1] == '.')
			return false;
	}
	return true;
}

static bool tag_good(const char *at, size_t length)
{
	if (length == 0 || length > 64 || !is_word(at[0]))
		return false;
	for (size_t i = 0; i < length; i++) {
		if (!is_word(at[i]) && at[i] != '.' && at[i] != '-')
			return false;
		if (i > 0 && at[i] == '.' && at[i - 1] == '.')
			return false;
	}
	return true;
}

int endpoint_name_check(const char *name, char normal[static 256], struct dp_err *err)
{
	const char *colon = strchr(name, ':');
	size_t repository = colon ? (size_t)(colon - name) : strlen(name);

	if (!repository_good(name, repository))
		return dp_fail(
			err, EINVAL,
			"bad snapshot name '%.200s': REPO is lower-case letters, digits and . _ / - (at most 128), for example redis:prod",
			name);
	if (colon && !tag_good(colon + 1, strlen(colon + 1)))
		return dp_fail(
			err, EINVAL,
			"bad snapshot name '%.200s': TAG is letters, digits and . _ - (at most 64), for example redis:prod",
			name);
	snprintf(normal, 256, "%.*s:%s", (int)repository, name, colon ? colon + 1 : "latest");
	return 0;
}

static int take_name(struct endpoint *endpoint, const char *name, struct dp_err *err)
{
	return *name ? endpoint_name_check(name, endpoint->name, err) : 0;
}

static int take_port(struct endpoint *endpoint, const char *at, size_t length, struct dp_err *err)
{
	unsigned long port = 0;

	if (length == 0 || length > 5)
		return dp_fail(err, EINVAL, "bad port '%.*s': 0 to 65535", (int)DP_MIN(length, 20u), at);
	for (size_t i = 0; i < length; i++) {
		if (at[i] < '0' || at[i] > '9')
			return dp_fail(err, EINVAL, "bad port '%.*s': 0 to 65535", (int)length, at);
		port = port * 10 + (unsigned long)(at[i] - '0');
	}
	if (port > UINT16_MAX)
		return dp_fail(err, EINVAL, "bad port '%.*s': 0 to 65535", (int)length, at);
	endpoint->port = (uint16_t)port;
	return 0;
}

/* host, host:port, [v6], [v6]:port */
static int take_authority(struct endpoint *endpoint, const char *at, size_t length, struct dp_err *err)
{
	const char *end = at + length, *host = at, *host_end, *rest;

	if (length && *at == '[') {
		host = at + 1;
		host_end = memchr(host, ']', (size_t)(end - host));
		if (!host_end)
			return dp_fail(err, EINVAL, "bad host '%.*s': the ] is missing", (int)DP_MIN(length, 200u), at);
		rest = host_end + 1;
	} else {
		host_end = memchr(at, ':', length);
		if (!host_end)
			host_end = end;
		rest = host_end;
	}
	size_t host_length = (size_t)(host_end - host);

	if (host_length == 0 || host_length >= sizeof(endpoint->host))
		return dp_fail(err, EINVAL, "the host is missing or too long; " EXAMPLES);
	for (size_t i = 0; i < host_length; i++)
		if (!is_word(host[i]) && !strchr(".-:%", host[i]))
			return dp_fail(err, EINVAL, "bad host '%.*s': a name or an address", (int)host_length, host);
	memcpy(endpoint->host, host, host_length);
	endpoint->host[host_length] = 0;
	endpoint->port = DEFAULT_PORT;
	if (rest == end)
		return 0;
	if (*rest != ':')
		return dp_fail(err, EINVAL, "bad host '%.*s': expected :PORT behind the ]", (int)DP_MIN(length, 200u), at);
	return take_port(endpoint, rest + 1, (size_t)(end - rest - 1), err);
}

#define COMPRESS_KEY "?compress="

/* How long the codec's name at the end of a store's path is; 0 where there is none. */
static size_t take_codec(struct endpoint *endpoint, const char *at, size_t length)
{
	static const char *const codecs[] = { "zstd", "lz4" };

	for (size_t i = 0; i < ARRAY_LENGTH(codecs) && endpoint->kind != ENDPOINT_UNIX; i++) {
		size_t codec = strlen(codecs[i]), whole = strlen(COMPRESS_KEY) + codec;

		if (length <= whole || strncmp(at + length - codec, codecs[i], codec) != 0 ||
		    strncmp(at + length - whole, COMPRESS_KEY, strlen(COMPRESS_KEY)) != 0)
			continue;
		strcpy(endpoint->compress, codecs[i]);
		return codec;
	}
	return 0;
}

/* Trailing slashes would make two names of one pool. */
static size_t without_slashes(const char *at, size_t length)
{
	while (length > 1 && at[length - 1] == '/')
		length--;
	return length;
}

/* /PATH or /PATH#NAME. '#' cannot be part of the path, also where no name may follow: clients could not write it. */
static int take_path(struct endpoint *endpoint, const char *at, bool with_name, const char *uri, struct dp_err *err)
{
	const char *hash = strchr(at, '#');
	size_t length = hash ? (size_t)(hash - at) : strlen(at);

	if (hash && !with_name)
		return dp_fail(err, EINVAL, "'%.200s' must be a path without #", uri);
	if (length == 0 || at[0] != '/')
		return dp_fail(err, EINVAL, "bad path in '%.200s': it must be absolute; " EXAMPLES, uri);
	length = without_slashes(at, length);
	size_t codec = take_codec(endpoint, at, length);

	length = without_slashes(at, length - (codec ? codec + strlen(COMPRESS_KEY) : 0));
	if (codec && take_codec(endpoint, at, length))
		return dp_fail(err, EINVAL, "'%.200s' names two ways to compress", uri);
	if (length >= sizeof(endpoint->path) || length == 1)
		return dp_fail(err, EINVAL, "bad path in '%.200s': %s", uri,
			       length == 1 ? "/ itself cannot be a pool" : "too long");
	memcpy(endpoint->path, at, length);
	endpoint->path[length] = 0;
	if (!hash)
		return 0;
	if (!hash[1])
		return dp_fail(err, EINVAL, "the name behind # is missing in '%.200s'; " EXAMPLES, uri);
	return take_name(endpoint, hash + 1, err);
}

static const char *after_prefix(const char *text, const char *prefix)
{
	size_t length = strlen(prefix);

	return strncmp(text, prefix, length) == 0 ? text + length : NULL;
}

int endpoint_parse(struct endpoint *endpoint, const char *uri, struct dp_err *err)
{
	const char *at;

	*endpoint = (struct endpoint){ 0 };
	at = after_prefix(uri, "dps://");
	endpoint->tls = at != NULL;
	if (at || (at = after_prefix(uri, "dp://"))) {
		const char *slash = strchr(at, '/');
		int result = take_authority(endpoint, at, slash ? (size_t)(slash - at) : strlen(at), err);

		return result < 0 || !slash ? result : take_name(endpoint, slash + 1, err);
	}
	if ((at = after_prefix(uri, "tcp://"))) {
		size_t length = strlen(at);

		/* `tcp://host:port/` is common in other tools. */
		if (length && at[length - 1] == '/')
			length--;
		return take_authority(endpoint, at, length, err);
	}
	endpoint->kind = ENDPOINT_UNIX;
	if ((at = after_prefix(uri, "dp+unix://")))
		return take_path(endpoint, at, true, uri, err);
	if ((at = after_prefix(uri, "unix://")))
		return take_path(endpoint, at, false, uri, err);
	endpoint->kind = ENDPOINT_DIR;
	if ((at = after_prefix(uri, "dir:")))
		return take_path(endpoint, at, true, uri, err);
	endpoint->kind = ENDPOINT_FILE;
	if ((at = after_prefix(uri, "file:")))
		return take_path(endpoint, at, true, uri, err);
	return dp_fail(err, EINVAL, "'%.200s' is not a pool's URI; " EXAMPLES, uri);
}

const char *endpoint_pool_text(const struct endpoint *endpoint, char *buffer, unsigned size)
{
	switch (endpoint->kind) {
	case ENDPOINT_TCP:
		snprintf(buffer, size, strchr(endpoint->host, ':') ? "dp%s://[%s]:%u" : "dp%s://%s:%u", endpoint->tls ? "s" : "",
			 endpoint->host, endpoint->port);
		break;
	case ENDPOINT_UNIX:
		snprintf(buffer, size, "dp+unix://%s", endpoint->path);
		break;
	case ENDPOINT_DIR:
		snprintf(buffer, size, "dir:%s", endpoint->path);
		break;
	case ENDPOINT_FILE:
		snprintf(buffer, size, "file:%s", endpoint->path);
		break;
	}
	return buffer;
}
