#include "migrate/forward.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/if_ether.h>
#include <netinet/ip.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/base.h"
#include "restore/processes.h"

#define FILTER_MOST 12u
#define PACKETS 2048u
#define PACKET_BYTES 2048u /* larger ones are several that the host has joined: their sender sends them again */
#define GO_ON_NS UINT64_C(1000000000)

struct kept {
	uint64_t at_ns;
	uint32_t bytes;
	uint8_t data[PACKET_BYTES];
};

struct child {
	int order_fd, in_fd, out_fd;
	struct address address;
	struct kept *kept; /* ring; one slot more, for what is sent on at once */
	uint64_t count;    /* ever kept */
	uint64_t since_ns, until_ns; /* 0: not told to send yet */
};

/* ---- checksums: RFC 1071 ---- */

static uint32_t add_up(uint32_t sum, const uint8_t *bytes, uint32_t count)
{
	for (uint32_t i = 0; i + 1 < count; i += 2)
		sum += (uint32_t)(bytes[i] << 8 | bytes[i + 1]);
	return count % 2 ? sum + (uint32_t)(bytes[count - 1] << 8) : sum;
}

/* Of a packet: where its segment lies, of which protocol it is, and where the two addresses begin. */
struct segment {
	uint32_t at, bytes, addresses, address_bytes; /* of both */
	uint8_t protocol;
};

static bool find_segment(const uint8_t *packet, uint32_t bytes, struct segment *segment)
{
	if (bytes >= 20 && packet[0] >> 4 == 4) {
		uint32_t header = (packet[0] & 15u) * 4, total = (uint32_t)(packet[2] << 8 | packet[3]);
		bool fragment = (packet[6] & 0x3f) || packet[7];
		*segment = (struct segment){ header, total - header, 12, 8, packet[9] };
		return header >= 20 && total <= bytes && total >= header && !fragment;
	}
	if (bytes >= 40 && packet[0] >> 4 == 6) { /* fragments have a header of their own in between, as other rare things */
		*segment = (struct segment){ 40, (uint32_t)(packet[4] << 8 | packet[5]), 8, 32, packet[6] };
		return segment->bytes <= bytes - 40;
	}
	return false;
}

bool forward_set_checksum(uint8_t *packet, uint32_t bytes)
{
	struct segment segment;
	if (!find_segment(packet, bytes, &segment))
		return false;
	bool tcp = segment.protocol == IPPROTO_TCP;
	uint8_t *start = packet + segment.at, *place = start + (tcp ? 16 : 6);
	if ((!tcp && segment.protocol != IPPROTO_UDP) || segment.bytes < (tcp ? 20 : 8))
		return false;
	place[0] = place[1] = 0;
	uint32_t sum = add_up(segment.protocol + segment.bytes, packet + segment.addresses, segment.address_bytes);
	sum = add_up(sum, start, segment.bytes);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	if (!sum && !tcp)
		sum = 0xffff;
	place[0] = (uint8_t)(sum >> 8);
	place[1] = (uint8_t)sum;
	return true;
}

/* ---- the child ---- */

/* What came in for the address, as the packet's words say which; it begins with its IP header. */
static unsigned make_filter(const struct address *address, struct sock_filter code[static FILTER_MOST])
{
	unsigned words = address_bytes(address) / 4, at = address->six ? 24 : 16, used = 0;
	unsigned last = 2 + 2 * words; /* the last but one statement */
	code[used++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_B | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_PKTTYPE));
	code[used++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_HOST, 0, (uint8_t)(last - 1));
	for (unsigned i = 0; i < words; i++) {
		const uint8_t *ip = address->bytes + 4 * i;
		uint32_t word = (uint32_t)ip[0] << 24 | (uint32_t)ip[1] << 16 | (uint32_t)ip[2] << 8 | ip[3];
		code[used++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at + 4 * i);
		code[used] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, word, 0, (uint8_t)(last - used));
		used++;
	}
	code[used++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, UINT32_MAX);
	code[used++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
	return used;
}

static int open_in(const struct address *address)
{
	struct sock_filter code[FILTER_MOST];
	struct sock_fprog filter = { (unsigned short)make_filter(address, code), code };
	struct sockaddr_ll device = { .sll_family = AF_PACKET, .sll_protocol = htons(address->six ? ETH_P_IPV6 : ETH_P_IP),
				      .sll_ifindex = (int)if_nametoindex(address->device) };
	int fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) ||
			setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &(int){ 4 << 20 }, sizeof(int)) ||
			bind(fd, (struct sockaddr *)&device, sizeof(device)))) {
		close(fd);
		return -1;
	}
	return fd;
}

static void send_on(const struct child *child, struct kept *packet)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct sockaddr_in6 to6 = { .sin6_family = AF_INET6 };
	bool six = child->address.six;
	memcpy(&to.sin_addr, child->address.bytes, sizeof(to.sin_addr));
	memcpy(&to6.sin6_addr, child->address.bytes, sizeof(to6.sin6_addr));
	const void *place = six ? (const void *)&to6 : (const void *)&to;
	if (forward_set_checksum(packet->data, packet->bytes))
		sendto(child->out_fd, packet->data, packet->bytes, MSG_DONTWAIT, place, six ? sizeof(to6) : sizeof(to));
}

static void receive(struct child *child)
{
	for (;;) {
		struct kept *slot = &child->kept[child->until_ns ? PACKETS : child->count % PACKETS];
		ssize_t got = recv(child->in_fd, slot->data, PACKET_BYTES, MSG_TRUNC);
		if (got < 0)
			return;
		if (got > PACKET_BYTES)
			continue;
		slot->bytes = (uint32_t)got;
		slot->at_ns = clock_now_ns();
		if (child->until_ns)
			send_on(child, slot);
		else
			child->count++;
	}
}

static void go(struct child *child)
{
	uint64_t first = child->count > PACKETS ? child->count - PACKETS : 0;
	for (uint64_t i = first; i < child->count; i++)
		if (child->kept[i % PACKETS].at_ns >= child->since_ns)
			send_on(child, &child->kept[i % PACKETS]);
	child->until_ns = clock_now_ns() + GO_ON_NS;
}

static void run(struct child *child) __attribute__((noreturn));
static void run(struct child *child)
{
	for (;;) {
		struct pollfd polls[] = {
			{ .fd = child->in_fd, .events = POLLIN },
			{ .fd = child->until_ns ? -1 : child->order_fd, .events = POLLIN },
		};
		poll(polls, ARRAY_LENGTH(polls), child->until_ns ? 100 : -1);
		receive(child);
		if (child->until_ns && clock_now_ns() >= child->until_ns)
			_exit(0);
		if (!polls[1].revents || child->until_ns)
			continue;
		if (io_read_full(child->order_fd, &child->since_ns, sizeof(child->since_ns)))
			_exit(0);
		go(child);
	}
}

/* ---- the ferry's side ---- */

void forward_start(struct forwarder *forwarder, const struct address *address)
{
	struct child child = { .address = *address, .out_fd = -1 };
	int pair[2];
	*forwarder = (struct forwarder){ .fd = -1 };
	if (pipe2(pair, O_CLOEXEC))
		return;
	child.kept = calloc(PACKETS + 1, sizeof(*child.kept));
	child.in_fd = child.kept ? open_in(address) : -1;
	if (child.in_fd >= 0)
		child.out_fd = socket(address->six ? AF_INET6 : AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	child.order_fd = pair[0];
	if (child.out_fd >= 0)
		setsockopt(child.out_fd, SOL_SOCKET, SO_BINDTODEVICE, address->device, (socklen_t)strlen(address->device));
	pid_t pid = child.out_fd >= 0 ? fork() : -1;
	if (pid == 0) {
		const int keep[] = { child.in_fd, child.out_fd, child.order_fd };
		close_all_but(keep, ARRAY_LENGTH(keep));
		prctl(PR_SET_NAME, "dp-forwarder");
		run(&child);
	}
	dp_close_fd(&child.in_fd);
	dp_close_fd(&child.out_fd);
	free(child.kept);
	close(pair[0]);
	if (pid > 0)
		*forwarder = (struct forwarder){ pid, pair[1] };
	else
		close(pair[1]);
}

void forward_go(struct forwarder *forwarder, uint64_t since_ns)
{
	if (forwarder->child <= 0)
		return;
	if (io_write_full(forwarder->fd, &since_ns, sizeof(since_ns)))
		forward_end(forwarder);
}

/* One that was told to go ends by itself; whoever follows us as its parent reaps it. */
void forward_end(struct forwarder *forwarder)
{
	if (forwarder->child <= 0)
		return;
	close(forwarder->fd);
	waitpid(forwarder->child, NULL, WNOHANG);
	*forwarder = (struct forwarder){ .fd = -1 };
}
