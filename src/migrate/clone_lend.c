/* A clone for somebody on another host: this host's part. */
#include <errno.h>
#include <string.h>

#include "base/base.h"
#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "migrate/clone.h"
#include "migrate/ferry.h"

#define ANSWER_MS 5000
#define RESTORE_MS 120000 /* for the other host to have its clone */
#define ARGUMENTS_MOST 32u

struct lending {
	const char *registry, *identity;
	json_object *request;
	struct lines *peer;
	char id[FERRY_ID_BYTES], access[PATH_MAX];
	char *criu[ARGUMENTS_MOST];
	size_t criu_count;
	struct clone_source source;
	struct offer *offer;
	struct offer_facts facts;
	struct dp_err err;
};

static int take_criu_options(struct lending *lending)
{
	json_object *list;
	int ret = 0;
	if (!json_object_object_get_ex(lending->request, "criu", &list) || !json_object_is_type(list, json_type_array))
		return 0;
	for (size_t i = 0; i < json_object_array_length(list) && !ret; i++) {
		const char *option = json_object_get_string(json_object_array_get_idx(list, i));
		if (lending->criu_count == ARGUMENTS_MOST || !option)
			return dp_fail(&lending->err, E2BIG, "too many options for CRIU");
		lending->criu[lending->criu_count++] = (char *)(uintptr_t)option;
		ret = checkpoint_check_option(option, &lending->err);
	}
	return ret;
}

/* The rights of its pool, for the time that it takes to read them: who asked, and nobody else who has a key. */
static int write_access(struct lending *lending)
{
	char text[256];
	snprintf(text, sizeof(text), "%.200s read clone/*\n", lending->identity);
	for (char *at = text; at < text + strcspn(text, "\n") - strlen(" read clone/*"); at++)
		if (*at == ' ' || *at == '\t' || *at == '*' || *at == '[' || *at == '\\')
			*at = '?'; /* of a name with such letters: those that differ only there */
	snprintf(lending->access, sizeof(lending->access), "%s/.agent/clone-%s", lending->registry, lending->id);
	int ret = ferry_make_home(lending->registry, &lending->err);
	if (!ret)
		ret = io_write_file(lending->access, text, strlen(text), 0600);
	return ret ? dp_fail_errno(&lending->err, -ret, "write %s", lending->access) : 0;
}

static int make_offer(struct lending *lending)
{
	char listen[128], name[128];
	if (ferry_listen_text(lending->peer->stream, strcmp(lending->identity, "anonymous") != 0, listen))
		return dp_fail(&lending->err, EIO, "find this host's address on the way to the other");
	snprintf(name, sizeof(name), "clone/%s:offer", lending->id);
	const struct offer_options options = {
		.listen = listen,
		.access_file = lending->access,
		.allow_plaintext = getenv("DISTRI_PROC_ALLOW_PLAINTEXT") != NULL,
		.name = name,
		.registry = lending->registry,
		.verbose = line_flag(lending->request, "verbose"),
		.criu_arguments = lending->criu,
		.criu_argument_count = lending->criu_count,
	};
	int ret = write_access(lending);
	if (!ret)
		ret = clone_offer(&lending->source, &options, &lending->offer, &lending->facts, &lending->err);
	unlink(lending->access);
	return ret;
}

static void note(const struct lending *lending, const char *phase)
{
	json_object *event = line_event("clone");
	line_add_text(event, "id", lending->id);
	line_add_text(event, "phase", phase);
	line_add_number(event, "pid", (uint64_t)lending->source.pid);
	line_add_text(event, "for", lending->identity);
	line_add_text(event, "text", *lending->err.text ? lending->err.text : NULL);
	ferry_note(lending->registry, event);
}

static int tell_offered(struct lending *lending)
{
	json_object *event = line_event("offered");
	line_add_text(event, "uri", lending->facts.uri);
	line_add_number(event, "pid", (uint64_t)lending->source.pid);
	line_add_number(event, "pages", lending->facts.pages);
	line_add_number(event, "stopped_ns", lending->facts.stopped_ns);
	line_add_text(event, "root", lending->source.contained ? lending->source.root : NULL);
	line_add_flag(event, "own_network", lending->source.own_network);
	int ret = lines_send(lending->peer, event, ANSWER_MS);
	return ret ? dp_fail_errno(&lending->err, -ret, "tell who asked") : 0;
}

static int await_detach(struct lending *lending)
{
	json_object *line;
	int ret = lines_receive(lending->peer, &line, RESTORE_MS);
	const char *op = ret ? NULL : line_text(line, "op");
	bool detach = op && !strcmp(op, "detach");
	json_object_put(line);
	if (!detach)
		return dp_fail(&lending->err, ECONNRESET, "who asked has gone");
	ret = offer_detach(lending->offer, &lending->err);
	if (!ret)
		ret = lines_send(lending->peer, line_event("detached"), ANSWER_MS);
	return ret;
}

int clone_lend(const char *registry, json_object *request, struct lines *peer, const char *identity)
{
	struct lending lending = { .registry = registry, .identity = identity, .request = request, .peer = peer };
	const char *what = line_text(request, "source");
	pid_t pid = 0;
	ferry_make_id(lending.id);
	int ret = what ? clone_source_find(registry, what, &pid, &lending.err) : dp_fail(&lending.err, EINVAL, "a clone of what?");
	if (!ret)
		ret = clone_source_look(pid, line_flag(request, "share_files"), &lending.source, &lending.err);
	if (!ret)
		ret = take_criu_options(&lending);
	if (!ret)
		ret = make_offer(&lending);
	if (!ret)
		ret = tell_offered(&lending);
	if (!ret)
		note(&lending, "offered");
	if (!ret)
		ret = await_detach(&lending);
	note(&lending, ret ? "failed" : "made");
	if (ret) {
		json_object *event = line_event("failed");
		line_add_number(event, "code", (uint64_t)-ret);
		line_add_text(event, "text", lending.err.text);
		lines_send(peer, event, ANSWER_MS);
	}
	offer_free(lending.offer);
	return ret ? 1 : 0;
}
