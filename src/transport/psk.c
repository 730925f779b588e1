#include "transport/psk.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"

#define FILE_LIMIT (1u << 20)

int psk_identity_check(const char *identity, size_t length)
{
	if (length == 0 || length > PSK_IDENTITY_LIMIT)
		return -EINVAL;
	for (size_t i = 0; i < length; i++)
		if (!isalnum((unsigned char)identity[i]) && !strchr("._@-", identity[i]))
			return -EINVAL;
	return 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int parse_key(struct psk *psk, const char *hex, size_t length)
{
	if (length % 2 || length / 2 < PSK_KEY_LEAST || length / 2 > PSK_KEY_LIMIT)
		return -EINVAL;
	for (size_t i = 0; i < length / 2; i++) {
		int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);

		if (high < 0 || low < 0)
			return -EINVAL;
		psk->key[i] = (uint8_t)(high << 4 | low);
	}
	psk->key_bytes = length / 2;
	return 0;
}

/* One line that is not empty and no comment. Never shows the key in a text. */
static int parse_line(struct psk_list *list, const char *line, size_t length, unsigned number, struct dp_err *err)
{
	const char *colon = memchr(line, ':', length);
	size_t identity = colon ? (size_t)(colon - line) : 0;
	struct psk psk = { .identity = "" };

	if (!colon || psk_identity_check(line, identity) < 0)
		return dp_fail(err, EINVAL, "line %u: expected IDENTITY:HEXKEY, IDENTITY being 1 to %d of [A-Za-z0-9._@-]",
			       number, PSK_IDENTITY_LIMIT);
	memcpy(psk.identity, line, identity);
	if (parse_key(&psk, colon + 1, length - identity - 1) < 0)
		return dp_fail(err, EINVAL,
			       "line %u: the key of %s must be %d to %d hexadecimal digits, as 'pool keygen' makes them", number,
			       psk.identity, 2 * PSK_KEY_LEAST, 2 * PSK_KEY_LIMIT);
	for (size_t i = 0; i < list->count; i++)
		if (strcmp(list->keys[i].identity, psk.identity) == 0)
			return dp_fail(err, EINVAL, "line %u: %s has a key already", number, psk.identity);
	if (list->count == PSK_COUNT_LIMIT)
		return dp_fail(err, EINVAL, "more than %d keys", PSK_COUNT_LIMIT);
	struct psk *keys = reallocarray(list->keys, list->count + 1, sizeof(*keys));

	if (!keys)
		return dp_fail_errno(err, ENOMEM, "read keys");
	list->keys = keys;
	keys[list->count++] = psk;
	return 0;
}

int psk_parse(struct psk_list *list, const char *text, struct dp_err *err)
{
	int result = 0;
	unsigned number = 0;

	*list = (struct psk_list){ 0 };
	while (*text && result == 0) {
		size_t whole = strcspn(text, "\n"), length = whole;

		number++;
		while (length && strchr(" \t\r", text[length - 1]))
			length--;
		if (length && text[0] != '#')
			result = parse_line(list, text, length, number, err);
		text += whole + (text[whole] == '\n');
	}
	if (result == 0 && list->count == 0)
		result = dp_fail(err, EINVAL, "there is no key in it; 'distri-proc pool keygen NAME' makes a line");
	if (result < 0)
		psk_list_done(list);
	return result;
}

int psk_read(struct psk_list *list, const char *path, struct dp_err *err)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat info;
	char *text = NULL;

	*list = (struct psk_list){ 0 };
	if (fd < 0 || fstat(fd, &info) < 0)
		return dp_fail_errno(err, errno, "read keys %s", path);
	if (!S_ISREG(info.st_mode) || info.st_size > FILE_LIMIT)
		return dp_fail(err, EINVAL, "read keys %s: not a file of keys", path);
	if ((info.st_mode & 0077) || (info.st_uid != geteuid() && info.st_uid != 0))
		return dp_fail(err, EACCES,
			       "read keys %s: others may read or change it; chmod 600 it, and give it to who runs this or root",
			       path);
	size_t bytes = (size_t)info.st_size;

	text = calloc(1, bytes + 1);
	if (!text)
		return dp_fail_errno(err, ENOMEM, "read keys %s", path);
	int result = io_read_full(fd, text, bytes);

	if (result < 0)
		dp_fail_errno(err, -result, "read keys %s", path);
	else if ((result = psk_parse(list, text, err)) < 0)
		dp_err_doing(err, "read keys %s", path);
	explicit_bzero(text, bytes);
	free(text);
	return result;
}

void psk_list_done(struct psk_list *list)
{
	if (list->keys)
		explicit_bzero(list->keys, list->count * sizeof(*list->keys));
	free(list->keys);
	*list = (struct psk_list){ 0 };
}
