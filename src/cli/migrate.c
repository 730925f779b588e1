/* migrate: moves a running process tree to another host; this host's agent does it. */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/agent.h"
#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "instance/instance.h"
#include "migrate/switch.h"
#include "prefetch/prefetch.h"

static const char usage[] =
	"Usage: distri-proc migrate --pid N --to HOST[:PORT] [OPTIONS]\n"
	"       distri-proc migrate --name INSTANCE --to HOST[:PORT] [OPTIONS]\n"
	"       distri-proc migrate --container ID --to HOST[:PORT] [--runtime PROGRAM] [OPTIONS]\n"
	"\n"
	"Moves a running process tree to another host: it is frozen, its skeleton travels, it runs there at once, and its pages\n"
	"follow from here, those that it touches first; when all have come, what was frozen here is ended. Whatever fails, exactly\n"
	"one copy runs afterwards. Both hosts run `distri-proc agent`. Ctrl-C only ends the display.\n"
	"\n"
	"  --to HOST[:PORT]    the host to go to (default port 7410), or dps://HOST:PORT, tcp://HOST:PORT without encryption\n"
	"  --mode MODE         post-copy: the pages follow (the default); pre-copy: they go ahead, while it runs, and what it writes\n"
	"                      meanwhile in a few rounds and while it is frozen; hybrid: they go ahead, it is frozen as short as with\n"
	"                      post-copy, and only those that it wrote at last follow\n"
	"  --pool URI          pre-copy: the pool that they go to, instead of the destination's memory, and that it is restored from\n"
	"  --through-pool URI  they go ahead to this pool and stay there: it is restored from it as by `restore`, and nothing depends\n"
	"                      on this host from then on\n"
	"  --local-memory SIZE|PERCENT  through a pool: what it may keep in memory there, such as 512M or 50%\n"
	"  --prefetch-policy POLICY  through a pool: as of restore\n"
	"  --rounds N          pages go ahead in at most so many rounds (default 16); fewer, where a round is no smaller than the last\n"
	"  --precopy-limit TIME  and no round begins later than this, such as 30s\n"
	"  --tcp-established   open TCP connections go along; without it, a process that has some is refused\n"
	"  --address ADDRESS/LENGTH@DEVICE  an IP address that leaves this host with the process and comes up there, on the\n"
	"                      device of that name, such as 10.0.0.5/32@eth0: it is what the connections need\n"
	"  --rate RATE         at most so many bytes a second ahead and in the background, such as 800M\n"
	"  --lease TIME        how long the copy there may run without hearing from here (default 10s); a source that has\n"
	"                      heard nothing for that long and a little runs on\n"
	"  --criu-option OPTION  a further option for `criu restore`; may be repeated\n"
	"  --container ID      a container of runc's, with its root filesystem: what it has written there goes along\n"
	"  --runtime PROGRAM, --runtime-root DIR   the runtime here, and where it keeps its containers (on both hosts)\n"
	"  --bundle DIR        the bundle's directory there (default: the same as here)\n"
	"  --volume HERE=THERE a bind mount's source on the other host, where it is another one; may be repeated\n"
	"  --rootfs-limit SIZE how much of the root filesystem may be copied (default 1G)\n"
	"  --json              one object at the end, or the error as one\n"
	"  --root DIRECTORY    registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n"
	"  --verbose           CRIU logs more, on both sides\n";

struct settings {
	const char *root;
	json_object *request, *criu, *volumes;
	bool json, help;
};

static double ms(json_object *event, const char *name)
{
	return (double)line_number(event, name) / 1e6;
}

static void print_summary(json_object *event)
{
	char bytes[32];
	printf("runs on %s as %s (pid %lld there): gap %.1f ms\n", line_text(event, "to"), line_text(event, "instance"),
	       (long long)line_number(event, "pid"), ms(event, "gap_ns"));
	printf("  prepare %.1f ms, until frozen %.1f ms; frozen: skeleton %.1f ms, offered %.1f ms, granted %.1f ms, runs %.1f ms\n",
	       ms(event, "prepare_ns"), ms(event, "freeze_ns"), ms(event, "skeleton_ns"), ms(event, "ready_ns"), ms(event, "granted_ns"),
	       ms(event, "gap_ns"));
	printf("  %s of pages in %.1f ms; all in all %.1f ms\n",
	       format_size((uint64_t)line_number(event, "bytes"), bytes, sizeof(bytes)), ms(event, "pages_ns"), ms(event, "total_ns"));
	if (line_number(event, "rounds"))
		printf("  %lld rounds sent %s ahead; %.1f MiB were left for %s\n", (long long)line_number(event, "rounds"),
		       format_size((uint64_t)line_number(event, "ahead_bytes"), bytes, sizeof(bytes)),
		       (double)(line_number(event, "frozen_bytes") + line_number(event, "left_bytes")) / 1048576,
		       line_number(event, "left_bytes") ? "later" : "the freeze");
}

static void show(json_object *event, bool redraw)
{
	const char *kind = line_text(event, "event"), *phase = line_text(event, "phase");
	char left[32], all[32];
	if (!kind || !redraw)
		return;
	if (!strcmp(kind, "progress"))
		printf("\r\033[Kruns there; %s of %s of pages are still here",
		       format_size((uint64_t)line_number(event, "pages_left") * PAGE_BYTES, left, sizeof(left)),
		       format_size((uint64_t)line_number(event, "pages") * PAGE_BYTES, all, sizeof(all)));
	else if (!strcmp(kind, "round"))
		printf("\r\033[Kround %lld sent %s ahead%s%s", (long long)line_number(event, "round"),
		       format_size((uint64_t)line_number(event, "pages") * PAGE_BYTES, all, sizeof(all)),
		       json_object_object_get_ex(event, "pages_left", NULL) ? "; written meanwhile: " : "",
		       json_object_object_get_ex(event, "pages_left", NULL)
			       ? format_size((uint64_t)line_number(event, "pages_left") * PAGE_BYTES, left, sizeof(left))
			       : "");
	else
		printf("\r\033[K%s", phase ? phase : kind);
	fflush(stdout);
}

static int finish(const struct settings *settings, json_object *event, bool redraw)
{
	struct dp_err err = { "" };
	const char *text = line_text(event, "text");
	if (redraw)
		printf("\r\033[K");
	if (strcmp(line_text(event, "event"), "done") != 0) {
		int64_t code = line_number(event, "code");
		dp_fail(&err, 1, "%s", text ? text : "the migration failed");
		return cli_print_error(code > 0 && code < 4096 ? -(int)code : -EIO, &err, settings->json);
	}
	if (settings->json) {
		line_add_text(event, "schema", "distriproc.migrate/1");
		cli_print_json(json_object_get(event));
	} else {
		print_summary(event);
	}
	return EXIT_OK;
}

static int migrate(struct settings *settings)
{
	struct dp_err err;
	struct lines lines;
	bool redraw = !settings->json && isatty(1);
	int ret = agent_connect(settings->root, &lines, &err), code = -1;
	if (ret)
		return cli_print_error(ret, &err, settings->json);
	ret = lines_send(&lines, json_object_get(settings->request), 5000);
	while (!ret && code < 0) {
		json_object *event;
		ret = lines_receive(&lines, &event, 60000);
		if (ret == -EAGAIN) { /* nothing to tell yet */
			ret = 0;
			continue;
		}
		const char *kind = ret ? NULL : line_text(event, "event");
		if (kind && (!strcmp(kind, "done") || !strcmp(kind, "failed")))
			code = finish(settings, event, redraw);
		else if (!ret)
			show(event, redraw);
		json_object_put(event);
	}
	lines_done(&lines);
	if (code >= 0)
		return code;
	dp_fail(&err, EPIPE, "the agent's process for this migration is gone: `distri-proc events` says what became of it; where nothing was "
		"granted, the process runs on here");
	return cli_print_error(-EPIPE, &err, settings->json);
}

static int take_number(struct settings *settings, const char *command, const char *name, const char *text)
{
	char *end;
	errno = 0;
	long long number = strtoll(text, &end, 10);
	if (errno || end == text || *end || number <= 0)
		return cli_usage_error(command, "--%s takes a number, not '%s'", name, text);
	line_add_number(settings->request, name, (uint64_t)number);
	return 0;
}

static int take_size(struct settings *settings, const char *command, const char *option, const char *name, const char *text)
{
	uint64_t bytes;
	if (parse_size(text, &bytes) || !bytes)
		return cli_usage_error(command, "--%s takes a number of bytes, such as 800M", option);
	line_add_number(settings->request, name, bytes);
	return 0;
}

static int take_limit(struct settings *settings, const char *command, const char *text)
{
	uint64_t limit;
	if (parse_duration(text, &limit) || !limit)
		return cli_usage_error(command, "--precopy-limit takes a time, such as 30s");
	line_add_number(settings->request, "precopy_limit_ns", limit);
	return 0;
}

static int take_policy(struct settings *settings, const char *command, const char *text)
{
	if (prefetch_policy_find(text) < 0)
		return cli_usage_error(command, "--prefetch-policy: there is no policy '%s'", text);
	line_add_text(settings->request, "prefetch_policy", text);
	return 0;
}

static int take_lease(struct settings *settings, const char *command, const char *text)
{
	uint64_t lease;
	if (parse_duration(text, &lease) || lease < SWITCH_LEASE_LEAST_NS || lease > UINT64_C(3600000000000))
		return cli_usage_error(command, "--lease takes a time from 500ms to 1h, such as 10s");
	line_add_number(settings->request, "lease_ns", lease);
	return 0;
}

static int take_option(struct settings *settings, const char *command, int option)
{
	switch (option) {
	case 'p': return take_number(settings, command, "pid", optarg);
	case 'n': line_add_text(settings->request, "name", optarg); return 0;
	case 't': line_add_text(settings->request, "to", optarg); return 0;
	case 'm': line_add_text(settings->request, "mode", optarg); return 0;
	case 'P': line_add_text(settings->request, "pool", optarg); return 0;
	case 'T': line_add_text(settings->request, "through_pool", optarg); return 0;
	case 'M': line_add_text(settings->request, "local_memory", optarg); return 0;
	case 'F': return take_policy(settings, command, optarg);
	case 'N': return take_number(settings, command, "rounds", optarg);
	case 'I': return take_limit(settings, command, optarg);
	case 'e': line_add_flag(settings->request, "tcp_established", true); return 0;
	case 'a': line_add_text(settings->request, "address", optarg); return 0;
	case 'R': return take_size(settings, command, "rate", "migrate_rate", optarg);
	case 'L': return take_lease(settings, command, optarg);
	case 'C': line_add_text(settings->request, "container", optarg); return 0;
	case 'U': line_add_text(settings->request, "runtime", optarg); return 0;
	case 'O': line_add_text(settings->request, "runtime_root", optarg); return 0;
	case 'B': line_add_text(settings->request, "bundle", optarg); return 0;
	case 'V': json_object_array_add(settings->volumes, json_object_new_string(optarg)); return 0;
	case 'K': return take_size(settings, command, "rootfs-limit", "rootfs_limit", optarg);
	case 'c': json_object_array_add(settings->criu, json_object_new_string(optarg)); return 0;
	case 'j': settings->json = true; return 0;
	case 'r': settings->root = instance_root(optarg); return 0;
	case 'v': line_add_flag(settings->request, "verbose", true); return 0;
	case 'h': settings->help = true; return 0;
	default: return cli_usage_hint(command);
	}
}

static int read_options(struct settings *settings, int argc, char **argv)
{
	static const struct option options[] = {
		{ "pid", required_argument, NULL, 'p' },     { "name", required_argument, NULL, 'n' },
		{ "to", required_argument, NULL, 't' },      { "mode", required_argument, NULL, 'm' },
		{ "pool", required_argument, NULL, 'P' },    { "through-pool", required_argument, NULL, 'T' },
		{ "local-memory", required_argument, NULL, 'M' }, { "prefetch-policy", required_argument, NULL, 'F' },
		{ "rounds", required_argument, NULL, 'N' },  { "precopy-limit", required_argument, NULL, 'I' },
		{ "tcp-established", no_argument, NULL, 'e' }, { "address", required_argument, NULL, 'a' },
		{ "container", required_argument, NULL, 'C' }, { "runtime", required_argument, NULL, 'U' },
		{ "runtime-root", required_argument, NULL, 'O' }, { "bundle", required_argument, NULL, 'B' },
		{ "volume", required_argument, NULL, 'V' }, { "rootfs-limit", required_argument, NULL, 'K' },
		{ "rate", required_argument, NULL, 'R' },    { "lease", required_argument, NULL, 'L' },
		{ "criu-option", required_argument, NULL, 'c' }, { "json", no_argument, NULL, 'j' },
		{ "root", required_argument, NULL, 'r' },    { "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },          { 0 },
	};
	for (int option; (option = getopt_long(argc, argv, "hv", options, NULL)) != -1;) {
		int code = take_option(settings, argv[0], option);
		if (code || settings->help)
			return code;
	}
	if (optind != argc)
		return cli_usage_error(argv[0], "unexpected argument '%s'", argv[optind]);
	int given = !!line_number(settings->request, "pid") + !!line_text(settings->request, "name") +
		    !!line_text(settings->request, "container");
	if (given != 1)
		return cli_usage_error(argv[0], "which process? Give --pid N, --name INSTANCE or --container ID, one of them");
	if (!line_text(settings->request, "to"))
		return cli_usage_error(argv[0], "where to? Give --to HOST");
	return 0;
}

int cmd_migrate(int argc, char **argv)
{
	struct settings settings = { .root = instance_root(NULL), .request = line_op("migrate"), .criu = json_object_new_array(),
				     .volumes = json_object_new_array() };
	json_object_object_add(settings.request, "criu", settings.criu);
	json_object_object_add(settings.request, "volumes", settings.volumes);
	int code = read_options(&settings, argc, argv);
	if (settings.help && !code)
		fputs(usage, stdout);
	else if (!code)
		code = migrate(&settings);
	json_object_put(settings.request);
	return code;
}
