/* ycsb: the core workloads of YCSB against a Redis: A (half updates), B (5 % updates), C (reads), F (half read-modify-write), and
 * U (reads, uniform). Keys are Zipf 0.99 but for U; records are strings of 1000 bytes, as redis-load or `fill` writes them.
 *
 * How it works: one thread, many connections, one operation in flight on each. Closed loop: a connection that is done begins the
 * next operation at once; that is the maximum throughput. Open loop (--rate): operations begin by a schedule, whatever the
 * server does; one that finds no idle connection waits, and its latency counts from the time it was due. So a server that stands
 * still for a second shows in all the operations of that second (no coordinated omission).
 *
 * Values carry one of VERSIONS known contents of their key, so each answer can be checked without a model of who wrote last. */
#include <errno.h>
#include <getopt.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>

#include "latency.h"
#include "value.h"
#include "zipf.h"

#define MOST_CLIENTS 256
#define MOST_VALUE_BYTES 65536
#define VERSIONS 8
#define STALL_NS 60000000000ull /* longer than any stall that is not a hang */
#define BACKLOG_LIMIT 10000000  /* operations due and not begun: the server is far too slow for the rate */

static struct {
	const char *server, *workload;
	uint64_t keys, seed;
	double rate, seconds, updates;
	unsigned clients, value_bytes;
	bool modify, uniform;
} options = {.workload = "C", .keys = 100000, .seed = 1, .seconds = 1, .clients = 16, .value_bytes = 1000};

struct client {
	redisContext *context;
	uint64_t key, due_ns;
	bool busy, writes, second_half; /* second_half: the write of a read-modify-write */
};
static struct client clients[MOST_CLIENTS];
static struct zipf zipf;
static struct latency latency;
static uint64_t random_state, started, finished, wrong, missing, busy_count;
static int epoll_fd;

static int die(const char *what, const char *why)
{
	fprintf(stderr, "ycsb: %s: %s\n", what, why);
	exit(1);
}

static double random_share(void)
{
	return (double)(random_next(&random_state) >> 11) / (double)(1ull << 53);
}

static void client_send(struct client *client)
{
	int done = 0;

	while (!done)
		if (redisBufferWrite(client->context, &done) != REDIS_OK)
			die("send", client->context->errstr);
}

static void send_read(struct client *client)
{
	char key[32];
	size_t bytes = value_key(client->key, key);

	redisAppendCommand(client->context, "GET %b", key, bytes);
	client_send(client);
}

static void send_write(struct client *client)
{
	static char value[MOST_VALUE_BYTES + 8];
	char key[32];
	size_t bytes = value_key(client->key, key);

	value_fill(client->key, 1 + (uint32_t)(random_next(&random_state) % VERSIONS), value, options.value_bytes);
	redisAppendCommand(client->context, "SET %b %b", key, bytes, value, (size_t)options.value_bytes);
	client_send(client);
}

static void operation_begin(struct client *client, uint64_t due_ns)
{
	client->key = options.uniform ? random_next(&random_state) % options.keys : zipf_scattered(&zipf, &random_state);
	client->writes = random_share() < options.updates;
	client->second_half = false;
	client->due_ns = due_ns;
	client->busy = true;
	busy_count++;
	started++;
	if (client->writes && !options.modify)
		send_write(client);
	else
		send_read(client);
}

/* The whole value of one in sixteen, the first word of all others. */
static bool value_is_good(const struct client *client, const char *value)
{
	static char right[MOST_VALUE_BYTES + 8];
	bool whole = client->key % 16 == finished % 16;

	for (uint32_t version = 1; version <= VERSIONS; version++) {
		value_fill(client->key, version, right, 8);
		if (memcmp(right, value, 8))
			continue;
		if (whole)
			value_fill(client->key, version, right, options.value_bytes);
		return !whole || !memcmp(right, value, options.value_bytes);
	}
	return false;
}

static void check_reply(const struct client *client, const redisReply *reply)
{
	bool is_write = client->writes && (!options.modify || client->second_half);

	if (reply->type == REDIS_REPLY_ERROR)
		die("the server answers", reply->str);
	if (is_write)
		wrong += reply->type != REDIS_REPLY_STATUS;
	else if (reply->type == REDIS_REPLY_NIL)
		missing++;
	else
		wrong += reply->type != REDIS_REPLY_STRING || reply->len != options.value_bytes ||
			 !value_is_good(client, reply->str);
}

/* Takes an answer if it is whole. true: the operation is done. */
static bool operation_go_on(struct client *client)
{
	void *reply = NULL;

	if (redisBufferRead(client->context) != REDIS_OK)
		die("receive", client->context->errstr);
	if (redisGetReplyFromReader(client->context, &reply) != REDIS_OK)
		die("receive", client->context->errstr);
	if (!reply)
		return false;
	check_reply(client, reply);
	freeReplyObject(reply);
	if (options.modify && client->writes && !client->second_half) {
		client->second_half = true;
		send_write(client);
		return false;
	}
	latency_add(&latency, clock_ns() - client->due_ns, 1);
	client->busy = false;
	busy_count--;
	finished++;
	return true;
}

/* Begins what is due on idle connections. Returns ns until the next is due, or a long time. */
static uint64_t begin_due(uint64_t start_ns, uint64_t end_ns, double gap_ns)
{
	uint64_t now = clock_ns();

	for (unsigned i = 0; i < options.clients; i++) {
		uint64_t due_ns = gap_ns > 0 ? start_ns + (uint64_t)((double)started * gap_ns) : now;
		if (due_ns > now || due_ns >= end_ns)
			return due_ns > now && due_ns < end_ns ? due_ns - now : STALL_NS;
		if (gap_ns > 0 && (double)(now - due_ns) / gap_ns > BACKLOG_LIMIT)
			die("open loop", "the server is too slow for the rate");
		if (!clients[i].busy)
			operation_begin(&clients[i], due_ns);
	}
	return STALL_NS;
}

static uint64_t run(void)
{
	struct epoll_event events[MOST_CLIENTS];
	double gap_ns = options.rate > 0 ? 1e9 / options.rate : 0;
	uint64_t start_ns = clock_ns(), end_ns = start_ns + (uint64_t)(options.seconds * 1e9), progress_ns = start_ns;

	/* what was due before the end is finished, however long that takes */
	for (;;) {
		uint64_t wait_ns = begin_due(start_ns, end_ns, gap_ns), now = clock_ns();
		bool all_due = gap_ns > 0 ? start_ns + (uint64_t)((double)started * gap_ns) >= end_ns : now >= end_ns;
		if (!busy_count && all_due)
			return now - start_ns;
		/* epoll counts in ms: a schedule finer than that is kept by looking again and again */
		int count = epoll_wait(epoll_fd, events, MOST_CLIENTS, wait_ns < 2000000 ? 0 : 1000);
		for (int i = 0; i < count; i++)
			operation_go_on(&clients[events[i].data.u32]);
		if (count > 0)
			progress_ns = now;
		if (busy_count && now - progress_ns > STALL_NS)
			die("run", "no answer for a minute");
	}
}

static redisContext *server_open(void)
{
	const char *colon = strrchr(options.server, ':');
	char host[256] = "127.0.0.1";

	if (colon)
		snprintf(host, sizeof(host), "%.*s", (int)(colon - options.server), options.server);
	redisContext *context = *options.server == '/' ? redisConnectUnix(options.server)
						       : redisConnect(host, atoi(colon ? colon + 1 : options.server));
	if (!context || context->err)
		die(options.server, context ? context->errstr : "out of memory");
	return context;
}

/* Connects with blocking sockets; from then on they do not block: a read that finds nothing is the loop's next turn. */
static void connect_all(void)
{
	for (unsigned i = 0; i < options.clients; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
		clients[i].context = server_open();
		redisEnableKeepAlive(clients[i].context);
		clients[i].context->flags &= ~REDIS_BLOCK;
		if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, clients[i].context->fd, &event))
			die("watch a connection", strerror(errno));
	}
}

static bool set_workload(void)
{
	switch (options.workload[0]) {
	case 'A': options.updates = 0.5; return true;
	case 'B': options.updates = 0.05; return true;
	case 'C': return true;
	case 'F': options.updates = 0.5; options.modify = true; return true;
	case 'U': options.uniform = true; return true;
	default: return false;
	}
}

static void usage(void)
{
	printf("usage: ycsb --server ADDRESS [options]\n"
	       "  --server ADDRESS   PORT, HOST:PORT or /PATH/OF/SOCKET    --workload A|B|C|F|U  (C; U is C with uniform keys)\n"
	       "  --keys N           (100000)                              --value-bytes N       (1000)\n"
	       "  --clients N        connections (16)                      --seconds S           (1)\n"
	       "  --rate N           operations a second by a schedule; without, as many as go\n"
	       "  --seed N           of the random choices (1)\n"
	       "Prints one JSON object. Exits 1 on a wrong or missing value.\n");
}

static bool parse_options(int argc, char **argv)
{
	static const struct option names[] = {{"server", 1, NULL, 's'},	 {"workload", 1, NULL, 'w'}, {"keys", 1, NULL, 'k'},
					      {"clients", 1, NULL, 'c'}, {"value-bytes", 1, NULL, 'b'}, {"seconds", 1, NULL, 't'},
					      {"rate", 1, NULL, 'r'},	 {"seed", 1, NULL, 'S'},     {"help", 0, NULL, 'h'},
					      {NULL, 0, NULL, 0}};
	int option;

	while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1)
		switch (option) {
		case 's': options.server = optarg; break;
		case 'w': options.workload = optarg; break;
		case 'k': options.keys = strtoull(optarg, NULL, 10); break;
		case 'c': options.clients = (unsigned)atoi(optarg); break;
		case 'b': options.value_bytes = (unsigned)atoi(optarg); break;
		case 't': options.seconds = atof(optarg); break;
		case 'r': options.rate = atof(optarg); break;
		case 'S': options.seed = strtoull(optarg, NULL, 10); break;
		case 'h': usage(); exit(0);
		default: return false;
		}
	return options.server && options.keys && options.clients && options.clients <= MOST_CLIENTS && options.value_bytes >= 8 &&
	       options.value_bytes <= MOST_VALUE_BYTES && options.seconds > 0 && set_workload();
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (!parse_options(argc, argv)) {
		fprintf(stderr, "ycsb: bad options, see --help\n");
		return 2;
	}
	random_state = options.seed * 1000003;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (!options.uniform)
		zipf_init(&zipf, options.keys);
	connect_all();
	double seconds = (double)run() / 1e9;
	printf("{\"workload\": \"%s\", \"operations\": %llu, \"seconds\": %.4f, \"per_second\": %.1f, \"p50_us\": %.1f, "
	       "\"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, \"wrong\": %llu, \"missing\": %llu}\n",
	       options.workload, (unsigned long long)finished, seconds, (double)finished / seconds,
	       latency_quantile_ns(&latency, 0.5) / 1e3, latency_quantile_ns(&latency, 0.99) / 1e3,
	       latency_quantile_ns(&latency, 0.999) / 1e3, (double)latency.max_ns / 1e3, (unsigned long long)wrong,
	       (unsigned long long)missing);
	return wrong || missing ? 1 : 0;
}
