/* lines: JSON objects, one a line, over a stream; how agents, ferries and command lines speak with each other.
 *
 * A line is at most LINES_LIMIT_BYTES long; a longer one, or one that is no JSON object, ends the conversation (-EBADMSG).
 * Thread rule: one thread per object. Calls block up to their time-out. */
#ifndef DP_MIGRATE_LINES_H
#define DP_MIGRATE_LINES_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "transport/stream.h"

#define LINES_LIMIT_BYTES (1u << 20)

struct lines {
	struct stream *stream; /* owned; NULL: not connected */
	char *text;
	size_t used;
};

/* Takes the stream. */
void lines_init(struct lines *lines, struct stream *stream);
void lines_done(struct lines *lines);
static inline int lines_fd(const struct lines *lines)
{
	return lines->stream ? lines->stream->fd : -1;
}
/* Takes the object. -ETIMEDOUT, -EPIPE, -ECONNRESET, ... */
int lines_send(struct lines *lines, json_object *object, unsigned timeout_ms);
/* The next object, fresh, in *object. -EAGAIN where none has come within timeout_ms (0: looks only), -EPIPE at the end,
 * -EBADMSG. */
int lines_receive(struct lines *lines, json_object **object, unsigned timeout_ms);

/* Bytes that follow a line, as many as it said. Errors as above, -EPIPE also for an end in the middle. */
int lines_send_bytes(struct lines *lines, const void *bytes, size_t count, unsigned timeout_ms);
int lines_receive_bytes(struct lines *lines, void *bytes, size_t count, unsigned timeout_ms);

/* Members of an object from outside; the default where they are not there or of another kind. Strings are borrowed. */
const char *line_text(json_object *object, const char *name);
int64_t line_number(json_object *object, const char *name);
bool line_flag(json_object *object, const char *name);
/* Adds; text NULL adds nothing. */
void line_add_text(json_object *object, const char *name, const char *text);
void line_add_number(json_object *object, const char *name, uint64_t number);
void line_add_flag(json_object *object, const char *name, bool flag);
/* {"op": name} and {"event": name}. */
json_object *line_op(const char *name);
json_object *line_event(const char *name);

#endif
