#include "migrate/lines.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/base.h"

void lines_init(struct lines *lines, struct stream *stream)
{
	*lines = (struct lines){ .stream = stream };
}

void lines_done(struct lines *lines)
{
	stream_close(lines->stream);
	free(lines->text);
	*lines = (struct lines){ 0 };
}

/* 0, or -ETIMEDOUT. */
static int wait_for(const struct lines *lines, short events, uint64_t deadline_ns)
{
	for (;;) {
		uint64_t now = clock_now_ns();
		if (now >= deadline_ns)
			return -ETIMEDOUT;
		struct pollfd polled = { .fd = lines->stream->fd, .events = events };
		int ready = poll(&polled, 1, (int)DP_MIN((deadline_ns - now) / 1000000u + 1, 60000u));
		if (ready > 0)
			return 0;
		if (ready < 0 && errno != EINTR)
			return -errno;
	}
}

int lines_send_bytes(struct lines *lines, const void *bytes, size_t count, unsigned timeout_ms)
{
	uint64_t deadline_ns = clock_now_ns() + (uint64_t)timeout_ms * 1000000u;
	if (!lines->stream)
		return -EPIPE;
	for (size_t sent = 0; sent < count;) {
		struct iovec part = { (char *)(uintptr_t)bytes + sent, count - sent };
		ssize_t took = stream_sendv(lines->stream, &part, 1);
		if (took > 0)
			sent += (size_t)took;
		else if (took != -EAGAIN)
			return took < 0 ? (int)took : -EPIPE;
		else if (wait_for(lines, POLLOUT, deadline_ns))
			return -ETIMEDOUT;
	}
	int ret;
	while ((ret = stream_flush(lines->stream)) == -EAGAIN)
		if (wait_for(lines, POLLOUT, deadline_ns))
			return -ETIMEDOUT;
	return ret;
}

int lines_send(struct lines *lines, json_object *object, unsigned timeout_ms)
{
	cleanup_free char *text = format_text("%s\n", json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN));
	json_object_put(object);
	return text ? lines_send_bytes(lines, text, strlen(text), timeout_ms) : -ENOMEM;
}

int lines_receive_bytes(struct lines *lines, void *bytes, size_t count, unsigned timeout_ms)
{
	uint64_t deadline_ns = clock_now_ns() + (uint64_t)timeout_ms * 1000000u;
	size_t done = DP_MIN(lines->used, count); /* what came with the line */
	if (!lines->stream)
		return -EPIPE;
	if (done) {
		memcpy(bytes, lines->text, done);
		lines->used -= done;
		memmove(lines->text, lines->text + done, lines->used);
	}
	while (done < count) {
		ssize_t got = stream_receive(lines->stream, (char *)bytes + done, count - done);
		if (got > 0)
			done += (size_t)got;
		else if (got != -EAGAIN)
			return got < 0 ? (int)got : -EPIPE;
		else if (wait_for(lines, POLLIN, deadline_ns))
			return -ETIMEDOUT;
	}
	return 0;
}

/* A whole line out of what has come: 1, 0 where there is none yet, -EBADMSG. */
static int take_line(struct lines *lines, json_object **object)
{
	char *end = lines->used ? memchr(lines->text, '\n', lines->used) : NULL;
	if (!end)
		return lines->used == LINES_LIMIT_BYTES ? -EBADMSG : 0;
	*end = 0;
	*object = json_tokener_parse(lines->text);
	size_t taken = (size_t)(end + 1 - lines->text);
	lines->used -= taken;
	memmove(lines->text, end + 1, lines->used);
	if (json_object_is_type(*object, json_type_object))
		return 1;
	json_object_put(*object);
	*object = NULL;
	return -EBADMSG;
}

int lines_receive(struct lines *lines, json_object **object, unsigned timeout_ms)
{
	uint64_t deadline_ns = clock_now_ns() + (uint64_t)timeout_ms * 1000000u;
	*object = NULL;
	if (!lines->stream)
		return -EPIPE;
	if (!lines->text && !(lines->text = malloc(LINES_LIMIT_BYTES)))
		return -ENOMEM;
	for (;;) {
		int ret = take_line(lines, object);
		if (ret)
			return ret < 0 ? ret : 0;
		ssize_t got = stream_receive(lines->stream, lines->text + lines->used, LINES_LIMIT_BYTES - lines->used);
		if (got > 0)
			lines->used += (size_t)got;
		else if (got != -EAGAIN)
			return got < 0 ? (int)got : -EPIPE;
		else if (!timeout_ms || wait_for(lines, POLLIN, deadline_ns))
			return -EAGAIN;
	}
}

/* ---- members ---- */

const char *line_text(json_object *object, const char *name)
{
	json_object *value;
	if (!json_object_object_get_ex(object, name, &value) || !json_object_is_type(value, json_type_string))
		return NULL;
	return json_object_get_string(value);
}

int64_t line_number(json_object *object, const char *name)
{
	json_object *value;
	if (!json_object_object_get_ex(object, name, &value) || !json_object_is_type(value, json_type_int))
		return 0;
	return json_object_get_int64(value);
}

bool line_flag(json_object *object, const char *name)
{
	json_object *value;
	return json_object_object_get_ex(object, name, &value) && json_object_is_type(value, json_type_boolean) &&
	       json_object_get_boolean(value);
}

void line_add_text(json_object *object, const char *name, const char *text)
{
	if (text)
		json_object_object_add(object, name, json_object_new_string(text));
}

void line_add_number(json_object *object, const char *name, uint64_t number)
{
	json_object_object_add(object, name, json_object_new_uint64(number));
}

void line_add_flag(json_object *object, const char *name, bool flag)
{
	json_object_object_add(object, name, json_object_new_boolean(flag));
}

json_object *line_op(const char *name)
{
	json_object *object = json_object_new_object();
	line_add_text(object, "op", name);
	return object;
}

json_object *line_event(const char *name)
{
	json_object *object = json_object_new_object();
	line_add_text(object, "event", name);
	return object;
}
