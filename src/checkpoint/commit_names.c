/* The names and the meta text of commits. Pure. */
#include <ctype.h>
#include <json-c/json.h>
#include <string.h>

#include "base/base.h"
#include "checkpoint/commit.h"

#define REPOSITORY_LIMIT 128
#define TAG_LIMIT 64

static const char *directory_of(const char *kind)
{
	return !strcmp(kind, "protect") ? "protected" : "commits";
}

void commit_default_series(const char *kind, const char *instance, char *series, size_t size)
{
	snprintf(series, size, "%s/%s", directory_of(kind), instance);
	for (char *at = series; *at; at++)
		*at = (char)tolower((unsigned char)*at); /* as names of snapshots are */
}

/* Behind "commits/ID/" or "protected/ID/", or NULL. */
static const char *behind_series(const char *snapshot)
{
	static const char *const directories[] = { "commits/", "protected/" };
	for (size_t i = 0; i < ARRAY_LENGTH(directories); i++) {
		if (strncmp(snapshot, directories[i], strlen(directories[i])))
			continue;
		const char *slash = strchr(snapshot + strlen(directories[i]), '/');
		return slash && slash[1] ? slash + 1 : NULL;
	}
	return NULL;
}

void commit_lineage(const char *snapshot, char *lineage, size_t size)
{
	const char *rest = behind_series(snapshot), *dot = rest ? strrchr(rest, '.') : NULL;
	bool ours = dot && dot[1] && strspn(dot + 1, "0123456789") == strlen(dot + 1) && strchr(rest, ':') &&
		    strchr(rest, ':') < dot;
	if (ours)
		snprintf(lineage, size, "%.*s", (int)(dot - rest), rest);
	else
		snprintf(lineage, size, "%s", snapshot);
}

void commit_name(const char *series, const char *lineage, bool own_series, uint64_t unix_ms, char name[static 256])
{
	char number[24];
	size_t number_length = (size_t)snprintf(number, sizeof(number), "%llu", (unsigned long long)unix_ms);
	if (own_series) {
		snprintf(name, 256, "%.*s:%s", REPOSITORY_LIMIT, series, number);
		return;
	}
	const char *colon = strchr(lineage, ':');
	int series_length = (int)DP_MIN(strlen(series), (size_t)REPOSITORY_LIMIT - 2);
	int repository = (int)DP_MIN(colon ? (size_t)(colon - lineage) : strlen(lineage),
				     (size_t)(REPOSITORY_LIMIT - 1 - series_length));
	int tag = (int)DP_MIN(colon ? strlen(colon + 1) : 0, TAG_LIMIT - 1 - number_length);
	snprintf(name, 256, "%.*s/%.*s:%.*s.%s", series_length, series, repository, lineage, tag, colon ? colon + 1 : "", number);
}

static bool take_text(json_object *object, const char *field, char *to, size_t size)
{
	json_object *value;
	const char *text = json_object_object_get_ex(object, field, &value) ? json_object_get_string(value) : NULL;
	if (!text || strlen(text) >= size)
		return false;
	strcpy(to, text);
	return true;
}

bool commit_read_meta(const char *meta_json, struct commit_state *state)
{
	json_object *meta = meta_json ? json_tokener_parse(meta_json) : NULL, *commit, *number;
	memset(state, 0, sizeof(*state));
	bool good = meta && json_object_is_type(meta, json_type_object) && json_object_object_get_ex(meta, "commit", &commit) &&
		    json_object_is_type(commit, json_type_object) &&
		    take_text(commit, "kind", state->kind, sizeof(state->kind)) &&
		    take_text(commit, "series", state->series, sizeof(state->series)) &&
		    take_text(commit, "instance", state->instance, sizeof(state->instance)) &&
		    take_text(commit, "name", state->name, sizeof(state->name)) &&
		    take_text(commit, "lineage", state->lineage, sizeof(state->lineage));
	if (good && json_object_object_get_ex(commit, "pool_instance", &number))
		state->pool_instance = json_object_get_uint64(number);
	json_object_put(meta);
	return good;
}

/* A key that went through a pool's URI has got the tag `latest` where it had none. */
bool commit_fits(const struct commit_state *state, const char *key, bool protect_only)
{
	char bare[256];
	size_t length = strlen(key), suffix = strlen(":latest");
	bool implied = length > suffix && !strcmp(key + length - suffix, ":latest");
	snprintf(bare, sizeof(bare), "%.*s", (int)(implied ? length - suffix : length), key);
	if (protect_only && strcmp(state->kind, "protect"))
		return false;
	return !strcmp(state->series, bare) || !strcmp(state->instance, bare) || !strcmp(state->name, bare) ||
	       !strcmp(state->lineage, key) ||
	       (strchr(key, ':') == NULL && !strncmp(state->lineage, key, length) && !strcmp(state->lineage + length, ":latest"));
}
