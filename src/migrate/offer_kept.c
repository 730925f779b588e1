#include "migrate/offer_kept.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/base.h"
#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/push.h"
#include "instance/instance.h"
#include "migrate/offerer.h"
#include "migrate/record.h"
#include "pager/control.h"
#include "sys/criu.h"
#include "sys/proc.h"

#define PUSH_ROUNDS 8u
#define PUSH_NS UINT64_C(60000000000)
#define FEW_PAGES 256
#define END_WAIT_MS 10000

struct kept {
	const struct offer_options *options;
	int control_fd, root_pidfd; /* control: -1: the caller is gone */
	struct endpoint endpoint;
	char *arguments[OFFER_ARGUMENTS];
	size_t argument_count;
	struct precopy_totals ahead;
	struct checkpoint_result result;
	struct offerer_reply reply;
	bool told, released; /* released: CRIU was let to kill it */
};

static void answer(struct kept *kept)
{
	if (kept->control_fd >= 0 && send(kept->control_fd, &kept->reply, sizeof(kept->reply), MSG_NOSIGNAL) < 0)
		log_warn("the caller does not hear: %s", strerror(errno));
}

/* ---- ahead ---- */

static void note_round(struct kept *kept, uint64_t pages)
{
	struct precopy_totals *ahead = &kept->ahead;
	struct offerer_reply round = { .result = OFFERER_ROUND };
	ahead->round_pages[DP_MIN(ahead->rounds, PRECOPY_ROUNDS - 1)] += pages;
	ahead->rounds++;
	ahead->ahead_pages += pages;
	round.round = (struct offer_round){ .round = ahead->rounds, .pages = pages, .pages_left = OFFER_NOT_KNOWN };
	ssize_t ignored = send(kept->control_fd, &round, sizeof(round), MSG_NOSIGNAL);
	(void)ignored; /* who is gone is noticed later */
}

/* What cannot be pushed travels while it is frozen, where what is wrong is told. */
static void push_ahead(struct kept *kept)
{
	const struct precopy_limits *limits = &kept->options->ahead_limits;
	struct instance instance;
	struct push push;
	struct dp_err err = { "" };
	char path[PATH_MAX];
	if (instance_find_by_pid(instance_root(kept->options->registry), kept->options->pid, &instance, &err))
		return;
	int connection = control_connect(instance_path(&instance, "control.sock", path, sizeof(path)), &err);
	if (connection < 0 || push_open(&push, connection, &err) < 0) {
		log_warn("push ahead: %s", err.text);
		return;
	}
	push.rate_bytes = limits->rate_bytes;
	uint64_t until_ns = clock_now_ns() + (limits->limit_ns ? limits->limit_ns : PUSH_NS);
	int64_t last = INT64_MAX, pushed = FEW_PAGES + 1;
	for (unsigned round = 0; round < (limits->rounds ? limits->rounds : PUSH_ROUNDS) && pushed > FEW_PAGES; round++) {
		pushed = push_round(&push, until_ns, NULL, &err);
		if (pushed >= 0)
			note_round(kept, (uint64_t)pushed);
		if (pushed >= last - last / 8) /* no fewer than in the last one */
			break;
		last = pushed;
	}
	if (pushed < 0 && pushed != -EINTR)
		log_info("push ahead: %s", err.text);
	push_close(&push);
}

/* ---- frozen, and stored ---- */

static void fill_facts(struct kept *kept, const struct checkpoint_held *held)
{
	struct offer_facts *facts = &kept->reply.facts;
	const struct checkpoint_result *result = &kept->result;
	char pool[1400];
	endpoint_pool_text(&kept->endpoint, pool, sizeof(pool));
	snprintf(facts->uri, sizeof(facts->uri), kept->endpoint.kind == ENDPOINT_TCP ? "%s/%s" : "%s#%s", pool, kept->endpoint.name);
	snprintf(facts->command_line, sizeof(facts->command_line), "%s", held->command_line);
	criu_locks_name(held->images_fd, facts->locks);
	facts->tasks = result->tasks;
	facts->pages = result->stored_pages + result->inherited_pages;
	facts->eager_pages = result->eager_pages;
	facts->ahead = kept->ahead;
	facts->ahead.frozen_pages = result->stored_pages;
	facts->skeleton_bytes = result->skeleton_bytes;
	facts->pool_instance = result->pool_instance;
	facts->frozen_at_ns = held->frozen_at_ns;
	facts->dumped_ns = facts->ready_ns = clock_now_ns() - held->frozen_at_ns;
}

/* The next command, or why none will come: -ECANCELED, CRIU has ended; -EPIPE, the caller is gone. */
static int hear(struct kept *kept, int criu_pidfd, struct offerer_command *command)
{
	struct pollfd polls[] = { { .fd = kept->control_fd, .events = POLLIN }, { .fd = criu_pidfd, .events = POLLIN } };
	while (poll(polls, ARRAY_LENGTH(polls), -1) < 0)
		if (errno != EINTR)
			return -errno;
	if (polls[1].revents)
		return -ECANCELED;
	ssize_t got = recv(kept->control_fd, command, sizeof(*command), MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	return got == sizeof(*command) ? 0 : -EPIPE;
}

/* The caller is gone: what it recorded says whose the tree is. */
static bool heir_releases(struct kept *kept)
{
	dp_close_fd(&kept->control_fd);
	kept->control_fd = -1;
	return kept->options->record && switch_heir(kept->options->record);
}

/* checkpoint_options.hold: 0, CRIU may kill the tree; else it runs on. */
static int hold(void *context, const struct checkpoint_held *held, struct dp_err *err)
{
	struct kept *kept = context;
	fill_facts(kept, held);
	kept->reply.result = 0;
	kept->told = true;
	answer(kept);
	for (;;) {
		struct offerer_command command;
		int rc = hear(kept, held->criu_pidfd, &command);
		if (rc == -EAGAIN)
			continue;
		if (rc == -EPIPE)
			kept->released = heir_releases(kept);
		if (rc == 0 && command.verb == OFFERER_RELEASE)
			kept->released = true;
		if (kept->released)
			return 0;
		if (rc < 0 || command.verb == OFFERER_RESUME)
			return dp_fail(err, ECANCELED, rc == -ECANCELED ? "criu has ended" : "it runs on here");
		answer(kept); /* there is no progress to tell, and nothing to confirm */
	}
}

/* ---- all of it ---- */

static int run(struct kept *kept, struct dp_err *err)
{
	const struct offer_options *options = kept->options;
	int rc = offer_arguments(options, kept->arguments, &kept->argument_count, err);
	if (rc == 0)
		rc = endpoint_parse(&kept->endpoint, options->kept_pool, err);
	if (rc < 0)
		return rc;
	snprintf(kept->endpoint.name, sizeof(kept->endpoint.name), "%s", options->name);
	kept->root_pidfd = proc_pidfd_open(options->pid);
	if (kept->root_pidfd < 0)
		return dp_fail_errno(err, -kept->root_pidfd, "open process %d", options->pid);
	if (options->record)
		setenv(OFFERER_RECORD, options->record, 1);
	push_ahead(kept);
	const struct checkpoint_options checkpoint = { .pid = options->pid,
						       .endpoint = &kept->endpoint,
						       .registry = options->registry,
						       .verbose = options->verbose,
						       .criu_arguments = kept->arguments,
						       .criu_argument_count = kept->argument_count,
						       .hold = hold,
						       .hold_context = kept };
	return checkpoint_run(&checkpoint, &kept->result, err);
}

/* OK1. */
static void remove_snapshot(struct kept *kept, const char *pool_uri)
{
	struct endpoint pool = kept->endpoint;
	struct client *client = NULL;
	struct dp_err err;
	int rc = pool_uri ? endpoint_parse(&pool, pool_uri, &err) : 0;
	if (rc == 0)
		rc = client_open(&client, &pool, 0, &err);
	if (rc == 0)
		rc = client_remove(client, kept->endpoint.name, true, &err);
	if (rc < 0 && rc != -ENOENT)
		log_warn("%s stays in the pool: %s", kept->endpoint.name, err.text);
	client_close(client);
}

static void remove_everywhere(struct kept *kept)
{
	remove_snapshot(kept, NULL);
	for (size_t i = 0; i < kept->result.also_count; i++)
		remove_snapshot(kept, kept->result.also[i]);
}

/* What was asked for last is answered when it is so. */
static int conclude(struct kept *kept, int rc, const struct dp_err *err)
{
	struct offerer_reply *reply = &kept->reply;
	struct pollfd ended = { .fd = kept->root_pidfd, .events = POLLIN };
	reply->result = 0;
	if (kept->released) {
		bool dead = poll(&ended, 1, END_WAIT_MS) == 1;
		if (!dead)
			reply->result = dp_fail(&reply->err, ETIMEDOUT, "criu was told to kill the tree, and it is still there: %s",
						rc < 0 ? err->text : "wait for it");
	} else if (poll(&ended, 1, 0) == 1) {
		reply->result = dp_fail(&reply->err, ECANCELED, "the tree is dead");
	}
	answer(kept);
	if (kept->released)
		remove_everywhere(kept); /* otherwise the checkpoint has done so */
	return reply->result;
}

void offer_kept_main(const struct offer_options *options, int control_fd)
{
	struct kept kept = { .options = options, .control_fd = control_fd, .root_pidfd = -1 };
	struct dp_err err = { "" };
	int rc = run(&kept, &err);
	if (kept.told) {
		rc = conclude(&kept, rc, &err);
	} else {
		kept.reply.result = rc < 0 ? rc : dp_fail(&err, ECANCELED, "criu has ended");
		kept.reply.err = err;
		answer(&kept);
	}
	_exit(rc < 0 ? 1 : 0);
}
