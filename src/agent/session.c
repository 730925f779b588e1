/* session: the process of one connection. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include "agent/agent.h"
#include "base/base.h"
#include "base/log.h"
#include "instance/instance.h"
#include "migrate/clone.h"
#include "migrate/ferry.h"

#define FIRST_LINE_MS 10000
#define SEND_MS 5000
#define EVENT_BYTES 8192

static int refuse(struct lines *lines, int code, const char *text)
{
	json_object *event = line_event("failed");
	line_add_number(event, "code", (uint64_t)code);
	line_add_text(event, "text", text);
	lines_send(lines, event, SEND_MS);
	return 1;
}

/* ---- what can be seen ---- */

static unsigned count_orphans_and_ferries(const char *root, const char *kind)
{
	char path[PATH_MAX];
	struct stat info;
	/* a directory of directories has a link for each, and two of its own */
	return !stat(ferry_home_path(root, kind, path), &info) && info.st_nlink > 2 ? (unsigned)info.st_nlink - 2 : 0;
}

static int send_status(const struct agent_place *place, struct lines *lines)
{
	char uri[1400] = "";
	struct instance *list = NULL;
	size_t count = 0;
	json_object *status = json_object_new_object();
	instance_list(place->root, &list, &count, NULL);
	free(list);
	if (place->listen.port)
		endpoint_pool_text(&place->listen, uri, sizeof(uri));
	line_add_text(status, "schema", "distriproc.agent/1");
	line_add_text(status, "version", DP_VERSION);
	line_add_number(status, "pid", (uint64_t)place->agent_pid);
	line_add_number(status, "uptime_ns", clock_now_ns() - place->started_ns);
	line_add_text(status, "listen", uri);
	line_add_text(status, "root", place->root);
	line_add_number(status, "instances", count);
	line_add_number(status, "migrations_out", count_orphans_and_ferries(place->root, "out"));
	line_add_number(status, "migrations_in", count_orphans_and_ferries(place->root, "in"));
	return lines_send(lines, status, SEND_MS) ? 1 : 0;
}

static int send_list(const struct agent_place *place, struct lines *lines)
{
	struct instance *list;
	size_t count;
	struct dp_err err;
	int ret = instance_list(place->root, &list, &count, &err);
	if (ret)
		return refuse(lines, -ret, err.text);
	json_object *answer = json_object_new_object(), *instances = json_object_new_array();
	for (size_t i = 0; i < count; i++) {
		json_object *entry = json_object_new_object();
		line_add_text(entry, "id", list[i].id);
		line_add_text(entry, "name", list[i].name);
		line_add_text(entry, "snapshot", list[i].snapshot);
		line_add_text(entry, "pool", list[i].pool);
		line_add_number(entry, "pid", (uint64_t)list[i].root.pid);
		json_object_array_add(instances, entry);
	}
	free(list);
	line_add_text(answer, "schema", "distriproc.agent-list/1");
	json_object_object_add(answer, "instances", instances);
	return lines_send(lines, answer, SEND_MS) ? 1 : 0;
}

/* ---- events ---- */

/* Sends the whole lines that the file has from *offset on. */
static int send_new_events(struct lines *lines, int fd, off_t *offset)
{
	char text[EVENT_BYTES];
	for (;;) {
		ssize_t got = pread(fd, text, sizeof(text) - 1, *offset);
		char *end = got > 0 ? memrchr(text, '\n', (size_t)got) : NULL;
		if (!end)
			return got == sizeof(text) - 1 ? -EBADMSG : 0;
		*end = 0;
		*offset += end + 1 - text;
		char *rest = text;
		for (char *line = strsep(&rest, "\n"); line; line = strsep(&rest, "\n")) {
			json_object *event = json_tokener_parse(line);
			if (event && lines_send(lines, event, SEND_MS))
				return -EPIPE;
		}
	}
}

static int send_events(const struct agent_place *place, struct lines *lines, bool follow)
{
	char path[PATH_MAX];
	cleanup_fd int watch_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	ferry_home_path(place->root, "", path);
	if (watch_fd < 0 || inotify_add_watch(watch_fd, path, IN_CREATE | IN_MODIFY | IN_MOVED_TO) < 0)
		return refuse(lines, EIO, "the directory of events cannot be watched");
	for (;;) {
		ino_t inode = 0;
		off_t offset = 0;
		struct stat info;
		cleanup_fd int fd = open(ferry_home_path(place->root, "events", path), O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0 || fstat(fd, &info))
			return refuse(lines, EIO, "the events cannot be read");
		inode = info.st_ino;
		do {
			char ignored[4096];
			struct pollfd polls[] = {
				{ .fd = watch_fd, .events = POLLIN },
				{ .fd = lines_fd(lines), .events = POLLIN },
			};
			if (send_new_events(lines, fd, &offset) || !follow)
				return 0;
			poll(polls, ARRAY_LENGTH(polls), -1);
			if (polls[1].revents) /* the follower says nothing; so it has gone */
				return 0;
			while (read(watch_fd, ignored, sizeof(ignored)) > 0)
				continue;
		} while (!stat(path, &info) && info.st_ino == inode);
		send_new_events(lines, fd, &offset); /* the last ones of a file that was put aside */
	}
}

/* ---- the first line ---- */

int agent_control_session(const struct agent_place *place, struct stream *stream)
{
	struct lines lines;
	json_object *request = NULL;
	lines_init(&lines, stream);
	int code = 1, ret = lines_receive(&lines, &request, FIRST_LINE_MS);
	const char *op = ret ? NULL : line_text(request, "op");
	if (ret)
		refuse(&lines, EBADMSG, "a line with a JSON object is expected, such as {\"op\":\"status\"}");
	else if (op && !strcmp(op, "status"))
		code = send_status(place, &lines);
	else if (op && !strcmp(op, "list"))
		code = send_list(place, &lines);
	else if (op && !strcmp(op, "events"))
		code = send_events(place, &lines, line_flag(request, "follow"));
	else if (op && !strcmp(op, "migrate") && !place->listen.port)
		refuse(&lines, EADDRNOTAVAIL, "this agent listens nowhere that another host could reach: start it with --listen");
	else if (op && !strcmp(op, "migrate"))
		code = ferry_out(place->root, request, &lines, &place->listen);
	else
		refuse(&lines, EOPNOTSUPP, "an op of status, list, events and migrate is expected");
	json_object_put(request);
	lines_done(&lines);
	return code;
}

static bool may_bring(const struct agent_place *place, const struct stream_peer *peer, json_object *prepare)
{
	const char *name = line_text(prepare, "name");
	return !place->access || access_rights(place->access, peer->identity, name ? name : "process") & RIGHT_WRITE;
}

/* Memory is read: so not without a word, as a process may be brought by whoever has a key. */
static bool may_clone(const struct agent_place *place, const struct stream_peer *peer, json_object *request)
{
	const char *source = line_text(request, "source");
	return place->access && source && access_rights(place->access, peer->identity, source) & RIGHT_CLONE;
}

static int clone(const struct agent_place *place, const struct stream_peer *peer, json_object *request, struct lines *lines)
{
	if (may_clone(place, peer, request))
		return clone_lend(place->root, request, lines, peer->identity);
	log_warn("%s (%s) may not have a copy of a process of this host", peer->place, peer->identity);
	return refuse(lines, EPERM, "you have no right to clone this here: the agent's --access file gives it, `IDENTITY clone NAME`");
}

int agent_peer_session(const struct agent_place *place, struct stream *stream)
{
	struct lines lines;
	struct stream_peer peer;
	json_object *first = NULL;
	lines_init(&lines, stream);
	int code = 1, ret = lines_receive(&lines, &first, FIRST_LINE_MS);
	stream_peer(stream, &peer);
	const char *op = ret ? NULL : line_text(first, "op");
	if (ret)
		log_warn("%s: no request came: %s", peer.place, *stream_why(stream) ? stream_why(stream) : strerror(-ret));
	else if (op && !strcmp(op, "ask"))
		code = ferry_asks(place->root, first, &lines);
	else if (op && !strcmp(op, "clone"))
		code = clone(place, &peer, first, &lines);
	else if (!op || strcmp(op, "prepare") != 0)
		refuse(&lines, EOPNOTSUPP, "an op of prepare, ask and clone is expected");
	else if (!may_bring(place, &peer, first))
		log_warn("%s (%s) may not bring a process here", peer.place, peer.identity),
			refuse(&lines, EPERM, "you have no right to bring this process here");
	else
		code = ferry_in(place->root, first, &lines);
	json_object_put(first);
	lines_done(&lines);
	return code;
}
