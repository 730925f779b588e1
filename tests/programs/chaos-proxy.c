/* chaos-proxy: stands between a pool and its clients and does to their messages what networks do: delays them, lets answers of
 * different requests overtake each other, flips a byte, stops for a while, cuts the connection in the middle of a message.
 *
 * How it works: what comes in is cut into messages by the length in their headers (wire/message.h). Each waits in its lane's
 * queue until its time has come. Answers of one request keep their order, and so do all requests: that is what the protocol
 * promises. A stream that is no protocol of ours (TLS) is passed on as it comes: what was read at once is a message then.
 * SIGUSR1 cuts all connections; SIGUSR2 stops everything, the next lets it go on; SIGTERM ends, with one line of what was
 * done. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MOST_CONNECTIONS 64
#define LANE_BYTES (4u << 20) /* waiting in a lane; beyond that it is not read, and flow control does the rest */
#define READ_BYTES (64u << 10)
#define MESSAGE_LIMIT ((8u << 20) + 64u)

struct message {
	struct message *next;
	uint64_t due_ns, request;
	size_t bytes, sent;
	uint8_t data[];
};
struct lane {
	uint8_t *input; /* the message that is not whole yet */
	size_t input_bytes, input_room;
	struct message *first, **last;
	struct message *current; /* part of it was sent */
	size_t waiting_bytes;
	uint64_t last_due_ns;
	bool raw, ended, shut;
};
struct connection {
	int fd[2];           /* client, pool */
	struct lane lane[2]; /* lane[i] carries what fd[i] says to fd[!i] */
	uint64_t stalled_until_ns;
	bool used;
};

static struct {
	const char *listen, *to, *port_file;
	double delay_ms, jitter_ms, drop, corrupt, reorder, reorder_ms, stall, stall_ms;
	uint64_t seed, nth, quiet;
} options = {.reorder_ms = 5, .stall_ms = 200, .seed = 1};
static struct connection connections[MOST_CONNECTIONS];
static uint64_t messages, cuts, corrupted, reordered, stalls, accepted;
static volatile sig_atomic_t cut_now, stopped, ending;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t next_random(void)
{
	uint64_t x = options.seed += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static double chance(void)
{
	return (double)(next_random() >> 11) / 9007199254740992.0;
}

static void on_signal(int number)
{
	if (number == SIGUSR1)
		cut_now = 1;
	else if (number == SIGUSR2)
		stopped = !stopped;
	else
		ending = 1;
}

static int die(const char *what)
{
	fprintf(stderr, "chaos-proxy: %s: %s\n", what, strerror(errno));
	return 1;
}

/* ---- sockets: `PORT`, `HOST:PORT` or a path ---- */

static bool address_of(const char *text, struct sockaddr_storage *address, socklen_t *bytes)
{
	struct sockaddr_un *path = (struct sockaddr_un *)address;
	struct sockaddr_in *inet = (struct sockaddr_in *)address;
	char host[64] = "127.0.0.1";
	unsigned port;

	memset(address, 0, sizeof(*address));
	if (text[0] == '/') {
		if (strlen(text) >= sizeof(path->sun_path))
			return false;
		path->sun_family = AF_UNIX;
		strcpy(path->sun_path, text);
		*bytes = sizeof(*path);
		return true;
	}
	if (sscanf(text, "%63[0-9.]:%u", host, &port) != 2 && sscanf(text, "%u", &port) != 1)
		return false;
	if (!strchr(text, ':'))
		strcpy(host, "127.0.0.1");
	inet->sin_family = AF_INET;
	inet->sin_port = htons((uint16_t)port);
	*bytes = sizeof(*inet);
	return inet_pton(AF_INET, host, &inet->sin_addr) == 1;
}

static int open_listener(void)
{
	struct sockaddr_storage address;
	socklen_t bytes;
	int one = 1;

	if (!address_of(options.listen, &address, &bytes))
		return errno = EINVAL, -1;
	int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&address, bytes) || listen(fd, 64) ||
	    getsockname(fd, (struct sockaddr *)&address, &bytes))
		return -1;
	if (!options.port_file)
		return fd;
	FILE *file = fopen(options.port_file, "we");

	if (!file || fprintf(file, "%u\n", ntohs(((struct sockaddr_in *)&address)->sin_port)) < 0 || fclose(file))
		return -1;
	return fd;
}

static int connect_on(void)
{
	struct sockaddr_storage address;
	socklen_t bytes;
	int one = 1;

	if (!address_of(options.to, &address, &bytes))
		return -1;
	int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, bytes)) {
		close(fd);
		return -1;
	}
	if (address.ss_family == AF_INET)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void end_connection(struct connection *connection)
{
	for (int side = 0; side < 2; side++) {
		struct lane *lane = &connection->lane[side];

		for (struct message *message = lane->first; message;) {
			struct message *next = message->next;

			free(message);
			message = next;
		}
		free(lane->input);
		close(connection->fd[side]);
	}
	memset(connection, 0, sizeof(*connection));
}

static void begin_connection(int listener)
{
	int near = accept4(listener, NULL, NULL, SOCK_CLOEXEC), one = 1, i = 0;

	while (i < MOST_CONNECTIONS && connections[i].used)
		i++;
	int far = near >= 0 && i < MOST_CONNECTIONS ? connect_on() : -1;

	if (far < 0) {
		if (near >= 0)
			close(near);
		return;
	}
	setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* refused by Unix sockets, which need none */
	struct connection *connection = &connections[i];

	*connection = (struct connection){.fd = {near, far}, .used = true};
	for (int side = 0; side < 2; side++)
		connection->lane[side].last = &connection->lane[side].first;
	accepted++;
}

/* ---- messages ---- */

/* What happens to this one. false: the connection is cut, in its middle. */
static bool plan_message(struct connection *connection, int side, struct message *message)
{
	struct lane *lane = &connection->lane[side];
	uint64_t now = now_ns();

	messages++;
	message->due_ns = now + (uint64_t)((options.delay_ms + options.jitter_ms * chance()) * 1e6);
	if (side == 1 && !lane->raw && options.reorder > 0 && chance() < options.reorder) {
		message->due_ns += (uint64_t)(options.reorder_ms * chance() * 1e6);
		reordered++;
	} else {
		message->due_ns = message->due_ns > lane->last_due_ns ? message->due_ns : lane->last_due_ns;
		lane->last_due_ns = message->due_ns;
	}
	if (messages <= options.quiet)
		return true;
	if (options.corrupt > 0 && chance() < options.corrupt) {
		uint64_t x = next_random();

		message->data[x % message->bytes] ^= (uint8_t)(1 + (x >> 40) % 255);
		corrupted++;
	}
	if (options.stall > 0 && chance() < options.stall) {
		connection->stalled_until_ns = now + (uint64_t)(options.stall_ms * 1e6);
		stalls++;
	}
	return !(options.drop > 0 && chance() < options.drop) && messages != options.nth;
}

static bool queue_message(struct connection *connection, int side, const uint8_t *bytes, size_t count)
{
	struct lane *lane = &connection->lane[side];
	struct message *message = malloc(sizeof(*message) + count);

	if (!message)
		return false;
	*message = (struct message){.bytes = count};
	memcpy(message->data, bytes, count);
	if (!lane->raw)
		memcpy(&message->request, bytes + 8, sizeof(message->request));
	if (!plan_message(connection, side, message)) {
		/* half of it arrives */
		if (send(connection->fd[!side], bytes, count / 2, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			errno = 0;
		free(message);
		cuts++;
		return false;
	}
	*lane->last = message;
	lane->last = &message->next;
	lane->waiting_bytes += count;
	return true;
}

/* The length of the message at the front; 0: its header is not whole, or this is no stream of messages. */
static size_t message_bytes(struct lane *lane)
{
	uint32_t length;

	if (lane->input_bytes < 8)
		return 0;
	memcpy(&length, lane->input, sizeof(length));
	/* The header has grown by eight bytes with version 2. */
	size_t bytes = length + (lane->input[6] == 1 ? 32u : 40u);

	if (bytes > MESSAGE_LIMIT)
		lane->raw = true;
	return lane->raw ? 0 : bytes;
}

static bool cut_messages(struct connection *connection, int side)
{
	struct lane *lane = &connection->lane[side];
	size_t bytes;
	bool good = true;

	while (good && (bytes = message_bytes(lane)) && bytes <= lane->input_bytes) {
		uint8_t *rest = lane->input + bytes;

		good = queue_message(connection, side, lane->input, bytes);
		lane->input_bytes -= bytes;
		memmove(lane->input, rest, lane->input_bytes);
	}
	if (good && lane->raw && lane->input_bytes) {
		good = queue_message(connection, side, lane->input, lane->input_bytes);
		lane->input_bytes = 0;
	}
	return good;
}

/* Reads once. false: the connection broke. */
static bool fill(struct connection *connection, int side)
{
	struct lane *lane = &connection->lane[side];

	if (lane->input_room - lane->input_bytes < READ_BYTES) {
		uint8_t *grown = realloc(lane->input, lane->input_room + 4 * READ_BYTES);

		if (!grown)
			return false;
		lane->input = grown;
		lane->input_room += 4 * READ_BYTES;
	}
	ssize_t got = recv(connection->fd[side], lane->input + lane->input_bytes, READ_BYTES, MSG_DONTWAIT);

	if (got < 0)
		return errno == EAGAIN || errno == EINTR;
	lane->ended = got == 0;
	lane->input_bytes += (size_t)got;
	return cut_messages(connection, side);
}

/* The next to be sent: its time has come, and none of the same request is before it. */
static struct message *take_next(struct lane *lane, uint64_t now, uint64_t *next_due)
{
	for (struct message **link = &lane->first; *link; link = &(*link)->next) {
		struct message *message = *link;
		bool behind = false;

		for (const struct message *before = lane->first; before != message && !behind; before = before->next)
			behind = before->request == message->request;
		if (behind)
			continue;
		if (message->due_ns <= now) {
			*link = message->next;
			if (!message->next)
				lane->last = link;
			return message;
		}
		*next_due = message->due_ns < *next_due ? message->due_ns : *next_due;
	}
	return NULL;
}

/* Sends what is due. false: the connection broke. */
static bool drain(struct connection *connection, int side, uint64_t now, uint64_t *next_due)
{
	struct lane *lane = &connection->lane[side];

	if (connection->stalled_until_ns > now) {
		*next_due = connection->stalled_until_ns < *next_due ? connection->stalled_until_ns : *next_due;
		return true;
	}
	while (lane->current || (lane->current = take_next(lane, now, next_due))) {
		struct message *message = lane->current;
		ssize_t sent = send(connection->fd[!side], message->data + message->sent, message->bytes - message->sent,
				    MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
			*next_due = now + 200000 < *next_due ? now + 200000 : *next_due; /* the reader is slow */
			return true;
		}
		if (sent < 0)
			return false;
		message->sent += (size_t)sent;
		if (message->sent == message->bytes) {
			lane->waiting_bytes -= message->bytes;
			lane->current = NULL;
			free(message);
		}
	}
	if (lane->ended && !lane->first && !lane->shut) {
		shutdown(connection->fd[!side], SHUT_WR);
		lane->shut = true;
	}
	return true;
}

static uint64_t drain_all(void)
{
	uint64_t next = UINT64_MAX, now = now_ns();

	for (int i = 0; i < MOST_CONNECTIONS; i++) {
		struct connection *connection = &connections[i];
		bool good = true;

		if (!connection->used)
			continue;
		if (cut_now) {
			cuts++;
			end_connection(connection);
			continue;
		}
		for (int side = 0; side < 2 && good && !stopped; side++)
			good = drain(connection, side, now, &next);
		if (!good || (connection->lane[0].shut && connection->lane[1].shut))
			end_connection(connection);
	}
	cut_now = 0;
	return next;
}

/* Waits for signals too; they are let in only while it waits. */
static void wait_for_work(int listener, uint64_t next, const sigset_t *waiting)
{
	static struct pollfd watched[1 + 2 * MOST_CONNECTIONS];
	static int keys[1 + 2 * MOST_CONNECTIONS];
	uint64_t now = now_ns(), wait = next > now ? next - now : 0;
	struct timespec timeout = {(time_t)(wait / 1000000000u), (long)(wait % 1000000000u)};
	nfds_t count = 0;

	watched[count++] = (struct pollfd){.fd = listener, .events = POLLIN};
	for (int key = 0; key < 2 * MOST_CONNECTIONS && !stopped; key++) {
		const struct connection *connection = &connections[key / 2];
		const struct lane *lane = &connection->lane[key % 2];

		if (!connection->used || lane->ended || lane->waiting_bytes >= LANE_BYTES)
			continue;
		keys[count] = key;
		watched[count++] = (struct pollfd){.fd = connection->fd[key % 2], .events = POLLIN};
	}
	if (ppoll(watched, count, next == UINT64_MAX ? NULL : &timeout, waiting) <= 0)
		return;
	for (nfds_t i = 1; i < count; i++) {
		struct connection *connection = &connections[keys[i] / 2];

		if (watched[i].revents && connection->used && !fill(connection, keys[i] % 2))
			end_connection(connection);
	}
	if (watched[0].revents)
		begin_connection(listener);
}

static void usage(void)
{
	printf("usage: chaos-proxy --listen PORT|PATH --to [HOST:]PORT|PATH [options]\n"
	       "  --port-file FILE  the port it listens on goes there     --seed N     of what happens (1)\n"
	       "  --delay MS        each message waits (0)                --jitter MS  and up to so much more (0)\n"
	       "  --reorder P       answers held back, up to 5 ms; --reorder-ms MS\n"
	       "  --corrupt P       messages with a byte changed          --drop P     messages in whose middle the connection is cut\n"
	       "  --stall P         messages before which the connection stops, for 200 ms; --stall-ms MS\n"
	       "  --nth N           the Nth message cuts its connection   --quiet N    nothing but delay and order for the first N messages\n"
	       "SIGUSR1 cuts all connections, SIGUSR2 stops and goes on, SIGTERM ends.\n");
}

static bool parse_options(int argc, char **argv)
{
	static const struct option names[] = {
		{"listen", 1, NULL, 'l'}, {"to", 1, NULL, 't'},	     {"port-file", 1, NULL, 'f'},  {"seed", 1, NULL, 's'},
		{"delay", 1, NULL, 'd'},  {"jitter", 1, NULL, 'j'},  {"reorder", 1, NULL, 'r'},	   {"reorder-ms", 1, NULL, 'R'},
		{"corrupt", 1, NULL, 'c'}, {"drop", 1, NULL, 'x'},   {"stall", 1, NULL, 'p'},	   {"stall-ms", 1, NULL, 'P'},
		{"nth", 1, NULL, 'n'},	  {"quiet", 1, NULL, 'q'},   {"help", 0, NULL, 'h'},	   {NULL, 0, NULL, 0}};
	int option;

	while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1)
		switch (option) {
		case 'l': options.listen = optarg; break;
		case 't': options.to = optarg; break;
		case 'f': options.port_file = optarg; break;
		case 's': options.seed = strtoull(optarg, NULL, 10); break;
		case 'd': options.delay_ms = atof(optarg); break;
		case 'j': options.jitter_ms = atof(optarg); break;
		case 'r': options.reorder = atof(optarg); break;
		case 'R': options.reorder_ms = atof(optarg); break;
		case 'c': options.corrupt = atof(optarg); break;
		case 'x': options.drop = atof(optarg); break;
		case 'p': options.stall = atof(optarg); break;
		case 'P': options.stall_ms = atof(optarg); break;
		case 'n': options.nth = strtoull(optarg, NULL, 10); break;
		case 'q': options.quiet = strtoull(optarg, NULL, 10); break;
		case 'h': usage(); exit(0);
		default: return false;
		}
	return options.listen && options.to;
}

int main(int argc, char **argv)
{
	static const int signals[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT};
	struct sigaction action = {.sa_handler = on_signal};
	sigset_t blocked, waiting;

	if (!parse_options(argc, argv)) {
		fprintf(stderr, "chaos-proxy: bad options, see --help\n");
		return 2;
	}
	sigemptyset(&blocked);
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++) {
		sigaction(signals[i], &action, NULL);
		sigaddset(&blocked, signals[i]);
	}
	sigprocmask(SIG_BLOCK, &blocked, &waiting);
	int listener = open_listener();

	if (listener < 0)
		return die(options.listen);
	while (!ending)
		wait_for_work(listener, drain_all(), &waiting);
	printf("connections %lu messages %lu cuts %lu corrupted %lu reordered %lu stalls %lu\n", accepted, messages, cuts,
	       corrupted, reordered, stalls);
	if (options.listen[0] == '/')
		unlink(options.listen);
	return 0;
}
