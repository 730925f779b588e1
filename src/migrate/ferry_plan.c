/* What a migration finds out before anything stands still: which tree, where to, does the destination want it. */
#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/base.h"
#include "checkpoint/target.h"
#include "instance/instance.h"
#include "migrate/ferry_container.h"
#include "migrate/connections.h"
#include "migrate/ferry_out.h"
#include "migrate/record.h"
#include "sys/proc.h"

#define CONNECT_MS 10000
#define PREPARE_MS 60000
#define FILES_MOST 512u

/* ---- files ---- */

static bool same_mounts(pid_t pid)
{
	char path[64];
	struct stat own, its;
	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)pid);
	return !stat("/proc/self/ns/mnt", &own) && !stat(path, &its) && own.st_ino == its.st_ino;
}

static void add_file(json_object *files, json_object *seen, const char *path)
{
	struct stat info;
	if (json_object_object_get_ex(seen, path, NULL) || json_object_array_length(files) >= FILES_MOST ||
	    stat(path, &info) || !S_ISREG(info.st_mode))
		return;
	json_object_object_add(seen, path, json_object_new_boolean(true));
	json_object *file = json_object_new_object();
	line_add_text(file, "path", path);
	line_add_number(file, "bytes", (uint64_t)info.st_size);
	json_object_array_add(files, file);
}

static void add_files_of(json_object *files, json_object *seen, pid_t pid)
{
	char path[64], line[PATH_MAX + 128];
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	cleanup_file FILE *maps = fopen(path, "re");
	while (maps && fgets(line, sizeof(line), maps)) {
		line[strcspn(line, "\n")] = 0;
		char *name = strchr(line, '/');
		/* CRIU takes what was deleted along itself */
		if (name && !strstr(name, " (deleted)") && strncmp(name, "/dev/", 5) != 0)
			add_file(files, seen, name);
	}
}

json_object *out_files(pid_t pid)
{
	cleanup_free pid_t *pids = NULL;
	if (!same_mounts(pid))
		return NULL;
	json_object *files = json_object_new_array(), *seen = json_object_new_object();
	ssize_t count = proc_tree(pid, &pids);
	for (ssize_t i = 0; i < count; i++)
		add_files_of(files, seen, pids[i]);
	json_object_put(seen);
	return files;
}

/* ---- which, and where to ---- */

static int find_tree(struct out *out)
{
	const char *key = line_text(out->request, "name");
	struct instance instance;
	int64_t pid = line_number(out->request, "pid");
	char path[64];
	if (line_text(out->request, "container"))
		return container_out_find(out);
	if (key) {
		int ret = instance_find(out->root, key, &instance, &out->err);
		if (ret)
			return ret;
		pid = instance.root.pid;
		snprintf(out->name, sizeof(out->name), "%s", instance.name);
	}
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	if (pid <= 1 || pid > INT32_MAX || access(path, F_OK))
		return dp_fail(&out->err, ESRCH, "there is no process %lld", (long long)pid);
	out->pid = (pid_t)pid;
	return 0;
}

/* HOST, HOST:PORT, or a URI of the transport. */
static int find_destination(struct out *out)
{
	const char *to = line_text(out->request, "to");
	char uri[512];
	if (!to || strlen(to) > 300)
		return dp_fail(&out->err, EINVAL, "--to is missing: the host that runs the other agent, such as --to 10.0.0.2");
	bool plain_six = strchr(to, ':') != strrchr(to, ':') && !strpbrk(to, "[/"); /* fd00::2, and no port */
	snprintf(uri, sizeof(uri), strstr(to, "://") ? "%s" : plain_six ? "dps://[%s]" : "dps://%s", to);
	if (!strncmp(uri, "tcp://", 6)) /* the same as dp://, as listeners write it */
		memmove(uri + 2, uri + 3, strlen(uri + 3) + 1), uri[0] = 'd', uri[1] = 'p';
	const char *host = strstr(uri, "://") + 3, *bracket = strchr(host, ']');
	bool port = strchr(bracket ? bracket : host, ':');
	int ret = endpoint_parse(&out->to, uri, &out->err);
	if (!ret && out->to.kind != ENDPOINT_TCP)
		ret = dp_fail(&out->err, EINVAL, "--to %s: another agent is reached by dps://HOST:PORT", to);
	if (!port)
		out->to.port = AGENT_PORT;
	return ret;
}

static int find_address(struct out *out)
{
	const char *text = line_text(out->request, "address");
	bool there;
	if (!text)
		return 0;
	int ret = address_parse(&out->address, text, &out->err);
	if (!ret)
		ret = address_find(&out->address, &there, &out->err);
	if (!ret && !there)
		ret = dp_fail(&out->err, EADDRNOTAVAIL, "--address %s: this host does not have it", text);
	out->address_moves = !ret;
	return ret;
}

/* ---- the destination ---- */

static json_object *prepare_line(struct out *out, const struct endpoint *listen)
{
	static const char *const passed_on[] = { "local_memory", "prefetch_policy", "migrate_rate", "tcp_established", "address",
						   "verbose", "criu" };
	char boot[SWITCH_BOOT_BYTES] = "";
	json_object *line = line_op("prepare");
	switch_boot_id(boot);
	line_add_text(line, "id", out->id);
	line_add_text(line, "token", out->token);
	line_add_text(line, "boot", boot);
	line_add_text(line, "name", *out->name ? out->name : NULL);
	line_add_number(line, "back_port", listen->port);
	line_add_flag(line, "back_tls", listen->tls);
	line_add_number(line, "lease_ns", out->decision.lease_ns);
	line_add_flag(line, "ahead", out_goes_ahead(out) || *out->kept_pool);
	line_add_flag(line, "landing", out_goes_ahead(out) && !out_pool(out));
	line_add_flag(line, "landing_tls", out->to.tls);
	line_add_number(line, "resident_pages", target_resident_pages(out->pid));
	line_add_flag(line, "rest_stays", out_rest_stays(out));
	container_out_describe(out, line);
	json_object *files = out_files(out->pid);
	if (files)
		json_object_object_add(line, "files", files);
	for (size_t i = 0; i < ARRAY_LENGTH(passed_on); i++) {
		json_object *value;
		if (json_object_object_get_ex(out->request, passed_on[i], &value))
			json_object_object_add(line, passed_on[i], json_object_get(value));
	}
	out_add_kept(out, line);
	return line;
}

static int ask_destination(struct out *out, const struct endpoint *listen)
{
	struct stream *stream;
	json_object *answer;
	int ret = stream_connect(&stream, &out->to, CONNECT_MS, &out->err);
	if (ret)
		return ret;
	lines_init(&out->destination, stream);
	if (out->address_moves && (ret = address_refuse_local(&out->address, stream->fd, &out->err)) < 0)
		return ret;
	ret = lines_send(&out->destination, prepare_line(out, listen), CONNECT_MS);
	if (!ret)
		ret = lines_receive(&out->destination, &answer, PREPARE_MS);
	if (ret) {
		const char *why = stream_why(stream);
		return dp_fail(&out->err, ret == -EAGAIN ? ETIMEDOUT : -ret, "the agent at %s does not answer: %s", out->to.host,
			       *why ? why : strerror(ret == -EAGAIN ? ETIMEDOUT : -ret));
	}
	const char *event = line_text(answer, "event"), *text = line_text(answer, "text");
	container_out_answered(out, answer);
	if (!event || strcmp(event, "prepared") != 0)
		ret = dp_fail(&out->err, (int)DP_MIN(DP_MAX(line_number(answer, "code"), 1), 4095), "%s: %s", out->to.host,
			      text ? text : "it refuses");
	const char *landing = line_text(answer, "landing");
	snprintf(out->landing, sizeof(out->landing), "%s", landing ? landing : "");
	json_object_put(answer);
	if (!ret && out_goes_ahead(out) && !out_pool(out) && !*out->landing)
		ret = dp_fail(&out->err, EPROTO, "%s: its agent is of another version, and has no place for pages that go ahead",
			      out->to.host);
	return ret;
}

static int open_asks(struct out *out)
{
	struct endpoint place = { .kind = ENDPOINT_UNIX };
	char path[PATH_MAX];
	int ret = ferry_make_home(out->root, &out->err);
	if (ret)
		return ret;
	out->lock_fd = ferry_claim(out->root, "out", out->id, &out->err);
	if (out->lock_fd < 0)
		return out->lock_fd;
	ret = io_write_file(ferry_path(out->root, "out", out->id, "token", path), out->token, strlen(out->token), 0600);
	if (ret)
		return dp_fail_errno(&out->err, -ret, "write %s", path);
	ferry_path(out->root, "out", out->id, "record", out->record);
	if (strlen(ferry_path(out->root, "out", out->id, "asks.sock", path)) >= sizeof(place.path))
		return dp_fail(&out->err, ENAMETOOLONG, "%s: shorter, please", path);
	strcpy(place.path, path);
	return listener_open(&out->asks, &place, false, &out->err);
}

bool out_rest_stays(const struct out *out)
{
	const char *mode = line_text(out->request, "mode");
	return mode && !strcmp(mode, "hybrid");
}

const char *out_pool(const struct out *out)
{
	const char *through = line_text(out->request, "through_pool");
	return through ? through : line_text(out->request, "pool");
}

bool out_goes_ahead(const struct out *out)
{
	const char *mode = line_text(out->request, "mode");
	return out_rest_stays(out) || (mode && !strcmp(mode, "pre-copy")) || line_text(out->request, "through_pool");
}

static int check_mode(struct out *out)
{
	const char *mode = line_text(out->request, "mode"), *pool = line_text(out->request, "pool");
	const char *through = line_text(out->request, "through_pool");
	bool pre_copy = mode && !strcmp(mode, "pre-copy");
	if (mode && !pre_copy && !out_rest_stays(out) && strcmp(mode, "post-copy") != 0)
		return dp_fail(&out->err, EOPNOTSUPP, "--mode %s: this agent can do post-copy, pre-copy and hybrid", mode);
	if (through && (pool || (mode && !pre_copy)))
		return dp_fail(&out->err, EINVAL, "--through-pool is a mode of its own: leave --mode and --pool out");
	if (pool && !pre_copy)
		return dp_fail(&out->err, EINVAL, "--pool goes with --mode pre-copy: of the others the last pages stay here");
	return 0;
}

int out_prepare(struct out *out, const struct endpoint *listen)
{
	int ret = check_mode(out);
	if (!ret)
		ret = find_tree(out);
	if (!ret)
		ret = out_find_kept(out);
	if (!ret && line_text(out->request, "local_memory") && !line_text(out->request, "through_pool") && !*out->kept_pool)
		ret = dp_fail(&out->err, EINVAL, "--local-memory goes with --through-pool: without it all pages become local there");
	if (!ret)
		ret = find_destination(out);
	if (!ret)
		ret = find_address(out);
	if (!ret && !line_flag(out->request, "tcp_established"))
		ret = connections_refuse(out->pid, &out->err);
	if (!ret)
		ret = open_asks(out);
	if (!ret)
		ret = container_out_note(out);
	if (!ret)
		ret = ask_destination(out, listen);
	if (!ret)
		ret = container_out_copy(out, false);
	out->prepared_ns = clock_now_ns();
	return ret;
}
