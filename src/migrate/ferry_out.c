/* The source's ferry: freezes, grants, releases or lets go. See ferry.h and switch.h. */
#include "migrate/ferry_out.h"
#include "migrate/ferry_container.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "base/base.h"
#include "base/log.h"
#include "migrate/record.h"

#define SEND_MS 2000
#define SHOW_NS UINT64_C(100000000) /* ten times a second */
#define TURN_MS 50

/* ---- the client ---- */

void out_tell(struct out *out, json_object *event)
{
	line_add_text(event, "id", out->id);
	/* Who does not read does not hold a migration up. */
	if (out->client_gone) {
		json_object_put(event);
	} else if (lines_send(out->client, event, SEND_MS)) {
		out->client_gone = true;
	}
}

void out_phase(struct out *out, const char *phase)
{
	json_object *event = line_event("phase"), *note = line_event("migration");
	line_add_text(event, "phase", phase);
	line_add_number(event, "elapsed_ns", clock_now_ns() - out->begun_ns);
	out_tell(out, event);
	line_add_text(note, "id", out->id);
	line_add_text(note, "side", "source");
	line_add_text(note, "phase", phase);
	line_add_number(note, "pid", (uint64_t)out->pid);
	line_add_text(note, "to", out->to.host);
	line_add_text(note, "text", *out->err.text ? out->err.text : NULL);
	ferry_note(out->root, note);
}

static void show(struct out *out)
{
	struct offer_progress progress;
	uint64_t now = clock_now_ns();
	if (now - out->shown_ns < SHOW_NS || !out->started || out->client_gone)
		return;
	out->shown_ns = now;
	if (offer_progress(out->offer, &progress, NULL))
		return;
	json_object *event = line_event("progress");
	line_add_number(event, "pages", out->facts.pages);
	line_add_number(event, "pages_left", progress.pages_left);
	line_add_number(event, "elapsed_ns", now - out->begun_ns);
	out_tell(out, event);
}

/* ---- the decision ---- */

static int record(struct out *out, const struct switch_source *decision)
{
	struct switch_record record = { decision->state, decision->lease_ns, decision->margin_ns, true };
	return switch_record_write(out->record, &record, &out->err);
}

static void address_comes_back(struct out *out)
{
	struct dp_err err;
	if (!out->address_away)
		return;
	if (address_add(&out->address, &err) || address_announce(&out->address, -1, &err))
		log_error("%s", err.text);
	else
		out->address_away = false;
}

/* What is final is done: RELEASED, RESUMED. The record is written, an answer may have gone out. */
static void carry_out(struct out *out)
{
	struct dp_err err = { "" };
	if (out->carried_out || (out->decision.state != SWITCH_RELEASED && out->decision.state != SWITCH_RESUMED))
		return;
	out->carried_out = true;
	if (out->decision.state == SWITCH_RELEASED) {
		out->released_ns = clock_now_ns();
		int ret = offer_release(out->offer, false, &err);
		if (ret)
			log_error("the destination has the process, but its source could not be ended: %s", err.text);
		criu_locks_drop(out->facts.locks);
		return;
	}
	/* No answer is waited for: it may not run by the switch's rules, whatever it hears. */
	lines_send(&out->destination, line_op("abort"), SEND_MS);
	address_comes_back(out);
	int ret = offer_resume(out->offer, &err);
	if (ret) {
		log_error("resume: %s", err.text);
		snprintf(out->err.text + strlen(out->err.text), sizeof(out->err.text) - strlen(out->err.text), "; and: %.300s",
			 err.text);
	}
}

/* The next state counts when it is recorded. -errno: it is as it was. */
static int take(struct out *out, const struct switch_source *next)
{
	int ret = next->state == out->decision.state ? 0 : record(out, next);
	/* A resumption that cannot be written down is carried out all the same: nobody renews from here on, and that is all that
	 * the record would say. */
	if (!ret || next->state == SWITCH_RESUMED)
		out->decision = *next;
	return ret;
}

static void resume(struct out *out, int code, const char *why)
{
	struct switch_source next = out->decision;
	if (switch_source_give_up(&next) != SWITCH_RESUMED || out->decision.state == SWITCH_RESUMED)
		return;
	out->code = code;
	if (why)
		dp_fail(&out->err, code, "%s", why);
	take(out, &next);
	carry_out(out);
}

static void too_late(struct out *out)
{
	const struct switch_source *decision = &out->decision;
	uint64_t waited_ns = decision->state == SWITCH_FROZEN ? SWITCH_PREPARE_NS : decision->lease_ns + decision->margin_ns;
	out->code = ETIMEDOUT;
	dp_fail(&out->err, ETIMEDOUT, "nothing was heard from the destination for %llu ms: the process runs on here",
		(unsigned long long)(waited_ns / 1000000u));
}

static void tick(struct out *out)
{
	struct switch_source next = out->decision;
	if (switch_source_tick(&next, switch_clock_ns()) == out->decision.state)
		return;
	too_late(out);
	take(out, &next);
	carry_out(out);
}

/* ---- asks ---- */

/* F5, before the first grant. Where it cannot be confirmed the tree is the source's. */
static void confirm(struct out *out)
{
	struct dp_err err;
	if (out->confirmed || out->decision.state != SWITCH_FROZEN)
		return;
	int ret = offer_confirm(out->offer, &err);
	out->confirmed_ns = clock_now_ns();
	out->confirmed = ret == 0;
	if (ret)
		resume(out, -ret, err.text);
}

static json_object *answer_ask(struct out *out, json_object *line)
{
	json_object *answer = json_object_new_object();
	const char *word = line_text(line, "ask"), *why = line_text(line, "text");
	int ask = switch_ask_parse(word);
	if (ask < 0 || !out->offer) {
		line_add_text(answer, "answer", "wait");
		return answer;
	}
	if (ask == ASK_GRANT)
		confirm(out);
	struct switch_source next = out->decision;
	enum switch_state before = out->decision.state;
	enum switch_answer said = switch_source_ask(&next, (enum switch_ask)ask, switch_clock_ns());
	if (ask == ASK_DEAD && before != next.state) {
		out->code = ECHILD;
		dp_fail(&out->err, ECHILD, "the destination could not go on (%s): the process runs on here", why ? why : "no reason");
	}
	if (next.state == SWITCH_RESUMED && before != next.state && ask != ASK_DEAD)
		too_late(out);
	if (take(out, &next)) {
		log_error("%s", out->err.text);
		line_add_text(answer, "answer", "wait");
		return answer;
	}
	if (before == SWITCH_FROZEN && next.state == SWITCH_GRANTED) {
		out->granted_ns = clock_now_ns();
		out->address_away = out->address_moves; /* from here on it is the destination's */
	}
	line_add_text(answer, "answer", switch_answer_name(said));
	return answer;
}

static void serve_asker(struct out *out, struct lines *asker)
{
	for (;;) {
		json_object *line;
		int ret = lines_receive(asker, &line, 0);
		if (ret == -EAGAIN)
			return;
		if (!ret)
			ret = lines_send(asker, answer_ask(out, line), SEND_MS);
		json_object_put(line);
		if (ret) {
			lines_done(asker);
			return;
		}
		carry_out(out);
	}
}

static void accept_asker(struct out *out)
{
	int error;
	struct stream *stream = listener_accept(&out->asks, &error);
	if (!stream)
		return;
	for (unsigned i = 0; i < OUT_ASKERS; i++)
		if (!out->asker[i].stream) {
			lines_init(&out->asker[i], stream);
			return;
		}
	stream_close(stream);
}

/* ---- the destination's news ---- */

static void take_news(struct out *out, json_object *news)
{
	const char *event = line_text(news, "event"), *text = line_text(news, "text");
	if (!event)
		return;
	if (!strcmp(event, "started")) {
		out->started_ns = clock_now_ns();
		out->started = json_object_get(news);
		forward_go(&out->forwarder, out->facts.frozen_at_ns);
		out_phase(out, "started");
	} else if (!strcmp(event, "whole")) {
		out->whole_ns = clock_now_ns();
		out_phase(out, "whole");
	} else if (!strcmp(event, "failed")) {
		resume(out, (int)DP_MIN(DP_MAX(line_number(news, "code"), 1), 4095), text ? text : "the destination failed");
	}
}

static void hear_destination(struct out *out)
{
	while (out->destination.stream) {
		json_object *news;
		int ret = lines_receive(&out->destination, &news, 0);
		if (ret == -EAGAIN)
			return;
		if (ret) {
			lines_done(&out->destination);
			/* Before a grant that was it; after it the asks count, which have a connection of their own. */
			resume(out, ECONNRESET, "the destination's agent is gone: the process runs on here");
			return;
		}
		take_news(out, news);
		json_object_put(news);
	}
}

/* ---- the run ---- */

static void turn(struct out *out)
{
	struct pollfd polls[3 + OUT_ASKERS] = {
		{ .fd = lines_fd(&out->destination), .events = POLLIN },
		{ .fd = out->asks.fd, .events = POLLIN },
		{ .fd = offer_fd(out->offer), .events = POLLIN },
	};
	for (unsigned i = 0; i < OUT_ASKERS; i++)
		polls[3 + i] = (struct pollfd){ .fd = lines_fd(&out->asker[i]), .events = POLLIN };
	poll(polls, ARRAY_LENGTH(polls), TURN_MS);
	for (unsigned i = 0; i < OUT_ASKERS; i++)
		if (polls[3 + i].revents)
			serve_asker(out, &out->asker[i]);
	if (polls[1].revents)
		accept_asker(out);
	if (polls[0].revents)
		hear_destination(out);
	if (polls[2].revents && !out->carried_out) {
		/* CRIU was killed: the tree runs already, or is dead. Whoever asks from now on hears that it is not theirs. */
		struct switch_source next = out->decision;
		next.state = SWITCH_RESUMED;
		out->code = ECHILD;
		if (offer_wait(out->offer, &out->err) == 0)
			dp_fail(&out->err, ECHILD, "the offer ended by itself");
		take(out, &next);
		carry_out(out);
	}
	tick(out);
	show(out);
}

int ferry_listen_text(const struct stream *stream, bool tls, char text[static 128])
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	char host[64];
	if (getsockname(stream->fd, (struct sockaddr *)&address, &length) ||
	    getnameinfo((struct sockaddr *)&address, length, host, sizeof(host), NULL, 0, NI_NUMERICHOST))
		return -EIO;
	snprintf(text, 128, strchr(host, ':') ? "%s://[%s]:0" : "%s://%s:0", tls ? "dps" : "tcp", host);
	return 0;
}

/* A round went ahead, while the tree runs. */
static void show_round(void *context, const struct offer_round *round)
{
	struct out *out = context;
	json_object *event = line_event("round");
	line_add_number(event, "round", round->round);
	line_add_number(event, "pages", round->pages);
	if (round->pages_left != OFFER_NOT_KNOWN)
		line_add_number(event, "pages_left", round->pages_left);
	line_add_number(event, "elapsed_ns", clock_now_ns() - out->begun_ns);
	out_tell(out, event);
}

static const char *ahead_pool(const struct out *out)
{
	const char *pool = out_pool(out);
	return !out_goes_ahead(out) ? NULL : pool ? pool : out->landing;
}

static int freeze(struct out *out)
{
	char listen[128], name[128];
	if (ferry_listen_text(out->destination.stream, out->to.tls, listen))
		return dp_fail(&out->err, EIO, "find this host's address on the way to %s", out->to.host);
	snprintf(name, sizeof(name), "migration/%s:offer", out->id);
	/* Rules within CRIU; the default runs a program for each connection, while the tree stands still. */
	static char *const arguments[] = { "--network-lock", "nftables" };
	bool connections = line_flag(out->request, "tcp_established");
	struct offer_options options = {
		.pid = out->pid,
		.container = out->container ? &out->container->offered : NULL,
		.tcp_established = connections,
		.criu_arguments = arguments,
		.criu_argument_count = connections && !out->container ? ARRAY_LENGTH(arguments) : 0,
		.listen = listen,
		.allow_plaintext = getenv("DISTRI_PROC_ALLOW_PLAINTEXT") != NULL,
		.name = name,
		.registry = out->root,
		.record = out->record,
		.confirm_later = true,
		.ahead_pool = ahead_pool(out),
		.rest_stays = out_rest_stays(out),
		.ahead_limits = { .rounds = (unsigned)line_number(out->request, "rounds"),
				  .limit_ns = (uint64_t)line_number(out->request, "precopy_limit_ns"),
				  .rate_bytes = (uint64_t)line_number(out->request, "migrate_rate") },
		.kept_pool = *out->kept_pool ? out->kept_pool : NULL,
		.on_round = show_round,
		.context = out,
		.verbose = line_flag(out->request, "verbose"),
	};
	out_phase(out, options.ahead_pool || options.kept_pool ? "sending ahead" : "freezing");
	if (out->address_moves)
		forward_start(&out->forwarder, &out->address);
	int ret = offer_make(&out->offer, &options, &out->facts, &out->err);
	out->ready_ns = clock_now_ns();
	if (ret)
		return ret;
	switch_source_init(&out->decision, out->decision.lease_ns, out->decision.margin_ns, switch_clock_ns());
	char path[PATH_MAX]; /* for who comes after us; without it a lock stays behind */
	if (out->facts.locks[0])
		io_write_file(ferry_path(out->root, "out", out->id, "locks", path), out->facts.locks, strlen(out->facts.locks), 0600);
	return 0;
}

/* A file tells whoever comes after us that the address has to come back. */
static int take_address_away(struct out *out)
{
	char path[PATH_MAX], text[64];
	if (!out->address_moves)
		return 0;
	address_text(&out->address, text, sizeof(text));
	int ret = io_write_file(ferry_path(out->root, "out", out->id, "address", path), text, strlen(text), 0600);
	if (ret)
		return dp_fail_errno(&out->err, -ret, "write %s", path);
	ret = address_remove(&out->address, &out->err);
	out->address_away = !ret;
	return ret;
}

static int carry_over(struct out *out)
{
	int ret = container_out_copy(out, true);
	if (!ret)
		ret = take_address_away(out);
	if (!ret) {
		json_object *line = line_op("restore");
		line_add_text(line, "uri", out->facts.uri);
		line_add_number(line, "pool_instance", out->facts.pool_instance);
		ret = lines_send(&out->destination, line, SEND_MS);
		if (ret)
			dp_fail_errno(&out->err, -ret, "tell %s what to restore", out->to.host);
	}
	if (ret)
		resume(out, -ret, NULL);
	else
		out_phase(out, "offered");
	while (!out->carried_out)
		turn(out);
	/* The one that heard of its release may ask again where the answer was lost. */
	uint64_t until_ns = clock_now_ns() + UINT64_C(1000000000);
	while (out->decision.state == SWITCH_RELEASED && out->destination.stream && clock_now_ns() < until_ns)
		turn(out);
	return out->decision.state == SWITCH_RELEASED ? 0 : -(out->code ? out->code : EIO);
}

/* ---- the end ---- */

static void add_times(const struct out *out, json_object *event)
{
	const struct { const char *name; uint64_t from, to; } times[] = {
		{ "prepare_ns", out->begun_ns, out->prepared_ns },
		{ "freeze_ns", out->prepared_ns, out->facts.frozen_at_ns },
		{ "skeleton_ns", out->facts.frozen_at_ns, out->facts.frozen_at_ns + out->facts.dumped_ns },
		{ "ready_ns", out->facts.frozen_at_ns, out->facts.frozen_at_ns + out->facts.ready_ns },
		{ "confirmed_ns", out->facts.frozen_at_ns, out->confirmed_ns },
		{ "granted_ns", out->facts.frozen_at_ns, out->granted_ns },
		{ "gap_ns", out->facts.frozen_at_ns, out->started_ns }, /* from the last instruction here to the first there */
		{ "pages_ns", out->started_ns, out->whole_ns },
		{ "total_ns", out->begun_ns, clock_now_ns() },
	};
	for (size_t i = 0; i < ARRAY_LENGTH(times); i++)
		if (times[i].from && times[i].to >= times[i].from)
			line_add_number(event, times[i].name, times[i].to - times[i].from);
}

static int finish(struct out *out, int ret)
{
	json_object *event = line_event(ret ? "failed" : "done");
	if (ret) {
		line_add_number(event, "code", (uint64_t)-ret);
		line_add_text(event, "text", out->err.text);
	} else {
		line_add_number(event, "bytes", out->facts.pages * PAGE_BYTES);
		line_add_number(event, "skeleton_bytes", out->facts.skeleton_bytes);
		line_add_number(event, "tasks", out->facts.tasks);
		line_add_number(event, "known_tasks", out->facts.known_tasks);
		if (out_goes_ahead(out) || *out->kept_pool) {
			line_add_number(event, "ahead_bytes", out->facts.ahead.ahead_pages * PAGE_BYTES);
			line_add_number(event, "frozen_bytes", out->facts.ahead.frozen_pages * PAGE_BYTES);
			line_add_number(event, "left_bytes", out->facts.left_pages * PAGE_BYTES);
			line_add_number(event, "rounds", out->facts.ahead.rounds);
		}
		line_add_text(event, "instance", line_text(out->started, "instance"));
		line_add_number(event, "pid", (uint64_t)line_number(out->started, "pid"));
		json_object_object_add(event, "restore", json_object_get(out->started));
	}
	line_add_text(event, "to", out->to.host);
	add_times(out, event);
	container_out_done(out, event, !ret);
	out_phase(out, ret ? "failed" : "released");
	out_tell(out, event);
	forward_end(&out->forwarder);
	offer_free(out->offer);
	for (unsigned i = 0; i < OUT_ASKERS; i++)
		lines_done(&out->asker[i]);
	lines_done(&out->destination);
	listener_close(&out->asks);
	json_object_put(out->started);
	json_object_put(out->kept_pools);
	return ret ? 1 : 0;
}

/* Nobody has to see to this one any more; what was decided can be read for a day. Where nothing was decided, there is nothing to
 * read. */
static void leave(struct out *out)
{
	char path[PATH_MAX];
	if (out->lock_fd < 0)
		return;
	if (access(out->record, F_OK) == 0)
		io_write_file(ferry_path(out->root, "out", out->id, "over", path), "", 0, 0600);
	else
		remove_tree(ferry_path(out->root, "out", out->id, "", path));
	close(out->lock_fd);
}

int ferry_out(const char *root, json_object *request, struct lines *client, const struct endpoint *listen)
{
	struct out out = {
		.root = root, .request = request, .client = client, .lock_fd = -1, .asks.fd = -1, .begun_ns = clock_now_ns(),
	};
	uint64_t lease_ns = (uint64_t)line_number(request, "lease_ns");
	prctl(PR_SET_NAME, "distri-ferry");
	out.decision.lease_ns = lease_ns ? DP_MAX(lease_ns, SWITCH_LEASE_LEAST_NS) : SWITCH_LEASE_NS;
	out.decision.margin_ns = DP_MAX(out.decision.lease_ns * SWITCH_MARGIN_NS / SWITCH_LEASE_NS, SWITCH_MARGIN_LEAST_NS);
	ferry_make_id(out.id);
	ferry_make_id(out.token);
	int ret = out_prepare(&out, listen);
	if (!ret)
		ret = freeze(&out);
	if (!ret)
		ret = carry_over(&out);
	if (ret)
		dp_err_doing(&out.err, "migrate process %d", (int)out.pid);
	int code = finish(&out, ret);
	leave(&out);
	return code;
}

/* ---- a ferry that died ---- */

int ferry_recover_out(const char *root, const char *id)
{
	char path[PATH_MAX];
	struct switch_record record;
	cleanup_free char *text = NULL;
	cleanup_fd int lock_fd = ferry_claim(root, "out", id, NULL);
	if (lock_fd < 0)
		return 0;
	prctl(PR_SET_NAME, "distri-ferry");
	ferry_path(root, "out", id, "record", path);
	/* The offerer decides now, or the hook (switch_heir); what it decides is waited for here. */
	int ret;
	while ((ret = switch_record_read(path, &record, NULL)) == 0 && record.state == SWITCH_GRANTED && record.this_boot)
		poll(NULL, 0, TURN_MS);
	struct address address;
	struct dp_err err;
	cleanup_free char *locks = NULL;
	if (!ret && record.state == SWITCH_RELEASED &&
	    io_read_file(ferry_path(root, "out", id, "locks", path), &locks, CRIU_LOCKS_BYTES) > 0)
		criu_locks_drop(locks);
	if (!ret && record.state == SWITCH_RELEASED)
		container_out_forget(root, id);
	bool back = !ret && record.state != SWITCH_RELEASED && record.this_boot;
	if (back && io_read_file(ferry_path(root, "out", id, "address", path), &text, 256) > 0 && !address_parse(&address, text, &err) &&
	    (address_add(&address, &err) || address_announce(&address, -1, &err)))
		log_error("%s", err.text);
	json_object *note = line_event("migration");
	line_add_text(note, "id", id);
	line_add_text(note, "side", "source");
	line_add_text(note, "phase", back ? "recovered: resumed" : "recovered: released");
	ferry_note(root, note);
	if (!ret && record.state == SWITCH_FROZEN)
		remove_tree(ferry_path(root, "out", id, "", path));
	else
		io_write_file(ferry_path(root, "out", id, "over", path), "", 0, 0600);
	return 0;
}
