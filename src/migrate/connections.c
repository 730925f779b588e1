#include "migrate/connections.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "sys/proc.h"

struct connection {
	unsigned long inode; /* of the socket */
	char to[INET6_ADDRSTRLEN + 8];
};

struct connections { /* of one network namespace */
	ino_t space;
	struct connection *list;
	size_t count, room;
};

static int compare(const void *left, const void *right)
{
	unsigned long a = ((const struct connection *)left)->inode, b = ((const struct connection *)right)->inode;
	return (a > b) - (a < b);
}

/* "0100007F:1A0B", or four such words for IPv6, each in the host's order. */
static void name(const char *text, char *to, size_t size)
{
	uint32_t words[4];
	unsigned port = 0, count = strlen(text) > 16 ? 4 : 1;
	char ip[INET6_ADDRSTRLEN] = "?";
	for (unsigned i = 0; i < count; i++)
		if (sscanf(text + 8 * i, "%8x", &words[i]) != 1)
			return;
	sscanf(text + 8 * count, ":%x", &port);
	inet_ntop(count == 1 ? AF_INET : AF_INET6, words, ip, sizeof(ip));
	snprintf(to, size, count == 1 ? "%s:%u" : "[%s]:%u", ip, port);
}

static int add(struct connections *connections, unsigned long inode, const char *peer)
{
	if (connections->count == connections->room) {
		size_t room = connections->room ? connections->room * 2 : 64;
		struct connection *wider = reallocarray(connections->list, room, sizeof(*wider));
		if (!wider)
			return -ENOMEM;
		connections->list = wider;
		connections->room = room;
	}
	struct connection *new = &connections->list[connections->count++];
	*new = (struct connection){ .inode = inode, .to = "?" };
	name(peer, new->to, sizeof(new->to));
	return 0;
}

static int read_table(struct connections *connections, pid_t pid, const char *table)
{
	char path[64], line[512], peer[64];
	int rc = 0;
	snprintf(path, sizeof(path), "/proc/%d/net/%s", (int)pid, table);
	cleanup_file FILE *file = fopen(path, "re"); /* no tcp6: a host without IPv6 */
	while (file && rc == 0 && fgets(line, sizeof(line), file)) {
		unsigned state;
		unsigned long inode;
		if (sscanf(line, "%*s %*s %63s %x %*s %*s %*s %*s %*s %lu", peer, &state, &inode) == 3 && inode &&
		    state != TCP_LISTEN && state != TCP_CLOSE)
			rc = add(connections, inode, peer);
	}
	return rc;
}

/* Those of the process's namespace, which most often is that of the one before. */
static int read_space(struct connections *connections, pid_t pid)
{
	char path[64];
	struct stat info;
	snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
	if (stat(path, &info) < 0)
		return -ESRCH;
	if (connections->space == info.st_ino)
		return 0;
	connections->space = info.st_ino;
	connections->count = 0;
	int rc = read_table(connections, pid, "tcp");
	if (rc == 0)
		rc = read_table(connections, pid, "tcp6");
	if (connections->count)
		qsort(connections->list, connections->count, sizeof(*connections->list), compare);
	return rc;
}

static const struct connection *find(const struct connections *connections, const char *link)
{
	struct connection key = { 0 };
	if (!connections->count || sscanf(link, "socket:[%lu]", &key.inode) != 1)
		return NULL;
	return bsearch(&key, connections->list, connections->count, sizeof(key), compare);
}

static int check_process(struct connections *connections, pid_t pid, struct dp_err *err)
{
	char path[300], link[64];
	const struct connection *found = NULL;
	int rc = read_space(connections, pid);
	if (rc == -ESRCH)
		return 0; /* it ended meanwhile */
	if (rc < 0)
		return dp_fail_errno(err, -rc, "look at the connections of process %d", (int)pid);
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	DIR *directory = opendir(path);
	for (struct dirent *entry; directory && !found && (entry = readdir(directory));) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%s", (int)pid, entry->d_name);
		ssize_t length = readlink(path, link, sizeof(link) - 1);
		link[length > 0 ? length : 0] = 0;
		found = find(connections, link);
	}
	if (directory)
		closedir(directory);
	return found ? dp_fail(err, EISCONN, "process %d is connected with %s by TCP: --tcp-established takes connections along",
			       (int)pid, found->to) :
		       0;
}

int connections_refuse(pid_t root, struct dp_err *err)
{
	cleanup_free pid_t *pids = NULL;
	struct connections connections = { 0 };
	ssize_t count = proc_tree(root, &pids);
	int rc = count < 0 ? dp_fail_errno(err, (int)-count, "look at process %d", (int)root) : 0;
	for (ssize_t i = 0; i < count && rc == 0; i++)
		rc = check_process(&connections, pids[i], err);
	free(connections.list);
	return rc;
}
