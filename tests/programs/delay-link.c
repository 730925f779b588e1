/* delay-link: a link with a delay between two network devices, for hosts whose kernel has no netem.
 *
 *   delay-link DEVICE_A DEVICE_B MICROSECONDS [READY_FILE]
 *
 * Every frame that comes in at one device goes out at the other, that long after it came. The devices are one end of a veth pair
 * each, without addresses; what their senders left to a device to do (checksums, segments of up to 64 KiB) is left to the next.
 * Frames that find the queue full are dropped, as a link does. Ends with SIGTERM, or where a device is gone. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <linux/virtio_net.h>

#define FRAMES 2048u
#define FRAME_BYTES (65536u + 64u)
#define BUFFER_BYTES (64 << 20)

struct frame {
	uint64_t due_ns;
	uint32_t bytes;
	uint8_t data[FRAME_BYTES];
};

struct side {
	int fd;
	struct frame *queue; /* of what came in here; ring */
	unsigned first, count;
	uint64_t passed, dropped;
};

static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fail(const char *what, const char *device)
{
	fprintf(stderr, "delay-link: %s: %s: %s\n", device, what, strerror(errno));
	exit(1);
}

/* Frames come, and are sent on, with the header that says what the sender left to a device to do. */
static int open_device(const char *device)
{
	int on = 1, bytes = BUFFER_BYTES;
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_ll place = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
				     .sll_ifindex = (int)if_nametoindex(device) };
	struct packet_mreq all = { .mr_ifindex = place.sll_ifindex, .mr_type = PACKET_MR_PROMISC };
	if (fd < 0 || !place.sll_ifindex)
		fail("there is no such device, or no right to it", device);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes));
	if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof(all)) ||
	    bind(fd, (struct sockaddr *)&place, sizeof(place)))
		fail("open a packet socket", device);
	return fd;
}

/* Takes what has come; false: the device is gone. */
static int take(struct side *side, uint64_t delay_ns)
{
	static uint8_t nowhere[FRAME_BYTES];
	for (;;) {
		int full = side->count == FRAMES;
		struct frame *frame = &side->queue[(side->first + side->count) % FRAMES];
		ssize_t got = recv(side->fd, full ? nowhere : frame->data, FRAME_BYTES, 0);
		if (got < 0)
			return errno == EAGAIN || errno == EINTR;
		if (full) {
			side->dropped++;
			continue;
		}
		frame->bytes = (uint32_t)got;
		frame->due_ns = now_ns() + delay_ns;
		side->count++;
	}
}

/* Sends what is due from one side out of the other. */
static void give(struct side *from, int to_fd)
{
	while (from->count && from->queue[from->first].due_ns <= now_ns()) {
		struct frame *frame = &from->queue[from->first];
		if (send(to_fd, frame->data, frame->bytes, 0) < 0 && (errno == EAGAIN || errno == ENOBUFS))
			return; /* the device's queue is full: it waits its turn */
		from->passed++;
		from->first = (from->first + 1) % FRAMES;
		from->count--;
	}
}

static uint64_t next_due(const struct side *side)
{
	return side->count ? side->queue[side->first].due_ns : UINT64_MAX;
}

static void wait_for_work(const struct side *sides)
{
	struct pollfd polls[2] = { { .fd = sides[0].fd, .events = POLLIN }, { .fd = sides[1].fd, .events = POLLIN } };
	uint64_t a = next_due(&sides[0]), b = next_due(&sides[1]), due = a < b ? a : b, now = now_ns();
	uint64_t left = due == UINT64_MAX ? 1000000000u : due > now ? due - now : 0;
	struct timespec most = { (time_t)(left / 1000000000u), (long)(left % 1000000000u) };
	ppoll(polls, 2, &most, NULL);
}

int main(int argc, char **argv)
{
	struct side sides[2];
	char *end;
	if (argc < 4 || argc > 5) {
		fprintf(stderr, "usage: delay-link DEVICE_A DEVICE_B MICROSECONDS [READY_FILE]\n");
		return 2;
	}
	uint64_t delay_ns = strtoull(argv[3], &end, 10) * 1000;
	for (int i = 0; i < 2; i++) {
		sides[i] = (struct side){ .fd = open_device(argv[1 + i]) };
		sides[i].queue = mmap(NULL, FRAMES * sizeof(struct frame), PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (*end || sides[i].queue == MAP_FAILED)
			fail("begin", argv[1 + i]);
	}
	prctl(PR_SET_TIMERSLACK, 1000);
	int ready = argc == 5 ? open(argv[4], O_WRONLY | O_CREAT | O_CLOEXEC, 0600) : -1;
	if (argc == 5 && (ready < 0 || write(ready, "ready\n", 6) != 6))
		fail("say that it is ready", argv[4]);
	for (int alive = 1; alive;) {
		wait_for_work(sides);
		for (int i = 0; i < 2; i++) {
			alive = take(&sides[i], delay_ns) && alive;
			give(&sides[i], sides[!i].fd);
		}
	}
	return 1;
}
