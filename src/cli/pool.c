/* pool: what is in a pool, and taking things out of it; `pool serve` is in pool_serve.c. */
#include "cli/pool.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "client/client.h"

static const char usage[] =
	"Usage: distri-proc pool COMMAND [OPTIONS]\n"
	"\n"
	"  serve --store URI --listen URI   serve a pool\n"
	"  ls POOL                          list its snapshots\n"
	"  inspect POOL/NAME                show one: its spaces, files, sizes, what it shares\n"
	"  rm POOL/NAME                     remove one\n"
	"  status POOL                      what the pool holds and does\n"
	"  scrub POOL                       look at every page stored; repair what is damaged from another pool\n"
	"  keygen IDENTITY                  make a pre-shared key for TLS\n"
	"\n"
	"POOL is dp://HOST:PORT, dps://HOST:PORT (TLS), dp+unix:///PATH, dir:/PATH or file:/PATH; with a name: dp://HOST:PORT/REPO:TAG,\n"
	"dp+unix:///PATH#REPO:TAG, dir:/PATH#REPO:TAG. 'distri-proc pool COMMAND --help' tells more.\n";

static const char usage_ls[] =
	"Usage: distri-proc pool ls [--json] POOL\n"
	"\n"
	"Lists the snapshots of a pool. SIZE is what one restores; pages that snapshots share are stored once.\n"
	"\n"
	"  --json   one object, sizes in bytes\n";
static const char usage_inspect[] =
	"Usage: distri-proc pool inspect [--json] POOL/NAME\n"
	"\n"
	"Shows a snapshot. OWN is what removing it would free: pages that no other snapshot or instance shares.\n"
	"\n"
	"  --json   one object, sizes in bytes\n";
static const char usage_rm[] = "Usage: distri-proc pool rm [--force] POOL/NAME\n"
			       "\n"
			       "Removes a snapshot. Live instances of it keep their pages until they end.\n"
			       "\n"
			       "  --force   also while instances of it live\n";
static const char usage_status[] = "Usage: distri-proc pool status [--json] POOL\n"
				   "\n"
				   "Shows what a pool holds and does.\n"
				   "\n"
				   "  --json   one object, sizes in bytes\n";

struct arguments {
	struct endpoint endpoint;
	bool json, force;
};

/* Options and the one argument. 0, or -1 where help was printed, or the exit code. */
static int parse(struct arguments *arguments, int argc, char **argv, const char *help, bool wants_name)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' }, { "force", no_argument, NULL, 'f' }, { "help", no_argument, NULL, 'h' }, { 0 }
	};
	struct dp_err err;

	*arguments = (struct arguments){ 0 };
	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		if (option == 'j' && strstr(help, "--json")) {
			arguments->json = true;
		} else if (option == 'f' && strstr(help, "--force")) {
			arguments->force = true;
		} else if (option == 'h') {
			fputs(help, stdout);
			return -1;
		} else {
			return cli_usage_hint(argv[0]);
		}
	}
	if (optind + 1 != argc)
		return cli_usage_error(argv[0], "expected one pool, like dir:/var/lib/pool%s", wants_name ? "#redis:prod" : "");
	if (endpoint_parse(&arguments->endpoint, argv[optind], &err) < 0)
		return cli_usage_error(argv[0], "%s", err.text);
	if (wants_name && !arguments->endpoint.name[0])
		return cli_usage_error(argv[0], "'%s' names a pool, not a snapshot in it", argv[optind]);
	if (!wants_name && arguments->endpoint.name[0])
		return cli_usage_error(argv[0], "'%s' names a snapshot; leave its name out", argv[optind]);
	return 0;
}

static json_object *schema_object(const char *schema)
{
	json_object *object = json_object_new_object();

	json_object_object_add(object, "schema", json_object_new_string(schema));
	return object;
}

static void add_number(json_object *object, const char *key, uint64_t number)
{
	json_object_object_add(object, key, json_object_new_uint64(number));
}

static void add_text(json_object *object, const char *key, const char *text)
{
	json_object_object_add(object, key, json_object_new_string(text));
}

static const char *format_time(uint64_t unix_ns, char *buffer, size_t size)
{
	time_t seconds = (time_t)(unix_ns / 1000000000);
	struct tm parts;

	if (!localtime_r(&seconds, &parts) || !strftime(buffer, size, "%Y-%m-%d %H:%M:%S", &parts))
		snprintf(buffer, size, "-");
	return buffer;
}

static json_object *snapshot_json(const struct snapshot_info *info)
{
	json_object *object = json_object_new_object(), *meta = json_tokener_parse(info->meta_json);

	add_text(object, "name", info->name);
	add_number(object, "created_unix_ns", info->created_unix_ns);
	add_number(object, "bytes", info->stored_pages * PAGE_BYTES);
	add_number(object, "instances", info->instances);
	json_object_object_add(object, "meta", meta);
	return object;
}

static void print_list(const struct snapshot_info *list, size_t count)
{
	int width = 4;

	for (size_t i = 0; i < count; i++)
		width = DP_MAX(width, (int)strlen(list[i].name));
	printf("%-*s  %10s  %9s  %s\n", width, "NAME", "SIZE", "INSTANCES", "CREATED");
	for (size_t i = 0; i < count; i++) {
		char size[32], created[32];

		printf("%-*s  %10s  %9u  %s\n", width, list[i].name,
		       format_size(list[i].stored_pages * PAGE_BYTES, size, sizeof(size)), list[i].instances,
		       format_time(list[i].created_unix_ns, created, sizeof(created)));
	}
}

static int list_snapshots(struct client *client, const struct arguments *arguments, struct dp_err *err)
{
	struct snapshot_info *list;
	size_t count;
	int result = client_list(client, &list, &count, err);

	if (result < 0)
		return result;
	if (arguments->json) {
		json_object *object = schema_object("distriproc.pool.ls/1"), *rows = json_object_new_array();

		for (size_t i = 0; i < count; i++)
			json_object_array_add(rows, snapshot_json(&list[i]));
		json_object_object_add(object, "snapshots", rows);
		cli_print_json(object);
	} else {
		print_list(list, count);
	}
	for (size_t i = 0; i < count; i++)
		client_snapshot_info_done(&list[i]);
	free(list);
	return 0;
}

static void print_snapshot_json(const struct snapshot_info *info, const struct message_order *order)
{
	json_object *object = schema_object("distriproc.pool.inspect/1");
	json_object *snapshot = snapshot_json(info), *spaces = json_object_new_array(), *files = json_object_new_array();
	json_object *instances = json_object_new_array();

	add_number(snapshot, "own_bytes", info->own_pages * PAGE_BYTES);
	add_number(snapshot, "stored_bytes", info->stored_bytes);
	for (size_t i = 0; i < info->space_count; i++) {
		json_object *space = json_object_new_object();

		add_number(space, "pid", info->spaces[i].label);
		add_number(space, "bytes", info->spaces[i].pages * PAGE_BYTES);
		json_object_array_add(spaces, space);
	}
	for (size_t i = 0; i < info->file_count; i++) {
		json_object *file = json_object_new_object();

		add_text(file, "name", info->files[i].name);
		add_number(file, "bytes", info->files[i].bytes);
		json_object_array_add(files, file);
	}
	for (size_t i = 0; i < info->instance_list_count; i++) {
		json_object *instance = json_object_new_object();

		add_text(instance, "name", info->instance_list[i].name);
		add_number(instance, "id", info->instance_list[i].id);
		add_number(instance, "epoch", info->instance_list[i].epoch);
		add_number(instance, "own_bytes", info->instance_list[i].own_pages * PAGE_BYTES);
		json_object_array_add(instances, instance);
	}
	json_object_object_add(snapshot, "instance_list", instances);
	json_object_object_add(snapshot, "spaces", spaces);
	json_object *recorded = json_object_new_object();

	add_number(recorded, "runs", order->count);
	add_number(recorded, "bytes", order->pages * PAGE_BYTES);
	json_object_object_add(snapshot, "recorded_order", recorded);
	json_object_object_add(snapshot, "files", files);
	json_object_object_add(object, "snapshot", snapshot);
	cli_print_json(object);
}

static void print_snapshot(const struct snapshot_info *info, const struct message_order *order)
{
	char text[64];
	uint64_t file_bytes = 0;

	for (size_t i = 0; i < info->file_count; i++)
		file_bytes += info->files[i].bytes;
	printf("name       %s\n", info->name);
	printf("created    %s\n", format_time(info->created_unix_ns, text, sizeof(text)));
	printf("pages      %s", format_size(info->stored_pages * PAGE_BYTES, text, sizeof(text)));
	printf(" (own: %s)\n", format_size(info->own_pages * PAGE_BYTES, text, sizeof(text)));
	printf("stored     %s\n", format_size(info->stored_bytes, text, sizeof(text)));
	printf("skeleton   %s in %zu files\n", format_size(file_bytes, text, sizeof(text)), info->file_count);
	printf("instances  %u\n", info->instances);
	if (order->count)
		printf("recorded   %s in %u runs: the order in which an earlier run wanted them\n",
		       format_size(order->pages * PAGE_BYTES, text, sizeof(text)), order->count);
	printf("meta       %s\n", info->meta_json);
	if (info->space_count)
		printf("\n%10s  %10s\n", "PID", "PAGES");
	for (size_t i = 0; i < info->space_count; i++)
		printf("%10" PRIu64 "  %10s\n", info->spaces[i].label,
		       format_size(info->spaces[i].pages * PAGE_BYTES, text, sizeof(text)));
	if (info->instance_list_count)
		printf("\n%10s  %5s  %s\n", "OWN", "EPOCH", "INSTANCE");
	for (size_t i = 0; i < info->instance_list_count; i++)
		printf("%10s  %5" PRIu64 "  %s\n", format_size(info->instance_list[i].own_pages * PAGE_BYTES, text, sizeof(text)),
		       info->instance_list[i].epoch, info->instance_list[i].name);
	if (info->file_count)
		printf("\n%10s  %s\n", "SIZE", "FILE");
	for (size_t i = 0; i < info->file_count; i++)
		printf("%10s  %s\n", format_size(info->files[i].bytes, text, sizeof(text)), info->files[i].name);
}

/* How much an earlier run recorded; nothing where there is no such order. */
static int count_order(struct client *client, uint64_t snapshot, struct message_order *order, struct dp_err *err)
{
	struct order_run *runs = NULL;
	size_t count = 0;
	int result = client_order_get(client, snapshot, &runs, &count, err);

	*order = (struct message_order){ .count = (uint32_t)count };
	for (size_t i = 0; i < count; i++)
		order->pages += runs[i].pages;
	free(runs);
	return result == -ENOENT ? 0 : result;
}

static int inspect_snapshot(struct client *client, const struct arguments *arguments, struct dp_err *err)
{
	struct snapshot_info info;
	int result = client_snapshot_inspect(client, arguments->endpoint.name, &info, err);

	if (result < 0)
		return result;
	struct message_order order;

	result = count_order(client, info.id, &order, err);
	if (result < 0) {
		client_snapshot_info_done(&info);
		return result;
	}
	if (arguments->json)
		print_snapshot_json(&info, &order);
	else
		print_snapshot(&info, &order);
	client_snapshot_info_done(&info);
	return 0;
}

static int remove_snapshot(struct client *client, const struct arguments *arguments, struct dp_err *err)
{
	return client_remove(client, arguments->endpoint.name, arguments->force, err);
}

static int show_status(struct client *client, const struct arguments *arguments, struct dp_err *err)
{
	struct pool_status status;
	char text[64];
	int result = client_status(client, &status, err);

	if (result < 0)
		return result;
	if (arguments->json) {
		json_object *object = schema_object("distriproc.pool.status/1");

		add_number(object, "page_bytes", status.page_slots_used * PAGE_BYTES);
		add_number(object, "stored_bytes", status.stored_bytes);
		json_object_object_add(object, "free_bytes",
				       status.page_slots_free == UINT64_MAX ?
					       NULL :
					       json_object_new_uint64(status.page_slots_free * PAGE_BYTES));
		add_number(object, "snapshots", status.snapshots);
		add_number(object, "instances", status.instances);
		add_number(object, "spaces", status.spaces);
		add_number(object, "connections", status.connections);
		add_number(object, "bytes_in", status.bytes_in);
		add_number(object, "bytes_out", status.bytes_out);
		add_number(object, "requests", status.requests);
		add_number(object, "uptime_ns", status.uptime_ns);
		cli_print_json(object);
		return 0;
	}
	printf("pages        %s\n", format_size(status.page_slots_used * PAGE_BYTES, text, sizeof(text)));
	printf("stored       %s\n", format_size(status.stored_bytes, text, sizeof(text)));
	printf("free         %s\n", status.page_slots_free == UINT64_MAX ?
					    "as memory goes" :
					    format_size(status.page_slots_free * PAGE_BYTES, text, sizeof(text)));
	printf("snapshots    %" PRIu64 "\ninstances    %" PRIu64 "\nspaces       %" PRIu64 "\nconnections  %" PRIu64 "\n",
	       status.snapshots, status.instances, status.spaces, status.connections);
	printf("received     %s\n", format_size(status.bytes_in, text, sizeof(text)));
	printf("sent         %s\n", format_size(status.bytes_out, text, sizeof(text)));
	printf("requests     %" PRIu64 "\nup           %" PRIu64 " s\n", status.requests, status.uptime_ns / 1000000000);
	return 0;
}

static const struct subcommand {
	const char *name, *usage;
	bool wants_name;
	int (*function)(struct client *client, const struct arguments *arguments, struct dp_err *err);
} subcommands[] = {
	{ "ls", usage_ls, false, list_snapshots },
	{ "inspect", usage_inspect, true, inspect_snapshot },
	{ "rm", usage_rm, true, remove_snapshot },
	{ "status", usage_status, false, show_status },
};

static int run(const struct subcommand *subcommand, int argc, char **argv)
{
	struct arguments arguments;
	struct client *client;
	struct dp_err err;
	int code = parse(&arguments, argc, argv, subcommand->usage, subcommand->wants_name);

	if (code)
		return code < 0 ? EXIT_OK : code;
	int result = client_open(&client, &arguments.endpoint, 0, &err);

	if (result == 0) {
		result = subcommand->function(client, &arguments, &err);
		client_close(client);
	}
	if (result < 0) {
		dp_err_doing(&err, "pool %s", subcommand->name);
		return cli_print_error(result, &err, arguments.json);
	}
	return EXIT_OK;
}

int cmd_pool(int argc, char **argv)
{
	const char *names[ARRAY_LENGTH(subcommands) + 3] = { "serve", "keygen", "scrub" };
	char title[64];

	if (argc < 2)
		return cli_usage_error(argv[0], "serve, ls, inspect, rm, status, scrub or keygen?");
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
		fputs(usage, stdout);
		return EXIT_OK;
	}
	snprintf(title, sizeof(title), "%s %.20s", argv[0], argv[1]);
	if (strcmp(argv[1], "serve") == 0) {
		argv[1] = title;
		return cmd_pool_serve(argc - 1, argv + 1);
	}
	if (strcmp(argv[1], "keygen") == 0) {
		argv[1] = title;
		return cmd_pool_keygen(argc - 1, argv + 1);
	}
	if (strcmp(argv[1], "scrub") == 0) {
		argv[1] = title;
		return cmd_pool_scrub(argc - 1, argv + 1);
	}
	for (size_t i = 0; i < ARRAY_LENGTH(subcommands); i++) {
		names[i + 3] = subcommands[i].name;
		if (strcmp(argv[1], subcommands[i].name) == 0) {
			argv[1] = title;
			return run(&subcommands[i], argc - 1, argv + 1);
		}
	}
	const char *nearest = cli_nearest(argv[1], names, ARRAY_LENGTH(names));

	return nearest ? cli_usage_error(argv[0], "no command '%s'; did you mean '%s'?", argv[1], nearest) :
			 cli_usage_error(argv[0], "no command '%s'", argv[1]);
}
