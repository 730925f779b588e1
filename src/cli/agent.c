/* agent: the daemon of a host that takes part in migrations; events: what it and its migrations tell. */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/agent.h"
#include "base/base.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "instance/instance.h"

static const char agent_usage[] =
	"Usage: distri-proc agent [--listen tls://ADDRESS[:PORT]] [OPTIONS]\n"
	"       distri-proc agent --status [--json]\n"
	"\n"
	"Runs until it is told to stop (SIGTERM): takes processes that other hosts' agents bring, and carries out the migrations\n"
	"that `distri-proc migrate` asks for. An agent that ends, or is killed, ends no migration. Prints `listening URI` and\n"
	"`control SOCKET` once it does.\n"
	"\n"
	"  --listen URI        where other agents come in: tls://0.0.0.0:7410 (default port 7410); beyond loopback only\n"
	"                      with TLS 1.3 and a key or certificate of either side (--psk-file, or --tls-cert, --tls-key, --tls-ca)\n"
	"  --access FILE       who may bring processes here: rules as for `pool serve`, right `write`, by the process's name; and\n"
	"                      who may clone them from elsewhere: right `clone` (without a rule, nobody)\n"
	"  --allow-plaintext   listen beyond loopback although nothing is encrypted\n"
	"  --status            show what the running agent says of itself\n"
	"  --json              with --status: as one object\n"
	"  --root DIRECTORY    registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n"
	"  --verbose           log more\n";

static const char events_usage[] =
	"Usage: distri-proc events [--follow] [--json]\n"
	"\n"
	"Shows what happened to the migrations of this host, oldest first.\n"
	"\n"
	"  --follow            go on with what happens\n"
	"  --json              one object a line, as the agent sends them\n"
	"  --root DIRECTORY    registry of instances (default $DISTRI_PROC_ROOT or /run/distri-proc)\n";

static int show_status(const char *root, bool json)
{
	struct dp_err err;
	struct lines lines;
	json_object *status;
	int ret = agent_connect(root, &lines, &err);
	if (ret)
		return cli_print_error(ret, &err, json);
	ret = lines_send(&lines, line_op("status"), 5000);
	if (!ret)
		ret = lines_receive(&lines, &status, 5000);
	lines_done(&lines);
	if (ret) {
		dp_fail_errno(&err, -ret, "the agent does not answer");
		return cli_print_error(-ENOTCONN, &err, json);
	}
	if (json) {
		cli_print_json(status);
		return EXIT_OK;
	}
	const char *listen = line_text(status, "listen");
	printf("agent %lld, %s, %lld instances, %lld migrations going out, %lld coming in\n", (long long)line_number(status, "pid"),
	       listen && *listen ? listen : "listens for nobody", (long long)line_number(status, "instances"),
	       (long long)line_number(status, "migrations_out"), (long long)line_number(status, "migrations_in"));
	json_object_put(status);
	return EXIT_OK;
}

int cmd_agent(int argc, char **argv)
{
	static const struct option options[] = {
		{ "listen", required_argument, NULL, 'l' },   { "access", required_argument, NULL, 'A' },
		{ "allow-plaintext", no_argument, NULL, 'a' }, { "status", no_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },           { "root", required_argument, NULL, 'r' },
		{ "verbose", no_argument, NULL, 'v' },        { "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct agent_options agent = { .root = instance_root(NULL), .allow_plaintext = getenv("DISTRI_PROC_ALLOW_PLAINTEXT") };
	struct dp_err err;
	bool status = false, json = false;
	for (int option; (option = getopt_long(argc, argv, "hv", options, NULL)) != -1;) {
		switch (option) {
		case 'l': agent.listen = optarg; break;
		case 'A': agent.access_file = optarg; break;
		case 'a': agent.allow_plaintext = true; break;
		case 's': status = true; break;
		case 'j': json = true; break;
		case 'r': agent.root = instance_root(optarg); break;
		case 'v': agent.verbose = true; break;
		case 'h': return fputs(agent_usage, stdout), EXIT_OK;
		default: return cli_usage_hint(argv[0]);
		}
	}
	if (optind != argc)
		return cli_usage_error(argv[0], "unexpected argument '%s'", argv[optind]);
	if (status)
		return show_status(agent.root, json);
	log_setup(2, agent.verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, "agent");
	int ret = agent_run(&agent, &err);
	return ret ? cli_print_error(ret, &err, json) : EXIT_OK;
}

static void print_event(json_object *event)
{
	const char *time = line_text(event, "time"), *side = line_text(event, "side"), *phase = line_text(event, "phase");
	const char *id = line_text(event, "id"), *text = line_text(event, "text"), *to = line_text(event, "to");
	printf("%s  %.12s  %-11s  %s%s%s%s%s\n", time ? time : "", id ? id : "", side ? side : "", phase ? phase : "", to ? "  to " : "",
	       to ? to : "", text ? "  " : "", text ? text : "");
}

int cmd_events(int argc, char **argv)
{
	static const struct option options[] = {
		{ "follow", no_argument, NULL, 'f' }, { "json", no_argument, NULL, 'j' },
		{ "root", required_argument, NULL, 'r' }, { "help", no_argument, NULL, 'h' }, { 0 },
	};
	const char *root = instance_root(NULL);
	struct dp_err err;
	struct lines lines;
	json_object *event;
	bool follow = false, json = false;
	for (int option; (option = getopt_long(argc, argv, "fh", options, NULL)) != -1;) {
		switch (option) {
		case 'f': follow = true; break;
		case 'j': json = true; break;
		case 'r': root = instance_root(optarg); break;
		case 'h': return fputs(events_usage, stdout), EXIT_OK;
		default: return cli_usage_hint(argv[0]);
		}
	}
	if (optind != argc)
		return cli_usage_error(argv[0], "unexpected argument '%s'", argv[optind]);
	int ret = agent_connect(root, &lines, &err);
	if (ret)
		return cli_print_error(ret, &err, json);
	json_object *request = line_op("events");
	line_add_flag(request, "follow", follow);
	ret = lines_send(&lines, request, 5000);
	while (!ret && (ret = lines_receive(&lines, &event, 1000)) != -EPIPE) {
		if (ret == -EAGAIN) {
			ret = 0;
			continue;
		}
		if (!ret && json)
			cli_print_json(event);
		else if (!ret)
			print_event(event), json_object_put(event);
		fflush(stdout);
		if (ferror(stdout))
			break;
	}
	lines_done(&lines);
	return ret && ret != -EPIPE && ret != -ECONNRESET ? cli_print_error(ret, &(struct dp_err){ "the agent does not speak" }, json) :
							     EXIT_OK;
}
