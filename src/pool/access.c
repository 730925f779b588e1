#include "pool/access.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

#define FILE_LIMIT (1u << 20)
#define RULES_LIMIT 4096
#define LINE_LIMIT 4096
#define WORDS_LIMIT 64

struct rule {
	char *line; /* owned; the words below point into it */
	const char *identity;
	unsigned rights;
	const char *globs[WORDS_LIMIT];
	size_t glob_count; /* 0: all */
	uint64_t quota_bytes;
};

struct access {
	struct rule *rules;
	size_t count;
};

static int parse_rights(char *text, unsigned *rights)
{
	char *rest = text;

	*rights = 0;
	if (strcmp(text, "none") == 0)
		return 0;
	for (char *word; (word = strsep(&rest, ","));) {
		if (strcmp(word, "read") == 0)
			*rights |= RIGHT_READ;
		else if (strcmp(word, "write") == 0)
			*rights |= RIGHT_WRITE;
		else if (strcmp(word, "admin") == 0)
			*rights |= RIGHT_ADMIN;
		else if (strcmp(word, "clone") == 0)
			*rights |= RIGHT_CLONE;
		else
			return -EINVAL;
	}
	return 0;
}

static bool identity_good(const char *identity)
{
	static const char *const kinds[] = { "cn:", "psk:", "uid:" };

	if (strcmp(identity, "anonymous") == 0 || strcmp(identity, "*") == 0)
		return true;
	for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++)
		if (strncmp(identity, kinds[i], strlen(kinds[i])) == 0 && identity[strlen(kinds[i])])
			return true;
	return false;
}

/* Takes the line apart in place. */
static int parse_rule(struct rule *rule, char *line, unsigned number, struct dp_err *err)
{
	char *save, *identity = strtok_r(line, " \t\r", &save), *rights = strtok_r(NULL, " \t\r", &save);

	*rule = (struct rule){ .line = line, .identity = identity, .quota_bytes = NO_QUOTA };
	if (!identity_good(identity))
		return dp_fail(err, EINVAL, "line %u: '%.80s' is no identity; write cn:NAME, psk:NAME, uid:N, anonymous or *",
			       number, identity);
	if (!rights || parse_rights(rights, &rule->rights) < 0)
		return dp_fail(err, EINVAL, "line %u: the rights of %.80s are read, write, admin, clone joined by commas, or none",
			       number, identity);
	for (char *word; (word = strtok_r(NULL, " \t\r", &save));) {
		if (strncmp(word, "quota=", 6) == 0) {
			if (parse_size(word + 6, &rule->quota_bytes) < 0)
				return dp_fail(err, EINVAL, "line %u: '%.80s' is no size; write quota=20G", number, word);
		} else if (rule->glob_count == WORDS_LIMIT) {
			return dp_fail(err, EINVAL, "line %u: more than %d repositories; write several rules", number,
				       WORDS_LIMIT);
		} else {
			rule->globs[rule->glob_count++] = word;
		}
	}
	return 0;
}

static int add_rule(struct access *access, const char *at, size_t length, unsigned number, struct dp_err *err)
{
	if (length > LINE_LIMIT || access->count == RULES_LIMIT)
		return dp_fail(err, EINVAL, length > LINE_LIMIT ? "line %u is too long" : "line %u: too many rules", number);
	char *line = strndup(at, length);
	struct rule *rules = line ? reallocarray(access->rules, access->count + 1, sizeof(*rules)) : NULL;

	if (!rules) {
		free(line);
		return dp_fail_errno(err, ENOMEM, "read rights");
	}
	access->rules = rules;
	return parse_rule(&rules[access->count++], line, number, err);
}

int access_parse(struct access **result, const char *text, struct dp_err *err)
{
	struct access *access = calloc(1, sizeof(*access));
	int code = access ? 0 : dp_fail_errno(err, ENOMEM, "read rights");
	unsigned number = 0;

	while (*text && code == 0) {
		size_t length = strcspn(text, "\n"), first = strspn(text, " \t\r");

		number++;
		if (first < length && text[first] != '#')
			code = add_rule(access, text, length, number, err);
		text += length + (text[length] == '\n');
	}
	if (code < 0) {
		access_free(access);
		return code;
	}
	*result = access;
	return 0;
}

int access_read(struct access **access, const char *path, struct dp_err *err)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	cleanup_free char *text = NULL;
	struct stat info;

	if (fd < 0 || fstat(fd, &info) < 0)
		return dp_fail_errno(err, errno, "read rights %s", path);
	if (!S_ISREG(info.st_mode) || info.st_size > FILE_LIMIT)
		return dp_fail(err, EINVAL, "read rights %s: not a file of rights", path);
	if ((info.st_mode & 0022) || (info.st_uid != geteuid() && info.st_uid != 0))
		return dp_fail(err, EACCES,
			       "read rights %s: others may change it; chmod go-w it, and give it to who runs the pool or root",
			       path);
	text = calloc(1, (size_t)info.st_size + 1);
	if (!text)
		return dp_fail_errno(err, ENOMEM, "read rights %s", path);
	int result = io_read_full(fd, text, (size_t)info.st_size);

	if (result < 0)
		return dp_fail_errno(err, -result, "read rights %s", path);
	result = access_parse(access, text, err);
	if (result < 0)
		dp_err_doing(err, "read rights %s", path);
	return result;
}

void access_free(struct access *access)
{
	if (!access)
		return;
	for (size_t i = 0; i < access->count; i++)
		free(access->rules[i].line);
	free(access->rules);
	free(access);
}

static bool matches_identity(const struct rule *rule, const char *identity)
{
	return fnmatch(rule->identity, identity, FNM_NOESCAPE) == 0;
}

static bool matches_repository(const struct rule *rule, const char *repository)
{
	for (size_t i = 0; i < rule->glob_count; i++)
		if (fnmatch(rule->globs[i], repository, FNM_NOESCAPE) == 0)
			return true;
	return rule->glob_count == 0;
}

unsigned access_rights(const struct access *access, const char *identity, const char *repository)
{
	char name[256];
	unsigned rights = 0;

	if (!access)
		return RIGHTS_ALL;
	snprintf(name, sizeof(name), "%.*s", (int)strcspn(repository, ":"), repository);
	for (size_t i = 0; i < access->count; i++)
		if (matches_identity(&access->rules[i], identity) && matches_repository(&access->rules[i], name))
			rights |= access->rules[i].rights;
	return rights;
}

bool access_knows(const struct access *access, const char *identity)
{
	bool knows = !access;

	for (size_t i = 0; access && i < access->count; i++)
		knows = knows || (access->rules[i].rights && matches_identity(&access->rules[i], identity));
	return knows;
}

uint64_t access_quota_bytes(const struct access *access, const char *identity)
{
	for (size_t i = 0; access && i < access->count; i++)
		if (access->rules[i].quota_bytes != NO_QUOTA && matches_identity(&access->rules[i], identity))
			return access->rules[i].quota_bytes;
	return NO_QUOTA;
}

bool access_names_users(const struct access *access, unsigned uid)
{
	char own[32];

	snprintf(own, sizeof(own), "uid:%u", uid);
	for (size_t i = 0; access && i < access->count; i++) {
		const char *identity = access->rules[i].identity;

		if (strncmp(identity, "uid:", 4) == 0 && strcmp(identity, own) != 0 && strcmp(identity, "uid:0") != 0 &&
		    access->rules[i].rights)
			return true;
	}
	return false;
}

const char *access_right_name(unsigned right)
{
	return right == RIGHT_READ ? "read" : right == RIGHT_WRITE ? "write" : right == RIGHT_CLONE ? "clone" : "admin";
}
