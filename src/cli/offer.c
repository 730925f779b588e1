/* offer: a running process tree is frozen and can be restored elsewhere, its pages where they are until they are wanted. */
#include "migrate/offer.h"

#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>

#include "base/base.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "transport/endpoint.h"

static const char usage[] =
	"Usage: distri-proc offer --pid N --listen URI [options]\n"
	"\n"
	"Freezes a process and all its descendants, prints the URI of a snapshot of them that can be restored from at once, here or on\n"
	"another host (distri-proc restore --migrate URI), and waits. Their pages are read from their own memory when they are wanted,\n"
	"so this takes no longer for a large process. Once one restored tree has everything, the original is killed, and this ends.\n"
	"Ctrl-C, or the end of this in whatever way: the original runs on as if nothing had been.\n"
	"\n"
	"  --pid N             the tree's first process\n"
	"  --listen URI        tcp://127.0.0.1:0 (0 picks a port), dps://0.0.0.0:0 (TLS) or unix:///run/offer.sock\n"
	"  --name REPO:TAG     the snapshot's name (default offer:PID)\n"
	"  --copy              the original goes on at once, and is never killed; Ctrl-C ends the offer\n"
	"  --tcp-established   open TCP connections go along\n"
	"  --tcp-close         open TCP connections are closed in what is restored\n"
	"  --shell-job         the tree belongs to a terminal's session\n"
	"  --criu-option=OPT   any other option of CRIU, such as --criu-option=--ext-unix-sk\n"
	"  --access FILE       who may do what, as for `pool serve`\n"
	"  --allow-plaintext   listen beyond loopback although nothing is encrypted\n"
	"  --root DIRECTORY    registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n"
	"  --json              one object when it is ready, one at the end, or the error as one\n"
	"  -v, --verbose       a detailed log of CRIU, if it fails\n";

#define ARGUMENTS 62
#define LOOK_MS 50

struct offering {
	struct offer_options options;
	char *arguments[ARGUMENTS];
	char name[256];
	bool json;
};

static int parse_pid(const char *text, pid_t *pid)
{
	char *end;
	long value = strtol(text, &end, 10);
	*pid = (pid_t)value;
	return *end || value <= 0 || value > 1 << 22 ? -EINVAL : 0;
}

static int add_criu_option(struct offering *offering, const char *command, char *option)
{
	return cli_criu_option(command, option, offering->arguments, &offering->options.criu_argument_count, ARGUMENTS);
}

static int take_option(struct offering *offering, char **argv, int option)
{
	struct offer_options *options = &offering->options;
	switch (option) {
	case 'p':
		return parse_pid(optarg, &options->pid) < 0 ? cli_usage_error(argv[0], "'%s' is no process id", optarg) : 0;
	case 'l':
		options->listen = optarg;
		return 0;
	case 'n':
		options->name = optarg;
		return 0;
	case 'c':
		options->copy = true;
		return 0;
	case 'e':
		options->tcp_established = true;
		return 0;
	case 'x':
		options->tcp_close = true;
		return 0;
	case 's':
		return add_criu_option(offering, argv[0], (char *)(uintptr_t)"--shell-job");
	case 'o':
		return add_criu_option(offering, argv[0], optarg);
	case 'A':
		options->access_file = optarg;
		return 0;
	case 'a':
		options->allow_plaintext = true;
		return 0;
	case 'r':
		options->registry = optarg;
		return 0;
	case 'j':
		offering->json = true;
		return 0;
	case 'v':
		options->verbose = true;
		return 0;
	case 'h':
		fputs(usage, stdout);
		return -1;
	default:
		return cli_usage_hint(argv[0]);
	}
}

static int parse_options(struct offering *offering, int argc, char **argv)
{
	static const struct option list[] = {
		{ "pid", required_argument, NULL, 'p' },	 { "listen", required_argument, NULL, 'l' },
		{ "name", required_argument, NULL, 'n' },	 { "copy", no_argument, NULL, 'c' },
		{ "tcp-established", no_argument, NULL, 'e' },	 { "tcp-close", no_argument, NULL, 'x' },
		{ "shell-job", no_argument, NULL, 's' },	 { "criu-option", required_argument, NULL, 'o' },
		{ "access", required_argument, NULL, 'A' },	 { "allow-plaintext", no_argument, NULL, 'a' },
		{ "root", required_argument, NULL, 'r' },	 { "json", no_argument, NULL, 'j' },
		{ "verbose", no_argument, NULL, 'v' },		 { "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct dp_err err;
	char given[256];
	offering->options.criu_arguments = offering->arguments;
	for (int option; (option = getopt_long(argc, argv, "hv", list, NULL)) != -1;) {
		int code = take_option(offering, argv, option);
		if (code)
			return code;
	}
	if (optind != argc)
		return cli_usage_error(argv[0], "unexpected argument '%s'", argv[optind]);
	if (!offering->options.pid || !offering->options.listen)
		return cli_usage_error(argv[0], "--pid and --listen are needed; for example --pid 1234 --listen tcp://127.0.0.1:0");
	if (offering->options.tcp_established && offering->options.copy)
		return cli_usage_error(argv[0], "a connection cannot be had twice: --tcp-close goes with --copy");
	snprintf(given, sizeof(given), "offer:%d", offering->options.pid);
	if (endpoint_name_check(offering->options.name ? offering->options.name : given, offering->name, &err) < 0)
		return cli_usage_error(argv[0], "%s", err.text);
	offering->options.name = offering->name;
	return 0;
}

static void say_ready(const struct offering *offering, const struct offer_facts *facts)
{
	if (!offering->json) {
		printf("%s\n", facts->uri);
		fprintf(stderr, "process %d: %s after %.1f ms (%llu pages, where they were); restore it from there\n",
			offering->options.pid, offering->options.copy ? "goes on" : "frozen, on offer",
			(double)(offering->options.copy ? facts->stopped_ns : facts->ready_ns) / 1e6,
			(unsigned long long)facts->pages);
		fflush(stdout);
		return;
	}
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.offer/1"));
	json_object_object_add(object, "uri", json_object_new_string(facts->uri));
	json_object_object_add(object, "pid", json_object_new_int(offering->options.pid));
	json_object_object_add(object, "copy", json_object_new_boolean(offering->options.copy));
	json_object_object_add(object, "tasks", json_object_new_uint64(facts->tasks));
	json_object_object_add(object, "known_tasks", json_object_new_uint64(facts->known_tasks));
	json_object_object_add(object, "threads", json_object_new_uint64(facts->threads));
	json_object_object_add(object, "pages", json_object_new_uint64(facts->pages));
	json_object_object_add(object, "eager_pages", json_object_new_uint64(facts->eager_pages));
	json_object_object_add(object, "skeleton_bytes", json_object_new_uint64(facts->skeleton_bytes));
	json_object_object_add(object, "dumped_ns", json_object_new_uint64(facts->dumped_ns));
	json_object_object_add(object, "ready_ns", json_object_new_uint64(facts->ready_ns));
	if (offering->options.copy)
		json_object_object_add(object, "stopped_ns", json_object_new_uint64(facts->stopped_ns));
	cli_print_json(object);
	fflush(stdout);
}

static void say_end(const struct offering *offering, const char *end)
{
	if (offering->json) {
		json_object *object = json_object_new_object();
		json_object_object_add(object, "schema", json_object_new_string("distriproc.offer-end/1"));
		json_object_object_add(object, "end", json_object_new_string(end));
		cli_print_json(object);
	} else {
		fprintf(stderr, "process %d: %s\n", offering->options.pid, end);
	}
}

/* 1: fetched whole; 0: interrupted; -errno: the offer has ended. */
static int follow(const struct offering *offering, struct offer *offer, int signal_fd, struct dp_err *err)
{
	for (;;) {
		struct offer_progress progress;
		struct pollfd polls[] = { { .fd = signal_fd, .events = POLLIN }, { .fd = offer_fd(offer), .events = POLLIN } };
		poll(polls, 2, offering->options.copy ? -1 : LOOK_MS);
		if (polls[0].revents)
			return 0;
		if (polls[1].revents)
			return dp_fail(err, ECANCELED, "criu has ended by itself: the original runs on, or was killed");
		int rc = offering->options.copy ? 0 : offer_progress(offer, &progress, err);
		if (rc < 0)
			return rc;
		if (!offering->options.copy && progress.complete)
			return 1;
	}
}

static int offer_and_wait(const struct offering *offering, int signal_fd, struct dp_err *err)
{
	struct offer_facts facts;
	struct offer *offer;
	int rc = offer_make(&offer, &offering->options, &facts, err);
	if (rc < 0)
		return rc;
	say_ready(offering, &facts);
	rc = follow(offering, offer, signal_fd, err);
	bool whole = rc > 0;
	if (whole)
		rc = offer_release(offer, false, err);
	else if (rc == 0)
		rc = offer_resume(offer, err);
	if (rc == 0)
		rc = offer_wait(offer, err);
	offer_free(offer);
	if (rc == 0)
		say_end(offering, whole ? "released" : offering->options.copy ? "the offer is over" : "resumed");
	return rc;
}

int cmd_offer(int argc, char **argv)
{
	struct offering offering = { 0 };
	struct dp_err err;
	sigset_t set;
	int code = parse_options(&offering, argc, argv);
	if (code)
		return code < 0 ? EXIT_OK : code;
	log_setup(2, LOG_LEVEL_WARN, "offer");
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	cleanup_fd int signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	int rc = signal_fd < 0 ? dp_fail_errno(&err, errno, "watch for signals") : offer_and_wait(&offering, signal_fd, &err);
	return rc < 0 ? cli_print_error(rc, &err, offering.json) : EXIT_OK;
}
