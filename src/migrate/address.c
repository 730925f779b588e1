#include "migrate/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <net/if_arp.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/base.h"

#define CLOSED_FOR "60s"
#ifndef NFPROTO_INET
#define NFPROTO_INET 1 /* linux/netfilter.h does not go with netinet/in.h */
#endif

int address_parse(struct address *address, const char *text, struct dp_err *err)
{
	char ip[INET_ADDRSTRLEN], *end;
	const char *slash = strchr(text, '/'), *at = strchr(text, '@');
	*address = (struct address){ 0 };
	if (strchr(text, ':'))
		return dp_fail(err, EINVAL, "--address %s: only IPv4 addresses can move", text);
	if (!slash || !at || at < slash || (size_t)(slash - text) >= sizeof(ip) || !at[1] || strlen(at + 1) >= IFNAMSIZ)
		return dp_fail(err, EINVAL, "--address %s: write it with its prefix and device, such as 10.0.0.5/24@eth0", text);
	snprintf(ip, sizeof(ip), "%.*s", (int)(slash - text), text);
	unsigned long prefix = strtoul(slash + 1, &end, 10);
	if (inet_pton(AF_INET, ip, address->bytes) != 1 || end != at || end == slash + 1 || prefix > 32 || prefix == 0)
		return dp_fail(err, EINVAL, "--address %s: write it with its prefix and device, such as 10.0.0.5/24@eth0", text);
	address->prefix = (unsigned)prefix;
	strcpy(address->device, at + 1);
	return 0;
}

const char *address_text(const struct address *address, char *buffer, unsigned size)
{
	char ip[INET_ADDRSTRLEN];
	inet_ntop(AF_INET, address->bytes, ip, sizeof(ip));
	snprintf(buffer, size, "%s/%u@%s", ip, address->prefix, address->device);
	return buffer;
}

/* ---- rtnetlink ---- */

/* Sends one request that is acknowledged; 0 or -errno of the kernel's. */
static int request(int protocol, const void *message, size_t bytes)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	char answer[4096];
	cleanup_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	if (fd < 0 || sendto(fd, message, bytes, 0, (struct sockaddr *)&kernel, sizeof(kernel)) < 0)
		return -errno;
	ssize_t got = recv(fd, answer, sizeof(answer), 0);
	if (got < (ssize_t)NLMSG_LENGTH(sizeof(int)))
		return got < 0 ? -errno : -EPROTO;
	const struct nlmsghdr *header = (const struct nlmsghdr *)answer;
	const struct nlmsgerr *error = NLMSG_DATA(header);
	return header->nlmsg_type == NLMSG_ERROR ? error->error : -EPROTO;
}

static size_t add_attribute(char *at, unsigned short type, const void *value, size_t bytes)
{
	struct rtattr attribute = { .rta_type = type, .rta_len = (unsigned short)RTA_LENGTH(bytes) };
	memset(at, 0, RTA_SPACE(bytes));
	memcpy(at, &attribute, sizeof(attribute));
	memcpy(at + RTA_LENGTH(0), value, bytes);
	return RTA_SPACE(bytes);
}

static int change(const struct address *address, unsigned short type, unsigned short flags)
{
	_Alignas(8) char message[256] = { 0 };
	struct ifaddrmsg what = {
		.ifa_family = AF_INET,
		.ifa_prefixlen = (unsigned char)address->prefix,
		.ifa_index = if_nametoindex(address->device),
	};
	if (!what.ifa_index)
		return -ENODEV;
	size_t used = NLMSG_SPACE(sizeof(what));
	memcpy(message + NLMSG_HDRLEN, &what, sizeof(what));
	used += add_attribute(message + used, IFA_LOCAL, address->bytes, 4);
	used += add_attribute(message + used, IFA_ADDRESS, address->bytes, 4);
	flags |= NLM_F_REQUEST | NLM_F_ACK;
	struct nlmsghdr header = { .nlmsg_len = (unsigned)used, .nlmsg_type = type, .nlmsg_flags = flags };
	memcpy(message, &header, sizeof(header));
	return request(NETLINK_ROUTE, message, used);
}

int address_add(const struct address *address, struct dp_err *err)
{
	char text[64];
	int ret = change(address, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
	return ret && ret != -EEXIST ? dp_fail_errno(err, -ret, "add the address %s", address_text(address, text, sizeof(text))) : 0;
}

int address_remove(const struct address *address, struct dp_err *err)
{
	char text[64];
	int ret = change(address, RTM_DELADDR, 0);
	return ret && ret != -EADDRNOTAVAIL
		       ? dp_fail_errno(err, -ret, "remove the address %s", address_text(address, text, sizeof(text)))
		       : 0;
}

int address_find(const struct address *address, bool *there, struct dp_err *err)
{
	struct sockaddr_in name = { .sin_family = AF_INET };
	if (!if_nametoindex(address->device))
		return dp_fail(err, ENODEV, "there is no network device %s", address->device);
	cleanup_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	memcpy(&name.sin_addr, address->bytes, 4);
	if (fd < 0)
		return dp_fail_errno(err, errno, "socket");
	*there = bind(fd, (struct sockaddr *)&name, sizeof(name)) == 0;
	return 0;
}

/* ---- nftables ---- */

static void table_name(const struct address *address, char name[static 64])
{
	const uint8_t *bytes = address->bytes;
	snprintf(name, 64, "distri_proc_%02x%02x%02x%02x", bytes[0], bytes[1], bytes[2], bytes[3]);
}

static int run_nft(const char *text)
{
	int pair[2], status = -1;
	if (pipe2(pair, O_CLOEXEC))
		return -errno;
	pid_t child = fork();
	if (child == 0) {
		int null = open("/dev/null", O_RDWR);
		dup2(pair[0], 0);
		dup2(null, 1);
		dup2(null, 2);
		execlp("nft", "nft", "-f", "-", NULL);
		execl("/usr/sbin/nft", "nft", "-f", "-", NULL);
		_exit(127);
	}
	close(pair[0]);
	if (child > 0)
		io_write_full(pair[1], text, strlen(text)); /* smaller than a pipe */
	close(pair[1]);
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
		continue;
	if (child < 0)
		return -EAGAIN;
	if (!WIFEXITED(status))
		return -EIO;
	return WEXITSTATUS(status) == 0 ? 0 : WEXITSTATUS(status) == 127 ? -ENOPKG : -EIO;
}

int address_close(const struct address *address, struct dp_err *err)
{
	char name[64], ip[INET_ADDRSTRLEN];
	table_name(address, name);
	inet_ntop(AF_INET, address->bytes, ip, sizeof(ip));
	cleanup_free char *text = format_text("table inet %s\ndelete table inet %s\ntable inet %s {\n"
					      "set closed { type ipv4_addr; flags timeout; elements = { %s timeout " CLOSED_FOR " }\n}\n"
					      "chain input { type filter hook input priority -300; ip daddr @closed drop\n}\n}\n",
					      name, name, name, ip);
	int ret = text ? run_nft(text) : -ENOMEM;
	if (ret == -ENOPKG)
		return dp_fail(err, ENOPKG, "there is no `nft` on this host, by which packets for %s could be held up while its "
			       "connections are made: install nftables", ip);
	return ret ? dp_fail_errno(err, -ret, "hold up packets for %s by `nft`", ip) : 0;
}

struct nft_message {
	struct nlmsghdr header;
	struct nfgenmsg nf;
};

static struct nft_message nft_message(unsigned type, unsigned flags, uint8_t family, uint16_t resource, uint32_t number)
{
	return (struct nft_message){
		.header = { sizeof(struct nft_message), (uint16_t)type, (uint16_t)(NLM_F_REQUEST | flags), number, 0 },
		.nf = { family, NFNETLINK_V0, htons(resource) },
	};
}

/* A batch of one: delete the table. No `nft` is started for it, since connections wait for this. */
void address_drop_table(const char *name)
{
	_Alignas(8) char batch[256] = { 0 };
	if (strlen(name) >= 64)
		return;
	struct nft_message begin = nft_message(NFNL_MSG_BATCH_BEGIN, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, 1);
	struct nft_message drop = nft_message((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_DELTABLE, NLM_F_ACK, NFPROTO_INET, 0, 2);
	struct nft_message end = nft_message(NFNL_MSG_BATCH_END, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, 3);
	size_t used = sizeof(begin), at = used;
	used += sizeof(drop);
	used += add_attribute(batch + used, NFTA_TABLE_NAME, name, strlen(name) + 1);
	drop.header.nlmsg_len = (uint32_t)(used - at);
	memcpy(batch, &begin, sizeof(begin));
	memcpy(batch + at, &drop, sizeof(drop));
	memcpy(batch + used, &end, sizeof(end));
	request(NETLINK_NETFILTER, batch, used + sizeof(end)); /* one that is not there, or has forgotten, is as good */
}

void address_open(const struct address *address)
{
	char name[64];
	table_name(address, name);
	address_drop_table(name);
}

/* ---- ARP ---- */

int address_announcer(void)
{
	return socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0); /* hears nothing */
}

int address_announce(const struct address *address, int announcer, struct dp_err *err)
{
	struct ifreq device = { 0 };
	struct ether_arp arp = { .ea_hdr = { htons(ARPHRD_ETHER), htons(ETH_P_IP), ETH_ALEN, 4, htons(ARPOP_REQUEST) } };
	cleanup_fd int own = announcer < 0 ? address_announcer() : -1;
	int fd = announcer < 0 ? own : announcer;
	memcpy(device.ifr_name, address->device, IFNAMSIZ);
	if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &device))
		return dp_fail_errno(err, errno, "announce the address on %s", address->device);
	if (device.ifr_hwaddr.sa_family != ARPHRD_ETHER)
		return 0; /* lo, tun: nobody to tell */
	memcpy(arp.arp_sha, device.ifr_hwaddr.sa_data, ETH_ALEN);
	memcpy(arp.arp_spa, address->bytes, 4);
	memcpy(arp.arp_tpa, address->bytes, 4);
	struct sockaddr_ll all = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP),
				   .sll_ifindex = (int)if_nametoindex(address->device), .sll_halen = ETH_ALEN };
	memset(all.sll_addr, 0xff, ETH_ALEN);
	/* some listen to requests only, some to replies only */
	bool sent = sendto(fd, &arp, sizeof(arp), 0, (struct sockaddr *)&all, sizeof(all)) == sizeof(arp);
	arp.ea_hdr.ar_op = htons(ARPOP_REPLY);
	memcpy(arp.arp_tha, arp.arp_sha, ETH_ALEN);
	sent = sendto(fd, &arp, sizeof(arp), 0, (struct sockaddr *)&all, sizeof(all)) == sizeof(arp) && sent;
	return sent ? 0 : dp_fail_errno(err, errno, "announce the address on %s", address->device);
}
