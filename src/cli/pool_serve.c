/* pool serve: the server of a pool, in the foreground. */
#include "cli/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/capability.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/base.h"
#include "base/log.h"
#include "cli/cli.h"
#include "client/captive.h"
#include "pool/server.h"
#include "sys/sandbox.h"
#include "transport/tls.h"

#define LISTEN_LIMIT 16
#define CAPTIVE_IDLE_NS (UINT64_C(2) * 1000000000)

static const char usage[] =
	"Usage: distri-proc pool serve --store URI [--listen URI]... [OPTIONS]\n"
	"\n"
	"Serves a pool until it is told to stop (SIGTERM, SIGINT). Logs to stderr, and prints one line\n"
	"`listening URI` for each place where it listens once it does.\n"
	"\n"
	"  --store URI         where pages are kept: memory:, memory:4G (at most 4 GiB), dir:/path, file:/path\n"
	"                      (made where absent; also reachable by its own name, dir:/path#NAME)\n"
	"                      dir:/path?compress=zstd (or lz4) makes a store that keeps its pages packed\n"
	"                      memory:4G?ready=1G keeps 1 GiB touched ahead of need (default 256M)\n"
	"  --listen URI        dps://0.0.0.0:7400 (TLS), tcp://127.0.0.1:7400 (port 0 picks one) or\n"
	"                      unix:///run/pool.sock; may be repeated\n"
	"  --psk-file FILE     keys of those who may connect by dps://, IDENTITY:HEXKEY lines ('pool keygen')\n"
	"  --tls-cert FILE --tls-key FILE --tls-ca FILE\n"
	"                      our certificate and key, and who signs the certificates of those who may connect\n"
	"  --access FILE       who may do what with which snapshots, and how much of it (distri-proc-pool-serve(1))\n"
	"  --quota BYTES       store at most this much, before packing\n"
	"  --max-connections N            in all (default 8192)\n"
	"  --max-connections-per-peer N   of one host or user (default 4096)\n"
	"  --allow-plaintext   listen beyond loopback although nothing is encrypted\n"
	"  --stay-awake auto|never  the host's processors do not sleep while pages are wanted at once (default)\n"
	"  --pidfile FILE      write the process id there\n"
	"  --ready-fd N        write `ready` there once listening, or `error ERRNO TEXT`\n"
	"  --verbose           log more\n";

struct serve {
	const char *store_uri, *pidfile, *access_file;
	uint64_t quota_bytes;
	unsigned connections, connections_per_peer;
	const char *listen[LISTEN_LIMIT];
	size_t listen_count;
	bool allow_plaintext, may_sleep, captive, create, verbose;
	int ready_fd;
};

static struct server *running; /* for the signal handler */

static void stop_running(int signal_number)
{
	server_stop(running);
}

static int parse_options(struct serve *serve, int argc, char **argv)
{
	static const struct option options[] = {
		{ "store", required_argument, NULL, 's' },
		{ "listen", required_argument, NULL, 'l' },
		{ "allow-plaintext", no_argument, NULL, 'a' },
		{ "stay-awake", required_argument, NULL, 'w' },
		{ "access", required_argument, NULL, 'A' },
		{ "quota", required_argument, NULL, 'q' },
		{ "max-connections", required_argument, NULL, 'm' },
		{ "max-connections-per-peer", required_argument, NULL, 'M' },
		{ "pidfile", required_argument, NULL, 'p' },
		{ "ready-fd", required_argument, NULL, 'r' },
		{ "captive", no_argument, NULL, 'c' }, /* by client/captive.c only */
		{ "create", no_argument, NULL, 'C' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	uint64_t number;

	serve->quota_bytes = UINT64_MAX;
	serve->connections = SERVER_CONNECTIONS;
	serve->connections_per_peer = SERVER_CONNECTIONS_PER_PEER;
	for (int option; (option = getopt_long(argc, argv, "hv", options, NULL)) != -1;) {
		switch (option) {
		case 's':
			serve->store_uri = optarg;
			break;
		case 'l':
			if (serve->listen_count == LISTEN_LIMIT)
				return cli_usage_error(argv[0], "more than %d --listen", LISTEN_LIMIT);
			serve->listen[serve->listen_count++] = optarg;
			break;
		case 'a':
			serve->allow_plaintext = true;
			break;
		case 'w':
			serve->may_sleep = strcmp(optarg, "never") == 0;
			if (!serve->may_sleep && strcmp(optarg, "auto") != 0)
				return cli_usage_error(argv[0], "--stay-awake takes auto or never");
			break;
		case 'A':
			serve->access_file = optarg;
			break;
		case 'q':
			if (parse_size(optarg, &serve->quota_bytes) < 0)
				return cli_usage_error(argv[0], "--quota %s is no size; for example --quota 100G", optarg);
			break;
		case 'm':
		case 'M':
			if (parse_size(optarg, &number) < 0 || number == 0 || number > 1000000)
				return cli_usage_error(argv[0], "'%s' is no number of connections", optarg);
			*(option == 'm' ? &serve->connections : &serve->connections_per_peer) = (unsigned)number;
			break;
		case 'p':
			serve->pidfile = optarg;
			break;
		case 'r':
			if (parse_size(optarg, &number) < 0 || number > 1000000 || fcntl((int)number, F_SETFD, FD_CLOEXEC) < 0)
				return cli_usage_error(argv[0], "--ready-fd %s is not an open descriptor", optarg);
			serve->ready_fd = (int)number;
			break;
		case 'c':
			serve->captive = true;
			break;
		case 'C':
			serve->create = true;
			break;
		case 'v':
			serve->verbose = true;
			break;
		case 'h':
			fputs(usage, stdout);
			return -1;
		default:
			return cli_usage_hint(argv[0]);
		}
	}
	if (optind != argc)
		return cli_usage_error(argv[0], "unexpected argument '%s'", argv[optind]);
	if (!serve->store_uri)
		return cli_usage_error(argv[0], "--store is missing; for example --store memory:");
	return 0;
}

/* The endpoint of a dir: or file: store; false for other stores. */
static bool store_endpoint(const struct serve *serve, struct endpoint *endpoint)
{
	return endpoint_parse(endpoint, serve->store_uri, NULL) == 0 &&
	       (endpoint->kind == ENDPOINT_DIR || endpoint->kind == ENDPOINT_FILE) && !endpoint->name[0];
}

static int listen_at(struct server *server, const struct endpoint *endpoint, const struct serve *serve, bool announce,
		     struct dp_err *err)
{
	const struct endpoint *in_use;
	char text[1400];
	struct tls_settings settings;

	tls_settings_from_environment(&settings);
	int result = server_listen(server, endpoint, serve->allow_plaintext || settings.allow_plaintext, &in_use, err);

	if (result < 0)
		return result;
	endpoint_pool_text(in_use, text, sizeof(text));
	log_info("serving %s at %s", serve->store_uri, text);
	if (announce) {
		printf("listening %s\n", text);
		fflush(stdout);
	}
	return 0;
}

static int listen_everywhere(struct server *server, const struct serve *serve, struct dp_err *err)
{
	struct endpoint endpoint;
	int result = 0;

	if (store_endpoint(serve, &endpoint)) {
		struct endpoint beside = { .kind = ENDPOINT_UNIX };

		result = captive_socket_path(&endpoint, beside.path, sizeof(beside.path));
		if (result < 0)
			return dp_fail_errno(err, -result, "socket beside %s", serve->store_uri);
		result = listen_at(server, &beside, serve, false, err);
	} else if (!serve->listen_count) {
		return dp_fail(err, EINVAL, "--listen is missing; for example --listen tcp://127.0.0.1:7400");
	}
	for (size_t i = 0; i < serve->listen_count && result == 0; i++) {
		result = endpoint_parse(&endpoint, serve->listen[i], err);
		if (result == 0 && ((endpoint.kind != ENDPOINT_TCP && endpoint.kind != ENDPOINT_UNIX) || endpoint.name[0]))
			result = dp_fail(
				err, EINVAL,
				"cannot listen at '%s'; write dps://0.0.0.0:7400, tcp://127.0.0.1:7400 or unix:///run/pool.sock",
				serve->listen[i]);
		if (result == 0)
			result = listen_at(server, &endpoint, serve, true, err);
	}
	return result;
}

/* A captive pool has nobody's terminal: its log lies beside its store. */
static void log_beside_store(const struct serve *serve)
{
	struct endpoint endpoint;
	char path[1100];

	if (!store_endpoint(serve, &endpoint))
		return;
	snprintf(path, sizeof(path), endpoint.kind == ENDPOINT_DIR ? "%s/pool.log" : "%s.pool.log", endpoint.path);
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd >= 0)
		log_setup(fd, LOG_LEVEL_INFO, "pool"); /* open as long as the process */
}

static void say_ready(const struct serve *serve, int result, const struct dp_err *err)
{
	if (serve->ready_fd < 0)
		return;
	if (result < 0)
		dprintf(serve->ready_fd, "error %d %s\n", -result, err->text);
	else
		dprintf(serve->ready_fd, "ready\n");
	close(serve->ready_fd);
}

static int write_pidfile(const struct serve *serve, struct dp_err *err)
{
	char text[32];

	if (!serve->pidfile)
		return 0;
	snprintf(text, sizeof(text), "%d\n", (int)getpid());
	int result = io_write_file(serve->pidfile, text, strlen(text), 0644);

	return result < 0 ? dp_fail_errno(err, -result, "write %s", serve->pidfile) : 0;
}

static void catch_signals(struct server *server)
{
	struct sigaction action = { .sa_handler = stop_running };

	running = server;
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
}

/* Each client is a descriptor: as many as the system lets us have. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

#define DEFAULT_READY "?ready=256M"

/* A server of memory has some at hand; whoever says how much is listened to. */
static int open_store(const struct serve *serve, struct store **store, struct dp_err *err)
{
	bool plain_memory = strncmp(serve->store_uri, "memory:", 7) == 0 && !strchr(serve->store_uri, '?');
	cleanup_free char *uri = format_text("%s%s", serve->store_uri, plain_memory ? DEFAULT_READY : "");

	return uri ? store_open(store, uri, !serve->captive || serve->create, err) : dp_fail_errno(err, ENOMEM, "open store");
}

/* Who may come, and how much each may have. */
static int set_rules(struct server *server, struct pool *pool, const struct serve *serve, struct dp_err *err)
{
	struct access *access = NULL;
	int result = serve->access_file ? access_read(&access, serve->access_file, err) : 0;

	if (result < 0)
		return result;
	server_set_access(server, access);
	server_set_connection_limits(server, serve->connections, serve->connections_per_peer);
	pool->slots.accounts.list[0]->quota_bytes = serve->quota_bytes;
	return 0;
}

/* What it takes to open a store of another user's and to listen at a low port; threads that a store starts keep it. Needs no
 * right of its own to be given up, so a failure is a failure. */
static int give_up_most(struct dp_err *err)
{
	return sandbox_drop_capabilities(SANDBOX_CAPABILITY(CAP_DAC_OVERRIDE) | SANDBOX_CAPABILITY(CAP_DAC_READ_SEARCH) |
						 SANDBOX_CAPABILITY(CAP_FOWNER) | SANDBOX_CAPABILITY(CAP_NET_BIND_SERVICE),
					 err);
}

/* All is open: the thread that listens to strangers keeps no capability, but where the store's files are not ours. */
static void give_up_the_rest(const struct serve *serve)
{
	struct endpoint endpoint;
	struct stat info;
	struct dp_err err;
	uint64_t keep = 0;

	if (store_endpoint(serve, &endpoint) && (stat(endpoint.path, &info) < 0 || info.st_uid != geteuid()))
		keep = SANDBOX_CAPABILITY(CAP_DAC_OVERRIDE);
	int result = sandbox_drop_capabilities(keep, &err);

	if (result == 0)
		result = sandbox_filter(SANDBOX_POOL, &err);
	if (result < 0)
		log_warn("not all was given up that is not needed: %s", err.text);
}

static int serve_pool(const struct serve *serve, struct dp_err *err)
{
	struct store *store;
	struct pool *pool = NULL;
	struct server *server = NULL;
	bool ready = false;
	/* pagers wait for it, and trees for them; on a host that it shares it is as urgent as they. Without the right to, it
	 * works on */
	setpriority(PRIO_PROCESS, 0, SERVER_NICE);
	int result = give_up_most(err);

	if (result == 0)
		result = open_store(serve, &store, err);
	if (result == 0 && serve->captive)
		log_beside_store(serve);
	if (result == 0)
		result = pool_open(&pool, store, err);
	if (result == 0)
		result = server_open(&server, pool, err);
	if (result == 0)
		result = set_rules(server, pool, serve, err);
	if (result == 0) {
		if (serve->may_sleep)
			server_let_sleep(server);
		catch_signals(server);
		result = listen_everywhere(server, serve, err);
	}
	if (result == 0)
		result = write_pidfile(serve, err);
	if (result == 0) {
		if (serve->captive)
			server_set_idle_exit(server, CAPTIVE_IDLE_NS);
		say_ready(serve, 0, err);
		ready = true;
		give_up_the_rest(serve);
		result = server_run(server);
		if (result < 0)
			dp_fail_errno(err, -result, "serve");
		log_info("no longer serving %s", serve->store_uri);
	}
	/* From here on signals have their old meaning: a second one ends a slow end. */
	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	server_close(server);
	pool_close(pool);
	if (ready && serve->pidfile)
		unlink(serve->pidfile);
	if (!ready)
		say_ready(serve, result, err);
	return result;
}

int cmd_pool_serve(int argc, char **argv)
{
	struct serve serve = { .ready_fd = -1 };
	struct dp_err err;
	int code = parse_options(&serve, argc, argv);

	if (code)
		return code < 0 ? EXIT_OK : code;
	log_setup(2, serve.verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, "pool");
	raise_descriptor_limit();
	code = serve_pool(&serve, &err);
	if (code < 0) {
		dp_err_doing(&err, "pool serve");
		return cli_print_error(code, &err, false);
	}
	return EXIT_OK;
}
