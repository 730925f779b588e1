/* Asks of the destination to the source, over a connection that is made again whenever it breaks. */
#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "base/log.h"
#include "migrate/ferry_in.h"

#define CONNECT_MS 1000
#define REACH_MS 10000

static int converse(struct in *in, const char *word, const char *why, unsigned timeout_ms, json_object **answer)
{
	struct stream *stream;
	struct dp_err err;
	if (!in->asks.stream) {
		int ret = stream_connect(&stream, &in->back, timeout_ms, &err);
		if (ret)
			return dp_fail(&in->err, -ret, "the source's agent cannot be reached: %s", err.text);
		lines_init(&in->asks, stream);
	}
	json_object *line = line_op("ask");
	line_add_text(line, "ask", word);
	line_add_text(line, "id", in->id);
	line_add_text(line, "token", in->token);
	line_add_text(line, "text", why);
	int ret = lines_send(&in->asks, line, timeout_ms);
	if (!ret)
		ret = lines_receive(&in->asks, answer, timeout_ms);
	if (ret) {
		dp_fail_errno(&in->err, ret == -EAGAIN ? ETIMEDOUT : -ret, "the source's agent does not answer");
		lines_done(&in->asks); /* an answer that comes late must not be taken for the next one's */
	}
	return ret;
}

int in_reach(struct in *in)
{
	json_object *answer = NULL;
	int ret = converse(in, "reach", NULL, REACH_MS, &answer);
	const char *word = line_text(answer, "answer");
	if (!ret && (!word || strcmp(word, "here") != 0))
		ret = dp_fail(&in->err, EPROTO, "the agent at %s port %u does not know of this migration: is it another host?", in->back.host,
			      in->back.port);
	json_object_put(answer);
	return ret;
}

int in_ask(struct in *in, enum switch_ask ask, const char *why)
{
	json_object *answer = NULL;
	uint64_t asked_ns = switch_clock_ns();
	int ret = converse(in, switch_ask_name(ask), why, CONNECT_MS, &answer);
	if (ret)
		return ret;
	const char *word = line_text(answer, "answer"), *boot = line_text(answer, "boot");
	int parsed = switch_answer_parse(word);
	if (parsed >= 0)
		switch_destination_answer(&in->place, (enum switch_answer)parsed, asked_ns, switch_clock_ns());
	else if (word && !strcmp(word, "lost") && boot && strcmp(boot, in->boot) != 0)
		switch_destination_lost_source(&in->place, in->whole);
	else
		ret = -EAGAIN; /* its ferry is gone, and nothing is decided yet */
	json_object_put(answer);
	return ret;
}
