/* first-get: asks a Redis for one key until the right answer comes, and prints how long that took, in ns. The command that brings
 * the Redis up can be started by it, so that the clock starts right before it. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sys/un.h>
#include <unistd.h>

#include "value.h"

#define MOST_BYTES (1 << 20)

struct options {
	struct sockaddr_storage address;
	socklen_t address_bytes;
	uint64_t index, since_ns, timeout_ms;
	uint32_t version;
	size_t value_bytes;
	const char *model, *command_log, *pidfile, *request, *answer;
	char **command; /* or NULL */
};

/* Answers 1 for the right value, 0 for "not yet" (no connection, loading), -1 for a wrong value. */
static int ask(const struct options *options, const char *request, size_t request_bytes, const char *right, size_t right_bytes)
{
	static char answer[MOST_BYTES + 64];
	struct timeval limit = {.tv_sec = (time_t)(options->timeout_ms / 1000) + 1};
	int fd = socket(options->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	size_t length = 0;
	ssize_t got = 1;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (options->address.ss_family == AF_INET)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (fd < 0 || connect(fd, (const struct sockaddr *)&options->address, options->address_bytes) ||
	    send(fd, request, request_bytes, MSG_NOSIGNAL) != (ssize_t)request_bytes)
		got = 0;
	while (got > 0 && length < right_bytes && !(length > 4 && (answer[0] == '-' || !memcmp(answer, "$-1\r\n", 5)))) {
		got = recv(fd, answer + length, sizeof(answer) - length, 0);
		if (got > 0)
			length += (size_t)got;
	}
	if (fd >= 0)
		close(fd);
	if (length == right_bytes && !memcmp(answer, right, right_bytes))
		return 1;
	return length < 5 || answer[0] == '-' ? 0 : -1;
}

static void usage(void)
{
	printf("usage: first-get (--port N | --socket PATH) [--host ADDRESS] [--index I] [--version V] [--value-bytes N]\n"
	       "                 [--model FILE] [--since NS] [--timeout-ms N] [--request LINE --answer LINE]\n"
	       "                 [--command-log FILE] [--pidfile FILE] [-- COMMAND...]\n"
	       "Asks for key number I, as redis-load filled it, again and again until the right answer comes. Prints the ns since\n"
	       "its start, or since the given time of CLOCK_MONOTONIC. Exits 1 on a wrong answer or after the timeout (30000 ms).\n"
	       "The version is V (1), or what the model file of redis-load says. COMMAND is started when the clock starts, and left\n"
	       "running when the answer is there; should it fail before, that is the end. Its pid goes to --pidfile.\n"
	       "--request and --answer: one line to ask and the right answer's, of a server that is no Redis.\n");
}

static bool set_address(struct options *options, const char *host, int port, const char *path)
{
	if (path) {
		struct sockaddr_un *address = (struct sockaddr_un *)&options->address;
		address->sun_family = AF_UNIX;
		options->address_bytes = sizeof(*address);
		return snprintf(address->sun_path, sizeof(address->sun_path), "%s", path) < (int)sizeof(address->sun_path);
	}
	struct sockaddr_in *address = (struct sockaddr_in *)&options->address;
	address->sin_family = AF_INET;
	address->sin_port = htons((uint16_t)port);
	options->address_bytes = sizeof(*address);
	return port > 0 && inet_pton(AF_INET, host, &address->sin_addr) == 1;
}

static bool parse_options(int argc, char **argv, struct options *options)
{
	static const struct option names[] = {
		{ "host", 1, NULL, 'H' },    { "port", 1, NULL, 'p' },	      { "socket", 1, NULL, 's' },
		{ "index", 1, NULL, 'i' },   { "version", 1, NULL, 'v' },     { "value-bytes", 1, NULL, 'b' },
		{ "since", 1, NULL, 'S' },   { "timeout-ms", 1, NULL, 't' },  { "help", 0, NULL, 'h' },
		{ "model", 1, NULL, 'm' },   { "command-log", 1, NULL, 'l' }, { "pidfile", 1, NULL, 'P' },
		{ "request", 1, NULL, 'r' }, { "answer", 1, NULL, 'a' },      { NULL, 0, NULL, 0 }
	};
	const char *host = "127.0.0.1", *path = NULL;
	int option, port = 0;

	while ((option = getopt_long(argc, argv, "+h", names, NULL)) != -1)
		switch (option) {
		case 'H': host = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 's': path = optarg; break;
		case 'i': options->index = strtoull(optarg, NULL, 10); break;
		case 'v': options->version = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'b': options->value_bytes = strtoul(optarg, NULL, 10); break;
		case 'S': options->since_ns = strtoull(optarg, NULL, 10); break;
		case 't': options->timeout_ms = strtoull(optarg, NULL, 10); break;
		case 'm': options->model = optarg; break;
		case 'l': options->command_log = optarg; break;
		case 'P': options->pidfile = optarg; break;
		case 'r': options->request = optarg; break;
		case 'a': options->answer = optarg; break;
		case 'h': usage(); exit(0);
		default: return false;
		}
	options->command = optind < argc ? argv + optind : NULL;
	return options->value_bytes <= MOST_BYTES && !options->request == !options->answer &&
	       set_address(options, host, port, path);
}

static bool read_model(struct options *options)
{
	int fd = open(options->model, O_RDONLY | O_CLOEXEC);
	bool good = fd >= 0 && pread(fd, &options->version, sizeof(options->version),
				     (off_t)(options->index * sizeof(uint32_t))) == (ssize_t)sizeof(options->version);

	if (fd >= 0)
		close(fd);
	if (!good)
		fprintf(stderr, "first-get: %s holds no version of key %llu\n", options->model,
			(unsigned long long)options->index);
	return good;
}

static pid_t start_command(const struct options *options)
{
	pid_t pid = fork();

	if (pid > 0 && options->pidfile) {
		FILE *file = fopen(options->pidfile, "we");
		if (!file || fprintf(file, "%d\n", (int)pid) < 0 || fclose(file))
			fprintf(stderr, "first-get: write %s: %s\n", options->pidfile, strerror(errno));
	}
	if (pid)
		return pid;
	/* what the caller captures ends with us, not with the command */
	int log = open(options->command_log ? options->command_log : "/dev/null", O_WRONLY | O_CREAT | O_TRUNC, 0644);
	dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), STDIN_FILENO);
	dup2(log, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
	if (log > STDERR_FILENO)
		close(log);
	execvp(options->command[0], options->command);
	_exit(127);
}

static bool command_failed(pid_t pid)
{
	int status;

	return pid > 0 && waitpid(pid, &status, WNOHANG) == pid && !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* What is asked and what is right; returns the request's length. */
static size_t make_texts(const struct options *options, char *request, size_t size, char *right, size_t *right_bytes)
{
	char key[32];

	if (options->request) {
		*right_bytes = (size_t)snprintf(right, 256, "%s\n", options->answer);
		*right_bytes = *right_bytes < 256 ? *right_bytes : 255;
		return (size_t)snprintf(request, size, "%.*s\n", (int)size - 2, options->request);
	}
	size_t key_bytes = value_key(options->index, key);
	int head = snprintf(right, 64, "$%zu\r\n", options->value_bytes);

	value_fill(options->index, options->version, right + head, options->value_bytes);
	memcpy(right + (size_t)head + options->value_bytes, "\r\n", 2);
	*right_bytes = (size_t)head + options->value_bytes + 2;
	return (size_t)snprintf(request, size, "*2\r\n$3\r\nGET\r\n$%zu\r\n%s\r\n", key_bytes, key);
}

int main(int argc, char **argv)
{
	struct options options = {.version = 1, .value_bytes = 1024, .timeout_ms = 30000};
	static char right[MOST_BYTES + 64];
	char request[256];
	size_t right_bytes;

	if (!parse_options(argc, argv, &options)) {
		fprintf(stderr, "first-get: bad options, see --help\n");
		return 2;
	}
	if (options.model && !read_model(&options))
		return 1;
	size_t request_bytes = make_texts(&options, request, sizeof(request), right, &right_bytes);
	int answer;
	uint64_t start_ns = clock_ns();
	pid_t command = options.command ? start_command(&options) : 0;
	while ((answer = ask(&options, request, request_bytes, right, right_bytes)) == 0) {
		if (clock_ns() - start_ns > options.timeout_ms * 1000000) {
			fprintf(stderr, "first-get: no right answer after %llu ms\n", (unsigned long long)options.timeout_ms);
			return 1;
		}
		if (command_failed(command)) {
			fprintf(stderr, "first-get: %s failed%s%s\n", options.command[0], options.command_log ? ", see " : "",
				options.command_log ? options.command_log : "");
			return 1;
		}
		usleep(100);
	}
	if (answer < 0) {
		fprintf(stderr, "first-get: WRONG answer\n");
		return 1;
	}
	printf("%llu\n", (unsigned long long)(clock_ns() - (options.since_ns ? options.since_ns : start_ns)));
	return 0;
}
