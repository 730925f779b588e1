/* wan-proxy: a TCP proxy that makes loopback a long, thin link: each direction has a bandwidth, shared by all connections as a
 * cable is, and a delay of half the round-trip time.
 *
 * How it works: bytes read from one side get the time at which they would have arrived at the other: when the link is free again
 * after all before them, plus the delay. They wait in a ring until then. The ring holds what the link itself holds (bandwidth x
 * delay) and a router's queue; when it is full the proxy does not read, and TCP's own flow control does the rest. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MOST_CONNECTIONS 256
#define CHUNK_BYTES 16384 /* the grain of pacing: 1.3 ms at 100 Mbit/s */
#define QUEUE_BYTES (256 * 1024)
#define CHUNKS 8192

struct chunk {
	uint64_t due_ns;
	uint32_t bytes;
};
/* One direction of a connection. */
struct lane {
	uint8_t *ring;
	uint64_t head, tail; /* bytes ever put in, taken out */
	struct chunk chunks[CHUNKS];
	uint64_t chunk_head, chunk_tail;
	bool ended, shut; /* the source has ended; the other side was told */
};
struct connection {
	int fd[2];
	struct lane lane[2]; /* lane[i] carries what fd[i] says to fd[!i] */
	bool used;
};

static struct {
	uint16_t listen_port;
	struct sockaddr_in to;
	double rtt_ms, mbit;
	const char *port_file;
} options;
static uint64_t link_free_ns[2], delay_ns, ring_bytes;
static struct connection connections[MOST_CONNECTIONS];
static int epoll_fd, timer_fd;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static int die(const char *what)
{
	fprintf(stderr, "wan-proxy: %s: %s\n", what, strerror(errno));
	return 1;
}

static void connection_end(struct connection *connection)
{
	for (int i = 0; i < 2; i++) {
		if (connection->fd[i] >= 0)
			close(connection->fd[i]);
		free(connection->lane[i].ring);
	}
	connection->used = false;
}

/* Reading is waited for while there is room, writing never: the timer drives it, and a full socket is tried again. */
static void watch(struct connection *connection, int side)
{
	struct lane *lane = &connection->lane[side];
	bool room = !lane->ended && lane->head - lane->tail + CHUNK_BYTES <= ring_bytes &&
		    lane->chunk_head - lane->chunk_tail < CHUNKS;
	struct epoll_event event = {.events = room ? EPOLLIN : 0,
				    .data.u64 = (uint64_t)(connection - connections) * 2 + (uint64_t)side + 2};

	epoll_ctl(epoll_fd, EPOLL_CTL_MOD, connection->fd[side], &event);
}

/* Reads one chunk and dates it. false: the connection broke. */
static bool lane_fill(struct connection *connection, int side)
{
	struct lane *lane = &connection->lane[side];
	uint64_t at = lane->head % ring_bytes, room = ring_bytes - at < CHUNK_BYTES ? ring_bytes - at : CHUNK_BYTES;
	ssize_t got = recv(connection->fd[side], lane->ring + at, room, MSG_DONTWAIT);

	if (got < 0)
		return errno == EAGAIN || errno == EINTR;
	if (got == 0) {
		lane->ended = true;
		return true;
	}
	uint64_t now = now_ns(), start = link_free_ns[side] > now ? link_free_ns[side] : now;
	link_free_ns[side] = start + (uint64_t)((double)got * 8e3 / options.mbit);
	lane->chunks[lane->chunk_head++ % CHUNKS] = (struct chunk){link_free_ns[side] + delay_ns, (uint32_t)got};
	lane->head += (uint64_t)got;
	return true;
}

/* Sends what has arrived by now. Gives the time of what is next, UINT64_MAX where nothing waits, 0 where the connection broke. */
static uint64_t lane_drain(struct connection *connection, int side, uint64_t now)
{
	struct lane *lane = &connection->lane[side];

	while (lane->chunk_tail != lane->chunk_head) {
		struct chunk *chunk = &lane->chunks[lane->chunk_tail % CHUNKS];
		if (chunk->due_ns > now)
			return chunk->due_ns;
		uint64_t at = lane->tail % ring_bytes;
		ssize_t sent = send(connection->fd[!side], lane->ring + at, chunk->bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && errno != EAGAIN && errno != EINTR)
			return 0;
		if (sent < 0)
			return now + 100000; /* the reader is slow: its buffer is part of the path */
		lane->tail += (uint64_t)sent;
		chunk->bytes -= (uint32_t)sent;
		lane->chunk_tail += chunk->bytes == 0;
	}
	if (lane->ended && !lane->shut) {
		shutdown(connection->fd[!side], SHUT_WR);
		lane->shut = true;
	}
	return UINT64_MAX;
}

static void drain_all(void)
{
	uint64_t next = UINT64_MAX, now = now_ns();
	struct itimerspec timer = {0};

	for (int i = 0; i < MOST_CONNECTIONS; i++) {
		struct connection *connection = &connections[i];
		bool broken = false;
		for (int side = 0; connection->used && side < 2; side++) {
			uint64_t due = lane_drain(connection, side, now);
			broken = broken || due == 0;
			if (due && due < next)
				next = due;
			watch(connection, side);
		}
		if (connection->used && (broken || (connection->lane[0].shut && connection->lane[1].shut)))
			connection_end(connection);
	}
	if (next != UINT64_MAX) {
		timer.it_value.tv_sec = (time_t)(next / 1000000000u);
		timer.it_value.tv_nsec = (long)(next % 1000000000u);
	}
	timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &timer, NULL);
}

static void connection_begin(int listener)
{
	int near = accept4(listener, NULL, NULL, SOCK_CLOEXEC), one = 1, i = 0;

	while (i < MOST_CONNECTIONS && connections[i].used)
		i++;
	int far = near >= 0 && i < MOST_CONNECTIONS ? socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
	if (far < 0 || connect(far, (struct sockaddr *)&options.to, sizeof(options.to))) {
		if (near >= 0)
			close(near);
		if (far >= 0)
			close(far);
		return;
	}
	struct connection *connection = &connections[i];
	*connection = (struct connection){.fd = {near, far}, .used = true};
	for (int side = 0; side < 2; side++) {
		struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)i * 2 + (uint64_t)side + 2};
		setsockopt(connection->fd[side], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		connection->lane[side].ring = malloc(ring_bytes);
		if (!connection->lane[side].ring || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connection->fd[side], &event)) {
			connection_end(connection);
			return;
		}
	}
}

static int serve(int listener)
{
	struct epoll_event events[64], event = {.events = EPOLLIN, .data.u64 = 0};

	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event))
		return die("watch the listener");
	event.data.u64 = 1;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event))
		return die("watch the timer");
	for (;;) {
		int count = epoll_wait(epoll_fd, events, 64, -1);
		for (int i = 0; i < count; i++) {
			uint64_t key = events[i].data.u64, expired;
			if (key == 0)
				connection_begin(listener);
			else if (key == 1 && read(timer_fd, &expired, sizeof(expired)) < 0 && errno != EAGAIN)
				return die("read the timer");
			else if (key >= 2 && connections[(key - 2) / 2].used) {
				struct connection *connection = &connections[(key - 2) / 2];
				bool hung_up = (events[i].events & (EPOLLERR | EPOLLHUP)) && !(events[i].events & EPOLLIN);
				if (hung_up || !lane_fill(connection, (int)(key % 2)))
					connection_end(connection);
			}
		}
		drain_all();
	}
}

static void usage(void)
{
	printf("usage: wan-proxy --to HOST:PORT --port-file FILE [--listen PORT] [--rtt-ms N] [--mbit N]\n"
	       "Listens on loopback (its port goes to FILE) and forwards to an IPv4 address, with a round-trip time (10 ms) and\n"
	       "a bandwidth in each direction (100 Mbit/s) that all connections share. Ends on SIGTERM.\n");
}

static bool parse_options(int argc, char **argv)
{
	static const struct option names[] = {{"to", 1, NULL, 't'},	 {"listen", 1, NULL, 'l'}, {"port-file", 1, NULL, 'f'},
					      {"rtt-ms", 1, NULL, 'r'}, {"mbit", 1, NULL, 'm'},	  {"help", 0, NULL, 'h'},
					      {NULL, 0, NULL, 0}};
	char host[64] = "";
	unsigned port = 0;
	int option;

	options.rtt_ms = 10;
	options.mbit = 100;
	while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1)
		switch (option) {
		case 't': sscanf(optarg, "%63[0-9.]:%u", host, &port); break;
		case 'l': options.listen_port = (uint16_t)atoi(optarg); break;
		case 'f': options.port_file = optarg; break;
		case 'r': options.rtt_ms = atof(optarg); break;
		case 'm': options.mbit = atof(optarg); break;
		case 'h': usage(); exit(0);
		default: return false;
		}
	options.to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	return options.port_file && port && options.rtt_ms >= 0 && options.mbit > 0 &&
	       inet_pton(AF_INET, host, &options.to.sin_addr) == 1;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t bytes = sizeof(address);
	int one = 1;

	if (!parse_options(argc, argv)) {
		fprintf(stderr, "wan-proxy: bad options, see --help\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	delay_ns = (uint64_t)(options.rtt_ms / 2 * 1e6);
	/* a multiple of the chunk, so that a chunk never wraps */
	ring_bytes = ((uint64_t)((double)delay_ns * options.mbit / 8e3) + QUEUE_BYTES) / CHUNK_BYTES * CHUNK_BYTES;
	address.sin_port = htons(options.listen_port);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (epoll_fd < 0 || timer_fd < 0 || listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(listener, (struct sockaddr *)&address, bytes) || getsockname(listener, (struct sockaddr *)&address, &bytes) ||
	    listen(listener, 64))
		return die("listen");
	FILE *file = fopen(options.port_file, "we");
	if (!file || fprintf(file, "%u\n", ntohs(address.sin_port)) < 0 || fclose(file))
		return die(options.port_file);
	return serve(listener);
}
