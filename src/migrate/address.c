#include "migrate/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/ip6.h>
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

static int family_of(const struct address *address)
{
	return address->six ? AF_INET6 : AF_INET;
}

/* Those of one link are its devices' own, and one that stands for an IPv4 address is no address of a device. */
static bool cannot_move(const struct address *address)
{
	struct in6_addr six;
	if (!address->six)
		return false;
	memcpy(&six, address->bytes, sizeof(six));
	return IN6_IS_ADDR_LINKLOCAL(&six) || IN6_IS_ADDR_MULTICAST(&six) || IN6_IS_ADDR_V4MAPPED(&six) ||
	       IN6_IS_ADDR_LOOPBACK(&six);
}

int address_parse(struct address *address, const char *text, struct dp_err *err)
{
	char ip[INET6_ADDRSTRLEN], *end;
	const char *slash = strchr(text, '/'), *at = strchr(text, '@');
	*address = (struct address){ .six = strchr(text, ':') };
	if (!slash || !at || at < slash || (size_t)(slash - text) >= sizeof(ip) || !at[1] || strlen(at + 1) >= IFNAMSIZ)
		return dp_fail(err, EINVAL, "--address %s: write it with its prefix and device, such as 10.0.0.5/24@eth0", text);
	snprintf(ip, sizeof(ip), "%.*s", (int)(slash - text), text);
	unsigned long prefix = strtoul(slash + 1, &end, 10);
	if (inet_pton(family_of(address), ip, address->bytes) != 1 || end != at || end == slash + 1 ||
	    prefix > address_bytes(address) * 8 || prefix == 0)
		return dp_fail(err, EINVAL, "--address %s: write it with its prefix and device, such as 10.0.0.5/24@eth0", text);
	if (cannot_move(address))
		return dp_fail(err, EINVAL, "--address %s: an address of this kind cannot move: it belongs to its device", text);
	address->prefix = (unsigned)prefix;
	strcpy(address->device, at + 1);
	return 0;
}

const char *address_text(const struct address *address, char *buffer, unsigned size)
{
	char ip[INET6_ADDRSTRLEN];
	inet_ntop(family_of(address), address->bytes, ip, sizeof(ip));
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
		.ifa_family = (unsigned char)family_of(address),
		.ifa_prefixlen = (unsigned char)address->prefix,
		.ifa_flags = address->six ? IFA_F_NODAD : 0, /* it is known to be nobody's: used at once */
		.ifa_index = if_nametoindex(address->device),
	};
	if (!what.ifa_index)
		return -ENODEV;
	size_t used = NLMSG_SPACE(sizeof(what));
	memcpy(message + NLMSG_HDRLEN, &what, sizeof(what));
	used += add_attribute(message + used, IFA_LOCAL, address->bytes, address_bytes(address));
	used += add_attribute(message + used, IFA_ADDRESS, address->bytes, address_bytes(address));
	/* Not chosen for what others of this host connect with: it leaves one day as it came. */
	const struct ifa_cacheinfo times = { .ifa_prefered = 0, .ifa_valid = UINT32_MAX };
	if (address->six)
		used += add_attribute(message + used, IFA_CACHEINFO, &times, sizeof(times));
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
	struct sockaddr_in6 name6 = { .sin6_family = AF_INET6 };
	if (!if_nametoindex(address->device))
		return dp_fail(err, ENODEV, "there is no network device %s", address->device);
	cleanup_fd int fd = socket(family_of(address), SOCK_DGRAM | SOCK_CLOEXEC, 0);
	memcpy(&name.sin_addr, address->bytes, sizeof(name.sin_addr));
	memcpy(&name6.sin6_addr, address->bytes, sizeof(name6.sin6_addr));
	if (fd < 0)
		return dp_fail_errno(err, errno, "socket");
	*there = (address->six ? bind(fd, (struct sockaddr *)&name6, sizeof(name6)) :
				 bind(fd, (struct sockaddr *)&name, sizeof(name))) == 0;
	return 0;
}

int address_refuse_local(const struct address *address, int socket_fd, struct dp_err *err)
{
	struct sockaddr_storage local;
	socklen_t length = sizeof(local);
	char text[64], ip[INET6_ADDRSTRLEN];
	if (getsockname(socket_fd, (struct sockaddr *)&local, &length) < 0 || local.ss_family != family_of(address))
		return 0;
	const void *bytes = address->six ? (const void *)&((struct sockaddr_in6 *)&local)->sin6_addr :
					   (const void *)&((struct sockaddr_in *)&local)->sin_addr;
	if (memcmp(bytes, address->bytes, address_bytes(address)) != 0)
		return 0;
	inet_ntop(family_of(address), address->bytes, ip, sizeof(ip));
	return dp_fail(err, EADDRINUSE, "--address %s: this host itself connects from there, and could not when it is gone: "
		       "`ip addr change %s/%u dev %s preferred_lft 0` has it choose another",
		       address_text(address, text, sizeof(text)), ip, address->prefix, address->device);
}

/* ---- nftables ---- */

static void table_name(const struct address *address, char name[static 64])
{
	int used = snprintf(name, 64, "distri_proc_");
	for (unsigned i = 0; i < address_bytes(address); i++)
		used += snprintf(name + used, 64 - (size_t)used, "%02x", address->bytes[i]);
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
	char name[64], ip[INET6_ADDRSTRLEN];
	const char *six = address->six ? "6" : "";
	table_name(address, name);
	inet_ntop(family_of(address), address->bytes, ip, sizeof(ip));
	cleanup_free char *text = format_text("table inet %s\ndelete table inet %s\ntable inet %s {\n"
					      "set closed { type ipv%s_addr; flags timeout; elements = { %s timeout " CLOSED_FOR " }\n}\n"
					      "chain input { type filter hook input priority -300; ip%s daddr @closed drop\n}\n}\n",
					      name, name, name, *six ? "6" : "4", ip, six);
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

/* ---- the neighbours ---- */

int address_announcer(void)
{
	return socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0); /* hears nothing */
}

/* Of ICMPv6, over the pseudo header: RFC 4443 section 2.3. */
static uint16_t icmp_checksum(const struct in6_addr *from, const struct in6_addr *to, const void *message, uint32_t bytes)
{
	uint32_t sum = bytes + IPPROTO_ICMPV6;
	const uint8_t *parts[] = { from->s6_addr, to->s6_addr, message };
	const uint32_t lengths[] = { 16, 16, bytes };
	for (size_t part = 0; part < ARRAY_LENGTH(parts); part++)
		for (uint32_t i = 0; i < lengths[part]; i += 2)
			sum += (uint32_t)(parts[part][i] << 8 | parts[part][i + 1]);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)~sum);
}

/* To all nodes of the link: this address is at this device now, whatever they knew. */
static bool advertise(const struct address *address, int fd, const uint8_t device[static ETH_ALEN])
{
	struct {
		struct ip6_hdr ip;
		struct nd_neighbor_advert advert;
		struct nd_opt_hdr option;
		uint8_t device[ETH_ALEN];
	} packet = {
		/* the version by way of the flow: ip6_vfc is another member of the union, and would be lost */
		.ip = { .ip6_flow = htonl(UINT32_C(6) << 28), .ip6_nxt = IPPROTO_ICMPV6, .ip6_hlim = 255,
			.ip6_dst.s6_addr = { 0xff, 2, [15] = 1 } },
		.advert = { .nd_na_type = ND_NEIGHBOR_ADVERT, .nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE },
		.option = { ND_OPT_TARGET_LINKADDR, 1 },
	};
	struct sockaddr_ll all = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IPV6), .sll_halen = ETH_ALEN,
				   .sll_ifindex = (int)if_nametoindex(address->device), .sll_addr = { 0x33, 0x33, 0, 0, 0, 1 } };
	_Static_assert(sizeof(packet) == 72, "nothing in between");
	memcpy(&packet.ip.ip6_src, address->bytes, 16);
	memcpy(&packet.advert.nd_na_target, address->bytes, 16);
	memcpy(packet.device, device, ETH_ALEN);
	const uint16_t bytes = sizeof(packet) - sizeof(packet.ip);
	packet.ip.ip6_plen = htons(bytes);
	packet.advert.nd_na_cksum = icmp_checksum(&packet.ip.ip6_src, &packet.ip.ip6_dst, &packet.advert, bytes);
	return sendto(fd, &packet, sizeof(packet), 0, (struct sockaddr *)&all, sizeof(all)) == sizeof(packet);
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
	if (address->six) {
		uint8_t hardware[ETH_ALEN];
		memcpy(hardware, device.ifr_hwaddr.sa_data, ETH_ALEN);
		return advertise(address, fd, hardware) ? 0 : dp_fail_errno(err, errno, "announce the address on %s", address->device);
	}
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
