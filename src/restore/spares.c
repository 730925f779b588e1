/* spares: the side of those who want one. */
#include "restore/spares.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <xxhash.h>

#include "base/base.h"
#include "restore/processes.h"

#define DIRECTORY ".spares"
#define ANSWER_MS 2000
#define END_NS UINT64_C(20000000000)

/* ---- which keeper ---- */

bool spares_fit(const struct restore_options *options)
{
	/* CRIU lets several listen at one port: in a network that is shared, who connects might get one that waits. */
	if (!options->network || strcmp(options->network, RESTORE_NETWORK_OWN))
		return false;
	if (options->shell_job || options->host_pid_namespace || options->lease || options->container)
		return false;
	for (size_t i = 0; i < options->criu_argument_count; i++)
		if (!strncmp(options->criu_arguments[i], "--inherit-fd", 12) ||
		    !strncmp(options->criu_arguments[i], "--action-script", 15))
			return false;
	return true;
}

char *spares_text(const struct restore_options *options)
{
	char pool[1400];
	char *text = format_text("%s\n%s\n%s\n%s\n%s\n%d %d %d %llu %d %d %llu %d %d %d %d %llu %d\n",
				 endpoint_pool_text(options->endpoint, pool, sizeof(pool)), options->endpoint->name,
				 options->local_memory ? options->local_memory : "",
				 options->remote_memory ? options->remote_memory : "", options->network ? options->network : "",
				 options->spread, options->ack_one, (int)options->compress,
				 (unsigned long long)options->stall_timeout_ns, (int)options->on_lost, options->migrate,
				 (unsigned long long)options->migrate_rate_bytes, options->may_sleep,
				 (int)options->prefetch_policy, options->working_set, (int)options->record,
				 (unsigned long long)options->commit_interval_ns, options->through);
	for (size_t i = 0; text && i < options->pool_count + options->criu_argument_count; i++) {
		const char *more = i < options->pool_count ? endpoint_pool_text(&options->pools[i], pool, sizeof(pool))
							   : options->criu_arguments[i - options->pool_count];
		char *longer = format_text("%s%s\n", text, more);
		free(text);
		text = longer;
	}
	return text;
}

static int make_key(const struct restore_options *options, char key[static SPARES_KEY_BYTES])
{
	cleanup_free char *text = spares_text(options);
	if (!text)
		return -ENOMEM;
	snprintf(key, SPARES_KEY_BYTES, "%016llx", (unsigned long long)XXH3_64bits(text, strlen(text)));
	return 0;
}

const char *spares_path(const char *root, const char *key, const char *suffix, char *buffer, size_t size)
{
	snprintf(buffer, size, "%s/" DIRECTORY, root);
	if (mkdir(buffer, 0700) && errno == ENOENT) {
		mkdir(root, 0700);
		mkdir(buffer, 0700);
	}
	snprintf(buffer, size, "%s/" DIRECTORY "/%s%s", root, key, suffix);
	return buffer;
}

/* By way of a descriptor: ROOT may be longer than a socket's address can be. The descriptor, or -errno. */
static int make_address(const char *root, const char *key, struct sockaddr_un *address)
{
	char path[PATH_MAX];
	snprintf(path, sizeof(path), "%s/" DIRECTORY, root);
	int directory_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s.sock", directory_fd, key);
	return directory_fd < 0 ? -errno : directory_fd;
}

/* ---- asking ---- */

static int connect_to(const char *root, const char *key)
{
	struct sockaddr_un address;
	cleanup_fd int directory_fd = make_address(root, key, &address);
	if (directory_fd < 0)
		return directory_fd;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd >= 0 && !connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return fd;
	int code = errno;
	dp_close_fd(&fd);
	return -code;
}

/* -ENOENT or -ECONNREFUSED: no keeper. */
static int ask(const char *root, const char *key, const struct spares_request *request, struct spares_reply *reply,
	       int *session_fd)
{
	cleanup_fd int fd = connect_to(root, key);
	if (fd < 0)
		return fd;
	struct pollfd answered = { .fd = fd, .events = POLLIN };
	int ret = send_with_fd(fd, request, sizeof(*request), -1);
	if (ret)
		return ret;
	if (poll(&answered, 1, ANSWER_MS) <= 0)
		return -ETIMEDOUT;
	ssize_t got = receive_with_fd(fd, reply, sizeof(*reply), session_fd);
	if (got != sizeof(*reply) || reply->version != SPARES_VERSION)
		return -EPROTO;
	return reply->result;
}

int spares_take(const struct restore_options *options, struct restore_session *session)
{
	const struct spares_request request = { SPARES_VERSION, SPARES_TAKE, 0, 0 };
	struct spares_reply reply;
	char key[SPARES_KEY_BYTES];
	int fd = -1;
	int ret = make_key(options, key);
	if (!ret)
		ret = ask(options->root, key, &request, &reply, &fd);
	if (!ret && fd < 0)
		ret = -EPROTO;
	if (ret) {
		dp_close_fd(&fd);
		return ret;
	}
	*session = (struct restore_session){ .report_fd = fd, .terminal.master_fd = -1, .instance = reply.instance };
	return 0;
}

/* ---- a keeper's beginning and end ---- */

static int listen_at(const char *root, const char *key, struct dp_err *err)
{
	struct sockaddr_un address;
	char path[PATH_MAX];
	cleanup_fd int directory_fd = make_address(root, key, &address);
	if (directory_fd < 0)
		return dp_fail_errno(err, -directory_fd, "open the spares' directory below %s", root);
	unlink(spares_path(root, key, ".sock", path, sizeof(path)));
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof(address)) && !listen(fd, 64))
		return fd;
	int code = errno;
	dp_close_fd(&fd);
	return dp_fail_errno(err, code, "listen at %s", path);
}

/* The keeper is nobody's child: it outlives the caller. */
static int fork_keeper(const struct restore_options *options, const char *key, int listen_fd, int lock_fd, struct dp_err *err)
{
	pid_t between = fork();
	if (between == 0) {
		pid_t keeper = fork();
		if (keeper == 0)
			spares_keeper_main(options, key, listen_fd, lock_fd);
		_exit(keeper < 0);
	}
	int status = -1;
	if (between < 0 || waitpid(between, &status, 0) != between || status)
		return dp_fail(err, EAGAIN, "fork the keeper of the spares");
	return 0;
}

/* 0 also where there is one already. */
static int start_keeper(const struct restore_options *options, const char *key, struct dp_err *err)
{
	char path[PATH_MAX];
	cleanup_fd int lock_fd = open(spares_path(options->root, key, ".lock", path, sizeof(path)), O_RDWR | O_CREAT | O_CLOEXEC,
				      0600);
	if (lock_fd < 0)
		return dp_fail_errno(err, errno, "open %s", path);
	if (flock(lock_fd, LOCK_EX | LOCK_NB))
		return errno == EWOULDBLOCK ? 0 : dp_fail_errno(err, errno, "lock %s", path);
	cleanup_fd int listen_fd = listen_at(options->root, key, err);
	if (listen_fd < 0)
		return listen_fd;
	return fork_keeper(options, key, listen_fd, lock_fd, err);
}

int spares_keep(const struct restore_options *options, unsigned count, uint64_t lifetime_ns, struct dp_err *err)
{
	const struct spares_request request = { SPARES_VERSION, SPARES_KEEP, count, lifetime_ns };
	uint64_t until_ns = clock_now_ns() + ANSWER_MS * UINT64_C(1000000);
	struct spares_reply reply;
	char key[SPARES_KEY_BYTES];
	int fd = -1;
	if (!spares_fit(options))
		return dp_fail(err, EINVAL, "--pre-created goes with --network none only, and with no option that gives the tree the "
			       "caller's files or pids, nor with --action-script");
	int ret = make_key(options, key);
	if (ret)
		return dp_fail(err, ENOMEM, "out of memory");
	/* One that is just ending has the lock and no ear any more. */
	while ((ret = ask(options->root, key, &request, &reply, &fd)) < 0 && clock_now_ns() < until_ns) {
		int started = start_keeper(options, key, err);
		if (started)
			return started;
		poll(NULL, 0, 1);
	}
	dp_close_fd(&fd);
	return ret ? dp_fail_errno(err, -ret, "ask the keeper of the spares") : 0;
}

/* Is nobody there? Then what a killed one left goes. */
static void sweep(const char *root, const char *key)
{
	static const char *const suffixes[] = { ".sock", ".log", ".lock" };
	char path[PATH_MAX];
	cleanup_fd int lock_fd = open(spares_path(root, key, ".lock", path, sizeof(path)), O_RDWR | O_CLOEXEC);
	if (lock_fd < 0 || flock(lock_fd, LOCK_EX | LOCK_NB))
		return;
	for (size_t i = 0; i < ARRAY_LENGTH(suffixes); i++)
		unlink(spares_path(root, key, suffixes[i], path, sizeof(path)));
}

int spares_list(const char *root, struct spares_status **list, size_t *count, struct dp_err *err)
{
	const struct spares_request request = { SPARES_VERSION, SPARES_STATUS, 0, 0 };
	char path[PATH_MAX];
	size_t room = 0;
	*list = NULL;
	*count = 0;
	snprintf(path, sizeof(path), "%s/" DIRECTORY, root);
	DIR *directory = opendir(path);
	for (struct dirent *entry = directory ? readdir(directory) : NULL; entry; entry = readdir(directory)) {
		struct spares_reply reply;
		char key[SPARES_KEY_BYTES];
		int fd = -1;
		if (strlen(entry->d_name) != SPARES_KEY_BYTES - 1 + 5 || strcmp(entry->d_name + SPARES_KEY_BYTES - 1, ".lock"))
			continue;
		snprintf(key, sizeof(key), "%.16s", entry->d_name);
		int ret = ask(root, key, &request, &reply, &fd);
		dp_close_fd(&fd);
		if (ret) {
			sweep(root, key);
			continue;
		}
		if (*count == room) {
			room = room ? room * 2 : 8;
			struct spares_status *larger = reallocarray(*list, room, sizeof(*larger));
			if (!larger) {
				closedir(directory);
				free(*list);
				*list = NULL;
				return dp_fail(err, ENOMEM, "out of memory");
			}
			*list = larger;
		}
		(*list)[(*count)++] = reply.status;
	}
	if (directory)
		closedir(directory);
	return 0;
}

int spares_end(const char *root, const char *key, struct dp_err *err)
{
	const struct spares_request request = { SPARES_VERSION, SPARES_END, 0, 0 };
	uint64_t until_ns = clock_now_ns() + END_NS;
	struct spares_reply reply;
	char path[PATH_MAX];
	int fd = -1;
	int ret = ask(root, key, &request, &reply, &fd);
	dp_close_fd(&fd);
	if (ret)
		return dp_fail_errno(err, -ret, "ask the keeper of the spares");
	/* Its spares have gone before it lets go of the lock. */
	cleanup_fd int lock_fd = open(spares_path(root, key, ".lock", path, sizeof(path)), O_RDWR | O_CLOEXEC);
	while (lock_fd >= 0 && flock(lock_fd, LOCK_EX | LOCK_NB)) {
		if (clock_now_ns() > until_ns)
			return dp_fail(err, ETIMEDOUT, "the keeper of the spares (pid %d) does not end", (int)reply.status.pid);
		poll(NULL, 0, 2);
	}
	return 0;
}
