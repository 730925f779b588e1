/* The destination's landing (landing.h), as its ferry sees it: where it listens, what is restored from it, and its death. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>

#include "base/base.h"
#include "instance/process.h"
#include "migrate/ferry_in.h"

#define LANDING_SOCKET "landing.sock"
#define LANDING_NOTE "landing" /* pid and start time, for a ferry that follows */

/* tls://OUR ADDRESS ON THE WAY TO THE SOURCE:0, which the source can reach. */
static int listen_text(const struct in *in, char text[static 128])
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	char host[64];
	if (getsockname(in->source.stream->fd, (struct sockaddr *)&address, &length) ||
	    getnameinfo((struct sockaddr *)&address, length, host, sizeof(host), NULL, 0, NI_NUMERICHOST))
		return -EIO;
	const char *scheme = line_flag(in->prepare, "landing_tls") ? "dps" : "tcp";
	snprintf(text, 128, strchr(host, ':') ? "%s://[%s]:0" : "%s://%s:0", scheme, host);
	return 0;
}

static int note_process(struct in *in)
{
	char path[PATH_MAX], text[64];
	snprintf(text, sizeof(text), "%d %llu", (int)in->landing.pid, (unsigned long long)process_start_time(in->landing.pid));
	int ret = io_write_file(ferry_path(in->root, "in", in->id, LANDING_NOTE, path), text, strlen(text), 0600);
	return ret ? dp_fail_errno(&in->err, -ret, "write %s", path) : 0;
}

/* Pages wait in the landing, and are in the tree's own memory too before that ends. */
static int check_room(struct in *in)
{
	char needed[32], free_now[32];
	uint64_t bytes = (uint64_t)DP_MAX(line_number(in->prepare, "resident_pages"), 0) * PAGE_BYTES;
	cleanup_free char *text = NULL;
	const char *at = io_read_file("/proc/meminfo", &text, 65536) > 0 ? strstr(text, "MemAvailable:") : NULL;
	uint64_t available = at ? strtoull(at + strlen("MemAvailable:"), NULL, 10) * 1024 : UINT64_MAX;
	if (bytes <= available / 2)
		return 0;
	return dp_fail(&in->err, ENOMEM, "this host has %s of memory left, and pages that go ahead take room twice until all are there, "
		       "%s in all: leave --mode out, or name a pool elsewhere (--pool)",
		       format_size(available, free_now, sizeof(free_now)), format_size(2 * bytes, needed, sizeof(needed)));
}

int in_start_landing(struct in *in)
{
	char path[PATH_MAX], listen[128];
	if (!line_flag(in->prepare, "landing"))
		return 0;
	int room = check_room(in);
	if (room)
		return room;
	if (listen_text(in, listen))
		return dp_fail(&in->err, EIO, "find this host's address on the way to the source");
	struct stream_peer peer;
	stream_peer(in->source.stream, &peer);
	const struct landing_place place = { .listen = listen,
					     .socket_path = ferry_path(in->root, "in", in->id, LANDING_SOCKET, path),
					     .identity = strcmp(peer.identity, "anonymous") ? peer.identity : NULL,
					     .allow_plaintext = getenv("DISTRI_PROC_ALLOW_PLAINTEXT") != NULL };
	int ret = landing_start(&in->landing, &place, &in->err);
	return ret ? ret : note_process(in);
}

int in_find_landing(struct in *in)
{
	char path[PATH_MAX];
	cleanup_free char *text = NULL;
	int pid;
	unsigned long long since;
	if (io_read_file(ferry_path(in->root, "in", in->id, LANDING_NOTE, path), &text, 256) < 0)
		return 0;
	if (sscanf(text, "%d %llu", &pid, &since) != 2)
		return dp_fail(&in->err, EBADMSG, "%s is damaged", path);
	/* Not our child: it ends by itself when nobody needs it. */
	in->landing.pidfd = process_open(pid, since);
	in->landed = true;
	return 0;
}

int in_land(struct in *in, const char *uri, char local[static 1400], const char **from)
{
	char name[64], path[PATH_MAX];
	*from = uri;
	if (!in->landing.pid)
		return 0;
	snprintf(name, sizeof(name), "migration/%s:offer", in->id);
	int ret = line_flag(in->prepare, "rest_stays") ? landing_take(&in->landing, uri, name, &in->err) : 0;
	snprintf(local, 1400, "dp+unix://%s#%s", ferry_path(in->root, "in", in->id, LANDING_SOCKET, path), name);
	*from = local;
	in->landed = true;
	return ret;
}

bool in_lost_landing(const struct in *in)
{
	return in->landed && !in->whole && (in->landing.pidfd < 0 || landing_has_ended(&in->landing));
}
