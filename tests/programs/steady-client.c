/* steady-client: one connection to a Redis, on which it writes and reads without a pause, one request at a time, and remembers
 * every write that was acknowledged. It never connects again: a connection that breaks is a failure.
 *
 *   steady-client HOST PORT STOP_FILE [KEYS]
 * Until STOP_FILE exists. Then it reads every key back, and prints one line: requests, the longest time between two answers and
 * when it was, the second longest, and `ok`, or what went wrong. Exit code 0 only with `ok`.
 * Each value holds its key and a number that rises; a read must give the last acknowledged number. */
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAD "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static double seconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int fail(const redisContext *redis, const char *what, unsigned key, uint64_t number)
{
	printf("failed: %s key %u number %" PRIu64 ": %s\n", what, key, number, redis->errstr);
	return 1;
}

static int check(redisContext *redis, unsigned key, uint64_t number)
{
	unsigned got_key;
	uint64_t got;
	redisReply *reply = redisCommand(redis, "GET steady:%u", key);
	if (!reply)
		return fail(redis, "read", key, number);
	bool good = number == 0 ? reply->type == REDIS_REPLY_NIL
				: reply->type == REDIS_REPLY_STRING &&
					  sscanf(reply->str, "%u %" SCNu64, &got_key, &got) == 2 && got_key == key && got == number;
	if (!good)
		printf("failed: key %u was acknowledged as %" PRIu64 ", read as %s\n", key, number, reply->str ? reply->str : "nothing");
	freeReplyObject(reply);
	return good ? 0 : 1;
}

int main(int argc, char **argv)
{
	if (argc < 4) {
		fprintf(stderr, "usage: steady-client HOST PORT STOP_FILE [KEYS]\n");
		return 2;
	}
	unsigned keys = argc > 4 ? (unsigned)atoi(argv[4]) : 2000;
	uint64_t *acknowledged = calloc(keys, sizeof(*acknowledged)), requests = 0;
	redisContext *redis = redisConnect(argv[1], atoi(argv[2]));
	if (!acknowledged || !redis || redis->err) {
		printf("failed: connect: %s\n", redis ? redis->errstr : "memory");
		return 1;
	}
	double begun = seconds(), last = begun, longest = 0, longest_at = 0, second = 0;
	unsigned random = 1;
	while (access(argv[3], F_OK)) {
		random = random * 1664525u + 1013904223u;
		unsigned key = (random >> 8) % keys;
		char value[160];
		snprintf(value, sizeof(value), "%u %" PRIu64 " " PAD, key, requests + 1);
		redisReply *reply = redisCommand(redis, "SET steady:%u %s", key, value);
		if (!reply || reply->type != REDIS_REPLY_STATUS)
			return fail(redis, "write", key, requests + 1);
		freeReplyObject(reply);
		acknowledged[key] = ++requests;
		unsigned other = (random >> 4) % keys;
		if (check(redis, other, acknowledged[other]))
			return 1;
		double now = seconds();
		if (now - last > longest) {
			second = longest;
			longest = now - last;
			longest_at = last - begun;
		} else if (now - last > second) {
			second = now - last;
		}
		last = now;
	}
	for (unsigned key = 0; key < keys; key++)
		if (check(redis, key, acknowledged[key]))
			return 1;
	printf("requests %" PRIu64 " gap_ms %.1f at_s %.2f second_ms %.1f ok\n", 2 * requests, longest * 1e3, longest_at, second * 1e3);
	redisFree(redis);
	free(acknowledged);
	return 0;
}
