/* spares: the keeper. One loop over poll; what blocks longer than a question to the pool is done by children (starter.h). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

#include "base/base.h"
#include "base/log.h"
#include "client/client.h"
#include "restore/processes.h"
#include "restore/spares.h"
#include "restore/starter.h"

#define AT_A_TIME 2u
#define REFILL_NS UINT64_C(30000000)     /* after one was taken: what is just starting comes first */
#define AGAIN_NS UINT64_C(1000000000)    /* after a failure; twice as long after the next */
#define FAILURES_MOST 6u                 /* one after the other: then it is of no use */
#define REQUEST_MS 1000                  /* for a peer that has connected to say what it wants */
#define POOL_MS 1500

struct spare {
	struct starter starter; /* pid 0: it is made */
	int report_fd;          /* -1: not ready */
	uint64_t version;       /* the snapshot's, that was there before it was begun */
	struct instance instance;
};

static struct {
	struct restore_options options;
	const char *key;
	int listen_fd, lock_fd, signal_fd;
	struct client *client; /* to ask whether the snapshot is still the same; NULL: not connected */
	struct spare spare[SPARES_MOST];
	unsigned count; /* of them, made or being made, at the front */
	unsigned failures; /* one after the other */
	uint64_t lifetime_ns, end_at_ns, refill_at_ns;
	struct spares_status status;
} self = { .listen_fd = -1, .signal_fd = -1 };

/* ---- the snapshot ---- */

static int ask_version(uint64_t *version, struct dp_err *err)
{
	struct snapshot_info info = { 0 };
	int ret = self.client ? 0 : client_open(&self.client, self.options.endpoint, POOL_MS, err);
	if (ret) {
		self.client = NULL;
		return ret;
	}
	ret = client_snapshot_open(self.client, self.options.endpoint->name, &info, err);
	if (ret) {
		client_close(self.client);
		self.client = NULL;
		return ret;
	}
	*version = info.created_unix_ns ^ info.id << 1;
	client_snapshot_info_done(&info);
	return 0;
}

/* A connection that was lost meanwhile is made again, once. */
static int current_version(uint64_t *version, struct dp_err *err)
{
	bool was_open = self.client;
	int ret = ask_version(version, err);
	return ret && was_open && ret != -ENOENT ? ask_version(version, err) : ret;
}

/* ---- spares come and go ---- */

static void forget(unsigned i)
{
	self.spare[i] = self.spare[--self.count];
}

static void drop(unsigned i)
{
	starter_cancel(&self.spare[i].starter);
	dp_close_fd(&self.spare[i].report_fd); /* the supervisor ends it (S1) */
	forget(i);
}

static unsigned ready(void)
{
	unsigned count = 0;
	for (unsigned i = 0; i < self.count; i++)
		count += self.spare[i].report_fd >= 0;
	return count;
}

static void note_failure(const char *text)
{
	self.status.failed++;
	snprintf(self.status.error, sizeof(self.status.error), "%s", text);
	log_warn("%s", text);
	self.refill_at_ns = clock_now_ns() + (AGAIN_NS << DP_MIN(self.failures, 6u));
	self.failures++;
}

static void begin_one(void)
{
	struct dp_err err = { "" };
	struct spare spare = { .report_fd = -1 };
	int ret = current_version(&spare.version, &err);
	if (!ret)
		ret = starter_begin(&spare.starter, &self.options, false, &err);
	if (ret)
		note_failure(err.text);
	else
		self.spare[self.count++] = spare;
}

static void refill(void)
{
	unsigned under_way = self.count - ready();
	while (self.count > self.status.wanted)
		drop(self.count - 1);
	if (clock_now_ns() < self.refill_at_ns)
		return;
	for (; self.count < self.status.wanted && under_way < AT_A_TIME && clock_now_ns() >= self.refill_at_ns; under_way++)
		begin_one();
}

static void take_made(unsigned i)
{
	struct many_start start;
	struct spare *spare = &self.spare[i];
	starter_end(&spare->starter, &start, &spare->report_fd);
	if (start.error || spare->report_fd < 0) {
		dp_close_fd(&spare->report_fd);
		forget(i);
		note_failure(start.text);
		return;
	}
	spare->instance = start.instance;
	self.failures = 0;
	self.status.error[0] = 0;
}

/* ---- requests ---- */

static void hand_out(struct spares_reply *reply, int *session_fd)
{
	struct dp_err err;
	uint64_t version;
	int ret = current_version(&version, &err);
	for (unsigned i = self.count; i-- > 0;) {
		struct spare *spare = &self.spare[i];
		if (ret || spare->version != version) { /* S3; without the pool none would get far either */
			drop(i);
			continue;
		}
		struct pollfd dead = { .fd = spare->report_fd, .events = POLLIN };
		if (*session_fd >= 0 || spare->report_fd < 0 || poll(&dead, 1, 0) > 0)
			continue;
		*session_fd = spare->report_fd;
		reply->instance = spare->instance;
		forget(i);
	}
	reply->result = *session_fd >= 0 ? 0 : -ENOENT;
	self.status.taken += *session_fd >= 0;
	self.status.missed += *session_fd < 0;
	self.refill_at_ns = DP_MAX(self.refill_at_ns, clock_now_ns() + REFILL_NS);
	self.end_at_ns = clock_now_ns() + self.lifetime_ns;
}

static void fill_status(struct spares_status *status)
{
	uint64_t now_ns = clock_now_ns();
	self.status.ready = ready();
	self.status.left_ns = self.end_at_ns > now_ns ? self.end_at_ns - now_ns : 0;
	*status = self.status;
}

static void serve(void)
{
	struct spares_request request;
	struct spares_reply reply = { .version = SPARES_VERSION };
	int none, session_fd = -1;
	cleanup_fd int fd = accept4(self.listen_fd, NULL, NULL, SOCK_CLOEXEC);
	struct pollfd asked = { .fd = fd, .events = POLLIN };
	if (fd < 0 || poll(&asked, 1, REQUEST_MS) <= 0)
		return;
	ssize_t got = receive_with_fd(fd, &request, sizeof(request), &none);
	dp_close_fd(&none);
	if (got != sizeof(request) || request.version != SPARES_VERSION)
		return;
	if (request.kind == SPARES_TAKE) {
		hand_out(&reply, &session_fd);
	} else if (request.kind == SPARES_KEEP) {
		self.status.wanted = DP_MIN(request.count, SPARES_MOST);
		self.lifetime_ns = request.lifetime_ns;
		self.end_at_ns = clock_now_ns() + self.lifetime_ns;
		self.failures = 0;
		self.refill_at_ns = 0;
	} else if (request.kind == SPARES_END) {
		self.status.wanted = 0;
		self.end_at_ns = 0;
	}
	fill_status(&reply.status);
	send_with_fd(fd, &reply, sizeof(reply), session_fd);
	dp_close_fd(&session_fd); /* S2; one that did not get there ends with this */
}

/* ---- the loop ---- */

/* Returns when no supervisor of a spare is left: then nothing of them is. */
static void end(void) __attribute__((noreturn));
static void end(void)
{
	char path[PATH_MAX];
	for (unsigned i = 0; i < self.count; i++) {
		struct spare *spare = &self.spare[i];
		starter_cancel(&spare->starter);
		if (spare->report_fd >= 0)
			shutdown(spare->report_fd, SHUT_WR);
	}
	for (unsigned i = 0; i < self.count; i++) {
		struct pollfd gone = { .fd = self.spare[i].report_fd, .events = POLLIN };
		char text[sizeof(struct many_start)];
		if (gone.fd >= 0 && poll(&gone, 1, 10000) > 0) /* its last report */
			while (recv(gone.fd, text, sizeof(text), 0) > 0)
				continue;
	}
	unlink(spares_path(self.options.root, self.key, ".sock", path, sizeof(path)));
	if (!self.status.error[0])
		unlink(spares_path(self.options.root, self.key, ".log", path, sizeof(path)));
	unlink(spares_path(self.options.root, self.key, ".lock", path, sizeof(path)));
	_exit(0);
}

static int next_timeout_ms(void)
{
	uint64_t now_ns = clock_now_ns(), at_ns = self.end_at_ns;
	if (self.count < self.status.wanted && self.count - ready() < AT_A_TIME)
		at_ns = DP_MIN(at_ns, self.refill_at_ns);
	return at_ns > now_ns ? (int)DP_MIN((at_ns - now_ns) / 1000000u + 1, 1000000u) : 0;
}

static void watch(void)
{
	struct pollfd polls[SPARES_MOST + 2];
	unsigned count = self.count;
	for (unsigned i = 0; i < count; i++)
		polls[i] = (struct pollfd){ .fd = self.spare[i].starter.pid ? self.spare[i].starter.fd : self.spare[i].report_fd,
					    .events = POLLIN };
	polls[count] = (struct pollfd){ .fd = self.listen_fd, .events = POLLIN };
	polls[count + 1] = (struct pollfd){ .fd = self.signal_fd, .events = POLLIN };
	if (poll(polls, count + 2, next_timeout_ms()) < 0)
		return;
	for (unsigned i = count; i-- > 0;) { /* from the end: forgetting moves the last one down */
		if (!polls[i].revents)
			continue;
		if (self.spare[i].starter.pid) {
			take_made(i);
		} else { /* it has died, or was stopped */
			note_failure("a spare ended before it was wanted");
			drop(i);
		}
	}
	if (polls[count].revents)
		serve();
	if (polls[count + 1].revents || clock_now_ns() >= self.end_at_ns || self.failures >= FAILURES_MOST)
		end();
	refill();
}

static void set_up(void)
{
	char path[PATH_MAX];
	sigset_t stop;
	prctl(PR_SET_NAME, "dp-spares");
	setsid();
	close_all_but((const int[]){ self.listen_fd, self.lock_fd }, 2);
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	int log_fd = open(spares_path(self.options.root, self.key, ".log", path, sizeof(path)),
			  O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	dup2(null_fd, 0);
	dup2(null_fd, 1);
	dup2(log_fd >= 0 ? log_fd : null_fd, 2);
	dp_close_fd(&null_fd);
	dp_close_fd(&log_fd);
	log_setup(2, LOG_LEVEL_INFO, "spares");
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	sigaddset(&stop, SIGINT);
	sigaddset(&stop, SIGHUP);
	sigprocmask(SIG_SETMASK, &stop, NULL);
	self.signal_fd = signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK);
	if (self.signal_fd < 0)
		end();
}

void spares_keeper_main(const struct restore_options *options, const char *key, int listen_fd, int lock_fd)
{
	self.options = *options;
	self.options.name = self.options.group = NULL;
	self.options.hold = true;
	self.options.foreground = false;
	self.key = key;
	self.listen_fd = listen_fd;
	self.lock_fd = lock_fd;
	self.lifetime_ns = SPARES_LIFETIME_NS;
	self.end_at_ns = clock_now_ns() + self.lifetime_ns;
	snprintf(self.status.key, sizeof(self.status.key), "%s", key);
	snprintf(self.status.snapshot, sizeof(self.status.snapshot), "%s", options->endpoint->name);
	endpoint_pool_text(options->endpoint, self.status.pool, sizeof(self.status.pool));
	snprintf(self.status.network, sizeof(self.status.network), "%s", options->network ? options->network : "host");
	self.status.pid = getpid();
	set_up();
	for (;;)
		watch();
}
