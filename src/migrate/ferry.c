#include "migrate/ferry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "base/base.h"
#include "base/log.h"
#include "migrate/record.h"

#define EVENTS_LIMIT_BYTES (1 << 20)
#define KEEP_RECORDS_S (24 * 3600)

const char *ferry_home_path(const char *root, const char *file, char buffer[static PATH_MAX])
{
	snprintf(buffer, PATH_MAX, "%s/.agent/%s", root, file);
	return buffer;
}

const char *ferry_path(const char *root, const char *kind, const char *id, const char *file, char buffer[static PATH_MAX])
{
	snprintf(buffer, PATH_MAX, "%s/.agent/%s/%s/%s", root, kind, id, file);
	return buffer;
}

static int make_directory(const char *path, struct dp_err *err)
{
	return mkdir(path, 0700) && errno != EEXIST ? dp_fail_errno(err, errno, "make %s", path) : 0;
}

int ferry_make_home(const char *root, struct dp_err *err)
{
	char path[PATH_MAX];
	int ret = make_directory(root, err);
	static const char *const parts[] = { "", "in", "out" };
	for (size_t i = 0; i < ARRAY_LENGTH(parts) && !ret; i++)
		ret = make_directory(ferry_home_path(root, parts[i], path), err);
	return ret;
}

/* A lock of this process alone: what it forks must not hold it after its death. */
static int lock(const char *root, const char *kind, const char *id)
{
	char path[PATH_MAX];
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd = open(ferry_path(root, kind, id, "lock", path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0 && fcntl(fd, F_SETLK, &all)) {
		int code = errno;
		close(fd);
		return -code;
	}
	return fd < 0 ? -errno : fd;
}

int ferry_claim(const char *root, const char *kind, const char *id, struct dp_err *err)
{
	char path[PATH_MAX];
	int ret = make_directory(ferry_path(root, kind, id, "", path), err);
	if (ret)
		return ret;
	int fd = lock(root, kind, id);
	return fd < 0 ? dp_fail_errno(err, -fd, "lock %s", path) : fd;
}

bool ferry_id_is_proper(const char *id)
{
	return id && strlen(id) == FERRY_ID_BYTES - 1 && strspn(id, "0123456789abcdef") == FERRY_ID_BYTES - 1;
}

void ferry_make_id(char id[static FERRY_ID_BYTES])
{
	unsigned char bytes[(FERRY_ID_BYTES - 1) / 2];
	while (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		continue;
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(id + 2 * i, 3, "%02x", bytes[i]);
}

/* ---- events ---- */

void ferry_note(const char *root, json_object *event)
{
	char path[PATH_MAX], old[PATH_MAX], stamp[64];
	struct timespec now;
	struct stat info;
	struct tm utc;
	clock_gettime(CLOCK_REALTIME, &now);
	size_t used = strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", gmtime_r(&now.tv_sec, &utc));
	snprintf(stamp + used, sizeof(stamp) - used, ".%03ldZ", now.tv_nsec / 1000000);
	line_add_text(event, "time", stamp);
	line_add_number(event, "process", (uint64_t)getpid());
	cleanup_free char *line = format_text("%s\n", json_object_to_json_string_ext(event, JSON_C_TO_STRING_PLAIN));
	json_object_put(event);
	ferry_home_path(root, "events", path);
	if (!stat(path, &info) && info.st_size > EVENTS_LIMIT_BYTES)
		rename(path, ferry_home_path(root, "events.old", old));
	cleanup_fd int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || !line || io_write_full(fd, line, strlen(line)))
		log_warn("an event could not be noted in %s", path);
}

/* ---- asks from a destination ---- */

static bool same_token(const char *root, const char *id, const char *token)
{
	char path[PATH_MAX];
	cleanup_free char *kept = NULL;
	if (!ferry_id_is_proper(token) || io_read_file(ferry_path(root, "out", id, "token", path), &kept, 256) != FERRY_ID_BYTES - 1)
		return false;
	unsigned char different = 0; /* as long for a wrong one as for a right one */
	for (size_t i = 0; i < FERRY_ID_BYTES - 1; i++)
		different |= (unsigned char)(kept[i] ^ token[i]);
	return !different;
}

/* "lost" counts only with another boot's id than the migration began with: then its tree is surely gone. */
static void add_lost(json_object *answer)
{
	char boot[SWITCH_BOOT_BYTES] = "";
	line_add_text(answer, "answer", switch_boot_id(boot) ? "lost" : "wait");
	line_add_text(answer, "boot", boot);
}

/* Its ferry is gone, or does not speak: only what is final can be told. */
static json_object *answer_from_record(const char *root, const char *id)
{
	char path[PATH_MAX];
	struct switch_record record;
	json_object *answer = json_object_new_object();
	int ret = switch_record_read(ferry_path(root, "out", id, "record", path), &record, NULL);
	bool final = !ret && record.this_boot && (record.state == SWITCH_RELEASED || record.state == SWITCH_RESUMED);
	if (final)
		line_add_text(answer, "answer",
			      switch_answer_name(record.state == SWITCH_RELEASED ? ANSWER_RELEASED : ANSWER_RESUMED));
	else if (!ret && !record.this_boot)
		add_lost(answer);
	else
		line_add_text(answer, "answer", "wait");
	return answer;
}

static json_object *ask_ferry(const char *root, const char *id, struct lines *ferry, json_object *ask)
{
	char path[PATH_MAX];
	struct stream *stream;
	json_object *answer = NULL;
	if (!ferry->stream && !stream_connect_unix(&stream, ferry_path(root, "out", id, "asks.sock", path), NULL))
		lines_init(ferry, stream);
	if (!ferry->stream || lines_send(ferry, json_object_get(ask), FERRY_ANSWER_MS) ||
	    lines_receive(ferry, &answer, FERRY_ANSWER_MS)) {
		lines_done(ferry);
		return answer_from_record(root, id);
	}
	return answer;
}

/* A directory that is not there is a migration of before a start of this host, or none at all: its tree is not here. */
static bool is_known(const char *root, const char *id)
{
	char path[PATH_MAX];
	return access(ferry_path(root, "out", id, "token", path), F_OK) == 0;
}

int ferry_asks(const char *root, json_object *first, struct lines *peer)
{
	struct lines ferry = { 0 };
	json_object *ask = json_object_get(first);
	int ret = 0;
	while (!ret) {
		const char *id = line_text(ask, "id");
		json_object *answer = json_object_new_object();
		if (!ferry_id_is_proper(id)) {
			line_add_text(answer, "answer", "refused");
		} else if (!is_known(root, id)) {
			add_lost(answer);
		} else if (!same_token(root, id, line_text(ask, "token"))) {
			log_warn("an ask about migration %s came with a wrong token", id);
			line_add_text(answer, "answer", "refused");
		} else if (line_text(ask, "ask") && !strcmp(line_text(ask, "ask"), "reach")) {
			line_add_text(answer, "answer", "here");
		} else {
			json_object_put(answer);
			answer = ask_ferry(root, id, &ferry, ask);
		}
		ret = lines_send(peer, answer, FERRY_ANSWER_MS);
		json_object_put(ask);
		ask = NULL;
		if (!ret)
			ret = lines_receive(peer, &ask, 3600u * 1000u);
	}
	json_object_put(ask);
	lines_done(&ferry);
	return 0;
}

/* ---- orphans ---- */

static bool is_old(const char *root, const char *id)
{
	char path[PATH_MAX];
	struct stat info;
	return !stat(ferry_path(root, "out", id, "record", path), &info) && info.st_mtime + KEEP_RECORDS_S < time(NULL);
}

static bool is_over(const char *root, const char *id)
{
	char path[PATH_MAX];
	return access(ferry_path(root, "out", id, "over", path), F_OK) == 0;
}

void ferry_each_orphan(const char *root, void (*each)(void *context, const char *kind, const char *id), void *context)
{
	static const char *const kinds[] = { "in", "out" };
	char path[PATH_MAX];
	for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++) {
		bool out = kinds[i][0] == 'o';
		DIR *directory = opendir(ferry_home_path(root, kinds[i], path));
		for (struct dirent *entry = directory ? readdir(directory) : NULL; entry; entry = readdir(directory)) {
			if (!ferry_id_is_proper(entry->d_name))
				continue;
			if (out && is_over(root, entry->d_name)) {
				if (is_old(root, entry->d_name))
					remove_tree(ferry_path(root, "out", entry->d_name, "", path));
				continue;
			}
			int fd = lock(root, kinds[i], entry->d_name);
			if (fd < 0)
				continue;
			close(fd);
			each(context, kinds[i], entry->d_name);
		}
		if (directory)
			closedir(directory);
	}
}

/* ---- CRIU's gate ---- */

bool ferry_is_gate_action(const char *name)
{
	const char *base = strrchr(name, '/');
	return base && !strcmp(base + 1, FERRY_GATE_ACTION);
}

int ferry_gate_action(char *name)
{
	const char *action = getenv("CRTOOLS_SCRIPT_ACTION");
	char path[PATH_MAX], answer = 0;
	if (!action || strcmp(action, "post-restore"))
		return 0;
	struct stream *stream;
	snprintf(path, sizeof(path), "%s/gate.sock", dirname(name));
	if (stream_connect_unix(&stream, path, NULL))
		return 1;
	struct pollfd polled = { .fd = stream->fd, .events = POLLIN };
	while (poll(&polled, 1, -1) < 0 && errno == EINTR)
		continue;
	bool good = stream_receive(stream, &answer, 1) == 1 && answer == 'y';
	stream_close(stream);
	return good ? 0 : 1;
}
