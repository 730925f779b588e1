#include "instance/commits.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"

#define DIRECTORY ".commits"
#define SCHEMA "distriproc.commit/1"

const char *commits_path(const char *root, const char *file, char *buffer, size_t size)
{
	snprintf(buffer, size, "%s", root);
	mkdir(buffer, 0700);
	snprintf(buffer, size, "%s/" DIRECTORY, root);
	mkdir(buffer, 0700);
	snprintf(buffer, size, "%s/" DIRECTORY "/%s", root, file);
	return buffer;
}

struct text_field {
	const char *name;
	size_t offset, size;
};
struct number_field {
	const char *name;
	size_t offset;
};
#define TEXT(field) { #field, offsetof(struct commit_note, field), sizeof(((struct commit_note *)0)->field) }
#define NUMBER(field) { #field, offsetof(struct commit_note, field) }
static const struct text_field texts[] = { TEXT(id),   TEXT(name),   TEXT(pool),     TEXT(lineage),
					   TEXT(kind), TEXT(series), TEXT(snapshot), TEXT(error) };
static const struct number_field numbers[] = { NUMBER(unix_ns), NUMBER(bytes), NUMBER(frozen_ns), NUMBER(total_ns), NUMBER(count),
					       NUMBER(failures), NUMBER(interval_ns) };

static char *encode(const struct commit_note *note)
{
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string(SCHEMA));
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++)
		json_object_object_add(object, texts[i].name, json_object_new_string((const char *)note + texts[i].offset));
	for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++)
		json_object_object_add(
			object, numbers[i].name,
			json_object_new_uint64(*(const uint64_t *)(const void *)((const char *)note + numbers[i].offset)));
	const char *text = json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);
	char *copy = text ? format_text("%s\n", text) : NULL;
	json_object_put(object);
	return copy;
}

int commits_decode(const char *text, struct commit_note *note)
{
	json_object *object = json_tokener_parse(text), *value;
	memset(note, 0, sizeof(*note));
	int ret = object && json_object_is_type(object, json_type_object) ? 0 : -EBADMSG;
	for (size_t i = 0; !ret && i < ARRAY_LENGTH(texts); i++) {
		const char *word = json_object_object_get_ex(object, texts[i].name, &value) ? json_object_get_string(value)
											    : NULL;
		if (!word || strlen(word) >= texts[i].size)
			ret = -EBADMSG;
		else
			strcpy((char *)note + texts[i].offset, word);
	}
	for (size_t i = 0; !ret && i < ARRAY_LENGTH(numbers); i++) {
		if (json_object_object_get_ex(object, numbers[i].name, &value))
			*(uint64_t *)(void *)((char *)note + numbers[i].offset) = json_object_get_uint64(value);
		else
			ret = -EBADMSG;
	}
	json_object_put(object);
	return ret;
}

static bool is_note(const char *file)
{
	size_t length = strlen(file);
	return file[0] != '.' && length > 5 && !strcmp(file + length - 5, ".json");
}

/* Beyond the limit the oldest goes. */
static void prune(const char *root)
{
	char path[PATH_MAX], oldest[256] = "";
	struct timespec oldest_time = { 0 };
	size_t files = 0;
	DIR *directory = opendir(commits_path(root, "", path, sizeof(path)));
	if (!directory)
		return;
	for (struct dirent *entry = readdir(directory); entry; entry = readdir(directory)) {
		struct stat info;
		if (!is_note(entry->d_name) || fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW))
			continue;
		files++;
		if (!*oldest || info.st_mtim.tv_sec < oldest_time.tv_sec) {
			snprintf(oldest, sizeof(oldest), "%s", entry->d_name);
			oldest_time = info.st_mtim;
		}
	}
	if (files > COMMIT_NOTES)
		unlinkat(dirfd(directory), oldest, 0);
	closedir(directory);
}

int commits_save(const char *root, const struct commit_note *note, struct dp_err *err)
{
	char path[PATH_MAX], fresh[PATH_MAX], file[INSTANCE_ID_BYTES + 16];
	cleanup_free char *text = encode(note);
	if (!text)
		return dp_fail(err, ENOMEM, "out of memory");
	snprintf(file, sizeof(file), "%s.json", note->id);
	commits_path(root, file, path, sizeof(path));
	snprintf(file, sizeof(file), ".%s.new", note->id);
	commits_path(root, file, fresh, sizeof(fresh));
	int ret = io_write_file(fresh, text, strlen(text), 0600);
	if (!ret && rename(fresh, path))
		ret = -errno;
	if (!ret)
		prune(root);
	return ret ? dp_fail_errno(err, -ret, "write %s", path) : 0;
}

static int load_file(const char *path, struct commit_note *note)
{
	cleanup_free char *text = NULL;
	ssize_t length = io_read_file(path, &text, 65536);
	return length < 0 ? (int)length : commits_decode(text, note);
}

int commits_load(const char *root, const char *id, struct commit_note *note)
{
	char path[PATH_MAX];
	snprintf(path, sizeof(path), "%s/" DIRECTORY "/%s.json", root, id);
	return load_file(path, note);
}

int commits_find(const char *root, const char *key, struct commit_note *note)
{
	char path[PATH_MAX];
	int ret = -ENOENT;
	DIR *directory = opendir(commits_path(root, "", path, sizeof(path)));
	for (struct dirent *entry = directory ? readdir(directory) : NULL; entry; entry = readdir(directory)) {
		struct commit_note found;
		if (!is_note(entry->d_name) || load_file(commits_path(root, entry->d_name, path, sizeof(path)), &found))
			continue;
		bool fits = !strcmp(found.id, key) || !strcmp(found.name, key) || !strcmp(found.lineage, key) ||
			    !strcmp(found.series, key);
		if (fits && found.snapshot[0] && (ret || found.unix_ns > note->unix_ns)) {
			*note = found;
			ret = 0;
		}
	}
	if (directory)
		closedir(directory);
	return ret;
}

uint64_t commits_age_ns(const struct commit_note *note)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	return now_ns > note->unix_ns ? now_ns - note->unix_ns : 0;
}
