/* floor: what a fault cannot cost less than here, with nothing of ours on the way; one JSON object a line.
 *   fault   a page that is at hand is given by UFFDIO_COPY from another process's thread of the simplest kind (poll, read, copy)
 *   tcp     56 bytes one way over TCP loopback and a page back, between two processes
 *   unix    the same over a Unix socket
 * Processors do not sleep meanwhile, as in a pager's busy times (sys/awake.h). Usage: floor [ROUNDS] */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/base.h"
#include "sys/awake.h"

#define REQUEST_BYTES 56
#define ANSWER_BYTES (32 + PAGE_BYTES)

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int by_value(const void *first, const void *second)
{
	uint64_t a = *(const uint64_t *)first, b = *(const uint64_t *)second;
	return a < b ? -1 : a > b;
}

static void report(const char *what, uint64_t *ns, size_t count)
{
	qsort(ns, count, sizeof(*ns), by_value);
	printf("{\"what\":\"%s\",\"p50_us\":%.2f,\"p99_us\":%.2f,\"p999_us\":%.2f}\n", what, (double)ns[count / 2] / 1e3,
	       (double)ns[count * 99 / 100] / 1e3, (double)ns[count * 999 / 1000] / 1e3);
	fflush(stdout);
}

/* ---- a fault ---- */

static void *give_pages(void *argument)
{
	int uffd = *(int *)argument;
	static uint8_t page[PAGE_BYTES] __attribute__((aligned(PAGE_BYTES))) = { 1 };
	for (struct pollfd ready = { .fd = uffd, .events = POLLIN }; poll(&ready, 1, -1) >= 0 || errno == EINTR;) {
		struct uffd_msg message;
		if (read(uffd, &message, sizeof(message)) != sizeof(message))
			continue;
		struct uffdio_copy copy = { .dst = message.arg.pagefault.address & ~(uint64_t)(PAGE_BYTES - 1),
					    .src = (uintptr_t)page,
					    .len = PAGE_BYTES };
		if (ioctl(uffd, UFFDIO_COPY, &copy))
			fail("UFFDIO_COPY");
	}
	return NULL;
}

static void measure_faults(uint64_t *ns, size_t count)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	uint8_t *area = mmap(NULL, count * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register watched = { .range = { (uintptr_t)area, count * PAGE_BYTES },
					   .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t giver;
	if (uffd < 0 || area == MAP_FAILED || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &watched))
		fail("userfaultfd");
	if (pthread_create(&giver, NULL, give_pages, &uffd))
		fail("thread");
	for (size_t i = 0; i < count; i++) {
		uint64_t began = clock_now_ns();
		__atomic_load_n(&area[i * PAGE_BYTES], __ATOMIC_RELAXED);
		ns[i] = clock_now_ns() - began;
	}
}

/* ---- a message and its answer ---- */

static void transfer(int fd, uint8_t *bytes, size_t count, bool out)
{
	for (size_t at = 0; at < count;) {
		ssize_t done = out ? send(fd, bytes + at, count - at, MSG_NOSIGNAL) : recv(fd, bytes + at, count - at, 0);
		if (done == 0)
			exit(0);
		if (done < 0)
			fail("socket");
		at += (size_t)done;
	}
}

static void tcp_pair(int pair[2])
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	pair[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &length) ||
	    connect(pair[0], (struct sockaddr *)&address, sizeof(address)))
		fail("TCP loopback");
	pair[1] = accept(listener, NULL, NULL);
	close(listener);
	for (int i = 0; i < 2; i++)
		setsockopt(pair[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void measure_messages(const int pair[2], uint64_t *ns, size_t count)
{
	static uint8_t bytes[ANSWER_BYTES];
	pid_t child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		close(pair[0]);
		for (;;) {
			transfer(pair[1], bytes, REQUEST_BYTES, false);
			transfer(pair[1], bytes, ANSWER_BYTES, true);
		}
	}
	close(pair[1]);
	for (size_t i = 0; i < count; i++) {
		uint64_t began = clock_now_ns();
		transfer(pair[0], bytes, REQUEST_BYTES, true);
		transfer(pair[0], bytes, ANSWER_BYTES, false);
		ns[i] = clock_now_ns() - began;
	}
	close(pair[0]);
}

int main(int argc, char **argv)
{
	size_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 20000;
	uint64_t *ns = calloc(count, sizeof(*ns));
	struct awake awake;
	int pair[2];
	if (!ns || count < 1000)
		return fprintf(stderr, "Usage: floor [ROUNDS, at least 1000]\n"), 2;
	awake_init(&awake, true);
	awake_hold(&awake, clock_now_ns());
	measure_faults(ns, count);
	report("fault", ns, count);
	tcp_pair(pair);
	measure_messages(pair, ns, count);
	report("tcp", ns, count);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		fail("socket pair");
	measure_messages(pair, ns, count);
	report("unix", ns, count);
	awake_done(&awake);
	return 0;
}
