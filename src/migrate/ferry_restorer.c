/* The restorer: a child of the ferry that restores and then waits for the tree's end, while the ferry goes on with the switch. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/base.h"
#include "migrate/ferry_in.h"
#include "restore/processes.h"
#include "restore/restore.h"

#define ARGUMENTS_MOST 32u

struct criu_arguments {
	char *list[ARGUMENTS_MOST + 2];
	size_t count;
};

/* CRIU's own options that the request has, ours in front. */
static int make_arguments(const struct in *in, struct criu_arguments *arguments, struct dp_err *err)
{
	char path[PATH_MAX];
	json_object *extra;
	arguments->list[arguments->count++] =
		format_text("--action-script=%s", ferry_path(in->root, "in", in->id, FERRY_GATE_ACTION, path));
	if (line_flag(in->prepare, "tcp_established"))
		arguments->list[arguments->count++] = "--tcp-established";
	if (json_object_object_get_ex(in->prepare, "criu", &extra) && json_object_is_type(extra, json_type_array))
		for (size_t i = 0; i < json_object_array_length(extra) && arguments->count < ARGUMENTS_MOST; i++)
			arguments->list[arguments->count++] =
				(char *)(uintptr_t)json_object_get_string(json_object_array_get_idx(extra, i));
	for (size_t i = 0; i < arguments->count; i++)
		if (!arguments->list[i])
			return dp_fail(err, ENOMEM, "out of memory");
	return 0;
}

static void say(int fd, const struct in_report *report)
{
	io_write_full(fd, report, sizeof(*report)); /* a ferry that is gone is followed by one that finds the tree by its name */
}

static void restorer_main(const struct in *in, const char *uri, int fd) __attribute__((noreturn));
static void restorer_main(const struct in *in, const char *uri, int fd)
{
	struct in_report report = { .kind = IN_FAILED };
	struct criu_arguments arguments = { 0 };
	struct restore_session session;
	struct endpoint endpoint;
	prctl(PR_SET_NAME, "distri-restorer");
	int ret = endpoint_parse(&endpoint, uri, &report.err);
	if (!ret)
		ret = make_arguments(in, &arguments, &report.err);
	struct restore_options options = {
		.root = in->root,
		.endpoint = &endpoint,
		.name = in->name,
		.migrate = true,
		.migrate_rate_bytes = (uint64_t)DP_MAX(line_number(in->prepare, "migrate_rate"), 0),
		.on_lost = ON_LOST_FREEZE, /* the lease decides */
		.record = RECORD_NEVER,    /* of a snapshot that nobody will restore again */
		.lease = in->lease,
		.verbose = line_flag(in->prepare, "verbose") ? 2 : 0,
		.criu_arguments = arguments.list,
		.criu_argument_count = arguments.count,
	};
	if (!ret)
		ret = restore_start(&options, &session, &report.err);
	report.code = -ret;
	if (!ret) {
		report.kind = IN_RUNS;
		report.instance = session.instance;
		report.opened_ns = session.times.opened_ns - session.times.start_ns;
		report.fetched_ns = session.times.fetched_ns - session.times.start_ns;
		report.checked_ns = session.times.checked_ns - session.times.start_ns;
		report.criu_ns = session.times.criu_done_ns - session.times.start_ns;
		report.restore_ns = session.times.done_ns - session.times.start_ns;
	}
	say(fd, &report);
	if (ret)
		_exit(1);
	report.kind = IN_ENDED;
	report.err.text[0] = 0;
	restore_wait(&session, NULL, &report.code, &report.err);
	restore_session_done(&session);
	say(fd, &report);
	_exit(0);
}

int in_start_restorer(struct in *in, const char *uri)
{
	int pair[2];
	if (pipe2(pair, O_CLOEXEC))
		return dp_fail_errno(&in->err, errno, "pipe");
	in->restorer = fork();
	if (in->restorer == 0) {
		close_all_but(&pair[1], 1); /* whoever is at the other end of the rest must see the ferry's end */
		restorer_main(in, uri, pair[1]);
	}
	close(pair[1]);
	in->report_fd = pair[0];
	return in->restorer < 0 ? dp_fail_errno(&in->err, errno, "fork the restorer") : 0;
}
