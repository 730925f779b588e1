/* The destination's ferry: waits at CRIU's gate for the grant, renews, asks for the release. See ferry.h and switch.h. */
#include "migrate/ferry_container.h"
#include "migrate/ferry_in.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "base/base.h"
#include "base/log.h"
#include "instance/process.h"
#include "instance/stats.h"

#define SEND_MS 2000
#define TURN_MS 20
#define AHEAD_NS UINT64_C(86400000000000)
#define RETRY_NS UINT64_C(100000000)
#define RESTORER_MS 20000 /* for it to leave nothing behind */
#define ADOPT_MS 20000 /* for a tree whose ferry died while it was restored */

static void tell(struct in *in, json_object *event)
{
	if (!in->source.stream)
		json_object_put(event);
	else if (lines_send(&in->source, event, SEND_MS))
		lines_done(&in->source);
}

static void note(struct in *in, const char *phase)
{
	json_object *event = line_event("migration");
	line_add_text(event, "id", in->id);
	line_add_text(event, "side", "destination");
	line_add_text(event, "phase", phase);
	line_add_text(event, "instance", in->runs ? in->instance.id : NULL);
	line_add_text(event, "text", *in->err.text ? in->err.text : NULL);
	ferry_note(in->root, event);
}

static int tell_failed(struct in *in, int ret)
{
	json_object *event = line_event("failed");
	line_add_number(event, "code", (uint64_t)-ret);
	line_add_text(event, "text", in->err.text);
	tell(in, event);
	return ret;
}

/* ---- the place, carried out ---- */

/* Its supervisor ends what there is of a tree. That of a container sees to its runtime first, which cleans up. */
static void end_restorer(struct in *in)
{
	if (in->container) {
		dp_close_fd(&in->order_fd);
		in->order_fd = -1;
	} else {
		kill(in->restorer, SIGKILL);
	}
}

static void reap_restorer(struct in *in)
{
	end_restorer(in);
	cleanup_fd int pidfd = pidfd_open(in->restorer, 0);
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };
	if (pidfd < 0 || poll(&ended, 1, RESTORER_MS) <= 0)
		kill(in->restorer, SIGKILL);
	waitpid(in->restorer, NULL, 0);
}

static void kill_tree(struct in *in)
{
	if (in->runs && !in->ended && in->init_pidfd >= 0)
		pidfd_send_signal(in->init_pidfd, SIGKILL, NULL, 0);
	/* Once the gate is open the tree may run at any moment: then it is killed when we hear of it. */
	if (!in->runs && !in->ended && in->restorer > 0 && !in->gate_opened)
		end_restorer(in);
}

static void answer_gate(struct in *in, bool go)
{
	if (!in->at_gate)
		return;
	in->gate_opened = go;
	struct iovec part = { (void *)(uintptr_t)(go ? "y" : "n"), 1 };
	stream_sendv(in->at_gate, &part, 1);
	stream_close(in->at_gate);
	in->at_gate = NULL;
	if (go && in->address_moves) {
		/* While CRIU goes on: this waits for all processors, and nothing answers for the sockets meanwhile. */
		struct dp_err err;
		address_open(&in->address);
		in->closed = false;
		if (address_announce(&in->address, in->announcer, &err))
			log_warn("%s", err.text);
	}
}

/* FY1: the page is written before the gate is opened. */
static void follow_place(struct in *in)
{
	struct switch_destination *place = &in->place;
	if (place->place == PLACE_FREE)
		atomic_store(&in->lease->until_ns, LEASE_FOR_EVER);
	else if (place->place != PLACE_DEAD && place->granted && place->until_ns > atomic_load(&in->lease->until_ns))
		atomic_store(&in->lease->until_ns, place->until_ns);
	if (place->place == PLACE_RUNNING)
		answer_gate(in, true);
	if (place->place == PLACE_DEAD) {
		answer_gate(in, false);
		kill_tree(in);
	}
}

/* ---- what the tree does ---- */

/* Whose end is the tree's: its init, or of a container, whose watcher may be followed by another, its first process. */
static int open_end(const struct in *in)
{
	const struct instance_process *process = in->container ? &in->instance.root : &in->instance.init;
	return process_open(process->pid, process->start_time);
}

static void tree_runs(struct in *in, const struct in_report *report)
{
	json_object *event = line_event("started");
	in->instance = report->instance;
	in->init_pidfd = open_end(in);
	in->runs = true;
	in->ended = in->init_pidfd < 0;
	line_add_text(event, "instance", in->instance.id);
	line_add_number(event, "pid", (uint64_t)in->instance.root.pid);
	line_add_number(event, "opened_ns", report->opened_ns);
	line_add_number(event, "fetched_ns", report->fetched_ns);
	line_add_number(event, "checked_ns", report->checked_ns);
	line_add_number(event, "criu_ns", report->criu_ns);
	line_add_number(event, "restore_ns", report->restore_ns);
	tell(in, event);
	note(in, "started");
	follow_place(in); /* it may have to go already */
}

/* How a tree ended says whose part it is to go on: that of a process that ended as processes do is nobody's. */
static void tree_ended(struct in *in, const struct in_report *report)
{
	bool ours = report->err.text[0] || report->code == 128 + SIGKILL;
	in->ended = true;
	in->by_itself = !ours;
	dp_fail(&in->err, ECHILD, "%s", report->err.text[0] ? report->err.text : ours ? "killed" : "it ended by itself");
}

static void take_report(struct in *in)
{
	struct in_report report;
	int ret = io_read_full(in->report_fd, &report, sizeof(report));
	if (ret) { /* killed; the tree may go on, and its init tells of its end */
		dp_close_fd(&in->report_fd);
		in->report_fd = -1;
		if (!in->runs) {
			in->ended = true;
			dp_fail(&in->err, ECHILD, "the process that restored was killed");
		}
	} else if (report.kind == IN_RUNS) {
		tree_runs(in, &report);
	} else if (report.kind == IN_FAILED) {
		in->ended = true;
		in->err = report.err;
		tell_failed(in, -DP_MAX(report.code, 1));
	} else {
		tree_ended(in, &report);
	}
}

static void look_at_tree(struct in *in)
{
	char path[PATH_MAX];
	if (!in->runs || in->ended)
		return;
	struct pollfd init = { .fd = in->init_pidfd, .events = POLLIN };
	if (poll(&init, 1, 0) > 0 && in->report_fd < 0) {
		in->ended = true; /* nobody can say how */
		dp_fail(&in->err, ECHILD, "the tree ended");
	}
	/* S5. */
	if (!in->whole && (in->in_pool || stats_pager_left(instance_path(&in->instance, "stats", path, sizeof(path))))) {
		in->whole = true;
		in->next_ask_ns = 0;
		tell(in, line_event("whole"));
	}
}

static void look_at_landing(struct in *in)
{
	if (in->ended || in->place.place == PLACE_FREE || !in_lost_landing(in))
		return;
	dp_fail(&in->err, ECHILD, "the process with the pages that came ahead is gone");
	if (in->runs)
		kill_tree(in);
	else if (in->restorer > 0)
		end_restorer(in);
	else
		in->ended = true;
}

/* ---- asks ---- */

static bool wants_to_ask(const struct in *in, enum switch_ask *ask)
{
	if (in->place.place == PLACE_FREE || in->place.place == PLACE_DEAD)
		return false;
	if (in->ended)
		*ask = in->place.granted && (in->whole || in->by_itself) ? ASK_RELEASE : ASK_DEAD;
	else if (in->at_gate)
		*ask = ASK_GRANT;
	else if (in->whole)
		*ask = ASK_RELEASE;
	else
		*ask = ASK_RENEW;
	return in->ended || in->at_gate || in->place.granted;
}

static void ask_source(struct in *in)
{
	enum switch_ask ask;
	uint64_t now_ns = switch_clock_ns();
	if (!wants_to_ask(in, &ask) || now_ns < in->next_ask_ns)
		return;
	struct dp_err why = in->err;
	int ret = in_ask(in, ask, in->ended ? why.text : NULL);
	/* What was last asked is asked again soon where there was no answer, and where one is all that is waited for. */
	in->next_ask_ns = ret || ask != ASK_RENEW ? now_ns + DP_MIN(RETRY_NS, in->place.lease_ns / 5) :
						    now_ns + in->place.lease_ns / 5;
	if (ret && !in->ended)
		log_debug("%s", in->err.text);
	if (in->ended) {
		in->err = why;
		in->give_up_ns = in->give_up_ns ? in->give_up_ns : now_ns + 3 * in->place.lease_ns;
		if (now_ns >= in->give_up_ns)
			switch_destination_dead(&in->place);
	}
	follow_place(in);
}

/* ---- the loop ---- */

static void accept_gate(struct in *in)
{
	int error;
	struct stream *stream = listener_accept(&in->gate, &error);
	if (!stream || in->at_gate) {
		stream_close(stream);
		return;
	}
	in->at_gate = stream;
	in->next_ask_ns = 0;
}

static void hear_source(struct in *in)
{
	while (in->source.stream) {
		json_object *line;
		int ret = lines_receive(&in->source, &line, 0);
		if (ret == -EAGAIN)
			return;
		const char *op = ret ? NULL : line_text(line, "op");
		bool aborted = op && !strcmp(op, "abort");
		json_object_put(line);
		/* Without a grant the source has given up, or will. With one, the asks tell. */
		if (ret)
			lines_done(&in->source);
		if ((ret || aborted) && !in->place.granted && !in->ended) {
			dp_fail(&in->err, ECONNRESET, aborted ? "the source ended the migration" : "the source's ferry is gone");
			switch_destination_dead(&in->place);
			follow_place(in);
		}
	}
}

/* Over: the switch is final, and nothing is left that ought not to be. */
static bool is_over(const struct in *in)
{
	if (in->place.place == PLACE_FREE)
		return true;
	return in->place.place == PLACE_DEAD && (in->ended || (!in->runs && in->restorer <= 0));
}

static void loop(struct in *in)
{
	while (!is_over(in)) {
		struct pollfd polls[] = {
			{ .fd = lines_fd(&in->source), .events = POLLIN },
			{ .fd = in->at_gate ? -1 : in->gate.fd, .events = POLLIN },
			{ .fd = in->report_fd, .events = POLLIN },
		};
		poll(polls, ARRAY_LENGTH(polls), TURN_MS);
		if (polls[1].revents)
			accept_gate(in);
		if (polls[2].revents)
			take_report(in);
		look_at_tree(in);
		look_at_landing(in);
		ask_source(in);
		if (polls[0].revents)
			hear_source(in);
		switch_destination_tick(&in->place, switch_clock_ns()); /* init sees to it by itself */
	}
}

/* ---- begin and end ---- */

static void finish(struct in *in)
{
	char path[PATH_MAX];
	bool here = in->place.place == PLACE_FREE;
	note(in, here ? "released" : "failed");
	if (here)
		in_fence(in);
	if (in->closed)
		address_open(&in->address);
	if (!here && in->address_here && address_remove(&in->address, &in->err))
		log_error("%s", in->err.text);
	stream_close(in->at_gate);
	dp_close_fd(&in->announcer);
	lines_done(&in->asks);
	listener_close(&in->gate);
	if (in->restorer > 0 && !in->runs)
		reap_restorer(in);
	container_in_done(in, here);
	landing_end(&in->landing);
	if (in->lock_fd >= 0)
		remove_tree(ferry_path(in->root, "in", in->id, "", path));
	dp_close_fd(&in->lock_fd);
	dp_close_fd(&in->order_fd);
	dp_close_fd(&in->report_fd);
}

/* The line that says what to restore; until it comes the source may give up or go. */
static int wait_for_order(struct in *in, json_object **order)
{
	uint64_t wait_ns = line_flag(in->prepare, "ahead") ? AHEAD_NS : SWITCH_PREPARE_NS; /* it runs meanwhile */
	int ret;
	/* a root filesystem comes before, and again when its container is frozen */
	while (!(ret = lines_receive(&in->source, order, (unsigned)(wait_ns / 1000000u))) && tree_receive_is(*order)) {
		ret = in->container ? tree_receive(&in->container->receiver, *order, &in->source, &in->err) : -EBADMSG;
		json_object_put(*order);
		*order = NULL;
		if (ret)
			return ret;
	}
	const char *op = ret ? NULL : line_text(*order, "op");
	if (ret)
		return dp_fail_errno(&in->err, ret == -EAGAIN ? ETIMEDOUT : -ret, "the source's ferry is gone");
	if (!op || strcmp(op, "restore") != 0 || !line_text(*order, "uri"))
		return dp_fail(&in->err, ECANCELED, "the source ended the migration");
	return 0;
}

static int carry_over(struct in *in)
{
	json_object *order = NULL;
	char local[1400];
	const char *from = NULL;
	int ret = wait_for_order(in, &order);
	if (!ret && in->address_moves) {
		ret = address_add(&in->address, &in->err);
		in->address_here = !ret;
	}
	if (!ret)
		ret = in_land(in, line_text(order, "uri"), local, &from);
	if (!ret)
		ret = in_note_fence(in, order);
	if (!ret)
		ret = in_restore(in, from);
	json_object_put(order);
	if (ret)
		return ret;
	note(in, "restoring");
	loop(in);
	return in->place.place == PLACE_FREE ? 0 : -ECANCELED;
}

static struct in new_ferry(const char *root)
{
	return (struct in){
		.root = root, .report_fd = -1, .order_fd = -1, .init_pidfd = -1, .lock_fd = -1, .gate.fd = -1, .announcer = -1,
		.landing = LANDING_NONE,
	};
}

int ferry_in(const char *root, json_object *prepare, struct lines *source)
{
	struct in in = new_ferry(root);
	in.source = *source;
	*source = (struct lines){ 0 };
	prctl(PR_SET_NAME, "distri-ferry");
	json_object *answer = line_event("prepared");
	int ret = in_get_ready(&in, prepare, answer);
	if (!ret) {
		line_add_text(answer, "landing", in.landing.pid ? in.landing.uri : NULL);
		tell(&in, json_object_get(answer));
	}
	json_object_put(answer);
	if (!ret)
		ret = carry_over(&in);
	if (ret && in.source.stream)
		tell_failed(&in, ret);
	finish(&in);
	lines_done(&in.source);
	return ret ? 1 : 0;
}

/* ---- one that follows another ---- */

/* The tree by its name, which was free when the other began; being restored, it is waited for. */
static void adopt(struct in *in)
{
	uint64_t until_ns = clock_now_ns() + (uint64_t)ADOPT_MS * 1000000u;
	while (clock_now_ns() < until_ns && instance_find(in->root, in->name, &in->instance, NULL) == 0) {
		if (in->instance.running) {
			in->init_pidfd = open_end(in);
			in->runs = in->init_pidfd >= 0;
			break;
		}
		poll(NULL, 0, TURN_MS);
	}
	in->ended = !in->runs;
	if (in->ended)
		dp_fail(&in->err, ECHILD, "the ferry was killed before the tree ran");
}

int ferry_recover_in(const char *root, const char *id)
{
	struct in in = new_ferry(root);
	char path[PATH_MAX];
	prctl(PR_SET_NAME, "distri-ferry");
	in.lock_fd = ferry_claim(root, "in", id, NULL);
	if (in.lock_fd < 0)
		return 0;
	if (in_read_state(&in, id) || in_map_lease(&in, false) || in_find_landing(&in)) { /* it had not begun */
		remove_tree(ferry_path(root, "in", id, "", path));
		close(in.lock_fd);
		return 0;
	}
	container_in_recover(&in);
	in_find_fence(&in);
	in.address_here = in.closed = in.address_moves;
	adopt(&in);
	note(&in, "adopted");
	loop(&in);
	finish(&in);
	return 0;
}
