/* commit: the present state of a running instance becomes one that can be gone back to. With --every it is what `restore
 * --propagate back:INTERVAL` keeps running beside the instance. */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "base/log.h"
#include "checkpoint/commit_loop.h"
#include "checkpoint/through.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/commit_line.h"

static const char usage[] =
	"Usage: distri-proc commit [options] INSTANCE\n"
	"\n"
	"Makes the present state of a running instance one that `restore --last-commit INSTANCE` goes on from. Only changed pages\n"
	"travel, most of them while the instance runs; it stands still for a moment, and runs on. Whatever fails, it runs on unharmed.\n"
	"INSTANCE is an id, a name, the beginning of an id, or the pid of one of its processes.\n"
	"\n"
	"  --keep N           states of this instance that stay in the pool (default 2)\n"
	"  --every TIME       go on, one commit each TIME, such as 5s, until the instance has ended (`restore --propagate back:TIME`\n"
	"                     does that by itself)\n"
	"  --through          no commits: see to it that each write is in the pool before the instance goes on, until it has ended\n"
	"                     (`restore --propagate through` does that by itself)\n"
	"  --rate RATE        push at most RATE bytes a second ahead of the commit, such as 100M (default: no limit)\n"
	"  --criu-option=OPT  a further option for `criu dump`; those that the snapshot was made with are used anyway\n"
	"  --json             one object for each commit\n"
	"  --root DIRECTORY   registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n"
	"  -v, --verbose      a detailed log of CRIU, if it fails\n";

enum { OPTION_THROUGH = COMMIT_OWN_OPTIONS };

static const struct option options[] = { COMMIT_OPTIONS, { "through", no_argument, NULL, OPTION_THROUGH }, { 0 } };

static int run_through(const struct commit_settings *settings)
{
	struct dp_err err = { "" };
	int ret = through_run(settings->commit.registry, settings->commit.instance, commit_line_until_signal(), &err);
	return ret < 0 ? cli_print_error(ret, &err, settings->line.json) : EXIT_OK;
}

static int run(struct commit_settings *settings)
{
	struct committer *committer;
	struct dp_err err = { "" };
	int ret = commit_open(&committer, &settings->commit, &err);
	if (ret)
		return cli_print_error(ret, &err, settings->line.json);
	if (settings->commit.interval_ns) {
		commit_line_loop(&settings->line, committer, settings->commit.interval_ns);
	} else {
		struct commit_result result;
		ret = commit_take(committer, &result, &err);
		if (!ret)
			commit_line_print(&settings->line, &result);
	}
	commit_close(committer);
	return ret ? cli_print_error(ret, &err, settings->line.json) : EXIT_OK;
}

int cmd_commit(int argc, char **argv)
{
	struct commit_settings settings = { .commit = { .registry = instance_root(NULL), .keep = 2 }, .line.verb = "committed" };
	int code = 0;
	settings.commit.criu_arguments = settings.criu_arguments;
	bool through = false;
	for (int option; !code && !settings.help && (option = getopt_long(argc, argv, "vh", options, NULL)) != -1;)
		if (option == OPTION_THROUGH)
			through = true;
		else
			code = commit_line_option(&settings, argv[0], option);
	if (settings.help && !code)
		return fputs(usage, stdout), EXIT_OK;
	if (code)
		return code;
	if (argc - optind != 1)
		return cli_usage_error(argv[0], "which instance? Give one; `distri-proc ps` lists them");
	settings.commit.instance = argv[optind];
	return through ? run_through(&settings) : run(&settings);
}
