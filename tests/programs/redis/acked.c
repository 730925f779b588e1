/* acked: what a Redis acknowledged, and what of it is there after a crash. The writer sends one write after the other, `MSET w:<i
 * mod WINDOW> i last i`, and notes when each was acknowledged; the checker reads `last` = m and says whether exactly the first m
 * writes are there: then the restored state is one that was, and what was lost are the writes behind it. */
#include <errno.h>
#include <getopt.h>
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WINDOW 2000u
#define PADDING 900 /* bytes behind a number: a write changes most of a page's quarter */

static void usage(void)
{
	printf("usage: acked write --port N --out FILE [--pause-us N]\n"
	       "       acked check --port N --out FILE --since UNIX_NS --until UNIX_NS\n"
	       "write: numbered writes, one after the other, until the server goes; FILE gets the time (unix, ns) of each acknowledgement.\n"
	       "check: prints `restored M of N, lost NS`: the server has exactly the first M of the N writes that FILE lists, and the oldest\n"
	       "that is missing was acknowledged NS before --until. Exits 1 where the server's data is no state that ever was, or where a\n"
	       "write is missing that was acknowledged before --since.\n");
}

static uint64_t wall_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int write_on(redisContext *server, FILE *out, unsigned pause_us)
{
	char padding[PADDING + 1];
	memset(padding, 'x', PADDING);
	padding[PADDING] = 0;
	for (uint64_t i = 1;; i++) {
		redisReply *reply = redisCommand(server, "MSET w:%" PRIu64 " %" PRIu64 ".%s last %" PRIu64, i % WINDOW, i,
						 padding, i);
		if (!reply)
			return 0; /* it has gone */
		bool good = reply->type == REDIS_REPLY_STATUS;
		if (!good)
			fprintf(stderr, "acked: write %" PRIu64 ": %s\n", i, reply->str);
		freeReplyObject(reply);
		if (!good)
			return 1;
		fprintf(out, "%" PRIu64 "\n", wall_ns());
		fflush(out);
		if (pause_us)
			usleep(pause_us);
	}
}

static uint64_t get_number(redisContext *server, const char *command)
{
	redisReply *reply = redisCommand(server, command);
	uint64_t number = reply && reply->type == REDIS_REPLY_STRING ? strtoull(reply->str, NULL, 10) : 0;
	freeReplyObject(reply);
	return number;
}

static int check(redisContext *server, FILE *out, uint64_t since_ns, uint64_t until_ns)
{
	uint64_t last = get_number(server, "GET last"), count = 0, at, first_lost_ns = 0;
	while (fscanf(out, "%" SCNu64, &at) == 1)
		if (++count == last + 1)
			first_lost_ns = at;
	int wrong = 0;
	for (uint64_t i = last > WINDOW ? last - WINDOW + 1 : 1; i < last + WINDOW; i++) {
		char command[64];
		snprintf(command, sizeof(command), "GET w:%" PRIu64, i % WINDOW);
		uint64_t expected = i <= last ? i : i > WINDOW ? i - WINDOW : 0; /* behind the last: the round before */
		uint64_t found = get_number(server, command);
		if (found != expected && wrong++ < 5)
			fprintf(stderr, "acked: w:%" PRIu64 " is %" PRIu64 ", not %" PRIu64 " (last is %" PRIu64 ")\n",
				i % WINDOW, found, expected, last);
	}
	uint64_t lost_ns = first_lost_ns && until_ns > first_lost_ns ? until_ns - first_lost_ns : 0;
	printf("restored %" PRIu64 " of %" PRIu64 ", lost %" PRIu64 "\n", last, count, lost_ns);
	if (first_lost_ns && first_lost_ns < since_ns) {
		fprintf(stderr, "acked: write %" PRIu64 " is missing, acknowledged %" PRIu64 " us before the state\n", last + 1,
			(since_ns - first_lost_ns) / 1000);
		return 1;
	}
	return wrong > 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "port", required_argument, NULL, 'p' },
		{ "out", required_argument, NULL, 'o' },
		{ "since", required_argument, NULL, 's' },
		{ "until", required_argument, NULL, 'u' },
		{ "pause-us", required_argument, NULL, 'w' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int port = 0;
	const char *path = NULL;
	uint64_t since_ns = 0, until_ns = 0;
	unsigned pause_us = 0;
	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		switch (option) {
		case 'p': port = atoi(optarg); break;
		case 'o': path = optarg; break;
		case 's': since_ns = strtoull(optarg, NULL, 10); break;
		case 'u': until_ns = strtoull(optarg, NULL, 10); break;
		case 'w': pause_us = (unsigned)atoi(optarg); break;
		default: usage(); return option == 'h' ? 0 : 2;
		}
	}
	bool writes = optind < argc && !strcmp(argv[optind], "write"), checks = optind < argc && !strcmp(argv[optind], "check");
	FILE *out = path ? fopen(path, writes ? "w" : "r") : NULL;
	if (!port || !out || writes == checks) {
		usage();
		return 2;
	}
	const struct timeval limit = {.tv_sec = 20};
	redisContext *server = redisConnectWithTimeout("127.0.0.1", port, limit);
	if (!server || server->err) {
		fprintf(stderr, "acked: connect to port %d: %s\n", port, server ? server->errstr : strerror(ENOMEM));
		return 1;
	}
	redisSetTimeout(server, limit); /* a hang is a failure too */
	int code = writes ? write_on(server, out, pause_us) : check(server, out, since_ns, until_ns);
	redisFree(server);
	fclose(out);
	return code;
}
