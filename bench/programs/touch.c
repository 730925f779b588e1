/* touch-pages: the process that the benchmarks of raw memory run on. It fills an area, then listens on loopback and does what it
 * is told, one line a job, one line of JSON an answer. It is a plain process: checkpointed while nobody is connected, restored
 * as any other, and then asked again.
 *   first             one page of each process of the tree: "ok"
 *   run JOB           see touch.h
 *   id                how this process is numbered in its namespace; then, with --one-connection, its area's pages
 * With --processes N the area is spread over a tree of N processes, of which `first` asks each. */
#include "touch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST_PROCESSES 64

static struct {
	unsigned mib, processes;
	uint64_t seed;
	bool one_connection;
	const char *port_file;
} options = {.mib = 64, .processes = 1, .seed = 1};
static struct area area;
static int child_fd[MOST_PROCESSES];
static struct touch_result result; /* large, and touched before the checkpoint as all else is */

static int die(const char *what)
{
	fprintf(stderr, "touch-pages: %s: %s\n", what, strerror(errno));
	return 1;
}

/* A child answers one byte for each byte: it touched a page, another one each time. */
static void child_serve(int fd)
{
	char byte;

	for (uint64_t turn = 1; read(fd, &byte, 1) == 1; turn++) {
		byte = touch_one(&area, turn * 7919 % area.pages) ? 'k' : 'w';
		if (write(fd, &byte, 1) != 1)
			break;
	}
	_exit(0); /* the parent has gone */
}

static bool children_start(uint64_t pages_each)
{
	for (unsigned i = 1; i < options.processes; i++) {
		int pair[2];
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
			return false;
		pid_t pid = fork();
		if (pid < 0)
			return false;
		if (pid == 0) {
			close(pair[0]);
			for (unsigned k = 1; k < i; k++)
				close(child_fd[k]);
			if (!area_make(&area, pages_each, options.seed + i) || write(pair[1], "r", 1) != 1)
				_exit(1);
			child_serve(pair[1]);
		}
		close(pair[1]);
		child_fd[i] = pair[0];
	}
	for (unsigned i = 1; i < options.processes; i++) {
		char byte;
		if (read(child_fd[i], &byte, 1) != 1)
			return false;
	}
	return true;
}

static void answer_first(FILE *peer)
{
	static uint64_t turn;
	bool good = touch_one(&area, ++turn * 7919 % area.pages);

	for (unsigned i = 1; i < options.processes; i++) {
		char byte = 't';
		good = write(child_fd[i], &byte, 1) == 1 && good;
	}
	for (unsigned i = 1; i < options.processes; i++) {
		char byte = 'w';
		good = read(child_fd[i], &byte, 1) == 1 && byte == 'k' && good;
	}
	fprintf(peer, good ? "ok\n" : "WRONG\n");
}

/* Quantiles of the slow touches only: they are the upper end of all. */
static double slow_quantile_us(double share)
{
	double slow = (double)result.slow / (double)result.touches;

	return result.slow ? latency_quantile_ns(&result.latency, 1 - slow * (1 - share)) / 1e3 : 0;
}

static void answer_run(FILE *peer, char *text)
{
	struct touch_job job;

	if (!touch_job_parse(&job, text)) {
		fprintf(peer, "{\"error\": \"no such job\"}\n");
		return;
	}
	touch_run(&area, &job, &result);
	fprintf(peer,
		"{\"touches\": %llu, \"writes\": %llu, \"seconds\": %.6f, \"touches_per_second\": %.1f, \"wrong\": %llu, "
		"\"major_faults\": %llu, \"minor_faults\": %llu, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, "
		"\"max_us\": %.1f, \"slow\": %llu, \"slow_p50_us\": %.2f, \"slow_p99_us\": %.2f, \"slow_p999_us\": %.2f, "
		"\"beat_seconds\": %.4f, \"beat_gaps\": %llu, \"beat_gap_ms\": %.3f, \"beat_longest_us\": %.1f}\n",
		(unsigned long long)result.touches, (unsigned long long)result.writes, (double)result.time_ns / 1e9,
		(double)result.touches * 1e9 / (double)(result.time_ns ? result.time_ns : 1), (unsigned long long)result.wrong,
		(unsigned long long)result.major_faults, (unsigned long long)result.minor_faults,
		latency_quantile_ns(&result.latency, 0.5) / 1e3, latency_quantile_ns(&result.latency, 0.99) / 1e3,
		latency_quantile_ns(&result.latency, 0.999) / 1e3, (double)result.latency.max_ns / 1e3,
		(unsigned long long)result.slow, slow_quantile_us(0.5), slow_quantile_us(0.99), slow_quantile_us(0.999),
		(double)result.beat_ns / 1e9, (unsigned long long)result.beat_gaps, (double)result.beat_gap_ns / 1e6,
		(double)result.beat_longest_ns / 1e3);
}

static void serve(int fd)
{
	char line[512];
	int one = 1;
	FILE *peer = fdopen(fd, "r+");

	if (!peer) {
		close(fd);
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	while (fgets(line, sizeof(line), peer)) {
		fseek(peer, 0, SEEK_CUR); /* from reading to writing, as stdio wants it */
		if (!strncmp(line, "run ", 4))
			answer_run(peer, line + 4);
		else if (!strcmp(line, "first\n"))
			answer_first(peer);
		else if (!strcmp(line, "id\n"))
			fprintf(peer, "{\"pid\": %d, \"pages\": %llu}\n", (int)getpid(), (unsigned long long)area.pages);
		else
			fprintf(peer, "{\"error\": \"no such command\"}\n");
		if (fflush(peer))
			break;
	}
	fclose(peer);
}

/* Port 0: the kernel picks one. Instances of one snapshot share the port (SO_REUSEPORT). */
static int listen_on_loopback(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t bytes = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	char text[32];

	if (fd < 0 || (options.one_connection && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one))) ||
	    bind(fd, (struct sockaddr *)&address, bytes) || getsockname(fd, (struct sockaddr *)&address, &bytes) ||
	    listen(fd, 64))
		return -1;
	int file = open(options.port_file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	int length = snprintf(text, sizeof(text), "%u\n", ntohs(address.sin_port));
	if (file < 0 || write(file, text, (size_t)length) != length || close(file))
		return -1;
	return fd;
}

static void usage(void)
{
	printf("usage: touch-pages --port-file FILE [--mib N] [--processes N] [--seed N] [--one-connection]\n"
	       "Fills N MiB (64), spread over a tree of N processes (1), listens on a port of loopback that it writes to FILE,\n"
	       "and touches its pages as it is told. --one-connection: it serves one connection and then ends, and instances of\n"
	       "one snapshot share the port: each connection reaches another one.\n");
}

static bool parse_options(int argc, char **argv)
{
	static const struct option names[] = {{"mib", 1, NULL, 'm'},	 {"processes", 1, NULL, 'p'}, {"port-file", 1, NULL, 'f'},
					      {"seed", 1, NULL, 's'}, {"one-connection", 0, NULL, 'o'}, {"help", 0, NULL, 'h'},
					      {NULL, 0, NULL, 0}};
	int option;

	while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1)
		switch (option) {
		case 'm': options.mib = (unsigned)atoi(optarg); break;
		case 'p': options.processes = (unsigned)atoi(optarg); break;
		case 'f': options.port_file = optarg; break;
		case 's': options.seed = strtoull(optarg, NULL, 10); break;
		case 'o': options.one_connection = true; break;
		case 'h': usage(); exit(0);
		default: return false;
		}
	return options.port_file && options.processes && options.processes <= MOST_PROCESSES && options.mib >= options.processes;
}

int main(int argc, char **argv)
{
	if (!parse_options(argc, argv)) {
		fprintf(stderr, "touch-pages: bad options, see --help\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	uint64_t pages_each = (uint64_t)options.mib * (1 << 20) / TOUCH_PAGE_BYTES / options.processes;
	if (!children_start(pages_each))
		return die("start the tree");
	if (!area_make(&area, pages_each, options.seed))
		return die("map the area");
	memset(&result, 1, sizeof(result));
	int listener = listen_on_loopback();
	if (listener < 0)
		return die("listen");
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0 && errno != EINTR && errno != ECONNABORTED)
			return die("accept");
		if (fd >= 0 && options.one_connection)
			close(listener);
		if (fd >= 0)
			serve(fd);
		if (fd >= 0 && options.one_connection)
			return 0;
	}
}
