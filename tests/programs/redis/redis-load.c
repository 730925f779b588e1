/* redis-load: fills a Redis, reads and writes it with a Zipf or uniform mix, and checks every value it gets.
 *
 * The model is one version number a key; a value follows from key and version (value.h). Each client thread owns the keys that
 * are its number modulo the clients, so it knows the last version of each without asking anybody. With --mirror every write
 * goes to a second server too, which then must have the same DEBUG DIGEST. The model is kept in a file between runs. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "latency.h"
#include "value.h"
#include "zipf.h"

#define MOST_BYTES (1 << 20)
#define MOST_PIPELINE 256
#define MOST_CLIENTS 64
#define REPLY_SECONDS 120 /* longer than any stall that is not a hang */

static struct {
	const char *command, *server, *mirror, *model_path;
	uint64_t keys, first_key, ops, rate, seed;
	size_t value_bytes;
	double reads;
	unsigned seconds, clients, pipeline;
	bool zipf, json, live;
} options = {.keys = 100000, .value_bytes = 1024, .reads = 0.8, .clients = 4, .pipeline = 1, .zipf = true, .seed = 1};

struct client {
	unsigned number;
	pthread_t thread;
	redisContext *server, *mirror;
	uint64_t random, done;
	struct latency latency; /* of a round trip, whole run */
	struct latency second;  /* of the running second; under `lock` */
	pthread_mutex_t lock;
};
static struct client clients[MOST_CLIENTS];
static uint32_t *versions; /* the model: version of each key, 0 where it was never written */
static _Atomic int stop, failed;
static struct zipf zipf;

static bool fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static bool fail(const char *format, ...)
{
	va_list args;

	stop = 1;
	if (atomic_exchange(&failed, 1))
		return false;
	va_start(args, format);
	fprintf(stderr, "redis-load: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	return false;
}

/* "6379", "host:6379" or "/path/of/socket". */
static redisContext *server_open(const char *name)
{
	struct timeval limit = {.tv_sec = REPLY_SECONDS};
	const char *colon = strrchr(name, ':');
	char host[256] = "127.0.0.1";

	if (colon)
		snprintf(host, sizeof(host), "%.*s", (int)(colon - name), name);
	redisContext *context = *name == '/' ? redisConnectUnixWithTimeout(name, limit)
					     : redisConnectWithTimeout(host, atoi(colon ? colon + 1 : name), limit);
	if (!context || context->err) {
		fail("connect %s: %s", name, context ? context->errstr : "out of memory");
		redisFree(context);
		return NULL;
	}
	redisSetTimeout(context, limit);
	return context;
}

static bool model_open(void)
{
	uint64_t count = options.first_key + options.keys, bytes;
	int fd = -1, flags = MAP_SHARED | MAP_ANONYMOUS;

	if (options.model_path) {
		fd = open(options.model_path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
		if (fd < 0)
			return fail("open %s: %s", options.model_path, strerror(errno));
		uint64_t present = (uint64_t)lseek(fd, 0, SEEK_END) / sizeof(*versions);
		if (present < count && ftruncate(fd, (off_t)(count * sizeof(*versions))))
			return fail("grow %s: %s", options.model_path, strerror(errno));
		flags = MAP_SHARED;
	}
	bytes = count * sizeof(*versions);
	versions = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (fd >= 0)
		close(fd);
	return versions != MAP_FAILED || fail("map the model: %s", strerror(errno));
}

/* A key of this client. Popular keys are scattered over the key space, and so over the pages. */
static uint64_t pick_key(struct client *client)
{
	uint64_t key = options.zipf ? zipf_scattered(&zipf, &client->random) : random_next(&client->random) % options.keys;

	key = key - key % options.clients + client->number;
	while (key >= options.keys)
		key -= options.clients;
	return options.first_key + key;
}

static void send_set(redisContext *context, uint64_t key, uint32_t version, void *buffer)
{
	char name[32];
	size_t name_bytes = value_key(key, name);

	value_fill(key, version, buffer, options.value_bytes);
	redisAppendCommand(context, "SET %b %b", name, name_bytes, buffer, options.value_bytes);
}

static bool check_reply(redisContext *context, const char *server, bool is_read, uint64_t key, uint32_t version, void *buffer)
{
	redisReply *reply = NULL;
	bool good = false;

	if (redisGetReply(context, (void **)&reply) != REDIS_OK || !reply)
		return fail("%s: no reply: %s", server, context->err ? context->errstr : "connection lost");
	if (reply->type == REDIS_REPLY_ERROR)
		fail("%s: %s", server, reply->str);
	else if (!is_read)
		good = reply->type == REDIS_REPLY_STATUS || fail("%s: SET answered with type %d", server, reply->type);
	else if (!version)
		good = reply->type == REDIS_REPLY_NIL ||
		       fail("WRONG %s: key %llu is there, but was never written", server, (unsigned long long)key);
	else if (reply->type != REDIS_REPLY_STRING || reply->len != options.value_bytes)
		fail("WRONG %s: key %llu version %u: %s", server, (unsigned long long)key, version,
		     reply->type == REDIS_REPLY_NIL ? "is missing" : "has another type or length");
	else {
		value_fill(key, version, buffer, options.value_bytes);
		good = !memcmp(buffer, reply->str, reply->len) ||
		       fail("WRONG %s: key %llu: content is not that of version %u", server, (unsigned long long)key, version);
	}
	freeReplyObject(reply);
	return good;
}

struct batch {
	unsigned count;
	bool is_read[MOST_PIPELINE];
	uint64_t key[MOST_PIPELINE];
	uint32_t version[MOST_PIPELINE]; /* as of this command */
};

/* Sends a batch to the server, its writes also to the mirror, and checks all replies. */
static bool batch_run(struct client *client, const struct batch *batch, void *buffer)
{
	char name[32];

	for (unsigned i = 0; i < batch->count; i++)
		if (batch->is_read[i])
			redisAppendCommand(client->server, "GET %b", name, value_key(batch->key[i], name));
		else {
			send_set(client->server, batch->key[i], batch->version[i], buffer);
			if (client->mirror)
				send_set(client->mirror, batch->key[i], batch->version[i], buffer);
		}
	uint64_t start_ns = clock_ns();
	for (unsigned i = 0; i < batch->count; i++)
		if (!check_reply(client->server, options.server, batch->is_read[i], batch->key[i], batch->version[i], buffer))
			return false;
	uint64_t spent_ns = clock_ns() - start_ns;
	latency_add(&client->latency, spent_ns, batch->count);
	pthread_mutex_lock(&client->lock);
	latency_add(&client->second, spent_ns, batch->count);
	pthread_mutex_unlock(&client->lock);
	for (unsigned i = 0; client->mirror && i < batch->count; i++)
		if (!batch->is_read[i] &&
		    !check_reply(client->mirror, options.mirror, false, batch->key[i], batch->version[i], buffer))
			return false;
	client->done += batch->count;
	return true;
}

static void batch_pick(struct client *client, struct batch *batch)
{
	batch->count = options.pipeline;
	for (unsigned i = 0; i < batch->count; i++) {
		batch->key[i] = pick_key(client);
		batch->is_read[i] = (double)(random_next(&client->random) >> 11) / (double)(1ull << 53) < options.reads;
		batch->version[i] = batch->is_read[i] ? versions[batch->key[i]] : ++versions[batch->key[i]];
	}
}

static void *client_run(void *argument)
{
	struct client *client = argument;
	uint64_t share = options.ops / options.clients, start_ns = clock_ns();
	char *buffer = malloc(MOST_BYTES);
	struct batch batch;

	while (!stop && (!options.ops || client->done < share)) {
		batch_pick(client, &batch);
		if (!batch_run(client, &batch, buffer))
			break;
		if (options.rate) { /* keep to the rate by the clock, not by the gaps */
			uint64_t due_ns = start_ns + client->done * 1000000000ull * options.clients / options.rate,
				 now = clock_ns();
			if (due_ns > now)
				usleep((useconds_t)((due_ns - now) / 1000));
		}
	}
	free(buffer);
	return NULL;
}

/* fill: version 1 of each key in order. verify: reads each key in order. */
static void *client_sweep(void *argument)
{
	struct client *client = argument;
	bool fill = !strcmp(options.command, "fill");
	char *buffer = malloc(MOST_BYTES);
	struct batch batch;

	for (uint64_t key = client->number; key < options.keys && !stop;) {
		for (batch.count = 0; batch.count < options.pipeline && key < options.keys;
		     batch.count++, key += options.clients) {
			uint64_t index = options.first_key + key;
			batch.key[batch.count] = index;
			batch.is_read[batch.count] = !fill;
			batch.version[batch.count] = fill ? ++versions[index] : versions[index];
		}
		if (!batch_run(client, &batch, buffer))
			break;
	}
	free(buffer);
	return NULL;
}

static void print_second(unsigned second, uint64_t ops, const struct latency *latency)
{
	printf(options.json ? "{\"second\": %u, \"ops\": %llu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f}\n"
			    : "%u %llu %.1f %.1f %.1f\n",
	       second, (unsigned long long)ops, latency_quantile_ns(latency, 0.5) / 1e3, latency_quantile_ns(latency, 0.99) / 1e3,
	       latency_quantile_ns(latency, 0.999) / 1e3);
	fflush(stdout);
}

/* Once a second, until the time is over or the clients are done. */
static void watch(uint64_t start_ns)
{
	for (unsigned second = 1; !stop && (!options.seconds || second <= options.seconds); second++) {
		struct latency sum = {0};
		uint64_t done = 0, due_ns = start_ns + second * 1000000000ull, now;

		while (!stop && (now = clock_ns()) < due_ns) {
			poll(NULL, 0, 1 + (int)((due_ns - now) / 1000000 < 50 ? (due_ns - now) / 1000000 : 50));
			done = 0;
			for (unsigned i = 0; i < options.clients; i++)
				done += clients[i].done;
			if (options.ops && done >= options.ops / options.clients * options.clients)
				return;
		}
		for (unsigned i = 0; i < options.clients; i++) {
			pthread_mutex_lock(&clients[i].lock);
			latency_merge(&sum, &clients[i].second);
			clients[i].second = (struct latency){0};
			pthread_mutex_unlock(&clients[i].lock);
		}
		if (options.live)
			print_second(second, sum.count, &sum);
	}
	stop = 1;
}

static void report(uint64_t spent_ns)
{
	struct latency sum = {0};
	uint64_t done = 0;

	for (unsigned i = 0; i < options.clients; i++) {
		latency_merge(&sum, &clients[i].latency);
		done += clients[i].done;
	}
	double seconds = (double)spent_ns / 1e9;
	printf(options.json
		       ? "{\"command\": \"%s\", \"ops\": %llu, \"seconds\": %.3f, \"ops_per_second\": %.0f, \"p50_us\": %.1f, "
			 "\"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, \"wrong\": %d}\n"
		       : "%s: %llu ops in %.1f s: %.0f/s  p50 %.1f us  p99 %.1f us  p999 %.1f us  max %.1f us  wrong %d\n",
	       options.command, (unsigned long long)done, seconds, (double)done / seconds, latency_quantile_ns(&sum, 0.5) / 1e3,
	       latency_quantile_ns(&sum, 0.99) / 1e3, latency_quantile_ns(&sum, 0.999) / 1e3, (double)sum.max_ns / 1e3, failed);
}

static bool print_digest(void)
{
	redisContext *context = server_open(options.server);
	redisReply *reply = context ? redisCommand(context, "DEBUG DIGEST") : NULL;
	bool good = reply && reply->type == REDIS_REPLY_STATUS;

	if (good)
		printf("%s\n", reply->str);
	else if (context)
		fail("%s: DEBUG DIGEST: %s", options.server, reply ? reply->str : context->errstr);
	if (reply)
		freeReplyObject(reply);
	if (context)
		redisFree(context);
	return good;
}

static void usage(void)
{
	printf("usage: redis-load fill|run|verify|digest --server ADDRESS [options]\n"
	       "Fills a Redis, reads and writes it, and checks every value that it gets; exits 1 on the first wrong one.\n"
	       "  fill    writes each key once more          verify  reads each key once\n"
	       "  run     reads and writes at random         digest  prints DEBUG DIGEST\n\n"
	       "  --server ADDRESS      PORT, HOST:PORT or /PATH/OF/SOCKET\n"
	       "  --mirror ADDRESS      a second server that gets the same writes\n"
	       "  --model FILE          keeps the version of each key from one run to the next\n"
	       "  --keys N              (100000)      --first-key I   number of the first key (0)\n"
	       "  --value-bytes N       (1024)        --seed N        of the random choices (1)\n"
	       "  --seconds N, --ops N  when `run` ends: time, or commands in all\n"
	       "  --reads SHARE         share of GET in `run` (0.8)\n"
	       "  --uniform             keys are equally likely (otherwise Zipf 0.99)\n"
	       "  --clients N           connections, one thread each (4)\n"
	       "  --pipeline N          commands sent at once (1); latencies are then of the whole batch\n"
	       "  --rate N              commands a second, in all\n"
	       "  --live                a line every second: second ops p50 p99 p999 (us)\n"
	       "  --json                JSON, one object a line\n");
}

static bool parse_options(int argc, char **argv)
{
	static const struct option names[] = {
		{"server", 1, NULL, 's'}, {"mirror", 1, NULL, 'm'},  {"model", 1, NULL, 'M'},	 {"keys", 1, NULL, 'k'},
		{"first-key", 1, NULL, 'f'}, {"value-bytes", 1, NULL, 'b'}, {"seed", 1, NULL, 'S'}, {"seconds", 1, NULL, 't'},
		{"ops", 1, NULL, 'o'},	  {"reads", 1, NULL, 'r'},   {"uniform", 0, NULL, 'u'},	 {"clients", 1, NULL, 'c'},
		{"pipeline", 1, NULL, 'p'}, {"rate", 1, NULL, 'R'},  {"live", 0, NULL, 'l'},	 {"json", 0, NULL, 'j'},
		{"help", 0, NULL, 'h'},	  {NULL, 0, NULL, 0}};
	int option;

	while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1)
		switch (option) {
		case 's': options.server = optarg; break;
		case 'm': options.mirror = optarg; break;
		case 'M': options.model_path = optarg; break;
		case 'k': options.keys = strtoull(optarg, NULL, 10); break;
		case 'f': options.first_key = strtoull(optarg, NULL, 10); break;
		case 'b': options.value_bytes = strtoul(optarg, NULL, 10); break;
		case 'S': options.seed = strtoull(optarg, NULL, 10); break;
		case 't': options.seconds = (unsigned)atoi(optarg); break;
		case 'o': options.ops = strtoull(optarg, NULL, 10); break;
		case 'r': options.reads = atof(optarg); break;
		case 'u': options.zipf = false; break;
		case 'c': options.clients = (unsigned)atoi(optarg); break;
		case 'p': options.pipeline = (unsigned)atoi(optarg); break;
		case 'R': options.rate = strtoull(optarg, NULL, 10); break;
		case 'l': options.live = true; break;
		case 'j': options.json = true; break;
		case 'h': usage(); exit(0);
		default: return false;
		}
	options.command = optind == argc - 1 ? argv[optind] : "";
	return options.server && options.value_bytes && options.value_bytes <= MOST_BYTES && options.clients &&
	       options.clients <= MOST_CLIENTS && options.pipeline && options.pipeline <= MOST_PIPELINE &&
	       options.keys >= options.clients;
}

static bool clients_start(void *(*routine)(void *))
{
	for (unsigned i = 0; i < options.clients; i++) {
		clients[i].number = i;
		clients[i].random = options.seed * 1000003 + i * 7919;
		pthread_mutex_init(&clients[i].lock, NULL);
		clients[i].server = server_open(options.server);
		if (!clients[i].server || (options.mirror && !(clients[i].mirror = server_open(options.mirror))))
			return false;
	}
	for (unsigned i = 0; i < options.clients; i++)
		if (pthread_create(&clients[i].thread, NULL, routine, &clients[i]))
			return fail("start a thread: %s", strerror(errno));
	return true;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	bool parsed = parse_options(argc, argv), run = parsed && !strcmp(options.command, "run");

	if (parsed && !strcmp(options.command, "digest"))
		return print_digest() ? 0 : 1;
	if (!parsed || (!run && strcmp(options.command, "fill") && strcmp(options.command, "verify"))) {
		fprintf(stderr, "redis-load: bad options, see --help\n");
		return 2;
	}
	if (!model_open())
		return 1;
	if (run && options.zipf)
		zipf_init(&zipf, options.keys);
	uint64_t start_ns = clock_ns();
	if (!clients_start(run ? client_run : client_sweep))
		return 1;
	if (run)
		watch(start_ns);
	for (unsigned i = 0; i < options.clients; i++)
		pthread_join(clients[i].thread, NULL);
	report(clock_ns() - start_ns);
	return failed ? 1 : 0;
}
